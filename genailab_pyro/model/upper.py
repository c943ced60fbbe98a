"""Latents above z: a site whose value the prior and the guide of z depend on."""

from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from genailab_pyro.model.encoders import NormalEncoder, TrunkEncoder
from genailab_pyro.nn import ConditionEncoding, Declared
from genailab_pyro.types import Minibatch


class Upper(Declared):
    """Base of the latents above z, in the plate of the cells.

    Attributes:
        site: Name of the site.
        output_dim: Width of its value.
    """

    site: ClassVar[str]
    output_dim: int

    def prior(self, condition: Float[Tensor, "cells condition"]) -> Any:
        """Distribution of event shape ``[output]`` before a cell is seen."""
        raise NotImplementedError

    def posterior(self, minibatch: Minibatch) -> Any:
        """Approximate posterior of event shape ``[output]``."""
        raise NotImplementedError


class UpperNormal(Upper):
    """A standard normal site ``"z2"`` with a diagonal normal posterior.

    Args:
        input_dim: Number of genes.
        upper_dim: Number of upper latents.
        hidden_dims: Widths of the hidden layers of its encoder.
        condition: Encoding of the conditions, seen beside the counts; None to see the counts alone.
        dropout: Probability with which an activation is dropped in training.
        norm: ``"layer"``, ``"batch"`` or ``"none"``.
    """

    site = "z2"
    zero: Tensor

    def __init__(
        self,
        input_dim: int,
        upper_dim: int,
        hidden_dims: Sequence[int] = (128,),
        *,
        condition: ConditionEncoding | None = None,
        dropout: float = 0.1,
        norm: str = "layer",
    ) -> None:
        super().__init__()
        self.output_dim = upper_dim
        self.encoder = NormalEncoder(input_dim, upper_dim, hidden_dims, condition=condition, dropout=dropout, norm=norm)
        self.register_buffer("zero", torch.zeros(upper_dim), persistent=False)

    def prior(self, condition: Float[Tensor, "cells condition"]) -> Any:
        """The same distribution for every cell."""
        return dist.Normal(self.zero, torch.ones_like(self.zero)).to_event(1)

    def posterior(self, minibatch: Minibatch) -> Any:
        """Normal of event shape ``[upper]``."""
        return self.encoder(minibatch)


class UpperLabel(Upper):
    """A one-hot site ``"label"`` with learned prior probabilities and an amortised posterior.

    Args:
        input_dim: Number of genes.
        num_labels: Number of labels.
        hidden_dims: Widths of the hidden layers of its encoder.
        condition: Encoding of the conditions, seen beside the counts; None to see the counts alone.
        dropout: Probability with which an activation is dropped in training.
        norm: ``"layer"``, ``"batch"`` or ``"none"``.
    """

    site = "label"

    def __init__(
        self,
        input_dim: int,
        num_labels: int,
        hidden_dims: Sequence[int] = (128,),
        *,
        condition: ConditionEncoding | None = None,
        dropout: float = 0.1,
        norm: str = "layer",
    ) -> None:
        super().__init__()
        if num_labels < 2:
            raise ValueError(f"expected at least two labels, got {num_labels}")
        self.output_dim = num_labels
        self.logits = nn.Parameter(torch.zeros(num_labels))
        self.encoder = TrunkEncoder(input_dim, hidden_dims, condition=condition, dropout=dropout, norm=norm)
        self.head = nn.Linear(self.encoder.trunk.output_dim, num_labels)

    def prior(self, condition: Float[Tensor, "cells condition"]) -> Any:
        """The same distribution for every cell."""
        return dist.OneHotCategorical(logits=self.logits)

    def posterior(self, minibatch: Minibatch) -> Any:
        """One-hot of event shape ``[labels]``."""
        return dist.OneHotCategorical(logits=self.head(self.encoder.features(minibatch)))
