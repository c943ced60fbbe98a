"""What travels between data, models and training: the minibatch, and aliases of tensor shapes."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

Counts = Float[Tensor, "cells genes"]
PerCell = Float[Tensor, "*particles cells"]
Latent = Float[Tensor, "*particles cells latent"]
PerGene = Float[Tensor, "*particles cells genes"]


class Minibatch(NamedTuple):
    """Some cells of a data set, as tensors; the one argument of every model and guide.

    Attributes:
        counts: Observed counts, shape ``[cells, genes]``, or None where they are to be drawn from the model.
        conditions: Codes of the levels of each categorical condition, shape ``[cells, conditions]``.
        continuous: Standardised continuous covariates, shape ``[cells, covariates]``.
        library: Total counts of each cell (or its size factor), shape ``[cells]``, above zero.
        index: Position of each cell in its data set, shape ``[cells]``.
        num_cells: Number of cells in the data set that the minibatch stands for: the size of the plate.
    """

    counts: Counts | None
    conditions: Int[Tensor, "cells conditions"]
    continuous: Float[Tensor, "cells covariates"]
    library: Float[Tensor, "*particles cells"]
    index: Int[Tensor, " cells"]  # type: ignore[assignment]  # tuple.index is not needed
    num_cells: int

    @property
    def size(self) -> int:
        """Number of cells in the minibatch."""
        return self.index.shape[0]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Minibatch":
        """The same minibatch on another device; ``dtype`` applies to the floating-point tensors."""
        return Minibatch(
            None if self.counts is None else self.counts.to(device, dtype),
            self.conditions.to(device),
            self.continuous.to(device, dtype),
            self.library.to(device, dtype),
            self.index.to(device),
            self.num_cells,
        )
