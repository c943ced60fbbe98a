"""Priors of the latent: a distribution of event shape ``[latent]`` given the condition."""

from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from genailab_pyro.nn import Declared
from genailab_pyro.types import Minibatch


class Prior(Declared):
    """Base of the priors: ``prior(condition)`` is a Pyro distribution of event shape ``[latent]``."""

    def forward(self, condition: Float[Tensor, "cells condition"]) -> Any:
        """The distribution of the latent of each cell."""
        raise NotImplementedError

    def initialise(self, minibatch: Minibatch) -> None:
        """Move the parameters near the data before training, from a sample of cells."""


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


class DependentNormal(Prior):
    """Normal latents whose location and scale depend on what is above them: conditions, an upper latent, or both.

    Args:
        context_dim: Width of what they depend on.
        latent_dim: Number of latents.

    Example:
        >>> DependentNormal(3, 10)(torch.eye(3)).event_shape
        torch.Size([10])
    """

    def __init__(self, context_dim: int, latent_dim: int) -> None:
        super().__init__()
        if context_dim < 1 or latent_dim < 1:
            raise ValueError(f"expected widths of at least one, got {context_dim} and {latent_dim}")
        self.loc = nn.Linear(context_dim, latent_dim)
        self.scale = nn.Linear(context_dim, latent_dim)
        nn.init.zeros_(self.scale.weight)
        nn.init.constant_(self.scale.bias, 0.54)  # a scale of one

    def forward(self, condition: Float[Tensor, "*cells condition"]) -> Any:
        """One distribution per cell; the scale is above 1e-3."""
        return dist.Normal(self.loc(condition), softplus(self.scale(condition)) + 1e-3).to_event(1)


class Bits(Prior):
    """Independent latent bits with learned probabilities, whatever the condition.

    Args:
        latent_dim: Number of bits.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(latent_dim))

    def forward(self, condition: Float[Tensor, "cells condition"]) -> Any:
        """The same distribution for every cell; the plate expands it."""
        return dist.Bernoulli(logits=self.logits).to_event(1)
