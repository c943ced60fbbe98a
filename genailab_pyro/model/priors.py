"""Priors of the latent: a distribution of event shape ``[latent]`` given the condition."""

from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from genailab_pyro.nn import Declared


class Prior(Declared):
    """Base of the priors: ``prior(condition)`` is a Pyro distribution of event shape ``[latent]``."""

    def forward(self, condition: Float[Tensor, "cells condition"]) -> Any:
        """The distribution of the latent of each cell."""
        raise NotImplementedError


class StandardNormal(Prior):
    """Independent standard normal latents, whatever the condition.

    Args:
        latent_dim: Number of latents.

    Example:
        >>> StandardNormal(10)(torch.zeros(3, 0)).event_shape
        torch.Size([10])
    """

    zero: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"expected latent_dim to be at least one, got {latent_dim}")
        self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)

    def forward(self, condition: Float[Tensor, "cells condition"]) -> Any:
        """The same distribution for every cell; the plate expands it."""
        return dist.Normal(self.zero, torch.ones_like(self.zero)).to_event(1)
