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
        labels: Code of the label of each cell, -1 where it is missing, shape ``[cells]``; None where there are none.
    """

    counts: Counts | None
    conditions: Int[Tensor, "cells conditions"]
    continuous: Float[Tensor, "cells covariates"]
    library: Float[Tensor, "*particles cells"]
    index: Int[Tensor, " cells"]  # type: ignore[assignment]  # tuple.index is not needed
    num_cells: int
    labels: Int[Tensor, " cells"] | None = None

    @property
    def size(self) -> int:
        """Number of cells in the minibatch."""
        return self.index.shape[0]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Minibatch":
        """The same minibatch on another device; ``dtype`` applies to the floating-point tensors."""
        return Minibatch(
            None if self.counts is None else _sent(self.counts, device, dtype),
            _sent(self.conditions, device),
            _sent(self.continuous, device, dtype),
            _sent(self.library, device, dtype),
            _sent(self.index, device),
            self.num_cells,
            None if self.labels is None else _sent(self.labels, device),
        )


def _sent(tensor: Tensor, device: torch.device | str | None, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor on another device; to a GPU from pinned memory, so that nobody waits for it."""
    if device is None or torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device, dtype)
    return tensor.pin_memory().to(device, dtype, non_blocking=True)
