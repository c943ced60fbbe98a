"""From raw counts to the cells and genes that a model is fitted to."""

import warnings

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData
from scipy import sparse

from genailab_pyro.data.matrix import CountMatrix
from genailab_pyro.data.validation import (
    check_anndata,
    check_counts,
    check_genes,
    check_layer,
    named,
    suggestion,
)
from genailab_pyro.threads import threads_kept

_SPANS = (0.3, 0.5, 0.75, 1.0)
_FEWEST_GENES = 10

Chosen = npt.NDArray[np.bool_]


def preprocess(
    adata: AnnData,
    *,
    counts: str | None = None,
    min_cells: int = 3,
    min_counts: int = 1,
    max_genes: int | None = 2000,
    max_mito_fraction: float | None = None,
    mito_prefix: str = "MT-",
    batch: str | None = None,
) -> AnnData:
    """Drop poor cells and silent genes, keep the highly variable genes, and leave the counts as they are.

    In this order: cells with too few counts or too large a mitochondrial fraction go, then genes seen in too
    few of the remaining cells, then all but the most variable genes (``seurat_v3`` through scanpy: variance
    after standardisation by a curve of variance against mean, ranked within each batch), then cells without
    counts on the kept genes, with a warning. The curve is a local regression; where too few genes have means
    of their own for its usual span of .3, wider spans up to 1 are tried, also with a warning.

    Args:
        adata: Raw counts of cells by genes, in memory or backed; it is not changed.
        counts: Layer that holds the counts; None: ``.X``.
        min_cells: Least number of cells in which a gene has a count.
        min_counts: Least total counts of a cell, over all genes.
        max_genes: Largest number of genes to keep; None, or no fewer than there are: all.
        max_mito_fraction: Largest share of a cell's counts on mitochondrial genes, 0 to 1; None: any.
        mito_prefix: How the names of mitochondrial genes begin, in upper or lower case.
        batch: Column of ``.obs`` with the experimental batches, within which the variability is ranked.

    Returns:
        A new AnnData with counts in ``.X`` (CSR), ``.var["highly_variable_rank"]`` (0 is the most variable;
        the median over batches) where genes were ranked, ``.obs["mito_fraction"]`` where it was asked for,
        and what was done in ``.uns["preprocess"]``.

    Raises:
        TypeError: If the argument is no AnnData.
        ValueError: If the values are no raw counts, an option is out of range, a column is missing, no cell
            or gene would be left, or the data are too few to rank genes.

    References:
        T. Stuart et al. (2019). Comprehensive integration of single-cell data. Cell 177, 1888.
        doi:10.1016/j.cell.2019.05.031

    Examples:
        >>> from genailab_pyro.data.datasets import pbmc68k
        >>> adata = preprocess(pbmc68k(), max_genes=300)
        >>> adata.shape
        (700, 300)
        >>> adata.uns["preprocess"]["genes_before"]
        765
    """
    _check_options(min_cells, min_counts, max_genes, max_mito_fraction)
    adata = check_anndata(adata)
    adata = adata.to_memory() if adata.isbacked else adata
    matrix = _raw_counts(adata, counts)
    batches = None if batch is None else _batches(adata, batch)
    cells = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel() >= min_counts
    obs, var = adata.obs[[]].copy(), adata.var[[]].copy()
    if max_mito_fraction is not None:
        obs["mito_fraction"] = _mito_fraction(matrix, adata.var_names, mito_prefix)
        cells &= (obs["mito_fraction"] <= max_mito_fraction).to_numpy()
    _check_left(cells, "cell", f"min_counts={min_counts} and max_mito_fraction={max_mito_fraction}")
    genes = matrix[cells].getnnz(axis=0) >= min_cells
    _check_left(genes, "gene", f"min_cells={min_cells}")
    span = None
    if max_genes is not None and max_genes < genes.sum():
        ranking, span = _rank(matrix[cells][:, genes], None if batches is None else batches[cells], max_genes)
        var.loc[genes, "highly_variable_rank"] = ranking["highly_variable_rank"].to_numpy()
        genes[genes] = ranking["highly_variable"].to_numpy()
    cells = _drop_silent(cells, matrix[:, genes])
    done = {
        "counts": counts,
        "min_cells": min_cells,
        "min_counts": min_counts,
        "max_genes": max_genes,
        "max_mito_fraction": max_mito_fraction,
        "batch": batch,
        "span": span,
        "cells_before": adata.n_obs,
        "genes_before": adata.n_vars,
    }
    result = _subset(adata, matrix, cells, genes)
    result.obs[obs.columns] = obs[cells]
    result.var[var.columns] = var[genes]
    result.uns["preprocess"] = {name: value for name, value in done.items() if value is not None}
    return result


def _check_options(min_cells: int, min_counts: int, max_genes: int | None, max_mito_fraction: float | None) -> None:
    for name, value in (("min_cells", min_cells), ("min_counts", min_counts), ("max_genes", max_genes)):
        if value is not None and value < 1:
            raise ValueError(f"{name} should be 1 or more, but is {value}")
    if max_mito_fraction is not None and not 0 <= max_mito_fraction <= 1:
        raise ValueError(f"max_mito_fraction is a share from 0 to 1 (not percent), but is {max_mito_fraction}")


def _raw_counts(adata: AnnData, layer: str | None) -> sparse.csr_matrix:
    """The counts, checked, with no stored zeros; cells without counts are still among them."""
    check_layer(adata, layer)
    genes = check_genes(adata.var_names)
    stored = adata.X if layer is None else adata.layers[layer]
    matrix = sparse.csr_matrix(stored, copy=True)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    filled = np.diff(matrix.indptr) > 0
    _check_left(filled, "cell", "one count")
    place = "adata.X" if layer is None else f'adata.layers["{layer}"]'
    check_counts(CountMatrix(matrix[filled], place), adata.obs_names.to_numpy(dtype=str)[filled], genes, adata)
    return matrix


def _batches(adata: AnnData, name: str) -> npt.NDArray[np.str_]:
    if name not in adata.obs:
        columns = list(adata.obs.columns)
        raise ValueError(
            f'expected the batches in adata.obs["{name}"], but the columns are {named(columns, 20) or "none"}'
            f"{suggestion(name, columns)}"
        )
    missing = int(adata.obs[name].isna().sum())
    if missing:
        raise ValueError(f'adata.obs["{name}"] has no batch for {missing} cells: name it, or drop those cells')
    return adata.obs[name].to_numpy(dtype=str)


def _mito_fraction(matrix: sparse.csr_matrix, genes: pd.Index, prefix: str) -> npt.NDArray[np.float64]:
    mitochondrial = genes.astype(str).str.upper().str.startswith(prefix.upper())
    if not mitochondrial.any():
        raise ValueError(
            f"max_mito_fraction needs mitochondrial genes, but no name in adata.var_names begins with "
            f"{prefix!r} (they are {named(genes)}): pass mito_prefix=, or leave max_mito_fraction out"
        )
    totals = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
    share = np.asarray(matrix[:, np.flatnonzero(mitochondrial)].sum(axis=1, dtype=np.float64)).ravel()
    return share / np.maximum(totals, 1)


def _check_left(kept: Chosen, what: str, rule: str) -> None:
    if not kept.any():
        raise ValueError(f"no {what} of {kept.size} satisfies {rule}: nothing would be left")


def _rank(
    matrix: sparse.csr_matrix, batches: npt.NDArray[np.str_] | None, max_genes: int
) -> tuple[pd.DataFrame, float]:
    """How variable each gene is, and the span of the curve of variance against mean."""
    import scanpy

    data = AnnData(X=matrix)
    if batches is not None:
        data.obs["batch"] = pd.Categorical(batches)
    _check_enough(matrix, batches)
    reason = ""
    for span in _SPANS:
        try:
            with threads_kept():
                ranking = scanpy.pp.highly_variable_genes(
                    data,
                    flavor="seurat_v3",
                    n_top_genes=max_genes,
                    batch_key=None if batches is None else "batch",
                    span=span,
                    check_values=False,
                    inplace=False,
                )
        except ValueError as error:
            # The local regression passes on what its Fortran says, as bytes.
            reason = reason or str(error).removeprefix("b").strip("'\". ")
            continue
        if reason:
            warnings.warn(
                f"the curve of variance against mean could not be fitted with the usual span of {_SPANS[0]} "
                f"({reason}); {span} was used: with such small or sparse batches the choice of genes is rough",
                UserWarning,
                stacklevel=3,
            )
        return ranking, span
    raise ValueError(
        f"the genes could not be ranked: no curve of variance against mean fits {matrix.shape[0]} cells x "
        f"{matrix.shape[1]} genes ({reason}); keep all with max_genes=None, or rank without batch="
    )


def _check_enough(matrix: sparse.csr_matrix, batches: npt.NDArray[np.str_] | None) -> None:
    """Refuse what makes the local regression's compiled code crash: hardly any gene that varies."""
    for name in [None] if batches is None else np.unique(batches):
        part = matrix if name is None else matrix[batches == name]
        varying = int((part.max(axis=0).toarray() != part.min(axis=0).toarray()).sum())
        if varying < _FEWEST_GENES:
            where = "" if name is None else f" in batch {str(name)!r}"
            raise ValueError(
                f"ranking genes needs {_FEWEST_GENES} or more that vary among the cells, but {varying} of "
                f"{part.shape[1]} do among the {part.shape[0]} cells{where}: keep all with max_genes=None"
                + ("" if name is None else ", rank without batch=, or drop that batch")
            )


def _drop_silent(cells: Chosen, matrix: sparse.csr_matrix) -> Chosen:
    silent = cells & (np.diff(matrix.indptr) == 0)
    if silent.any():
        warnings.warn(
            f"{int(silent.sum())} of {int(cells.sum())} cells have no counts on the {matrix.shape[1]} genes "
            "kept and are dropped: raise max_genes= or min_counts= to avoid that",
            UserWarning,
            stacklevel=3,
        )
    return cells & ~silent


def _subset(adata: AnnData, matrix: sparse.csr_matrix, cells: Chosen, genes: Chosen) -> AnnData:
    result = adata[cells, genes].copy()
    result.X = matrix[cells][:, genes]
    return result
