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
# # Solutions to 13 Extend it
#
# ## 1. Two parts
#
# The edges are $-\infty, 0, \infty$. The means of the parts are $\mp 2 \varphi(0) = \mp \sqrt{2 /
# \pi}$, so that $w_2 = 1 - 2 / \pi$. With $K = 2$, the variance of the gradient in $m$ is $4 w_2 /
# 2$.

# %%
import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch

import genailab_pyro as glp

SEED, GENES, LATENT = 0, 40, 4


class Stratified(glp.estimators.Pathwise):
    """Pathwise, with one particle in each of K equally probable parts of a normal."""

    name = "stratified"
    least_particles = 2

    def ranks(self, like):
        return torch.rand_like(like).argsort(0)

    def rsample(self, base, shape):
        ranks = self.ranks(base.mean)
        uniform = (ranks + torch.rand_like(base.mean)) / len(ranks)
        noise = torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6))
        return base.mean + base.stddev * noise


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


def gradients(rule):
    """Gradients of the ELBO in the location by two particles, one of each copy."""
    with pyro.get_param_store().scope():
        world = Guide(20000)
        estimator = glp.Estimator(rule=rule, num_particles=2)
        model, guide, elbo = estimator.bind(world.model, world)
        torch.manual_seed(SEED)
        elbo(model, guide)().backward()
    return -world.loc.grad.double()


glp.estimators.register_rule(Stratified())
loc = gradients("stratified")
squares = (loc - loc.mean()) ** 2
error = squares.std().item() / math.sqrt(len(squares))
exact = 2 * (1 - 2 / math.pi)
print(f"variance {squares.mean():.4f} +- {error:.4f}, derived {exact:.4f}")
assert abs(squares.mean().item() - exact) < 5 * error, "w_2 = 1 - 2 / pi"

# %% [markdown]
# ## 2. One order for all latents
#
# A particle that is low in one latent is then low in all: its latents are not independent, and it
# is not a draw of $q$. With one latent, as in the toy, there is nothing to be dependent on.


# %%
class SharedOrder(Stratified):
    """The same random order for all latents of a cell."""

    name = "shared-order"

    def ranks(self, like):
        return torch.rand_like(like[..., :1]).argsort(0).expand_as(like)


class SkipDecoder(glp.nn.Declared):
    """Features of a network, and the latent beside them."""

    def __init__(self, latent_dim, hidden_dims, condition_dim=0):
        super().__init__()
        self.trunk = glp.MLP(latent_dim, hidden_dims, condition_dim=condition_dim)
        self.output_dim = self.trunk.output_dim + latent_dim

    def forward(self, z, condition):
        return torch.cat([self.trunk(z, condition), z], dim=-1)


glp.estimators.register_rule(SharedOrder())
cells = glp.register(glp.data.simulate(400, GENES, num_types=3, seed=SEED).adata)


def declare(decoder, features):
    """A VAE with a decoder."""
    torch.manual_seed(SEED)
    likelihood = glp.NegativeBinomialLikelihood(features, GENES)
    encoder = glp.NormalEncoder(GENES, LATENT, [32])
    return glp.VAE(glp.StandardNormal(LATENT), decoder, likelihood, encoder)


settings = {"max_epochs": 20, "learning_rate": 0.01, "minibatch_size": 64, "progress": False}
fit = glp.fit(declare(SkipDecoder(LATENT, [32]), 32 + LATENT), cells, seed=SEED, **settings)
names = ["pathwise", "stratified", "shared-order"]
rules = [glp.Estimator(rule=name, num_particles=8) for name in names]
compared = glp.compare_estimators(
    fit.vae,
    cells,
    rules,
    reference=rules[0],
    checkpoints=("given",),
    particles=(),
    num_draws=100,
    seed=SEED,
)
table = compared.to_dataframe().droplevel("checkpoint").loc["decoder", ["ratio", "bias_errors"]]
print(table.round(2))
shared, own = (table.loc[glp.estimators.name_of(rule)] for rule in rules[:0:-1])
assert max(shared["ratio"], own["ratio"]) < 0.6, "both scatter less than pathwise"
assert shared["bias_errors"] > 5 > own["bias_errors"], "and one of them is wrong"

# %% [markdown]
# Less variance, and a gradient of something else. A variance is worth nothing without the bias
# beside it.
#
# ## 3. Features that are never negative


# %%
class Positive(glp.nn.Declared):
    """Softplus of the latent: features that are never negative."""

    def __init__(self, latent_dim):
        super().__init__()
        self.output_dim = latent_dim

    def forward(self, z, condition):
        return torch.nn.functional.softplus(z)


class Greedy(Positive):
    """The latent over the largest one of the cells."""

    def forward(self, z, condition):
        return z / z.abs().amax(dim=-2, keepdim=True)


vae = declare(Positive(LATENT), LATENT)
minibatch = cells.take(range(6))
glp.check_composition(vae, minibatch)
glp.check_pair(vae.model, vae.guide, minibatch)
features = vae.decoder(torch.randn(3, 6, LATENT), torch.zeros(6, 0))
assert (features >= 0).all(), "no feature is negative"

refused = ""
try:
    glp.check_composition(declare(Greedy(LATENT), LATENT), minibatch)
except glp.CompositionError as error:
    refused = str(error)
print(refused)
assert "Greedy to answer each cell by itself" in refused, "it looks at the other cells"

# %% [markdown]
# With the largest latent of a minibatch, $p(x_n \mid z_n)$ is no function of $z_n$: the ELBO of a cell
# changes with the cells that happen to be beside it, and the gradient of a minibatch is not an
# unbiased estimate of that of the data. Draw by draw nothing is wrong:

# %%
z = torch.as_tensor(np.random.default_rng(SEED).normal(size=(3, 6, LATENT)))
greedy, condition = Greedy(LATENT), torch.zeros(6, 0)
by_draw = torch.stack([greedy(one, condition) for one in z])
assert torch.allclose(by_draw, greedy(z, condition)), "draw by draw it is the same"
assert not torch.allclose(greedy(z[:, :1], condition), by_draw[:, :1]), "cell by cell it is not"
