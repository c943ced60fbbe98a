"""Matrices that are mostly zero: their non-zero values by rows, and counts that know theirs."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag


class Entries:
    """Some values of a matrix and where they are.

    Attributes:
        values: The values, shape ``[entries]``.
        rows: The row of each, shape ``[entries]``.
        columns: The column of each, shape ``[entries]``.
        shape: Numbers of rows and columns of the matrix.
    """

    values: Float[Tensor, " entries"]
    rows: Int[Tensor, " entries"]
    columns: Int[Tensor, " entries"]
    shape: tuple[int, int]

    @cached_property
    def positions(self) -> Int[Tensor, " entries"]:
        """The position of each in the matrix laid out row after row, shape ``[entries]``."""
        return self.rows * self.shape[1] + self.columns

    def at(self, tensor: Float[Tensor, "*lead #columns"]) -> Float[Tensor, "*lead entries"]:
        """The values that another matrix has here.

        Args:
            tensor: Shape ``[..., rows, columns]``; it is broadcast over rows and columns, and may have further
                dimensions in front.
        """
        if tensor.dim() == 0:
            return tensor.expand(len(self.values))
        whole = tensor.shape[-2:]
        if len(whole) == 2 and whole[1] == 1:
            return tensor.squeeze(-1).expand(*tensor.shape[:-2], self.shape[0]).index_select(-1, self.rows)
        if len(whole) < 2 or whole[0] == 1:
            row = tensor if len(whole) < 2 else tensor.squeeze(-2)
            return row.expand(*row.shape[:-1], self.shape[1]).index_select(-1, self.columns)
        cells = tensor.expand(*tensor.shape[:-2], *self.shape).flatten(-2)
        if cells.dim() == 1:
            return cells.index_select(0, self.positions)
        return cells.gather(-1, self.positions.expand(*cells.shape[:-1], -1))

    def put_(
        self, tensor: Float[Tensor, "*lead rows columns"], values: Float[Tensor, "*#lead entries"]
    ) -> Float[Tensor, "*lead rows columns"]:
        """Write other values into a contiguous tensor here; returns it."""
        flat, positions, values = self._laid_out(tensor, values)
        flat.scatter_(-1, positions, values)
        return tensor

    def add_(
        self, tensor: Float[Tensor, "*lead rows columns"], values: Float[Tensor, "*#lead entries"]
    ) -> Float[Tensor, "*lead rows columns"]:
        """Add other values to a contiguous tensor here; returns it."""
        flat, positions, values = self._laid_out(tensor, values)
        flat.scatter_add_(-1, positions, values)
        return tensor

    def _laid_out(self, tensor: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A view of a tensor row after row, with the positions and values repeated over what is in front."""
        lead = tensor.shape[:-2]
        positions, values = (item.expand(*lead, len(self.values)) for item in (self.positions, values))
        return tensor.view(*lead, math.prod(self.shape)), positions, values

    def sum_to_size(self, values: Float[Tensor, "*lead entries"], shape: Sequence[int]) -> Float[Tensor, "..."]:
        """The matrix that has other values here, summed to a shape that is broadcast to its own."""
        lead = values.shape[:-1]
        if len(shape) and math.prod(shape) == shape[-1] == self.shape[1]:
            return (
                values.new_zeros(shape[-1])
                .index_add_(0, self.columns, values.sum_to_size(values.shape[-1:]))
                .view(shape)
            )
        return self.put_(values.new_zeros(*lead, *self.shape), values).sum_to_size(shape)


@dataclass(frozen=True, eq=False)
class Part(Entries):
    """Some of the entries of a matrix.

    Attributes:
        index: Which of them, shape ``[entries]``.
    """

    values: Float[Tensor, " entries"]
    rows: Int[Tensor, " entries"]
    columns: Int[Tensor, " entries"]
    shape: tuple[int, int]
    index: Int[Tensor, " entries"]


@dataclass(frozen=True, eq=False)
class Nonzeros(Entries):
    """The non-zero values of a matrix, row after row (compressed sparse rows).

    Attributes:
        offsets: Where each row begins among the values, and the end, shape ``[rows + 1]``.

    Example:
        >>> found = Nonzeros.of(sp.csr_matrix([[3.0, 0.0], [0.0, 2.0]], dtype="float32"))
        >>> found.at(torch.tensor([10.0, 20.0])), found @ torch.tensor([[1.0], [10.0]])
        (tensor([10., 20.]), tensor([[ 3.],
                [20.]]))
    """

    values: Float[Tensor, " entries"]
    columns: Int[Tensor, " entries"]
    offsets: Int[Tensor, " rows_1"]
    shape: tuple[int, int]

    @classmethod
    def of(cls, matrix: sp.csr_matrix) -> Self:
        """Those of a scipy matrix, whose arrays are referred to."""
        values, columns, offsets = map(torch.from_numpy, (matrix.data, matrix.indices, matrix.indptr))
        return cls(values, columns, offsets, (int(matrix.shape[0]), int(matrix.shape[1])))

    @cached_property
    def rows(self) -> Int[Tensor, " entries"]:  # type: ignore[override]
        """The row of each, shape ``[entries]``."""
        return torch.repeat_interleave(self.offsets.diff())

    @cached_property
    def transposed(self) -> "Nonzeros":
        """Those of the transposed matrix, on the CPU."""
        with torch._C._DisableFuncTorch():  # inside a transform too, these are ordinary tensors
            arrays = tuple(item.numpy() for item in (self.values, self.columns, self.offsets))
        columns = sp.csr_matrix(arrays, shape=self.shape, copy=False).tocsc()
        values, rows, offsets = map(torch.from_numpy, (columns.data, columns.indices, columns.indptr))
        return Nonzeros(values, rows, offsets, self.shape[::-1])

    @cached_property
    def others(self) -> Part:
        """Those that are not one."""
        index = (self.values != 1).nonzero().squeeze(-1)
        values, rows, columns = (item.index_select(0, index) for item in (self.values, self.rows, self.columns))
        return Part(values, rows, columns, self.shape, index)

    def dense(self) -> Float[Tensor, "rows columns"]:
        """The matrix with its zeros."""
        return self.put_(self.values.new_zeros(self.shape), self.values)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Nonzeros":
        """The same places with a function of the values; it should leave zero where it is."""
        mapped = Nonzeros(function(self.values), self.columns, self.offsets, self.shape)
        if "transposed" in self.__dict__:
            mapped.__dict__["transposed"] = self.transposed.map(function)
        return mapped

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None, *, non_blocking: bool = False
    ) -> "Nonzeros":
        """The same on another device; ``dtype`` applies to the values."""
        columns, offsets = (index.to(device, non_blocking=non_blocking) for index in (self.columns, self.offsets))
        values = self.values.to(device, dtype, non_blocking=non_blocking)
        return Nonzeros(values, columns, offsets, self.shape)

    def pin_memory(self) -> "Nonzeros":
        """The same in memory from which a GPU reads by itself."""
        values, columns, offsets = (item.pin_memory() for item in (self.values, self.columns, self.offsets))
        return Nonzeros(values, columns, offsets, self.shape)

    def __matmul__(self, dense: Float[Tensor, "columns width"]) -> Float[Tensor, "rows width"]:
        """The product with a dense matrix, on the CPU; derivatives of every order reach the dense one only.

        Raises:
            ValueError: If the dense matrix does not have a row for each column.
        """
        if dense.shape[0] != self.shape[1]:
            raise ValueError(f"expected a matrix of {self.shape[1]} rows, got shape {list(dense.shape)}")
        return _Product.apply(self, dense)


def signed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep a function's signature, which torch looks up in every call of an autograd function."""
    function.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return function


class _Product(torch.autograd.Function):
    """A sparse times a dense matrix. It is linear: its derivatives are products with the same or the transposed one."""

    @staticmethod
    @signed
    def forward(sparse: Nonzeros, dense: Tensor) -> Tensor:
        # Sums of weighted rows; several times as fast as torch's own sparse matrices here.
        return embedding_bag(
            sparse.columns,
            dense.contiguous(),
            sparse.offsets,
            mode="sum",
            per_sample_weights=sparse.values,
            include_last_offset=True,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Nonzeros, Tensor], output: Tensor) -> None:
        ctx.sparse = inputs[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, _Product.apply(ctx.sparse.transposed, gradient)

    @staticmethod
    def jvp(ctx: Any, _: None, tangent: Tensor) -> Tensor:
        return _Product.apply(ctx.sparse, tangent)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[None, int], sparse: Nonzeros, dense: Tensor) -> tuple[Tensor, int]:
        # [columns, batch, width] side by side make one product.
        beside = dense.movedim(in_dims[1], 1)
        product = _Product.apply(sparse, beside.flatten(1))
        return product.unflatten(1, beside.shape[1:]), 1


class CountTensor(Tensor):
    """Counts as an ordinary dense tensor, which also knows its non-zero values.

    It is what minibatches of mostly zero counts hold. What is computed from it is an ordinary tensor.
    """

    _nonzeros: Nonzeros
    _made: int

    # As for torch's own Parameter: operations see a plain tensor and return one.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def of(cls, dense: Tensor, nonzeros: Nonzeros) -> "CountTensor":
        """A tensor and the non-zero values that it has."""
        counts = dense.as_subclass(cls)
        counts._nonzeros, counts._made = nonzeros, counts._changes
        return counts

    @property
    def nonzeros(self) -> Nonzeros | None:
        """The non-zero values; None if the tensor was changed in place since it was made."""
        return self._nonzeros if self._changes == self._made else None

    @property
    def _changes(self) -> int:
        return 0 if self.is_inference() else self._version  # inference tensors do not count theirs

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """The same on another device, or of another type, as `torch.Tensor.to`."""
        moved = super().to(*args, **kwargs)
        nonzeros = self.nonzeros
        if moved is self or nonzeros is None:
            return moved
        blocking = kwargs.get("non_blocking", False)
        return CountTensor.of(moved, nonzeros.to(moved.device, moved.dtype, non_blocking=blocking))

    def pin_memory(self, *args: Any, **kwargs: Any) -> Tensor:
        """The same in memory from which a GPU reads by itself."""
        nonzeros, pinned = self.nonzeros, super().pin_memory(*args, **kwargs)
        return pinned if nonzeros is None else CountTensor.of(pinned, nonzeros.pin_memory())

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        plain = self.as_subclass(Tensor).clone()
        return memo.setdefault(id(self), plain if self.nonzeros is None else CountTensor.of(plain, self.nonzeros))

    def __copy__(self) -> Tensor:
        return self.view_as(self) if self.nonzeros is None else CountTensor.of(self.view_as(self), self.nonzeros)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return repr(self.as_subclass(Tensor))


def nonzeros_of(counts: Tensor | None) -> Nonzeros | None:
    """The non-zero values of counts that know them, or None: then all of the values are to be looked at."""
    return counts.nonzeros if isinstance(counts, CountTensor) else None


def counts_tensor(block: np.ndarray | sp.csr_matrix) -> Tensor:
    """Counts as a tensor, which knows its non-zero values where they are at most three quarters of all."""
    dense = block if isinstance(block, np.ndarray) else block.toarray()
    if isinstance(block, np.ndarray):
        block = sp.csr_matrix(block)
    block.sum_duplicates()
    block.eliminate_zeros()
    counts = torch.from_numpy(dense)
    return CountTensor.of(counts, Nonzeros.of(block)) if 4 * block.nnz <= 3 * dense.size else counts
