# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 03 Inference and generation
#
# You will be able to
#
# - run a model in both directions: from latents to counts, and from counts back to latents;
# - compute the exact posterior of a cell, and lay the encoder's beside it;
# - split what a cell's bound falls short of its likelihood into two gaps, and measure both on cells
#   that training never saw.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
import pyro
import torch
from matplotlib.patches import Ellipse

import genailab_pyro as glp

# %% [markdown]
# ## Two directions
#
# **Generation** goes down the model. Draw a latent from the prior, decode it to proportions $\rho$,
# draw the counts:
#
# $$ z_n \sim N(0, I), \qquad \mu_{ng} = l_n\, \rho_g(z_n), \qquad
# x_{ng} \sim \mathrm{NB}(\mu_{ng}, \theta_g), $$
#
# with the library $l_n$ and the inverse dispersion $\theta_g$ (variance $\mu + \mu^2/\theta$).
#
# **Inference** goes up. Which latents could have given these counts? Bayes' rule says it exactly:
#
# $$ p_\theta(z \mid x) = \frac{p(z)\, p_\theta(x \mid z)}{p_\theta(x)}, \qquad
# p_\theta(x) = \int p(z)\, p_\theta(x \mid z)\, dz . $$
#
# The integral is over all latents. With two of them a grid does it. With ten no grid can. The VAE
# asks an encoder instead: one network that reads any cell and answers
# $q_\phi(z \mid x) = N(m(x), s^2(x))$, a normal with independent latents. Here we take two latents,
# so that the answer can be checked.

# %%
cells = glp.register(glp.data.pbmc68k(), labels="bulk_labels")
train, held_out = cells.split(1 / 7, seed=0)
torch.manual_seed(0)
vae = glp.CVAE_NB.from_registration(train, latent_dim=2, hidden_dims=[64])
fit = glp.fit(vae, train, max_epochs=60, progress=False, seed=0)
minibatch = held_out.take(range(len(held_out)))
assert len(held_out) == 100

# %% [markdown]
# ## The exact posterior on a grid
#
# The model is a Pyro program. Held at a latent by `condition`, its trace holds $\log p(z)$ and
# $\log p_\theta(x \mid z)$. Around each cell goes a grid of $37 \times 37$ latents, centred on the
# encoder's mean and 16 of its scales wide to each side. Sums over the grid are integrals:
#
# $$ \log p_\theta(x) \approx \log \sum_i p(z_i)\, p_\theta(x \mid z_i)\, \Delta, \qquad
# w_i = \frac{p(z_i)\, p_\theta(x \mid z_i)}{\sum_j p(z_j)\, p_\theta(x \mid z_j)} . $$

# %%
POINTS, REACH, AT_ONCE = 37, 16.0, 2


def log_joint(minibatch, z):
    """log p(x, z) of each cell at its latents z, shape [places, cells, 2], by the Pyro model."""
    model = pyro.poutine.condition(fit.vae.model, data={"z": z})
    alone = minibatch._replace(num_cells=minibatch.size)  # of these cells, none stands for others
    with torch.no_grad(), pyro.get_param_store().scope():
        trace = pyro.poutine.trace(model).get_trace(alone)
        trace.compute_log_prob()
    return (trace.nodes["z"]["log_prob"] + trace.nodes["x"]["log_prob"]).double()


def part(minibatch, start, stop):
    """Some of the cells of a minibatch."""
    rows = range(start, min(stop, minibatch.size))
    pick = [value[list(rows)] if torch.is_tensor(value) else value for value in minibatch]
    return type(minibatch)(*pick)


def on_grid(minibatch):
    """Each cell's grid [places, cells, 2], log p(x, z) on it, the area of a place, and its q."""
    with torch.no_grad():
        q = fit.vae.encoder(minibatch)
    steps = torch.linspace(-REACH, REACH, POINTS)
    units = torch.cartesian_prod(steps, steps).unsqueeze(1)
    z = q.mean + units * q.stddev
    values = [
        log_joint(part(minibatch, start, start + AT_ONCE), z[:, start : start + AT_ONCE])
        for start in range(0, minibatch.size, AT_ONCE)
    ]
    area = (q.stddev * (steps[1] - steps[0])).prod(-1).double()
    return z, torch.cat(values, dim=1), area, q


def moments(z, weights):
    """Mean and covariance of each cell's latent under weights on its grid."""
    mean = (weights.unsqueeze(-1) * z).sum(0)
    off = z - mean
    return mean, torch.einsum("ic,ica,icb->cab", weights, off.double(), off.double())


z, joint, area, q = on_grid(minibatch)
weights = joint.softmax(0)
log_evidence = joint.logsumexp(0) + area.log()
mean, covariance = moments(z, weights)
edge = weights.reshape(POINTS, POINTS, -1).clone()
edge[1:-1, 1:-1] = 0
print(f"mean posterior mass on the edge of a grid: {edge.sum((0, 1)).mean():.1e}")
assert edge.sum((0, 1)).mean() < 1e-3, "the grids hold the posteriors"

# %% [markdown]
# ## What the bound falls short by
#
# For any $q$, put $p_\theta(x, z) = p_\theta(z \mid x)\, p_\theta(x)$ into the ELBO:
#
# $$ \mathcal L(q) = E_q[\log p_\theta(x, z) - \log q(z)]
# = \log p_\theta(x) - \mathrm{KL}\big(q \,\|\, p_\theta(z \mid x)\big) . $$
#
# So the bound falls short by exactly the divergence from the exact posterior. On the grid the
# divergence is a sum. The ELBO comes from draws. The two must meet, cell by cell.


# %%
def mean_and_error(values):
    """Mean over cells, and its standard error."""
    values = np.asarray(values)
    return values.mean(), values.std(ddof=1) / math.sqrt(len(values))


log_q = q.log_prob(z).double()
log_posterior = joint - joint.logsumexp(0) - area.log()
divergence = (log_q.exp() * (log_q - log_posterior)).sum(0) * area
elbo = fit.elbo(held_out, num_particles=200, seed=0)
off, error = mean_and_error(elbo + divergence.numpy() - log_evidence.numpy())
print(f"ELBO + KL - log p(x): {off:.4f} +- {error:.4f} nats per cell")
assert abs(off) < 5 * error, "the bound and the divergence"
assert error < 0.05 * divergence.mean(), "the check is sharp"

# %% [markdown]
# ## Two gaps
#
# The divergence has two causes. Let $q^*_n$ be the best normal with independent latents for cell
# $n$ alone. Then
#
# $$ \log p_\theta(x_n) - \mathcal L(q_\phi)
# = \underbrace{\log p_\theta(x_n) - \mathcal L(q^*_n)}_{\text{approximation gap}}
# + \underbrace{\mathcal L(q^*_n) - \mathcal L(q_\phi)}_{\text{amortisation gap}} . $$
#
# The first is the price of the *form*: upright ellipses, for posteriors that lean and bend. The
# second is the price of *one network for all cells*. `amortisation_gap` fits $q^*_n$ to each cell
# with the decoder frozen. We measure it on the held-out cells, and on as many of those that the
# encoder was trained on.

# %%
gaps = glp.evaluation.amortisation_gap(fit, held_out, num_steps=100, num_particles=300, seed=0)
seen = glp.evaluation.amortisation_gap(fit, train.subset(range(100)), num_steps=100, seed=0)
amortisation, amortisation_error = mean_and_error(gaps["amortisation_gap"])
approximation, approximation_error = mean_and_error(gaps["approximation_gap"])
on_seen, on_seen_error = mean_and_error(seen["amortisation_gap"])
print(f"amortisation gap, held-out: {amortisation:.2f} +- {amortisation_error:.2f} nats per cell")
print(f"amortisation gap, trained:  {on_seen:.2f} +- {on_seen_error:.2f} nats per cell")
print(f"approximation gap:          {approximation:.2f} +- {approximation_error:.2f} nats per cell")
better = (gaps["amortisation_gap"] > 0).mean()
chance = math.sqrt(0.25 / len(gaps))  # standard error of the share, were either as likely
median = gaps["amortisation_gap"].median()
print(f"cells whose own guide is better: {better:.2f}, median gap {median:.2f} nats")
assert better > 0.5 + 5 * chance, "there is an amortisation gap"
assert amortisation > 1.2 * median, "few cells lose much"
assert amortisation > on_seen, "held-out cells pay more"
assert amortisation > 2 * approximation, "amortisation costs more than the form"

# %% [markdown]
# Held-out cells pay more than cells that were trained on: the encoder has learned the latter by
# heart to some extent. The mean is well above the median: a few cells that the encoder reads
# wrongly lose much. And most of the loss is amortisation. A more flexible guide would gain little
# here. A wider or better regularised encoder, or a few steps of refinement at test time, would gain
# more.
#
# The table's own estimate of $\log p_\theta(x)$ is an importance-weighted bound. The grid confirms
# it, and with it the sum of the two gaps.

# %%
off, error = mean_and_error(gaps["log_likelihood"] - log_evidence.numpy())
print(f"importance-weighted bound - log p(x): {off:.4f} +- {error:.4f} nats per cell")
assert abs(off) < 0.05 * divergence.mean(), "the grid and the importance weights"
both = (gaps["amortisation_gap"] + gaps["approximation_gap"] - divergence.numpy()).mean()
assert abs(both) < 0.05 * divergence.mean(), "the gaps add up to the divergence"

# %% [markdown]
# ## The picture
#
# Ten held-out cells, chosen far apart. Blue: the region that holds 90 % of the exact posterior.
# Orange: the ellipse that holds 90 % of the encoder's. The number is the cell's amortisation gap in
# nats. A thin line joins the two means.

# %%
LEVEL = 0.9


def far_apart(points, number):
    """Positions of points, each as far as can be from those before it."""
    chosen = [int(points.norm(dim=1).argmin())]
    while len(chosen) < number:
        chosen.append(int(torch.cdist(points, points[chosen]).min(1).values.argmax()))
    return chosen


picture, panel = plt.subplots(figsize=(8, 7), layout="constrained")
panel.plot(*fit.latent(train).T, "o", color="#d0d0d0", markersize=2.5, zorder=0)
for cell in far_apart(mean.float(), 10):
    ranked = weights[:, cell].sort(descending=True)
    level = ranked.values[(ranked.values.cumsum(0) < LEVEL).sum()].item()
    grids = (z[:, cell, 0], z[:, cell, 1], weights[:, cell])
    across, up, height = (values.reshape(POINTS, POINTS).numpy() for values in grids)
    panel.contourf(across, up, height, levels=[level, 1], colors=["#0072B2"], alpha=0.45)
    panel.contour(across, up, height, levels=[level], colors=["#0072B2"], linewidths=1.2)
    width, tall = (2 * math.sqrt(-2 * math.log(1 - LEVEL)) * q.stddev[cell]).tolist()
    panel.add_patch(
        Ellipse(q.mean[cell].tolist(), width, tall, fill=False, edgecolor="#D55E00", linewidth=2),
    )
    ends = torch.stack([q.mean[cell], mean[cell].float()])
    panel.plot(*ends.T, color="#D55E00", linewidth=0.8)
    top = up[height >= level].max()
    gap = gaps["amortisation_gap"].iloc[cell]
    panel.text(mean[cell, 0], top + 0.06, f"{gap:.1f}", ha="center", fontsize=9)
panel.plot([], [], color="#0072B2", linewidth=6, alpha=0.5, label="exact posterior, 90 %")
panel.plot([], [], color="#D55E00", linewidth=2, label="encoder's ellipse, 90 %")
panel.plot([], [], "o", color="#d0d0d0", markersize=4, label="training cells")
panel.legend(loc="upper left", frameon=False)
panel.set_aspect("equal")
panel.set(xlim=(-4, 4), ylim=(-4, 4))
panel.set_xlabel("latent 1 (standard deviations of the prior)")
panel.set_ylabel("latent 2 (standard deviations of the prior)")
panel.set_title("The encoder's ellipses are upright, too small and off (number: gap in nats)")
panel.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# The picture says three things. They hold on average over the held-out cells:
#
# - *Upright.* The exact posteriors lean. The encoder's latents are independent by construction.
# - *Too small.* $\mathrm{KL}(q \,\|\, p)$ punishes $q$ where $p$ is small, and not the other way
#   round. For a normal posterior of correlation $r$ the best upright normal has variances smaller
#   by the factor $1 - r^2$. The encoder is smaller than that.
# - *Off.* The distance of the two means is not small beside the posterior's own scale.

# %%
exact_scale = covariance.diagonal(dim1=1, dim2=2).sqrt()
correlation = covariance[:, 0, 1] / exact_scale.prod(1)
shrunk, shrunk_error = mean_and_error((q.stddev.double().log() - exact_scale.log()).mean(1))
by_form = 0.5 * torch.log1p(-(correlation**2)).mean().item()
print(f"mean absolute correlation {correlation.abs().mean():.2f}")
print(f"encoder's scale over the exact one {math.exp(shrunk):.2f}, by form {math.exp(by_form):.2f}")
assert correlation.abs().mean() > 0.2, "exact posteriors lean"
assert shrunk + 5 * shrunk_error < by_form < 0, "narrower than its form asks for"
assert ((q.mean - mean) / exact_scale).abs().mean() > 0.25, "the means are off"

# %% [markdown]
# ## Generation checks inference
#
# In a generated cell the latent is known. Draw $z \sim p(z)$, then $x \sim p_\theta(x \mid z)$.
# Given $x$, the $z$ that was drawn is one draw of the exact posterior. So the region that holds 90
# % of the exact posterior must hold it in 90 % of the cells. More than that: the posterior mass
# that is likelier than the drawn $z$ is uniform between 0 and 1. Nothing has to be believed for
# that, neither the model nor the data. If it fails, inference is wrong.

# %%
alone = minibatch._replace(counts=None, num_cells=minibatch.size)
masses, hits = [], []
for repeat in range(2):
    pyro.set_rng_seed(repeat)
    with torch.no_grad(), pyro.get_param_store().scope():
        trace = pyro.poutine.trace(fit.vae.model).get_trace(alone)
    truth, counts = trace.nodes["z"]["value"], trace.nodes["x"]["value"]
    generated = minibatch._replace(counts=counts)
    _, values, _, guess = on_grid(generated)
    at_truth = log_joint(generated, truth.unsqueeze(0)).squeeze(0)
    masses.append((values.softmax(0) * (values > at_truth)).sum(0))
    squared = ((truth - guess.mean) / guess.stddev).square().sum(1)
    hits.append(squared < -2 * math.log(1 - LEVEL))
mass = torch.cat(masses)
exact_rate = (mass < LEVEL).double().mean().item()
encoded_rate = torch.cat(hits).double().mean().item()
error = math.sqrt(LEVEL * (1 - LEVEL) / len(mass))
print(f"latents in the 90 % region: exact {exact_rate:.3f}, encoded {encoded_rate:.3f}")
assert abs(exact_rate - LEVEL) < 5 * error, "exact regions hold what they say"
assert abs(mass.mean().item() - 0.5) < 5 / math.sqrt(12 * len(mass)), "the mean of the mass is that of a uniform one"
assert encoded_rate < LEVEL - 5 * error, "the encoder is too sure"

# %% [markdown]
# The exact regions hold what they say. The encoder's ellipses hold the latent far less often.
#
# ## Change one thing
#
# Let the refinement take `my_steps` steps from the encoder's answer: 0, 10, 100. Predict the mean
# amortisation gap that it closes at 0, and whether 10 steps close more than half of it.

# %%
my_steps = 10
closed = glp.evaluation.amortisation_gap(fit, held_out, num_steps=my_steps, seed=0)
print(f"{my_steps} steps close {closed['amortisation_gap'].mean():.2f} of {amortisation:.2f} nats")

# %% [markdown]
# ## Exercises
#
# 1. *The price of being upright.* Let the exact posterior of a cell be normal with unit variances
#    and correlation $r$. Find the upright normal $q$ with the least $\mathrm{KL}(q \,\|\, p)$. Show
#    that its variances are $1 - r^2$ and that the approximation gap is $-\tfrac12 \log(1 - r^2)$.
#    Which $r$ costs 0.2 nats?
# 2. *Why not draw from the prior?* $p(x) = E_{p(z)}[p(x \mid z)]$ can be estimated by draws of the
#    prior. Take $p(z) = N(0, 1)$ and $p(x \mid z) = N(z, \sigma^2)$ in each of $D$ independent
#    dimensions, and $x = 0$. Show that
#    $E[p(x \mid z)^2] / p(x)^2 = \big((1 + \sigma^2)/(\sigma\sqrt{2 + \sigma^2})\big)^D$. How many
#    draws give $p(x)$ to 10 % at $\sigma = 0.1$, for $D = 2$ and for $D = 10$?
# 3. *Too small, or off?* An encoder has the exact mean of a normal posterior in two dimensions, and
#    $c$ times its scales. Show that its 90 % ellipse holds the latent with probability
#    $1 - 0.1^{c^2}$. At the ratio of scales printed above, how much of the missing coverage does
#    that explain?
#
# Solutions: `solutions/03_inference_and_generation.py`.
#
# ## Next
#
# [04 Reparameterization](04_reparameterization.py): how the encoder is trained at all, through its
# own draws.
