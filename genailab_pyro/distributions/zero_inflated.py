"""The zero-inflated negative binomial declared by log mean, log inverse dispersion and gate logits."""

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.zero_inflated import ZeroInflatedDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from genailab_pyro.distributions.formulas import inflated_log_prob
from genailab_pyro.distributions.negative_binomial import CountsOfGenes, NegativeBinomial, shared_shape


class ZeroInflatedNegativeBinomial(CountsOfGenes, dist.ZeroInflatedNegativeBinomial):
    """Negative binomial counts with extra zeros, of mean ``(1 - pi) mu`` where ``pi = sigmoid(gate_logits)``.

    Pyro's distribution, declared by the log of the mean mu and of the inverse dispersion theta of its
    negative binomial part (see ``NegativeBinomial``), and by the gate in logits only: given as a probability,
    a gate that rounds to 1 yields NaN derivatives.

    Args:
        log_mean: Log of the negative binomial's mean mu (log-counts).
        log_inverse_dispersion: Log of theta, typically one per gene, shape ``[genes]``.
        gate_logits: Logit of the probability of an extra zero; finite values and derivatives beyond +-200.
        validate_args: Whether to check arguments and values; None follows Pyro's global setting.

    Attributes:
        log_mean: Log mean of the negative binomial part, expanded to the batch shape.
        log_inverse_dispersion: Log of theta, expanded to the batch shape.
        gate_logits: Logits of the gate, expanded to the batch shape.

    Raises:
        ValueError: If the arguments do not broadcast, or if one holds NaN while arguments are checked.

    References:
        Lambert (1992), Zero-inflated Poisson regression. Technometrics 34(1), doi:10.2307/1269547.

    Example:
        >>> genes = torch.zeros(2)
        >>> counts = ZeroInflatedNegativeBinomial(genes, genes, gate_logits=torch.tensor([-200.0, 0.0]))
        >>> counts.log_prob(torch.zeros(2)).exp()
        tensor([0.5000, 0.7500])
        >>> counts.mean
        tensor([1.0000, 0.5000])
    """

    arg_constraints = NegativeBinomial.arg_constraints | {"gate_logits": constraints.real}
    base_dist: NegativeBinomial
    gate_logits: Float[Tensor, "*batch"]

    def __init__(
        self,
        log_mean: Float[Tensor, "*#batch"],
        log_inverse_dispersion: Float[Tensor, "*#batch"],
        *,
        gate_logits: Float[Tensor, "*#batch"],
        validate_args: bool | None = None,
    ) -> None:
        shared_shape(log_mean=log_mean, log_inverse_dispersion=log_inverse_dispersion, gate_logits=gate_logits)
        counts = NegativeBinomial(log_mean, log_inverse_dispersion, validate_args=validate_args)
        # The parent's own constructor would build Pyro's negative binomial; its base takes any.
        ZeroInflatedDistribution.__init__(self, counts, gate_logits=gate_logits, validate_args=validate_args)

    @property
    def _declared(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        return *self.base_dist._declared, self.gate_logits

    @property
    def log_mean(self) -> Float[Tensor, "*batch"]:
        """Log mean of the negative binomial part, in log-counts."""
        return self.base_dist.log_mean

    @property
    def log_inverse_dispersion(self) -> Float[Tensor, "*batch"]:
        """Log inverse dispersion of the negative binomial part."""
        return self.base_dist.log_inverse_dispersion

    @property
    def gate(self) -> Float[Tensor, "*batch"]:
        """``pi``, the probability of an extra zero."""
        # Not cached as the parent's is: once cached, its `expand` finds the gate declared twice and refuses.
        return torch.sigmoid(self.gate_logits)

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        """``(1 - pi) mu``, in counts."""
        return torch.sigmoid(-self.gate_logits) * self.base_dist.mean

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        """``(1 - pi) (mu + mu^2 / theta + pi mu^2)``."""
        inflation = (2 * self.log_mean + logsigmoid(self.gate_logits)).exp()
        return torch.sigmoid(-self.gate_logits) * (self.base_dist.variance + inflation)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of counts in nats, of the broadcast of the batch shape and the value's shape."""
        # The base checks the value, where validation is on.
        return inflated_log_prob(value, self.base_dist.log_prob(value), self.gate_logits)
