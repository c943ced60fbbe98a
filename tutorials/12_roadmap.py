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
# # 12 Where to go next, and what no model can tell
#
# A VAE for counts can be extended in many directions. Three of them come with a trap.
#
# You will be able to
#
# - let groups with few cells borrow from the others, by a hierarchical prior, and say by how
#   much;
# - name what the counts do not identify, such as the axes of a normal latent;
# - say when a contrast of treated and control cells is an effect, and when no data of this kind
#   can show one.

# %% [markdown]
# ## The road
#
# | step | when | where |
# |---|---|---|
# | NB counts, library as an offset | always first | `glp.CVAE_NB`, [09](09_nb_and_zinb.py) |
# | extra zeros | when NB misses zeros at high means | `glp.CVAE_ZINB`, [09](09_nb_and_zinb.py) |
# | batches and conditions | when they are known | `conditions=[...]` |
# | a tighter bound, a richer prior | when diagnostics ask | [06](06_estimator_details.py) |
# | groups that share a prior | when some groups are small | this page |
# | meaning of single latents | never without more than counts | this page |
# | effects of a treatment | when assumptions can be named | this page |
#
# **One notation.** The model is $p_\theta(x, z) = p(z)\, p_\theta(x \mid z)$, the guide
# $q_\phi(z \mid x)$, the bound $\mathcal{L} = E_q[\log p_\theta(x, z) - \log q_\phi(z \mid x)]$.
# The mean count is $\mu_{ng} = l_n \rho_g$ with library $l_n$, and the variance
# $\mu + \mu^2/\theta_g$.

# %%
import copy
import dataclasses

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value

import genailab_pyro as glp
from genailab_pyro.analysis import contrast
from genailab_pyro.distributions import NegativeBinomial

SEED = 0

# %% [markdown]
# ## 1. A prior that groups share
#
# Let $j$ be a group of cells, such as a donor or a type, and $\eta_{jg} = \log \rho_{jg}$ the log
# share of gene g in it. Three ways:
#
# - **apart**: each group by itself. Not drawn to the others, and wild where a group has few cells;
# - **as one**: one value for all. Calm, and wrong where groups differ;
# - **shared prior**: $\eta_{jg} \sim \mathcal{N}(m_g, \tau^2)$, where $m_g$ and $\tau$ are
#   learned from all groups.
#
# What does the third do? Near its maximum $\hat\eta$ the log-likelihood of a group is a parabola.
# Its curvature is the information in the counts, which [10](10_nb_likelihood.py) derived for one
# count: $I_{jg} = \sum_{n \in j} \mu_{ng}\theta/(\mu_{ng} + \theta)$. A parabola plus the
# parabola of the prior is a parabola, with its top at
#
# $$
# E[\eta_{jg} \mid x] \approx m_g + B_{jg}\,(\hat\eta_{jg} - m_g), \qquad
# B_{jg} = \frac{I_{jg}}{I_{jg} + 1/\tau^2},
# \qquad \mathrm{sd} \approx \big(I_{jg} + 1/\tau^2\big)^{-1/2} .
# $$
#
# Many cells: $B \to 1$, the group speaks for itself. Few cells: $B \to 0$, it takes the word of
# the others. Nobody chooses how much: $\tau$ is learned from how far groups differ.
#
# **Cells with a known truth.** Seven groups of 240 down to 4 cells, 60 genes.

# %%
SIZES = [240, 120, 60, 30, 15, 8, 4]
adata, truth = glp.data.simulate(
    2500,
    60,
    num_types=7,
    types=glp.data.CellTypes(separation=0.5, spread=0.0),
    library=glp.data.LibrarySizes(median=150.0),
    noise=glp.data.CountNoise(inverse_dispersion=3.0),
    seed=SEED,
)
rows = np.concatenate([np.flatnonzero(truth.types == j)[:size] for j, size in enumerate(SIZES)])
counts = torch.as_tensor(adata.X[rows].toarray())
library = torch.as_tensor(truth.library[rows], dtype=torch.float32)
group = torch.as_tensor(truth.types[rows])
firsts = [np.flatnonzero(truth.types == j)[0] for j in range(len(SIZES))]
true_share = torch.as_tensor(truth.proportions[firsts], dtype=torch.float32).log()

member = torch.nn.functional.one_hot(group).float()
assert member.sum(0).tolist() == SIZES
apart = ((member.T @ counts + 0.5) / (member.T @ library).unsqueeze(-1)).log()
as_one = ((counts.sum(0) + 0.5) / library.sum()).log()

# %% [markdown]
# The shared prior is a Pyro model of a few lines. The guide is a normal for each unknown.

# %%
GENES = counts.shape[1]


def model(counts, tau=None):
    middle = pyro.sample("middle", dist.Normal(torch.full((GENES,), -4.5), 2.0).to_event(1))
    if tau is None:
        tau = pyro.sample("tau", dist.HalfNormal(torch.tensor(1.0)))
    spread = torch.as_tensor(tau).reshape(-1, 1, 1).expand(-1, len(SIZES), GENES).squeeze(0)
    share = pyro.sample("share", dist.Normal(middle.unsqueeze(-2), spread).to_event(2))
    log_theta = pyro.sample("log_theta", dist.Normal(torch.tensor(1.0), 1.0))
    with pyro.plate("cells", len(counts)):
        log_mean = library.log().unsqueeze(-1) + share[group]
        pyro.sample("x", NegativeBinomial(log_mean, log_theta).to_event(1), obs=counts)


def fitted(steps=500, **options):
    """Median of each unknown under the guide, and the standard deviation of the shares."""
    start = {"middle": as_one, "share": (apart + as_one) / 2}
    start |= {"tau": torch.tensor(0.5), "log_theta": torch.tensor(1.0)}
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(SEED)
        guide = AutoNormal(model, init_loc_fn=init_to_value(values=start), init_scale=0.1)
        guide(counts, **options)
        optimiser = pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.995})
        svi = pyro.infer.SVI(model, guide, optimiser, pyro.infer.Trace_ELBO())
        for _ in range(steps):
            svi.step(counts, **options)
        medians = {name: value.detach() for name, value in guide.median().items()}
        return medians, guide.scales.share.detach()


median, share_sd = fitted()
shared, tau = median["share"], float(median["tau"])
theta = float(median["log_theta"].exp())
print(f"tau {tau:.2f}, theta {theta:.2f}")
assert abs(theta - 3.0) < 0.14, "theta is found"


def error(estimate, which):
    """Root mean squared error of the log shares, over the genes of some groups."""
    return float((estimate.expand_as(true_share)[which] - true_share[which]).square().mean().sqrt())


rare, large = slice(4, 7), slice(0, 2)
errors = {
    name: [round(error(estimate, which), 3) for which in (large, rare)]
    for name, estimate in {"apart": apart, "as one": as_one, "shared prior": shared}.items()
}
print("RMSE of log shares, groups of 120 and more, and of 15 and fewer:", errors)
assert error(shared, rare) < 0.95 * error(apart, rare), "the shared prior helps rare groups"
assert error(shared, rare) < 0.9 * error(as_one, rare), "rare groups are not the average group"
assert error(shared, large) < 1.1 * error(apart, large), "large groups lose nothing"

# %% [markdown]
# The formula says how much: here is B, and the standard deviation, beside what the guide found.

# %%
mean_counts = library.unsqueeze(-1) * shared.exp()[group]
information = member.T @ (mean_counts * theta / (mean_counts + theta))
formula_sd = (information + tau**-2) ** -0.5
own_weight = information / (information + tau**-2)
ratio = (share_sd / formula_sd).median(-1).values
assert (ratio - 1).abs().max() < 0.05, "the guide's spread is that of the formula"
weights = own_weight.median(-1).values
print("B:", [round(float(value), 2) for value in weights])
assert weights[0] > 0.9, "240 cells speak for themselves"
assert weights[6] < 0.6, "4 cells take the word of the others"

# %% [markdown]
# ## 2. What the counts do not identify
#
# **The axes of a normal latent.** Let $R$ be a rotation. The standard normal prior is round,
# $p(Rz) = p(z)$. A decoder that starts with a matrix, $\eta(z) = Wz + b$, does not care either:
#
# $$
# (W R^\top)(R z) = W z .
# $$
#
# So the model with loadings $W R^\top$ and latents $Rz$ gives **every data set the same
# density**. With a guide that turns along, every bound is the same, too. No amount of cells tells
# the two apart. A deeper decoder only hides this: its first layer is such a matrix.
#
# Two latents, a linear decoder, and a guide with full covariance, whose family contains its own
# rotations.

# %%
simulated = glp.data.simulate(
    600,
    40,
    num_types=1,
    types=glp.data.CellTypes(latent_dim=2, separation=0.0, spread=1.0),
    seed=SEED,
)
cells = glp.register(simulated.adata)
minibatch = cells.take(range(len(cells)))


def linear_fit(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = glp.VAE(
            prior=glp.StandardNormal(2),
            decoder=glp.LinearDecoder(2),
            likelihood=glp.NegativeBinomialLikelihood(2, 40),
            encoder=glp.FullRankEncoder(40, 2, [32], dropout=0.0),
        )
    vae.initialise(minibatch)
    return glp.fit(vae, cells, max_epochs=60, learning_rate=1e-2, seed=seed, progress=False)


def log_joint(vae, prior, z):
    """log p(z) and log p(x | z) of each cell, in nats."""
    features = vae.decoder(z, z.new_zeros(len(z), 0))
    return prior.log_prob(z), vae.likelihood(features, minibatch).log_prob(minibatch.counts)


first = linear_fit(SEED)
angle = np.deg2rad(60.0)
rotation = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).float()
turned = copy.deepcopy(first.vae)
with torch.no_grad():
    weight = turned.likelihood.log_expression.weight
    weight.copy_(weight @ rotation.T)
    z = torch.as_tensor(first.posterior_samples(num_samples=1, seed=SEED)[0])
    turned_z = z @ rotation.T
    normal = first.vae.prior(torch.zeros(len(z), 0))
    before, after = log_joint(first.vae, normal, z), log_joint(turned, normal, turned_z)

largest = max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))
moved = float((turned_z - z).norm(dim=-1).mean())
print(f"latents moved by {moved:.2f} on average; log densities by at most {largest:.1e} nats")
assert moved > 0.5
assert abs(float(before[1].mean())) > 100
assert largest < 1e-3, "rotated latents have the same density"

# %% [markdown]
# (What is left, below 0.001 of more than 100 nats, is single-precision rounding.)
#
# **Two trainings** from other initial weights need not agree on a single latent. They agree on
# the plane. Turn one onto the other by the best rotation or reflection (Procrustes), and loadings
# and latents fit.

# %%
second = linear_fit(SEED + 100)
one, other = (glp.loadings(fit.vae, cells.registration.genes).to_numpy() for fit in (first, second))
left_vectors, _, right_vectors = np.linalg.svd(one.T @ other)
best = left_vectors @ right_vectors


def explained(found, wanted):
    return 1 - np.square(found - wanted).sum() / np.square(wanted - wanted.mean(0)).sum()


loading_fit = explained(one @ best, other)
latent_fit = explained(first.latent() @ best, second.latent())
bounds = [fit.elbo(seed=SEED).mean() for fit in (first, second)]
print(f"after the best rotation: loadings {loading_fit:.3f}, latents {latent_fit:.3f}")
assert min(loading_fit, latent_fit) > 0.9, "two trainings agree up to a rotation"
assert abs(bounds[0] / bounds[1] - 1) < 0.02, "and are nearly as good as each other"

# %% [markdown]
# **A prior that is not round** breaks the tie. Of a Student's t with independent coordinates,
# $p(Rz) \neq p(z)$: axes are chosen. That they are chosen does not make them right. They mean
# something where the assumption that chose them does.

# %%
heavy = glp.StudentT(2, degrees=3.0)(torch.zeros(len(z), 0))
change = (heavy.log_prob(turned_z) - heavy.log_prob(z)).abs().mean()
assert change > 0.05, "a prior that is not round chooses axes"

# %% [markdown]
# **A constant in the logits.** Proportions are a softmax: add one number to the logits of all
# genes and nothing changes. So the loadings of a latent are identified up to a common shift
# (`glp.loadings` centres them): "gene A goes up" means up against the other genes, never in
# absolute molecules.

# %%
shifted = copy.deepcopy(first.vae)
with torch.no_grad():
    shifted.likelihood.log_expression.weight += 3.0  # the loadings of all genes
    same = log_joint(shifted, normal, z)
assert (same[1] - before[1]).abs().max() < 1e-3, "a common shift moves no density"
assert abs(one.mean(0)).max() < 1e-5  # centred

# %% [markdown]
# ## 3. Effect or difference?
#
# With treatment t and covariates c, such as the type of a cell, comparing arms and intervening
# are
#
# $$
# E[\rho \mid t] = \sum_c E[\rho \mid t, c]\, p(c \mid t), \qquad
# E[\rho \mid do(t)] = \sum_c E[\rho \mid t, c]\, p(c) .
# $$
#
# The second holds if c holds all common causes of treatment and outcome (and is not itself changed
# by the treatment), and if each c can be in either arm, $0 < p(t \mid c) < 1$. The two differ where
# the arms hold other cells. Below, cells are kept so that the odds of being
# treated differ by a factor of 16 between the first type and the last. The true effect is known.

# %%
ARMS = ("perturbation", "perturbation1", "control")
perturbations = glp.data.Perturbations(number=1, num_genes=10)
everyone, world = glp.data.simulate(
    1600,
    40,
    num_types=3,
    types=glp.data.CellTypes(separation=1.2),
    perturbations=perturbations,
    seed=SEED,
)
kept = glp.data.confound(everyone, "perturbation", "perturbation1", "cell_type", odds=16, seed=SEED)


def effects(world, rows):
    """True log2 fold changes of the mean share, had all of these cells been treated or none."""
    treated, control = (world.proportions_under(perturbation=arm)[rows].mean(0) for arm in ARMS[1:])
    return np.log2(treated / control)


true_effects = effects(world, everyone.obs_names.get_indexer(kept.obs_names))
arms = glp.register(kept, conditions=["perturbation", "cell_type"])
vae = glp.CVAE_NB.from_registration(arms, latent_dim=3, hidden_dims=[32], seed=SEED)
fit = glp.fit(vae, arms, max_epochs=40, seed=SEED, progress=False)
tables = {
    name: contrast(fit, kept, *ARMS, adjusted=adjusted, num_samples=50, seed=SEED)
    for name, adjusted in (("naive", False), ("adjusted", True))
}
rmse, held = {}, {}
for name, table in tables.items():
    rmse[name] = np.sqrt(np.square(table["log2_fold_change"] - true_effects).mean())
    held[name] = ((table["low"] < true_effects) & (true_effects < table["high"])).mean()
    print(f"{name}: RMSE {rmse[name]:.2f}, intervals that hold the truth {held[name]:.0%}")
assert rmse["adjusted"] < 0.6 * rmse["naive"], "adjusting removes most of the error"
assert held["adjusted"] > 0.75 > held["naive"], "naive intervals miss"

# %% [markdown]
# **What cannot be repaired.** Let all treated cells be sequenced in batch 1 and all controls in
# batch 0. Two worlds: in one the treatment changes genes and the batch does nothing, in the other
# the batch changes the same genes by as much. Every cell has the same mean counts in both. So
# have the counts, and so has anything that is computed of them. The answers differ.

# %%
effect = world.perturbation_effects[1]
shape = {"batches": world.perturbations, "type_responses": np.ones_like(world.type_responses)}
nothing = np.zeros((2, effect.size))
shape["batch_names"] = ("batch0", "batch1")
by_treatment = dataclasses.replace(world, **shape, batch_effects=nothing)
by_batch = dataclasses.replace(
    by_treatment,
    batch_effects=np.stack([nothing[0], effect]),
    perturbation_effects=nothing,
)
difference = np.abs(by_treatment.proportions - by_batch.proportions).max()
drawn = [either.draw(np.random.default_rng(SEED)) for either in (by_treatment, by_batch)]
everybody = np.arange(everyone.n_obs)
answers = [np.abs(effects(either, everybody)).max() for either in (by_treatment, by_batch)]
print(f"mean shares differ by {difference:.0e}, largest effects are {np.round(answers, 2)}")
assert difference < 1e-12, "two worlds with the same counts"
assert (drawn[0] != drawn[1]).nnz == 0, "the very same counts"
assert answers[0] > 0.5, "a treatment that acts"
assert answers[1] < 1e-12, "a treatment that does nothing"

# %% [markdown]
# No model, no estimator and no number of cells decides between the two. The design does: put both
# arms into each batch.

# %% [markdown]
# ## The picture
#
# Left: shrinkage. Each arrow is one gene in one group, from its estimate apart to the one under
# the shared prior. Large groups do not move. Rare groups are pulled to the average, by as much as
# their few cells deserve. Right: the latents of the linear fit, and the same turned by 60
# degrees. Colours follow the cells, the numbers are the mean of $\log p(x, z)$. Nothing in the
# counts prefers one of the two.

# %%
picture = Figure(figsize=(10.4, 4.4), layout="constrained")
arrows, plain, rotated = picture.subplots(1, 3, width_ratios=[1.5, 1, 1])
INK, APART, SHARED, TRUTH = "#5c5c5c", "#D55E00", "#0072B2", "#1a1a1a"
common = median["middle"]
shown = torch.arange(12)  # the first twelve genes, as they come
unit = float(np.log(2))
for j in range(len(SIZES)):
    for k, gene in enumerate(shown):
        height = j + (k - 5.5) * 0.062
        tail, head = (float((value[j, gene] - common[gene]) / unit) for value in (apart, shared))
        style = {"arrowstyle": "->", "color": SHARED, "lw": 1.0, "shrinkA": 0, "shrinkB": 0}
        arrows.annotate("", (head, height), (tail, height), arrowprops=style)
        arrows.plot(tail, height, "o", color=APART, markersize=2.8)
        right_place = float((true_share[j, gene] - common[gene]) / unit)
        arrows.plot(right_place, height, "|", color=TRUTH, markersize=4)
arrows.axvline(0, color=INK, linewidth=0.8, linestyle="--")
arrows.set_yticks(range(len(SIZES)), [f"{size} cells" for size in SIZES])
arrows.set(xlabel="Log2 share of a gene, against the mean of the groups", ylim=(-0.6, 7.1))
arrows.set_ylabel("Group")
arrows.text(0.02, 0.965, "● apart", color=APART, transform=arrows.transAxes, fontsize=9)
arrows.text(0.20, 0.965, "→ shared prior", color=SHARED, transform=arrows.transAxes, fontsize=9)
arrows.text(0.50, 0.965, "| truth", color=TRUTH, transform=arrows.transAxes, fontsize=9)
arrows.set_title("Rare groups borrow most", loc="left")
headline = "A shared prior moves rare groups; turning the latents moves no density"
picture.suptitle(headline, x=0.01, ha="left")
circle = np.linspace(0, 2 * np.pi, 200)
for panel, points, name, densities in ((plain, z, "z", before), (rotated, turned_z, "R z", after)):
    panel.scatter(*points.numpy().T, c=z[:, 0].numpy(), cmap="viridis", s=9)
    for radius in (1, 2):
        panel.plot(radius * np.cos(circle), radius * np.sin(circle), color=INK, linewidth=0.7)
    panel.set(xlabel=f"First latent of {name}", ylabel=f"Second latent of {name}", aspect="equal")
    panel.set(xlim=(-3.6, 3.6), ylim=(-3.6, 3.6))
    value = float(sum(densities).mean())
    panel.set_title(f"{name}: {value:.2f} nats per cell", loc="left", fontsize=11)
for panel in picture.axes:
    panel.spines[["top", "right"]].set_visible(False)
picture

# %% [markdown]
# ## Change one thing
#
# Fix the spread of the prior: `fitted(tau=10.0)` instead of learning it. Predict what becomes of
# the rare groups. (A prior that wide says nothing, and the gain is gone. They are even worse than
# apart, where the half count that was added is a mild prior of its own.) Then predict
# `fitted(tau=0.01)`.

# %%
wide = fitted(tau=10.0)[0]["share"]
assert error(wide, rare) > 1.2 * error(shared, rare), "a wide prior gives the gain away"
assert error(wide, rare) > error(apart, rare)

# %% [markdown]
# ## Exercises
#
# 1. **One number.** A gene has $\theta = 3$ and a mean of 2 molecules per cell; $\tau = 0.5$. How
#    many cells must a group have for $B = 1/2$? And for $B = 0.9$?
# 2. **Other things that do not matter.** Which of these leave the density of all counts as it is,
#    for a linear decoder and a standard normal prior: swapping two latents; a change of sign of
#    one; doubling a latent and halving its loadings? Check with the densities of a normal prior
#    and $Wz$.
# 3. **A table by hand.** Type A: 90 treated, 10 controls; type B: 10 treated, 90 controls. The
#    share of a gene is 0.02 in A and 0.01 in B, treated or not. What are the naive and the
#    adjusted fold change?
#
# Solutions: [solutions/12_roadmap](solutions/12_roadmap.py).

# %% [markdown]
# ## Next
#
# [13 Extend](13_extend.py): a likelihood, a prior and a guide of your own.
