"""Laws of the checks: what is no count, condition or covariate is refused, and the message has the fix."""

import re

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from genailab_pyro.data.matrix import open_counts
from genailab_pyro.data.registration import register

NUM_CELLS, NUM_GENES = 30, 6
KINDS = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.array}
STORAGES = [*KINDS, *(f"backed {kind}" for kind in KINDS)]


def raw_counts():
    counts = np.random.default_rng(0).poisson(2.0, (NUM_CELLS, NUM_GENES)).astype(np.float32)
    counts[:, 0] += 1
    return counts


def make(counts=None):
    obs = pd.DataFrame(
        {"batch": np.tile(["a", "b"], NUM_CELLS // 2), "dose": np.linspace(0, 1, NUM_CELLS)},
        index=[f"cell{position}" for position in range(NUM_CELLS)],
    )
    var = pd.DataFrame(index=[f"G{position}" for position in range(NUM_GENES)])
    return anndata.AnnData(raw_counts() if counts is None else counts, obs=obs, var=var)


def stored(counts, storage, folder):
    adata = make(KINDS[storage.split()[-1]](counts))
    if "backed" not in storage:
        return adata
    adata.write_h5ad(folder / "counts.h5ad")
    return anndata.read_h5ad(folder / "counts.h5ad", backed="r")


def logged():
    counts = raw_counts()
    return np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("chunk", [NUM_GENES * 4, 2**22])
def test_log_normalised_values_are_recognised(storage, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(type(register(make()).matrix), "block_values", chunk)
    adata = stored(logged(), storage, tmp_path)
    with pytest.raises(ValueError, match=r"expected integer counts in adata\.X.*looks log1p-normalised"):
        register(adata)
    with pytest.raises(ValueError, match=r'usually in adata\.layers\["counts"\] or adata\.raw; none of this'):
        register(adata)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.5, r"expected integer counts in adata\.X, got the first 0\.5 \(cell 'cell29', gene 'G4'\)"),
        (-1.0, r"got negative values, the first -1 \(cell 'cell29', gene 'G4'\): this looks scaled"),
        (np.nan, r"at least 1 NaN or infinite values, the first nan \(cell 'cell29', gene 'G4'\)"),
        (np.inf, r"at least 1 NaN or infinite values, the first inf \(cell 'cell29', gene 'G4'\)"),
    ],
)
def test_one_bad_value_in_the_last_block_is_named(storage, value, message, tmp_path, monkeypatch):
    monkeypatch.setattr(type(register(make()).matrix), "block_values", NUM_GENES * 4)
    counts = raw_counts()
    counts[-1, 4] = value
    with pytest.raises(ValueError, match=message):
        register(stored(counts, storage, tmp_path))


def test_a_bad_value_of_a_gene_that_is_not_registered_does_not_matter():
    registration = register(make()[:, ["G1", "G0"]]).registration
    counts = raw_counts()
    counts[:, 3] = 0.5
    assert len(registration.bind(make(counts))) == NUM_CELLS
    counts[-1, 1] = 0.5
    with pytest.raises(ValueError, match=r"the first 0\.5 \(cell 'cell29', gene 'G1'\)"):
        registration.bind(make(counts))


def test_slots_that_hold_integers_are_named():
    adata = make(logged())
    adata.layers["scaled"] = logged() - 1
    adata.layers["umi"] = raw_counts()
    adata.raw = make()
    with pytest.raises(ValueError, match=r'integers are in adata\.layers\["umi"\] \(pass counts="umi"\), adata\.raw'):
        register(adata)
    adata = make()
    adata.layers["logged"] = logged()
    with pytest.raises(ValueError, match=r"integers are in adata\.X \(pass counts=None\)\."):
        register(adata, counts="logged")


def test_values_normalised_to_a_fixed_total_are_recognised():
    counts = raw_counts()
    with pytest.raises(ValueError, match=r"every cell adds up to 1e\+06: this looks normalised to a fixed total"):
        register(make(counts / counts.sum(1, keepdims=True) * 1e6))


def test_estimated_counts_are_told_to_be_rounded():
    estimated = raw_counts() * 100 + np.random.default_rng(1).uniform(0, 1, (NUM_CELLS, NUM_GENES))
    with pytest.raises(ValueError, match=r"RSEM.*round them with np\.rint"):
        register(make(estimated))
    assert len(register(make(np.rint(estimated)))) == NUM_CELLS


def test_scaled_values_are_recognised():
    counts = raw_counts()
    with pytest.raises(ValueError, match=r"negative values.*scaled \(sc\.pp\.scale\).*usually in"):
        register(make((counts - counts.mean(0)) / counts.std(0)))


@pytest.mark.parametrize("integers", [np.int32, np.uint16, np.int64, bool])
def test_integer_types_are_counts(integers):
    counts = raw_counts().astype(integers)
    cells = register(make(counts))
    np.testing.assert_array_equal(cells.totals, counts.sum(1, dtype=float))
    assert cells.take([0]).counts.dtype == torch.float32


def test_negative_integers_are_refused():
    counts = raw_counts().astype(np.int32)
    counts[2, 2] = -3
    with pytest.raises(ValueError, match=r"the first -3 \(cell 'cell2', gene 'G2'\)"):
        register(make(counts))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_an_empty_matrix_is_refused(shape):
    message = f"expected at least one cell and one gene, got an AnnData of {shape[0]} cells x {shape[1]} genes"
    with pytest.raises(ValueError, match=message):
        register(anndata.AnnData(np.zeros(shape, dtype=np.float32)))


@pytest.mark.parametrize("storage", STORAGES)
def test_cells_without_counts_are_counted_and_named(storage, tmp_path):
    counts = raw_counts()
    counts[[3, 8]] = 0
    message = r"2 of 30 cells without any over the 6 genes: 'cell3', 'cell8'; drop them with sc\.pp\.filter_cells"
    with pytest.raises(ValueError, match=message):
        register(stored(counts, storage, tmp_path))


def test_the_fix_for_cells_without_counts_works_for_layers():
    adata = make()
    adata.layers["umi"] = sp.csr_matrix(raw_counts())
    adata.layers["umi"][4] = 0
    adata.layers["umi"].eliminate_zeros()
    with pytest.raises(ValueError, match="drop them with") as caught:
        register(adata, counts="umi")
    fix = str(caught.value).split("drop them with ")[1]
    assert fix == 'adata[np.asarray(adata.layers["umi"].sum(1)).ravel() > 0].copy()'
    kept = adata[np.asarray(adata.layers["umi"].sum(1)).ravel() > 0].copy()
    assert len(register(kept, counts="umi")) == NUM_CELLS - 1


def test_genes_without_counts_are_only_a_warning():
    counts = raw_counts()
    counts[:, 2] = 0
    with pytest.warns(UserWarning, match=r"1 of 6 genes have no counts in any cell: 'G2'; .*filter_genes"):
        cells = register(make(counts))
    assert cells.registration.genes == tuple(f"G{position}" for position in range(NUM_GENES))
    assert len(cells.registration.bind(make(counts))) == NUM_CELLS


def test_duplicated_gene_names_are_refused():
    adata = make()
    adata.var_names = ["G0", "G1", "G1", "G1", "G4", "G4"]
    message = r"distinct gene names in adata\.var_names, got 2 that .*: 'G1', 'G4'; .*var_names_make_unique"
    with pytest.raises(ValueError, match=message):
        register(adata)


def test_a_missing_layer_is_refused_with_what_exists():
    adata = make()
    with pytest.raises(ValueError, match=r'adata\.layers\["counts"\], but there are no layers; counts=None means'):
        register(adata, counts="counts")
    adata.layers["raw_counts"] = raw_counts()
    with pytest.raises(ValueError, match=r"there are 'raw_counts'; .* did you mean 'raw_counts'\?"):
        register(adata, counts="raw_count")


@pytest.mark.parametrize("role", ["conditions", "continuous", "labels", "size_factor"])
def test_a_missing_column_is_refused_with_what_exists(role):
    name = "Batch" if role in ("labels", "size_factor") else ["Batch"]
    message = rf"expected adata\.obs\[\"Batch\"\] \({role}\), but there are 'batch', 'dose'; did you mean 'batch'\?"
    with pytest.raises(ValueError, match=message):
        register(make(), **{role: name})


def test_an_empty_x_is_refused_with_the_layers_that_exist():
    adata = anndata.AnnData(layers={"umi": raw_counts()})
    for empty in (adata, adata[:5]):
        with pytest.raises(ValueError, match=r'counts in adata\.X, which is empty: pass counts="umi"'):
            register(empty)
    with pytest.raises(ValueError, match=r"set adata\.X to raw counts"):
        register(anndata.AnnData(obs=make().obs, var=make().var))


def test_a_condition_with_one_level_is_refused():
    adata = make()
    adata.obs["batch"] = pd.Categorical(["a"] * NUM_CELLS, categories=["a", "b"])
    with pytest.raises(ValueError, match=r"at least two levels in adata\.obs\[\"batch\"\], got one, 'a'"):
        register(adata, conditions=["batch"])


@pytest.mark.parametrize("categorical", [False, True])
def test_a_condition_with_missing_values_is_refused(categorical):
    adata = make()
    adata.obs["batch"] = [None, np.nan, *adata.obs["batch"][2:]]
    if categorical:
        adata.obs["batch"] = adata.obs["batch"].astype("category")
    with pytest.raises(ValueError, match=r"adata\.obs\[\"batch\"\], got 2 of 30 missing: drop those cells"):
        register(adata, conditions=["batch"])


def test_missing_values_are_refused_when_binding_too():
    registration = register(make(), conditions=["batch"], continuous=["dose"]).registration
    adata = make()
    adata.obs.loc["cell3", "batch"] = None
    with pytest.raises(ValueError, match="1 of 30 missing"):
        registration.bind(adata)
    adata = make()
    adata.obs.loc["cell3", "dose"] = np.nan
    with pytest.raises(ValueError, match="1 of 30 NaN or infinite"):
        registration.bind(adata)


def test_a_measured_column_is_no_condition():
    with pytest.raises(ValueError, match=r'float64 numbers: pass a measured quantity as continuous=\["dose"\]'):
        register(make(), conditions=["dose"])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("role", ["continuous", "size_factor"])
def test_numbers_that_are_not_finite_are_refused(bad, role):
    adata = make()
    adata.obs["dose"] = adata.obs["dose"] + 1
    adata.obs.loc["cell5", "dose"] = bad
    with pytest.raises(ValueError, match=r"adata\.obs\[\"dose\"\], got 1 of 30 NaN or infinite"):
        register(adata, **{role: ["dose"] if role == "continuous" else "dose"})


@pytest.mark.parametrize("convert", [lambda column: column, lambda column: column == "a"])
def test_a_continuous_column_that_is_not_numeric_is_refused(convert):
    adata = make()
    adata.obs["batch"] = convert(adata.obs["batch"])
    with pytest.raises(ValueError, match=r"expected numbers in adata\.obs\[\"batch\"\], got (object|str|bool).*astype"):
        register(adata, continuous=["batch"])


def test_a_constant_continuous_column_is_refused():
    adata = make()
    adata.obs["dose"] = 0.1
    with pytest.raises(ValueError, match=r"values that differ in adata\.obs\[\"dose\"\], got 0\.1 in all cells"):
        register(adata, continuous=["dose"])


@pytest.mark.parametrize("bad", [0.0, -1.0, 1e-60])
def test_size_factors_are_positive(bad):
    adata = make()
    adata.obs["dose"] = adata.obs["dose"] + 1
    adata.obs.loc["cell5", "dose"] = bad
    with pytest.raises(ValueError, match=r"above zero in adata\.obs\[\"dose\"\], got 1 of 30 that are not"):
        register(adata, size_factor="dose")


@pytest.mark.parametrize(
    "roles",
    [{"conditions": ["batch", "batch"]}, {"conditions": ["batch"], "continuous": ["batch"]}],
)
def test_a_column_named_twice_is_refused(roles):
    with pytest.raises(ValueError, match=r"each column once in conditions and continuous, got 'batch' more than"):
        register(make(), **roles)


def test_a_column_that_exists_twice_is_refused():
    adata = make()
    adata.obs = pd.concat([adata.obs, adata.obs[["batch"]]], axis=1)
    with pytest.raises(ValueError, match=r"one column adata\.obs\[\"batch\"\], got 2 of that name"):
        register(adata, conditions=["batch"])


def test_labels_without_a_label_or_with_fractions_are_refused():
    adata = make()
    adata.obs["none"] = np.nan
    with pytest.raises(ValueError, match=r"labels in adata\.obs\[\"none\"\], got missing values only"):
        register(adata, labels="none")
    with pytest.raises(ValueError, match=r"categories in adata\.obs\[\"dose\"\], got fractional numbers"):
        register(adata, labels="dose")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("counts.h5ad", r"expected an AnnData, got str: read the file first: anndata\.read_h5ad"),
        (
            np.ones((2, 2)),
            r"expected an AnnData, got ndarray: for arrays and tensors use Cells\.from_tensors",
        ),
        (torch.ones(2, 2), r"got Tensor: .*Cells\.from_tensors"),
        (pd.DataFrame({"G": [1]}), r"got DataFrame: .*Cells\.from_tensors"),
        (None, "expected an AnnData, got NoneType"),
    ],
)
def test_another_type_is_refused(given, message):
    with pytest.raises(TypeError, match=message):
        register(given)


def test_registered_cells_are_not_registered_again():
    with pytest.raises(TypeError, match="got Cells: it is registered already"):
        register(register(make()))


def test_an_unknown_matrix_type_is_refused():
    class Lazy:
        shape, dtype, ndim = (NUM_CELLS, NUM_GENES), np.dtype(np.float32), 2

    adata = make()
    adata._X = Lazy()  # anndata's own setter accepts only what this test must go beyond
    with pytest.raises(TypeError, match=r"a backed matrix in adata\.X, got .*Lazy: load it first.*to_memory"):
        open_counts(adata, None)


def test_a_closed_file_is_named(tmp_path):
    for storage in ("backed csr", "backed dense"):
        adata = stored(raw_counts(), storage, tmp_path)
        cells = register(adata)
        adata.file.close()
        with pytest.raises(ValueError, match=r"file that holds adata\.X to be open, it was closed: open it again"):
            cells.take([0])
        assert len(register(adata)) == NUM_CELLS
        adata.file.close()


def test_messages_name_the_slot_and_end_in_a_fix():
    with pytest.raises(ValueError, match="expected") as caught:
        register(make(logged()))
    assert re.search(r"expected .* got .*adata\.", str(caught.value))
