"""Checks of what a user hands over, each with an error that says what was expected, what came and the fix."""

import difflib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData

from genailab_pyro.data.matrix import Block, CountMatrix, Integers, is_sparse, open_counts

LARGEST_LOG = 20.0  # log1p of counts scaled to a million stays below 14


class Totals(NamedTuple):
    """Sums of counts.

    Attributes:
        cells: Total counts of each cell, shape ``[cells]``.
        genes: Total counts of each gene, shape ``[genes]``.
    """

    cells: npt.NDArray[np.float64]
    genes: npt.NDArray[np.float64]


def named(names: Iterable[object], limit: int = 5) -> str:
    """The first names, quoted, and how many there are in all when some are left out."""
    every = [repr(str(name)) for name in names]
    rest = f", ... ({len(every)} in all)" if len(every) > limit else ""
    return ", ".join(every[:limit]) + rest


def suggestion(name: str, known: Iterable[object]) -> str:
    """``; did you mean 'batch'?`` where a known name is close, else nothing."""
    folded = {str(other).lower(): str(other) for other in known}
    close = difflib.get_close_matches(str(name).lower(), folded, n=1)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""


def check_names(given: Mapping[str, object], known: Sequence[str], kind: str) -> None:
    """Refuse names that are not registered.

    Raises:
        ValueError: If there is one; the known ones are listed.
    """
    for name in given:
        if name not in known:
            there = f"expected one of {named(known, 20)}" if known else f"no {kind} is registered"
            raise ValueError(f"{name!r} is no registered {kind}: {there}{suggestion(str(name), known)}")


def check_anndata(adata: object) -> AnnData:
    """The argument itself, if it is an AnnData with cells and genes.

    Raises:
        TypeError: If it is of another type.
        ValueError: If it has no cells or no genes.
    """
    if not isinstance(adata, AnnData):
        fix = {
            "str": "read the file first: anndata.read_h5ad(path)",
            "PosixPath": "read the file first: anndata.read_h5ad(path)",
            "MuData": 'pass one modality: mdata.mod["rna"]',
            "Cells": "it is registered already; use it as it is, or pass its .adata",
        }.get(type(adata).__name__, "for arrays and tensors use Cells.from_tensors(counts, ...)")
        raise TypeError(f"expected an AnnData, got {type(adata).__name__}: {fix}")
    if 0 in adata.shape:
        raise ValueError(
            f"expected at least one cell and one gene, got an AnnData of {adata.n_obs} cells x "
            f"{adata.n_vars} genes: check the filter or the subset that made it"
        )
    return adata


def check_genes(names: Iterable[object], where: str = "adata.var_names") -> tuple[str, ...]:
    """Names of genes as text.

    Raises:
        ValueError: If a name occurs more than once.
    """
    genes = pd.Index([str(name) for name in names])
    twice = genes[genes.duplicated()].unique()
    if len(twice):
        raise ValueError(
            f"expected distinct gene names in {where}, got {len(twice)} that occur more than once: "
            f"{named(twice)}; make them distinct with adata.var_names_make_unique(), or use gene identifiers"
        )
    return tuple(genes)


def check_layer(adata: AnnData, layer: str | None) -> None:
    """Refuse a slot that does not exist.

    Raises:
        ValueError: If the layer is missing, or ``.X`` is empty.
    """
    layers = list(adata.layers)
    if layer is not None and layer not in layers:
        known = f"there are {named(layers, 20)}" if layers else "there are no layers"
        raise ValueError(
            f'expected counts in adata.layers["{layer}"], but {known}; counts=None means adata.X'
            f"{suggestion(layer, layers)}"
        )
    if layer is None and not _has_x(adata):
        known = f': pass counts="{layers[0]}", or another layer' if layers else ": set adata.X to raw counts"
        raise ValueError(f"expected counts in adata.X, which is empty{known}")


def _has_x(adata: AnnData) -> bool:
    if adata.isbacked:
        if not adata.file.is_open:
            adata.file.open()
        return "X" in adata.file
    some = adata[:1] if adata.is_view else adata  # .X of a view copies all of its rows
    return some.X is not None


def match_genes(adata: AnnData, genes: Sequence[str]) -> Integers | None:
    """Positions of the registered genes in another AnnData; None where all stand at their places.

    Raises:
        ValueError: If genes are missing or a registered one occurs more than once.
    """
    present = pd.Index([str(name) for name in adata.var_names])
    wanted = pd.Index(genes)
    if present.equals(wanted):
        return None
    missing = wanted[~wanted.isin(present)]
    if len(missing):
        raise ValueError(
            f"expected the {len(wanted)} registered genes in adata.var_names, {len(missing)} are missing: "
            f"{named(missing)}{_other_names(adata, wanted)}"
        )
    check_genes(present[present.isin(wanted)])
    positions = present[present.isin(wanted)]
    return np.flatnonzero(present.isin(wanted))[positions.get_indexer(wanted)].astype(np.int64)


def _other_names(adata: AnnData, wanted: pd.Index) -> str:
    for column in adata.var.columns:
        if wanted.isin(adata.var[column].astype(str)).mean() > 0.5:
            return f'; adata.var["{column}"] holds most of them: set adata.var_names = adata.var["{column}"]'
    return "; bind data of the same annotation, or register anew on the genes that both have"


def check_counts(
    matrix: CountMatrix, cells: npt.NDArray[np.str_], genes: Sequence[str], adata: AnnData | None = None
) -> Totals:
    """Stream over a matrix once, refuse what is no count, and add up.

    Args:
        matrix: The counts.
        cells: Names of its cells.
        genes: Names of its genes.
        adata: Where other slots are looked at, to name one that does hold counts.

    Returns:
        The totals of cells and genes.

    Raises:
        TypeError: If the values are no real numbers.
        ValueError: If a value is NaN, infinite, negative or not an integer, or a cell has no counts.
    """
    if matrix.dtype.kind not in "buif":
        raise TypeError(
            f"expected counts of a numeric type in {matrix.place}, got {matrix.dtype}: convert with .astype"
        )
    totals = Totals(np.zeros(matrix.shape[0]), np.zeros(matrix.shape[1]))
    for rows, columns, block in matrix.blocks():
        if is_sparse(block):
            block.sum_duplicates()
        _check_block(block, matrix, (cells[rows], np.asarray(genes)[columns]), adata)
        totals.cells[rows] += np.asarray(block.sum(axis=1, dtype=np.float64)).ravel()
        totals.genes[columns] += np.asarray(block.sum(axis=0, dtype=np.float64)).ravel()
    silent = np.flatnonzero(totals.cells == 0)
    if silent.size:
        raise ValueError(
            f"expected every cell to have counts in {matrix.place}, got {silent.size} of {len(cells)} cells "
            f"without any over the {len(genes)} genes: {named(cells[silent])}; drop them with "
            f"{_without_silent(matrix.place)}"
        )
    return totals


def warn_silent_genes(totals: Totals, genes: Sequence[str]) -> None:
    """Say how many genes have no counts in any cell: they cost time and teach nothing."""
    silent = np.flatnonzero(totals.genes == 0)
    if silent.size:
        warnings.warn(
            f"{silent.size} of {len(genes)} genes have no counts in any cell: "
            f"{named(np.asarray(genes)[silent])}; drop them with sc.pp.filter_genes(adata, min_cells=1)",
            UserWarning,
            stacklevel=4,
        )


def _without_silent(place: str) -> str:
    if place == "adata.X":
        return "sc.pp.filter_cells(adata, min_counts=1)"
    return f"adata[np.asarray({place}.sum(1)).ravel() > 0].copy()" if place.startswith("adata") else "counts.sum(1) > 0"


def _check_block(
    block: Block, matrix: CountMatrix, names: tuple[npt.NDArray[Any], npt.NDArray[Any]], adata: AnnData | None
) -> None:
    values = block.data if is_sparse(block) else block
    if values.dtype.kind in "bu" or values.size == 0:
        return
    if not np.all(np.isfinite(values)):
        bad = ~np.isfinite(values)
        raise ValueError(
            f"expected finite counts in {matrix.place}, got at least {np.count_nonzero(bad)} NaN or infinite "
            f"values, {_first(block, bad, names)}: find where they arise (a division by an empty cell, a "
            "merge that filled missing genes with NaN); where NaN means zero, use np.nan_to_num"
        )
    if values.min() < 0:
        raise ValueError(
            f"expected counts in {matrix.place}, got negative values, {_first(block, values < 0, names)}: "
            "this looks scaled (sc.pp.scale), centred or batch-corrected. "
            f"{_where_counts_are(adata, matrix.place)}"
        )
    if values.dtype.kind == "f" and np.any(values != np.rint(values)):
        first = _first(block, values != np.rint(values), names)
        raise ValueError(
            f"expected integer counts in {matrix.place}, got {first}, {_kind_of(block)} "
            f"{_where_counts_are(adata, matrix.place)}"
        )


def _first(block: Block, bad: npt.NDArray[np.bool_], names: tuple[npt.NDArray[Any], npt.NDArray[Any]]) -> str:
    if is_sparse(block):
        entries = block.tocoo()
        spot = int(np.flatnonzero(bad)[0])
        row, column, value = entries.row[spot], entries.col[spot], block.data[spot]
    else:
        row, column = np.argwhere(bad)[0]
        value = block[row, column]
    return f"the first {value:.8g} (cell {str(names[0][row])!r}, gene {str(names[1][column])!r})"


def _kind_of(block: Block) -> str:
    largest = float(block.max())
    if largest < LARGEST_LOG:
        return f"the largest {largest:.4g}: this looks log1p-normalised (sc.pp.normalize_total, sc.pp.log1p)."
    sums = np.asarray(block.sum(axis=1, dtype=np.float64)).ravel()
    if len(sums) > 1 and sums.std() < 1e-3 * sums.mean():
        return (
            f"the largest {largest:.4g}, and every cell adds up to {sums.mean():.4g}: this looks normalised "
            "to a fixed total (CPM, TPM, sc.pp.normalize_total)."
        )
    return (
        f"the largest {largest:.4g}: this looks normalised, or like counts that were estimated (RSEM, "
        "kallisto, salmon) or corrected for ambient RNA. Where they are such counts, round them with np.rint."
    )


def _where_counts_are(adata: AnnData | None, place: str) -> str:
    if adata is None:
        return "Pass raw counts."
    usual = 'Raw counts are usually in adata.layers["counts"] or adata.raw'
    found = [
        (f'adata.layers["{name}"]', f'counts="{name}"')
        for name in adata.layers
        if _all_integers(partial(open_counts, adata, name))
    ]
    if place != "adata.X" and adata.X is not None and _all_integers(partial(open_counts, adata, None)):
        found.append(("adata.X", "counts=None"))
    if adata.raw is not None and _all_integers(partial(CountMatrix, adata.raw.X, "adata.raw")):
        found.append(("adata.raw", "adata.raw.to_adata() as the AnnData"))
    if found:
        return f"{usual}; integers are in " + ", ".join(f"{slot} (pass {fix})" for slot, fix in found) + "."
    return f"{usual}; none of this AnnData's slots holds integers: go back to the file from which it was made."


def _all_integers(read: Callable[[], CountMatrix]) -> bool:
    """Whether the first block of a matrix holds nothing but integers from zero."""
    try:
        matrix = read()
    except TypeError:
        return False
    if matrix.dtype.kind not in "buif":
        return False
    block = next(matrix.blocks())[2]
    values = block.data if is_sparse(block) else block
    return bool(values.size and values.min() >= 0 and np.all(values == np.rint(values)))
