import urllib.error
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy
from scipy import sparse

from genailab_pyro.data.datasets import counts_of_rounded_logs, pbmc3k, pbmc68k
from genailab_pyro.data.download import DownloadError


@pytest.fixture(scope="module")
def adata():
    return pbmc68k()


def rounded_logs(counts, totals):
    logs = np.round(np.log1p(1e4 * counts / totals[:, None]), 3)
    return sparse.csr_matrix(logs.astype(np.float32))


def test_the_embedded_counts_are_whole_numbers_in_csr(adata):
    assert adata.shape == (700, 765)
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.float32
    assert (adata.X.data == np.rint(adata.X.data)).all()
    assert adata.X.data.min() == 1
    assert adata.X.nnz == 174400
    assert adata.X.has_canonical_format


def test_the_embedded_counts_give_the_stored_values_back(adata):
    stored = scanpy.datasets.pbmc68k_reduced()
    totals = stored.obs["n_counts"].to_numpy(dtype=np.float64)
    again = np.log1p(1e4 * adata.X.toarray().astype(np.float64) / totals[:, None])
    assert np.abs(again - stored.raw.X.toarray()).max() < 5.01e-4
    assert list(adata.var_names) == list(stored.raw.var_names)
    assert list(adata.obs_names) == list(stored.obs_names)


def test_no_cell_has_more_counts_on_these_genes_than_in_all(adata):
    totals = np.asarray(adata.X.sum(axis=1)).ravel()
    assert (totals <= adata.obs["n_counts"]).all()
    assert (adata.X.getnnz(axis=1) <= adata.obs["n_genes"]).all()


def test_the_embedded_counts_carry_labels_and_provenance_and_nothing_that_does_not_describe_them(adata):
    assert adata.obs["bulk_labels"].nunique() == 10
    assert adata.obs["bulk_labels"].notna().all()
    assert adata.uns["provenance"]["doi"] == "10.1038/ncomms14049"
    assert set(adata.uns) == {"provenance"}
    assert not len(adata.obsm)
    assert not len(adata.varm)
    assert not len(adata.obsp)
    assert not len(adata.layers)
    assert adata.raw is None
    assert "louvain" not in adata.obs
    assert not len(adata.var.columns)


def test_every_call_gives_counts_of_its_own():
    first = pbmc68k()
    first.X.data[:] = 0
    first.uns["provenance"]["doi"] = ""
    second = pbmc68k()
    assert second.X.sum() > 0
    assert second.uns["provenance"]["doi"]


def test_the_embedded_counts_come_without_a_warning_and_can_be_written(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adata = pbmc68k()
        adata.write_h5ad(tmp_path / "a.h5ad")
    assert (anndata.read_h5ad(tmp_path / "a.h5ad").X != adata.X).nnz == 0


def test_counts_come_back_from_their_rounded_logarithms():
    rng = np.random.default_rng(0)
    totals = rng.integers(1500, 4000, 50).astype(np.float64)
    counts = rng.poisson(rng.gamma(0.3, 20, size=(50, 30)))
    restored = counts_of_rounded_logs(rounded_logs(counts, totals), totals)
    np.testing.assert_array_equal(restored.toarray(), counts)


def test_a_file_of_other_values_is_refused():
    totals = np.array([2000.0, 3000.0])
    logs = rounded_logs(np.array([[1, 0, 3], [2, 7, 0]]), totals)
    for planted in (logs * 1.01, sparse.csr_matrix(logs.power(2)), -logs):
        with pytest.raises(ValueError, match="are no such logarithm"):
            counts_of_rounded_logs(sparse.csr_matrix(planted), totals)
    logs.data[0] = np.nan
    with pytest.raises(ValueError, match="1 are no such logarithm"):
        counts_of_rounded_logs(logs, totals)


def test_counts_too_large_for_three_decimals_are_refused():
    totals = np.array([20000.0])
    with pytest.raises(ValueError, match="1 fit two counts"):
        counts_of_rounded_logs(rounded_logs(np.array([[5000, 3]]), totals), totals)


def test_a_changed_scanpy_is_noticed(monkeypatch):
    changed = scanpy.datasets.pbmc68k_reduced()
    changed.obs["n_counts"] = changed.obs["n_counts"] * 1.1
    monkeypatch.setattr(scanpy.datasets, "pbmc68k_reduced", lambda: changed)
    with pytest.raises(ValueError, match="The file of this scanpy has changed"):
        pbmc68k()


def test_without_a_network_the_download_fails_in_one_line_and_leaves_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.setenv("GENAILAB_PYRO_DATA", str(tmp_path))
    before = scanpy.settings.datasetdir

    def fail():
        (scanpy.settings.datasetdir / "pbmc3k_raw.h5ad").write_bytes(b"part of it")
        raise urllib.error.URLError("no address\nassociated")

    monkeypatch.setattr(scanpy.datasets, "pbmc3k", fail)
    with pytest.raises(DownloadError, match="is there a network") as caught:
        pbmc3k()
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert scanpy.settings.datasetdir == before.resolve()


def test_an_unreadable_file_in_the_cache_is_named_and_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("GENAILAB_PYRO_DATA", str(tmp_path))
    path = tmp_path / "pbmc3k_raw.h5ad"
    path.write_bytes(b"part of it")
    with pytest.raises(DownloadError, match=r"delete .*pbmc3k_raw\.h5ad and try again"):
        pbmc3k()
    assert path.exists()


def test_a_file_in_the_cache_is_read_without_a_network(monkeypatch, tmp_path):
    monkeypatch.setenv("GENAILAB_PYRO_DATA", str(tmp_path))
    counts = np.array([[0, 2, 1], [3, 0, 0]], dtype=np.float32)
    var = pd.DataFrame({"gene_ids": ["E1", "E2", "E3"]}, index=pd.Index(["a", "b", "c"], name="index"))
    anndata.AnnData(X=sparse.csr_matrix(counts), var=var).write_h5ad(tmp_path / "pbmc3k_raw.h5ad")
    adata = pbmc3k()
    assert isinstance(adata.X, sparse.csr_matrix)
    np.testing.assert_array_equal(adata.X.toarray(), counts)
    assert list(adata.var_names) == ["a", "b", "c"]
    assert "provenance" in adata.uns
