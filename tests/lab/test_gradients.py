"""The lab's exact gradients against closed forms, and the library's draws against them."""

import math

import numpy as np
import pyro
import pytest
import torch

from genailab_pyro.estimators import table
from genailab_pyro.lab.exact import (
    BEST,
    OBJECTIVES,
    WEIGHTED,
    Integral,
    estimator_of,
    exact_gradient,
    names_for,
    particles_for,
)
from genailab_pyro.lab.gradients import ascend, bound_surface, draw_gradients, variance_of

PAIRS = [(objective, name) for objective in ("normal", "Poisson", "z^2", "sin") for name in names_for(objective)]


@pytest.mark.parametrize(
    ("name", "at_start", "at_posterior"),
    [("pathwise", 4, 2), ("pathwise-kl", 1, 0.5), ("stl", 1, 0), ("score", 29.03, 10.27), ("score-best", 9.5, 0)],
)
def test_the_variances_of_the_normal_model_are_those_in_closed_form(name, at_start, at_posterior):
    assert exact_gradient("normal", name, 0.0, 1.0).variance == pytest.approx(at_start, abs=0.006)
    assert exact_gradient("normal", name, 1.0, math.sqrt(0.5)).variance == pytest.approx(at_posterior, abs=0.006)


@pytest.mark.parametrize(
    ("objective", "score", "best", "path"),
    [("z^2", 30, 14, 4), ("bump", 0.099, 0.068, 0.646), ("wave", 0.5, 0.5, 12.5)],
)
def test_the_variances_of_mohamed_and_others_come_out(objective, score, best, path):
    found = [exact_gradient(objective, name, 1.0, 1.0).variance for name in ("score", "score-best", "pathwise")]
    assert found == [pytest.approx(expected, rel=0.01) for expected in (score, best, path)]


def test_particles_divide_a_variance_of_independent_draws():
    one, eight = (exact_gradient("normal", "score", 0.0, 1.0, number).variance for number in (1, 8))
    assert eight == pytest.approx(one / 8)


def test_the_weighted_bounds_of_one_particle_are_the_elbo():
    for weighted, plain in (("iwae", "pathwise"), ("dreg", "stl")):
        first, second = (exact_gradient("Poisson", name, 0.3, 0.6) for name in (weighted, plain))
        assert first.mean == pytest.approx(second.mean)
        assert first.variance == pytest.approx(second.variance)


def test_iwae_and_dreg_have_one_mean_and_renyi_another():
    means = {name: exact_gradient("normal", name, 0.3, 0.6, 2).mean for name in WEIGHTED}
    assert means["dreg"] == pytest.approx(means["iwae"], rel=1e-6)
    assert means["vimco"] == pytest.approx(means["iwae"], rel=1e-6)
    assert means["renyi"] != pytest.approx(means["iwae"], rel=0.01)


def agrees(draws, exact):
    """Whether mean and variance of draws are within five Monte Carlo standard errors of the exact ones."""
    variance, error = variance_of(draws)
    mean = abs(draws.mean() - exact.mean) < 5 * math.sqrt(variance / len(draws)) + 1e-12
    return bool(mean and abs(variance - exact.variance) < 5 * error + 1e-12)


@pytest.mark.parametrize(("objective", "name"), PAIRS)
def test_the_draws_of_the_library_have_the_exact_mean_and_variance(objective, name):
    number = particles_for(name)[min(1, len(particles_for(name)) - 1)]
    draws = draw_gradients(objective, name, 0.3, 0.6, num_particles=number, seed=3)
    assert agrees(draws, exact_gradient(objective, name, 0.3, 0.6, number))


def test_a_wrong_variance_or_mean_is_found():
    draws = draw_gradients("normal", "score", 0.3, 0.6)
    assert not agrees(draws, exact_gradient("normal", "score-best", 0.3, 0.6))
    assert not agrees(draws, exact_gradient("normal", "score", 0.3, 0.6, 2))
    assert not agrees(1.2 * draws, exact_gradient("normal", "score", 0.3, 0.6))


def test_a_baseline_that_has_learned_from_few_draws_scatters():
    at = Integral(OBJECTIVES["bump"], 1.0, 1.0)
    exact = exact_gradient("bump", "score-graph-ema", 1.0, 1.0)
    settled = at.moments((at.cost - at.mean(at.cost)) * at.score)
    assert exact.variance == pytest.approx(settled.variance + at.moments(at.cost).variance / 10)
    draws = draw_gradients("bump", "score-graph-ema", 1.0, 1.0)
    assert agrees(draws, exact)
    assert not agrees(draws, settled)


def test_the_exact_gradient_is_the_slope_of_the_surface():
    for objective in OBJECTIVES:
        low, high = bound_surface(objective, np.array([0.299, 0.301]), np.array([math.log(0.6)]))[0]
        assert (high - low) / 0.002 == pytest.approx(exact_gradient(objective, "pathwise", 0.3, 0.6).mean, rel=1e-4)


def test_the_surface_is_highest_at_the_posterior_where_it_is_the_evidence():
    surface = bound_surface("normal", np.array([0.9, 1.0, 1.1]), math.log(0.5) / 2 + np.array([-0.1, 0.0, 0.1]))
    assert surface.argmax() == 4
    evidence = -0.5 * math.log(2 * math.pi * 2) - 1
    assert surface[1, 1] == pytest.approx(evidence, rel=1e-9)


def test_the_steps_climb_to_the_posterior():
    path = ascend("normal", "stl", -1.0, 0.5, num_steps=200)
    assert path.shape == (201, 2)
    assert path[0].tolist() == [-1.0, math.log(0.5)]
    np.testing.assert_allclose(path[-1], [1.0, math.log(0.5) / 2], atol=0.02)


@pytest.mark.parametrize("name", ["score-best", "score-graph-ema", "score-loo"])
def test_the_steps_of_a_score_with_a_baseline_climb_too(name):
    number = particles_for(name)[-1]
    path = ascend("normal", name, -1.0, 0.7, num_particles=number, learning_rate=0.02, num_steps=150)
    heights = [bound_surface("normal", point[:1], point[1:])[0, 0] for point in path[[0, -1]]]
    assert heights[1] > heights[0] + 1


def test_the_steps_end_where_they_leave_the_limits():
    path = ascend("exp", "pathwise", 0.0, 1.0, learning_rate=0.5, limits=((-1.0, 1.0), (-1.0, 1.0)))
    assert 1 <= len(path) < 61
    assert (np.abs(path) <= 1).all()


def test_the_same_seed_gives_the_same_draws_and_the_callers_state_is_kept():
    state, stored = torch.get_rng_state(), set(pyro.get_param_store())
    first, again, other = (draw_gradients("sin", "score", 0.0, 1.0, num_draws=5, seed=seed) for seed in (1, 1, 2))
    ascend("sin", "score", 0.0, 1.0, num_steps=2)
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(pyro.get_param_store()) == stored


def test_the_names_are_those_of_the_table_and_one_more():
    names = names_for("normal")
    assert set(names) - set(table().index) == {BEST}
    assert all(estimator_of(name, particles_for(name)[0]).objective for name in names)
    assert "iwae" not in names_for("z^2")


def test_what_cannot_be_done_is_refused():
    with pytest.raises(ValueError, match=r"expected an estimator among pathwise, score.* for 'z\^2', got 'iwae'"):
        exact_gradient("z^2", "iwae", 0.0, 1.0)
    with pytest.raises(ValueError, match="objective"):
        draw_gradients("cubic", "score", 0.0, 1.0)
    with pytest.raises(ValueError, match=r"expected num_particles among \[1, 2, 3\] for 'dreg', got 9"):
        exact_gradient("normal", "dreg", 0.0, 1.0, 9)
    with pytest.raises(ValueError, match=r"a scale above zero, got loc=0\.0 and scale=-1\.0"):
        draw_gradients("normal", "score", 0.0, -1.0)
    with pytest.raises(ValueError, match="num_draws of at least 2"):
        draw_gradients("normal", "score", 0.0, 1.0, num_draws=1)
    with pytest.raises(ValueError, match="learning_rate above zero, got 0"):
        ascend("normal", "score", 0.0, 1.0, learning_rate=0)


def test_the_standard_error_of_a_variance_of_normal_draws_is_that_of_theory():
    draws = np.random.default_rng(0).normal(size=100_000)
    variance, error = variance_of(draws)
    assert error == pytest.approx(math.sqrt(2 / 100_000), rel=0.03)
    assert abs(variance - 1) < 5 * error
