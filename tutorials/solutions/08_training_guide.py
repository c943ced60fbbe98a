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
# # Solutions of 08 Training guide
#
# The cells and the model are those of the page.

# %%
from dataclasses import replace

import numpy as np
import torch
from torch.distributions import Normal, kl_divergence

import genailab_pyro as glp

SEED = 0


def simulated(num_cells=400, num_genes=60, counts=500.0, spread=1.0):
    """Counts of cells that differ along two latents."""
    return glp.data.simulate(
        num_cells,
        num_genes,
        num_types=1,
        types=glp.data.CellTypes(latent_dim=2, separation=0.0, spread=spread),
        library=glp.data.LibrarySizes(median=counts, scale=0.1),
        noise=glp.data.CountNoise(inverse_dispersion=10.0),
        seed=SEED,
    ).adata


def trained(cells, *, latent_dim=2, hidden=32, **settings):
    """A small model that is trained with settings that are good, but for those that are given."""
    vae = glp.CVAE_NB.from_registration(cells, latent_dim=latent_dim, hidden_dims=[hidden], dropout=0.0, seed=SEED)
    settings = {"max_epochs": 30, "minibatch_size": 64, "learning_rate": 1e-2} | settings
    return glp.fit(vae, cells, seed=SEED, progress=False, **settings)


def says(diagnosis, words):
    """Whether the verdict holds some words."""
    return any(words in line for line in diagnosis.verdict)


cells = glp.register(simulated())

# %% [markdown]
# ## 1. The same for every cell
#
# $\mathrm{KL} = 0.8^2 / 2 = 0.32$ nats, far above 0.01. The mean does not vary over cells: the
# latent is not active. As the KL is above 0.01, the run is not called collapsed: it has not learned
# to tell cells apart.

# %%
kl = kl_divergence(Normal(torch.tensor(0.8), 1.0), Normal(0.0, 1.0)).item()
means = np.full(400, 0.8)
assert abs(kl - 0.32) < 1e-6
healthy = trained(cells)
use = replace(healthy.diagnose().latents, kl=np.array([kl]), variance=np.array([means.var()]))
assert use.active_units == 0
assert not use.collapsed

# %% [markdown]
# ## 2. Expression without a latent
#
# All cells have nearly the same expression: that of the mean cell. What is left, .01 against .83, is
# mostly the noise of the draws.

# %%
collapsed = trained(cells, warmup=glp.Warmup(beta=30.0, shape="constant"), max_epochs=20)
spread = {
    name: np.log(fit.expression(num_samples=10)).std(0).mean()
    for name, fit in {"healthy": healthy, "collapsed": collapsed}.items()
}
assert spread["collapsed"] < 0.1 * spread["healthy"], spread

# %% [markdown]
# ## 3. Three learning rates
#
# Best is 0.01 (-149 nats), then 1 (-158), then 0.0001 (-164). Verdicts do not rank the two that lose:
# they say that no latent is active at the rate 1, and one at 0.0001, which has learned next to
# nothing. The curves tell: that of 0.0001 rises in every epoch, by less than a nat in all, and is too
# small; that of 1 falls in some, and is too large.

# %%
fits = {rate: trained(cells, learning_rate=rate, max_epochs=10) for rate in (0.0001, 0.01, 1.0)}
curves = {rate: fit.history["validation_elbo"].to_numpy() for rate, fit in fits.items()}
assert curves[0.01].max() > max(curves[0.0001].max(), curves[1.0].max()) + 5
assert curves[1.0].max() > curves[0.0001].max() + 3
assert (np.diff(curves[0.0001]) > 0).all()
assert (np.diff(curves[1.0]) < 0).any()
for rate in (0.0001, 1.0):
    print(rate, fits[rate].diagnose())
