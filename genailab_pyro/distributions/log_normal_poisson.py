r"""The Poisson distribution whose rate is log-normal, declared by its log mean and the scale of its log rate.

With ``m = log_mean - s^2 / 2`` and u standard normal, the rate is ``exp(m + s u)``, of mean ``exp(log_mean)``, and

    p(x) = int N(u; 0, 1) Poisson(x; exp(m + s u)) du.

The integrand has one mode, ``u = s (x - r)`` with ``r = exp(m + s u)``; where ``w = s^2 r``, that is
``w + log w = m + s^2 x + 2 log s``, and Newton's method, which comes from above, finds log w in six steps. The
curvature there is ``1 + w``. Gauss-Hermite quadrature about the mode, of nodes t and weights v that sum to one, leaves
of the integrand what is not normal (Liu and Pierce 1994):

    p(x) = Poisson(x; r) exp(-u^2 / 2) / sqrt(1 + w) sum_i v_i exp(-r (exp(d_i) - 1 - d_i - d_i^2 / 2)),
    d_i = s t_i / sqrt(1 + w),

in which no number grows with the count. The more counts, the narrower and the more normal the integrand; it is least so
for few counts at a large scale. With 16 nodes log p(x) is within 1e-6 nats at scales up to 1, and 2e-4 up to 2, at all
counts and means.

**Derivatives.** The nodes stay where they are, as the integral does not depend on them, and the density of the normal
moves: with respect to m it is ``E[u | x] / s``, with respect to s ``(E[u^2 | x] - 1) / s``.

References:
    Bulmer (1974), On fitting the Poisson lognormal distribution to species-abundance data. Biometrics 30(1),
    doi:10.2307/2529621.
    Liu and Pierce (1994), A note on Gauss-Hermite quadrature. Biometrika 81(3), doi:10.1093/biomet/81.3.624.
"""

import math
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from genailab_pyro.distributions.formulas import negative_binomial_log_prob
from genailab_pyro.distributions.negative_binomial import shared_shape

NODES = 16
_NEWTON_STEPS = 6


@cache
def _rule(order: int) -> list[tuple[float, float]]:
    """Nodes and weights of Gauss-Hermite quadrature for the standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    return list(zip(nodes.tolist(), (weights / weights.sum()).tolist(), strict=True))


def _log_omega(total: Tensor) -> Tensor:
    """The logarithm of w where ``w + log w`` is given."""
    found = torch.where(total < 1, total, total.clamp(min=1).log())
    for _ in range(_NEWTON_STEPS):
        omega = found.exp()
        found = found - (omega + found - total) / (omega + 1)
    return found


def log_normal_poisson_log_prob(
    counts: Float[Tensor, "*#batch"], log_mean: Float[Tensor, "*#batch"], scale: Float[Tensor, "*#batch"]
) -> Float[Tensor, "*batch"]:
    """Log-probability (nats) of counts whose rate is log-normal.

    Args:
        counts: Counts, non-negative whole numbers; not checked.
        log_mean: Log of the mean (log-counts).
        scale: Standard deviation of the log rate, above zero.

    Returns:
        The log-probabilities, of the broadcast shape.
    """
    loc = log_mean - scale**2 / 2
    held_loc, held_scale = loc.detach(), scale.detach()
    log_omega = _log_omega(held_loc + held_scale**2 * counts + 2 * held_scale.log())
    log_rate = log_omega - 2 * held_scale.log()
    rate, omega = log_rate.exp(), log_omega.exp()
    # Of two forms of the mode the one that loses no digits.
    mode = torch.where(omega < 1, held_scale * (counts - rate), (log_rate - held_loc) / held_scale)
    width = (1 + omega).rsqrt()
    surplus: Any = 0.0  # over one, of which no digit is lost where the integrand is nearly normal
    for node, weight in _rule(NODES):
        noise, step = mode + width * node, held_scale * width * node
        not_normal = -rate * (torch.expm1(step) - step - step**2 / 2)
        shift = (held_loc - loc + (held_scale - scale) * noise) / scale  # zero, but not its derivatives
        surplus = surplus + weight * torch.expm1(not_normal - shift * (noise + shift / 2))
    at_mode = negative_binomial_log_prob(counts, log_rate, log_rate.new_tensor(math.inf))
    return at_mode - mode**2 / 2 + width.log() + (held_scale / scale).log() + torch.log1p(surplus)


class LogNormalPoisson(TorchDistribution):
    """Poisson counts with a log-normal rate, of mean ``mu`` and variance ``mu + mu^2 (exp(scale^2) - 1)``.

    Its tail is heavier than that of the negative binomial of the same moments, and it has fewer zeros.

    Args:
        log_mean: Log of the mean (log-counts), broadcastable with the other; the log rate has the mean
            ``log_mean - scale^2 / 2``.
        scale: Standard deviation of the log rate, above zero; `log_prob` is accurate up to about 2.
        validate_args: Whether to check arguments and values; None follows Pyro's global setting.

    Attributes:
        log_mean: As given, expanded to the batch shape.
        scale: As given, expanded to the batch shape.

    Raises:
        ValueError: If the two do not broadcast, or if one is out of its range while arguments are checked.

    References:
        Bulmer (1974), On fitting the Poisson lognormal distribution to species-abundance data. Biometrics 30(1),
        doi:10.2307/2529621.

    Example:
        >>> counts = LogNormalPoisson(torch.zeros(2), torch.tensor([0.01, 1.0]))
        >>> counts.log_prob(torch.zeros(2))
        tensor([-1.0000, -0.6686])
        >>> counts.variance
        tensor([1.0001, 2.7183])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "log_mean": constraints.real,
        "scale": constraints.positive,
    }
    support = constraints.nonnegative_integer
    log_mean: Float[Tensor, "*batch"]
    scale: Float[Tensor, "*batch"]

    def __init__(
        self,
        log_mean: Float[Tensor, "*#batch"],
        scale: Float[Tensor, "*#batch"],
        *,
        validate_args: bool | None = None,
    ) -> None:
        shape = shared_shape(log_mean=log_mean, scale=scale)
        self.log_mean, self.scale = log_mean.expand(shape), scale.expand(shape)
        super().__init__(shape, validate_args=validate_args)

    def expand(
        self, batch_shape: torch.Size | tuple[int, ...], _instance: "LogNormalPoisson | None" = None
    ) -> "LogNormalPoisson":
        """The same distribution with a larger batch shape; nothing is copied."""
        new = self._get_checked_instance(LogNormalPoisson, _instance)
        log_mean, scale = self.log_mean.expand(batch_shape), self.scale.expand(batch_shape)
        LogNormalPoisson.__init__(new, log_mean, scale, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        """``exp(log_mean)``, in counts."""
        return self.log_mean.exp()

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        """``mu + mu^2 (exp(scale^2) - 1)``."""
        return self.mean + self.mean**2 * torch.expm1(self.scale**2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of counts in nats, of the broadcast of the batch shape and the value's shape."""
        if self._validate_args:
            self._validate_sample(value)
        return log_normal_poisson_log_prob(value, self.log_mean, self.scale)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Counts drawn given rates that are drawn first."""
        with torch.no_grad():
            log_mean, scale = (item.expand(self._extended_shape(sample_shape)) for item in (self.log_mean, self.scale))
            return torch.poisson((log_mean - scale**2 / 2 + scale * torch.randn_like(log_mean)).exp())
