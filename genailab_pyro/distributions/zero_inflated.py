r"""The zero-inflated negative binomial declared by log mean, log inverse dispersion and gate logits.

With gate ``pi = sigmoid(g)`` and negative binomial log-probability f,

    log p(x) = log(1 - pi) + f(x)                     for x > 0
    log p(0) = log(pi + (1 - pi) exp f(0))            = logaddexp(log pi, log(1 - pi) + f(0)).

Both logarithms of the gate come from the logits, so neither rounds to ``log 0``. The derivatives of the
second line are written with sigmoids and one ``expm1``, which neither overflow nor cancel at any logit:

    d log p(0) / d f = sigmoid(f - g)
    d log p(0) / d g = -sigmoid(-g) sigmoid(g - f) expm1(f).

References:
    Lambert (1992), Zero-inflated Poisson regression, with an application to defects in manufacturing.
    Technometrics 34(1), doi:10.2307/1269547.
    Lopez, Regier, Cole, Jordan and Yosef (2018), Deep generative modeling for single-cell transcriptomics.
    Nature Methods 15, doi:10.1038/s41592-018-0229-2.
"""

from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.zero_inflated import ZeroInflatedDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid
from torch.overrides import handle_torch_function, has_torch_function

from genailab_pyro.distributions.negative_binomial import NegativeBinomial, shared_shape


def _derivatives(counts: Tensor, log_prob: Tensor, gate_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives with respect to f and the gate's logits, of differentiable operations."""
    zero, opened = counts == 0, torch.sigmoid(gate_logits)
    by_log_prob = torch.where(zero, torch.sigmoid(log_prob - gate_logits), 1.0)
    by_gate = torch.sigmoid(-gate_logits) * torch.sigmoid(gate_logits - log_prob) * torch.expm1(log_prob)
    return by_log_prob, -torch.where(zero, by_gate, opened)


class _Inflated(torch.autograd.Function):
    """The log-probability from counts, f and the logits of the gate; arguments broadcast and share one dtype."""

    generate_vmap_rule = True

    @staticmethod
    def forward(counts: Tensor, log_prob: Tensor, gate_logits: Tensor) -> Tensor:
        rest = torch.log1p(torch.exp(-gate_logits.abs()))
        log_gate = gate_logits.clamp(max=0) - rest
        positive = log_prob - gate_logits.clamp(min=0) - rest
        return torch.where(counts == 0, torch.logaddexp(log_gate, positive), positive)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor]:
        _, log_prob, gate_logits = ctx.saved_tensors
        by_log_prob, by_gate = _derivatives(*ctx.saved_tensors)
        return (
            None,
            (gradient * by_log_prob).sum_to_size(log_prob.shape),
            (gradient * by_gate).sum_to_size(gate_logits.shape),
        )

    @staticmethod
    def jvp(ctx: Any, counts: None, log_prob: Tensor, gate_logits: Tensor) -> Tensor:
        by_log_prob, by_gate = _derivatives(*ctx.saved_tensors)
        return log_prob * by_log_prob + gate_logits * by_gate


def _inflated(counts: Tensor, log_prob: Tensor, gate_logits: Tensor) -> Tensor:
    arguments = (counts, log_prob, gate_logits)
    if has_torch_function(arguments):
        return handle_torch_function(_inflated, arguments, *arguments)
    return _Inflated.apply(counts, log_prob, gate_logits.to(log_prob.dtype))


class ZeroInflatedNegativeBinomial(dist.ZeroInflatedNegativeBinomial):
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
        return _inflated(value, self.base_dist.log_prob(value), self.gate_logits)
