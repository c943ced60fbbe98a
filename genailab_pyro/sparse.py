"""Matrices that are mostly zero: their non-zero values by rows, and counts that know theirs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag


@dataclass(frozen=True, eq=False)
class Nonzeros:
    """The non-zero values of a matrix, row after row (compressed sparse rows).

    Attributes:
        values: The values, shape ``[nonzeros]``.
        columns: The column of each value, shape ``[nonzeros]``.
        offsets: Where each row begins, and the end, shape ``[rows + 1]``.
        shape: Numbers of rows and columns of the matrix.

    Example:
        >>> found = Nonzeros.of(sp.csr_matrix([[3.0, 0.0], [0.0, 2.0]], dtype="float32"))
        >>> found.at(torch.tensor([10.0, 20.0])), found @ torch.tensor([[1.0], [10.0]])
        (tensor([10., 20.]), tensor([[ 3.],
                [20.]]))
    """

    values: Float[Tensor, " nonzeros"]
    columns: Int[Tensor, " nonzeros"]
    offsets: Int[Tensor, " rows_1"]
    shape: tuple[int, int]

    @classmethod
    def of(cls, matrix: sp.csr_matrix) -> Self:
        """Those of a scipy matrix, whose values are referred to where their type is torch's."""
        columns, offsets = (torch.from_numpy(index).long() for index in (matrix.indices, matrix.indptr))
        return cls(torch.from_numpy(matrix.data), columns, offsets, (int(matrix.shape[0]), int(matrix.shape[1])))

    @classmethod
    def within(cls, dense: Float[Tensor, "rows columns"]) -> Self:
        """Those of a dense matrix."""
        rows, columns = dense.nonzero(as_tuple=True)
        counted = torch.bincount(rows, minlength=len(dense)).cumsum(0)
        offsets = torch.nn.functional.pad(counted, (1, 0))
        return cls(dense[rows, columns], columns, offsets, (dense.shape[0], dense.shape[1]))

    @cached_property
    def positions(self) -> Int[Tensor, " nonzeros"]:
        """Position of each value in the matrix laid out row after row."""
        rows = torch.arange(self.shape[0], device=self.columns.device)
        return torch.repeat_interleave(rows * self.shape[1], self.offsets.diff()) + self.columns

    @cached_property
    def transposed(self) -> "Nonzeros":
        """Those of the transposed matrix."""
        matrix = sp.csr_matrix((self.values.numpy(), self.columns.numpy(), self.offsets.numpy()), shape=self.shape)
        return Nonzeros.of(matrix.T.tocsr())

    def at(self, tensor: Float[Tensor, "*lead #columns"]) -> Float[Tensor, "*lead nonzeros"]:
        """The values that a tensor has at these places.

        Args:
            tensor: Shape ``[..., rows, columns]``; it is broadcast over rows and columns, and may have further
                dimensions in front.
        """
        whole = tensor.shape[-2:]
        if len(whole) < 2 or whole[0] == 1:
            row = tensor if len(whole) < 2 else tensor.squeeze(-2)
            return row.expand(*row.shape[:-1], self.shape[1]).index_select(-1, self.columns)
        cells = tensor.expand(*tensor.shape[:-2], *self.shape).flatten(-2)
        if cells.dim() == 1:
            return cells.index_select(0, self.positions)
        return cells.gather(-1, self.positions.expand(*cells.shape[:-1], -1))

    def put(
        self, tensor: Float[Tensor, "*lead rows columns"], values: Float[Tensor, "*#lead nonzeros"]
    ) -> Float[Tensor, "*lead rows columns"]:
        """A copy of a tensor that has other values at these places."""
        lead = tensor.shape[:-2]
        positions, values = (item.expand(*lead, self.values.shape[0]) for item in (self.positions, values))
        return tensor.flatten(-2).scatter(-1, positions, values).unflatten(-1, self.shape)

    def dense(self) -> Float[Tensor, "rows columns"]:
        """The matrix with its zeros."""
        values = self.values.new_zeros(self.shape[0] * self.shape[1])
        return values.scatter(0, self.positions, self.values).unflatten(0, self.shape)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Nonzeros":
        """The same places with a function of the values; it should leave zero where it is."""
        return replace(self, values=function(self.values))

    def to(self, *args: Any, **kwargs: Any) -> "Nonzeros":
        """The same on another device, or of another type, as `torch.Tensor.to`."""
        values = self.values.to(*args, **kwargs)
        columns, offsets = (index.to(values.device) for index in (self.columns, self.offsets))
        return Nonzeros(values, columns, offsets, self.shape)

    def __matmul__(self, dense: Float[Tensor, "columns width"]) -> Float[Tensor, "rows width"]:
        """The product with a dense matrix; derivatives of every order reach the dense one only."""
        return _Product.apply(self, dense)


class _Product(torch.autograd.Function):
    """A sparse times a dense matrix. It is linear: its derivatives are products with the same or the transposed one."""

    @staticmethod
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
    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def of(cls, dense: Tensor, nonzeros: Nonzeros) -> "CountTensor":
        """A tensor and the non-zero values that it has."""
        counts = dense.as_subclass(cls)
        counts._nonzeros, counts._made = nonzeros, dense._version
        return counts

    @property
    def nonzeros(self) -> Nonzeros | None:
        """The non-zero values; None if the tensor was changed in place since it was made."""
        return self._nonzeros if self._version == self._made else None

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """The same on another device, or of another type, as `torch.Tensor.to`."""
        moved = super().to(*args, **kwargs)
        if moved is self or self.nonzeros is None:
            return moved
        return CountTensor.of(moved, self.nonzeros.to(*args, **kwargs))

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return repr(self.as_subclass(Tensor))


def nonzeros_of(counts: Tensor) -> Nonzeros | None:
    """The non-zero values of counts that know them, or None: then all of the values are to be looked at."""
    return counts.nonzeros if isinstance(counts, CountTensor) else None


def counts_tensor(block: np.ndarray | sp.csr_matrix) -> Tensor:
    """Counts as a tensor, which knows its non-zero values where they are at most half of all."""
    if isinstance(block, np.ndarray):
        dense = torch.from_numpy(block)
        nonzeros = Nonzeros.within(dense)
    else:
        block.sum_duplicates()
        block.eliminate_zeros()
        dense = torch.from_numpy(block.toarray())
        nonzeros = Nonzeros.of(block)
    return CountTensor.of(dense, nonzeros) if 2 * len(nonzeros.values) <= dense.numel() else dense
