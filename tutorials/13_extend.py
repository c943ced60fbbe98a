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
# # 13 Extend it
#
# You will be able to
#
# - write a likelihood, a decoder and an estimator of your own, each in a few lines;
# - hold each against the laws that it must obey, and see a part that breaks one refused;
# - read your parts in the table of estimators beside those of the package, without bias and with
#   the variance that you derived.

# %% [markdown]
# ## What each part must be
#
# The bound is $\mathcal L = E_q[\log p(z) + \log p_\theta(x \mid z) - \log q_\phi(z \mid x)]$, with
# $K$ particles per cell. Three of its parts are exchanged here.
#
# - **Decoder**: a map $z \mapsto h$, for each draw of each cell by itself.
# - **Likelihood**: a distribution $p(x \mid h, l)$ over the genes of a cell with the library size $l$
#   (`minibatch.library`), that sums to one.
# - **Estimator**: a random vector $\hat g$ with $E[\hat g] = \nabla \mathcal L$. Nothing else is
#   asked of it. What it is worth is its variance.
#
# ## A likelihood
#
# In `NegativeBinomialLikelihood` each gene has an inverse dispersion $\theta_g$. Let it be
# proportional to the share of the gene instead, $\theta_g = c\, \rho_g$, with a single number $c$.
# With the mean $\mu_g = l \rho_g$,
#
# $$
# \mathrm{Var}(x_g) = \mu_g + \frac{\mu_g^2}{\theta_g} = \mu_g \Big(1 + \frac{l}{c}\Big) .
# $$
#
# The variance is the same multiple of the mean in all genes of a cell: a constant Fano factor.
# Further, the logit of Pyro's negative binomial is $\log \mu_g - \log \theta_g = \log (l / c)$ in
# all genes, so that the sum over genes is negative binomial, too, with the mean $l$ and the inverse
# dispersion $c$. Given that sum, the counts are Dirichlet-multinomial with the concentrations $c
# \rho_g$:
#
# $$
# \prod_g \mathrm{NB}(x_g; l \rho_g, c \rho_g) = \mathrm{NB}\big(\textstyle\sum_g x_g; l, c\big)\;
# \mathrm{DM}\big(x; \textstyle\sum_g x_g, c \rho\big) .
# $$
#
# One method has to be written.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch

import genailab_pyro as glp
from genailab_pyro.distributions import NegativeBinomial


class ConstantFano(glp.Likelihood):
    """Negative binomial counts whose variance is the mean times 1 + l / c."""

    def __init__(self, features, genes):
        super().__init__()
        self.log_share = torch.nn.Linear(features, genes)
        self.log_concentration = torch.nn.Parameter(torch.tensor(math.log(genes)))

    def forward(self, features, minibatch):
        log_share = self.log_share(features).log_softmax(-1)
        log_mean = log_share + minibatch.library.log().unsqueeze(-1)
        return NegativeBinomial(log_mean, log_share + self.log_concentration).to_event(1)


# %% [markdown]
# ## A decoder
#
# An `MLP` with the latent itself beside its features, $h = [\mathrm{MLP}(z, y),\, z]$ with the
# condition $y$ (there is none below). Under a linear head with the weights $[W_1, W_2]$, the log
# shares are $W_1 \mathrm{MLP}(z, y) + W_2 z + b$ up to a constant: a linear model plus what it
# misses. With $W_1 = 0$ it *is* the linear decoder.


# %%
class SkipDecoder(glp.nn.Declared):
    """Features of a network, and the latent beside them."""

    def __init__(self, latent_dim, hidden_dims, condition_dim=0):
        super().__init__()
        self.trunk = glp.MLP(latent_dim, hidden_dims, condition_dim=condition_dim)
        self.output_dim = self.trunk.output_dim + latent_dim

    def forward(self, z, condition):
        return torch.cat([self.trunk(z, condition), z], dim=-1)


# %% [markdown]
# ## The laws
#
# The same laws hold for all parts of the package. Counts come from two simulations of the same
# cells: in the first, $\theta_g = 5$ in all genes; in the second, counts are drawn with $\theta_g =
# 200 \rho_g$.

# %%
SEED, GENES, LATENT, HIDDEN = 0, 40, 4, 32
adata, truth = glp.data.simulate(600, GENES, num_types=3, seed=SEED)
rng = np.random.default_rng(SEED)
theta = 200 * truth.proportions
other = adata.copy()
other.X = type(adata.X)(rng.poisson(truth.mean * rng.gamma(theta) / theta).astype(np.float32))
sets = {
    "constant theta": glp.register(adata).split(0.25, seed=SEED),
    "constant Fano factor": glp.register(other).split(0.25, seed=SEED),
}
train, test = sets["constant Fano factor"]
minibatch = train.take(range(5))

# %% [markdown]
# **Shapes.** Batch dimensions are particles and cells, the event is the genes of a cell.
# **Particles.** Each is scored as if it were alone. **Gradients.** Every parameter gets one.

# %%
torch.manual_seed(SEED)
likelihood, decoder = ConstantFano(HIDDEN + LATENT, GENES), SkipDecoder(LATENT, [HIDDEN]).eval()
z, nothing = torch.randn(3, 5, LATENT), torch.zeros(5, 0)
features = decoder(z, nothing)
counts = likelihood(features, minibatch)
assert counts.batch_shape == (3, 5), "particles and cells"
assert counts.event_shape == (GENES,), "genes"

together = counts.log_prob(minibatch.counts)
alone = [likelihood(decoder(one, nothing), minibatch).log_prob(minibatch.counts) for one in z]
assert torch.allclose(together, torch.stack(alone), rtol=1e-5), "particles are scored one by one"

parameters = [*likelihood.parameters(), *decoder.parameters()]
gradients = torch.autograd.grad(together.sum(), parameters)
assert all(gradient.abs().max() > 0 for gradient in gradients), "each parameter gets a gradient"

# %% [markdown]
# **Mathematics.** Probabilities of all counts of two genes sum to one. The Fano factor is $1 + l /
# c$. The product of the genes is that of the total and of the Dirichlet-multinomial.

# %%
torch.manual_seed(SEED)
pair = ConstantFano(LATENT, 2).double()
pair.log_concentration.data.fill_(math.log(2.0))
one = minibatch._replace(library=torch.tensor([9.0], dtype=torch.float64))
state = torch.randn(1, LATENT, dtype=torch.float64)
axis = torch.arange(400.0, dtype=torch.float64)
grid = torch.cartesian_prod(axis, axis).unsqueeze(1)  # [values, cells, genes]
log_prob = pair(state, one).log_prob(grid)
total_probability = log_prob.logsumexp(0).exp().item()
assert abs(total_probability - 1) < 1e-6, "probabilities sum to one"

base = pair(state, one).base_dist
fano = base.variance / base.mean
assert (fano - (1 + 9.0 / 2.0)).abs().max() < 1e-6, "the Fano factor is 1 + l / c"

value = torch.tensor([7.0, 4.0], dtype=torch.float64)
shares = base.mean.squeeze() / 9.0
of_total = NegativeBinomial(torch.tensor(9.0).double().log(), torch.tensor(2.0).double().log())
given_total = dist.DirichletMultinomial(2.0 * shares, total_count=11)
expected = of_total.log_prob(value.sum()) + given_total.log_prob(value)
found = pair(state, one).log_prob(value).squeeze()
assert (found - expected).abs().item() < 1e-8, "a total, and the counts given it"

# %% [markdown]
# **The decoder contains the linear one.** Give a VAE with a `LinearDecoder` and one with a
# `SkipDecoder` the same encoder and the same $W_2$ and $b$, with $W_1 = 0$. Their bounds must
# agree.


# %%
def declare(decoder, likelihood):
    """A VAE of these parts, with initial weights of the page's seed."""
    torch.manual_seed(SEED)
    encoder = glp.NormalEncoder(GENES, LATENT, [HIDDEN])
    return glp.VAE(glp.StandardNormal(LATENT), decoder, likelihood, encoder).eval()


def bound(vae):
    """An estimate of the ELBO of the test cells by common random numbers, nats per cell."""
    model, guide, elbo = glp.estimators.get("pathwise").bind(vae.model, vae.guide)
    torch.manual_seed(SEED)
    return -elbo.loss(model, guide, test.take(range(len(test)))) / len(test)


linear = declare(glp.LinearDecoder(LATENT), ConstantFano(LATENT, GENES))
skip = declare(SkipDecoder(LATENT, [HIDDEN]), ConstantFano(HIDDEN + LATENT, GENES))
before = abs(bound(skip) - bound(linear))
with torch.no_grad():
    skip.likelihood.log_share.weight.zero_()
    skip.likelihood.log_share.weight[:, HIDDEN:] = linear.likelihood.log_share.weight
    skip.likelihood.log_share.bias.copy_(linear.likelihood.log_share.bias)
after = abs(bound(skip) - bound(linear))
print(f"nats per cell apart: {before:.2f}, and with the weights of the linear one {after:.1e}")
assert after < 1e-5 * abs(bound(linear)), "it is the linear decoder where W1 = 0"
assert before > 0.1, "other weights are another model"

# %% [markdown]
# **Together.** `glp.check_composition` holds the parts of a VAE against each other,
# `glp.check_pair` the model against the guide. `glp.fit` calls both before the first epoch. A
# decoder that centres its features over the first dimension works with one draw per cell, and mixes
# particles with several. It is refused.


# %%
class Careless(SkipDecoder):
    """Features centred over the first dimension, whatever that is."""

    def forward(self, z, condition):
        features = super().forward(z, condition)
        return features - features.mean(0)


glp.check_composition(skip, minibatch)
glp.check_pair(skip.model, skip.guide, minibatch)
refused = ""
try:
    careless = declare(Careless(LATENT, [HIDDEN]), ConstantFano(HIDDEN + LATENT, GENES))
    glp.check_composition(careless, minibatch)
except glp.CompositionError as error:
    refused = str(error)
print(refused)
assert "Careless to answer each draw by itself" in refused, "what mixes particles is refused"

# %% [markdown]
# ## An estimator
#
# Pathwise draws are $z_k = m + s \epsilon_k$ with independent $\epsilon_k$, $k = 1 \dots K$. Draw
# them *stratified* instead. Cut the normal distribution into $K$ parts of equal probability, put
# one draw into each part, and the parts in random order $\pi$:
#
# $$
# \epsilon_k = \Phi^{-1}\Big(\frac{\pi(k) + u_k}{K}\Big), \qquad u_k \sim \mathrm{Uniform}(0, 1) .
# $$
#
# *No bias.* $\pi(k)$ is uniform on $0 \dots K - 1$, so each $\epsilon_k$ by itself is standard
# normal. With an order of its own for each latent, the latents of a particle are independent, as
# they must be. Hence $E[\hat g]$ is that of pathwise.
#
# *Variance.* Where $\hat g$ is linear in $\epsilon$, only the variance within the parts is left.
# The mean of a part is $m_j = K\,(\varphi(a_j) - \varphi(a_{j+1}))$ with the edges $a_j =
# \Phi^{-1}(j / K)$, and
#
# $$
# \mathrm{Var}\Big(\frac1K \sum_k \epsilon_k\Big) = \frac{w_K}{K}, \qquad
# w_K = 1 - \frac1K \sum_j m_j^2 .
# $$
#
# A rule says which sites it applies to, and how one is drawn and scored. All but the draw is that
# of `Pathwise`. A site that is not normal, such as a latent library, is refused. `base.mean` has the
# shape `[particles, cells, latents]` (in the toy below `[particles, copies]`), so that `argsort(0)`
# orders the particles; `shape` is empty here.


# %%
class Stratified(glp.estimators.Pathwise):
    """Pathwise, with one particle in each of K equally probable parts of a normal."""

    name = "stratified"
    least_particles = 2
    needs = "independent normal draws"

    def applies(self, base):
        inner = base.base_dist if isinstance(base, torch.distributions.Independent) else base
        return isinstance(inner, torch.distributions.Normal)

    def rsample(self, base, shape):
        ranks = torch.rand_like(base.mean).argsort(0)
        uniform = (ranks + torch.rand_like(base.mean)) / len(ranks)
        noise = torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6))
        return base.mean + base.stddev * noise


glp.estimators.register_rule(Stratified())
stratified = glp.Estimator(rule="stratified", num_particles=8)
glp.estimators.register("stratified", stratified, reference="this page")
rule = Stratified()
assert rule.applies(dist.Normal(torch.zeros(3), 1.0).to_event(1)), "it is for normals"
assert not rule.applies(dist.LogNormal(0.0, 1.0)), "and for nothing else"
shown = ["rule", "bound", "num_particles", "objective"]
glp.estimators.table().loc[["pathwise", "stratified"], shown]

# %% [markdown]
# ### Against the closed form
#
# Take $p(z) = N(0, 1)$, $p(x \mid z) = N(z, 1)$, $x = 2$, and the guide $N(m, s^2)$ at $m = 0$, $s
# = 1$. Along the path, $\partial \mathcal L / \partial m = x - 2m - 2 s \epsilon$, with the mean 2
# and the variance $4 s^2$: one half with $K = 8$ free draws, $w_8$ times that when stratified. The
# mean of $\partial \mathcal L / \partial \log s$ is $1 - 2 s^2 = -1$. Copies in a plate, each with
# parameters of its own, give one independent draw of the gradient each.


# %%
class Guide(torch.nn.Module):
    """N(0, 1) in independent copies."""

    max_plate_nesting = 1

    def __init__(self, copies):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(copies))
        self.log_scale = torch.nn.Parameter(torch.zeros(copies))

    def model(self):
        with pyro.plate("copies", len(self.loc)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(2.0))

    model.max_plate_nesting = 1

    def forward(self):
        pyro.module("guide", self)
        with pyro.plate("copies", len(self.loc)):
            pyro.sample("z", dist.Normal(self.loc, self.log_scale.exp()))


def drawn(estimator, copies=20000):
    """Gradients of the ELBO in the location and in the log scale, one of each per copy."""
    with pyro.get_param_store().scope():
        world = Guide(copies)
        model, guide, elbo = estimator.bind(world.model, world)
        torch.manual_seed(SEED)
        elbo(model, guide)().backward()
    return -world.loc.grad.double(), -world.log_scale.grad.double()


def within(parts):
    """w_K: the share of the variance that is within K parts of equal probability."""
    edges = torch.special.ndtri(torch.arange(parts + 1, dtype=torch.float64) / parts)
    density = (-0.5 * edges**2).exp() / math.sqrt(2 * math.pi)
    return 1 - (parts * (density[:-1] - density[1:])).square().mean().item()


K = 8
exact = {"pathwise": 4 / K, "stratified": 4 / K * within(K)}
for name, variance in exact.items():
    loc, log_scale = drawn(glp.estimators.get(name, num_particles=K))
    squares = (loc - loc.mean()) ** 2
    error = squares.std().item() / math.sqrt(len(squares))
    print(f"{name}: variance {squares.mean():.4f} +- {error:.4f}, exact {variance:.4f}")
    assert abs(squares.mean().item() - variance) < 5 * error, "the variance that was derived"
    for gradient, mean in ((loc, 2.0), (log_scale, -1.0)):
        error = gradient.std().item() / math.sqrt(len(gradient))
        assert abs(gradient.mean().item() - mean) < 5 * error, "no bias"
print(f"w_8 = {within(8):.3f}")
assert within(8) < 0.1, "a tenth of the variance, and less, where the gradient is linear"

# %% [markdown]
# The toy has one latent, and does not see whether each latent has an order of its own. The table
# below does (exercise 2).

# %% [markdown]
# ## Train, and compare likelihoods
#
# On each set of counts a VAE of your parts and one of the package's. They differ in the decoder, too,
# so look at the change of sign between the two sets: each likelihood should win on counts of its own
# kind, by the importance-weighted bound on cells that no fit saw.


# %%
def parts(name):
    """A decoder and a likelihood."""
    torch.manual_seed(SEED)
    if name == "your parts":
        return SkipDecoder(LATENT, [HIDDEN]), ConstantFano(HIDDEN + LATENT, GENES)
    return glp.MLP(LATENT, [HIDDEN]), glp.NegativeBinomialLikelihood(HIDDEN, GENES)


settings = {"max_epochs": 40, "learning_rate": 0.01, "minibatch_size": 64, "progress": False}
fits, gains = {}, {}
for counts_of, (train, test) in sets.items():
    scores = {}
    for name in ("your parts", "the package's"):
        vae = declare(*parts(name))
        fits[counts_of, name] = fit = glp.fit(vae, train, seed=SEED, **settings)
        scores[name] = fit.log_likelihood(test, num_particles=50, seed=SEED)
    difference = scores["your parts"] - scores["the package's"]
    gains[counts_of] = difference.mean(), difference.std(ddof=1) / math.sqrt(len(difference))
    gain, error = gains[counts_of]
    print(f"{counts_of}: your parts gain {gain:.2f} +- {error:.2f} nats per cell")
assert gains["constant Fano factor"][0] > 3 * gains["constant Fano factor"][1], "wins on its own"
assert gains["constant theta"][0] < -5 * gains["constant theta"][1], "loses on the other's"

# %% [markdown]
# ## The table of estimators
#
# `glp.compare_estimators` freezes the weights and draws the gradient of one minibatch by each
# estimator, all with $K = 8$ draws per cell (`stratified` and `score-loo` have 8 in the table).
# `bias_errors` is the largest bias over random
# projections in standard errors: above 5, the estimator is biased.

# %%
chosen = [
    glp.estimators.get("pathwise", num_particles=K),
    "stratified",
    glp.estimators.get("stl", num_particles=K),
    "score-loo",
]
tables = {}
for name, counts_of in (
    ("your parts", "constant Fano factor"),
    ("the package's", "constant theta"),
):
    compared = glp.compare_estimators(
        fits[counts_of, name].vae,
        sets[counts_of][0],
        chosen,
        reference=chosen[0],
        checkpoints=("given",),
        particles=(),
        num_draws=100,
        seed=SEED,
    )
    tables[name] = compared.to_dataframe().droplevel("checkpoint")
    columns = ["ratio", "ratio_low", "ratio_high", "bias_errors"]
    print(name, tables[name].loc[["latent location", "decoder"], columns].round(2), sep="\n")

# %%
for table in tables.values():
    assert (table["bias_errors"] < 5).all(), "no estimator is biased"
    mine = table.xs("stratified", level="estimator")
    drawn_less = mine.loc[["latent location", "decoder"], "ratio_high"]
    assert (drawn_less < 0.8).all(), "it scatters less where the noise acts to first order"
    assert (mine["ratio_low"] > within(K)).all(), "it scatters more than where it is linear"
    ratios = mine["ratio"]
    assert ratios["latent location"] < ratios["latent scale"], "the scale scatters more"
    decoders = table.loc["decoder"]["ratio"]
    assert abs(decoders["score-loo"] - 1) < 0.01, "the decoder sees the same draws: a free control"

# %% [markdown]
# ## The picture

# %%
picture, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
names = ["stratified", "stl-8", "pathwise-8", "score-loo"]
labels = ["stratified (yours)", "sticking the landing", "pathwise", "score, leave-one-out"]
looks = {"your parts": ("#D55E00", -0.13), "the package's": ("#0072B2", 0.13)}
for panel, group in zip(axes, ("latent location", "decoder"), strict=True):
    for name, (colour, lift) in looks.items():
        rows = tables[name].loc[group].loc[names]
        low, high = rows["ratio"] - rows["ratio_low"], rows["ratio_high"] - rows["ratio"]
        places = np.arange(4) + lift
        panel.errorbar(rows["ratio"], places, xerr=[low, high], fmt="o", color=colour, markersize=6)
    panel.axvline(1, color="#1a1a1a", linewidth=1, linestyle="--", zorder=0)
    panel.set(xscale="log", title=f"gradient in the {group}")
    panel.set_xlabel("Variance as a multiple of pathwise (K = 8)\nbars: 95 % bootstrap interval")
    panel.set_xticks([0.1, 0.3, 1, 3], ["0.1", "0.3", "1", "3"])
    panel.minorticks_off()
    panel.spines[["top", "right"]].set_visible(False)
axes[0].set_yticks(range(4), labels)
axes[0].set_ylim(3.5, -0.5)
axes[1].text(0.12, 2.4, "your ConstantFano\nand SkipDecoder", color="#D55E00", va="center")
axes[1].text(0.12, 3.1, "negative binomial\nand MLP", color="#0072B2", va="center")
picture.suptitle(
    "Your estimator scatters less than pathwise, on your model and on the package's",
    fontweight="bold",
)
picture

# %% [markdown]
# Here the gradient is not linear in the noise, and its ratio stays above $w_K$. (That is no law: for
# $\tanh \epsilon$ the ratio is below.) That of the latent scale has a term in $\epsilon^2$, and a
# ratio above that of the location. The decoder
# sees the draws and not the score: `stl` and `score-loo` are pathwise there, the stratified draws
# are not.

# %% [markdown]
# ## Into the contract suites
#
# What ran above in a few cells, `tests/contracts` asks of all parts, with more cases. A part of the
# package is added to them by one line each:
#
# - `test_likelihoods.py`: an entry of `PROPORTIONS`, which is a part of its `ROSTER`:
#   `"constant-fano": lambda genes: ConstantFano(FEATURES, genes)`. Priors and encoders have a
#   `ROSTER` in their files, too.
# - `matrix.py`: an entry of `STRUCTURES` for a decoder, `"SkipDecoder": Part(with_skip_decoder)`,
#   beside a function that declares a VAE with it. Each entry is fitted by every estimator, or
#   refused with the name of another one.
# - `test_estimators.py` reads `glp.estimators.table()`: a row that is registered when the package
#   is imported is in all of its tests. Two kinds of them are not for `stratified`: that binding
#   leaves the draws at a seed as they were (it draws in its own way), and those with a latent library
#   (refused). Such cases are to be named there, as are the rows for discrete latents. In `matrix.py`
#   the encoders that are no independent normals (full rank, low rank, flow) name it among what they
#   refuse.
#
# A part that is to be saved stands in a file of its own, not in a notebook: a fit is loaded by the
# import path of its parts.

# %% [markdown]
# ## Change one thing
#
# Compare `glp.estimators.get("pathwise", num_particles=2)` and `glp.estimators.get("stratified",
# num_particles=2)` by `glp.compare_estimators`, with the first as `reference`. What is $w_2$, and
# what becomes of the ratio in the latent location? And with 16? ($w_K$ falls by more than a half
# each time that $K$ is doubled, beside the factor $1/K$ of free draws. What the page asserts and
# draws is for $K = 8$.)

# %%
left = {number: within(number) for number in (2, 4, 8, 16, 32)}
print({number: round(share, 3) for number, share in left.items()})
assert all(within(2 * number) < share / 2 for number, share in left.items()), "more than a half"

# %% [markdown]
# ## Exercises
#
# 1. Derive $w_2 = 1 - 2 / \pi$. Check it against the closed form above by drawing gradients with $K
#    = 2$.
# 2. Register a rule like `Stratified` whose random order is the same for all latents of a cell.
#    Compare it with `stratified` and pathwise on a trained VAE. Does it scatter less than pathwise?
#    What do `bias_errors` of the decoder say, and why does the toy with one latent not see it?
# 3. Write a decoder whose features are never negative, $h = \log(1 + e^z)$, under the head of a
#    likelihood of the package. Hold it against `glp.check_composition`. Do the same with
#    $h = z / \max_n |z_n|$, with the maximum over the cells of a minibatch (`amax(-2, keepdim=True)`).
#    What is said of it, and what would go wrong if it were trained?

# %% [markdown]
# ## Next
#
# Back to the start with your own parts: [00 Pyro pairs](00_pyro_pairs.py).
