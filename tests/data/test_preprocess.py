import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy
import torch
from scipy import sparse

from genailab_pyro.data.datasets import pbmc68k
from genailab_pyro.data.preprocess import preprocess
from genailab_pyro.data.simulate import Perturbations, simulate


@pytest.fixture
def counts():
    return pbmc68k()


def small(values, genes=None, **slots):
    values = np.asarray(values, dtype=np.float32)
    names = genes or [f"g{i}" for i in range(values.shape[1])]
    return anndata.AnnData(X=sparse.csr_matrix(values), var=pd.DataFrame(index=names), **slots)


def test_the_kept_counts_are_the_given_counts(counts):
    result = preprocess(counts, max_genes=200)
    assert result.shape == (700, 200)
    assert isinstance(result.X, sparse.csr_matrix)
    assert (result.X != counts[result.obs_names, result.var_names].X).nnz == 0
    assert result.obs.equals(counts.obs)
    assert result.uns["provenance"] == counts.uns["provenance"]


def test_the_input_is_left_alone(counts):
    before = counts.copy()
    result = preprocess(counts, max_genes=100, batch="phase")
    result.X.data[:] = 7
    result.obs["bulk_labels"] = "x"
    assert (counts.X != before.X).nnz == 0
    assert counts.obs.equals(before.obs)
    assert counts.var.equals(before.var)
    assert list(counts.uns) == list(before.uns)
    assert not result.is_view


def test_zeros_that_the_input_stores_stay_there():
    adata = small([[1, 2], [3, 4]])
    adata.X.data[0] = 0
    assert preprocess(adata, min_cells=2).shape == (2, 1)
    assert adata.X.nnz == 4
    np.testing.assert_array_equal(adata.X.toarray(), [[0, 2], [3, 4]])


def test_the_most_variable_genes_are_kept_in_their_order(counts):
    result = preprocess(counts, max_genes=150)
    table = scanpy.pp.highly_variable_genes(counts, flavor="seurat_v3", n_top_genes=150, inplace=False)
    expected = table["highly_variable"].to_numpy() & (counts.X.getnnz(axis=0) >= 3)
    assert list(result.var_names) == list(counts.var_names[expected])
    assert sorted(result.var["highly_variable_rank"]) == list(range(150))


def test_genes_are_ranked_within_batches():
    adata, truth = simulate(600, 120, num_types=1, num_batches=2, batch_scale=1.5, seed=1)
    apart, together = preprocess(adata, max_genes=30, batch="batch"), preprocess(adata, max_genes=30)
    strength = np.abs(truth.batch_effects[0])
    of = dict(zip(adata.var_names, strength, strict=True))
    by_batch, pooled = ([of[name] for name in result.var_names] for result in (apart, together))
    assert np.mean(pooled) > 1.3 * np.mean(by_batch)
    assert apart.uns["preprocess"]["batch"] == "batch"


def test_genes_that_make_cells_differ_are_preferred():
    adata, truth = simulate(1000, 200, num_types=1, perturbations=Perturbations(1, 20, scale=2.0), seed=2)
    kept = preprocess(adata, max_genes=50).var_names
    changed = set(adata.var_names[truth.perturbation_effects[1] != 0])
    assert len(changed & set(kept)) >= 15


def test_genes_in_too_few_cells_are_dropped():
    values = [[1, 5, 0, 1], [1, 5, 0, 0], [1, 0, 0, 0], [1, 0, 9, 0]]
    assert list(preprocess(small(values), min_cells=2).var_names) == ["g0", "g1"]
    assert list(preprocess(small(values), min_cells=1).var_names) == ["g0", "g1", "g2", "g3"]


def test_cells_with_too_few_counts_are_dropped_before_genes_are_looked_at():
    values = [[5, 1, 0], [5, 1, 0], [0, 0, 1], [0, 0, 0]]
    result = preprocess(small(values), min_counts=2, min_cells=1)
    assert list(result.obs_names) == ["0", "1"]
    assert list(result.var_names) == ["g0", "g1"]


def test_cells_without_counts_are_dropped_without_a_word():
    assert preprocess(small([[1, 2], [0, 0], [3, 0]]), min_cells=1).n_obs == 2


def test_cells_without_counts_on_the_kept_genes_are_dropped_with_a_count():
    values = [[4, 0], [4, 0], [4, 0], [0, 3]]
    with pytest.warns(UserWarning, match="1 of 4 cells have no counts on the 1 genes kept"):
        result = preprocess(small(values), min_cells=2)
    assert result.shape == (3, 1)


def test_cells_with_a_large_mitochondrial_fraction_are_dropped():
    values = [[9, 1, 0], [5, 3, 2], [1, 9, 9]]
    result = preprocess(small(values, ["A", "MT-1", "mt-2"]), max_mito_fraction=0.5, min_cells=1)
    assert list(result.obs_names) == ["0", "1"]
    np.testing.assert_allclose(result.obs["mito_fraction"], [0.1, 0.5])
    assert "mito_fraction" not in preprocess(small(values), min_cells=1).obs


def test_a_mitochondrial_filter_without_such_genes_is_refused():
    with pytest.raises(ValueError, match=r"no name in adata\.var_names begins with 'MT-'"):
        preprocess(small([[1, 2]]), max_mito_fraction=0.1, min_cells=1)
    assert preprocess(small([[9, 1]], ["A", "mito.B"]), max_mito_fraction=0.2, mito_prefix="mito.", min_cells=1).n_obs


@pytest.mark.parametrize("max_genes", [None, 765, 5000])
def test_all_genes_are_kept_where_no_fewer_are_wanted(counts, max_genes):
    result = preprocess(counts, max_genes=max_genes, min_cells=1)
    assert result.n_vars == 765
    assert "highly_variable_rank" not in result.var
    assert "span" not in result.uns["preprocess"]


def test_counts_in_a_layer_are_taken_from_there(counts):
    counts.layers["raw"] = counts.X.copy()
    counts.X = counts.X.log1p()
    result = preprocess(counts, counts="raw", max_genes=50)
    assert (counts[:, result.var_names].layers["raw"] != result.X).nnz == 0
    assert result.uns["preprocess"]["counts"] == "raw"


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.coo_matrix])
def test_every_form_of_matrix_gives_the_same(form):
    adata = simulate(60, 40).adata
    dense = adata.X.toarray()
    if form is not sparse.coo_matrix:
        adata.X = form(dense)
    result = preprocess(adata, max_genes=20)
    assert isinstance(result.X, sparse.csr_matrix)
    np.testing.assert_array_equal(result.X.toarray(), dense[:, adata.var_names.isin(result.var_names)])


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_a_file_on_disk_is_read_and_left_alone(form, tmp_path):
    adata = simulate(60, 40).adata
    adata.X = form(adata.X.toarray())
    adata.write_h5ad(tmp_path / "a.h5ad")
    before = (tmp_path / "a.h5ad").read_bytes()
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    result, expected = preprocess(backed, max_genes=20), preprocess(adata, max_genes=20)
    view = preprocess(backed[:30], max_genes=None)
    backed.file.close()
    assert not result.isbacked
    assert (result.X != expected.X).nnz == 0
    np.testing.assert_array_equal(view.X.toarray(), adata[:30, view.var_names].to_df().to_numpy())
    assert (tmp_path / "a.h5ad").read_bytes() == before


def test_what_was_done_is_recorded_and_can_be_written(counts, tmp_path):
    result = preprocess(counts, max_genes=100, min_cells=5, batch="phase", max_mito_fraction=0.9)
    assert result.uns["preprocess"] == {
        "min_cells": 5,
        "min_counts": 1,
        "max_genes": 100,
        "max_mito_fraction": 0.9,
        "batch": "phase",
        "span": 0.3,
        "cells_before": 700,
        "genes_before": 765,
    }
    result.write_h5ad(tmp_path / "a.h5ad")
    assert anndata.read_h5ad(tmp_path / "a.h5ad").uns["preprocess"]["max_genes"] == 100


@pytest.mark.parametrize("spoil", [lambda x: x.log1p(), lambda x: x * 0.5, lambda x: -x])
def test_what_is_no_count_is_refused(counts, spoil):
    counts.X = spoil(counts.X)
    with pytest.raises(ValueError, match=r"adata\.X"):
        preprocess(counts)


def test_counts_that_are_not_finite_are_refused_even_in_an_otherwise_empty_cell():
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="finite"):
            preprocess(small([[1, 2], [value, 0]]), min_cells=1)


def test_normalised_counts_point_to_the_layer_that_holds_counts(counts):
    counts.layers["raw"] = counts.X.copy()
    counts.X = counts.X.log1p()
    with pytest.raises(ValueError, match='layers\\["raw"\\]'):
        preprocess(counts)


def test_a_batch_column_that_is_missing_is_named_with_a_suggestion(counts):
    with pytest.raises(ValueError, match=r'adata\.obs\["phases"\].*did you mean \'phase\''):
        preprocess(counts, batch="phases")


def test_cells_without_a_batch_are_counted(counts):
    counts.obs["batch"] = ["a", None] + ["b"] * 698
    with pytest.raises(ValueError, match="no batch for 1 cells"):
        preprocess(counts, batch="batch")


def test_a_batch_of_one_cell_is_named_before_compiled_code_meets_it(counts):
    counts.obs["batch"] = ["alone"] + ["b"] * 699
    with pytest.raises(ValueError, match=r"0 of 765 do among the 1 cells in batch 'alone'.*without batch="):
        preprocess(counts, batch="batch", max_genes=100, min_cells=1)


def test_too_few_genes_to_rank_are_refused_before_compiled_code_meets_them():
    adata = simulate(50, 5).adata
    with pytest.raises(ValueError, match="needs 10 or more that vary among the cells, but 5 of 5"):
        preprocess(adata, max_genes=3)


def test_a_curve_that_needs_a_wider_span_is_found_with_a_warning():
    rng = np.random.default_rng(0)
    adata = small(rng.poisson(rng.gamma(2.0, 1.0, size=12), size=(50, 12)))
    with pytest.warns(UserWarning, match=r"usual span of 0\.3 \(.*\); \S+ was used"):
        result = preprocess(adata, max_genes=6, min_cells=1)
    assert result.n_vars == 6
    assert result.uns["preprocess"]["span"] > 0.3


def test_counts_to_which_no_curve_fits_are_refused():
    values = np.zeros((4, 40))
    values[np.arange(40) % 4, np.arange(40)] = 1
    with pytest.raises(ValueError, match=r"the genes could not be ranked.*max_genes=None"):
        preprocess(small(values), max_genes=20, min_cells=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_cells": 0}, "min_cells should be 1 or more"),
        ({"min_counts": 0}, "min_counts should be 1 or more"),
        ({"max_genes": 0}, "max_genes should be 1 or more"),
        ({"max_mito_fraction": 5.0}, "a share from 0 to 1"),
        ({"min_cells": 701}, "no gene of 765 satisfies min_cells=701"),
        ({"min_counts": 10**6}, "no cell of 700 satisfies min_counts=1000000"),
        ({"counts": "raw"}, 'layers\\["raw"\\]'),
    ],
)
def test_an_option_out_of_range_is_named(counts, options, message):
    with pytest.raises(ValueError, match=message):
        preprocess(counts, **options)


def test_other_things_than_an_anndata_are_refused():
    with pytest.raises(TypeError, match="AnnData"):
        preprocess(np.ones((3, 3)))


def test_genes_of_the_same_name_are_refused():
    adata = small([[1, 2]])
    adata.var_names = ["a", "a"]
    with pytest.raises(ValueError, match="var_names_make_unique"):
        preprocess(adata)


def test_a_matrix_without_any_count_is_refused():
    with pytest.raises(ValueError, match="no cell of 2"):
        preprocess(small([[0, 0], [0, 0]]))


def test_the_number_of_threads_is_left_alone(monkeypatch):
    ranked = scanpy.pp.highly_variable_genes

    def busy(*args, **options):
        torch.set_num_threads(torch.get_num_threads() + 1)
        return ranked(*args, **options)

    monkeypatch.setattr(scanpy.pp, "highly_variable_genes", busy)
    before = torch.get_num_threads()
    preprocess(simulate(60, 40, seed=3).adata, max_genes=20)
    assert torch.get_num_threads() == before
