"""On counts of a latent that is not normal, a prior of its kind predicts held-out cells better than a normal one."""

from functools import cache

import numpy as np
import pytest
import torch

from genailab_pyro import MLP, VAE, Cells, NegativeBinomialLikelihood, NormalEncoder, StandardNormal, Training, fit
from genailab_pyro.model.flows import FlowPrior
from genailab_pyro.model.priors import MixtureOfNormals, StudentT, VampPrior

pytestmark = pytest.mark.slow

GENES, TRAIN, SEED = 30, 600, 0
TRAINING = Training(max_epochs=200, learning_rate=2e-2, weight_decay=0.0)


def counts(latent, generator):
    """Negative binomial counts about a softmax that is linear in the latent, 400 to a cell and theta 20."""
    logits = latent @ (0.4 * generator.normal(size=(latent.shape[1], GENES)))
    proportions = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    rates = 400 * proportions * generator.gamma(20, 1 / 20, size=proportions.shape)
    return generator.poisson(rates).astype(np.float32)


def clusters():
    """Four clusters on a cross, a tenth as wide as they are far from its centre; 300 cells are held out."""
    generator = np.random.default_rng(SEED)
    centres = np.array([[3, 0], [-3, 0], [0, 3], [0, -3]])
    return counts(centres[generator.integers(4, size=900)] + 0.3 * generator.normal(size=(900, 2)), generator)


def stragglers():
    """Four latents, each of which is far out in one cell of ten; 900 cells are held out."""
    generator = np.random.default_rng(SEED)
    scale = np.where(generator.random((1500, 4)) < 0.1, 2.0, 0.3)
    return counts(scale * generator.normal(size=(1500, 4)), generator)


def normal():
    """A standard normal latent; 300 cells are held out."""
    generator = np.random.default_rng(SEED)
    return counts(generator.normal(size=(900, 2)), generator)


def vamp(latent_dim, encoder):
    return VampPrior(encoder, GENES, 20)


@cache
def held_out(simulate, build):
    """Importance-weighted log-likelihood of each held-out cell under a VAE with a linear decoder, in nats."""
    cells = Cells.from_tensors(simulate())
    train, test = cells.subset(range(TRAIN)), cells.subset(range(TRAIN, len(cells)))
    latent_dim = 4 if simulate is stragglers else 2
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        encoder = NormalEncoder(GENES, latent_dim, [32], dropout=0.0)
        prior = build(latent_dim, encoder) if build is vamp else build(latent_dim)
        vae = VAE(prior, MLP(latent_dim, []), NegativeBinomialLikelihood(latent_dim, GENES), encoder)
        vae.initialise(train.take(range(TRAIN)))
    return fit(vae, train, training=TRAINING, seed=SEED, progress=False).log_likelihood(test, num_particles=100)


@pytest.mark.parametrize(
    ("simulate", "build"),
    [(clusters, MixtureOfNormals), (clusters, vamp), (clusters, FlowPrior), (stragglers, StudentT)],
    ids=["mixture", "vamp", "flow", "student-t"],
)
def test_it_predicts_held_out_cells_better_than_the_standard_normal(simulate, build):
    gain = held_out(simulate, build) - held_out(simulate, StandardNormal)
    assert gain.mean() > 5 * gain.std() / len(gain) ** 0.5


def test_there_is_little_to_gain_where_the_latent_is_normal():
    gain = held_out(normal, MixtureOfNormals) - held_out(normal, StandardNormal)
    assert gain.mean() < (held_out(clusters, MixtureOfNormals) - held_out(clusters, StandardNormal)).mean() / 10
