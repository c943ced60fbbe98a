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
# %% [markdown]
# # 02 The evidence lower bound
#
# You will be able to
#
# - derive the evidence lower bound (ELBO), and say exactly what it leaves out;
# - tighten it with several draws, and predict how much each doubling gains;
# - read the bound of a count model against its exact log-likelihood, and say what a weight $\beta$
#   does to it.

# %%
import copy
import math
from itertools import pairwise

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch.distributions import kl_divergence

import genailab_pyro as glp

SEED = 0

# %% [markdown]
# ## The mathematics
#
# **The sum.** The model is $p_\theta(x, z) = p(z)\, p_\theta(x \mid z)$. How probable is a cell $x$
# under it? The latents must be integrated out, which in general cannot be done:
#
# $$ \log p_\theta(x) = \log \int p_\theta(x, z)\, dz . $$
#
# Take any guide $q_\phi(z \mid x)$. By Bayes' rule $p_\theta(x) = p_\theta(x, z) / p_\theta(z \mid
# x)$ for every $z$. Take the logarithm, add and subtract $\log q_\phi(z \mid x)$, and average over
# the guide. The left side has no $z$:
#
# $$
# \log p_\theta(x) =
# \underbrace{E_q\big[\log p_\theta(x, z) - \log q_\phi(z \mid x)\big]}_{\text{ELBO } \mathcal L}
# + \underbrace{E_q\big[\log q_\phi(z \mid x) - \log p_\theta(z \mid x)\big]}
# _{KL(q \,\|\, p_\theta(z \mid x)) \;\ge\; 0} .
# $$
#
# So $\mathcal L \le \log p_\theta(x)$, and what is missing is the KL from the guide to the
# posterior. To raise $\mathcal L$ in $\phi$ is to bring the guide to the posterior. To raise it in
# $\theta$ is to raise the likelihood, or to bring the posterior to the guide.
#
# **Two terms.** With $p_\theta(x, z) = p(z)\, p_\theta(x \mid z)$ the same bound reads
#
# $$ \mathcal L = E_q[\log p_\theta(x \mid z)] - KL(q_\phi(z \mid x) \,\|\, p(z)) , $$
#
# reconstruction less the KL to the *prior*. It is another KL than the one above.
#
# **More particles.** Let $w_k = p_\theta(x, z_k) / q_\phi(z_k \mid x)$ for $K$ draws $z_k$ from the
# guide. Each $w_k$ has the mean $p_\theta(x)$, so their average has it, too. The logarithm is
# concave, so by Jensen's inequality
#
# $$
# \mathcal L_K = E\Big[\log \frac 1K \sum_{k=1}^K w_k\Big] \le \log p_\theta(x), \qquad
# \mathcal L_1 = \mathcal L .
# $$
#
# An average of $2K$ weights is the mean of two averages of $K$. Jensen once more: $\mathcal L_{2K}
# \ge \mathcal L_K$. For large $K$, $\log(1 + \epsilon) \approx \epsilon - \epsilon^2 / 2$ gives
# what is left, where the variance of a weight is finite (exercise 2),
#
# $$
# \log p_\theta(x) - \mathcal L_K \approx \frac{1}{2K} \frac{\operatorname{Var}(w)}{p_\theta(x)^2} .
# $$
#
# ## A model that can be solved
#
# One latent, one observation: $p(z) = \mathcal N(0, 1)$, $p(x \mid z) = \mathcal N(z, 1)$ and $x =
# 2$. The sum of two independent standard normal variables has variance 2, so $p(x) = \mathcal N(0,
# 2)$. The posterior is $\mathcal N(x / 2, 1/2)$.
#
# For five guides, three numbers are computed in three ways that know nothing of each other: the
# ELBO by Gauss-Hermite quadrature of $\log p(x, z) - \log q(z)$, the KL by its closed form, and
# $\log p(x)$ by the density of $\mathcal N(0, 2)$.

# %%
x = torch.tensor(2.0, dtype=torch.float64)


def normal(mean, variance):
    return dist.Normal(torch.as_tensor(mean).double(), torch.as_tensor(variance).double().sqrt())


prior, posterior = normal(0, 1), normal(x / 2, 0.5)
log_evidence = normal(0, 2).log_prob(x).item()
nodes, node_weights = (torch.as_tensor(each) for each in np.polynomial.hermite_e.hermegauss(20))
node_weights = node_weights / node_weights.sum()


def reconstruction(q):
    z = q.loc + q.scale * nodes
    return (node_weights * normal(z, 1).log_prob(x)).sum().item()


def elbo(q):
    z = q.loc + q.scale * nodes
    terms = prior.log_prob(z) + normal(z, 1).log_prob(x) - q.log_prob(z)
    return (node_weights * terms).sum().item()


guides = {
    "the prior\nN(0, 1)": prior,
    "off the mark\nN(2, 0.5)": normal(2, 0.5),
    "too narrow\nN(1, 0.09)": normal(1, 0.09),
    "too wide\nN(1, 1)": normal(1, 1),
    "the posterior\nN(1, 0.5)": posterior,
}
parts = {name: (elbo(q), kl_divergence(q, posterior).item()) for name, q in guides.items()}
for bound, missing in parts.values():
    assert abs(bound + missing - log_evidence) < 1e-6
assert abs(log_evidence - -2.27) < 0.005
assert max(parts, key=lambda name: parts[name][0]).startswith("the posterior")

# %% [markdown]
# The two terms give the same bound:

# %%
for name, q in guides.items():
    assert abs(reconstruction(q) - kl_divergence(q, prior).item() - parts[name][0]) < 1e-6

# %% [markdown]
# ## The picture
#
# Every bar ends at the same height. A better guide does not change how probable the data are. It
# moves the border.

# %%
BLUE, ORANGE, INK = "#0072B2", "#D55E00", "#1a1a1a"
floor = -4.0
picture = Figure(figsize=(9.2, 4.8), layout="constrained", facecolor="white")
axes = picture.subplots()
for place, (bound, missing) in enumerate(parts.values()):
    axes.bar(place, bound - floor, bottom=floor, color=BLUE, width=0.62)
    axes.bar(place, missing, bottom=bound, color=ORANGE, width=0.62)
    middle = (floor + bound) / 2
    axes.text(place, middle, f"ELBO\n{bound:.2f}", color="white", ha="center", va="center")
    inside = missing > 0.25
    axes.text(
        place,
        bound + missing / 2 if inside else log_evidence + 0.08,
        f"KL {missing:.2f}",
        color="white" if inside else ORANGE,
        ha="center",
        va="center",
        weight="bold",
    )
axes.axhline(log_evidence, color=INK, lw=1.5)
label = f"log p(x) =\n{log_evidence:.2f}"
axes.text(4.45, log_evidence + 0.03, label, color=INK, weight="bold")
axes.set_xticks(range(len(parts)), parts)
axes.set(xlim=(-0.5, 5.2), ylim=(floor, -2.0))
axes.set(xlabel="guide (mean, variance)", ylabel="nats (the axis begins at -4)")
axes.set_title("ELBO + KL to the posterior = log p(x), whatever the guide")
axes.spines[["top", "right"]].set_visible(False)
picture

# %% [markdown]
# ## The bound by draws
#
# Training has no quadrature. It draws $z$ from the guide. Here are the same model and guide as Pyro
# programs, with 4,000 copies of the observation, so that one call gives the mean of 4,000
# estimates. The guide is the prior, the worst of the five. `glp.estimators.get("iwae",
# num_particles=K)` is the bound $\mathcal L_K$. Page 00 explains plates.

# %%
copies = 4_000
REPEATS = 20


def model():
    with pyro.plate("cells", copies):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x.float().expand(copies))


def guide():
    with pyro.plate("cells", copies):
        pyro.sample("z", dist.Normal(0.0, 1.0))


model.max_plate_nesting = guide.max_plate_nesting = 1  # else Pyro finds it by a run of its own


def bound_of(name, particles):
    """Mean and standard error of a bound, in nats, over repetitions."""
    estimator = glp.estimators.get(name, num_particles=particles)
    bound_model, bound_guide, loss = estimator.bind(model, guide)
    pyro.set_rng_seed(SEED)
    values = [-loss.loss(bound_model, bound_guide) / copies for _ in range(REPEATS)]
    return np.mean(values), np.std(values, ddof=1) / math.sqrt(REPEATS)


at_prior = parts["the prior\nN(0, 1)"][0]
value, error = bound_of("pathwise", 1)
assert abs(value - at_prior) < 5 * error

# %% [markdown]
# With one particle, `"iwae"` is the ELBO. With more it rises at each step by many standard errors,
# and stays below $\log p(x)$.

# %%
particles = [1, 2, 4, 8, 16, 32, 64]
tighter = {K: bound_of("iwae", K) for K in particles}
assert abs(tighter[1][0] - at_prior) < 5 * tighter[1][1]
for fewer, more in pairwise(particles):
    rise = tighter[more][0] - tighter[fewer][0]
    assert rise > 5 * math.hypot(tighter[more][1], tighter[fewer][1])
for value, error in tighter.values():
    assert value < log_evidence + 5 * error

# %% [markdown]
# Averaging the ELBO over more particles is not the same. It lowers the scatter, and the mean stays:

# %%
averaged, error = bound_of("pathwise", 64)
assert abs(averaged - at_prior) < 5 * error

# %% [markdown]
# How much is left? With the prior as guide, $w = p(x \mid z)$, and
#
# $$
# E[w^2] = \int \mathcal N(x; z, 1)^2\, \mathcal N(z; 0, 1)\, dz
# = \frac{1}{2\sqrt\pi}\, \mathcal N\big(x; 0, \tfrac 32\big) .
# $$
#
# (The square of a normal density of variance 1 is a normal density of variance 1/2, times $1 /
# (2\sqrt\pi)$.) So $\operatorname{Var}(w) / p(x)^2 = 1.25$, and at $K = 64$ about $1.25 / 128$ nats
# are missing. Each doubling of $K$ halves it.

# %%
second_moment = normal(0, 1.5).log_prob(x).exp().item() / (2 * math.sqrt(math.pi))
relative_variance = second_moment / math.exp(2 * log_evidence) - 1
assert abs(relative_variance - 1.25) < 0.005
value, error = tighter[64]
assert abs((log_evidence - value) - relative_variance / 128) < 5 * error

# %% [markdown]
# ## Counts: the same account
#
# Now a negative binomial (NB) model: the count of gene $g$ in a cell of library $l_n$ has mean
# $\mu_{ng} = l_n \rho_g(z_n)$ and variance $\mu + \mu^2 / \theta_g$, where $\theta_g$ is the
# inverse dispersion. With a single latent, the integral over $z$ is a sum on a fine grid, so that
# $\log p(x)$ is exact here, too. The cells are simulated.

# %%
adata = glp.data.simulate(400, 30, num_types=3, seed=SEED).adata
train, test = glp.register(adata).split(0.25, seed=SEED)
torch.manual_seed(SEED)
vae = glp.CVAE_NB.from_registration(train, latent_dim=1, hidden_dims=[32])
fit = glp.fit(vae, train, "pathwise", max_epochs=100, seed=SEED, progress=False)

exact_vae = copy.deepcopy(fit.vae).double()
minibatch = test.take(range(len(test)), dtype=torch.float64)
grid = torch.linspace(-8, 8, 8001, dtype=torch.float64)
width = (grid[1] - grid[0]).item()
with torch.no_grad():
    z = grid[:, None, None].expand(-1, len(test), 1)
    pieces = []
    for part in z.split(1000):
        likelihood = exact_vae.likelihood(exact_vae.decode(part, minibatch), minibatch)
        pieces.append(likelihood.log_prob(minibatch.counts))
    log_joint = torch.cat(pieces) + prior.log_prob(grid)[:, None]
    log_q = exact_vae.encoder(minibatch).log_prob(z)

exact = log_joint.logsumexp(0) + math.log(width)
log_posterior = log_joint - exact
bounds = (log_q.exp() * (log_joint - log_q)).sum(0) * width
missing = (log_q.exp() * (log_q - log_posterior)).sum(0) * width
assert (bounds + missing - exact).abs().max() < 1e-6
assert missing.min() > 0

# %% [markdown]
# The trained guide misses little, and the answers of a `Fit` agree with the grid: `fit.elbo` with
# the bound, `fit.log_likelihood` ($\mathcal L_K$ with $K$ particles, 100 unless given) with $\log
# p(x)$, from below. The standard errors are over seeds, as the cells are the same.


# %%
def over_seeds(answer, repeats=10, **settings):
    """Mean over cells, in nats, and its standard error over the draws."""
    means = [answer(test, seed=seed, **settings).mean() for seed in range(repeats)]
    return np.mean(means), np.std(means, ddof=1) / math.sqrt(repeats)


value, error = over_seeds(fit.elbo, num_particles=10)
assert abs(value - bounds.mean().item()) < 5 * error
value, error = over_seeds(fit.log_likelihood, num_particles=200)
assert bounds.mean().item() + 5 * error < value < exact.mean().item() + 5 * error
assert exact.mean().item() - value < 0.5 * missing.mean().item()

# %% [markdown]
# ## Real cells
#
# With ten latents there is no grid. $\mathcal L_K$ is what held-out cells are scored by: it still
# rises with $K$. The difference is taken cell by cell, from means over five seeds.

# %%
blood_train, blood_test = glp.register(glp.data.pbmc68k()).split(0.2, seed=SEED)
torch.manual_seed(SEED)
blood_vae = glp.CVAE_NB.from_registration(blood_train, latent_dim=10)
blood = glp.fit(blood_vae, blood_train, "pathwise", max_epochs=30, seed=SEED, progress=False)
scores = {}
for K in (1, 10, 100):
    repeats = [blood.log_likelihood(blood_test, num_particles=K, seed=seed) for seed in range(5)]
    scores[K] = np.mean(repeats, axis=0)
for fewer, more in ((1, 10), (10, 100)):
    rise = scores[more] - scores[fewer]
    assert rise.mean() > 5 * rise.std(ddof=1) / math.sqrt(len(rise))

# %% [markdown]
# `fit.terms` tells the two terms of the bound apart, as means over cells in nats: the negative
# reconstruction, and the KL to the prior.

# %%
terms = blood.terms(blood_test, num_particles=10, seed=SEED)
both = -blood.elbo(blood_test, num_particles=10, seed=SEED).mean()
assert abs(terms.reconstruction + terms.kl - both) < 1e-4 * both

# %% [markdown]
# ## A weight on the KL
#
# Training often multiplies the KL to the prior by $\beta$ (`glp.Warmup`):
#
# $$ \mathcal L_\beta = E_q[\log p_\theta(x \mid z)] - \beta\, KL(q_\phi \,\|\, p(z)) . $$
#
# For $\beta < 1$ this is **not a bound** of $\log p(x)$. In the solved model the best guide is
# $\mathcal N(x / (1 + \beta),\ \beta / (1 + \beta))$. (Set the derivatives of
# $-\tfrac12[(x - m)^2 + s^2] - \tfrac\beta2[m^2 + s^2 - \log s^2]$ to zero.) At $\beta = 0.1$ its $\mathcal L_\beta$ is
# a nat above $\log p(x)$, while its ELBO is a nat below. This is why `fit.elbo` always has $\beta =
# 1$.

# %%
beta = 0.1
q = normal(x / (1 + beta), beta / (1 + beta))
weighted = reconstruction(q) - beta * kl_divergence(q, prior).item()
assert weighted > log_evidence + 1
assert elbo(q) < log_evidence - 1

# %% [markdown]
# ## Change one thing
#
# Set `x = torch.tensor(4.0)`. Predict, before you run, the height of the line and the KL of the
# prior as a guide. (The variances stay; the posterior is at $x / 2$.) Will the bound with 64
# particles be nearer to the line, or farther? The assertions of numbers that depend on $x$ (-2.27,
# 1.25) will have to follow, and the guides around 1 are no longer good.
#
# ## Exercises
#
# 1. **How many particles?** With the guide $\mathcal N(1, 1)$, how large must $K$ be so that less
#    than 0.01 nats are missing? Use $w / p(x) = p(z \mid x) / q(z)$, so that $E_q[w^2] / p(x)^2 =
#    \int p(z \mid x)^2 / q(z)\, dz$. Check it by draws. How many did the prior need?
# 2. **Too narrow.** For which variances $s^2$ of a guide $\mathcal N(1, s^2)$ is
#    $\operatorname{Var}(w)$ infinite? Is the guide $\mathcal N(1, 0.09)$ of the picture among them?
#    Compare its $\mathcal L_{64}$ with that of $\mathcal N(1, 1)$.
# 3. **The bound chooses the wrong model.** Model B has the prior $\mathcal N(0, 4)$ in place of
#    $\mathcal N(0, 1)$. Which of the two is the more probable at $x = 2$? Which has the higher ELBO
#    with the guide $\mathcal N(1, 0.49)$ for both?
#
# Solutions: [solutions/02_elbo](solutions/02_elbo.py).
#
# ## References
#
# Jordan, Ghahramani, Jaakkola, Saul (1999). An introduction to variational methods for graphical
# models. doi:10.1023/A:1007665907178
#
# Burda, Grosse, Salakhutdinov (2016). Importance weighted autoencoders.
# doi:10.48550/arXiv.1509.00519
#
# ## Next
#
# [03 Inference and generation](03_inference_and_generation.py): the encoder and the decoder at
# work.
