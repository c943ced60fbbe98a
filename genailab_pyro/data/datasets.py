"""Real counts: one data set that needs no download, and one that does."""

import warnings

import numpy as np
from anndata import AnnData
from scipy import sparse

from genailab_pyro.data.download import DownloadError, cache_folder

_OBS = ("bulk_labels", "n_genes", "n_counts", "percent_mito", "S_score", "G2M_score", "phase")
_ROUNDING = 5e-4
_PROVENANCE_68K = {
    "title": "Fresh 68k PBMCs (donor A), 700 cells and 765 genes",
    "source": "10x Genomics, reduced data set that ships with scanpy (scanpy.datasets.pbmc68k_reduced)",
    "reference": "Zheng et al. (2017), Massively parallel digital transcriptional profiling of single cells",
    "doi": "10.1038/ncomms14049",
    "counts": "rint(expm1(raw) * n_counts / 1e4), checked against the rounding of the stored values",
}
_PROVENANCE_3K = {
    "title": "3k PBMCs from a healthy donor",
    "source": "10x Genomics, as served to scanpy (scanpy.datasets.pbmc3k)",
    "reference": "10x Genomics, Single Cell Gene Expression data set 3k PBMCs, Cell Ranger 1.1.0 (2016)",
    "counts": "as stored",
}


def pbmc68k() -> AnnData:
    r"""Counts of 700 blood cells and 765 genes, with ten cell types, without a download.

    The peripheral blood mononuclear cells of one donor, as they ship with scanpy. Its file stores
    :math:`r = \log(1 + 10^4 x / n)` to three decimals, with counts :math:`x` and the cell's total :math:`n`
    over all genes, so :math:`x = \mathrm{rint}((e^r - 1) n / 10^4)`. That no other count would give the
    stored value is checked at every call.

    Returns:
        ``[700, 765]`` with counts in ``.X`` (CSR, float32) and in ``.obs``: ``bulk_labels`` (cell type),
        ``n_counts`` and ``n_genes`` (totals over **all** measured genes, not only over the 765 here),
        ``percent_mito`` (a fraction of all counts), ``S_score``, ``G2M_score`` and ``phase`` (cell cycle).
        The provenance is in ``.uns["provenance"]``.

    Raises:
        ValueError: If the file of the installed scanpy does not hold log-normalised counts of this form.

    References:
        G. X. Y. Zheng et al. (2017). Massively parallel digital transcriptional profiling of single cells.
        Nature Communications 8, 14049. doi:10.1038/ncomms14049

    Examples:
        >>> adata = pbmc68k()
        >>> adata.shape, float(adata.X.max())
        ((700, 765), 259.0)
        >>> adata.obs["bulk_labels"].nunique()
        10
    """
    import scanpy

    with warnings.catch_warnings():
        # The file is older than the present AnnData format, and some versions of anndata say so.
        warnings.simplefilter("ignore")
        stored = scanpy.datasets.pbmc68k_reduced()
    counts = counts_of_rounded_logs(sparse.csr_matrix(stored.raw.X), stored.obs["n_counts"].to_numpy(dtype=np.float64))
    obs = stored.obs[list(_OBS)].copy()
    obs["n_counts"] = obs["n_counts"].round().astype(np.int64)
    obs.index.name = None
    var = stored.raw.var[[]].copy()
    var.index.name = None
    return AnnData(X=counts, obs=obs, var=var, uns={"provenance": dict(_PROVENANCE_68K)})


def pbmc3k() -> AnnData:
    """Counts of 2700 blood cells and all 32738 genes; **downloads** 6 MB at the first call.

    The peripheral blood mononuclear cells of a healthy donor that most introductions use, through scanpy,
    which knows the address. The file is kept as ``pbmc3k_raw.h5ad`` in the cache folder
    (``$GENAILAB_PYRO_DATA``, or else the user's), so that later calls need no network.

    Returns:
        ``[2700, 32738]`` with counts in ``.X`` (CSR, float32), gene symbols as ``.var_names`` and Ensembl
        identifiers in ``.var["gene_ids"]``; no cell types. The provenance is in ``.uns["provenance"]``.

    Raises:
        DownloadError: If the file cannot be downloaded, or what came cannot be read.

    References:
        10x Genomics (2016). 3k PBMCs from a healthy donor, Single Cell Gene Expression data set, Cell
        Ranger 1.1.0.
    """
    import scanpy

    path = cache_folder() / "pbmc3k_raw.h5ad"
    was_there, before = path.exists(), scanpy.settings.datasetdir
    scanpy.settings.datasetdir = path.parent
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adata = scanpy.datasets.pbmc3k()
    except OSError as error:
        if not was_there:
            path.unlink(missing_ok=True)
        fix = f"delete {path} and try again" if was_there else "is there a network? pbmc68k() needs none"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DownloadError(f"scanpy.datasets.pbmc3k() could not be read ({reason}): {fix}") from None
    finally:
        scanpy.settings.datasetdir = before
    adata.X = sparse.csr_matrix(adata.X, dtype=np.float32)
    adata.obs.index.name = adata.var.index.name = None
    adata.uns["provenance"] = dict(_PROVENANCE_3K)
    return adata


def counts_of_rounded_logs(logs: sparse.csr_matrix, totals: np.ndarray) -> sparse.csr_matrix:
    """The counts behind log1p(1e4 x / total) that was stored to three decimals.

    Args:
        logs: Stored values, shape ``[cells, genes]``.
        totals: Total counts of each cell over all genes that were measured, shape ``[cells]``.

    Returns:
        Counts, CSR float32, shape ``[cells, genes]``.

    Raises:
        ValueError: If a value is no such logarithm of a whole number, or if two counts would share it.
    """
    values = logs.data.astype(np.float64)
    scale = np.repeat(totals / 1e4, np.diff(logs.indptr))
    counts = np.rint(np.expm1(values) * scale)
    error = np.abs(values - np.log1p(counts / scale))
    # A single-precision value below 16 is stored to within 1e-6.
    wrong = ~(error <= _ROUNDING + 1e-6)
    # The counts on both sides of a half-integer differ by one: they must be further apart than the rounding.
    ambiguous = np.log1p((counts + 1) / scale) - np.log1p(counts / scale) <= 2 * _ROUNDING
    if wrong.any() or ambiguous.any():
        raise ValueError(
            "scanpy.datasets.pbmc68k_reduced().raw.X should hold log1p(1e4 * count / n_counts) to three "
            f"decimals; of {values.size} values {int(wrong.sum())} are no such logarithm and "
            f"{int(ambiguous.sum())} fit two counts. The file of this scanpy has changed: "
            "install scanpy 1.11, or load counts of your own"
        )
    restored = sparse.csr_matrix((counts.astype(np.float32), logs.indices.copy(), logs.indptr.copy()), shape=logs.shape)
    restored.eliminate_zeros()
    restored.sort_indices()
    return restored
