"""Gene statistics of sparse counts against dense arithmetic."""

import numpy as np
import pytest
from scipy import sparse

from genailab_pyro.evaluation import GeneStatistics


@pytest.fixture
def counts():
    rng = np.random.default_rng(0)
    dense = rng.poisson(rng.gamma(0.5, 4, 30), (200, 30))
    dense[:, 3] = 0
    dense[:, 4] = 7
    return dense


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int32])
@pytest.mark.parametrize("layout", [sparse.csr_matrix, sparse.csc_matrix])
def test_they_equal_those_of_the_dense_array(counts, dtype, layout):
    found = GeneStatistics.of(layout(counts.astype(dtype)))
    np.testing.assert_allclose(found.mean, counts.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.variance, counts.var(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.zero_fraction, (counts == 0).mean(0), rtol=1e-12)
    assert all(values.shape == (30,) and values.dtype == float for values in found)


def test_stored_zeros_are_zeros():
    stored = sparse.csr_matrix(np.ones((4, 2), dtype=np.float32))
    stored.data[:4] = 0
    np.testing.assert_allclose(GeneStatistics.of(stored).zero_fraction, [0.5, 0.5])


def test_the_variance_of_a_large_and_steady_count_is_not_lost_to_rounding():
    counts = np.tile([[100_000.0], [100_010.0]], (500, 1)).astype(np.float32)
    assert GeneStatistics.of(sparse.csr_matrix(counts)).variance[0] == pytest.approx(25, rel=1e-4)
