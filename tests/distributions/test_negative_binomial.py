"""Values and derivatives of the negative binomial: against 120 digits, scipy, and the laws of probability."""

import copy
import math
import pickle

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.special
import scipy.stats
import torch
from pyro.distributions.torch_distribution import MaskedDistribution

from genailab_pyro.distributions import NegativeBinomial
from genailab_pyro.distributions.formulas import negative_binomial_log_prob

INFINITY = float("inf")


def columns(table, dtype, *names):
    return [torch.tensor(table[name], dtype=dtype) for name in names]


def arguments_of(table, dtype):
    return columns(table, dtype, "counts", "log_mean", "log_inverse_dispersion")


def log_prob_error(table, dtype):
    counts, log_mean, log_theta = arguments_of(table, dtype)
    return (NegativeBinomial(log_mean, log_theta).log_prob(counts).double().numpy() - table["log_prob"]).__abs__()


def largest_term(table):
    x, log_mu, log_theta = table["counts"], table["log_mean"], table["log_inverse_dispersion"]
    softplus = np.logaddexp(0, log_mu - log_theta)
    terms = (x * np.abs(log_mu), scipy.special.gammaln(x + 1), np.exp(log_theta) * softplus, x * softplus)
    return np.maximum.reduce(terms)


def derivatives(table, dtype):
    counts, log_mean, log_theta = arguments_of(table, dtype)
    log_mean.requires_grad_()
    log_theta.requires_grad_()
    total = NegativeBinomial(log_mean, log_theta).log_prob(counts).sum()
    return [gradient.double().numpy() for gradient in torch.autograd.grad(total, (log_mean, log_theta))]


def test_frozen_table_is_what_the_oracle_computes(oracle, table):
    arguments = list(oracle.arguments())
    assert len(arguments) == len(table["counts"]) > 400
    for row in (*range(0, 9), *range(9, len(arguments), 37)):
        stored = [table[name][row] for name in oracle.ARGUMENTS]
        assert stored == list(arguments[row])
        expected = [float(value) for value in oracle.evaluate(*arguments[row])]
        assert [table[name][row] for name in oracle.RESULTS] == pytest.approx(expected, rel=1e-15, abs=0)


def test_table_covers_the_range_of_counts_means_and_inverse_dispersions(table):
    assert table["counts"].min() == 0
    assert table["counts"].max() == 1e5
    assert np.exp(table["log_mean"].min()) < 1.001e-6
    assert np.exp(table["log_mean"].max()) > 0.999e5
    assert np.exp(table["log_inverse_dispersion"].min()) < 1.001e-4
    assert np.exp(table["log_inverse_dispersion"].max()) > 0.999e8


def test_double_precision_agrees_with_the_oracle_to_ten_digits(table):
    assert (log_prob_error(table, torch.float64) <= 1e-10 * np.abs(table["log_prob"])).all()


def test_single_precision_is_exact_up_to_rounding_of_its_largest_term(table):
    error, counts = log_prob_error(table, torch.float32), table["counts"]
    relative = (error <= 1e-5 * np.abs(table["log_prob"])) & (counts <= 1e3)
    absolute = error <= 4 * torch.finfo(torch.float32).eps * largest_term(table)
    assert (relative | absolute).all()


def test_single_precision_keeps_its_digits_at_everyday_counts():
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 20, (2000,), generator=generator).float()
    log_mean, log_theta = 1.5 * torch.randn(2, 2000, generator=generator)
    single = NegativeBinomial(log_mean, log_theta).log_prob(counts)
    double = NegativeBinomial(log_mean.double(), log_theta.double()).log_prob(counts)
    torch.testing.assert_close(single.double(), double, rtol=2.5e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_derivatives_agree_with_the_oracle(table, dtype):
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    scale = 1 + table["counts"] + np.exp(table["log_mean"])
    by_mean, by_theta = derivatives(table, dtype)
    assert (np.abs(by_mean - table["by_log_mean"]) <= tolerance * scale).all()
    assert (np.abs(by_theta - table["by_log_inverse_dispersion"]) <= tolerance * scale).all()


def test_double_precision_agrees_with_scipy_at_moderate_dispersion():
    rng = np.random.default_rng(0)
    mean, theta = np.exp(rng.normal(1, 1.5, (60, 20))), np.exp(rng.normal(0, 1.5, 20))
    counts = rng.poisson(mean * rng.gamma(theta, size=mean.shape) / theta)
    expected = scipy.stats.nbinom.logpmf(counts, theta, theta / (theta + mean))
    actual = NegativeBinomial(torch.tensor(mean).log(), torch.tensor(theta).log()).log_prob(torch.tensor(counts))
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-10)


def test_probability_that_rounds_to_one_is_no_obstacle():
    log_mean, log_theta = torch.tensor(1e4).log(), torch.tensor(1e-4).log()
    with pytest.raises(ValueError, match="probs"):
        dist.NegativeBinomial(log_theta.exp(), probs=torch.sigmoid(log_mean - log_theta), validate_args=True)
    counts = NegativeBinomial(log_mean, log_theta, validate_args=True)
    expected = scipy.stats.nbinom.logpmf([0, 1, 10_000], 1e-4, 1e-4 / (1e-4 + 1e4))
    np.testing.assert_allclose(counts.log_prob(torch.tensor([0, 1, 10_000])), expected, rtol=1e-5)


@pytest.mark.parametrize("theta", [1e5, 1e6, 1e7, 1e8])
def test_large_inverse_dispersion_does_not_cancel_in_single_precision(theta):
    counts = NegativeBinomial(torch.tensor(5.0).log(), torch.tensor(theta).log())
    assert counts.log_prob(torch.tensor(5.0)).item() == pytest.approx(-1.7403, abs=5e-5)


@pytest.mark.parametrize("log_theta", [-INFINITY, -60.0, -9.0, 0.0, 3.0, 18.0, 60.0, INFINITY])
def test_log_prob_never_exceeds_zero_in_single_precision(log_theta):
    mean = torch.logspace(-6, 5, 45)
    counts = torch.cat([torch.arange(40.0), torch.logspace(2, 5, 20).round(), mean.round()])
    log_prob = NegativeBinomial(mean.log()[:, None], torch.tensor(log_theta)).log_prob(counts)
    assert (log_prob <= 0).all()
    assert log_prob.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_infinite_inverse_dispersion_is_the_poisson_limit(dtype):
    mean, counts = torch.tensor([0.01, 1.0, 30.0], dtype=dtype), torch.tensor([0.0, 3.0, 20.0], dtype=dtype)
    limit = NegativeBinomial(mean.log(), torch.full((3,), INFINITY, dtype=dtype))
    poisson = dist.Poisson(mean).log_prob(counts)
    rtol = 3e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(limit.log_prob(counts), poisson, rtol=rtol, atol=rtol)


def test_mean_of_zero_gives_zero_counts_for_certain_and_finite_derivatives():
    log_mean = torch.full((2, 3), -INFINITY, requires_grad=True)
    log_theta = torch.tensor([-9.0, 0.0, 18.0], requires_grad=True)
    zeros, ones = NegativeBinomial(log_mean, log_theta).log_prob(torch.tensor([[0.0], [1.0]]))
    assert (zeros == 0).all()
    assert (ones == -INFINITY).all()
    for gradient in torch.autograd.grad(zeros.sum(), (log_mean, log_theta)):
        assert (gradient == 0).all()


def test_small_means_carry_no_epsilon():
    theta, mean = torch.tensor(2.0, dtype=torch.float64), torch.tensor([1e-3, 1e-9], dtype=torch.float64)
    counts = NegativeBinomial(mean.log(), theta.log())
    torch.testing.assert_close(counts.log_prob(torch.tensor(0.0)), -theta * torch.log1p(mean / theta))
    odds = (counts.log_prob(torch.tensor(1.0)) - counts.log_prob(torch.tensor(0.0))).exp()
    torch.testing.assert_close(odds, mean * theta / (theta + mean))


@pytest.mark.parametrize("theta", [1e5, 1e6, 1e7, 1e8])
def test_derivative_by_log_inverse_dispersion_does_not_cancel_in_single_precision(theta):
    log_theta = torch.tensor(theta).log().requires_grad_()
    log_prob = NegativeBinomial(torch.tensor(5.0).log(), log_theta).log_prob(torch.tensor(5.0))
    assert torch.autograd.grad(log_prob, log_theta)[0].item() == pytest.approx(2.5 / theta, abs=5e-6)


def test_values_and_two_derivatives_are_finite_at_the_ends_of_the_range():
    log_mean = torch.tensor([-INFINITY, -50.0, 0.0, 11.5, 80.0, 200.0])[:, None, None].requires_grad_()
    log_theta = torch.tensor([-INFINITY, -200.0, -9.2, 0.0, 18.4, 60.0, INFINITY])[:, None].requires_grad_()
    counts = torch.tensor([0.0, 1.0, 1e5])
    log_prob = negative_binomial_log_prob(counts, log_mean, log_theta)
    possible = log_prob > -INFINITY
    assert torch.equal(possible, ((counts == 0) | (log_mean > -INFINITY)).expand_as(possible))
    first = torch.autograd.grad(log_prob[possible].sum(), (log_mean, log_theta), create_graph=True)
    second = torch.autograd.grad(sum(gradient.sum() for gradient in first), (log_mean, log_theta))
    assert all(gradient.isfinite().all() for gradient in (*first, *second))


@pytest.mark.parametrize("value", ["counts", "log_mean", "log_inverse_dispersion"])
def test_nan_is_not_hidden(value):
    arguments = {
        "counts": torch.zeros(1),
        "log_mean": torch.zeros(1),
        "log_inverse_dispersion": torch.zeros(1),
    }
    arguments[value] = torch.full((1,), math.nan)
    assert negative_binomial_log_prob(**arguments).isnan().all()


@pytest.mark.parametrize("theta", [0.1, 0.7, 30.0, 1e3, 1e8])
@pytest.mark.parametrize("mean", [1e-3, 0.5, 5.0, 60.0])
def test_probabilities_sum_to_one_and_scores_to_zero(mean, theta):
    log_mean = torch.tensor(mean, dtype=torch.float64).log().requires_grad_()
    log_theta = torch.tensor(theta, dtype=torch.float64).log().requires_grad_()
    total = NegativeBinomial(log_mean, log_theta).log_prob(torch.arange(40_000)).exp().sum()
    assert total.item() == pytest.approx(1, rel=1e-10)
    for score in torch.autograd.grad(total, (log_mean, log_theta)):
        assert abs(score.item()) < 1e-10 * (1 + mean)


def test_gradcheck_to_second_order_and_forward_mode(gradient_arguments):
    counts, log_mean, log_theta = gradient_arguments
    for arguments in ((counts, log_mean, log_theta), ((counts + 1).requires_grad_(), log_mean, log_theta)):
        assert torch.autograd.gradcheck(negative_binomial_log_prob, arguments, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(negative_binomial_log_prob, (counts, log_mean, log_theta))


def test_per_particle_gradients_by_vmap_are_those_of_a_loop(gradient_arguments):
    counts, log_mean, log_theta = (argument.detach() for argument in gradient_arguments)

    def total(log_mean, log_theta):
        return NegativeBinomial(log_mean, log_theta, validate_args=False).log_prob(counts).sum()

    by_mean, by_theta = torch.func.vmap(torch.func.grad(total, (0, 1)), (0, None))(log_mean, log_theta)
    for particle in range(len(log_mean)):
        expected = torch.func.grad(total, (0, 1))(log_mean[particle], log_theta)
        torch.testing.assert_close((by_mean[particle], by_theta[particle]), expected)


def test_jacobian_in_both_modes_and_hessian_agree(gradient_arguments):
    counts, log_mean, log_theta = (argument.detach() for argument in gradient_arguments)

    def per_count(log_theta):
        return negative_binomial_log_prob(counts, log_mean, log_theta)

    reverse, forward = torch.func.jacrev(per_count)(log_theta), torch.func.jacfwd(per_count)(log_theta)
    assert reverse.shape == (*log_mean.shape, *log_theta.shape)
    torch.testing.assert_close(reverse, forward)
    hessian = torch.func.hessian(lambda value: per_count(value).sum())(log_theta)
    assert torch.equal(hessian, hessian.diag().diag())
    assert (hessian.diag() != 0).all()


def test_shared_inverse_dispersions_give_what_expanded_ones_give(gradient_arguments):
    counts, log_mean, log_theta = gradient_arguments
    shared = NegativeBinomial(log_mean, log_theta).log_prob(counts)
    expanded = NegativeBinomial(log_mean, log_theta.expand_as(log_mean).contiguous()).log_prob(counts)
    assert torch.equal(shared, expanded)
    (gradient,) = torch.autograd.grad(shared.sum(), log_theta, retain_graph=True)
    (expected,) = torch.autograd.grad(expanded.sum(), log_theta)
    torch.testing.assert_close(gradient, expected)


def test_particles_share_what_does_not_depend_on_them(gradient_arguments):
    counts, log_mean, log_theta = gradient_arguments
    together = NegativeBinomial(log_mean, log_theta).log_prob(counts)
    for particle, row in enumerate(together):
        alone = log_mean[particle]
        torch.testing.assert_close(row, NegativeBinomial(alone, log_theta).log_prob(counts), rtol=1e-12, atol=1e-14)
        # The same to the bit at the same place of the tensor: a processor may round its ends by other instructions.
        again = NegativeBinomial(alone.expand_as(log_mean).contiguous(), log_theta).log_prob(counts)
        assert torch.equal(row, again[particle])


def test_mean_is_exactly_the_exponential_and_variance_overflows_only_with_its_value():
    log_mean, log_theta = (
        torch.tensor([-INFINITY, -14.0, 0.0, 11.5, 50.0]),
        torch.tensor([-9.0, 0.0, 18.0, 60.0]),
    )
    counts = NegativeBinomial(log_mean[:, None], log_theta)
    assert torch.equal(counts.mean, log_mean.exp()[:, None].expand(5, 4))
    exact = log_mean.double().exp()[:, None] * (1 + (log_mean.double()[:, None] - log_theta).exp())
    torch.testing.assert_close(counts.variance, exact.float(), rtol=2e-5, atol=0)
    assert (counts.variance == INFINITY).tolist() == (exact > torch.finfo(torch.float32).max).tolist()


def test_parameters_are_those_of_the_parent():
    log_mean, log_theta = torch.randn(4, 3), torch.randn(3)
    counts = NegativeBinomial(log_mean, log_theta)
    assert isinstance(counts, dist.NegativeBinomial)
    torch.testing.assert_close(counts.total_count, log_theta.exp().expand(4, 3))
    torch.testing.assert_close(counts.logits, log_mean - log_theta)
    parent = dist.NegativeBinomial(counts.total_count, logits=counts.logits)
    torch.testing.assert_close(counts.mean, parent.mean)
    torch.testing.assert_close(counts.variance, parent.variance)
    torch.testing.assert_close(counts.log_prob(torch.ones(3)), parent.log_prob(torch.ones(3)))


def test_declaration_survives_expand_event_and_mask():
    counts = NegativeBinomial(torch.randn(4, 3), torch.randn(3))
    larger = counts.expand((2, 4, 3))
    assert larger.batch_shape == larger.log_mean.shape == larger.log_inverse_dispersion.shape == (2, 4, 3)
    assert torch.equal(larger.log_mean[1], counts.log_mean)
    assert larger.log_prob(torch.zeros(3)).shape == (2, 4, 3)
    event = larger.to_event(1).expand((5, 2, 4))
    assert isinstance(event.base_dist, NegativeBinomial)
    assert event.base_dist.log_inverse_dispersion.shape == (5, 2, 4, 3)
    torch.testing.assert_close(event.log_prob(torch.ones(3))[3, 1], counts.log_prob(torch.ones(3)).sum(-1))
    masked = counts.mask(torch.tensor([True, False, True])).expand((2, 4, 3))
    assert isinstance(masked, MaskedDistribution)
    assert masked.base_dist.log_mean.shape == (2, 4, 3)
    assert (masked.log_prob(torch.ones(3))[..., 1] == 0).all()


@pytest.mark.parametrize("again", [copy.deepcopy, lambda counts: pickle.loads(pickle.dumps(counts))])
def test_copies_are_equal(again):
    counts = NegativeBinomial(torch.randn(4, 3), torch.randn(3)).expand((2, 4, 3))
    assert torch.equal(again(counts).log_prob(torch.ones(3)), counts.log_prob(torch.ones(3)))


def test_whole_numbers_of_integer_type_are_counts_too():
    counts = NegativeBinomial(torch.zeros(3), torch.zeros(3))
    log_prob = counts.log_prob(torch.tensor([0, 1, 7]))
    assert log_prob.dtype == torch.float32
    assert torch.equal(log_prob, counts.log_prob(torch.tensor([0.0, 1.0, 7.0])))


def test_counts_of_double_precision_are_not_rounded_to_single():
    odd = torch.tensor(2.0**24 + 1, dtype=torch.float64)
    counts = NegativeBinomial(torch.tensor(10.0), torch.tensor(2.0))
    assert counts.log_prob(odd).dtype == torch.float64
    assert counts.log_prob(odd) < counts.log_prob(odd - 1)


def test_values_are_checked_only_while_validation_is_on():
    log_mean, log_theta, wrong = torch.zeros(2), torch.zeros(2), torch.tensor([-1.0, 0.5])
    with pytest.raises(ValueError, match="support"):
        NegativeBinomial(log_mean, log_theta, validate_args=True).log_prob(wrong)
    NegativeBinomial(log_mean, log_theta, validate_args=False).expand((2, 2)).log_prob(wrong)


@pytest.mark.parametrize("name", ["log_mean", "log_inverse_dispersion"])
def test_nan_argument_is_refused_by_its_name(name):
    arguments = {"log_mean": torch.zeros(2), "log_inverse_dispersion": torch.zeros(2)}
    arguments[name] = torch.full((2,), math.nan)
    with pytest.raises(ValueError, match=f"parameter {name} "):
        NegativeBinomial(**arguments, validate_args=True)


def test_shapes_that_do_not_broadcast_are_named():
    with pytest.raises(ValueError, match=r"got log_mean \[4, 3\], log_inverse_dispersion \[4\]"):
        NegativeBinomial(torch.zeros(4, 3), torch.zeros(4))
