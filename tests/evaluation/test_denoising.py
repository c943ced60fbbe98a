"""Denoised expression is scored on molecules that it has not seen, beside what needs no model."""

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse, stats

import genailab_pyro as glp
from genailab_pyro.data.thinning import thin
from genailab_pyro.evaluation.denoising import (
    denoising_scores,
    interval_coverage,
    neighbour_shares,
    observed_shares,
    poisson_log_likelihood,
    reference_shares,
)


@pytest.fixture(scope="module")
def world():
    """Cells of about 100 molecules, of nearly Poisson noise: else the halves share more than the mean."""
    library, noise = glp.data.LibrarySizes(median=100.0), glp.data.CountNoise(inverse_dispersion=1e3)
    types = glp.data.CellTypes(latent_dim=3, spread=1.0)
    return glp.data.simulate(400, 60, num_types=3, types=types, library=library, noise=noise, seed=0)


def test_the_score_is_scipys_poisson():
    rng = np.random.default_rng(0)
    shares, counts = rng.dirichlet(np.ones(6), 5), rng.poisson(4.0, (5, 6))
    expected = stats.poisson.logpmf(counts, shares * counts.sum(1, keepdims=True)).sum(1)
    np.testing.assert_allclose(poisson_log_likelihood(shares, sparse.csr_matrix(counts)), expected, rtol=1e-10)
    scaled = poisson_log_likelihood(7.0 * shares, sparse.csr_matrix(counts))
    np.testing.assert_allclose(scaled, expected, rtol=1e-10)  # shares need not sum to one


def test_a_gene_of_no_share_has_no_probability():
    counts = sparse.csr_matrix([[1.0, 1.0], [2.0, 0.0]])
    found = poisson_log_likelihood(np.array([[1.0, 0.0], [1.0, 0.0]]), counts)
    assert np.isneginf(found[0])
    assert np.isfinite(found[1])


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        (np.ones((2, 2)), r"shares of the shape of the counts, \(2, 3\), got \(2, 2\)"),
        (np.full((2, 3), -1.0), "are they logarithms"),
        (np.full((2, 3), np.nan), "finite shares"),
    ],
)
def test_other_shares_are_refused(shares, message):
    with pytest.raises(ValueError, match=message):
        poisson_log_likelihood(shares, sparse.csr_matrix(np.ones((2, 3))))


def test_observed_shares_by_hand():
    counts = sparse.csr_matrix([[2.0, 0.0], [1.0, 1.0]])
    found = observed_shares(counts, pseudocounts=4.0)
    np.testing.assert_allclose(found, [[5 / 6, 1 / 6], [4 / 6, 2 / 6]])


def test_the_average_of_neighbours_by_hand():
    """Two groups of three cells: each cell's neighbours are the two of its group."""
    counts = sparse.csr_matrix([[8.0, 0.0]] * 2 + [[7.0, 1.0]] + [[0.0, 8.0]] * 3)
    found = neighbour_shares(counts, num_neighbours=2, pseudocounts=1e-9)
    np.testing.assert_allclose(found, [[23 / 24, 1 / 24]] * 3 + [[0.0, 1.0]] * 3, atol=1e-9)


def test_references_are_chosen_by_what_predicts_best(world):
    one, two = thin(world.adata, seed=0)
    chosen = reference_shares(one.X)
    scores = {name: poisson_log_likelihood(shares, two.X).mean() for name, shares in chosen.items()}
    for number in (5, 60):
        other = poisson_log_likelihood(neighbour_shares(one.X, num_neighbours=number, pseudocounts=1.0), two.X).mean()
        assert scores["k-NN average"] > other - 0.5
    assert scores["k-NN average"] > scores["no denoising"] > scores["mean of all cells"]
    true_shares = world.truth.mean / world.truth.mean.sum(1, keepdims=True)
    assert poisson_log_likelihood(true_shares, two.X).mean() > max(scores.values())


def test_a_model_recovers_molecules_and_the_truth(world):
    one, two = thin(world.adata, seed=0)
    cells = glp.register(one)
    fit = glp.fit(glp.VAE_NB.from_registration(cells, latent_dim=4, dropout=0.1), cells, max_epochs=60, progress=False)
    shares = fit.expression(num_samples=10)
    table = denoising_scores({"VAE_NB": shares}, two, references=one.X)
    assert table.index[0] == "VAE_NB"
    assert set(table.index) == {"VAE_NB", "no denoising", "k-NN average", "mean of all cells"}
    best = poisson_log_likelihood(shares, two.X)
    assert table.loc["VAE_NB", "log_likelihood"] == pytest.approx(best.mean())
    other = best - poisson_log_likelihood(reference_shares(one.X)["k-NN average"], two.X)
    assert table.loc["k-NN average", "difference"] == pytest.approx(-other.mean())
    assert table.loc["k-NN average", "standard_error"] == pytest.approx(other.std(ddof=1) / len(other) ** 0.5)
    truth = world.truth.mean / world.truth.mean.sum(1, keepdims=True)

    def error(found):
        return np.abs(found - truth).mean()

    references = reference_shares(one.X)
    assert error(shares) < min(error(found) for found in references.values())
    low, high = fit.expression_quantiles(quantiles=[0.05, 0.95], num_samples=50)
    assert (low <= high).all()
    assert 0.3 < interval_coverage(low, high, truth) < 1
    # An overconfident interval covers less.
    middle = (low + high) / 2
    narrow = interval_coverage(middle + (low - middle) / 10, middle + (high - middle) / 10, truth)
    assert narrow < interval_coverage(low, high, truth) / 2


def test_coverage_by_hand():
    low, high, truth = np.zeros((2, 2)), np.ones((2, 2)), np.array([[0.0, 1.0], [2.0, -1.0]])
    assert interval_coverage(low, high, truth) == 0.5
    with pytest.raises(ValueError, match="of one shape"):
        interval_coverage(low, high, truth[:1])


def test_nothing_to_score_is_refused(world):
    with pytest.raises(ValueError, match="shares of at least one method"):
        denoising_scores({}, world.adata)
    with pytest.raises(ValueError, match="other than those of the references, got 'no denoising'"):
        denoising_scores({"no denoising": np.ones(world.adata.shape)}, world.adata, references=world.adata.X)


def test_no_zeros_are_needed():
    counts = sparse.csr_matrix(np.ones((4, 3)))
    assert np.isfinite(denoising_scores({"flat": np.ones((4, 3))}, AnnData(counts)).to_numpy()).all()
