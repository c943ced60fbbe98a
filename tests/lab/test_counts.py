"""Shapes of the negative binomial beside the counts of a gene."""

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse, stats

from genailab_pyro.lab.counts import (
    Moments,
    count_distribution,
    gene_counts,
    matching,
    moments_of,
    observed_moments,
    probabilities,
    shares,
)


def test_the_probabilities_are_those_of_scipy():
    mean, theta, gate = 3.0, 0.7, 0.25
    expected = stats.nbinom.pmf(np.arange(21), theta, theta / (theta + mean))
    np.testing.assert_allclose(probabilities(count_distribution(mean, theta), 20), expected, rtol=1e-6)
    inflated = (1 - gate) * expected + gate * (np.arange(21) == 0)
    np.testing.assert_allclose(probabilities(count_distribution(mean, theta, gate), 20), inflated, rtol=1e-6)


def test_the_moments_are_those_of_the_probabilities():
    found = moments_of(count_distribution(3.0, 2.0, 0.25))
    chances, counts = probabilities(count_distribution(3.0, 2.0, 0.25), 300), np.arange(301)
    mean = chances @ counts
    assert found.mean == pytest.approx(mean)
    assert found.variance == pytest.approx(chances @ (counts - mean) ** 2)
    assert found.zeros == pytest.approx(chances[0])
    assert moments_of(count_distribution(3.0, 2.0)).variance == pytest.approx(3 + 9 / 2)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_the_counts_of_a_gene_are_its_column(form):
    adata = AnnData(form(np.array([[0.0, 3.0], [2.0, 0.0]])))
    adata.var_names = ["A", "B"]
    assert gene_counts(adata, "B").tolist() == [3.0, 0.0]
    with pytest.raises(KeyError, match=r"expected a gene among adata\.var_names, got 'C'; choose one such as 'A'"):
        gene_counts(adata, "C")


def test_matching_gives_back_what_the_counts_were_drawn_from():
    assert matching(moments_of(count_distribution(3.0, 0.7))) == pytest.approx((3.0, 0.7))
    assert matching(Moments(1.0, 0.9, 0.4)) == (1.0, float("inf"))


def test_observed_shares_and_moments():
    counts = np.array([0.0, 0.0, 1.0, 5.0])
    assert shares(counts, 5).tolist() == [0.5, 0.25, 0, 0, 0, 0.25]
    assert observed_moments(counts) == Moments(1.5, counts.var(ddof=1), 0.5)


@pytest.mark.parametrize("wrong", [(0.0, 1.0, 0.0), (1.0, -1.0, 0.0), (1.0, 1.0, 1.0), (1.0, float("inf"), 0.0)])
def test_what_is_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=r"expected mean and inverse_dispersion above zero.*gate in \[0, 1\)"):
        count_distribution(*wrong)
