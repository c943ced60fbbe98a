"""Importance-weighted bounds: of the likelihood (IWAE), and of Renyi's divergence, for every element of a plate.

For K draws of a cell with weights ``log w_k = log p(x | z_k) + beta (log p(z_k) - log q(z_k))`` they are

    L = log 1/K sum_k w_k,        L_alpha = 1 / (1 - alpha) log 1/K sum_k w_k^(1 - alpha),

and the factor of sub-sampling multiplies them after the logarithm.

References:
    Burda, Grosse, Salakhutdinov (2016). Importance weighted autoencoders. doi:10.48550/arXiv.1509.00519
    Li, Turner (2016). Renyi divergence variational inference. doi:10.48550/arXiv.1602.02311
    Mnih, Rezende (2016). Variational inference for Monte Carlo objectives. doi:10.48550/arXiv.1602.06725
    Tucker, Lawson, Gu, Maddison (2019). Doubly reparameterized gradient estimators for Monte Carlo objectives.
    doi:10.48550/arXiv.1810.04152
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pyro import poutine
from pyro.distributions.util import sum_rightmost
from pyro.infer import Trace_ELBO
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from genailab_pyro.estimators.bounds import WatchedELBO, check_guide
from genailab_pyro.estimators.credit import PARTICLES, latent_sites, observed_sites, plate_factor, score_sites
from genailab_pyro.estimators.rules import RULES, Estimated, EstimatorError, is_deterministic, unwrapped

LogWeights = Float[Tensor, "particles *plates"]


class WeightedELBO(WatchedELBO, Trace_ELBO):
    """Base of the bounds of K importance weights per element of the plates that hold the latents.

    Every latent must be in the same plates, inside which the observed sites are, and have the rule of the bound.

    Attributes:
        rule: Name of the rule of the latents.

    Args:
        alpha: Order of Renyi's divergence, not one; zero for the importance-weighted bound of the likelihood.
        options: Those of `WatchedELBO`.
    """

    rule: ClassVar[str] = "pathwise"

    def __init__(self, *, alpha: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.alpha = alpha

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """The negative bound, whose derivative is that of the surrogate; a scalar, in nats."""
        ((model_trace, guide_trace),) = self._get_traces(model, guide, args, kwargs)
        factor = _check_places(model_trace, guide_trace)
        _check_rules(latent_sites(guide_trace), self.rule)
        log_weights = self.log_weights(model_trace, guide_trace)
        value, surrogate = self.bound(log_weights), self.surrogate(log_weights, guide_trace)
        return factor * (-value.sum().detach() - (surrogate.sum() - surrogate.sum().detach()))

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """The negative bound, in nats."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def bound(self, log_weights: LogWeights) -> Float[Tensor, "*plates"]:
        """The bound of each element of the plates."""
        power = 1 - self.alpha
        return ((power * log_weights).logsumexp(0) - math.log(len(log_weights))) / power

    def surrogate(self, log_weights: LogWeights, guide_trace: Trace) -> Float[Tensor, "*plates"]:
        """What has the derivative of the bound in expectation: along paths, the bound itself."""
        return self.bound(log_weights)

    def log_weights(self, model_trace: Trace, guide_trace: Trace) -> LogWeights:
        """Log weights of the particles, without the factor of sub-sampling."""
        frames = _data_frames(next(iter(latent_sites(guide_trace).values())))
        total: Any = 0.0
        for site in (*latent_sites(model_trace).values(), *observed_sites(model_trace).values()):
            total = total + self.reduced(site, site["log_prob"] / plate_factor(site), frames)
        for site in latent_sites(guide_trace).values():
            total = total - self.reduced(site, site["log_prob"] / plate_factor(site), frames)
        return total

    def reduced(self, site: Any, terms: Tensor, frames: frozenset) -> LogWeights:
        """Terms of a site, summed to the particles and the plates of the latents."""
        terms = terms.expand(site["fn"].batch_shape)
        inner = [frame.dim for frame in site["cond_indep_stack"] if _is_data(frame) and frame not in frames]
        terms = terms.sum(inner, keepdim=True) if inner else terms
        return terms if self.num_particles > 1 else terms.unsqueeze(0)


class VimcoELBO(WeightedELBO):
    """The importance-weighted bound by the scores of its draws.

    The score of a draw multiplies the bound; with the baseline, less what the bound would be if the draw's log weight
    were the mean of the others'.
    """

    rule = "score"

    def surrogate(self, log_weights: LogWeights, guide_trace: Trace) -> Float[Tensor, "*plates"]:
        """The bound, whose derivative is that of the weights, and the scores."""
        value = self.bound(log_weights)
        signal = value.detach().expand_as(log_weights)
        if self.baseline is not None:
            signal = signal - _without_each(log_weights.detach())
        frames = _data_frames(next(iter(latent_sites(guide_trace).values())))
        scores: Any = 0.0
        for site in score_sites(guide_trace).values():
            scores = scores + self.reduced(site, site["score_parts"].score_function, frames)
        return value + (signal * scores).sum(0)


def _without_each(log_weights: LogWeights) -> LogWeights:
    """The bound with each log weight replaced by the mean of the others'."""
    number = len(log_weights)
    means = (log_weights.sum(0) - log_weights) / (number - 1)
    weights = log_weights.expand(number, *log_weights.shape).clone()
    weights[range(number), range(number)] = means
    return weights.logsumexp(1) - math.log(number)


class DoublyReparameterisedELBO(WeightedELBO):
    """The importance-weighted bound along paths, without the score of the weights.

    With normalised weights ``v_k`` the derivative in the guide is
    ``sum_k ((1 - beta) v_k + beta v_k^2) d log w_k / dz_k dz_k``, the parameters of log q held fixed; that in the model
    is the usual one.
    """

    rule = "dreg"

    def _get_trace(self, model: Callable, guide: Callable, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        whole = poutine.trace(guide).get_trace(*args, **kwargs)
        # A point has no density whose score could be left out: its derivative is weighed like that of a parameter.
        latents = latent_sites(prune_subsample_sites(whole))
        self.drawn = {name: site["value"] for name, site in latents.items() if not is_deterministic(site["fn"])}
        _check_points({name: site["value"] for name, site in latents.items() if name not in self.drawn}, self.drawn)
        # Each trace has factors of its own: the gradients of several losses may be taken later, together.
        self.factors: dict[str, Tensor] = {}
        for name, value in self.drawn.items():
            whole.nodes[name]["value"] = _weighed(value, self.factors, name)
        # The model sees the sub-sample of the guide, too, where a plate has drawn its own.
        replayed = poutine.trace(poutine.replay(model, trace=whole)).get_trace(*args, **kwargs)
        model_trace, guide_trace = prune_subsample_sites(replayed), prune_subsample_sites(whole)
        model_trace.compute_log_prob()
        guide_trace.compute_score_parts()
        for watcher in self.watchers:
            watcher(model_trace, guide_trace)
        return model_trace, guide_trace

    def surrogate(self, log_weights: LogWeights, guide_trace: Trace) -> Float[Tensor, "*plates"]:
        """The weighted log weights, in which log q depends on its draw alone."""
        weights = log_weights.detach().softmax(0)
        frames = _data_frames(next(iter(latent_sites(guide_trace).values())))
        # log q, less what its parameters contribute to its derivative.
        fixed: Any = 0.0
        for name in self.drawn:
            site = guide_trace.nodes[name]
            beta = _beta(site)
            factor = (1 - beta) + beta * weights
            self.factors[name] = factor if self.num_particles > 1 else factor.squeeze(0)
            by_parameters = unwrapped(site["fn"]).log_prob(site["value"].detach())
            by_parameters = by_parameters - self._upstream(name, by_parameters, guide_trace)
            fixed = fixed + self.reduced(site, by_parameters * beta, frames)
        return (weights * (log_weights + fixed)).sum(0)

    def _upstream(self, name: str, log_q: Tensor, guide_trace: Trace) -> Tensor:
        """What log q contributes through the latents that its parameters depend on, linear in these."""
        names = [*self.drawn]
        earlier = [other for other in names[: names.index(name)] if self.drawn[other].requires_grad]
        if not earlier or not torch.is_grad_enabled() or not log_q.requires_grad:
            return torch.zeros_like(log_q)
        slopes = _partial([self.drawn[other] for other in earlier], log_q.sum())
        linear = torch.zeros_like(log_q)
        for other, slope in zip(earlier, slopes, strict=True):
            if slope is not None:
                _check_betas(guide_trace.nodes[name], guide_trace.nodes[other])
                value = guide_trace.nodes[other]["value"]
                term = slope.detach() * (value - value.detach())
                linear = linear + sum_rightmost(term, guide_trace.nodes[other]["fn"].event_dim)
        return linear


def _weighed(value: Tensor, factors: dict[str, Tensor], name: str) -> Tensor:
    """The same value, of which the derivative is multiplied by a factor that is known only later."""

    def weigh(slope: Tensor) -> Tensor:
        factor = factors[name]
        return slope * factor.reshape(factor.shape + (1,) * (slope.dim() - factor.dim()))

    seen = value.view_as(value)
    if seen.requires_grad:
        seen.register_hook(weigh)
    return seen


def _partial(values: list[Tensor], output: Tensor) -> list[Tensor | None]:
    """Derivatives of an output in values of which each may depend on those before it, the others held fixed."""
    slopes = _slopes(output, values)
    for position in reversed(range(len(values))):
        later = [other for other in range(position + 1, len(values)) if slopes[other] is not None]
        if slopes[position] is None or not later:
            continue
        # A total derivative holds what goes through the later values; their own are partial already.
        (through,) = torch.autograd.grad(
            [values[other] for other in later],
            values[position],
            [slopes[other] for other in later],
            retain_graph=True,
            allow_unused=True,
        )
        slopes[position] = slopes[position] if through is None else slopes[position] - through
    return slopes


def _check_points(points: dict[str, Tensor], drawn: dict[str, Tensor]) -> None:
    draws = [value for value in drawn.values() if value.requires_grad]
    for name, value in points.items():
        if not (draws and value.requires_grad):
            continue
        if any(slope is not None for slope in _slopes(value.sum(), draws)):
            raise EstimatorError(
                f"expected the point {name!r} not to depend on a draw of the guide beside the rule 'dreg'; use the "
                "estimator 'iwae'"
            )


def _slopes(output: Tensor, values: list[Tensor]) -> list[Any]:
    return [*torch.autograd.grad(output, values, retain_graph=True, allow_unused=True)]


def _beta(site: Any) -> float:
    """The weight of a site's KL."""
    scale = torch.as_tensor(site["scale"])
    if scale.numel() > 1:
        raise EstimatorError(
            f"expected one weight of the KL of {site['name']!r} beside the rule 'dreg', got one for each element; use "
            "the estimator 'iwae'"
        )
    return scale.item() / plate_factor(site)


def _check_betas(site: Any, above: Any) -> None:
    if not math.isclose(_beta(site), _beta(above), rel_tol=1e-6, abs_tol=1e-9):
        raise EstimatorError(
            f"expected one weight of the KL for latents that depend on each other beside the rule 'dreg', got "
            f"{_beta(site):g} for {site['name']!r} and {_beta(above):g} for {above['name']!r}; use the estimator 'iwae'"
        )


def _is_data(frame: Any) -> bool:
    return frame.vectorized and frame.name != PARTICLES


def _data_frames(site: Any) -> frozenset:
    return frozenset(frame for frame in site["cond_indep_stack"] if _is_data(frame))


def _check_places(model_trace: Trace, guide_trace: Trace) -> float:
    """The factor of sub-sampling of the latents, which must be the same, and hold all that is observed."""
    check_guide(guide_trace)
    latents, observed = latent_sites(guide_trace), observed_sites(model_trace)
    path = all(unwrapped(site["fn"]).has_rsample for site in latents.values())
    instead = f"use the estimator {'pathwise' if path else 'score-loo'!r}"
    for name, site in {**latents, **observed}.items():
        if any(not frame.vectorized for frame in site["cond_indep_stack"]):
            raise EstimatorError(
                f"expected vectorised plates (with pyro.plate(...):) in a bound of importance weights, {name!r} is in "
                f"a loop over one, where the weights of its elements would be multiplied; {instead}"
            )
    for name, site in observed.items():
        if not torch.allclose(torch.as_tensor(site["scale"], dtype=torch.float64), _one(plate_factor(site))):
            raise EstimatorError(
                f"expected the observations {name!r} of a bound of importance weights to have no scale, which "
                "would change the bound inside its logarithm; take it away (weight=1 of a head, or poutine.scale), or "
                f"{instead}"
            )
    places = {name: _data_frames(site) for name, site in latents.items()}
    first, frames = next(iter(places.items()))
    strays = [name for name, place in places.items() if place != frames]
    strays += [first for site in observed.values() if not frames and _data_frames(site)][:1]
    outside = [name for name, site in observed.items() if not frames <= _data_frames(site)]
    if strays or outside:
        raise EstimatorError(
            f"expected every latent in the plate of the data, and every observation inside it, for a bound of "
            f"importance weights; {', '.join(map(repr, strays + outside))} is not; {instead}, whose costs are sums"
        )
    for name, site in observed.items():
        thinned = [frame.name for frame in _data_frames(site) - frames if frame.full_size not in (None, frame.size)]
        if thinned:
            raise EstimatorError(
                f"expected all of the plate {thinned[0]!r} inside a bound of importance weights, {name!r} has a "
                f"sub-sample of it, whose factor would stand inside the logarithm; {instead}"
            )
    return plate_factor(latents[first])


def _one(factor: float) -> Tensor:
    return torch.tensor(factor, dtype=torch.float64)


def _check_rules(latents: dict[str, Any], rule: str) -> None:
    found = {name: site["fn"].rule.name for name, site in latents.items() if isinstance(site["fn"], Estimated)}
    if set(found.values()) - {rule}:
        raise EstimatorError(
            f"expected the rule {rule!r} for all latents in this bound of importance weights, got {found}; use the "
            "estimator 'pathwise' or 'score', whose sites may have rules of their own, or 'iwae', 'dreg' or 'vimco' "
            "without any"
        )
    pathless = [name for name, site in latents.items() if not site["fn"].has_rsample]
    if pathless and RULES[rule].reparameterised:
        raise EstimatorError(
            f"expected reparameterised draws for this bound of importance weights, {', '.join(map(repr, pathless))} "
            "has none; use the estimator 'vimco'"
        )
