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
# # Solutions of 01: overview

# %%
import numpy as np
import pyro.distributions as dist
import torch
from torch import nn
from torch.distributions import MultivariateNormal
from torch.nn.functional import softplus

import genailab_pyro as glp

SEED = 0
D = 2

adata = glp.data.pbmc68k()
variance = np.log1p(adata.X.toarray()).var(0)
cells = glp.register(adata[:, np.sort(np.argsort(-variance)[:50])].copy())
y = np.log1p(cells.counts_matrix().toarray()).astype(np.float64)
N, G = y.shape
eigenvalues, axes = np.linalg.eigh(np.cov(y.T, bias=True))
eigenvalues, axes = eigenvalues[::-1], axes[:, ::-1]


class OneNoise(glp.Likelihood):
    """Normal values of log1p(counts), with the same noise for all genes: given or learned."""

    scale = "log1p(counts)"

    def __init__(self, features, genes, sigma=None):
        super().__init__()
        self.loc = nn.Linear(features, genes)
        self.spread = nn.Parameter(torch.zeros(())) if sigma is None else None
        self.sigma = sigma

    def noise(self):
        return softplus(self.spread) if self.sigma is None else torch.tensor(self.sigma)

    def forward(self, features, minibatch):
        return dist.Normal(self.loc(features), self.noise()).to_event(1)

    def observed(self, minibatch):
        return None if minibatch.counts is None else minibatch.counts.log1p()

    def initialise(self, minibatch):
        with torch.no_grad():
            self.loc.bias.copy_(minibatch.counts.log1p().mean(0))


def trained(encoder, sigma=None):
    torch.manual_seed(SEED)
    vae = glp.VAE(
        prior=glp.StandardNormal(D),
        decoder=glp.LinearDecoder(D),
        likelihood=OneNoise(D, G, sigma),
        encoder=encoder(G, D, []),
    )
    vae.initialise(cells.take(range(N)))
    settings = {"learning_rate": 0.02, "weight_decay": 0.0, "validation_fraction": 0.0}
    return glp.fit(vae, cells, max_epochs=300, seed=SEED, progress=False, **settings)


def log_likelihood(loadings, offset, noise):
    covariance = torch.as_tensor(loadings @ loadings.T + noise * np.eye(G))
    marginal = MultivariateNormal(torch.as_tensor(offset), covariance)
    return marginal.log_prob(torch.as_tensor(y)).mean().item()


def parameters(fit):
    linear = fit.vae.likelihood.loc
    W, b = (each.detach().double().numpy() for each in (linear.weight, linear.bias))
    return W, b, fit.vae.likelihood.noise().item()


# %% [markdown]
# ## 1. A guide that need not be diagonal
#
# The gap to the exact log-likelihood at the same parameters is what the guide misses. The full-rank
# guide need not wait for the columns of $W$ to become orthogonal.


# %%
def gap(fit):
    W, b, sigma = parameters(fit)
    bound = np.mean([fit.elbo(num_particles=50, seed=seed).mean() for seed in range(5)])
    return log_likelihood(W, b, sigma**2) - bound


diagonal, full = trained(glp.NormalEncoder), trained(glp.FullRankEncoder)
assert gap(full) < 0.75 * gap(diagonal)

# %% [markdown]
# ## 2. Collapse, foretold
#
# $\lambda_1 = 23.6$ and $\lambda_2 = 7.9$. At $\sigma = 3.5$, $\sigma^2 = 12.25$ lies between them,
# so one latent is used. With $\sigma = 1$ both are.

# %%
assert np.abs(eigenvalues[:2] - [23.6, 7.9]).max() < 0.05
assert eigenvalues[1] < 3.5**2 < eigenvalues[0]
assert trained(glp.NormalEncoder, sigma=3.5).diagnose().active_units == 1
assert trained(glp.NormalEncoder, sigma=1.0).diagnose().active_units == 2

# %% [markdown]
# ## 3. The plane is found, the axes are not
#
# $W R (W R)^\top = W R R^\top W^\top = W W^\top$: the covariance of the model does not see the
# rotation, nor does the plane.

# %%
W, b, sigma = parameters(diagonal)
turn = np.array([[np.cos(1.0), -np.sin(1.0)], [np.sin(1.0), np.cos(1.0)]])
turned = W @ turn
assert abs(log_likelihood(turned, b, sigma**2) - log_likelihood(W, b, sigma**2)) < 1e-8
cosines = np.linalg.svd(np.linalg.qr(W)[0].T @ np.linalg.qr(turned)[0], compute_uv=False)
assert abs(cosines.min() - 1) < 1e-8
assert abs(turned - W).max() > 0.1
