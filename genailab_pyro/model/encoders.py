"""Encoders: the amortised posterior of the latent, and the latent library size with its prior and posterior."""

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal, Normal, register_kl
from torch.nn.functional import softplus

from genailab_pyro.estimators.rules import innermost, kind
from genailab_pyro.nn import MLP, ConditionEncoding, Declared
from genailab_pyro.sparse import Nonzeros, nonzeros_of
from genailab_pyro.types import Counts, Latent, Minibatch, PerCell

DRAWS_FOR_MEAN = 200


class Encoder(Declared):
    """Base of the encoders: ``encoder(minibatch)`` is a Pyro distribution of event shape ``[latent]``.

    Below an upper latent it is ``encoder(minibatch, upper)``.
    """

    @property
    def reads_upper(self) -> bool:
        """Whether it reads an upper latent; a class that does may just say ``reads_upper = True``."""
        return False

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


def mean_of(distribution: Any) -> Tensor:
    """Mean of a distribution; where it knows none, that of `DRAWS_FOR_MEAN` draws, the same ones at every call."""
    try:
        return distribution.mean
    except NotImplementedError:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            return distribution.sample(torch.Size([DRAWS_FOR_MEAN])).mean(0)


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


class LocationScaleEncoder(TrunkEncoder):
    """Base of the encoders that read a location and a scale of each latent from the features.

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

    def loc_and_scale(
        self, features: Float[Tensor, "cells features"], upper: Float[Tensor, "*particles cells upper"] | None
    ) -> tuple[Latent, Latent]:
        """Location and scale of each latent; the scale is above 1e-4."""
        loc, scale = self.loc(features), self.scale(features)
        if self.upper is not None:
            by_loc, by_scale = self.upper(upper).chunk(2, dim=-1)
            loc, scale = loc + by_loc, scale + by_scale
        return loc, softplus(scale) + 1e-4


class NormalEncoder(LocationScaleEncoder):
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

    def forward(self, minibatch: Minibatch, upper: Tensor | None = None) -> Any:
        """Normal of event shape ``[latent]``; the scale is above 1e-4."""
        return dist.Normal(*self.loc_and_scale(self.features(minibatch), upper)).to_event(1)


class FullRankEncoder(LocationScaleEncoder):
    r"""Normal posterior with correlated latents, whose Cholesky factor is read from log1p(counts) and the condition.

    .. math::
        z = m + D U \epsilon, \qquad \epsilon \sim N(0, I), \qquad \Sigma = D U U^\top D,

    with location m and scales D as in `NormalEncoder`, and U lower triangular with ones on its diagonal. U is the
    identity before training: it starts as a `NormalEncoder` of the same seed.

    Its KL to a normal prior with independent latents has a closed form, which does not split into latents: free bits
    per latent do not apply.

    Args:
        input_dim: Number of genes.
        latent_dim: Number of latents, two or more: D of them have D (D - 1) / 2 entries of U.
        hidden_dims: Widths of the hidden layers.
        condition: Encoding of the conditions, seen beside the counts; None to see the counts alone.
        upper_dim: Width of an upper latent, on which location and scales depend linearly; 0 for none.
        dropout: Probability with which an activation is dropped in training.
        norm: ``"layer"``, ``"batch"`` or ``"none"``.

    Raises:
        ValueError: If there are fewer than two latents.

    References:
        Kingma, Welling (2019). An introduction to variational autoencoders, section 2.5.1. doi:10.1561/2200000056

    Example:
        >>> none = torch.zeros(3, 0)
        >>> cells = Minibatch(torch.ones(3, 5), none.long(), none, torch.full((3,), 5.0), torch.arange(3), 3)
        >>> FullRankEncoder(5, 2, [8])(cells).covariance_matrix.shape
        torch.Size([3, 2, 2])
    """

    places: Tensor

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
        if latent_dim < 2:
            raise ValueError(f"expected at least two latents to be correlated, got {latent_dim}; use a NormalEncoder")
        super().__init__(
            input_dim, latent_dim, hidden_dims, condition=condition, upper_dim=upper_dim, dropout=dropout, norm=norm
        )
        rows, columns = torch.tril_indices(latent_dim, latent_dim, offset=-1)
        self.below = nn.Linear(self.trunk.output_dim, len(rows))
        nn.init.zeros_(self.below.weight)
        nn.init.zeros_(self.below.bias)
        # Where each entry of U stands among those below the diagonal, a zero and a one.
        places = torch.full((latent_dim, latent_dim), len(rows)).fill_diagonal_(len(rows) + 1)
        places[rows, columns] = torch.arange(len(rows))
        self.register_buffer("places", places.flatten(), persistent=False)

    def forward(self, minibatch: Minibatch, upper: Tensor | None = None) -> Any:
        """Multivariate normal of event shape ``[latent]``; the diagonal of its Cholesky factor is above 1e-4."""
        features = self.features(minibatch)
        loc, scale = self.loc_and_scale(features, upper)
        below = self.below(features)
        zero = torch.zeros_like(features[..., :1])
        # Put together out of place, which keeps Pyro's record of what depends on a draw.
        unit = torch.cat([below, zero, zero + 1], dim=-1).index_select(-1, self.places)
        factor = scale.unsqueeze(-1) * unit.unflatten(-1, (loc.shape[-1], -1))
        return dist.MultivariateNormal(loc, scale_tril=factor)


class LowRankEncoder(LocationScaleEncoder):
    r"""Normal posterior with latents that are correlated along a few directions, read from the features.

    .. math::
        z = m + D (\epsilon + V \eta), \qquad \epsilon, \eta \sim N(0, I), \qquad \Sigma = D (I + V V^\top) D,

    with location m and scales D as in `NormalEncoder`, and V of shape ``[latent, rank]``. V is in units of the scales,
    so that the density stays accurate where these are small. It starts small but not at zero, where its gradient
    would vanish on average. `FullRankEncoder` costs more entries, and is as quick for tens of latents.

    Args:
        input_dim: Number of genes.
        latent_dim: Number of latents.
        hidden_dims: Widths of the hidden layers.
        rank: Number of directions, from 1 to the number of latents.
        condition: Encoding of the conditions, seen beside the counts; None to see the counts alone.
        upper_dim: Width of an upper latent, on which location and scales depend linearly; 0 for none.
        dropout: Probability with which an activation is dropped in training.
        norm: ``"layer"``, ``"batch"`` or ``"none"``.

    Raises:
        ValueError: If the rank is out of range.

    References:
        Rezende, Mohamed, Wierstra (2014). Stochastic backpropagation and approximate inference in deep generative
        models, section 4.3. doi:10.48550/arXiv.1401.4082 (which has the precision of this form)

    Example:
        >>> none = torch.zeros(3, 0)
        >>> cells = Minibatch(torch.ones(3, 5), none.long(), none, torch.full((3,), 5.0), torch.arange(3), 3)
        >>> LowRankEncoder(5, 4, [8], rank=2)(cells).cov_factor.shape
        torch.Size([3, 4, 2])
    """

    def __init__(
        self,
        input_dim: int,
        latent_dim: int,
        hidden_dims: Sequence[int] = (128,),
        *,
        rank: int = 2,
        condition: ConditionEncoding | None = None,
        upper_dim: int = 0,
        dropout: float = 0.1,
        norm: str = "layer",
    ) -> None:
        if not 1 <= rank <= latent_dim:
            raise ValueError(f"expected a rank from 1 to latent_dim={latent_dim}, got {rank}")
        super().__init__(
            input_dim, latent_dim, hidden_dims, condition=condition, upper_dim=upper_dim, dropout=dropout, norm=norm
        )
        self.directions = nn.Linear(self.trunk.output_dim, latent_dim * rank)
        with torch.no_grad():
            self.directions.weight.mul_(0.1)
            self.directions.bias.mul_(0.1)

    def forward(self, minibatch: Minibatch, upper: Tensor | None = None) -> Any:
        """Low-rank multivariate normal of event shape ``[latent]``; its diagonal is above 1e-8."""
        features = self.features(minibatch)
        loc, scale = self.loc_and_scale(features, upper)
        directions = self.directions(features).unflatten(-1, (loc.shape[-1], -1))
        return dist.LowRankMultivariateNormal(loc, scale.unsqueeze(-1) * directions, scale.square())


@register_kl(MultivariateNormal, Independent)
@register_kl(LowRankMultivariateNormal, Independent)
def _kl_to_independent_normals(q: Any, p: Independent) -> PerCell:
    """KL of a normal with correlated latents to one with independent ones: a cross-entropy less the entropy."""
    normal = innermost(p)
    if not isinstance(normal, Normal) or p.event_shape != q.event_shape:
        raise NotImplementedError(f"the KL of a {kind(q)} to independent {kind(p)} latents has no closed form")
    spread = (q.variance + (q.mean - normal.loc) ** 2) / normal.variance
    cross_entropy = 0.5 * (spread + math.log(2 * math.pi)) + normal.scale.log()
    return cross_entropy.sum(-1) - q.entropy()


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
