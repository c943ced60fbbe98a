"""Normalizing flows, of the optional package zuko: a prior and a guide of any shape, with exact densities.

A flow maps a latent z to a standard normal u by splines that increase in each coordinate, so that

    log p(z) = log N(f(z) | 0, 1) + log |det df/dz|,        z = f^-1(u).

The splines are the identity outside [-5, 5] in each coordinate, and everywhere before training: a flow starts as a
normal.

References:
    Durkan, Bekasov, Murray, Papamakarios (2019). Neural spline flows. doi:10.48550/arXiv.1906.04032
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import AffineTransform, Distribution, constraints

from genailab_pyro.model.encoders import LocationScaleEncoder
from genailab_pyro.model.priors import Prior
from genailab_pyro.nn import ConditionEncoding
from genailab_pyro.types import Latent, Minibatch, PerCell

NOTHING = torch.Size()
QUADRATURE = 64  # points of which `FlowDistribution.mean` is the average


class FlowDistribution(dist.TorchDistribution):
    """The distribution of ``transform.inv(u)`` for a draw u of the base, as Pyro's programs need it.

    Args:
        transform: From the latent to the base, as zuko's lazy transforms give it; it computes its value and its log
            determinant together.
        base: Standard normal of event shape ``[latent]``, whose batch shape is the distribution's.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  (torch reads it as a class attribute)
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, transform: Any, base: Any) -> None:
        self.transform = transform
        self.base = base
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "FlowDistribution":
        """The same flow over a larger batch shape."""
        return FlowDistribution(self.transform, self.base.expand(batch_shape))

    def rsample(self, sample_shape: torch.Size = NOTHING) -> Latent:
        """Draw with a path to the parameters."""
        return self.transform.inv(self.base.rsample(sample_shape))

    def log_prob(self, value: Latent) -> PerCell:
        """The exact log-density, of values drawn here or elsewhere."""
        normal, log_det = self.transform.call_and_ladj(value)
        return self.base.log_prob(normal) + log_det

    @property
    def mean(self) -> Latent:
        """The mean, by quasi-random points that are always the same.

        It is the average of the images of 64 scrambled Sobol points in pairs of opposite sign: exact while the flow is
        affine, within about a twentieth of a standard deviation otherwise.
        """
        (latent_dim,) = self.event_shape
        like = self.base.mean
        uniform = torch.quasirandom.SobolEngine(latent_dim, scramble=True, seed=0).draw(QUADRATURE // 2)
        half = torch.special.ndtri(uniform.to(like).clamp(1e-4, 1 - 1e-4))
        points = torch.cat([half, -half]).reshape(QUADRATURE, *[1] * len(self.batch_shape), latent_dim)
        return self.transform.inv(points.expand(QUADRATURE, *like.shape)).mean(0)


def spline_flow(latent_dim: int, context_dim: int, transforms: int, hidden_dims: Sequence[int], passes: int) -> Any:
    """A module whose ``forward(context)`` is a transform from the latent to a standard normal, the identity at first.

    Args:
        latent_dim: Number of latents.
        context_dim: Width of what the splines depend on; 0 for nothing.
        transforms: Number of layers of splines.
        hidden_dims: Widths of the hidden layers of the network behind each.
        passes: Runs of a layer's network for a draw: the number of latents for an autoregressive flow, two for a
            coupling flow. A density always takes one.

    Raises:
        ImportError: If zuko is not installed.
        ValueError: If a number is out of range.
    """
    if latent_dim < 1 or context_dim < 0 or transforms < 1 or min(hidden_dims, default=1) < 1:
        raise ValueError(
            f"expected a flow with widths and a number of transforms of at least one, got latent_dim={latent_dim}, "
            f"a context of width {context_dim}, transforms={transforms} and hidden widths {list(hidden_dims)}"
        )
    options: dict[str, Any] = {"transforms": transforms, "hidden_features": tuple(hidden_dims), "passes": passes}
    flow = _zuko().flows.NSF(latent_dim, context_dim, **options).transform
    for layer in flow.transforms:
        last = layer.hyper[-1].parameters() if hasattr(layer, "hyper") else layer.parameters()
        for parameter in last:
            nn.init.zeros_(parameter)
    for module in flow.modules():
        for name, buffer in [*module.named_buffers(recurse=False)]:  # masks and orders, which the arguments declare
            module.register_buffer(name, buffer, persistent=False)
    return flow


def _zuko() -> Any:
    validated = Distribution._validate_args
    try:
        zuko = import_module("zuko")
    except ImportError:
        raise ImportError(
            "expected the package zuko for a normalizing flow, found none; pip install 'genailab-pyro[flows]'"
        ) from None
    # Its first import switches the validation of every torch distribution off.
    Distribution.set_default_validate_args(validated)
    return zuko


class FlowPrior(Prior):
    """A latent whose distribution is an autoregressive spline flow, of the condition where it is given a width.

    The density of given latents, which is what training needs, takes one pass; a draw takes as many as there are
    latents.

    Args:
        latent_dim: Number of latents.
        condition_dim: Width of the condition that it depends on; 0 for one distribution whatever the condition.
        transforms: Number of layers of splines.
        hidden_dims: Widths of the hidden layers of the network behind each.

    Raises:
        ImportError: If zuko is not installed.
        ValueError: If a width is out of range.

    References:
        Durkan, Bekasov, Murray, Papamakarios (2019). Neural spline flows. doi:10.48550/arXiv.1906.04032

    Example:
        >>> FlowPrior(2, condition_dim=3)(torch.eye(3)).sample().shape
        torch.Size([3, 2])
    """

    zero: Tensor

    def __init__(
        self,
        latent_dim: int,
        condition_dim: int = 0,
        *,
        transforms: int = 3,
        hidden_dims: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__()
        self.condition_dim = condition_dim
        self.flow = spline_flow(latent_dim, condition_dim, transforms, hidden_dims, passes=latent_dim)
        self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)

    def forward(self, condition: Float[Tensor, "*cells condition"]) -> FlowDistribution:
        """One distribution per cell, or the same for every cell where it does not depend on the condition.

        Raises:
            ValueError: If the condition is of another width.
        """
        base = dist.Normal(self.zero, torch.ones_like(self.zero)).to_event(1)
        if not self.condition_dim:
            return FlowDistribution(self.flow(), base)
        if condition.shape[-1] != self.condition_dim:
            raise ValueError(
                f"expected a condition of width {self.condition_dim} for this FlowPrior, got one of width "
                f"{condition.shape[-1]}; declare it with condition_dim={condition.shape[-1]}"
            )
        return FlowDistribution(self.flow(condition), base.expand(condition.shape[:-1]))


class FlowEncoder(LocationScaleEncoder):
    """A posterior that is a spline flow: ``z = loc + scale * f^-1(u)`` with u standard normal.

    Location, scale and the flow f are read from the features of log1p(counts) and the condition. It starts as a
    `NormalEncoder`, and comes to follow posteriors that are skewed, correlated or of several modes. The layers are
    couplings, so that a draw and its density take few passes each, and values drawn elsewhere can be scored.

    Args:
        input_dim: Number of genes.
        latent_dim: Number of latents.
        hidden_dims: Widths of the hidden layers of the perceptron.
        condition: Encoding of the conditions, seen beside the counts; None to see the counts alone.
        transforms: Number of layers of splines.
        flow_dims: Widths of the hidden layers of the network behind each.
        dropout: Probability with which an activation of the perceptron is dropped in training.
        norm: ``"layer"``, ``"batch"`` or ``"none"``.

    Raises:
        ImportError: If zuko is not installed.
        ValueError: If a width is out of range.

    References:
        Rezende, Mohamed (2015). Variational inference with normalizing flows. doi:10.48550/arXiv.1505.05770
        Durkan, Bekasov, Murray, Papamakarios (2019). Neural spline flows. doi:10.48550/arXiv.1906.04032

    Example:
        >>> none = torch.zeros(3, 0)
        >>> cells = Minibatch(torch.ones(3, 5), none.long(), none, torch.full((3,), 5.0), torch.arange(3), 3)
        >>> FlowEncoder(5, 2, [8])(cells).mean.shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        input_dim: int,
        latent_dim: int,
        hidden_dims: Sequence[int] = (128,),
        *,
        condition: ConditionEncoding | None = None,
        transforms: int = 3,
        flow_dims: Sequence[int] = (64,),
        dropout: float = 0.1,
        norm: str = "layer",
    ) -> None:
        super().__init__(input_dim, latent_dim, hidden_dims, condition=condition, dropout=dropout, norm=norm)
        self.flow = spline_flow(latent_dim, self.trunk.output_dim, transforms, flow_dims, passes=2)

    def forward(self, minibatch: Minibatch, upper: Tensor | None = None) -> FlowDistribution:
        """Flow of event shape ``[latent]``; the scale is above 1e-4."""
        features = self.features(minibatch)
        loc, scale = self.loc_and_scale(features, upper)
        standardised = AffineTransform(loc, scale, event_dim=1).inv
        transform = _zuko().transforms.ComposedTransform(standardised, self.flow(features))
        return FlowDistribution(transform, dist.Normal(torch.zeros_like(loc), torch.ones_like(loc)).to_event(1))
