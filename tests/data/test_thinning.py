"""Two halves of the molecules: together they are the counts, and they know nothing of each other."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from genailab_pyro.data.thinning import thin


def cells(matrix):
    names = [f"cell{i}" for i in range(matrix.shape[0])]
    return AnnData(matrix, obs=pd.DataFrame({"batch": ["b1"] * len(names)}, index=names))


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_the_halves_are_the_counts_together(form):
    counts = np.random.default_rng(0).poisson(3.0, (30, 12)).astype(np.float32)
    whole = cells(form(counts))
    one, other = thin(whole, 0.3, seed=1)
    np.testing.assert_array_equal((one.X + other.X).toarray(), counts)
    assert one.obs["batch"].tolist() == ["b1"] * 30
    np.testing.assert_array_equal(np.asarray(whole.X.todense() if sparse.issparse(whole.X) else whole.X), counts)
    assert (one.X != thin(whole, 0.3, seed=1)[0].X).nnz == 0
    assert (one.X != thin(whole, 0.3, seed=2)[0].X).nnz > 0


def test_halves_of_poisson_counts_are_poisson_and_independent():
    number, rate, fraction = 200_000, 4.0, 0.25
    counts = np.random.default_rng(0).poisson(rate, (number, 1)).astype(np.float32)
    one, other = (half.X.toarray().ravel() for half in thin(cells(counts), fraction, seed=0))
    for half, mean in ((one, fraction * rate), (other, (1 - fraction) * rate)):
        assert abs(half.mean() - mean) < 5 * (mean / number) ** 0.5
        assert abs(half.var() - mean) < 5 * ((2 * mean**2 + mean) / number) ** 0.5
    assert abs(np.corrcoef(one, other)[0, 1]) < 5 / number**0.5
    # Cutting each count at its mean share gives no such halves.
    assert abs(np.corrcoef(np.floor(fraction * counts.ravel()), counts.ravel())[0, 1]) > 0.5


def test_a_layer_may_hold_the_counts():
    whole = cells(np.full((2, 3), 0.5))
    whole.layers["counts"] = np.full((2, 3), 6.0)
    one, other = thin(whole, counts="counts")
    assert (one.X + other.X).sum() == 36


@pytest.mark.parametrize(
    ("matrix", "options", "message"),
    [
        (np.ones((2, 2)), {"fraction": 1.0}, "a fraction of the molecules above 0 and below 1, got 1.0"),
        (np.full((2, 2), 0.5), {}, "expected raw counts, whole numbers"),
        (np.full((2, 2), -1.0), {}, "expected raw counts, whole numbers"),
        (np.ones((2, 2)), {"counts": "raw"}, "raw"),
    ],
)
def test_what_cannot_be_split_is_refused(matrix, options, message):
    with pytest.raises(ValueError, match=message):
        thin(cells(matrix), **options)
