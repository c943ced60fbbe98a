"""Where gene programs share genes, the posterior of their activities is correlated, and a guide that says so pays.

The loadings are confined to known sets of genes, so that the latents cannot be rotated until they are independent.
"""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from genailab_pyro import VAE, Cells, NegativeBinomialLikelihood, NormalEncoder, StandardNormal, Training, fit
from genailab_pyro.model.encoders import FullRankEncoder, LowRankEncoder
from genailab_pyro.nn import Declared

pytestmark = pytest.mark.slow

CELLS, TRAIN, GENES, PROGRAMS, MEAN, SEED = 2500, 1500, 30, 3, 100 / 30, 0
TRAINING = Training(
    max_epochs=40,
    minibatch_size=64,
    learning_rate=1e-2,
    learning_rate_schedule="one-cycle",
    weight_decay=0.0,
    patience=None,
)


def sets(shared):
    """Which program has which gene: the first genes are in all of them, the others in one each."""
    belongs = torch.zeros(GENES, PROGRAMS)
    belongs[:shared] = 1
    for program, own in enumerate(torch.arange(shared, GENES).chunk(PROGRAMS)):
        belongs[own, program] = 1
    return belongs


class Programs(Declared):
    """The change of each gene's log expression: positive loadings within known sets of genes."""

    def __init__(self, shared):
        super().__init__()
        self.log_loadings = nn.Parameter(torch.full((GENES, PROGRAMS), -1.5))
        self.register_buffer("belongs", sets(shared), persistent=False)

    def forward(self, z, condition):
        return z @ (self.belongs * self.log_loadings.exp()).T


class Shifted(NegativeBinomialLikelihood):
    """Negative binomial counts whose log mean is what the decoder says, and a level for each gene."""

    def __init__(self):
        super().__init__(GENES, GENES, size_factor=True)
        with torch.no_grad():
            self.log_expression.weight.copy_(torch.eye(GENES))
        self.log_expression.weight.requires_grad_(False)


def simulated(shared):
    """Counts of the programs, and the correlations of their posterior, by Laplace's approximation at the prior mean."""
    rng = np.random.default_rng(SEED)
    loadings = sets(shared).numpy() * 0.4 * rng.uniform(0.5, 1.5, size=(GENES, PROGRAMS))
    level, latent = 0.5 * rng.normal(size=GENES), rng.normal(size=(CELLS, PROGRAMS))
    mean = MEAN * np.exp(latent @ loadings.T + level)
    counts = rng.poisson(mean * rng.gamma(20, 1 / 20, size=mean.shape))
    information = 1 / (1 / (MEAN * np.exp(level)) + 1 / 20)
    covariance = np.linalg.inv(np.eye(PROGRAMS) + loadings.T @ (information[:, None] * loadings))
    deviation = np.sqrt(np.diag(covariance))
    return counts, covariance / np.outer(deviation, deviation)


@cache
def held_out(kind, shared):
    """ELBO and importance-weighted log-likelihood of each held-out cell, in nats."""
    cells = Cells.from_tensors(simulated(shared)[0], size_factor=np.ones(CELLS))
    train, test = cells.subset(range(TRAIN)), cells.subset(range(TRAIN, CELLS))
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        encoder = kind(GENES, PROGRAMS, [])
        vae = VAE(StandardNormal(PROGRAMS), Programs(shared), Shifted(), encoder)
        vae.initialise(train.take(range(TRAIN)))
    fitted = fit(vae, train, training=TRAINING, seed=SEED, progress=False)
    return fitted.elbo(test, num_particles=100), fitted.log_likelihood(test, num_particles=500)


def gains(kind, shared):
    """Mean gain over a `NormalEncoder` in nats per cell, and in paired standard errors, for ELBO and likelihood."""
    found = []
    for mine, theirs in zip(held_out(kind, shared), held_out(NormalEncoder, shared), strict=True):
        difference = mine - theirs
        found.append((difference.mean(), difference.mean() / (difference.std(ddof=1) / np.sqrt(len(difference)))))
    return found


@pytest.mark.parametrize("kind", [FullRankEncoder, LowRankEncoder])
def test_programs_that_share_genes_are_worth_a_correlated_posterior(kind):
    _, correlation = simulated(shared=24)
    assert np.abs(correlation[np.tril_indices(PROGRAMS, -1)]).mean() > 0.35
    (elbo, elbo_errors), (_, likelihood_errors) = gains(kind, shared=24)
    assert elbo_errors > 5
    assert elbo > 0.3
    # The decoder that is learned beside it is better, too.
    assert likelihood_errors > 5


@pytest.mark.parametrize("kind", [FullRankEncoder, LowRankEncoder])
def test_programs_of_their_own_genes_are_not(kind):
    _, correlation = simulated(shared=0)
    np.testing.assert_allclose(correlation, np.eye(PROGRAMS), atol=1e-12)
    for nats, _ in gains(kind, shared=0):
        assert abs(nats) < 0.2
