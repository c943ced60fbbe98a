"""The posterior of one cell by NUTS, by quadrature, and by weighting the guide's draws."""

import math

import numpy as np
import pytest
import torch
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size
from scipy import stats

from genailab_pyro import CVAE_NB, Minibatch, estimators
from genailab_pyro.model.particles import draw_particles

NUM_COPIES = 16


def copies(number):
    """The same cell a number of times over."""
    counts = torch.tensor([[9.0, 0.0, 3.0, 14.0, 1.0]], dtype=torch.float64).expand(number, -1)
    none = torch.zeros(number, 0, dtype=torch.float64)
    conditions = torch.ones(number, 1, dtype=torch.long)
    return Minibatch(counts, conditions, none, counts.sum(1), torch.arange(number), number)


@pytest.fixture(scope="module")
def minibatch():
    return copies(1)


@pytest.fixture(scope="module")
def vae(minibatch):
    """Fixed weights that bend the posterior well away from the prior, and a guide fitted to it."""
    torch.manual_seed(3)
    vae = CVAE_NB(5, 2, 2, [], dropout=0.0).double().eval()
    with torch.no_grad():
        vae.likelihood.log_expression.weight.mul_(3)
        vae.likelihood.log_inverse_dispersion.log_value.copy_(torch.linspace(-0.5, 2, 5))
    model, guide, elbo = estimators.get("pathwise-kl", num_particles=16).bind(vae.model, vae.guide)
    loss = elbo(model, guide)
    optimizer = torch.optim.Adam(vae.encoder.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        loss(minibatch).backward()
        optimizer.step()
    return vae


@pytest.fixture(scope="module")
def exact(vae, minibatch):
    """Moments of the posterior and log p(x) on a grid, by scipy and the weights alone."""
    axis = np.linspace(-7, 7, 401)
    z = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    head = vae.likelihood.log_expression
    weight, bias = (parameter.detach().numpy() for parameter in (head.weight, head.bias))
    logits = z @ weight[:, :2].T + weight[:, 3] + bias  # the cell is of the second of two levels
    proportions = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    mean = minibatch.library.item() * proportions
    theta = vae.likelihood.log_inverse_dispersion.log_value.detach().exp().numpy()
    counts = stats.nbinom(theta, theta / (theta + mean)).logpmf(minibatch.counts.numpy()).sum(1)
    log_joint = counts + stats.norm.logpdf(z).sum(1)
    weights = np.exp(log_joint - log_joint.max())
    log_evidence = log_joint.max() + np.log(weights.sum() * (axis[1] - axis[0]) ** 2)
    return torch.from_numpy(weights @ statistics(torch.from_numpy(z)).numpy() / weights.sum()), log_evidence


def statistics(z):
    """First and second moments, shape [..., 5]."""
    first, second = z.unbind(-1)
    return torch.stack([first, second, first**2, second**2, first * second], -1)


def distances(values, expected):
    """Distance of the mean of some chains from what is expected, in Monte Carlo standard errors."""
    error = (values.var((0, 1)) / effective_sample_size(values)).sqrt()
    return (values.mean((0, 1)) - expected).abs() / error


@pytest.fixture(scope="module")
def chains(vae):
    """Draws for each of many copies of the cell, which the model holds independent, [copies, draws, latent]."""
    torch.manual_seed(0)
    mcmc = MCMC(NUTS(vae.model), num_samples=60, warmup_steps=60, disable_progbar=True)
    mcmc.run(copies(NUM_COPIES))
    return mcmc.get_samples()["z"].transpose(0, 1)


def test_the_posterior_is_not_the_prior(exact):
    prior = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    assert (exact[0] - prior).abs().max() > 0.3


def test_nuts_on_the_model_agrees_with_the_grid(chains, exact):
    assert chains.shape == (NUM_COPIES, 60, 2)
    assert distances(statistics(chains), exact[0]).max() < 5


def test_shifted_chains_are_found(chains, exact):
    assert distances(statistics(chains + 0.2), exact[0]).max() > 5


@pytest.fixture(scope="module")
def draws(vae, minibatch):
    """Draws of the guide with the logarithms of their importance weights."""
    torch.manual_seed(1)
    drawn = []

    def guide(minibatch):
        drawn.append(vae.guide(minibatch))
        return drawn[-1]

    with torch.no_grad():
        log_weights = draw_particles(vae.model, guide, minibatch, 40_000).log_weights[:, 0]
    return drawn[0][:, 0], log_weights


def weighted_distances(z, log_weights, expected):
    """Distances of self-normalised estimates, in standard errors by the delta method."""
    weights = torch.softmax(log_weights, 0)[:, None]
    values = statistics(z)
    estimate = (weights * values).sum(0)
    return (estimate - expected).abs() / (weights**2 * (values - estimate) ** 2).sum(0).sqrt()


def test_weighted_draws_of_the_guide_agree_with_the_grid(draws, exact):
    assert weighted_distances(*draws, exact[0]).max() < 5


def test_draws_without_their_weights_do_not(draws, exact):
    z, log_weights = draws
    assert weighted_distances(z, torch.zeros_like(log_weights), exact[0]).max() > 5


def test_the_mean_weight_agrees_with_the_evidence_on_the_grid(draws, exact):
    ratios = (draws[1] - exact[1]).exp()
    assert (ratios.mean() - 1).abs() < 5 * ratios.std() / math.sqrt(len(ratios))
    assert ratios.std() / math.sqrt(len(ratios)) < 0.02


def test_the_elbo_is_below_the_evidence(draws, exact):
    assert draws[1].mean() < exact[1]
