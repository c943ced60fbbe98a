"""Draws follow the log-probability, at every corner of the parameters; each check rejects a planted error."""

import pyro
import pytest
import torch

from genailab_pyro.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial

INFINITY = float("inf")
DRAWS = 40_000
CASES = [(0.3, 0.05), (5.0, 0.5), (40.0, 3.0), (2.0, 50.0), (8.0, 1e8), (500.0, 1e-3)]


def declared(mean, theta, gate_logits=None, dtype=torch.float32):
    log_mean, log_theta = (torch.tensor(value, dtype=dtype).log() for value in (mean, theta))
    if gate_logits is None:
        return NegativeBinomial(log_mean, log_theta)
    return ZeroInflatedNegativeBinomial(log_mean, log_theta, gate_logits=torch.tensor(gate_logits, dtype=dtype))


def draws(counts, shape=(DRAWS,), seed=0):
    with torch.random.fork_rng():
        pyro.set_rng_seed(seed)
        return counts.sample(shape)


def chi_square_excess(sample, counts):
    """Pearson's statistic over twenty bins of like probability, in standard deviations above its mean."""
    support = torch.arange(int(sample.max()) + 1, dtype=sample.dtype)
    cumulative = counts.log_prob(support).double().exp().cumsum(0)
    bins = (cumulative * 20).floor().clamp(max=19).long()
    observed = torch.bincount(bins[sample.long()], minlength=20).double()
    expected = torch.diff(cumulative, prepend=cumulative.new_zeros(1))
    expected = torch.zeros(20, dtype=torch.float64).index_add(0, bins, expected)
    expected[bins[-1]] += 1 - cumulative[-1]
    used = expected * len(sample) >= 5
    statistic = ((observed - expected * len(sample))[used] ** 2 / (expected[used] * len(sample))).sum()
    freedom = max(int(used.sum()) - 1, 1)
    return ((statistic - freedom) / (2 * freedom) ** 0.5).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("mean", "theta"), CASES)
def test_draws_follow_the_log_probability(mean, theta, dtype):
    counts = declared(mean, theta, dtype=dtype)
    sample = draws(counts)
    assert sample.dtype == dtype
    assert chi_square_excess(sample, counts) < 5


@pytest.mark.parametrize(("mean", "theta"), CASES)
def test_zero_inflated_draws_follow_the_log_probability(mean, theta):
    counts = declared(mean, theta, -1.0)
    assert chi_square_excess(draws(counts), counts) < 5


@pytest.mark.parametrize("wrong", [(5.0, 0.6, -1.0), (5.5, 0.5, -1.0), (5.0, 0.5, -0.8)])
def test_draws_reject_a_log_probability_of_other_parameters(wrong):
    sample = draws(declared(5.0, 0.5, -1.0))
    assert chi_square_excess(sample, declared(*wrong)) > 5


@pytest.mark.parametrize("gate_logits", [None, 0.5])
@pytest.mark.parametrize(("mean", "theta"), CASES[:-1])
def test_moments_of_draws_are_the_declared_ones(mean, theta, gate_logits):
    counts = declared(mean, theta, gate_logits)
    sample = draws(counts).double()
    error = (sample.mean() - counts.mean) / (counts.variance / DRAWS).sqrt()
    assert abs(error) < 5
    squares = (sample - counts.mean) ** 2
    assert abs(squares.mean() - counts.variance) < 5 * squares.std() / DRAWS**0.5
    assert abs(sample.mean() - 1.5 * counts.mean) > 5 * (counts.variance / DRAWS).sqrt()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("theta", [1e-4, 1.0, 1e8, INFINITY])
def test_mean_of_zero_draws_zeros(theta, dtype):
    assert (draws(declared(0.0, theta, dtype=dtype), (100,)) == 0).all()


@pytest.mark.parametrize("theta", [1e8, 1e30, INFINITY])
def test_large_inverse_dispersion_draws_poisson_counts(theta):
    sample = draws(declared(20.0, theta)).double()
    standard_error = (2 / DRAWS) ** 0.5
    assert abs(sample.var() / sample.mean() - 1) < 5 * standard_error
    overdispersed = draws(declared(20.0, 200.0)).double()
    assert abs(overdispersed.var() / overdispersed.mean() - 1) > 5 * standard_error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_are_finite_counts_over_the_whole_range(dtype):
    log_mean = torch.tensor([1e-6, 1.0, 1e5], dtype=dtype).log()[:, None]
    log_theta = torch.tensor([1e-30, 1e-4, 1.0, 1e8, 1e30], dtype=dtype).log()
    sample = draws(NegativeBinomial(log_mean, log_theta), (500,))
    assert sample.isfinite().all()
    assert (sample >= 0).all()
    assert (sample == sample.round()).all()


def test_leading_sample_shape_and_expansion_give_independent_draws():
    log_mean, log_theta = torch.full((4, 3), 2.0), torch.zeros(3)
    for counts in (
        NegativeBinomial(log_mean, log_theta),
        ZeroInflatedNegativeBinomial(log_mean, log_theta, gate_logits=torch.zeros(3)),
    ):
        for sample in (draws(counts, (6, 5)), draws(counts.expand((6, 5, 4, 3)), ())):
            assert sample.shape == (6, 5, 4, 3)
            assert not torch.equal(sample[0], sample[1])
            assert not torch.equal(sample[..., 0], sample[..., 1])


def test_same_seed_of_the_global_generator_gives_the_same_draws():
    counts = declared(5.0, 0.5, 0.0)
    assert torch.equal(draws(counts, seed=1), draws(counts, seed=1))
    assert not torch.equal(draws(counts, seed=1), draws(counts, seed=2))
