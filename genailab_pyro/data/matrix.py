"""Counts by rows: one way to read them, whatever holds them, and never more than some rows of them dense."""

import warnings
from collections.abc import Iterator
from typing import Any, ClassVar, TypeAlias

import h5py
import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from anndata import AnnData
from anndata.abc import CSCDataset, CSRDataset
from anndata.io import sparse_dataset

Integers: TypeAlias = npt.NDArray[np.int64]
Block: TypeAlias = Any  # a numpy array or a scipy matrix: scipy's own classes share no public base


def is_sparse(block: Block) -> bool:
    """Whether a block is a scipy sparse matrix."""
    return bool(sp.issparse(block))


class CountMatrix:
    """A matrix of counts that is read by rows or in blocks and stays as it is stored.

    In memory, CSR and dense arrays are referred to, not copied; CSC is converted to CSR once, since
    minibatches are rows. On disk, CSR and dense data are read as they are asked for. CSC on disk is read by
    genes for checks and sums; its rows can not be read alone, so that the first minibatch loads all of it
    into memory as CSR, with a warning.

    Args:
        stored: A numpy array, a scipy sparse matrix, an HDF5 data set or AnnData's sparse data set.
        place: Name of the slot for messages, such as ``adata.layers["counts"]``.
        columns: Positions in ``stored`` of the genes, in the order in which they are returned; None for all.
        rows: Positions in ``stored`` of the cells; None for all.

    Attributes:
        place: As above.
        block_values: Largest number of values, zeros included, in a block.

    Raises:
        TypeError: If the matrix is of a kind that is not known.
    """

    block_values: ClassVar[int] = 2**22

    def __init__(self, stored: Any, place: str, columns: Integers | None = None, rows: Integers | None = None) -> None:
        self.place = place
        self._columns = columns
        self._rows = rows
        self._stored = _readable(stored, place)

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of cells and of genes."""
        cells, genes = self._stored.shape
        return (
            int(cells) if self._rows is None else len(self._rows),
            int(genes) if self._columns is None else len(self._columns),
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values as they are stored."""
        return np.dtype(self._stored.dtype)

    @property
    def storage(self) -> str:
        """Where the values are: ``in memory, sparse``, ``in memory, dense`` or ``on disk``."""
        if isinstance(self._stored, np.ndarray):
            return "in memory, dense"
        return "in memory, sparse" if is_sparse(self._stored) else "on disk"

    def rows(self, positions: Integers) -> Block:
        """Some rows, copied.

        Args:
            positions: Positions of the cells, in any order.

        Returns:
            A numpy array or scipy CSR matrix, shape ``[positions, genes]``.

        Raises:
            ValueError: If the file behind the matrix was closed.
        """
        self._check_open()
        if isinstance(self._stored, CSCDataset):
            warnings.warn(
                f"{self.place} is stored by genes (CSC) on disk, and minibatches are rows: all of it is read "
                "into memory as CSR. To read rows from disk, write the file with adata.X as CSR.",
                UserWarning,
                stacklevel=4,
            )
            self._stored = self._stored.to_memory().tocsr()
        stored, columns = self._stored, self._columns
        positions = positions if self._rows is None else self._rows[positions]
        if isinstance(stored, np.ndarray):
            return stored[positions] if columns is None else stored[np.ix_(positions, columns)]
        block = stored[positions] if is_sparse(stored) else _read_rows(stored, positions)
        return block if columns is None else block[:, columns]

    def blocks(self, rows: Integers | None = None) -> Iterator[tuple[slice, slice | Integers, Block]]:
        """Stream over the matrix in blocks of bounded size.

        Args:
            rows: Positions of the cells to stream over; None for all.

        Yields:
            Positions of the block's cells in ``rows``, positions of its genes, and the block.
        """
        self._check_open()
        if isinstance(self._stored, CSCDataset):
            yield from self._gene_blocks(rows)
            return
        for part, block in self.row_blocks(np.arange(self.shape[0]) if rows is None else rows):
            yield part, slice(None), block

    def row_blocks(self, rows: Integers) -> Iterator[tuple[slice, Block]]:
        """Stream over some rows in blocks of bounded size.

        Args:
            rows: Positions of the rows.

        Yields:
            Positions of the block's cells in ``rows``, and the block with all genes.
        """
        step = max(1, self.block_values // self._stored.shape[1])
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            yield part, self.rows(rows[part])

    def _check_open(self) -> None:
        held = self._stored.group if isinstance(self._stored, CSRDataset | CSCDataset) else self._stored
        if isinstance(held, h5py.Dataset | h5py.Group) and not held:
            raise ValueError(
                f"expected the file that holds {self.place} to be open, it was closed: open it again with "
                'anndata.read_h5ad(path, backed="r") and use registration.bind(adata)'
            )

    def _gene_blocks(self, rows: Integers | None) -> Iterator[tuple[slice, Integers, Block]]:
        columns = np.arange(self.shape[1]) if self._columns is None else self._columns
        if self._rows is not None:
            rows = self._rows if rows is None else self._rows[rows]
        forwards = np.argsort(columns)
        step = max(1, self.block_values // self._stored.shape[0])
        for start in range(0, len(forwards), step):
            genes = forwards[start : start + step]
            block = self._stored[:, columns[genes]]
            yield slice(None), genes, block if rows is None else block.tocsr()[rows]


def open_counts(adata: AnnData, layer: str | None, columns: Integers | None = None) -> CountMatrix:
    """The counts of an AnnData, unread where they are on disk.

    Args:
        adata: In memory, backed, or a view of either.
        layer: Name of the layer; None for ``.X``.
        columns: Positions of the genes to return; None for all.

    Returns:
        The matrix.
    """
    if layer is not None:
        return CountMatrix(adata.layers[layer], f'adata.layers["{layer}"]', columns)
    if not (adata.isbacked and adata.is_view):
        return CountMatrix(adata.X, "adata.X", columns)
    # .X of a backed view reads all of the view, and a view of it is not to be had: only its indices say which
    # rows and columns of the file it stands for
    held = adata.file["X"]
    stored = held if isinstance(held, h5py.Dataset) else sparse_dataset(held)
    kept = np.arange(stored.shape[1])[adata._vidx]
    rows = np.arange(stored.shape[0])[adata._oidx]
    return CountMatrix(stored, "adata.X", kept if columns is None else kept[columns], rows)


def _readable(stored: Any, place: str) -> Any:
    """The same matrix in a form that can be read, without a copy but for CSC in memory."""
    if isinstance(stored, CSRDataset | CSCDataset | h5py.Dataset):
        return stored
    if is_sparse(stored):
        rows = stored.tocsr()
        return sp.csr_matrix((rows.data, rows.indices, rows.indptr), shape=rows.shape, copy=False)
    if isinstance(stored, np.ndarray):
        return np.asarray(stored)
    raise TypeError(
        f"expected a numpy array, a scipy sparse matrix or a backed matrix in {place}, got "
        f"{type(stored).__module__}.{type(stored).__qualname__}: load it first, for instance by "
        "adata.to_memory()"
    )


def _read_rows(stored: Any, positions: Integers) -> Block:
    """Rows of a matrix on disk, which gives them only in ascending order and each once."""
    first, last = int(positions.min()), int(positions.max())
    if last - first + 1 == len(positions) and np.all(np.diff(positions) == 1):
        return stored[slice(first, last + 1)]
    ascending, where = np.unique(positions, return_inverse=True)
    return stored[ascending][where]
