"""The log-normal Poisson distribution against adaptive integration in many digits, and its moments and limits."""

import math

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch

from genailab_pyro.distributions import LogNormalPoisson, NegativeBinomial, log_normal_poisson

DRAWS = 20_000
COUNTS = (0, 1, 3, 20, 1_000, 100_000)
LOG_MEANS = (-6.0, -1.0, 1.0, 4.0, 10.0)
# Of the log-probability, in nats.
ACCURACY = {0.01: 1e-9, 0.3: 1e-9, 1.0: 1e-6, 1.5: 3e-5, 2.0: 2e-4}


def integrated(count, log_mean, scale):
    """The log-probability by adaptive quadrature in 30 digits, over pieces about the mode."""
    with mpmath.workdps(30):
        loc = mpmath.mpf(log_mean) - mpmath.mpf(scale) ** 2 / 2

        def exponent(noise):
            log_rate = loc + scale * noise
            return count * log_rate - mpmath.exp(log_rate) - noise**2 / 2

        omega = mpmath.lambertw(scale**2 * mpmath.exp(loc + scale**2 * count)).real
        mode, width = scale * count - omega / scale, 1 / mpmath.sqrt(1 + omega)
        pieces = [mode + width * step for step in (-40, -20, -10, -5, -2, 0, 2, 5, 10, 20)]
        mass = mpmath.quad(lambda noise: mpmath.exp(exponent(noise) - exponent(mode)), pieces)
        constant = mpmath.loggamma(count + 1) + mpmath.log(2 * mpmath.pi) / 2
        return float(mpmath.log(mass) + exponent(mode) - constant)


@pytest.fixture(scope="module", params=ACCURACY)
def table(request):
    """Counts, log means, the scale, and the log-probabilities in many digits."""
    scale = request.param
    counts, log_mean = np.meshgrid(COUNTS, LOG_MEANS, indexing="ij")
    expected = [integrated(int(x), float(m), scale) for x, m in zip(counts.flat, log_mean.flat, strict=True)]
    return counts.ravel(), log_mean.ravel(), scale, np.array(expected)


def tensors(table, dtype=torch.float64):
    counts, log_mean, scale, _ = table
    return (torch.tensor(values, dtype=dtype) for values in (counts, log_mean, np.full(counts.shape, scale)))


def test_quadrature_agrees_with_adaptive_integration(table):
    counts, log_mean, scale = tensors(table)
    error = np.abs(LogNormalPoisson(log_mean, scale).log_prob(counts).numpy() - table[-1])
    assert (error < ACCURACY[table[2]] + 1e-12 * np.abs(table[-1])).all()


def test_nodes_that_stay_at_the_mean_would_miss_large_counts(table):
    """Quadrature of as many nodes that is not moved to the mode is off by whole nats."""
    counts, log_mean, scale = tensors(table)
    rule = torch.tensor(log_normal_poisson._rule(log_normal_poisson.NODES), dtype=torch.float64)
    log_rate = (log_mean - scale**2 / 2)[:, None] + scale[:, None] * rule[:, 0]
    fixed = (torch.distributions.Poisson(log_rate.exp()).log_prob(counts[:, None]) + rule[:, 1].log()).logsumexp(-1)
    error = np.abs(fixed.numpy() - table[-1])
    assert error[table[0] >= 1000].max() > 1


def test_single_precision_keeps_its_digits(table):
    counts, log_mean, scale = tensors(table, torch.float32)
    single = LogNormalPoisson(log_mean, scale).log_prob(counts).double()
    double = LogNormalPoisson(log_mean.double(), scale.double()).log_prob(counts.double())
    torch.testing.assert_close(single, double, rtol=1e-5, atol=1e-5)


def test_derivatives_agree_with_differences_of_the_integral():
    for count, log_mean, scale in [(0, -1.0, 0.3), (0, 1.0, 1.0), (3, 1.0, 1.0), (1000, 4.0, 1.0), (20, 4.0, 0.01)]:
        arguments = torch.tensor([log_mean, scale], dtype=torch.float64, requires_grad=True)
        log_prob = LogNormalPoisson(*arguments).log_prob(torch.tensor(float(count), dtype=torch.float64))
        (found,) = torch.autograd.grad(log_prob, arguments)
        step = 1e-4
        by_mean = (integrated(count, log_mean + step, scale) - integrated(count, log_mean - step, scale)) / (2 * step)
        by_scale = (
            integrated(count, log_mean, scale * (1 + step)) - integrated(count, log_mean, scale * (1 - step))
        ) / (2 * step * scale)
        assert found.tolist() == pytest.approx([by_mean, by_scale], rel=1e-5, abs=1e-5)


def test_two_derivatives_agree_with_differences_of_the_first():
    log_mean = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([0.3, 0.5, 0.4], dtype=torch.float64, requires_grad=True)
    counts = torch.tensor([0.0, 2.0, 30.0], dtype=torch.float64)

    def first(*arguments):
        return LogNormalPoisson(*arguments).log_prob(counts)

    assert torch.autograd.gradcheck(first, (log_mean, scale), atol=1e-5)
    assert torch.autograd.gradgradcheck(first, (log_mean, scale), atol=1e-5)


def test_probabilities_sum_to_one_and_give_the_declared_moments():
    counts = torch.arange(40_000, dtype=torch.float64)
    for log_mean, scale in [(-2.0, 0.5), (0.0, 0.5), (2.0, 0.8)]:
        distribution = LogNormalPoisson(*torch.tensor([log_mean, scale], dtype=torch.float64))
        probabilities = distribution.log_prob(counts).exp()
        mean = (probabilities * counts).sum()
        assert probabilities.sum().item() == pytest.approx(1, rel=1e-6)
        assert mean.item() == pytest.approx(math.exp(log_mean), rel=1e-5)
        assert distribution.mean.item() == pytest.approx(math.exp(log_mean))
        variance = (probabilities * (counts - mean) ** 2).sum()
        assert variance.item() == pytest.approx(distribution.variance.item(), rel=1e-4)


def test_a_small_scale_is_the_poisson_limit():
    counts, mean = np.array([0, 1, 5, 200]), np.array([0.01, 1.0, 4.0, 220.0])
    limit = LogNormalPoisson(torch.tensor(mean).log(), torch.tensor(1e-6, dtype=torch.float64))
    np.testing.assert_allclose(
        limit.log_prob(torch.tensor(counts)), scipy.stats.poisson.logpmf(counts, mean), rtol=1e-8
    )


def test_it_has_fewer_zeros_and_a_heavier_tail_than_the_negative_binomial_of_the_same_moments():
    log_mean, scale = torch.tensor(1.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    ours = LogNormalPoisson(log_mean, scale)
    other = NegativeBinomial(log_mean, -torch.expm1(scale**2).log())
    torch.testing.assert_close(ours.variance, other.variance)
    zero, large = torch.tensor(0.0), torch.tensor(200.0)
    assert ours.log_prob(zero) < other.log_prob(zero)
    assert ours.log_prob(large) > other.log_prob(large)


@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_moments_of_draws_are_the_declared_ones(scale):
    torch.manual_seed(0)
    distribution = LogNormalPoisson(torch.tensor(2.0), torch.tensor(scale))
    draws = distribution.sample((DRAWS,)).double()
    error = (distribution.variance / DRAWS).sqrt()
    assert abs(draws.mean() - distribution.mean) < 5 * error
    assert abs(draws.mean() - distribution.mean * math.exp(scale**2 / 2)) > 5 * error  # of the log rate's mean
    squares = (draws - distribution.mean) ** 2
    assert abs(squares.mean() - distribution.variance) < 5 * squares.std() / DRAWS**0.5


def test_frequencies_of_draws_are_the_probabilities():
    torch.manual_seed(0)
    distribution, other = (LogNormalPoisson(torch.tensor(0.5), torch.tensor(scale)) for scale in (0.8, 1.0))
    draws, values = distribution.sample((DRAWS,)), torch.arange(8.0)
    found = (draws[:, None] == values).double().mean(0)
    expected, wrong = (each.log_prob(values).exp().double() for each in (distribution, other))
    error = (expected * (1 - expected) / DRAWS).sqrt()
    assert ((found - expected).abs() < 5 * error).all()
    assert ((found - wrong).abs() > 5 * error).any()


def test_values_and_derivatives_are_finite_at_the_ends_of_the_range():
    counts = torch.tensor([0.0, 1.0, 1e6])
    log_mean = torch.tensor([-300.0, -50.0, 0.0, 14.0, 40.0])[:, None, None].requires_grad_()
    scale = torch.tensor([0.01, 1.0, 2.0])[:, None].requires_grad_()
    log_prob = LogNormalPoisson(log_mean, scale).log_prob(counts)
    assert log_prob.isfinite().all()
    assert (log_prob <= 0).all()
    for gradient in torch.autograd.grad(log_prob.sum(), (log_mean, scale)):
        assert gradient.isfinite().all()


def test_shapes_broadcast_expand_and_are_refused():
    distribution = LogNormalPoisson(torch.zeros(3, 1), torch.ones(2))
    assert distribution.batch_shape == (3, 2)
    assert distribution.expand((4, 3, 2)).sample((5,)).shape == (5, 4, 3, 2)
    assert distribution.to_event(1).log_prob(torch.ones(3, 2)).shape == (3,)
    with pytest.raises(ValueError, match=r"expected shapes that broadcast.*log_mean \[3\], scale \[2\]"):
        LogNormalPoisson(torch.zeros(3), torch.ones(2))
    with pytest.raises(ValueError, match="scale"):
        LogNormalPoisson(torch.zeros(2), torch.zeros(2), validate_args=True)
    with pytest.raises(ValueError, match="within the support"):
        LogNormalPoisson(torch.zeros(2), torch.ones(2), validate_args=True).log_prob(torch.tensor([0.5, 1.0]))
