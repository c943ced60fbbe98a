"""Encoders: the amortised posterior of the latent, and the latent library size with its prior and posterior."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from genailab_pyro.nn import MLP, ConditionEncoding, Declared
from genailab_pyro.sparse import Nonzeros, nonzeros_of
from genailab_pyro.types import Counts, Minibatch


class Encoder(Declared):
    """Base of the encoders: ``encoder(minibatch)`` is a Pyro distribution of event shape ``[latent]``.

    Below an upper latent it is ``encoder(minibatch, upper)``.
    """

    def forward(self, minibatch: Minibatch, upper: Tensor | None = None) -> Any:
        """The approximate posterior of the latent of each cell."""
        raise NotImplementedError


def observed_counts(minibatch: Minibatch) -> Counts:
    """The counts of a minibatch that has some.

    Raises:
        ValueError: If the counts are to be drawn, so that there is nothing to encode.
    """
    if minibatch.counts is None:
        raise ValueError("expected a minibatch with counts to encode, got one without; bind observed cells")
    return minibatch.counts


def log_counts(minibatch: Minibatch) -> Counts | Nonzeros:
    """``log1p`` of the counts of a minibatch: of its non-zero counts, where it knows them and they are faster."""
    counts = observed_counts(minibatch)
    nonzeros = nonzeros_of(counts) if counts.device.type == "cpu" else None
    return counts.log1p() if nonzeros is None else nonzeros.map(torch.log1p)


class TrunkEncoder(Encoder):
    """Base of the encoders that read log1p(counts) and the condition through a multilayer perceptron.

    Args:
        input_dim: Number of genes.
        hidden_dims: Widths of the hidden layers.
        condition: Encoding of the conditions, seen beside the counts; None to see the counts alone.
        dropout: Probability with which an activation is dropped in training.
        norm: ``"layer"``, ``"batch"`` or ``"none"``.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dims: Sequence[int] = (128,),
        *,
        condition: ConditionEncoding | None = None,
        dropout: float = 0.1,
        norm: str = "layer",
    ) -> None:
        super().__init__()
        self.condition = condition
        width = 0 if condition is None else condition.output_dim
        self.trunk = MLP(input_dim, hidden_dims, condition_dim=width, dropout=dropout, norm=norm)

    @property
    def reads_upper(self) -> bool:
        """Whether it expects an upper latent."""
        return getattr(self, "upper", None) is not None

    def features(self, minibatch: Minibatch) -> Float[Tensor, "cells features"]:
        """What the perceptron makes of the cells."""
        condition = None if self.condition is None else self.condition(minibatch)
        return self.trunk(log_counts(minibatch), condition)


class NormalEncoder(TrunkEncoder):
    """Diagonal normal posterior whose location and scale are read from log1p(counts) and the condition.

    Args:
        input_dim: Number of genes.
        latent_dim: Number of latents.
        hidden_dims: Widths of the hidden layers.
        condition: Encoding of the conditions, seen beside the counts; None to see the counts alone.
        upper_dim: Width of an upper latent, on which the location depends linearly; 0 for none.
        dropout: Probability with which an activation is dropped in training.
        norm: ``"layer"``, ``"batch"`` or ``"none"``.
    """

    def __init__(
        self,
        input_dim: int,
        latent_dim: int,
        hidden_dims: Sequence[int] = (128,),
        *,
        condition: ConditionEncoding | None = None,
        upper_dim: int = 0,
        dropout: float = 0.1,
        norm: str = "layer",
    ) -> None:
        super().__init__(input_dim, hidden_dims, condition=condition, dropout=dropout, norm=norm)
        self.loc = nn.Linear(self.trunk.output_dim, latent_dim)
        self.scale = nn.Linear(self.trunk.output_dim, latent_dim)
        self.upper = nn.Linear(upper_dim, 2 * latent_dim, bias=False) if upper_dim else None

    def forward(self, minibatch: Minibatch, upper: Tensor | None = None) -> Any:
        """Normal of event shape ``[latent]``; the scale is above 1e-4."""
        features = self.features(minibatch)
        loc, scale = self.loc(features), self.scale(features)
        if self.upper is not None:
            by_loc, by_scale = self.upper(upper).chunk(2, dim=-1)
            loc, scale = loc + by_loc, scale + by_scale
        return dist.Normal(loc, softplus(scale) + 1e-4).to_event(1)


class BernoulliEncoder(TrunkEncoder):
    """Independent bits whose logits are read from log1p(counts) and the condition.

    Args:
        input_dim: Number of genes.
        latent_dim: Number of bits.
        hidden_dims: Widths of the hidden layers.
        condition: Encoding of the conditions, seen beside the counts; None to see the counts alone.
        dropout: Probability with which an activation is dropped in training.
        norm: ``"layer"``, ``"batch"`` or ``"none"``.
    """

    def __init__(
        self,
        input_dim: int,
        latent_dim: int,
        hidden_dims: Sequence[int] = (128,),
        *,
        condition: ConditionEncoding | None = None,
        dropout: float = 0.1,
        norm: str = "layer",
    ) -> None:
        super().__init__(input_dim, hidden_dims, condition=condition, dropout=dropout, norm=norm)
        self.logits = nn.Linear(self.trunk.output_dim, latent_dim)

    def forward(self, minibatch: Minibatch, upper: Tensor | None = None) -> Any:
        """Bernoulli of event shape ``[latent]``."""
        return dist.Bernoulli(logits=self.logits(self.features(minibatch))).to_event(1)


class LatentLibrary(Declared):
    """A library size that is inferred: log-normal prior per level of the first condition, amortised posterior.

    Args:
        input_dim: Number of genes.
        loc: Prior mean of the log library, for each level of the first condition, or one for all.
        scale: Prior standard deviation of the log library, likewise.
        hidden_dims: Widths of the hidden layers of its encoder.
        dropout: Probability with which an activation is dropped in training.
        norm: ``"layer"``, ``"batch"`` or ``"none"``.
    """

    prior_loc: Tensor
    prior_scale: Tensor

    def __init__(
        self,
        input_dim: int,
        loc: Sequence[float],
        scale: Sequence[float],
        hidden_dims: Sequence[int] = (128,),
        *,
        dropout: float = 0.1,
        norm: str = "layer",
    ) -> None:
        super().__init__()
        if len(loc) != len(scale) or not len(loc) or min(scale) <= 0:
            raise ValueError(
                f"expected as many prior means as positive standard deviations, got {len(loc)} and {list(scale)}"
            )
        self.register_buffer("prior_loc", torch.tensor(loc, dtype=torch.get_default_dtype()))
        self.register_buffer("prior_scale", torch.tensor(scale, dtype=torch.get_default_dtype()))
        self.trunk = MLP(input_dim, hidden_dims, dropout=dropout, norm=norm)
        self.head = nn.Linear(self.trunk.output_dim, 2)
        # Begin at the observed total, a tenth of a log-count wide.
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.head.bias.copy_(torch.tensor([0.0, -2.25]))

    def prior(self, minibatch: Minibatch) -> Any:
        """LogNormal over the library of each cell, in counts."""
        if len(self.prior_loc) == 1:
            return dist.LogNormal(self.prior_loc[0], self.prior_scale[0])
        level = minibatch.conditions[:, 0]
        return dist.LogNormal(self.prior_loc[level], self.prior_scale[level])

    def posterior(self, minibatch: Minibatch) -> Any:
        """LogNormal over the library of each cell, centred near its observed total."""
        shift, spread = self.head(self.trunk(log_counts(minibatch))).unbind(-1)
        total = observed_counts(minibatch).sum(-1).clamp(min=1).log()
        return dist.LogNormal(total + shift, softplus(spread) + 1e-4)
