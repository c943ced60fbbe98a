"""Cells: a registration bound to data, read as sparse minibatches in a seeded order."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from anndata import AnnData
from jaxtyping import Float32, Float64, Int64, Shaped
from torch import Tensor

from genailab_pyro.data.ahead import ahead
from genailab_pyro.data.matrix import CountMatrix, Integers, is_sparse
from genailab_pyro.data.validation import check_names
from genailab_pyro.sparse import counts_tensor
from genailab_pyro.types import Minibatch

if TYPE_CHECKING:
    from genailab_pyro.data.registration import Registration

Indices: TypeAlias = Sequence[int] | npt.NDArray[Any] | Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Cells:
    """Cells in the terms of a registration. ``register`` and ``Registration.bind`` make them.

    Nothing in it changes: ``subset``, ``split`` and ``with_conditions`` return other cells, which refer to
    the same matrix of counts.

    Attributes:
        registration: The schema.
        matrix: The counts of all cells that were registered together, as they are stored.
        source: The AnnData with all of these cells, or None.
        rows: Positions of these cells in ``matrix`` and ``source``, shape ``[cells]``.
        obs_names: Names, shape ``[cells]``.
        conditions: Codes of the conditions, shape ``[cells, conditions]``.
        continuous: Standardised continuous covariates, shape ``[cells, covariates]``.
        library: Total counts or size factor, above zero, shape ``[cells]``.
        labels: Codes of the labels, -1 where missing, shape ``[cells]``; or None.
        totals: Total counts, shape ``[cells]``.

    Examples:
        >>> cells = Cells.from_tensors([[3, 0, 1], [0, 2, 2]], conditions={"batch": ["b1", "b2"]})
        >>> minibatch = next(cells.minibatches(2))
        >>> minibatch.counts
        tensor([[3., 0., 1.],
                [0., 2., 2.]])
        >>> minibatch.library, minibatch.conditions[:, 0]
        (tensor([4., 4.]), tensor([0, 1]))
    """

    registration: "Registration"
    matrix: CountMatrix
    source: AnnData | None
    rows: Int64[np.ndarray, " cells"]
    obs_names: Shaped[np.ndarray, " cells"]
    conditions: Int64[np.ndarray, "cells conditions"]
    continuous: Float32[np.ndarray, "cells covariates"]
    library: Float32[np.ndarray, " cells"]
    labels: Int64[np.ndarray, " cells"] | None
    totals: Float64[np.ndarray, " cells"]

    @property
    def adata(self) -> AnnData | None:
        """The AnnData of exactly these cells, in their order; None for tensors.

        It is the registered one, or a view of it for a subset.

        Raises:
            ValueError: If its cells have changed since they were registered.
        """
        if self.source is None:
            return None
        whole = np.array_equal(self.rows, np.arange(self.source.n_obs))
        names = np.asarray(self.source.obs_names, dtype=str)
        if self.rows.max() >= len(names) or not np.array_equal(names[self.rows], self.obs_names):
            raise ValueError(
                "expected the cells that were registered in adata.obs_names, they have changed since: filter "
                "and rename cells first, then register"
            )
        return self.source if whole else self.source[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        schema = self.registration
        parts = [
            f"{len(self)} cells x {len(schema.genes)} genes",
            f"counts={self.matrix.place} ({self.matrix.storage})",
        ]
        if schema.conditions:
            levels = ", ".join(f"{condition.name}[{len(condition.levels)}]" for condition in schema.conditions)
            parts.append(f"conditions={levels}")
        if schema.continuous:
            parts.append("continuous=" + ", ".join(covariate.name for covariate in schema.continuous))
        if self.labels is not None and schema.labels is not None:
            known = np.count_nonzero(self.labels >= 0)
            parts.append(f"labels={schema.labels.name}[{len(schema.labels.levels)}] on {known} cells")
        parts.append(f"library={schema.size_factor or 'total counts'}, median {np.median(self.library):.6g}")
        return f"Cells({'; '.join(parts)})"

    def take(
        self,
        indices: Indices,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Minibatch:
        """Some cells as a minibatch; only these become dense.

        Where at most three quarters of the counts are not zero, its counts know these (see `genailab_pyro.sparse`).

        Args:
            indices: Positions of the cells in this object.
            device: Where the tensors go.
            dtype: Of the floating-point tensors.

        Returns:
            The minibatch; its ``num_cells`` is that of this object.

        Raises:
            ValueError: If a position does not exist, or the counts have changed since they were registered.
        """
        index = self._positions(indices)
        block = self.matrix.rows(self.rows[index])
        values = block.data if is_sparse(block) else block
        self._check_unchanged(float(values.sum(dtype=np.float64)), float(self.totals[index].sum()))
        exact = np.float64 if dtype == torch.float64 else np.float32
        if values.dtype != exact:
            block = block.astype(exact)
        minibatch = Minibatch(
            counts_tensor(block),
            torch.from_numpy(self.conditions[index]),
            torch.from_numpy(self.continuous[index]),
            torch.from_numpy(self.library[index]),
            torch.from_numpy(index),
            len(self),
            None if self.labels is None else torch.from_numpy(self.labels[index]),
        )
        return minibatch.to(device, dtype)

    def subset(self, indices: Indices) -> "Cells":
        """Some of the cells; the counts are not copied.

        Args:
            indices: Positions of the cells in this object, or a mask of them.

        Returns:
            The cells, in the order given.

        Raises:
            ValueError: If a position does not exist.
        """
        index = self._positions(indices)
        return replace(
            self,
            rows=self.rows[index],
            obs_names=self.obs_names[index],
            conditions=self.conditions[index],
            continuous=self.continuous[index],
            library=self.library[index],
            labels=None if self.labels is None else self.labels[index],
            totals=self.totals[index],
        )

    def split(self, fraction: float = 0.1, *, seed: int = 0) -> tuple["Cells", "Cells"]:
        """Two disjoint parts, drawn by the seed, each in this object's order.

        Args:
            fraction: Part of the cells in the second, above 0 and below 1.
            seed: Of the draw.

        Returns:
            The rest and the held-out cells, at least one in each.

        Raises:
            ValueError: If there are fewer than two cells, or the fraction is out of range.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"expected a fraction above 0 and below 1, got {fraction}")
        if len(self) < 2:
            raise ValueError(f"expected at least two cells to split, got {len(self)}")
        held = min(max(round(fraction * len(self)), 1), len(self) - 1)
        order = self._order(seed)
        return self.subset(np.sort(order[held:])), self.subset(np.sort(order[:held]))

    def minibatches(
        self,
        size: int,
        *,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Iterator[Minibatch]:
        """All cells once, in minibatches.

        Args:
            size: Cells in a minibatch; the last may have fewer.
            seed: Shuffles the cells; the order depends on nothing else. None keeps them in order.
            device: Where the tensors go.
            dtype: Of the floating-point tensors.

        Returns:
            An iterator over the minibatches.

        Raises:
            ValueError: If the size is below one.
        """
        if size < 1:
            raise ValueError(f"expected at least one cell in a minibatch, got size={size}")
        order = np.arange(len(self)) if seed is None else self._order(seed)
        starts = range(0, len(order), size)
        return self.take_each((order[start : start + size] for start in starts), device=device, dtype=dtype)

    def take_each(
        self,
        indices: Iterable[Indices],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Iterator[Minibatch]:
        """Minibatches of given cells.

        Where the counts are on disk or go to a GPU, each is made while the one before it is in use. (From memory to a
        CPU that would only take turns with the step.)

        Args:
            indices: Positions of the cells of each minibatch.
            device: Where the tensors go.
            dtype: Of the floating-point tensors.

        Returns:
            An iterator over the minibatches.
        """
        minibatches = (self.take(index, device=device, dtype=dtype) for index in indices)
        waits = self.matrix.storage == "on disk" or torch.device(device or "cpu").type != "cpu"
        return ahead(minibatches) if waits else minibatches

    def counts_matrix(self) -> sp.csr_matrix:
        """The counts of all cells, as CSR of float32, shape ``[cells, genes]``, in memory."""
        parts = [sp.csr_matrix(block, dtype=np.float32) for _, block in self.matrix.row_blocks(self.rows)]
        whole = sp.csr_matrix(sp.vstack(parts, format="csr"))
        self._check_unchanged(float(whole.data.sum(dtype=np.float64)), float(self.totals.sum()))
        return whole

    def gene_totals(self) -> Float64[np.ndarray, " genes"]:
        """Sum of the counts over these cells, read in blocks, shape ``[genes]``."""
        totals = np.zeros(len(self.registration.genes))
        for _, genes, block in self.matrix.blocks(self.rows):
            totals[genes] += np.asarray(block.sum(axis=0, dtype=np.float64)).ravel()
        self._check_unchanged(float(totals.sum()), float(self.totals.sum()))
        return totals

    def with_conditions(self, conditions: Mapping[str, str], continuous: Mapping[str, float] | None = None) -> "Cells":
        """The same cells and counts under other conditions.

        Args:
            conditions: New level of each condition that is named; the others stay.
            continuous: New value of each covariate that is named, in the column's unit; the others stay.

        Returns:
            The cells.

        Raises:
            ValueError: If a name or a level is not registered.
        """
        schema = self.registration
        codes, values = self.conditions.copy(), self.continuous.copy()
        check_names(conditions, [condition.name for condition in schema.conditions], "condition")
        for position, condition in enumerate(schema.conditions):
            if condition.name in conditions:
                codes[:, position] = condition.encode([conditions[condition.name]])
        check_names(continuous or {}, [item.name for item in schema.continuous], "continuous covariate")
        for position, covariate in enumerate(schema.continuous):
            if continuous is not None and covariate.name in continuous:
                values[:, position] = covariate.standardise(continuous[covariate.name])
        return replace(self, conditions=codes, continuous=values)

    @staticmethod
    def from_tensors(
        counts: Any,
        conditions: Mapping[str, Any] | Tensor | None = None,
        continuous: Mapping[str, Any] | Tensor | None = None,
        labels: Any = None,
        size_factor: Any = None,
        genes: Sequence[str] | None = None,
    ) -> "Cells":
        """Register counts and conditions that are no AnnData; the checks are those of ``register``.

        Args:
            counts: Counts, shape ``[cells, genes]``: a tensor, an array, or a scipy sparse matrix.
            conditions: Values of each condition by name; an integer tensor holds codes, of the levels "0",
                "1", ... Or codes alone, shape ``[cells, conditions]``, of ``condition_0``, ...
            continuous: Values of each covariate by name; or values alone, shape ``[cells, covariates]``, of
                ``continuous_0``, ``continuous_1``, ...
            labels: Label of each cell; None, NaN, or a code of -1 where it is missing.
            size_factor: Takes the place of the total counts of each cell.
            genes: Names of the genes; ``gene_0``, ``gene_1``, ... by default.

        Returns:
            The cells; their ``adata`` is None.

        Raises:
            TypeError: If the values have no numeric type.
            ValueError: If shapes do not agree, or for what ``register`` refuses.
        """
        from genailab_pyro.data.tensors import register_tensors  # it makes Cells, and so it comes after them

        return register_tensors(counts, conditions, continuous, labels, size_factor, genes)

    def _order(self, seed: int) -> Integers:
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).numpy()

    def _positions(self, indices: Indices) -> Integers:
        index = np.asarray(indices.cpu() if isinstance(indices, Tensor) else indices)
        if index.dtype == bool:
            if index.shape != (len(self),):
                raise ValueError(f"expected a mask of {len(self)} cells, got shape {index.shape}")
            index = np.flatnonzero(index)
        if index.ndim != 1 or index.size == 0 or index.dtype.kind not in "ui":
            raise ValueError(f"expected positions of cells, at least one, got {index.dtype} of shape {index.shape}")
        if index.min() < 0 or index.max() >= len(self):
            raise ValueError(f"expected positions from 0 to {len(self) - 1}, got {index.min()} to {index.max()}")
        return index.astype(np.int64)

    def _check_unchanged(self, found: float, registered: float) -> None:
        if not abs(found - registered) <= 1e-6 * registered:
            raise ValueError(
                f"expected the counts that were registered in {self.matrix.place}: these cells held "
                f"{registered:.6g} of them, now {found:.6g}. They were changed in place, for instance by "
                "sc.pp.normalize_total or sc.pp.log1p: keep the counts apart, adata.layers['counts'] = "
                "adata.X.copy(), and register(adata, counts='counts')"
            )
