"""Laws of the registration: what it remembers, how it binds other data, and its journey through JSON."""

import math

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from genailab_pyro.data.cells import Cells
from genailab_pyro.data.registration import (
    Categorical,
    LibraryStatistics,
    Registration,
    register,
)

NUM_CELLS, NUM_GENES = 40, 7
STORAGES = ["csr", "csc", "dense", "backed csr", "backed csc", "backed dense"]


def counts_of(seed=0):
    counts = np.random.default_rng(seed).poisson(1.5, (NUM_CELLS, NUM_GENES)).astype(np.float32)
    counts[:, 0] += 1
    return counts


def make(matrix=None):
    batch = pd.Categorical(np.tile(["late", "early"], NUM_CELLS // 2), categories=["late", "unused", "early"])
    obs = pd.DataFrame(
        {
            "batch": batch,
            "plate": np.tile([10, 1, 2, 1], NUM_CELLS // 4),
            "dose": np.linspace(0.0, 6.0, NUM_CELLS),
            "type": np.where(np.arange(NUM_CELLS) % 4 == 0, "B", "A"),
            "factor": np.linspace(0.5, 2.0, NUM_CELLS),
        },
        index=[f"cell{position}" for position in range(NUM_CELLS)],
    )
    var = pd.DataFrame(index=[f"G{position}" for position in range(NUM_GENES)])
    return anndata.AnnData(sp.csr_matrix(counts_of()) if matrix is None else matrix, obs=obs, var=var)


def stored(storage, folder):
    dense = counts_of()
    kind = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.array}[storage.split()[-1]]
    adata = make(kind(dense))
    if "backed" not in storage:
        return adata
    adata.write_h5ad(folder / "counts.h5ad")
    return anndata.read_h5ad(folder / "counts.h5ad", backed="r")


def full_registration():
    return register(
        make(),
        conditions=["batch", "plate"],
        continuous=["dose"],
        labels="type",
        size_factor="factor",
    ).registration


def test_levels_keep_categorical_order_and_drop_unused_ones():
    batch = register(make(), conditions=["batch"]).registration.conditions[0]
    assert batch == Categorical("batch", ("late", "early"), (0.5, 0.5))


def test_levels_of_plain_columns_are_sorted_as_text_and_numbers_by_value():
    registration = register(make(), conditions=["plate", "type"]).registration
    assert registration.conditions[0].levels == ("1", "2", "10")
    assert registration.conditions[0].frequencies == (0.5, 0.25, 0.25)
    assert registration.conditions[1].levels == ("A", "B")


def test_codes_follow_the_levels():
    adata = make()
    cells = register(adata, conditions=["plate", "batch"])
    for position, condition in enumerate(cells.registration.conditions):
        names = np.array(condition.levels)[cells.conditions[:, position]]
        assert list(names) == list(adata.obs[condition.name].astype(str))


def test_one_name_may_stand_for_a_list_of_names():
    assert [item.name for item in register(make(), conditions="batch").registration.conditions] == ["batch"]


def test_continuous_columns_have_mean_zero_and_deviation_one():
    adata = make()
    cells = register(adata, continuous=["dose"])
    dose = cells.registration.continuous[0]
    assert (dose.loc, dose.scale) == (adata.obs["dose"].mean(), adata.obs["dose"].std(ddof=0))
    np.testing.assert_allclose(cells.continuous[:, 0] * dose.scale + dose.loc, adata.obs["dose"], atol=1e-6)
    assert cells.continuous.dtype == np.float32


def test_library_statistics_are_moments_of_logs_overall_and_per_level():
    cells = register(make(), conditions=["batch", "plate"])
    logs = np.log(counts_of().sum(1, dtype=np.float64))
    library = cells.registration.library
    assert math.isclose(library.loc, logs.mean(), rel_tol=1e-6)
    assert math.isclose(library.scale, logs.std(), rel_tol=1e-6)
    for level, (loc, scale) in enumerate(library.levels):
        member = cells.conditions[:, 0] == level
        assert math.isclose(loc, logs[member].mean(), rel_tol=1e-6)
        assert math.isclose(scale, logs[member].std(), rel_tol=1e-6)
    assert len(library.levels) == 2


def test_library_deviation_has_a_floor():
    constant = np.full((NUM_CELLS, NUM_GENES), 2)
    library = register(make(constant), conditions=["batch"]).registration.library
    assert {library.scale, *(scale for _, scale in library.levels)} == {LibraryStatistics.FLOOR}


def test_size_factor_takes_the_place_of_totals():
    adata = make()
    cells = register(adata, size_factor="factor")
    np.testing.assert_array_equal(cells.library, adata.obs["factor"].astype(np.float32))
    assert cells.registration.size_factor == "factor"
    assert math.isclose(cells.registration.library.loc, np.log(adata.obs["factor"]).mean(), rel_tol=1e-6)


def test_labels_may_be_missing_in_part():
    adata = make()
    adata.obs["partly"] = pd.Categorical(np.where(np.arange(NUM_CELLS) < 30, None, adata.obs["type"]))
    cells = register(adata, labels="partly")
    assert cells.registration.labels.levels == ("A", "B")
    assert (cells.labels[:30] == -1).all()
    assert (cells.labels[30:] >= 0).all()
    assert math.isclose(sum(cells.registration.labels.frequencies), 1)


def test_integer_labels_made_floats_by_missing_values_keep_their_names():
    adata = make()
    adata.obs["number"] = np.where(np.arange(NUM_CELLS) % 2 == 0, np.nan, 3.0)
    adata.obs.loc["cell1", "number"] = 12.0
    cells = register(adata, labels="number")
    assert cells.registration.labels.levels == ("3", "12")
    assert list(cells.labels[:4]) == [-1, 1, -1, 0]


@pytest.mark.parametrize("storage", STORAGES)
def test_registration_does_not_depend_on_storage(storage, tmp_path):
    expected = register(make(), conditions=["batch"], labels="type")
    cells = register(stored(storage, tmp_path), conditions=["batch"], labels="type")
    assert cells.registration == expected.registration
    np.testing.assert_array_equal(cells.totals, expected.totals)
    np.testing.assert_array_equal(cells.gene_totals(), counts_of().sum(0))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("chunk", [1, NUM_GENES * 3, 10**6])
@pytest.mark.filterwarnings("ignore:.*stored by genes:UserWarning")
def test_what_is_read_does_not_depend_on_the_size_of_blocks(storage, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(type(register(make()).matrix), "block_values", chunk)
    cells = register(stored(storage, tmp_path))
    np.testing.assert_array_equal(cells.totals, counts_of().sum(1))
    np.testing.assert_array_equal(cells.gene_totals(), counts_of().sum(0))
    np.testing.assert_array_equal(cells.counts_matrix().toarray(), counts_of())


def test_layers_are_read_where_they_are_named():
    adata = make()
    adata.layers["raw"] = adata.X.copy()
    adata.X = adata.X * 0.5
    cells = register(adata, counts="raw")
    assert cells.registration.counts == "raw"
    np.testing.assert_array_equal(cells.totals, counts_of().sum(1))


@pytest.mark.parametrize("storage", ["csr", "csc", "dense"])
def test_registration_does_not_modify_the_data(storage, tmp_path):
    adata = stored(storage, tmp_path)
    before = adata.copy()
    array = adata.X
    cells = register(adata, conditions=["batch"], continuous=["dose"], labels="type")
    cells.take([0, 1]).counts.fill_(7)
    assert adata.X is array
    assert (adata.X != before.X).sum() == 0
    pd.testing.assert_frame_equal(adata.obs, before.obs)


def test_duplicate_entries_of_a_sparse_matrix_add_up_without_a_change_to_it():
    twice = sp.csr_matrix((np.array([1.5, 0.5, 1.0]), np.array([0, 0, 1]), np.array([0, 2, 3])), shape=(2, 2))
    adata = anndata.AnnData(twice.copy())
    adata.X = twice
    cells = register(adata)
    np.testing.assert_array_equal(cells.totals, [2, 1])
    assert twice.nnz == 3


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.filterwarnings("ignore:.*stored by genes:UserWarning")
def test_views_are_registered_as_their_copies(storage, tmp_path):
    rows, genes = np.array([31, 2, 3, 8, 17]), np.array([4, 0, 2])
    adata = stored(storage, tmp_path)
    expected = counts_of()[np.ix_(rows, genes)]
    for view in (adata[rows, genes], adata[adata.obs_names[rows], [f"G{gene}" for gene in genes]]):
        cells = register(view)
        np.testing.assert_array_equal(cells.gene_totals(), expected.sum(0))
        np.testing.assert_array_equal(cells.subset([3, 1]).gene_totals(), expected[[3, 1]].sum(0))
        np.testing.assert_array_equal(cells.take([4, 0]).counts, expected[[4, 0]])
        assert list(cells.obs_names) == list(adata.obs_names[rows])
        bound = cells.registration.bind(adata[rows[::-1]])
        np.testing.assert_array_equal(bound.take(range(5)).counts, expected[::-1])
    masked = register(adata[np.arange(NUM_CELLS) % 3 == 0])
    np.testing.assert_array_equal(masked.take(range(len(masked))).counts, counts_of()[::3])


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.filterwarnings("ignore:.*stored by genes:UserWarning")
def test_binding_permuted_genes_gives_identical_minibatches(storage, tmp_path):
    adata = stored(storage, tmp_path)
    cells = register(adata, conditions=["batch"], continuous=["dose"], labels="type")
    order = np.random.default_rng(1).permutation(NUM_GENES)
    bound = cells.registration.bind(adata[:, order])
    for first, second in zip(cells.minibatches(16, seed=3), bound.minibatches(16, seed=3), strict=True):
        for name in ("counts", "conditions", "continuous", "library", "index"):
            assert torch.equal(getattr(first, name), getattr(second, name))
    np.testing.assert_array_equal(bound.gene_totals(), cells.gene_totals())
    np.testing.assert_array_equal(bound.labels, cells.labels)


@pytest.mark.filterwarnings("ignore:.*stored by genes:UserWarning")
@pytest.mark.parametrize("storage", STORAGES)
def test_extra_genes_are_ignored_and_do_not_count(storage, tmp_path):
    adata = stored(storage, tmp_path)
    registration = register(adata[:, ["G5", "G0"]]).registration
    bound = registration.bind(adata)
    expected = counts_of()[:, [5, 0]]
    np.testing.assert_array_equal(bound.library, expected.sum(1))
    np.testing.assert_array_equal(bound.take([7, 7, 3]).counts, expected[[7, 7, 3]])
    np.testing.assert_array_equal(bound.gene_totals(), expected.sum(0))
    np.testing.assert_array_equal(bound.subset([9, 2]).gene_totals(), expected[[9, 2]].sum(0))
    np.testing.assert_array_equal(bound.counts_matrix().toarray(), expected)


def test_missing_genes_are_counted_and_the_first_five_named():
    registration = full_registration()
    with pytest.raises(ValueError, match=r"6 are missing: 'G1', 'G2', 'G3', 'G4', 'G5', \.\.\. \(6 in all\)"):
        registration.bind(make()[:, ["G0"]])


def test_a_column_with_the_registered_gene_names_is_pointed_out():
    adata = make()
    adata.var["symbol"] = adata.var_names
    adata.var_names = [f"ENSG{position}" for position in range(NUM_GENES)]
    with pytest.raises(ValueError, match=r'adata\.var_names = adata\.var\["symbol"\]'):
        full_registration().bind(adata)


def test_a_registered_gene_that_occurs_twice_is_refused_and_another_is_not():
    registration = register(make()[:, ["G0", "G1"]]).registration
    adata = make()
    adata.var_names = ["G0", "G1", "G2", "G2", "G4", "G5", "G6"]
    np.testing.assert_array_equal(registration.bind(adata).take([0]).counts, counts_of()[:1, :2])
    adata.var_names = ["G0", "G1", "G1", "G3", "G4", "G5", "G6"]
    with pytest.raises(ValueError, match="1 that occur more than once: 'G1'"):
        registration.bind(adata)


def test_unseen_level_is_named():
    adata = make()
    adata.obs["batch"] = np.where(np.arange(NUM_CELLS) < 2, "latest", "early")
    with pytest.raises(ValueError, match=r"'late', 'early', got 1 unseen: 'latest'.*did you mean 'late'\?"):
        full_registration().bind(adata)


def test_all_missing_columns_and_the_missing_layer_are_named():
    adata = make()
    del adata.obs["plate"], adata.obs["dose"]
    with pytest.raises(ValueError, match=r'adata\.obs\["plate"\] \(conditions\), adata\.obs\["dose"\] \(cont'):
        full_registration().bind(adata)
    adata.layers["counts"] = adata.X.copy()
    registration = register(adata, counts="counts").registration
    with pytest.raises(ValueError, match=r'adata\.layers\["counts"\], but there are no layers'):
        registration.bind(make())


def test_binding_needs_no_labels_and_forgives_unseen_ones():
    registration, adata = full_registration(), make()
    adata.obs["type"] = np.where(np.arange(NUM_CELLS) == 5, "C", "B")
    labels = registration.bind(adata).labels
    assert labels[5] == -1
    assert (np.delete(labels, 5) == 1).all()
    del adata.obs["type"]
    assert registration.bind(adata).labels is None


def test_binding_standardises_by_the_registered_moments():
    registration, adata = full_registration(), make()
    adata.obs["dose"] = 6.0
    expected = (6.0 - registration.continuous[0].loc) / registration.continuous[0].scale
    np.testing.assert_allclose(registration.bind(adata).continuous[:, 0], expected, rtol=1e-6)


def test_binding_accepts_one_cell_of_one_level():
    cells = full_registration().bind(make()[[3]])
    assert len(cells) == 1
    assert cells.conditions.tolist() == [[1, 0]]
    assert cells.registration == full_registration()


def test_binding_refuses_what_registration_refuses():
    adata = make()
    adata.X = np.log1p(adata.X.toarray()).astype(np.float32)
    with pytest.raises(ValueError, match="looks log1p-normalised"):
        full_registration().bind(adata)
    with pytest.raises(TypeError, match="expected an AnnData, got str"):
        full_registration().bind("counts.h5ad")


def test_codes_assign_levels_to_all_cells_or_to_each():
    registration = full_registration()
    codes = registration.codes({"batch": "early", "plate": ["1", "10", "2"]}, 3)
    assert codes.dtype == np.int64
    assert codes.tolist() == [[1, 0], [1, 2], [1, 1]]
    assert registration.codes({"batch": "late", "plate": 10}, 1).tolist() == [[0, 2]]


def test_codes_draw_unnamed_conditions_by_their_frequencies():
    registration, num_cells = full_registration(), 4000
    draws = registration.codes({"batch": "early"}, num_cells, np.random.default_rng(0))[:, 1]
    frequencies = np.array(registration.conditions[1].frequencies)
    error = np.sqrt(frequencies * (1 - frequencies) / num_cells)
    assert (np.abs(np.bincount(draws) / num_cells - frequencies) < 5 * error).all()
    assert (np.abs(np.full(3, 1 / 3) - frequencies) > 5 * error).all()
    again = registration.codes({"batch": "early"}, num_cells, np.random.default_rng(0))[:, 1]
    np.testing.assert_array_equal(draws, again)


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        (
            {"bach": "early"},
            r"'bach' is no registered condition: expected one of 'batch', 'plate'; did you mean",
        ),
        (
            {"batch": "Early", "plate": "1"},
            r"has no level 'Early': expected one of 'late', 'early'; did you mean",
        ),
        ({"batch": ["early"] * 2, "plate": "1"}, r"one level of 'batch' or 3 of them.* got 2"),
        ({"batch": "early"}, r"a level of 'plate', one of '1', '2', '10', got none: .*pass rng"),
    ],
)
def test_codes_name_what_is_wrong(conditions, message):
    with pytest.raises(ValueError, match=message):
        full_registration().codes(conditions, 3)


def test_other_levels_are_coded_after_those_registered_and_nothing_else_changes():
    cells = Cells.from_tensors([[3, 1], [2, 2], [5, 0]], conditions={"drug": ["A", "B", "A"], "sex": ["f", "m", "f"]})
    schema = cells.registration
    opened = schema.with_levels("drug", ["A+B", "C"])
    assert opened.conditions[0].levels == ("A", "B", "A+B", "C")
    assert opened.conditions[0].frequencies[2:] == (0, 0)
    assert opened.library.levels[:2] == schema.library.levels
    assert opened.library.levels[2:] == ((schema.library.loc, schema.library.scale),) * 2
    assert opened.codes({"drug": "A+B", "sex": "m"}, 1).tolist() == [[2, 1]]
    assert Registration.from_json(opened.to_json()) == opened
    other = schema.with_levels("sex", ["x"])
    assert other.conditions[1].levels == ("f", "m", "x")
    assert other.library == schema.library
    assert len(schema.conditions[0].levels) == 2


@pytest.mark.parametrize(
    ("condition", "levels", "message"),
    [("drug", ["A"], "expected distinct levels of 'drug'"), ("tissue", ["liver"], "tissue")],
)
def test_levels_that_can_not_be_added_are_refused(condition, levels, message):
    cells = Cells.from_tensors([[3, 1], [2, 2]], conditions={"drug": ["A", "B"]})
    with pytest.raises(ValueError, match=message):
        cells.registration.with_levels(condition, levels)
