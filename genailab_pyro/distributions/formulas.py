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

Most counts are zero and most others are one. Where it is known which (`CountTensor`), the log-probability of all genes
of a cell is a sum over what is cheap, ``f(0)`` everywhere, which the few non-zero counts then replace; gamma functions,
which are what a log-probability costs, are taken at counts of two and more alone.

**Counts of two and more.** As it stands the formula subtracts numbers of size ``theta log theta`` and ``x log x``, and
in single precision nothing is left of a result near -2 once theta exceeds about 1e5: values above zero appear.
Stirling's formula, ``log G(y + 1) = (y + 1/2) log y - y + log(2 pi)/2 + e(y)``, removes these by hand (Loader 2000):
with ``n = x + theta``,

    f(x) = -D - log(2 pi x n / theta)/2 + e(n) - e(theta) - e(x)
    D = x log(x (mu + theta) / (mu n)) + theta log((mu + theta) / n).

D is half of the deviance, zero at ``x = mu``. In its neighbourhood both logarithms are of numbers close to 1 and are
taken as ``log1p`` of what is above 1, with ``d = x - mu``,

    D = x log1p((theta / n) (d / mu)) + theta log1p(-d / n),

and far from it as differences of logarithms. The error e(y) is ``1/(12 y) - 1/(360 y^3) + ...`` for large y, and what
its definition says for small y, where nothing cancels; x and n are not small, and in single precision five terms of the
series are enough for them.

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

In a sum over genes no digit of a term that is itself next to nothing is seen, and shorter forms do:

    log p(0) = logaddexp(g, f(0)) - softplus(g),    d log p(0) / d g = 1 - sigmoid(f - g) - sigmoid(g),

of which the counts above zero have f(x) in place of the ``logaddexp``, and 1 in place of ``sigmoid(f - g)``.

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


def _order(dtype: torch.dtype, least: int) -> tuple[int, tuple[float, ...]]:
    """Steps of the recurrence, and coefficients of Stirling's series after them, that a precision asks for.

    ``least`` is what the argument is not below.
    """
    if dtype == torch.float64:
        return 10 - least, _STIRLING
    return (0, _STIRLING) if least >= 2 else (4, _STIRLING[:3])


def _odd_series(inverse: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """``sum_k c_k / y^(2 k + 1)``, of ``1 / y``."""
    square = inverse * inverse
    total = square * coefficients[-1] + coefficients[-2]
    return reduce(lambda total, c: total * square + c, coefficients[-3::-1], total) * inverse


def _stirling_error(y: Tensor, least: int = 0) -> Tensor:
    """``e(y)``: the logarithm of y! less Stirling's formula for it, for positive y."""
    steps, coefficients = _order(y.dtype, least)
    inverse = (y + steps).reciprocal()
    series = _odd_series(inverse, coefficients)
    if not steps:
        return series
    factors = reduce(torch.mul, (1 - i * inverse for i in range(1, steps)))
    return series + ((y + 0.5) * torch.log1p(steps / y) - steps - factors.log())


def _digamma_error(y: Tensor, least: int = 0) -> Tensor:
    """``r(y) = log y - digamma(y)`` for positive y."""
    steps, coefficients = _order(y.dtype, least)
    slopes = tuple((2 * k + 1) * c for k, c in enumerate(coefficients))
    inverse = (y + steps).reciprocal()
    series = (0.5 + _odd_series(inverse, slopes)) * inverse
    if not steps:
        return series
    return reduce(torch.add, ((y + i).reciprocal() for i in range(steps))) - torch.log1p(steps / y) + series


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


Gather = Callable[[Tensor], Tensor]
Parts = tuple[Tensor | None, ...]


def _everywhere(tensor: Tensor) -> Tensor:
    return tensor


def _of_positive(counts: Tensor, log_mean: Tensor, log_theta: Tensor, at: Gather, least: int = 0) -> Tensor:
    """``f(x)`` for counts above zero; ``at`` takes the other arguments to where these are."""
    theta = log_theta.exp()
    error = at(_stirling_error(theta))  # before it is repeated for each count
    theta, log_mean = at(theta), at(log_mean)
    total = counts + theta
    of_total, of_counts = _stirling_error(torch.stack([total, counts.expand_as(total)]), least)
    constants = (error - of_total) + of_counts + (0.5 * (counts * (total / theta)).log() + _HALF_LOG_TWO_PI)
    # A mean beyond the floating-point range counts by its logarithm.
    held = log_mean.clamp(*_range(log_mean.dtype))
    beyond = log_mean - held
    mean = held.exp()
    difference = counts - mean
    log_counts_ratio = _log1p((theta / total) * (difference / mean)) - beyond.clamp(max=0)
    log_total_ratio = _log1p(-difference / total) + beyond.clamp(min=0)
    return -(counts * log_counts_ratio + theta * log_total_ratio) - constants


def _of_zero(log_mean: Tensor, log_theta: Tensor) -> Tensor:
    return -log_theta.exp() * _softplus(log_mean - log_theta)


def _log_prob(counts: Tensor, log_mean: Tensor, log_theta: Tensor) -> Tensor:
    log_theta, zero = bounded(log_theta), counts == 0
    of_positive = _of_positive(torch.where(zero, 1.0, counts), log_mean, log_theta, _everywhere)
    return torch.where(zero, _of_zero(log_mean, log_theta), of_positive)


def _digamma_rise(counts: Tensor, log_theta: Tensor, at: Gather, least: int = 0) -> Tensor:
    """``theta (digamma(x + theta) - digamma(theta))``."""
    theta = log_theta.exp()
    error, theta = at(_digamma_error(theta)), at(theta)
    return theta * (torch.log1p(counts / theta) + error - _digamma_error(counts + theta, least))


def _by_counts(counts: Tensor, log_mean: Tensor, log_theta: Tensor) -> Tensor:
    gamma = torch.digamma(counts + log_theta.exp()) - torch.digamma(counts + 1)
    return gamma + logsigmoid(log_mean - log_theta)


def _derivatives(arguments: Sequence[Tensor], wanted: Sequence[bool]) -> Parts:
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


def _reversed(gradient: Tensor, parts: Parts, arguments: Sequence[Tensor]) -> Parts:
    """The derivatives by the arguments, of those of the result."""
    return tuple(
        None if part is None else (gradient * part).sum_to_size(argument.shape)
        for argument, part in zip(arguments, parts, strict=True)
    )


def _along(tangents: Parts, parts: Parts) -> Tensor:
    """The derivative of the result in a direction."""
    pairs = zip(tangents, parts, strict=True)
    return reduce(torch.add, (a * b for a, b in pairs if a is not None and b is not None))


class _NegativeBinomial(torch.autograd.Function):
    """The log-probability with its closed-form derivative; arguments broadcast and share one dtype."""

    generate_vmap_rule = True

    @staticmethod
    @signed
    def forward(counts: Tensor, log_mean: Tensor, log_theta: Tensor) -> Tensor:
        return _log_prob(counts, log_mean, log_theta)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Parts:
        return _reversed(gradient, _derivatives(ctx.saved_tensors, ctx.needs_input_grad), ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        return _along(tangents, _derivatives(ctx.saved_tensors, [tangent is not None for tangent in tangents]))


def _of_one_dtype(counts: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
    """Converted to the type that they are promoted to; whole numbers follow the parameters."""
    dtype = reduce(torch.promote_types, (item.dtype for item in (*parameters, counts) if item.is_floating_point()))
    # A conversion that changes nothing would still wrap the counts, inside a transform.
    return tuple(item if item.dtype == dtype else item.to(dtype) for item in (counts, *parameters))


def negative_binomial_log_prob(
    counts: Float[Tensor, "*#batch"] | Int[Tensor, "*#batch"],
    log_mean: Float[Tensor, "*#batch"],
    log_inverse_dispersion: Float[Tensor, "*#batch"],
) -> Float[Tensor, "*batch"]:
    """Log-probability (nats) of counts under a negative binomial; the module's description derives the form.

    The arguments broadcast, and what depends on some of them only is computed once: with counts
    ``[cells, genes]`` and inverse dispersions ``[genes]``, a leading particle dimension of the
    mean repeats no gamma function. Derivatives of every order, ``torch.func`` transforms and tensor subclasses
    (``__torch_function__``) work.

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
    return _NegativeBinomial.apply(*_of_one_dtype(*arguments))


def _inflated_derivatives(counts: Tensor, log_prob: Tensor, gate_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives with respect to f and the gate's logits."""
    zero = counts == 0
    by_gate = -torch.sigmoid(gate_logits - log_prob) * torch.sigmoid(-gate_logits) * torch.expm1(log_prob)
    return (
        torch.where(zero, torch.sigmoid(log_prob - gate_logits), 1.0),
        torch.where(zero, by_gate, -torch.sigmoid(gate_logits)),
    )


class _Inflated(torch.autograd.Function):
    """The log-probability from counts, f and the logits of the gate; arguments broadcast and share one dtype."""

    generate_vmap_rule = True

    @staticmethod
    @signed
    def forward(counts: Tensor, log_prob: Tensor, gate_logits: Tensor) -> Tensor:
        positive = log_prob + logsigmoid(-gate_logits)
        return torch.where(counts == 0, torch.logaddexp(logsigmoid(gate_logits), positive), positive)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Parts:
        return _reversed(gradient, (None, *_inflated_derivatives(*ctx.saved_tensors)), ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        return _along(tangents, (None, *_inflated_derivatives(*ctx.saved_tensors)))


def inflated_log_prob(
    counts: Float[Tensor, "*#batch"], log_prob: Float[Tensor, "*#batch"], gate_logits: Float[Tensor, "*#batch"]
) -> Float[Tensor, "*batch"]:
    """Log-probability (nats) of counts with extra zeros, by that without them and the logits of an extra zero."""
    arguments = (counts, log_prob, gate_logits)
    if has_torch_function(arguments):
        return handle_torch_function(inflated_log_prob, arguments, *arguments)
    return _Inflated.apply(counts, log_prob, gate_logits.to(log_prob.dtype))


def _dense_sum(counts: Tensor, log_mean: Tensor, log_theta: Tensor, gate_logits: Tensor | None) -> Tensor:
    log_prob = negative_binomial_log_prob(counts, log_mean, log_theta)
    return (log_prob if gate_logits is None else inflated_log_prob(counts, log_prob, gate_logits)).sum(-1)


def _dense_parts(arguments: Sequence[Tensor], wanted: Sequence[bool]) -> Parts:
    """Derivatives of each gene's term with respect to counts, log mu, log theta and the gate's logits."""
    *of_counts, gate_logits = arguments
    parts = _derivatives(of_counts, wanted)
    if gate_logits is None:
        return *parts, None
    by_log_prob, by_gate = _inflated_derivatives(of_counts[0], _NegativeBinomial.apply(*of_counts), gate_logits)
    return *(None if part is None else part * by_log_prob for part in parts), by_gate


def _least(counts: Tensor) -> int:
    """What counts other than one are not below, whole as they should be."""
    return 2 if counts.numel() and counts.min() >= 2 else 0


class _SparseSum(torch.autograd.Function):
    """The sum over genes, where the non-zero counts are known. Derivatives beyond the first are of the dense form."""

    @staticmethod
    def forward(
        ctx: Any, counts: Tensor, log_mean: Tensor, log_theta: Tensor, gate_logits: Tensor | None, nonzeros: Nonzeros
    ) -> Tensor:
        held = bounded(log_theta)
        theta = held.exp()
        terms = _softplus(log_mean - held).mul_(-theta)
        of_zero = nonzeros.at(terms)
        # As if each were one: log mu - s, where f(0) tells s.
        found = of_zero + torch.addcmul(nonzeros.at(log_mean), of_zero, nonzeros.at(theta.reciprocal()))
        others, least = nonzeros.others, _least(nonzeros.others.values)
        found.index_copy_(-1, others.index, _of_positive(others.values, log_mean, held, others.at, least))
        ctx.nonzeros = nonzeros
        ctx.save_for_backward(counts, log_mean, log_theta, gate_logits, terms)
        ctx.save_for_forward(counts, log_mean, log_theta, gate_logits)
        if gate_logits is not None:
            return nonzeros.put_(torch.logaddexp(gate_logits, terms), found).sub_(_softplus(gate_logits)).sum(-1)
        total = nonzeros.put_(terms, found).sum(-1)
        nonzeros.put_(terms, of_zero)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Parts:
        *arguments, terms = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:4]
        if torch.is_grad_enabled() or wanted[0] or torch._C._functorch.is_legacy_batchedtensor(gradient):
            return *_reversed(gradient.unsqueeze(-1), _dense_parts(arguments, wanted), arguments), None
        _, log_mean, log_theta, gate_logits = arguments
        nonzeros, held = ctx.nonzeros, bounded(log_theta)
        # That of an ELBO is one number for all cells.
        first = gradient.flatten()[0]
        weight = first if (gradient == first).all() else gradient.unsqueeze(-1)
        at_nonzeros, by_gate = nonzeros.at(weight), None
        if gate_logits is not None:
            share = nonzeros.put_(torch.sigmoid_(terms - gate_logits), torch.ones_like(nonzeros.values))
            by_gate = (torch.sigmoid(gate_logits) + share).sub_(1).mul_(-weight).sum_to_size(gate_logits.shape)
            weight = share.mul_(weight)
        by_mean = torch.sigmoid_(log_mean - held)
        raised = nonzeros.values * (1 - nonzeros.at(by_mean)) * at_nonzeros
        nonzeros.add_(by_mean.mul_(-held.exp()).mul_(weight), raised)
        if not wanted[2]:
            return None, by_mean, None, by_gate, None
        others, shape = nonzeros.others, log_theta.shape
        rise = _digamma_rise(others.values, held, others.at, _least(others.values))
        rises = torch.ones_like(raised).index_copy_(-1, others.index, rise.expand(*raised.shape[:-1], -1))
        weighted = (terms * weight).sum_to_size(shape) if weight.dim() else terms.sum_to_size(shape) * weight
        by_theta = weighted - by_mean.sum_to_size(shape) + nonzeros.sum_to_size(rises * at_nonzeros, shape)
        return None, by_mean, by_theta, by_gate, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        parts = _dense_parts(ctx.saved_tensors, [tangent is not None for tangent in tangents[:3]])
        return _along(tangents[:4], parts).sum(-1)


def event_log_prob(
    counts: Float[Tensor, "*#batch genes"] | Int[Tensor, "*#batch genes"],
    log_mean: Float[Tensor, "*#batch genes"],
    log_inverse_dispersion: Float[Tensor, "*#batch #genes"],
    gate_logits: Float[Tensor, "*#batch #genes"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Log-probability (nats) of all genes of a cell: the sum over the last dimension.

    Counts that know their non-zero values (`CountTensor`, as minibatches hold them) take gamma functions at those above
    one alone; in a transform of ``torch.func`` and for what is not of their shape, the dense form is taken.

    Args:
        counts: Counts, non-negative whole numbers; not checked.
        log_mean: Log of the mean (log-counts).
        log_inverse_dispersion: Log of theta.
        gate_logits: Logits of the probability of an extra zero; None for none.

    Returns:
        The log-probabilities, of the broadcast shape without its last dimension.
    """
    arguments = (counts, log_mean, log_inverse_dispersion, gate_logits)
    if has_torch_function(arguments):
        return handle_torch_function(event_log_prob, arguments, *arguments)
    parameters = [item for item in arguments[1:] if item is not None]
    shape = torch.broadcast_shapes(counts.shape, *(item.shape for item in parameters))
    of_same_shape = counts.shape == shape[-2:] and log_mean.shape == shape
    if nonzeros_of(counts) is None or not of_same_shape or torch._C._are_functorch_transforms_active():
        return _dense_sum(*arguments).expand(shape[:-1])
    counts, *parameters = _of_one_dtype(counts, *parameters)
    whole: list[Tensor | None] = [item.contiguous() for item in parameters]
    return _SparseSum.apply(counts, *whole, *[None] * (3 - len(whole)), nonzeros_of(counts))
