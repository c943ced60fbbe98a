"""The negative binomial declared by its log mean and log inverse dispersion."""

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Distribution, constraints

from genailab_pyro.distributions.formulas import bounded, event_log_prob, negative_binomial_log_prob


def shared_shape(**arguments: Tensor) -> torch.Size:
    """The shape that the named arguments of a distribution broadcast to.

    Raises:
        ValueError: If they do not broadcast; the message gives each name and shape.
    """
    try:
        return torch.broadcast_shapes(*(argument.shape for argument in arguments.values()))
    except RuntimeError as error:
        shapes = ", ".join(f"{name} {list(argument.shape)}" for name, argument in arguments.items())
        raise ValueError(f"expected shapes that broadcast, such as [cells, genes] and [genes], got {shapes}") from error


class OfAllGenes(dist.Independent):
    """Counts of all genes of a cell as one event, whose log-probability is taken at once."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of the counts of a cell in nats, of the broadcast of the batch shape and the value's."""
        counts = self.base_dist
        if counts._validate_args:
            counts._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape, counts.batch_shape)
        return event_log_prob(value, *counts._declared).expand(shape[:-1])


class CountsOfGenes(TorchDistributionMixin):
    """What the distributions of counts share: that of all genes is scored at once.

    Attributes:
        _declared: What they were declared by, not expanded: what depends on theta alone is then computed once per
            gene, and not once per cell.
    """

    _declared: tuple[Tensor, ...]

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> Any:
        """Declare dimensions at the right to be one event, as in Pyro; all by default."""
        if reinterpreted_batch_ndims == 1:
            return OfAllGenes(self, 1)
        return super().to_event(reinterpreted_batch_ndims)


class NegativeBinomial(CountsOfGenes, dist.NegativeBinomial):
    """Negative binomial counts of mean ``mu`` and variance ``mu + mu^2 / theta``.

    Pyro's distribution in all but three things: it is declared by ``log mu`` and ``log theta``, so that no
    probability rounds to 1 and no epsilon is added inside a logarithm; ``log_prob`` and its derivatives keep
    their precision at every theta; and ``mean`` is exactly ``exp(log_mean)``. Its
    ``total_count`` is theta and its ``logits`` are ``log_mean - log_inverse_dispersion``.

    Args:
        log_mean: Log of the mean (log-counts), broadcastable with the other; minus infinity gives zeros only.
        log_inverse_dispersion: Log of theta, typically one per gene, shape ``[genes]``.
        validate_args: Whether to check arguments and values; None follows Pyro's global setting.

    Attributes:
        log_mean: As given, expanded to the batch shape.
        log_inverse_dispersion: As given, expanded to the batch shape.

    Raises:
        ValueError: If the two do not broadcast, or if one holds NaN while arguments are checked.

    References:
        Robinson and Smyth (2008), Small-sample estimation of negative binomial dispersion.
        Biostatistics 9(2), doi:10.1093/biostatistics/kxm030.

    Example:
        >>> counts = NegativeBinomial(torch.zeros(3, 2), torch.tensor([0.0, 20.0]))
        >>> counts.to_event(1).log_prob(torch.ones(3, 2))
        tensor([-2.3863, -2.3863, -2.3863])
        >>> counts.variance[0]
        tensor([2., 1.])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "log_mean": constraints.real,
        "log_inverse_dispersion": constraints.real,
    }
    log_mean: Float[Tensor, "*batch"]
    log_inverse_dispersion: Float[Tensor, "*batch"]

    def __init__(
        self,
        log_mean: Float[Tensor, "*#batch"],
        log_inverse_dispersion: Float[Tensor, "*#batch"],
        *,
        validate_args: bool | None = None,
    ) -> None:
        shape = shared_shape(log_mean=log_mean, log_inverse_dispersion=log_inverse_dispersion)
        self._declared = (log_mean, log_inverse_dispersion)
        self.log_mean = log_mean.expand(shape)
        self.log_inverse_dispersion = log_inverse_dispersion.expand(shape)
        # The parent's own constructor would compute its parameters, which are only wanted to draw.
        Distribution.__init__(self, shape, validate_args=validate_args)

    def expand(
        self, batch_shape: torch.Size | tuple[int, ...], _instance: "NegativeBinomial | None" = None
    ) -> "NegativeBinomial":
        """The same distribution with a larger batch shape; nothing is copied."""
        new = self._get_checked_instance(NegativeBinomial, _instance)
        new._declared = self._declared
        new.log_mean = self.log_mean.expand(batch_shape)
        new.log_inverse_dispersion = self.log_inverse_dispersion.expand(batch_shape)
        Distribution.__init__(new, torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def total_count(self) -> Float[Tensor, "*batch"]:
        """Theta."""
        return bounded(self.log_inverse_dispersion).exp()

    @property
    def logits(self) -> Float[Tensor, "*batch"]:
        """``log_mean - log_inverse_dispersion``, the logit of Pyro's probability."""
        return self.log_mean - bounded(self.log_inverse_dispersion)

    @property
    def probs(self) -> Float[Tensor, "*batch"]:
        """Pyro's probability, ``mu / (mu + theta)``."""
        return torch.sigmoid(self.logits)

    @property
    def _param(self) -> Tensor:
        return self.logits

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        """``exp(log_mean)``, in counts."""
        return self.log_mean.exp()

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        """``mu + mu^2 / theta``; infinite only where it exceeds the floating-point range itself."""
        return self.log_mean.exp() + (2 * self.log_mean - self.log_inverse_dispersion).exp()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of counts in nats, of the broadcast of the batch shape and the value's shape."""
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        return negative_binomial_log_prob(value, *self._declared).expand(shape)
