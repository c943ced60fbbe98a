"""Values and derivatives of the zero-inflated negative binomial, most of all at gates that saturate."""

import copy
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from genailab_pyro.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial

INFINITY = float("inf")


def from_table(table, dtype):
    names = ("counts", "log_mean", "log_inverse_dispersion", "gate_logits")
    counts, log_mean, log_theta, gate_logits = (torch.tensor(table[name], dtype=dtype) for name in names)
    gate_logits.requires_grad_()
    return gate_logits, ZeroInflatedNegativeBinomial(log_mean, log_theta, gate_logits=gate_logits).log_prob(counts)


def test_double_precision_agrees_with_the_oracle_to_ten_digits(table):
    gate_logits, log_prob = from_table(table, torch.float64)
    np.testing.assert_allclose(log_prob.detach(), table["zero_inflated"], rtol=1e-10, atol=1e-15)
    (gradient,) = torch.autograd.grad(log_prob.sum(), gate_logits)
    np.testing.assert_allclose(gradient, table["by_gate_logits"], rtol=1e-10, atol=1e-300)


def test_single_precision_adds_no_error_to_that_of_the_counts(table):
    gate_logits, log_prob = from_table(table, torch.float32)
    log_mean, log_theta = (torch.tensor(table[name]) for name in ("log_mean", "log_inverse_dispersion"))
    exact = NegativeBinomial(log_mean, log_theta).log_prob(torch.tensor(table["counts"])).float().double()
    single = NegativeBinomial(log_mean.float(), log_theta.float()).log_prob(torch.tensor(table["counts"]).float())
    allowed = (single - exact).abs().numpy() + 1e-6 * np.abs(table["zero_inflated"]) + 1e-7 * np.abs(exact.numpy())
    assert (np.abs(log_prob.detach().double().numpy() - table["zero_inflated"]) <= allowed + 1e-7).all()
    (gradient,) = torch.autograd.grad(log_prob.sum(), gate_logits)
    np.testing.assert_allclose(gradient, table["by_gate_logits"], rtol=1e-4, atol=1e-30)


def test_closed_gate_leaves_the_negative_binomial():
    log_mean, log_theta, counts = torch.randn(4, 3), torch.randn(3), torch.tensor([0.0, 1.0, 30.0])
    closed = ZeroInflatedNegativeBinomial(log_mean, log_theta, gate_logits=torch.tensor(-200.0))
    plain = NegativeBinomial(log_mean, log_theta)
    assert torch.equal(closed.log_prob(counts), plain.log_prob(counts))
    assert torch.equal(closed.mean, plain.mean)
    assert torch.equal(closed.variance, plain.variance)


def test_open_gate_makes_zeros_certain_and_counts_as_unlikely_as_the_gate_says():
    log_mean, log_theta, counts = torch.zeros(3), torch.zeros(3), torch.tensor([0.0, 1.0, 30.0])
    opened = ZeroInflatedNegativeBinomial(log_mean, log_theta, gate_logits=torch.tensor(200.0))
    expected = NegativeBinomial(log_mean, log_theta).log_prob(counts) - 200
    expected[0] = 0
    torch.testing.assert_close(opened.log_prob(counts), expected)


@pytest.mark.parametrize("gate_logits", [-INFINITY, -200.0, -20.0, 0.0, 20.0, 200.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_two_derivatives_are_finite_at_every_gate(gate_logits, dtype):
    log_mean = torch.tensor([-50.0, 0.0, 11.5, 50.0], dtype=dtype)[:, None, None].requires_grad_()
    log_theta = torch.tensor([-9.2, 0.0, 18.4], dtype=dtype)[:, None].requires_grad_()
    gate = torch.tensor(gate_logits, dtype=dtype).requires_grad_()
    counts = torch.tensor([0.0, 1.0, 1e5], dtype=dtype)
    log_prob = ZeroInflatedNegativeBinomial(log_mean, log_theta, gate_logits=gate).log_prob(counts)
    assert log_prob.isfinite().all()
    assert (log_prob <= 0).all()
    leaves = (log_mean, log_theta, gate)
    first = torch.autograd.grad(log_prob.sum(), leaves, create_graph=True)
    second = torch.autograd.grad(sum(gradient.sum() for gradient in first), leaves)
    assert all(gradient.isfinite().all() for gradient in (*first, *second))


def test_mean_of_zero_gives_zero_counts_for_certain_and_finite_derivatives():
    leaves = [torch.tensor(value, requires_grad=True) for value in (-INFINITY, 0.0, -3.0)]
    counts = ZeroInflatedNegativeBinomial(leaves[0], leaves[1], gate_logits=leaves[2])
    zero, one = counts.log_prob(torch.tensor([0.0, 1.0]))
    assert zero == 0
    assert one == -INFINITY
    assert all(gradient == 0 for gradient in torch.autograd.grad(zero, leaves))


@pytest.mark.parametrize("gate_logits", [-6.0, 0.0, 4.0])
def test_probabilities_sum_to_one_and_scores_to_zero(gate_logits):
    leaves = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (1.5, -0.5, gate_logits)]
    counts = ZeroInflatedNegativeBinomial(leaves[0], leaves[1], gate_logits=leaves[2])
    total = counts.log_prob(torch.arange(5000)).exp().sum()
    assert total.item() == pytest.approx(1, rel=1e-10)
    assert all(abs(score.item()) < 1e-10 for score in torch.autograd.grad(total, leaves))


def test_moments_are_those_of_the_probabilities():
    arguments = [torch.tensor(value, dtype=torch.float64) for value in (1.5, -0.5, 0.7)]
    counts = ZeroInflatedNegativeBinomial(arguments[0], arguments[1], gate_logits=arguments[2])
    support = torch.arange(5000, dtype=torch.float64)
    probabilities = counts.log_prob(support).exp()
    mean = (probabilities * support).sum()
    torch.testing.assert_close(counts.mean, mean)
    torch.testing.assert_close(counts.variance, (probabilities * (support - mean) ** 2).sum())


def test_variance_does_not_overflow_before_its_value():
    closed = torch.tensor(-88.0)
    counts = ZeroInflatedNegativeBinomial(torch.tensor(60.0), torch.tensor(44.0), gate_logits=closed)
    assert counts.variance.item() == pytest.approx(math.exp(76), rel=1e-4)


def test_gradcheck_to_second_order_and_forward_mode(gradient_arguments):
    counts, log_mean, log_theta = gradient_arguments
    gate_logits = torch.tensor([-3.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64, requires_grad=True)

    def log_prob(log_mean, log_theta, gate_logits):
        return ZeroInflatedNegativeBinomial(log_mean, log_theta, gate_logits=gate_logits).log_prob(counts)

    leaves = (log_mean, log_theta, gate_logits)
    assert torch.autograd.gradcheck(log_prob, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(log_prob, leaves)


def test_per_particle_gradients_by_vmap_are_those_of_a_loop(gradient_arguments):
    counts, log_mean, log_theta = (argument.detach() for argument in gradient_arguments)
    gate_logits = torch.tensor([[-3.0, -1.0, 0.0, 1.0, 2.0], [200.0, -200.0, 1.0, 0.0, 3.0]]).double()

    def total(log_mean, log_theta, gate_logits):
        counts_of = ZeroInflatedNegativeBinomial(log_mean, log_theta, gate_logits=gate_logits, validate_args=False)
        return counts_of.log_prob(counts).sum()

    gradient = torch.func.grad(total, (0, 1, 2))
    together = torch.func.vmap(gradient, (0, None, 0))(log_mean, log_theta, gate_logits)
    for particle in range(2):
        expected = gradient(log_mean[particle], log_theta, gate_logits[particle])
        torch.testing.assert_close(tuple(part[particle] for part in together), expected)


def test_moderate_gates_agree_with_pyro():
    log_mean, log_theta, gate_logits = (
        torch.randn(4, 3).double(),
        torch.randn(3).double(),
        torch.randn(3).double(),
    )
    ours = ZeroInflatedNegativeBinomial(log_mean, log_theta, gate_logits=gate_logits)
    theirs = dist.ZeroInflatedNegativeBinomial(log_theta.exp(), logits=log_mean - log_theta, gate_logits=gate_logits)
    assert isinstance(ours, dist.ZeroInflatedNegativeBinomial)
    for name in ("total_count", "logits", "gate", "mean", "variance"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name).expand(4, 3))
    for counts in torch.tensor([0.0, 1.0, 12.0], dtype=torch.float64):
        torch.testing.assert_close(ours.log_prob(counts), theirs.log_prob(counts))


def test_declaration_survives_expand_event_mask_and_copy():
    counts = ZeroInflatedNegativeBinomial(torch.randn(4, 3), torch.randn(3), gate_logits=torch.randn(3))
    larger = copy.deepcopy(counts).expand((2, 4, 3))
    for name in ("log_mean", "log_inverse_dispersion", "gate_logits"):
        assert getattr(larger, name).shape == (2, 4, 3)
        assert torch.equal(getattr(larger, name)[1], getattr(counts, name))
    zeros = torch.zeros(3)
    event = larger.to_event(1).expand((5, 2, 4))
    assert event.base_dist.gate_logits.shape == (5, 2, 4, 3)
    torch.testing.assert_close(event.log_prob(zeros)[3, 1], counts.log_prob(zeros).sum(-1))
    masked = counts.mask(torch.tensor([True, False, True]))
    assert torch.equal(masked.base_dist.log_inverse_dispersion, counts.log_inverse_dispersion)
    assert (masked.log_prob(zeros)[..., 1] == 0).all()


def test_it_expands_after_its_gate_was_read_or_sampled():
    counts = ZeroInflatedNegativeBinomial(torch.zeros(3), torch.zeros(3), gate_logits=torch.zeros(3))
    counts.sample()
    assert torch.equal(counts.gate, torch.full((3,), 0.5))
    assert counts.expand((2, 3)).log_prob(torch.ones(3)).shape == (2, 3)


def test_values_are_checked_only_while_validation_is_on():
    arguments, wrong = (torch.zeros(2), torch.zeros(2)), torch.tensor([-1.0, 0.5])
    with pytest.raises(ValueError, match="support"):
        ZeroInflatedNegativeBinomial(*arguments, gate_logits=torch.zeros(2), validate_args=True).log_prob(wrong)
    ZeroInflatedNegativeBinomial(*arguments, gate_logits=torch.zeros(2), validate_args=False).log_prob(wrong)


@pytest.mark.parametrize("name", ["log_mean", "log_inverse_dispersion", "gate_logits"])
def test_nan_argument_is_refused_by_its_name(name):
    arguments = {key: torch.zeros(2) for key in ("log_mean", "log_inverse_dispersion", "gate_logits")}
    arguments[name] = torch.full((2,), math.nan)
    with pytest.raises(ValueError, match=f"parameter {name} "):
        ZeroInflatedNegativeBinomial(**arguments, validate_args=True)


def test_shapes_that_do_not_broadcast_are_named():
    with pytest.raises(ValueError, match=r"log_inverse_dispersion \[3\], gate_logits \[4\]"):
        ZeroInflatedNegativeBinomial(torch.zeros(4, 3), torch.zeros(3), gate_logits=torch.zeros(4))
