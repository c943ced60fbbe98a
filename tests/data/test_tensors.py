"""Laws of cells that come from tensors and arrays: those that an AnnData of the same values gives."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from genailab_pyro.data.cells import Cells
from genailab_pyro.data.registration import register

COUNTS = torch.tensor([[1, 0, 2], [0, 3, 0], [4, 0, 1], [1, 1, 1]])


@pytest.mark.parametrize(
    "counts",
    [
        COUNTS,
        COUNTS.float().requires_grad_(),
        COUNTS.bfloat16(),
        COUNTS.float().to_sparse(),
        COUNTS.numpy(),
        COUNTS.tolist(),
        sp.csr_matrix(COUNTS.numpy()),
        sp.coo_matrix(COUNTS.numpy()),
    ],
    ids=["integers", "gradient", "bfloat16", "sparse tensor", "array", "list", "csr", "coo"],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
def test_tensors_and_arrays_give_the_same_cells(counts):
    cells = Cells.from_tensors(counts)
    assert torch.equal(cells.take(range(4)).counts, COUNTS.float())
    assert cells.registration.genes == ("gene_0", "gene_1", "gene_2")
    assert cells.registration.num_cells == 4
    assert cells.adata is None
    assert cells.take([0]).conditions.shape == cells.take([0]).continuous.shape == (1, 0)


def test_tensors_give_what_an_anndata_gives():
    num_cells = 50
    counts = np.random.default_rng(0).poisson(1.0, (num_cells, 8)).astype(np.float32) + 1
    obs = pd.DataFrame(
        {
            "batch": np.tile(["a", "b"], num_cells // 2),
            "donor": np.repeat(["d0", "d1", "d2", "d3", "d4"], num_cells // 5),
            "dose": np.linspace(0, 4, num_cells),
            "type": np.where(np.arange(num_cells) % 5 == 0, None, np.tile(["T", "B"], num_cells // 2)),
        },
        index=[f"cell{position}" for position in range(num_cells)],
    )
    adata = anndata.AnnData(counts, obs=obs)
    expected = register(adata, conditions=["batch", "donor"], continuous=["dose"], labels="type")
    cells = Cells.from_tensors(
        torch.tensor(counts),
        {"batch": adata.obs["batch"], "donor": list(adata.obs["donor"])},
        {"dose": torch.tensor(adata.obs["dose"].to_numpy())},
        labels=adata.obs["type"],
        genes=list(adata.var_names),
    )
    assert cells.registration.conditions == expected.registration.conditions
    assert cells.registration.continuous == expected.registration.continuous
    assert cells.registration.library == expected.registration.library
    assert cells.registration.labels.levels == expected.registration.labels.levels
    np.testing.assert_array_equal(cells.labels, expected.labels)
    for first, second in zip(cells.minibatches(16, seed=2), expected.minibatches(16, seed=2), strict=True):
        for name in ("counts", "conditions", "continuous", "library", "index"):
            assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert len(cells.registration.bind(adata.copy())) == num_cells


def test_codes_given_as_tensors_stay_as_they_are():
    codes = torch.tensor([[0, 11], [3, 0], [0, 2], [3, 2]])
    cells = Cells.from_tensors(COUNTS, codes, labels=torch.tensor([-1, 2, 0, 2]))
    assert torch.equal(cells.take(range(4)).conditions, codes)
    first, second = cells.registration.conditions
    assert (first.name, second.name) == ("condition_0", "condition_1")
    assert first.levels == ("0", "1", "2", "3")
    assert second.levels == tuple(str(code) for code in range(12))
    assert first.frequencies == (0.5, 0, 0, 0.5)
    assert len(cells.registration.library.levels) == 4
    assert cells.registration.library.levels[1] == (
        cells.registration.library.loc,
        cells.registration.library.scale,
    )
    assert cells.labels.tolist() == [-1, 2, 0, 2]
    assert cells.registration.labels.levels == ("0", "1", "2")
    named = Cells.from_tensors(COUNTS, {"batch": codes[:, 0]})
    assert named.registration.conditions[0].levels == ("0", "1", "2", "3")


def test_continuous_tensors_and_size_factors_are_registered():
    values, factors = torch.tensor([[0.0, 5], [1, 6], [2, 8], [3, 9]]), torch.tensor([0.5, 1, 2, 4])
    cells = Cells.from_tensors(COUNTS, continuous=values, size_factor=factors)
    assert [item.name for item in cells.registration.continuous] == ["continuous_0", "continuous_1"]
    np.testing.assert_allclose(cells.continuous.mean(0), 0, atol=1e-6)
    assert torch.equal(cells.take(range(4)).library, factors)
    assert cells.registration.size_factor == "size_factor"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"counts": torch.ones(3)}, ValueError, r"counts: expected shape \[cells, genes\].*got \[3\]"),
        ({"counts": torch.ones(0, 3)}, ValueError, r"at least one of each, got \[0, 3\]"),
        (
            {"counts": torch.rand(4, 3) + 0.1},
            ValueError,
            r"expected integer counts in counts.*Pass raw counts",
        ),
        ({"counts": [["a", "b"]]}, TypeError, "counts of a numeric type in counts"),
        ({"genes": ["a"]}, ValueError, "genes: expected 3 names, one for each column of counts, got 1"),
        ({"genes": ["a", "b", "a"]}, ValueError, "distinct gene names in genes"),
        (
            {"conditions": {"batch": ["a"]}},
            ValueError,
            r'conditions\["batch"\]: expected one value for each of 4',
        ),
        (
            {"conditions": {"batch": "abab"}},
            ValueError,
            r'conditions\["batch"\]: expected one value for each of 4',
        ),
        ({"conditions": {"batch": ["a"] * 4}}, ValueError, r'at least two levels in conditions\["batch"\]'),
        (
            {"conditions": {"batch": [0.5, 1, 2, 3]}},
            ValueError,
            r'expected categories in conditions\["batch"\]',
        ),
        (
            {"conditions": ["a", "b", "a", "b"]},
            TypeError,
            r"conditions: expected a mapping of names to values",
        ),
        ({"conditions": torch.eye(4)}, ValueError, r"integer codes, got torch\.float32: turn one-hot rows"),
        ({"conditions": torch.tensor([0, 1, 0, 1])}, ValueError, r"shape \[cells, conditions\], got \[4\]"),
        ({"conditions": torch.tensor([[0], [-1], [0], [1]])}, ValueError, "expected codes from 0, got -1"),
        ({"continuous": {"dose": ["a"] * 4}}, ValueError, r'expected numbers in continuous\["dose"\]'),
        ({"continuous": torch.ones(4, 1)}, ValueError, r'values that differ in continuous\["continuous_0"\]'),
        (
            {"size_factor": torch.tensor([1.0, 0, 1, 1])},
            ValueError,
            "size factors above zero in size_factor, got 1",
        ),
        ({"labels": torch.tensor([-2, 0, 1, 1])}, ValueError, "labels: expected codes from -1, got -2"),
        (
            {"conditions": {"x": list("abab")}, "continuous": {"x": [1.0, 2, 3, 4]}},
            ValueError,
            r"in conditions or in continuous, got \['x'\] in both",
        ),
    ],
)
def test_tensors_go_through_the_same_checks(arguments, error, message):
    with pytest.raises(error, match=message):
        Cells.from_tensors(**{"counts": torch.ones(4, 3), **arguments})
