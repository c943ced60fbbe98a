"""Gradient draws at frozen parameters of a small negative binomial VAE."""

import numpy as np
import pyro
import pytest
import torch

from genailab_pyro import CVAE_NB, Estimator, Minibatch
from genailab_pyro.experiments import GradientDraws, draw_gradients

CELLS, GENES = 4, 5
NUM_DRAWS, PARTICLES = 200, 64


@pytest.fixture(scope="module")
def minibatch():
    generator = torch.Generator().manual_seed(0)
    counts = torch.poisson(torch.full((CELLS, GENES), 4.0), generator=generator) + 1
    none = torch.zeros(CELLS, 0)
    return Minibatch(counts, none.long(), none, counts.sum(1), torch.arange(CELLS), 10 * CELLS)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    vae = CVAE_NB(GENES, 2, 0, [6]).eval()
    with torch.no_grad():
        vae.encoder.loc.bias += 3  # far from the optimum, where the gradient stands out of its scatter
    return vae


def draw(vae, minibatch, estimator, **options):
    parameters = {"loc": vae.encoder.loc.bias, "decoder": vae.likelihood.log_expression.bias}
    options = {"num_draws": NUM_DRAWS, **options}
    return draw_gradients(vae.model, vae.guide, minibatch, estimator, parameters, **options)


@pytest.fixture(scope="module")
def pathwise(vae, minibatch):
    return draw(vae, minibatch, Estimator(num_particles=PARTICLES))


@pytest.fixture(scope="module")
def score(vae, minibatch):
    return draw(vae, minibatch, Estimator("score", num_particles=PARTICLES), seed=1)


def distance(first, second):
    """Distance of two mean gradients in Monte Carlo standard errors, per parameter."""
    variance = first.values.var(0, ddof=1) / len(first.values) + second.values.var(0, ddof=1) / len(second.values)
    return np.abs(first.mean - second.mean) / np.sqrt(variance)


def test_a_draw_has_a_value_for_each_parameter(pathwise):
    assert pathwise["loc"].values.shape == (NUM_DRAWS, 2)
    assert pathwise["decoder"].values.shape == (NUM_DRAWS, GENES)


def test_pathwise_and_score_have_the_same_mean(pathwise, score):
    assert distance(pathwise["loc"], score["loc"]).max() < 5
    assert distance(pathwise["decoder"], score["decoder"]).max() < 5


@pytest.mark.parametrize("factor", [-1.0, 0.5, 1.5])
def test_a_biased_estimator_is_found(factor, pathwise):
    first, second = np.split(pathwise["loc"].values, 2)
    assert distance(GradientDraws(first), GradientDraws(second)).max() < 5
    assert distance(GradientDraws(first), GradientDraws(factor * second)).max() > 5


def test_the_score_scatters_more(pathwise, score):
    assert score["loc"].variance > 20 * pathwise["loc"].variance


def test_the_decoder_scatters_alike_with_common_numbers(vae, minibatch, pathwise):
    common = draw(vae, minibatch, Estimator("score", num_particles=PARTICLES))
    np.testing.assert_allclose(common["decoder"].values, pathwise["decoder"].values, rtol=1e-3, atol=1e-5)
    assert not np.allclose(common["loc"].values, pathwise["loc"].values)


def test_particles_divide_the_variance(vae, minibatch, pathwise):
    one = draw(vae, minibatch, "pathwise")
    assert one["loc"].variance / pathwise["loc"].variance == pytest.approx(PARTICLES, rel=0.3)


def test_the_same_seed_gives_the_same_draws_and_another_one_others(vae, minibatch):
    first, again, other = (draw(vae, minibatch, "pathwise", num_draws=3, seed=seed)["loc"].values for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)
    assert len(np.unique(first[:, 0])) == 3


def test_draws_are_per_cell_of_the_data_set(vae, minibatch):
    small = draw(vae, minibatch, "pathwise", num_draws=5)["loc"].values
    large = draw(vae, minibatch._replace(num_cells=1000), "pathwise", num_draws=5)["loc"].values
    np.testing.assert_allclose(small, large, rtol=1e-4, atol=1e-6)


def test_the_mean_is_the_derivative_of_the_loss(vae, minibatch, pathwise):
    # A finite difference of the ELBO at common numbers.
    model, guide, elbo = Estimator(num_particles=4000).bind(vae.model, vae.guide)
    losses = []
    with torch.no_grad(), pyro.get_param_store().scope():
        for step in (0.01, -0.01):
            vae.encoder.loc.bias[0] += step
            torch.manual_seed(0)
            losses.append(elbo.loss(model, guide, minibatch) / minibatch.num_cells)
            vae.encoder.loc.bias[0] -= step
    slope = (losses[0] - losses[1]) / 0.02
    draws = pathwise["loc"]
    error = np.sqrt(draws.values[:, 0].var(ddof=1) * (1 / NUM_DRAWS + PARTICLES / 4000))
    assert abs(draws.mean[0] - slope) < 5 * error


def test_a_parameter_that_is_not_reached_has_a_gradient_of_zero(vae, minibatch):
    stranger = torch.nn.Parameter(torch.ones(3))
    draws = draw_gradients(vae.model, vae.guide, minibatch, "score", {"stranger": stranger}, num_draws=2)
    assert np.array_equal(draws["stranger"].values, np.zeros((2, 3)))


def test_what_cannot_be_drawn_is_refused(vae, minibatch):
    with pytest.raises(ValueError, match="expected at least two draws, whose scatter is asked for, got 1"):
        draw(vae, minibatch, "pathwise", num_draws=1)
    with pytest.raises(ValueError, match="estimator to be one of 'pathwise'"):
        draw(vae, minibatch, "pathwize")


def test_nothing_of_the_callers_is_touched(vae, minibatch):
    pyro_state, state = dict(pyro.get_param_store().items()), torch.get_rng_state()
    weights = {name: value.clone() for name, value in vae.state_dict().items()}
    draw(vae, minibatch, "pathwise", num_draws=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert dict(pyro.get_param_store().items()).keys() == pyro_state.keys()
    assert all(torch.equal(value, weights[name]) for name, value in vae.state_dict().items())
    assert all(parameter.grad is None for parameter in vae.parameters())


class TestVariance:
    def test_it_is_the_trace_of_the_covariance(self):
        values = np.random.default_rng(0).normal(size=(50, 3)) * [1, 2, 3]
        assert GradientDraws(values).variance == pytest.approx(np.trace(np.cov(values.T)))

    def test_the_bootstrap_interval_covers_the_truth_about_as_often_as_it_says(self):
        rng = np.random.default_rng(0)
        covered = []
        for seed in range(200):
            draws = GradientDraws(rng.normal(size=(200, 3)) * [1, 2, 3])
            low, high = draws.variance_interval(num_resamples=200, seed=seed)
            assert low < draws.variance < high
            covered.append(low < 14 < high)
        assert 0.88 < np.mean(covered) < 0.99

    def test_it_narrows_with_draws(self):
        values = np.random.default_rng(0).normal(size=(4000, 2))
        (low, high), (inner, outer) = (GradientDraws(values[:n]).variance_interval() for n in (100, 4000))
        assert outer - inner < (high - low) / 3
