"""A linear-Gaussian VAE against probabilistic PCA, where everything has a closed form.

Tipping, Bishop (1999). Probabilistic principal component analysis. doi:10.1111/1467-9868.00196
"""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from genailab_pyro import MLP, VAE, Encoder, Likelihood, Minibatch, StandardNormal, estimators
from genailab_pyro.model.particles import draw_particles

NUM_CELLS, NUM_GENES, LATENT_DIM = 400, 8, 2


class SharedScaleNormal(Likelihood):
    """Values as they are, with one scale for all genes."""

    def __init__(self, features, genes):
        super().__init__()
        self.loc = nn.Linear(features, genes)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, features, minibatch):
        return dist.Normal(self.loc(features), self.log_scale.exp()).to_event(1)

    def initialise(self, minibatch):
        with torch.no_grad():
            self.loc.bias.copy_(minibatch.counts.mean(0))


class LinearEncoder(Encoder):
    """Location linear in the values, one scale per latent."""

    def __init__(self, input_dim, latent_dim):
        super().__init__()
        self.loc = nn.Linear(input_dim, latent_dim)
        self.log_scale = nn.Parameter(torch.zeros(latent_dim))

    def forward(self, minibatch):
        return dist.Normal(self.loc(minibatch.counts), self.log_scale.exp()).to_event(1)


@pytest.fixture(scope="module")
def values():
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(NUM_CELLS, LATENT_DIM, generator=generator, dtype=torch.float64)
    loadings = torch.randn(LATENT_DIM, NUM_GENES, generator=generator, dtype=torch.float64)
    noise = 0.5 * torch.randn(NUM_CELLS, NUM_GENES, generator=generator, dtype=torch.float64)
    return latent @ loadings + noise + 1


@pytest.fixture(scope="module")
def minibatch(values):
    none = torch.zeros(NUM_CELLS, 0, dtype=torch.float64)
    ones = torch.ones(NUM_CELLS, dtype=torch.float64)
    return Minibatch(values, none.long(), none, ones, torch.arange(NUM_CELLS), NUM_CELLS)


def declare():
    torch.manual_seed(0)
    return VAE(
        StandardNormal(LATENT_DIM),
        MLP(LATENT_DIM, []),
        SharedScaleNormal(LATENT_DIM, NUM_GENES),
        LinearEncoder(NUM_GENES, LATENT_DIM),
    ).double()


def train(vae, minibatch, num_steps=600):
    vae.initialise(minibatch)
    model, guide, elbo = estimators.get("pathwise-kl").bind(vae.model, vae.guide)
    loss = elbo(model, guide)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss(minibatch).backward()
        optimizer.step()
        schedule.step()
    return vae


@pytest.fixture(scope="module")
def trained(minibatch):
    return train(declare(), minibatch)


def marginal(vae):
    """The exact marginal of a cell's values."""
    likelihood = vae.likelihood
    loadings, noise = likelihood.loc.weight, (2 * likelihood.log_scale).exp()
    covariance = loadings @ loadings.T + noise * torch.eye(NUM_GENES, dtype=loadings.dtype)
    return dist.MultivariateNormal(likelihood.loc.bias, covariance)


def maximum(values, latent_dim=LATENT_DIM):
    """Highest mean log-likelihood of a cell, and the loadings that reach it."""
    covariance = torch.cov(values.T, correction=0)
    lengths, axes = torch.linalg.eigh(covariance)
    noise = lengths[: NUM_GENES - latent_dim].mean()
    kept = lengths[NUM_GENES - latent_dim :]
    log_determinant = kept.log().sum() + (NUM_GENES - latent_dim) * noise.log()
    likelihood = -0.5 * (NUM_GENES * math.log(2 * math.pi) + log_determinant + NUM_GENES)
    return likelihood.item(), axes[:, NUM_GENES - latent_dim :]


def largest_angle(first, second):
    """Largest principal angle between two column spaces, in degrees."""
    bases = [torch.linalg.qr(columns).Q for columns in (first, second)]
    cosines = torch.linalg.svdvals(bases[0].T @ bases[1])
    return math.degrees(math.acos(min(cosines.min().item(), 1.0)))


def test_the_marginal_likelihood_comes_within_a_percent_of_the_highest(trained, values):
    highest, _ = maximum(values)
    reached = marginal(trained).log_prob(values).mean().item()
    assert reached <= highest + 1e-9
    assert highest - reached < 0.01 * abs(highest)
    # One latent fewer falls short by more than that, so that the tolerance tells the two apart.
    assert highest - maximum(values, LATENT_DIM - 1)[0] > 0.02 * abs(highest)


def test_the_loadings_span_the_principal_subspace(trained, values):
    assert largest_angle(trained.likelihood.loc.weight.detach(), maximum(values)[1]) < 2


def test_the_elbo_of_the_optimum_is_its_marginal_likelihood(trained, values, minibatch):
    # At the optimum the loadings are orthogonal, so the exact posterior is within the family of the guide.
    torch.manual_seed(0)
    with torch.no_grad():
        elbo = draw_particles(trained.model, trained.guide, minibatch, 50).log_weights.mean()
    exact = marginal(trained).log_prob(values).mean()
    assert elbo < exact + 1e-3
    torch.testing.assert_close(elbo, exact, rtol=0, atol=0.02)


@pytest.fixture(scope="module")
def half_trained(minibatch):
    vae = train(declare(), minibatch, num_steps=40)
    with torch.no_grad():
        vae.encoder.log_scale += 0.2
    return vae


@pytest.fixture(scope="module")
def log_weights(half_trained, minibatch):
    torch.manual_seed(1)
    with torch.no_grad():
        return draw_particles(half_trained.model, half_trained.guide, minibatch, 1024).log_weights


def bound(log_weights, num_particles):
    """The importance-weighted bound of each cell, averaged over disjoint groups of the same draws."""
    groups = log_weights.unflatten(0, (-1, num_particles))
    return (groups.logsumexp(1) - math.log(num_particles)).mean(0)


def test_the_bound_rises_with_particles_in_every_cell(log_weights):
    bounds = torch.stack([bound(log_weights, number) for number in (1, 4, 16, 64, 256, 1024)])
    assert (bounds.diff(dim=0) > 0).all()
    torch.testing.assert_close(bounds[0], log_weights.mean(0))


def test_the_bound_approaches_the_exact_likelihood(half_trained, log_weights, values):
    exact = marginal(half_trained).log_prob(values).detach()
    gaps = [(exact - bound(log_weights, number)).mean().item() for number in (1, 16, 256)]
    assert gaps[0] > 0.1
    assert gaps[1] < gaps[0] / 3
    assert abs(gaps[2]) < gaps[0] / 10


def test_the_mean_weight_is_the_exact_likelihood(half_trained, log_weights, values):
    exact = marginal(half_trained).log_prob(values).detach()
    ratios = (log_weights - exact).exp()
    standard_error = ratios.std(0) / len(ratios) ** 0.5
    trusted = standard_error < 0.05
    assert trusted.sum() > NUM_CELLS / 2
    assert ((ratios.mean(0) - 1).abs() / standard_error)[trusted].max() < 5


def test_weights_are_those_of_a_cell_whatever_the_size_of_the_data_set(half_trained, minibatch):
    drawn = []
    for num_cells in (NUM_CELLS, 10 * NUM_CELLS):
        torch.manual_seed(2)
        larger = minibatch._replace(num_cells=num_cells)
        drawn.append(draw_particles(half_trained.model, half_trained.guide, larger, 3))
    for first, second in zip(*drawn, strict=True):
        assert first.shape == (3, NUM_CELLS)
        torch.testing.assert_close(first, second)
    torch.testing.assert_close(drawn[0].log_weights, drawn[0].log_likelihood + drawn[0].log_ratio)


def test_weights_without_the_guide_are_found(half_trained, minibatch, values):
    torch.manual_seed(1)
    with torch.no_grad():
        particles = draw_particles(half_trained.model, half_trained.guide, minibatch, 500)
    exact = marginal(half_trained).log_prob(values).detach()
    ratios = (particles.log_likelihood - exact).exp()
    errors = (ratios.mean(0) - 1).abs() / (ratios.std(0) / 500**0.5)
    assert (errors > 5).float().mean() > 0.5
