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
# # 09 Negative binomial, with or without extra zeros
#
# To choose $p_\theta(x \mid z)$ is to choose how noise enters the counts. This page compares
# three choices. You will be able to
#
# - say what mean, variance and share of zeros each of Poisson, NB and ZINB can have;
# - fit all three to a gene, and let cells that were held out decide;
# - tell when extra zeros can be seen at all, and what else may look like them.

# %% [markdown]
# ## The mathematics
#
# **One notation.** The model is $p_\theta(x, z) = p(z)\, p_\theta(x \mid z)$, with the guide
# $q_\phi(z \mid x)$ and the bound
#
# $$
# \mathcal{L} = E_q\big[\log p_\theta(x, z) - \log q_\phi(z \mid x)\big].
# $$
#
# The decoder makes proportions $\rho_g(z)$, the library $l_n$ scales them, and the mean count is
# $\mu_{ng} = l_n \rho_g(z_n)$. What is left to choose is the distribution around that mean. It
# sits in the decoder alone: the latent stays normal.
#
# **Poisson.** Molecules are caught one by one, independently: $\mathrm{Var}[x] = \mu$ and
# $p(0) = e^{-\mu}$. Nothing can be set.
#
# **Negative binomial (NB).** The rate itself is gamma distributed about $\mu$ with shape
# $\theta_g$, the inverse dispersion ([10](10_nb_likelihood.py) does the integral):
#
# $$
# \mathrm{Var}[x] = \mu + \frac{\mu^2}{\theta}, \qquad
# p(0) = \Big(\frac{\theta}{\theta + \mu}\Big)^{\theta} .
# $$
#
# A small $\theta$ makes more variance **and** more zeros, in one.
#
# **Zero-inflated NB (ZINB).** With probability $\pi$ the count is lost and reads zero, whatever
# the rate was:
#
# $$
# p(x) = \pi\, [x = 0] + (1 - \pi)\, \mathrm{NB}(x \mid \mu, \theta) .
# $$
#
# Its mean is $(1 - \pi)\mu$. For the variance, use
# $E[x^2] = (1 - \pi)(\mu + \mu^2/\theta + \mu^2)$ and subtract the squared mean:
#
# $$
# \mathrm{Var}[x] = (1 - \pi)\Big(\mu + \frac{\mu^2}{\theta} + \pi \mu^2\Big), \qquad
# p(0) = \pi + (1 - \pi) \Big(\frac{\theta}{\theta + \mu}\Big)^{\theta} .
# $$
#
# Only ZINB has a floor: as $\mu$ grows, Poisson and NB zeros vanish, and a share $\pi$ of zeros
# stays.

# %%
import numpy as np
import torch
from matplotlib.figure import Figure

import genailab_pyro as glp
from genailab_pyro.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial

INFINITE = torch.tensor([torch.inf])  # an inverse dispersion without end is the Poisson


def logit(share):
    return torch.as_tensor(share).clamp(min=1e-6).logit()


def counts_about(kind, log_mean, theta, gate):
    """The distribution of the counts whose mean, extra zeros included, is exp(log_mean)."""
    if kind == "Poisson":
        return NegativeBinomial(log_mean, INFINITE.log())
    if kind == "NB":
        return NegativeBinomial(log_mean, theta.log())
    # Extra zeros lower the mean: raise the rest, so that all three have the same one.
    raised = log_mean - (1 - gate).log()
    return ZeroInflatedNegativeBinomial(raised, theta.log(), gate_logits=logit(gate))


# %% [markdown]
# **Check by drawing.** 200,000 counts of each kind, of mean 4 with $\theta = 2$ and $\pi = 0.3$.
# Mean, variance and share of zeros must lie within five standard errors of the formulas.

# %%
mean, theta, gate = torch.tensor(4.0), torch.tensor(2.0), torch.tensor(0.3)
number = 200_000


def formulas(kind):
    """Mean, variance and share of zeros by the formulas above."""
    if kind == "Poisson":
        return mean, mean, (-mean).exp()
    extra = gate if kind == "ZINB" else torch.tensor(0.0)
    inner = mean / (1 - extra)
    variance = (1 - extra) * (inner + inner**2 / theta + extra * inner**2)
    return mean, variance, extra + (1 - extra) * (theta / (theta + inner)) ** theta


with torch.random.fork_rng():
    torch.manual_seed(0)
    drawn = {
        kind: counts_about(kind, mean.log(), theta, gate).sample((number,)).ravel().double()
        for kind in ("Poisson", "NB", "ZINB")
    }
for kind, x in drawn.items():
    each = (x, (x - x.mean()) ** 2, (x == 0).double())
    for values, exact in zip(each, formulas(kind), strict=True):
        error = values.std() / number**0.5
        assert abs(values.mean() - exact) < 5 * error, "the draws follow the formulas"
    print(kind, *(round(float(value), 3) for value in formulas(kind)))

# %% [markdown]
# ## Three fits of a gene
#
# To compare the likelihoods alone, take cells of one kind: then no latent is needed, and the mean
# is $\mu_{ng} = l_n \rho_g$. For each gene choose $\theta$ from a grid of 25, and $\pi$ from a
# grid of 13, by the likelihood of one half of the cells. Score the other half. The Poisson has
# nothing to choose. All three keep the same $\rho_g$, the gene's share of the molecules.

# %%
THETAS, GATES = torch.logspace(-1, 3, 25), torch.linspace(0, 0.6, 13)
CHOICES = {
    "Poisson": [(THETAS[0], GATES[0])],
    "NB": [(value, GATES[0]) for value in THETAS],
    "ZINB": [(value, extra) for value in THETAS for extra in GATES],
}


def means(counts, library, rows):
    """Log means of all cells, from the shares of the molecules in some of them."""
    share = (counts[rows].sum(0) + 0.5) / library[rows].sum()
    return library.log().unsqueeze(-1) + share.log()


def choose(kind, counts, log_mean):
    """The best grid point of each gene: theta and gate, each of shape [genes]."""
    choices = CHOICES[kind]
    scores = [counts_about(kind, log_mean, *point).log_prob(counts).sum(0) for point in choices]
    best = torch.stack(scores).argmax(0)
    return tuple(torch.stack(values)[best] for values in zip(*choices, strict=True))


def held_out(counts, library, seed=0):
    """Log-probability of each held-out cell by each kind (nats), and what was chosen."""
    order = np.random.default_rng(seed).permutation(len(counts))
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    log_mean = means(counts, library, first)
    chosen = {kind: choose(kind, counts[first], log_mean[first]) for kind in CHOICES}
    scores = {
        kind: counts_about(kind, log_mean[second], *point).log_prob(counts[second]).sum(-1)
        for kind, point in chosen.items()
    }
    return scores, chosen


def gain(scores, kind, over):
    """Mean difference per cell and its standard error, paired by cell (nats)."""
    difference = (scores[kind] - scores[over]).numpy()
    return float(difference.mean()), float(difference.std(ddof=1) / len(difference) ** 0.5)


# %% [markdown]
# **Where the truth is known.** 800 simulated cells of one type, 60 genes, $\theta = 3$; once as
# they are, once with three in ten counts lost.


# %%
def simulated(extra_zeros, seed=0):
    noise = glp.data.CountNoise(inverse_dispersion=3.0, gate_logits=logit(extra_zeros).item())
    adata = glp.data.simulate(
        800,
        60,
        num_types=1,
        types=glp.data.CellTypes(separation=0.0, spread=0.0),
        library=glp.data.LibrarySizes(median=300.0),
        noise=noise,
        seed=seed,
    ).adata
    return torch.as_tensor(adata.X.toarray())


with_extra, without = simulated(0.3), simulated(0.0)
gains = {}
for name, counts in {"no extra zeros": without, "30 % extra zeros": with_extra}.items():
    scores, chosen = held_out(counts, counts.sum(-1))
    gains[name] = {pair: gain(scores, *pair) for pair in (("NB", "Poisson"), ("ZINB", "NB"))}
    for pair, (value, error) in gains[name].items():
        print(f"{name}: {' over '.join(pair)} {value:.2f} +- {error:.2f} nats per cell")
found_gate = chosen["ZINB"][1].mean()

for name in gains:
    value, error = gains[name]["NB", "Poisson"]
    assert value - 5 * error > 10, "NB beats Poisson where rates scatter"
value, error = gains["30 % extra zeros"]["ZINB", "NB"]
assert value - 5 * error > 1, "ZINB pays where there are extra zeros"
value, error = gains["no extra zeros"]["ZINB", "NB"]
assert value < 5 * error, "ZINB does not pay where there are none"
assert abs(value) < 0.01 * gains["no extra zeros"]["NB", "Poisson"][0]  # and costs little
assert abs(found_gate - 0.3) < 0.014, "the gate is found"

# %% [markdown]
# NB gains tens of nats per cell over Poisson in both. ZINB gains a few where zeros were added.
# Where none were, its second knob has nothing to find, and what it learns of the training half by
# heart does not pay on the other half.

# %% [markdown]
# **Where it is not.** Real cells: of the embedded blood cells those that are annotated as
# dendritic, and genes with a mean count above 0.3. The counts are of molecules (UMI), so that
# copies made in the tube do not count twice.

# %%
blood = glp.data.pbmc68k()
kind_of_cell = blood[blood.obs["bulk_labels"] == "Dendritic"]
all_counts = torch.as_tensor(kind_of_cell.X.toarray())
library = all_counts.sum(-1)
real = all_counts[:, all_counts.mean(0) > 0.3]

scores, real_chosen = held_out(real, library)
over_poisson, over_nb = gain(scores, "NB", "Poisson"), gain(scores, "ZINB", "NB")
print(f"NB over Poisson {over_poisson[0]:.1f} +- {over_poisson[1]:.1f}, ", end="")
print(f"ZINB over NB {over_nb[0]:.2f} +- {over_nb[1]:.2f} nats per cell")
assert over_poisson[0] - 5 * over_poisson[1] > 10, "NB beats Poisson on real counts"
assert over_nb[0] < 5 * over_nb[1], "ZINB does not pay on these real counts"
assert abs(over_nb[0]) < 0.05 * over_poisson[0]

# %% [markdown]
# NB is worth more than 40 nats per cell here; ZINB is worth nothing that can be measured.

# %%
assert over_poisson[0] > 40

# %% [markdown]
# ## The picture
#
# Left: the variance of each gene against its mean. Poisson is the lower line, NB with one
# $\theta$ for all genes the upper. (Both know the libraries of the cells, which add some variance
# of their own.) The genes leave the Poisson line as their mean grows. Right: the share of zeros.
# The real genes follow the NB line down to zero: **their zeros are those of few molecules**.
# Simulated genes with extra zeros do not: they come to rest on a floor.

# %%
INK, NB, POISSON, EXTRA = "#7f7f7f", "#0072B2", "#D55E00", "#009E73"
common = real_chosen["NB"][0].median()
line = torch.logspace(-0.6, 2.2, 60)
sizes = (library / library.mean()).unsqueeze(-1)


def law(kind, mean):
    """Variance and share of zeros over cells of unequal libraries."""
    given = counts_about(kind, (sizes * mean).log(), common, torch.tensor(0.0))
    within, between = given.variance.mean(0), (sizes * mean).var(0)
    return within + between, given.log_prob(torch.tensor(0.0)).exp().mean(0)


picture = Figure(figsize=(9.2, 4.2), layout="constrained")
left, right = picture.subplots(1, 2)
left.loglog(real.mean(0), real.var(0), ".", color=INK, markersize=5, alpha=0.7)
right.semilogx(real.mean(0), (real == 0).float().mean(0), ".", color=INK, markersize=5, alpha=0.7)
kept = with_extra.mean(0) > 0.25
floor = with_extra[:, kept]
right.semilogx(floor.mean(0), (floor == 0).float().mean(0), "^", color=EXTRA, markersize=5)
for kind, colour in (("Poisson", POISSON), ("NB", NB)):
    variance, zeros = law(kind, line)
    left.plot(line, variance, color=colour, linewidth=2)
    right.plot(line, zeros, color=colour, linewidth=2)
left.text(30, 25, "Poisson", color=POISSON)
left.text(6, 150, f"NB, θ = {common:.1f}", color=NB, ha="right")
left.text(0.3, 40, "one dot: a gene in\nreal dendritic cells", color="#5c5c5c", fontsize=9)
right.text(1.45, 0.02, "Poisson", color=POISSON, ha="center", fontsize=9)
right.text(7.5, 0.12, "NB", color=NB)
right.text(8, 0.4, "simulated, 30 % of\ncounts lost: a floor", color=EXTRA)
right.text(0.24, 0.16, "real genes:\nzeros of few\nmolecules", color="#5c5c5c", fontsize=9)
left.set(xlabel="Mean count (molecules per cell)", ylabel="Variance of the count (molecules²)")
right.set(xlabel="Mean count (molecules per cell)", ylabel="Share of cells without a count")
left.set_title("Real counts scatter more than Poisson ...", loc="left")
right.set_title("... but have no floor of extra zeros", loc="left")
for panel in (left, right):
    panel.spines[["top", "right"]].set_visible(False)
picture

# %% [markdown]
# The right panel in numbers: of real genes with a mean above 8, few cells have no count; in the
# simulated ones three in ten, or more.

# %%
high, high_extra = real.mean(0) > 8, with_extra.mean(0) > 8
zeros_real = float((real[:, high] == 0).float().mean())
zeros_extra = float((with_extra[:, high_extra] == 0).float().mean())
assert zeros_real < 0.1, "real genes of high mean have few zeros"
assert zeros_extra > 0.3 - 5 * (0.3 * 0.7 / (800 * int(high_extra.sum()))) ** 0.5, "the floor"

# %% [markdown]
# A few real genes lie far above both lines. Their own $\theta$ is smaller than the one of the
# line, the median over genes.

# %%
above = (real == 0).float().mean(0) - law("NB", real.mean(0).unsqueeze(-2))[1] > 0.1
assert above.any()
assert (real_chosen["NB"][0][above] < common).all(), "genes with more zeros have a smaller theta"

# %% [markdown]
# ## When can extra zeros be seen?
#
# Take the best NB for counts that *are* ZINB, and ask how far it is off: the Kullback-Leibler
# divergence per count, summed over all counts. Where the mean is low most counts are zero anyway,
# and NB puts the lost ones down to a smaller $\theta$. So a gate that a decoder learns for a rare
# gene says next to nothing.

# %%
support = torch.arange(0.0, 400.0).unsqueeze(-1)


def distance(mean, theta, gate):
    """The divergence of ZINB from the nearest NB of the same mean, in nats per count."""
    true = counts_about("ZINB", torch.tensor(mean).log(), torch.tensor(theta), torch.tensor(gate))
    thetas = torch.logspace(-2, 3, 400)
    other = counts_about("NB", torch.tensor(mean).log(), thetas, torch.tensor(0.0))
    log_true = true.log_prob(support)
    return float((log_true.exp() * (log_true - other.log_prob(support))).sum(0).min())


rare, frequent = distance(0.3, 3.0, 0.3), distance(10.0, 3.0, 0.3)
print(f"mean 0.3: {rare:.5f} nats   mean 10: {frequent:.3f} nats")
assert rare < 1e-3, "extra zeros of a rare gene are hardly seen"
assert frequent > 100 * rare, "those of a frequent gene are"

# %% [markdown]
# ## In a VAE
#
# In a VAE the mean follows the latent, and the same choice is one argument: `glp.CVAE_NB` or
# `glp.CVAE_ZINB`, or a likelihood in `glp.VAE`. Here all blood cells; the score is the
# importance-weighted bound of 30 % of the cells, held out. Beside NB and ZINB stands an NB whose
# $\theta$ depends on the cell, too: as free as ZINB's gate, without any extra zero.

# %%
cells = glp.register(blood)
train, test = cells.split(0.3, seed=0)
genes = len(cells.registration.genes)
likelihoods = {
    "NB": glp.NegativeBinomialLikelihood,
    "ZINB": glp.ZeroInflatedNegativeBinomialLikelihood,
    "NB, theta by cell": lambda features, genes: glp.NegativeBinomialLikelihood(
        features, genes, inverse_dispersion=glp.CellInverseDispersion(features, genes)
    ),
}
bounds, fits = {}, {}
for name, likelihood in likelihoods.items():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = glp.VAE(
            prior=glp.StandardNormal(10),
            decoder=glp.MLP(10, [64], dropout=0.3),
            likelihood=likelihood(64, genes),
            encoder=glp.NormalEncoder(genes, 10, [64], dropout=0.3),
        )
    vae.initialise(train.take(range(400)))
    fits[name] = glp.fit(vae, train, max_epochs=50, seed=0, progress=False)
    bounds[name] = torch.as_tensor(fits[name].log_likelihood(test, num_particles=30, seed=0))

zinb_gain, theta_gain = (gain(bounds, name, "NB") for name in ("ZINB", "NB, theta by cell"))
bound = float(bounds["NB"].mean())
print(f"NB {bound:.1f}; ZINB {zinb_gain[0]:+.2f}; theta by cell {theta_gain[0]:+.2f} nats per cell")
assert abs(zinb_gain[0]) < 0.01 * abs(bound), "ZINB changes the bound by less than 1 %"
assert theta_gain[0] - zinb_gain[0] > 5 * theta_gain[1], "a freer theta explains more"

# %% [markdown]
# ZINB changes the bound by less than 1 %. Do not read it as evidence for lost counts: it has a second
# head per gene that follows the latent, and any freedom in how counts scatter helps a model that
# is still learning its $\theta$. The same freedom given to $\theta$ gains several times as much.
# So: **start with NB; take ZINB when the zeros that the fit expects fall short of those that are
# there, at high means, and held-out cells agree.**

# %%
assert theta_gain[0] > 3 * zinb_gain[0], "theta by cell gains more than three times as much"

# %% [markdown]
# ## Change one thing
#
# Set the extra zeros of `with_extra` to 0.05 instead of 0.3. Predict: where does the floor in the
# picture lie, and by how much does the gain of ZINB over NB fall? (The floor is at 0.05. At a
# mean of 10 the gain falls by a factor between 6 and 8, as a small gate is mimicked well by a
# smaller $\theta$.)

# %%
factor = frequent / distance(10.0, 3.0, 0.05)
assert 6 < factor < 8, "a small gate is mimicked well"

# %% [markdown]
# ## Exercises
#
# 1. **The moment estimate.** Solve $\mathrm{Var}[x] = \mu + \mu^2/\theta$ for $\theta$, and
#    estimate it from 100,000 NB counts of mean 5 and $\theta = 3$. How close does it come?
# 2. **Zeros and dispersion.** A gene has mean 2 and 40 % zeros. Which $\theta$ explains that
#    without extra zeros? Which variance does it then have? Solve for $\theta$ on a grid.
# 3. **A wrong gate.** The truth is NB with mean 0.3 and $\theta = 0.5$, the rival ZINB with the
#    same mean, $\pi = 0.3$ and the best $\theta$ of a grid. By how many nats per cell does the
#    rival fall behind on average (sum over the counts 0 to 200), and how many cells are needed to
#    tell the two apart by five standard errors?
#
# Solutions: [solutions/09_nb_and_zinb](solutions/09_nb_and_zinb.py).

# %% [markdown]
# ## Next
#
# [10 The negative binomial likelihood](10_nb_likelihood.py): its derivation, its gradient, and
# its traps.
