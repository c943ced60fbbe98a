"""Laws of cells: minibatches, their order, subsets, splits and interventions."""

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from genailab_pyro.data.cells import Cells
from genailab_pyro.data.registration import register

NUM_CELLS, NUM_GENES = 50, 8
KINDS = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.array}
STORAGES = [*KINDS, *(f"backed {kind}" for kind in KINDS)]
FLOATS = ("counts", "continuous", "library")
TENSORS = (*FLOATS, "conditions", "index")


def raw_counts():
    counts = np.random.default_rng(0).poisson(1.0, (NUM_CELLS, NUM_GENES)).astype(np.float32)
    counts[:, 0] += 1
    return counts


def make(counts=None):
    obs = pd.DataFrame(
        {
            "batch": np.tile(["a", "b"], NUM_CELLS // 2),
            "donor": np.repeat([f"d{position}" for position in range(5)], NUM_CELLS // 5),
            "dose": np.linspace(0, 4, NUM_CELLS),
            "type": np.where(np.arange(NUM_CELLS) % 5 == 0, None, np.tile(["T", "B"], NUM_CELLS // 2)),
        },
        index=[f"cell{position}" for position in range(NUM_CELLS)],
    )
    var = pd.DataFrame(index=[f"G{position}" for position in range(NUM_GENES)])
    return anndata.AnnData(raw_counts() if counts is None else counts, obs=obs, var=var)


def stored(storage, folder):
    adata = make(KINDS[storage.split()[-1]](raw_counts()))
    if "backed" not in storage:
        return adata
    adata.write_h5ad(folder / "counts.h5ad")
    return anndata.read_h5ad(folder / "counts.h5ad", backed="r")


def registered(adata=None):
    columns = {"conditions": ["batch", "donor"], "continuous": ["dose"], "labels": "type"}
    return register(make() if adata is None else adata, **columns)


def assert_same(first, second, names=TENSORS):
    for name in names:
        assert torch.equal(getattr(first, name), getattr(second, name)), name


def test_a_minibatch_holds_its_cells():
    cells = registered()
    minibatch = cells.take([7, 3, 7])
    np.testing.assert_array_equal(minibatch.counts, raw_counts()[[7, 3, 7]])
    np.testing.assert_array_equal(minibatch.library, raw_counts()[[7, 3, 7]].sum(1))
    np.testing.assert_array_equal(minibatch.conditions, cells.conditions[[7, 3, 7]])
    np.testing.assert_array_equal(minibatch.continuous, cells.continuous[[7, 3, 7]])
    assert minibatch.index.tolist() == [7, 3, 7]
    assert minibatch.num_cells == NUM_CELLS


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("seed", [None, 11])
@pytest.mark.filterwarnings("ignore:.*stored by genes:UserWarning")
def test_minibatches_do_not_depend_on_storage(storage, seed, tmp_path):
    expected = registered().minibatches(16, seed=seed)
    for first, second in zip(expected, registered(stored(storage, tmp_path)).minibatches(16, seed=seed), strict=True):
        assert_same(first, second)
        assert second.num_cells == NUM_CELLS


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.filterwarnings("ignore:.*stored by genes:UserWarning")
def test_subsets_of_subsets_keep_their_cells(storage, tmp_path):
    part = registered(stored(storage, tmp_path)).subset(np.arange(40)[::-1]).subset([5, 0, 39])
    rows = [34, 39, 0]
    minibatch = part.take([2, 0, 1])
    np.testing.assert_array_equal(minibatch.counts, raw_counts()[[0, 34, 39]])
    assert minibatch.index.tolist() == [2, 0, 1]
    assert minibatch.num_cells == len(part) == 3
    assert list(part.obs_names) == [f"cell{row}" for row in rows]
    np.testing.assert_array_equal(part.gene_totals(), raw_counts()[rows].sum(0))
    np.testing.assert_array_equal(part.counts_matrix().toarray(), raw_counts()[rows])
    np.testing.assert_array_equal(part.labels, registered().labels[rows])
    np.testing.assert_array_equal(part.library, raw_counts()[rows].sum(1))


@pytest.mark.parametrize("storage", ["csr", "csc", "backed csr", "backed csc"])
@pytest.mark.filterwarnings("ignore:.*stored by genes:UserWarning")
def test_sparse_counts_become_dense_only_as_minibatches(storage, tmp_path, monkeypatch):
    adata, largest = stored(storage, tmp_path), []
    monkeypatch.setattr(type(register(make()).matrix), "block_values", NUM_GENES * 10)

    def counted(dense):
        def densify(self, *arguments, **options):
            largest.append(self.shape[0])
            return dense(self, *arguments, **options)

        return densify

    for kind in (sp.csr_matrix, sp.csc_matrix, sp.coo_matrix, sp.csr_array, sp.csc_array):
        monkeypatch.setattr(kind, "toarray", counted(kind.toarray))
        monkeypatch.setattr(kind, "todense", counted(kind.todense))
    cells = registered(adata)
    cells.gene_totals()
    cells.counts_matrix()
    cells.registration.bind(adata[:, ::-1])
    assert largest == []
    assert sum(minibatch.size for minibatch in cells.minibatches(8)) == NUM_CELLS
    assert max(largest) == 8


def test_dense_counts_on_disk_are_read_a_block_at_a_time(tmp_path, monkeypatch):
    adata, read = stored("backed dense", tmp_path), []
    monkeypatch.setattr(type(register(make()).matrix), "block_values", NUM_GENES * 10)
    original = h5py.Dataset.__getitem__

    def counted(self, *arguments, **options):
        found = original(self, *arguments, **options)
        if self.name == "/X":
            read.append(found.shape[0])
        return found

    monkeypatch.setattr(h5py.Dataset, "__getitem__", counted)
    cells = registered(adata)
    cells.gene_totals()
    list(cells.minibatches(8, seed=0))
    view = registered(adata[[0, 1, 2, 3, 11, 12, 13, 14, 15, 16, 17, 49]])
    view.take([1, 0])
    assert max(read) == 10


def test_a_file_stored_by_genes_is_loaded_once_and_says_so(tmp_path):
    cells = registered(stored("backed csc", tmp_path))
    part, _ = cells.split()
    cells.gene_totals()
    with pytest.warns(UserWarning, match=r"adata\.X is stored by genes \(CSC\) on disk.*as CSR"):
        part.take([0])
    np.testing.assert_array_equal(cells.take([4]).counts, raw_counts()[[4]])


def test_in_memory_data_are_referred_to_and_not_copied():
    for kind in (sp.csr_matrix, np.array):
        adata = make(kind(raw_counts()))
        held = registered(adata).split()[0].matrix._stored
        own, theirs = (held.data, adata.X.data) if sp.issparse(held) else (held, adata.X)
        assert np.shares_memory(own, theirs)


@pytest.mark.parametrize("kind", [sp.csr_matrix, np.array])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_all_float_tensors_have_the_dtype(kind, dtype):
    cells = registered(make(kind(raw_counts())))
    minibatches = [cells.take([0, 1], dtype=dtype), next(cells.minibatches(2, dtype=dtype))]
    for minibatch in minibatches:
        assert {getattr(minibatch, name).dtype for name in FLOATS} == {dtype}
        assert minibatch.conditions.dtype == minibatch.index.dtype == torch.int64


def test_large_counts_are_exact_in_double_precision():
    counts = np.array([[2**24 + 1, 1], [3, 2**30 + 1]], dtype=np.int64)
    for kind in (sp.csr_matrix, np.array):
        cells = Cells.from_tensors(kind(counts))
        np.testing.assert_array_equal(cells.take([0, 1], dtype=torch.float64).counts, counts)


def test_tensors_go_to_the_device():
    minibatch = registered().take([0, 1], device="meta")
    assert {getattr(minibatch, name).device.type for name in TENSORS} == {"meta"}


def test_minibatches_share_no_memory_with_the_data_or_the_indices():
    adata = make()
    cells, indices = registered(adata), np.arange(NUM_CELLS)
    minibatch = cells.take(indices)
    for name in TENSORS:
        getattr(minibatch, name).fill_(3)
    np.testing.assert_array_equal(adata.X, raw_counts())
    np.testing.assert_array_equal(indices, np.arange(NUM_CELLS))
    assert_same(cells.take(indices), registered().take(indices))


def test_order_is_a_function_of_the_seed_only():
    cells = registered()

    def order(seed):
        return torch.cat([minibatch.index for minibatch in cells.minibatches(16, seed=seed)]).tolist()

    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = order(5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    assert order(5) == first
    assert order(6) != first
    assert sorted(first) == order(None) == list(range(NUM_CELLS))


def test_every_cell_comes_once_and_the_ragged_last_minibatch_is_kept():
    assert [minibatch.size for minibatch in registered().minibatches(16, seed=0)] == [16, 16, 16, 2]
    assert [minibatch.size for minibatch in registered().minibatches(100)] == [50]


def test_a_minibatch_of_no_cells_is_refused_at_once():
    with pytest.raises(ValueError, match="at least one cell in a minibatch, got size=0"):
        registered().minibatches(0)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([], "at least one"),
        ([0, 50], "expected positions from 0 to 49, got 0 to 50"),
        ([-1], "got -1 to -1"),
        ([0.5], "got float64"),
        ([True, False], "a mask of 50 cells, got shape"),
        ([[0]], r"shape \(1, 1\)"),
    ],
)
def test_positions_that_do_not_exist_are_refused(indices, message):
    for read in (registered().take, registered().subset):
        with pytest.raises(ValueError, match=message):
            read(indices)


def test_a_mask_selects_cells():
    adata = make()
    cells = registered(adata)
    mask = adata.obs["batch"] == "b"
    for given in (mask, mask.to_numpy(), torch.tensor(mask.to_numpy()), mask.tolist()):
        np.testing.assert_array_equal(cells.subset(given).rows, np.flatnonzero(mask))
    assert cells.take(torch.tensor([4, 2])).index.tolist() == [4, 2]


@pytest.mark.parametrize(("fraction", "held"), [(0.1, 5), (0.001, 1), (0.999, 49), (0.5, 25)])
def test_parts_of_a_split_are_disjoint_and_whole(fraction, held):
    rest, other = registered().split(fraction, seed=1)
    assert len(other) == held
    assert sorted([*rest.rows, *other.rows]) == list(range(NUM_CELLS))
    assert list(rest.rows) == sorted(rest.rows)


def test_splits_are_seeded_and_nested():
    cells = registered()
    np.testing.assert_array_equal(cells.split(seed=3)[1].rows, cells.split(seed=3)[1].rows)
    assert list(cells.split(seed=3)[1].rows) != list(cells.split(seed=4)[1].rows)
    rest, held = cells.split(0.5)
    inner_rest, inner_held = rest.split(0.2)
    assert sorted([*inner_rest.rows, *inner_held.rows]) == list(rest.rows)
    assert not set(inner_held.rows) & set(held.rows)


def test_impossible_splits_are_refused():
    for fraction in (0, 1, -0.1, float("nan")):
        with pytest.raises(ValueError, match="a fraction above 0 and below 1"):
            registered().split(fraction)
    with pytest.raises(ValueError, match="at least two cells to split, got 1"):
        registered().subset([0]).split()


def test_with_conditions_changes_only_what_it_names():
    cells = registered()
    other = cells.with_conditions({"donor": "d3"}, {"dose": 2.5})
    assert set(other.conditions[:, 1]) == {3}
    np.testing.assert_array_equal(other.conditions[:, 0], cells.conditions[:, 0])
    dose = cells.registration.continuous[0]
    np.testing.assert_allclose(other.continuous[:, 0], (2.5 - dose.loc) / dose.scale, rtol=1e-6)
    assert_same(cells.take(range(NUM_CELLS)), other.take(range(NUM_CELLS)), ("counts", "library", "index"))
    same = cells.with_conditions({"batch": "a"})
    np.testing.assert_array_equal(same.continuous, cells.continuous)
    np.testing.assert_array_equal(same.conditions[:, 1], cells.conditions[:, 1])
    assert_same(cells.take(range(NUM_CELLS)), registered().take(range(NUM_CELLS)))


@pytest.mark.parametrize(
    ("conditions", "continuous", "message"),
    [
        (
            {"Batch": "a"},
            None,
            r"'Batch' is no registered condition: expected one of 'batch', 'donor'; did you",
        ),
        ({"batch": "c"}, None, "'batch' has no level 'c': expected one of 'a', 'b'"),
        ({}, {"time": 1.0}, "'time' is no registered continuous covariate: expected one of 'dose'"),
        ({}, {"dose": np.nan}, "finite numbers for 'dose'"),
    ],
)
def test_unknown_conditions_are_refused(conditions, continuous, message):
    with pytest.raises(ValueError, match=message):
        registered().with_conditions(conditions, continuous)


def test_counts_changed_in_place_after_registration_are_noticed():
    for kind in (sp.csr_matrix, np.array):
        adata = make(kind(raw_counts()))
        cells = registered(adata)
        values = adata.X.data if sp.issparse(adata.X) else adata.X
        np.log1p(values, out=values)
        for read in (lambda cells=cells: cells.take([0, 1]), cells.gene_totals, cells.counts_matrix):
            with pytest.raises(ValueError, match=r"registered in adata\.X.*changed in place.*adata\.X\.copy\(\)"):
                read()


def test_adata_is_that_of_exactly_these_cells():
    adata = make()
    cells = registered(adata)
    assert cells.adata is adata
    part = cells.subset([9, 2])
    assert list(part.adata.obs_names) == ["cell9", "cell2"]
    assert cells.subset(range(NUM_CELLS)[::-1]).adata.obs_names[0] == "cell49"
    adata._inplace_subset_obs(np.arange(1, NUM_CELLS))
    with pytest.raises(ValueError, match=r"registered in adata\.obs_names, they have changed since"):
        _ = part.adata


def test_text_of_cells_says_what_they_hold():
    text = repr(registered(make(sp.csr_matrix(raw_counts()))))
    assert text.startswith(
        "Cells(50 cells x 8 genes; counts=adata.X (in memory, sparse); conditions=batch[2], donor[5]"
    )
    assert "continuous=dose; labels=type[2] on 40 cells; library=total counts, median" in text
