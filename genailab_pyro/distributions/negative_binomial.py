r"""The negative binomial declared by its log mean and log inverse dispersion, exact in every regime.

With mean ``mu = exp(log_mean)`` and inverse dispersion ``theta = exp(log_inverse_dispersion)`` the variance
is ``mu + mu^2 / theta`` and

    log p(x) = log G(x + theta) - log G(theta) - log G(x + 1)
               + x log(mu / (mu + theta)) + theta log(theta / (mu + theta))

with ``G`` the gamma function. As it stands the formula subtracts numbers of size ``theta log theta``, and in
single precision nothing is left of a result near -2 once theta exceeds about 1e5: values above zero appear.
Three identities remove every such subtraction.

**Gamma ratio.** Write ``R(x; theta) = log G(x + theta) - log G(theta) - x log theta``, which vanishes as
``x^2 / theta``. Stirling's series for both gamma functions gives, for ``a`` not small,

    R(x; a) = (a + x - 1/2) log1p(x / a) - x + s(a + x) - s(a),    s(y) = 1/(12 y) - 1/(360 y^3) + ...

and the recurrence ``G(y + 1) = y G(y)``, applied n times to both, carries any theta to ``a = theta + n``:

    R(x; theta) = R(x; theta + n) + x log1p(n / theta) - sum_{i < n} log1p(x / (theta + i)).

There is no threshold between two formulas, hence no jump and no second branch to keep free of NaN; each term
goes to zero with ``x / theta``. With n = 5 and three terms of s the truncation is below 1e-8 (single
precision), with n = 10 and five terms below 1e-13 (double precision).

**Odds.** The ``x log theta`` that R leaves out turns the second line into

    x m - theta softplus(log mu - log theta),
    m = -log(1/mu + 1/theta) = min(log mu, log theta) - log1p(exp(-|log mu - log theta|)),

and m tends to log mu for large theta and to log theta for small theta. A mean of zero needs no special case
apart from ``0 * m = 0``.

**Derivatives.** With ``p = mu / (mu + theta)``,

    d log p / d log mu    = x (1 - p) - theta p
    d log p / d log theta = theta (R' - softplus(log mu - log theta)) - (x (1 - p) - theta p)

where ``R' = digamma(x + theta) - digamma(theta)`` is taken from the same recurrence and series, so that it is
a sum of positive fractions and one ``log1p``, never a difference of two digammas:

    R' = sum_{i < n} x / ((theta + i) (x + theta + i)) + log1p(x / a) + x / (2 a (a + x)) + s'(a + x) - s'(a).

References:
    Robinson and Smyth (2008), Small-sample estimation of negative binomial dispersion, with applications to
    SAGE data. Biostatistics 9(2), doi:10.1093/biostatistics/kxm030.
    Lopez, Regier, Cole, Jordan and Yosef (2018), Deep generative modeling for single-cell transcriptomics.
    Nature Methods 15, doi:10.1038/s41592-018-0229-2.
    Hilbe (2011), Negative Binomial Regression, 2nd edition. doi:10.1017/CBO9780511973420.
    Olver, Lozier, Boisvert and Clark (2010), NIST Handbook of Mathematical Functions, chapter 5.11
    (Stirling's series), https://dlmf.nist.gov/5.11.
"""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid, softplus
from torch.overrides import handle_torch_function, has_torch_function

_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188)
_RATIOS_PER_LOGARITHM = 4  # counts to 1e9 do not overflow the product in single precision


def _order(dtype: torch.dtype) -> tuple[int, tuple[float, ...]]:
    """Number of recurrence steps and coefficients of Stirling's series that a precision asks for."""
    return (10, _STIRLING) if dtype == torch.float64 else (5, _STIRLING[:3])


def _odd_series(y: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """``sum_k c_k / y^(2 k + 1)``."""
    square = (y * y).reciprocal()
    start = torch.full_like(y, coefficients[-1])
    return reduce(lambda total, c: total * square + c, coefficients[-2::-1], start) / y


def _bounded(log_inverse_dispersion: Tensor) -> Tensor:
    """Keep theta a finite positive number: past the upper bound the distribution is Poisson anyway."""
    bound = 0.5 * math.log(torch.finfo(log_inverse_dispersion.dtype).max)
    return log_inverse_dispersion.clamp(-bound, bound)


def _forward(counts: Tensor, log_mean: Tensor, log_theta: Tensor) -> Tensor:
    steps, coefficients = _order(log_mean.dtype)
    log_theta = _bounded(log_theta)
    theta = log_theta.exp()
    start = theta + steps
    end = start + counts
    ratio = (end - 0.5) * torch.log1p(counts / start) - counts
    ratio = ratio + (_odd_series(end, coefficients) - _odd_series(start, coefficients))
    ratio = ratio - torch.log1p(counts / theta) - torch.lgamma(counts + 1)
    for low in range(1, steps, _RATIOS_PER_LOGARITHM):
        factors = (1 + counts / (theta + i) for i in range(low, min(low + _RATIOS_PER_LOGARITHM, steps)))
        ratio = ratio - reduce(torch.mul, factors).log()
    gap = log_mean - log_theta
    rest = torch.log1p(torch.exp(-gap.abs()))
    success = torch.minimum(log_mean, log_theta) - rest + torch.log1p(steps / theta)
    # Zero counts of a zero mean are 0 * -inf; a NaN among the arguments still shows through `gap`.
    success = torch.nan_to_num(counts * success, nan=0.0, posinf=math.inf, neginf=-math.inf)
    return ratio + success - theta * (gap.clamp(min=0) + rest)


def _mean_derivative(counts: Tensor, log_mean: Tensor, log_theta: Tensor) -> Tensor:
    log_theta = _bounded(log_theta)
    gap = log_mean - log_theta
    return counts * torch.sigmoid(-gap) - log_theta.exp() * torch.sigmoid(gap)


def _theta_derivative(counts: Tensor, log_mean: Tensor, log_theta: Tensor, by_mean: Tensor) -> Tensor:
    """Derivative with respect to log theta, given that with respect to log mu."""
    steps, coefficients = _order(log_mean.dtype)
    log_theta = _bounded(log_theta)
    theta = log_theta.exp()
    start, moved = theta + steps, theta + counts
    end = moved + steps
    slopes = tuple(-(2 * k + 1) * c for k, c in enumerate(coefficients))
    fractions = 0.5 / (start * end)
    for i in range(1, steps):
        fractions = fractions + ((theta + i) * (moved + i)).reciprocal()
    series = _odd_series(end, slopes) / end - _odd_series(start, slopes) / start
    digammas = torch.log1p(counts / start) + counts * fractions + series
    return (theta * digammas + counts / moved) - theta * softplus(log_mean - log_theta) - by_mean


def _count_derivative(counts: Tensor, log_mean: Tensor, log_theta: Tensor) -> Tensor:
    log_theta = _bounded(log_theta)
    gamma = torch.digamma(counts + log_theta.exp()) - torch.digamma(counts + 1)
    return gamma + logsigmoid(log_mean - log_theta)


def _derivatives(arguments: tuple[Tensor, ...], wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Derivatives with respect to counts, log mu and log theta, each None where it is not wanted."""
    counts, log_mean, log_theta = arguments
    by_counts = _count_derivative(counts, log_mean, log_theta) if wanted[0] else None
    if not (wanted[1] or wanted[2]):
        return by_counts, None, None
    by_mean = _mean_derivative(counts, log_mean, log_theta)
    by_theta = _theta_derivative(counts, log_mean, log_theta, by_mean) if wanted[2] else None
    return by_counts, by_mean if wanted[1] else None, by_theta


class _LogProb(torch.autograd.Function):
    """The log-probability with its closed-form derivative; arguments broadcast and share one dtype."""

    generate_vmap_rule = True

    @staticmethod
    def forward(counts: Tensor, log_mean: Tensor, log_theta: Tensor) -> Tensor:
        return _forward(counts, log_mean, log_theta)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        parts = _derivatives(ctx.saved_tensors, ctx.needs_input_grad)
        return tuple(
            None if part is None else (gradient * part).sum_to_size(argument.shape)
            for argument, part in zip(ctx.saved_tensors, parts, strict=True)
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        parts = _derivatives(ctx.saved_tensors, [tangent is not None for tangent in tangents])
        pairs = zip(tangents, parts, strict=True)
        return reduce(torch.add, (a * b for a, b in pairs if a is not None and b is not None))


def negative_binomial_log_prob(
    counts: Float[Tensor, "*#batch"] | Int[Tensor, "*#batch"],
    log_mean: Float[Tensor, "*#batch"],
    log_inverse_dispersion: Float[Tensor, "*#batch"],
) -> Float[Tensor, "*batch"]:
    """Log-probability (nats) of counts under a negative binomial; the module's description derives the form.

    The arguments broadcast, and what depends on some of them only is computed once: with counts
    ``[cells, genes]`` and inverse dispersions ``[genes]``, a leading particle dimension of the
    mean repeats no gamma function. Derivatives of every order, ``torch.func`` transforms and
    tensor subclasses (``__torch_function__``) work.

    Args:
        counts: Counts, non-negative whole numbers; not checked.
        log_mean: Log of the mean (log-counts); minus infinity is a mean of zero.
        log_inverse_dispersion: Log of theta. Theta is held within the square root of the largest number
            of the floating-point type and its inverse (exp(44) and exp(-44) in single precision).

    Returns:
        The log-probabilities, of the broadcast shape.

    Example:
        >>> negative_binomial_log_prob(torch.tensor(5.0), torch.tensor(5.0).log(), torch.tensor(1e8).log())
        tensor(-1.7403)
    """
    arguments = (counts, log_mean, log_inverse_dispersion)
    if has_torch_function(arguments):
        return handle_torch_function(negative_binomial_log_prob, arguments, *arguments)
    dtype = torch.promote_types(log_mean.dtype, log_inverse_dispersion.dtype)
    if counts.is_floating_point():
        dtype = torch.promote_types(dtype, counts.dtype)
    return _LogProb.apply(*(argument.to(dtype) for argument in arguments))


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


class NegativeBinomial(dist.NegativeBinomial):
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
        # Kept unexpanded: what depends on theta alone is then computed once per gene, not once per cell.
        self._declared = (log_mean, log_inverse_dispersion)
        self.log_mean = log_mean.expand(shape)
        self.log_inverse_dispersion = log_inverse_dispersion.expand(shape)
        log_theta = _bounded(log_inverse_dispersion)
        super().__init__(log_theta.exp(), logits=log_mean - log_theta, validate_args=validate_args)

    def expand(
        self, batch_shape: torch.Size | tuple[int, ...], _instance: "NegativeBinomial | None" = None
    ) -> "NegativeBinomial":
        """The same distribution with a larger batch shape; nothing is copied."""
        new = self._get_checked_instance(NegativeBinomial, _instance)
        new._declared = self._declared
        new.log_mean = self.log_mean.expand(batch_shape)
        new.log_inverse_dispersion = self.log_inverse_dispersion.expand(batch_shape)
        return super().expand(batch_shape, _instance=new)

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
