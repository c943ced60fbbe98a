"""Each likelihood beats the others, held out, on counts of the process that it describes."""

import numpy as np
import pytest
import torch

from genailab_pyro import MLP, VAE, Cells, NegativeBinomialLikelihood, NormalEncoder, StandardNormal, Training, fit
from genailab_pyro.model.count_likelihoods import LogNormalPoissonLikelihood, MixtureLikelihood, PoissonLikelihood

pytestmark = pytest.mark.slow

CELLS, GENES, LATENT_DIM, FEATURES, MEDIAN = 800, 30, 2, 16, 300.0
TRAINING = Training(
    max_epochs=60,
    minibatch_size=64,
    learning_rate=1e-2,
    learning_rate_schedule="one-cycle",
    patience=None,
)


def gamma_noise(rng, shape):
    return rng.gamma(1.5, size=shape) / 1.5


def log_normal_noise(rng, shape):
    return np.exp(rng.normal(size=shape) - 0.5)


def two_population_noise(rng, shape):
    """Three in ten are twelve times the others, each gene of each cell for itself; the mean is one."""
    return np.where(rng.random(shape) < 0.3, 2.8, 0.8 / 3.5) * rng.gamma(10, size=shape) / 10


def simulated(noise, *, total=False, seed=0):
    """Training and test cells; the library is known as a size factor, or the total of the counts stands for it."""
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(CELLS, LATENT_DIM))
    log_rate = latent @ rng.normal(scale=0.5, size=(LATENT_DIM, GENES)) + rng.normal(size=GENES)
    proportions = np.exp(log_rate) / np.exp(log_rate).sum(1, keepdims=True)
    size_factor = np.exp(rng.normal(scale=0.3, size=(CELLS, 1)))
    counts = rng.poisson(MEDIAN * size_factor * proportions * noise(rng, proportions.shape))
    cells = Cells.from_tensors(counts, size_factor=None if total else size_factor[:, 0])
    return cells.subset(np.arange(CELLS * 3 // 4)), cells.subset(np.arange(CELLS * 3 // 4, CELLS))


def poisson(**options):
    return PoissonLikelihood(FEATURES, GENES, **options)


def negative_binomial(**options):
    return NegativeBinomialLikelihood(FEATURES, GENES, **options)


def log_normal_poisson(**options):
    return LogNormalPoissonLikelihood(FEATURES, GENES, **options)


def two_negative_binomials(**options):
    return MixtureLikelihood([negative_binomial(**options), negative_binomial(**options)], GENES)


def advantage(first, second, cells):
    """Mean difference of the held-out log-likelihood in nats per cell, and in paired standard errors."""
    train, test = cells
    scores = []
    for declare in (first, second):
        torch.manual_seed(0)
        vae = VAE(
            prior=StandardNormal(LATENT_DIM),
            decoder=MLP(LATENT_DIM, [FEATURES], dropout=0.0),
            likelihood=declare(size_factor=train.registration.size_factor is not None),
            encoder=NormalEncoder(GENES, LATENT_DIM, [32], dropout=0.0),
        )
        vae.initialise(train.take(np.arange(len(train))))
        fitted = fit(vae, train, training=TRAINING, progress=False)
        scores.append(fitted.log_likelihood(test, num_particles=100))
    difference = scores[0] - scores[1]
    return difference.mean(), difference.mean() / (difference.std(ddof=1) / np.sqrt(len(difference)))


@pytest.mark.parametrize("better", [negative_binomial, log_normal_poisson])
def test_variation_beyond_that_of_poisson_counts_is_worth_a_parameter(better):
    nats, errors = advantage(better, poisson, simulated(gamma_noise))
    assert errors > 5
    assert nats > 20


def test_log_normal_rates_are_told_from_gamma_rates():
    assert advantage(log_normal_poisson, negative_binomial, simulated(log_normal_noise))[1] > 5
    nats, _ = advantage(log_normal_poisson, negative_binomial, simulated(gamma_noise))
    assert -2 < nats < 0  # competitive, not better, where the rates are gamma


def test_totals_of_few_genes_favour_the_lighter_tail_even_where_rates_are_log_normal():
    """A count can not exceed the total that it is a part of."""
    assert advantage(negative_binomial, log_normal_poisson, simulated(log_normal_noise, total=True))[1] > 5


def test_two_populations_of_each_gene_are_worth_a_mixture():
    assert advantage(two_negative_binomials, negative_binomial, simulated(two_population_noise))[1] > 5
    nats, _ = advantage(two_negative_binomials, negative_binomial, simulated(gamma_noise))
    assert -1 < nats < 0.5  # nothing to be had where there is one
