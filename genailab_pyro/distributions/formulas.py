r"""Log-probabilities of counts, exact in every regime, and what they cost where most counts are zero.

Negative binomial
-----------------
With mean ``mu = exp(log_mean)`` and inverse dispersion ``theta = exp(log_inverse_dispersion)`` the variance
is ``mu + mu^2 / theta`` and, with ``G`` the gamma function,

    f(x) = log G(x + theta) - log G(theta) - log G(x + 1)
           + x log(mu / (mu + theta)) + theta log(theta / (mu + theta)).

**Counts of zero and one** leave neither a gamma function nor a difference of large numbers: with
``s = softplus(log mu - log theta)``,

    f(0) = -theta s,    f(1) = f(0) + log mu - s.

Most counts are zero, most others are one, and gamma functions are what a log-probability costs; so they are taken at
the remaining counts alone, where it is known which these are.

**Other counts.** As it stands the formula subtracts numbers of size ``theta log theta`` and ``x log x``, and in single
precision nothing is left of a result near -2 once theta exceeds about 1e5: values above zero appear. Stirling's
formula, ``log G(y + 1) = (y + 1/2) log y - y + log(2 pi)/2 + e(y)``, removes these by hand (Loader 2000): with
``n = x + theta``,

    f(x) = -D - (log(2 pi x) + log1p(x / theta))/2 + e(n) - e(theta) - e(x)
    D = x log(x (mu + theta) / (mu n)) + theta log((mu + theta) / n).

D is half of the deviance, zero at ``x = mu``. In its neighbourhood both logarithms are of numbers close to 1 and are
taken as ``log1p`` of what is above 1, with ``d = x - mu``,

    D = x log1p((theta / n) (d / mu)) + theta log1p(-d / n),

and far from it as differences of logarithms. The error e(y) is ``1/(12 y) - 1/(360 y^3) + ...`` for large y, and what
its definition says for small y, where nothing cancels.

**Derivatives.** With ``p = mu / (mu + theta)``,

    d f / d log mu    = x - (x + theta) p
    d f / d log theta = theta (digamma(n) - digamma(theta)) + f(0) - d f / d log mu,

whose first term is 0 for a count of zero and 1 for a count of one. A digamma function is ``log y - r(y)``, whence

    digamma(n) - digamma(theta) = log1p(x / theta) + r(theta) - r(n),

and r comes from its series ``1/(2 y) + 1/(12 y^2) - ...`` at ``y + m`` by m steps of the recurrence
``digamma(y + 1) = digamma(y) + 1/y``: only positive fractions and one ``log1p``, and no difference of two digammas.

Zero-inflated negative binomial
-------------------------------
With gate ``pi = sigmoid(g)``,

    log p(x) = log(1 - pi) + f(x)                     for x > 0
    log p(0) = log(pi + (1 - pi) exp f(0))            = logaddexp(log pi, log(1 - pi) + f(0)).

Both logarithms of the gate come from the logits, so neither rounds to ``log 0``. The derivatives of the
second line are written with sigmoids and one ``expm1``, which neither overflow nor cancel at any logit:

    d log p(0) / d f = sigmoid(f - g)
    d log p(0) / d g = -sigmoid(-g) sigmoid(g - f) expm1(f).

References:
    Loader (2000), Fast and accurate computation of binomial probabilities. The saddle-point form, as in R.
    Robinson and Smyth (2008), Small-sample estimation of negative binomial dispersion, with applications to
    SAGE data. Biostatistics 9(2), doi:10.1093/biostatistics/kxm030.
    Lambert (1992), Zero-inflated Poisson regression, with an application to defects in manufacturing.
    Technometrics 34(1), doi:10.2307/1269547.
    Lopez, Regier, Cole, Jordan and Yosef (2018), Deep generative modeling for single-cell transcriptomics.
    Nature Methods 15, doi:10.1038/s41592-018-0229-2.
    Olver, Lozier, Boisvert and Clark (2010), NIST Handbook of Mathematical Functions, chapters 5.5 and 5.11
    (recurrence and Stirling's series), https://dlmf.nist.gov/5.11.
"""

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus
from torch.overrides import handle_torch_function, has_torch_function

from genailab_pyro.sparse import Nonzeros, nonzeros_of, signed

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188)


def _order(dtype: torch.dtype) -> tuple[int, tuple[float, ...]]:
    """Steps of the recurrence, and coefficients of Stirling's series after them, that a precision asks for."""
    return (10, _STIRLING) if dtype == torch.float64 else (4, _STIRLING[:3])


def _odd_series(inverse: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """``sum_k c_k / y^(2 k + 1)``, of ``1 / y``."""
    square = inverse * inverse
    total = square * coefficients[-1] + coefficients[-2]
    return reduce(lambda total, c: total * square + c, coefficients[-3::-1], total) * inverse


def _stirling_error(y: Tensor) -> Tensor:
    """``e(y)``: the logarithm of y! less Stirling's formula for it, for positive y."""
    steps, coefficients = _order(y.dtype)
    inverse = (y + steps).reciprocal()
    factors = reduce(torch.mul, (1 - i * inverse for i in range(1, steps)))
    return _odd_series(inverse, coefficients) + ((y + 0.5) * torch.log1p(steps / y) - steps - factors.log())


def _digamma_error(y: Tensor) -> Tensor:
    """``r(y) = log y - digamma(y)`` for positive y."""
    steps, coefficients = _order(y.dtype)
    slopes = tuple((2 * k + 1) * c for k, c in enumerate(coefficients))
    inverse = (y + steps).reciprocal()
    fractions = reduce(torch.add, ((y + i).reciprocal() for i in range(steps)))
    return fractions - torch.log1p(steps / y) + (0.5 + _odd_series(inverse, slopes)) * inverse


def bounded(log_inverse_dispersion: Tensor) -> Tensor:
    """Keep theta a finite positive number: past the upper bound the distribution is Poisson anyway."""
    bound = 0.5 * math.log(torch.finfo(log_inverse_dispersion.dtype).max)
    return log_inverse_dispersion.clamp(-bound, bound)


def _softplus(x: Tensor) -> Tensor:
    return softplus(x, threshold=80.0)  # torch's own threshold of 20 is felt in double precision


def _range(dtype: torch.dtype) -> tuple[float, float]:
    bound = 0.8 * math.log(torch.finfo(dtype).max)
    return -bound, bound


def _log1p(x: Tensor) -> Tensor:
    """``log(1 + x)``, finite where ``1 + x`` is positive and rounds to zero."""
    return torch.log1p(x.clamp(min=torch.finfo(x.dtype).eps - 1))


def _times(temporary: Tensor, factor: Tensor) -> Tensor:
    """The product, in place of a temporary of its shape where nothing is recorded."""
    return temporary * factor if torch.is_grad_enabled() else temporary.mul_(factor)


Gather = Callable[[Tensor], Tensor]


def _everywhere(tensor: Tensor) -> Tensor:
    return tensor


def _of_positive(counts: Tensor, log_mean: Tensor, log_theta: Tensor, at: Gather) -> Tensor:
    """``f(x)`` for counts above zero; ``at`` takes the other arguments to where these are."""
    theta = log_theta.exp()
    error = at(_stirling_error(theta))  # before it is repeated for each count
    theta, log_mean = at(theta), at(log_mean)
    total = counts + theta
    constants = (error - _stirling_error(total) + 0.5 * torch.log1p(counts / theta)) + (
        _stirling_error(counts) + 0.5 * counts.log() + _HALF_LOG_TWO_PI
    )
    # A mean beyond the floating-point range counts by its logarithm.
    held = log_mean.clamp(*_range(log_mean.dtype))
    beyond = log_mean - held
    mean = held.exp()
    difference = counts - mean
    log_counts_ratio = _log1p((theta / total) * (difference / mean)) - beyond.clamp(max=0)
    log_total_ratio = _log1p(-difference / total) + beyond.clamp(min=0)
    return -(counts * log_counts_ratio + theta * log_total_ratio) - constants


def _of_zero(log_mean: Tensor, log_theta: Tensor) -> Tensor:
    return _times(_softplus(log_mean - log_theta), -log_theta.exp())


def _forward(counts: Tensor, log_mean: Tensor, log_theta: Tensor, nonzeros: Nonzeros | None) -> Tensor:
    log_theta = bounded(log_theta)
    value = _of_zero(log_mean, log_theta)
    if nonzeros is None:
        zero = counts == 0
        of_others = _of_positive(torch.where(zero, 1.0, counts), log_mean, log_theta, _everywhere)
        return torch.where(zero, value, of_others)
    ones, others = nonzeros.ones, nonzeros.others
    means = ones.at(log_mean)
    of_one = ones.at(value) + (means - _softplus(means - ones.at(log_theta)))
    return others.put_(ones.put_(value, of_one), _of_positive(others.values, log_mean, log_theta, others.at))


def _digamma_rise(counts: Tensor, log_theta: Tensor, at: Gather) -> Tensor:
    """``theta (digamma(x + theta) - digamma(theta))``."""
    theta = log_theta.exp()
    error, theta = at(_digamma_error(theta)), at(theta)
    return theta * (torch.log1p(counts / theta) + error - _digamma_error(counts + theta))


def _by_counts(counts: Tensor, log_mean: Tensor, log_theta: Tensor) -> Tensor:
    gamma = torch.digamma(counts + log_theta.exp()) - torch.digamma(counts + 1)
    return gamma + logsigmoid(log_mean - log_theta)


def _derivatives(arguments: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Derivatives with respect to counts, log mu and log theta, each None where it is not wanted."""
    counts, log_mean = arguments[:2]
    log_theta = bounded(arguments[2])
    by_counts = _by_counts(counts, log_mean, log_theta) if wanted[0] else None
    if not (wanted[1] or wanted[2]):
        return by_counts, None, None
    by_mean = counts - (counts + log_theta.exp()) * torch.sigmoid(log_mean - log_theta)
    if not wanted[2]:
        return by_counts, by_mean, None
    by_theta = _digamma_rise(counts, log_theta, _everywhere) + _of_zero(log_mean, log_theta) - by_mean
    return by_counts, by_mean if wanted[1] else None, by_theta


def _sparse_derivatives(
    nonzeros: Nonzeros, log_mean: Tensor, log_theta: Tensor, value: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The same, by the non-zero counts and f(x); nothing of it can be derived again."""
    log_theta = bounded(log_theta)
    share = torch.sigmoid_(log_mean - log_theta)
    raised = nonzeros.values * (1 - nonzeros.at(share))
    by_mean = nonzeros.add_(share.mul_(-log_theta.exp()), raised)
    if not wanted[2]:
        return None, by_mean, None
    by_theta = value - by_mean
    ones, others = nonzeros.ones, nonzeros.others
    rises = ((ones, 1.0), (others, _digamma_rise(others.values, log_theta, others.at)))
    for entries, rise in rises:
        of_zero = _of_zero(entries.at(log_mean), entries.at(log_theta))
        entries.put_(by_theta, of_zero + rise - entries.at(by_mean))
    return None, by_mean if wanted[1] else None, by_theta


class _NegativeBinomial(torch.autograd.Function):
    """The log-probability with its closed-form derivative; arguments broadcast and share one dtype."""

    generate_vmap_rule = True

    @staticmethod
    @signed
    def forward(counts: Tensor, log_mean: Tensor, log_theta: Tensor, nonzeros: Nonzeros | None) -> Tensor:
        return _forward(counts, log_mean, log_theta, nonzeros)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *arguments, ctx.nonzeros = inputs
        ctx.save_for_backward(*arguments, output)
        ctx.save_for_forward(*arguments)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        counts, log_mean, log_theta, value = ctx.saved_tensors
        wanted, arguments = ctx.needs_input_grad, (counts, log_mean, log_theta)
        # A derivative that is itself to be derived, or is by the counts, is taken in the dense form.
        if ctx.nonzeros is None or torch.is_grad_enabled() or wanted[0]:
            parts = _derivatives(arguments, wanted)
        else:
            parts = _sparse_derivatives(ctx.nonzeros, log_mean, log_theta, value, wanted)
        found = (
            None if part is None else (gradient * part).sum_to_size(argument.shape)
            for argument, part in zip(arguments, parts, strict=True)
        )
        return *found, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        parts = _derivatives(ctx.saved_tensors, [tangent is not None for tangent in tangents[:3]])
        pairs = zip(tangents[:3], parts, strict=True)
        return reduce(torch.add, (a * b for a, b in pairs if a is not None and b is not None))


def _usable(counts: Tensor, whole: Tensor, other: Tensor) -> Nonzeros | None:
    """The non-zero values of counts, where the result has their rows and columns and one argument has its shape."""
    shape = torch.broadcast_shapes(counts.shape, whole.shape, other.shape)
    return nonzeros_of(counts) if counts.shape == shape[-2:] and whole.shape == shape else None


def negative_binomial_log_prob(
    counts: Float[Tensor, "*#batch"] | Int[Tensor, "*#batch"],
    log_mean: Float[Tensor, "*#batch"],
    log_inverse_dispersion: Float[Tensor, "*#batch"],
) -> Float[Tensor, "*batch"]:
    """Log-probability (nats) of counts under a negative binomial; the module's description derives the form.

    The arguments broadcast, and what depends on some of them only is computed once: with counts
    ``[cells, genes]`` and inverse dispersions ``[genes]``, a leading particle dimension of the
    mean repeats no gamma function. Counts that know their non-zero values (`CountTensor`, as minibatches hold them)
    take gamma functions at those above one alone, with the same result. Derivatives of every order, ``torch.func``
    transforms and tensor subclasses (``__torch_function__``) work.

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
    # A conversion that changes nothing would still wrap the counts, inside a transform.
    counts, log_mean, log_inverse_dispersion = (
        argument if argument.dtype == dtype else argument.to(dtype) for argument in arguments
    )
    nonzeros = _usable(counts, log_mean, log_inverse_dispersion)
    if nonzeros is not None:
        log_mean = log_mean.contiguous()
    return _NegativeBinomial.apply(counts, log_mean, log_inverse_dispersion, nonzeros)


def _at_zero(of_zero: Tensor, of_others: Tensor | float, counts: Tensor, nonzeros: Nonzeros | None) -> Tensor:
    """The first where the count is zero, the second elsewhere."""
    if nonzeros is None:
        return torch.where(counts == 0, of_zero, of_others)
    return nonzeros.put_(of_zero, nonzeros.at(torch.as_tensor(of_others, dtype=of_zero.dtype, device=of_zero.device)))


def _inflated_derivatives(
    counts: Tensor, log_prob: Tensor, gate_logits: Tensor, nonzeros: Nonzeros | None = None
) -> tuple[Tensor, Tensor]:
    """Derivatives with respect to f and the gate's logits."""
    by_log_prob = _at_zero(torch.sigmoid(log_prob - gate_logits), 1.0, counts, nonzeros)
    by_gate = _times(torch.sigmoid(gate_logits - log_prob), torch.sigmoid(-gate_logits))
    by_gate = _times(by_gate, -torch.expm1(log_prob))
    return by_log_prob, _at_zero(by_gate, -torch.sigmoid(gate_logits), counts, nonzeros)


class _Inflated(torch.autograd.Function):
    """The log-probability from counts, f and the logits of the gate; arguments broadcast and share one dtype."""

    generate_vmap_rule = True

    @staticmethod
    @signed
    def forward(counts: Tensor, log_prob: Tensor, gate_logits: Tensor, nonzeros: Nonzeros | None) -> Tensor:
        rest = gate_logits.abs().neg_().exp_().log1p_()
        log_gate = gate_logits.clamp(max=0).sub_(rest)
        positive = (log_prob - gate_logits.clamp(min=0)).sub_(rest)
        return _at_zero(torch.logaddexp(log_gate, positive), positive, counts, nonzeros)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *arguments, ctx.nonzeros = inputs
        ctx.save_for_backward(*arguments)
        ctx.save_for_forward(*arguments)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor, None]:
        counts, log_prob, gate_logits = ctx.saved_tensors
        nonzeros = None if torch.is_grad_enabled() else ctx.nonzeros
        by_log_prob, by_gate = _inflated_derivatives(counts, log_prob, gate_logits, nonzeros)
        return (
            None,
            (gradient * by_log_prob).sum_to_size(log_prob.shape),
            (gradient * by_gate).sum_to_size(gate_logits.shape),
            None,
        )

    @staticmethod
    def jvp(ctx: Any, counts: None, log_prob: Tensor, gate_logits: Tensor, _: None) -> Tensor:
        by_log_prob, by_gate = _inflated_derivatives(*ctx.saved_tensors)
        return log_prob * by_log_prob + gate_logits * by_gate


def inflated_log_prob(
    counts: Float[Tensor, "*#batch"], log_prob: Float[Tensor, "*#batch"], gate_logits: Float[Tensor, "*#batch"]
) -> Float[Tensor, "*batch"]:
    """Log-probability (nats) of counts with extra zeros, given that without them.

    Args:
        counts: Counts.
        log_prob: Their log-probability without extra zeros.
        gate_logits: Logits of the probability of an extra zero.

    Returns:
        The log-probabilities, of the broadcast shape.
    """
    arguments = (counts, log_prob, gate_logits)
    if has_torch_function(arguments):
        return handle_torch_function(inflated_log_prob, arguments, *arguments)
    gate_logits = gate_logits.to(log_prob.dtype)
    nonzeros = _usable(counts, log_prob, gate_logits)
    if nonzeros is not None:
        log_prob, gate_logits = log_prob.contiguous(), gate_logits.contiguous()
    return _Inflated.apply(counts, log_prob, gate_logits, nonzeros)
