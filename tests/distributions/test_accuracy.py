"""Both forms of the log-probabilities against 120 digits, at drawn shapes, densities and parameters."""

import functools

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.special
import torch

from genailab_pyro.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from genailab_pyro.sparse import CountTensor, Nonzeros

CASES = {  # seed: cells, genes, part of the counts that is not zero
    0: (7, 9, 0.02),
    1: (1, 40, 0.1),
    2: (9, 6, 0.25),
    3: (5, 12, 0.45),
    4: (30, 1, 0.5),
    5: (6, 8, 0.6),
}
EPS = torch.finfo(torch.float32).eps

seeds = pytest.mark.parametrize("seed", CASES)
forms = pytest.mark.parametrize("form", ["sparse", "dense"])
precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])


def drawn(seed):
    """Counts, log means and gates [cells, genes] and log inverse dispersions [genes], of single precision."""
    cells, genes, density = CASES[seed]
    rng = np.random.default_rng(seed)
    size = max(1, round(density * cells * genes))
    values = np.floor(10 ** rng.uniform(0, 5, size))
    values[: size // 3] = 1 + rng.poisson(1, size // 3)
    counts = np.zeros(cells * genes)
    counts[rng.choice(len(counts), size, replace=False)] = values
    log_mean = np.log(10) * rng.uniform(-4, 4, (cells, genes))
    log_theta = np.log(10) * rng.uniform(-3, 6, genes)
    rounded = (
        item.astype(np.float32).astype(float) for item in (log_mean, log_theta, rng.normal(-1, 5, (cells, genes)))
    )
    return counts.reshape(cells, genes), *rounded


@pytest.fixture(scope="session")
def exact(oracle):
    @functools.cache
    def evaluated(seed):
        arguments = np.broadcast_arrays(*drawn(seed))
        rows = [oracle.evaluate(*row) for row in zip(*(item.ravel() for item in arguments), strict=True)]
        columns = np.array(rows, dtype=float).T.reshape(-1, *arguments[0].shape)
        return dict(zip(oracle.ARGUMENTS, arguments, strict=True)) | dict(zip(oracle.RESULTS, columns, strict=True))

    return evaluated


def computed(seed, form, dtype, family):
    """Log-probabilities and their derivatives by log mean, log inverse dispersion and gate."""
    arguments = [torch.tensor(item, dtype=dtype) for item in np.broadcast_arrays(*drawn(seed))]
    shape = arguments[0].shape
    if form == "sparse":  # it sums over genes: of one gene each, every term is seen
        arguments = [item.reshape(-1, 1) for item in arguments]
    counts, *leaves = arguments[: 3 if family == "plain" else 4]
    log_mean, log_theta, *gate_logits = (item.requires_grad_() for item in leaves)
    if family == "plain":
        distribution = NegativeBinomial(log_mean, log_theta)
    else:
        distribution = ZeroInflatedNegativeBinomial(log_mean, log_theta, gate_logits=gate_logits[0])
    if form == "sparse":
        counts = CountTensor.of(counts, Nonzeros.of(sp.csr_matrix(counts.numpy())))
        distribution = distribution.to_event(1)
    log_prob = distribution.log_prob(counts)
    gradients = torch.autograd.grad(log_prob.sum(), leaves)
    return [item.detach().double().numpy().reshape(shape) for item in (log_prob, *gradients)]


def scale(row):
    return 1 + row["counts"] + np.exp(row["log_mean"])


def largest_term(row):
    x, log_mean, log_theta = row["counts"], row["log_mean"], row["log_inverse_dispersion"]
    softplus = np.logaddexp(0, log_mean - log_theta)
    terms = (x * np.abs(log_mean), scipy.special.gammaln(x + 1), np.exp(log_theta) * softplus, x * softplus)
    return np.maximum.reduce(terms)


def passed_on(row):
    """Derivative of the log-probability with extra zeros by that without them."""
    shared = scipy.special.expit(row["log_prob"] - row["gate_logits"])
    return np.where(row["counts"] == 0, shared, 1)


def test_cases_cover_the_densities_counts_and_parameters():
    columns = zip(*map(drawn, CASES), strict=True)
    counts, log_mean, log_theta, _ = (np.concatenate([item.ravel() for item in column]) for column in columns)
    density = [(drawn(seed)[0] > 0).mean() for seed in CASES]
    assert min(density) < 0.025
    assert max(density) > 0.58
    assert counts.max() > 5e4
    assert {0, 1, 2} <= {*counts}
    assert np.exp([log_mean.min(), log_theta.min()]).max() < 5e-3
    assert np.exp([log_mean.max(), log_theta.max()]).min() > 5e3
    assert len(counts) < 400


@seeds
@forms
def test_double_precision_has_ten_digits(seed, form, exact):
    row = exact(seed)
    np.testing.assert_allclose(computed(seed, form, torch.float64, "plain")[0], row["log_prob"], rtol=1e-10, atol=0)
    inflated = computed(seed, form, torch.float64, "inflated")[0]
    np.testing.assert_allclose(inflated, row["zero_inflated"], rtol=1e-10, atol=1e-15)


@seeds
@forms
def test_single_precision_is_exact_up_to_rounding_of_its_largest_term(seed, form, exact):
    row = exact(seed)
    error = np.abs(computed(seed, form, torch.float32, "plain")[0] - row["log_prob"])
    small = row["counts"] <= 1e3
    assert (error[small] <= 1e-5 * np.abs(row["log_prob"][small])).all()
    assert (error[~small] <= 4 * EPS * largest_term(row)[~small]).all()


@seeds
@forms
def test_extra_zeros_add_no_error_in_single_precision(seed, form, exact):
    row = exact(seed)
    of_counts = np.abs(computed(seed, form, torch.float32, "plain")[0] - row["log_prob"])
    error = np.abs(computed(seed, form, torch.float32, "inflated")[0] - row["zero_inflated"])
    terms = 1 + np.abs(row["zero_inflated"]) + np.abs(row["log_prob"])
    if form == "sparse":
        terms = terms + np.abs(row["gate_logits"])
    assert (error <= of_counts + 4 * EPS * terms).all()


@seeds
@forms
@precisions
def test_derivatives_by_mean_and_inverse_dispersion(seed, form, dtype, exact):
    row = exact(seed)
    allowed = (1e-5 if dtype == torch.float32 else 1e-10) * scale(row)
    for family, factor in (("plain", 1), ("inflated", passed_on(row))):
        _, by_mean, by_theta, *_ = computed(seed, form, dtype, family)
        assert (np.abs(by_mean - factor * row["by_log_mean"]) <= allowed).all()
        assert (np.abs(by_theta - factor * row["by_log_inverse_dispersion"]) <= allowed).all()


@seeds
@forms
@precisions
def test_derivatives_by_gate(seed, form, dtype, exact):
    rtol, atol = (1e-4, 1e-30) if dtype == torch.float32 else (1e-10, 1e-300)
    if form == "sparse":  # of the sum over genes: small terms are exact to the rounding of one
        atol = 4 * torch.finfo(dtype).eps
    by_gate = computed(seed, form, dtype, "inflated")[3]
    np.testing.assert_allclose(by_gate, exact(seed)["by_gate_logits"], rtol=rtol, atol=atol)


@seeds
def test_derivative_by_an_inverse_dispersion_shared_by_cells_is_the_sum(seed, exact):
    row = exact(seed)
    counts, log_mean, log_theta, _ = (torch.tensor(item) for item in drawn(seed))
    counts = CountTensor.of(counts, Nonzeros.of(sp.csr_matrix(counts.numpy())))
    log_prob = NegativeBinomial(log_mean, log_theta.requires_grad_()).log_prob(counts)
    (gradient,) = torch.autograd.grad(log_prob.sum(), log_theta)
    error = np.abs(gradient.numpy() - row["by_log_inverse_dispersion"].sum(0))
    assert (error <= 1e-10 * scale(row).sum(0)).all()
