"""Evidence lower bounds: Pyro's ELBO classes, each with a differentiable loss, a baseline, and open to watchers."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask, sum_rightmost
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.elbo import ELBOModule
from pyro.infer.util import MultiFrameTensor
from pyro.ops.provenance import detach_provenance, get_provenance
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor, nn

from genailab_pyro.estimators.baselines import BASELINES, Baseline
from genailab_pyro.estimators.credit import (
    PARTICLES,
    ScoreSite,
    costs_downstream,
    costs_in_plates,
    latent_sites,
    observed_sites,
    score_sites,
)
from genailab_pyro.estimators.rules import (
    Estimated,
    EstimatorError,
    closed_form_kl,
    innermost,
    is_deterministic,
    is_normal,
    kind,
    unwrapped,
)

Watcher = Callable[[Trace, Trace], None]
Losses = tuple[Any, Any]


def _subtracted(baseline: Baseline, site: ScoreSite) -> Tensor:
    """What a baseline says of a site, in nats, broadcastable to its costs; one of a user may say anything.

    Raises:
        EstimatorError: If it is no number, and no tensor of such a shape.
    """
    said, shape = baseline(site), list(site.cost.shape)
    try:
        value = torch.as_tensor(said).detach()
        fits = list(torch.broadcast_shapes(value.shape, site.cost.shape)) == shape
    except (TypeError, ValueError, RuntimeError):
        fits = False
    if not fits:
        got = f"the shape {list(said.shape)}" if isinstance(said, Tensor) else repr(said)
        raise EstimatorError(
            f"expected forward of the baseline {type(baseline).__name__} to give a number or a tensor that "
            f"broadcasts to the costs of {site.name!r}, of shape {shape}, got {got}"
        )
    return value


class BoundModule(ELBOModule):
    """A bound of a pair of programs as a torch module, with their parameters and the baseline's; its call is a loss.

    Args:
        model: The generative program.
        guide: The variational program.
        elbo: The bound.
    """

    def __init__(self, model: nn.Module, guide: nn.Module, elbo: "WatchedELBO") -> None:
        super().__init__(model, guide, elbo)
        self.baseline = elbo.baseline


class PlateIndices(Messenger):
    """Notes which elements of the data set each plate holds.

    Args:
        given: What plates that would draw their own elements are given, by name.
    """

    def __init__(self, given: Mapping[str, Any] = MappingProxyType({})) -> None:
        super().__init__()
        self.found: dict[str, Any] = {}
        self.given = given

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if site_is_subsample(msg) and msg["value"] is None:
            msg["value"] = self.given.get(msg["name"])

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if site_is_subsample(msg) and msg["name"] != PARTICLES:
            self.found[msg["name"]] = msg["value"]


class WatchedELBO(ELBO):
    """An ELBO that hands each pair of traces, with their log-probabilities, to its watchers.

    What is reported beside the loss, and the penalties that are added to it, read these traces: nothing is run or
    scored twice. Its loss is always differentiable, and takes a step also where no parameter is in Pyro's store.

    Args:
        baseline: What is subtracted from the costs of a score; None for nothing.
        options: Those of ``pyro.infer.ELBO``.
    """

    def __init__(self, *, baseline: Baseline | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.watchers: list[Watcher] = []
        self.baseline = baseline
        self.indices: dict[str, Any] = {}
        self.inputs: Tensor | None = None

    def __call__(self, model: nn.Module, guide: nn.Module) -> BoundModule:
        """The bound of a pair as a torch module."""
        return BoundModule(model, guide, self)

    def _guess_max_plate_nesting(self, *args: Any) -> None:
        # Pyro runs the pair once more, which must not shift the random numbers.
        with torch.random.fork_rng():
            super()._guess_max_plate_nesting(*args)

    def _get_traces(self, model: Callable, guide: Callable, args: Any, kwargs: Any) -> Iterator[tuple[Trace, Trace]]:
        if self.baseline is not None:
            self.inputs = _rows(args)
            if next(self.baseline.parameters(), None) is not None:
                pyro.module(self.baseline.name, self.baseline)
        yield from super()._get_traces(model, guide, args, kwargs)

    def _get_trace(self, model: Callable, guide: Callable, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        with contextlib.ExitStack() as stack:
            if self.baseline is not None:
                self.indices = stack.enter_context(PlateIndices()).found
            try:
                model_trace, guide_trace = super()._get_trace(model, guide, args, kwargs)
            except ValueError as error:
                if isinstance(error.__cause__, EstimatorError):  # Pyro puts the shapes of all sites around it
                    raise error.__cause__ from None
                raise
        for watcher in self.watchers:
            watcher(model_trace, guide_trace)
        return model_trace, guide_trace

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """The loss in nats; its gradient is left in the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item()

    def score_surrogate(self, guide_trace: Trace, costs: dict[str, Any]) -> Tensor | float:
        """What the scores add to the surrogate of the bound, and what the baseline minimises.

        Args:
            guide_trace: Trace of the guide, with score parts.
            costs: For each site with a score, its costs with plate factors.

        Returns:
            A scalar; its derivative is minus that of a loss.

        Raises:
            EstimatorError: If there is a baseline and no site with a score.
        """
        check_guide(guide_trace)
        sites = score_sites(guide_trace)
        if self.baseline is not None and not sites:
            kinds = {made: repr(name) for name, made in BASELINES.items()}
            raise EstimatorError(
                "expected a latent site with a score for the baseline "
                f"{kinds.get(type(self.baseline), type(self.baseline).__name__)}, got a guide whose sites are "
                "differentiated without one; leave the baseline out, or use the estimator 'score-loo'"
            )
        surrogate: Tensor | float = 0.0
        for name, site in sites.items():
            known = ScoreSite.of(name, site, costs[name], self.indices, self.inputs)
            signal = known.cost
            if self.baseline is not None:
                signal = signal - _subtracted(self.baseline, known)
                if self.baseline.training and torch.is_grad_enabled():
                    with torch.no_grad():
                        self.baseline.update(known)
                    surrogate = surrogate - self.num_particles * self.baseline.loss(known)
            surrogate = surrogate + (site["score_parts"].score_function * signal).sum() * known.factor
        return surrogate


def check_guide(guide_trace: Trace) -> None:
    """Refuse a guide with terms of its own in the bound, which are not looked for here.

    Raises:
        EstimatorError: If it has a factor or an observed site.
    """
    factors = [*observed_sites(guide_trace)]
    if factors:
        raise EstimatorError(
            f"expected a guide without factors and observed sites, got {', '.join(map(repr, factors))}; use the "
            "estimator 'pathwise' or 'score'"
        )


def _rows(args: Any) -> Tensor | None:
    """The rows of data in the arguments of a pair: the counts of a minibatch, or the first matrix."""
    first = getattr(args[0], "counts", args[0]) if args else None
    return first if isinstance(first, Tensor) and first.dim() == 2 and first.is_floating_point() else None


def _surrogate(model_trace: Trace, guide_trace: Trace) -> Tensor:
    """The bound as far as it is differentiated along paths: all costs, and the entropy terms of the rules."""
    total = sum(site["log_prob_sum"] for site in (*latent_sites(model_trace).values(), *_observed(model_trace)))
    for site in latent_sites(guide_trace).values():
        entropy_term = site["score_parts"].entropy_term
        if torch.is_tensor(entropy_term):
            total = total - entropy_term.sum()
    return torch.as_tensor(total)


def _observed(trace: Trace) -> Any:
    return observed_sites(trace).values()


def _value(model_trace: Trace, guide_trace: Trace) -> Any:
    return (model_trace.log_prob_sum() - guide_trace.log_prob_sum()).detach()


class TraceELBO(WatchedELBO, Trace_ELBO):
    """Pyro's ``Trace_ELBO``: a site's score multiplies the costs that share its plates, less a baseline."""

    def _differentiable_loss_particle(self, model_trace: Trace, guide_trace: Trace) -> Losses:
        # Pyro leaves what the model does not have out of the costs, such as the draws behind an automatic guide.
        if self.baseline is None and latent_sites(guide_trace).keys() <= model_trace.nodes.keys():
            return super()._differentiable_loss_particle(model_trace, guide_trace)
        scores = self.score_surrogate(guide_trace, costs_in_plates(model_trace, guide_trace))
        return -_value(model_trace, guide_trace), -(_surrogate(model_trace, guide_trace) + scores)


class TraceGraphELBO(WatchedELBO, TraceGraph_ELBO):
    """Pyro's ``TraceGraph_ELBO``: a site's score multiplies the costs downstream of it, less a baseline."""

    def _loss_and_surrogate_loss_particle(self, model_trace: Trace, guide_trace: Trace) -> Losses:
        _check_provenance(model_trace, guide_trace)
        if self.baseline is None:
            return super()._loss_and_surrogate_loss_particle(model_trace, guide_trace)
        scores = self.score_surrogate(guide_trace, costs_downstream(model_trace, guide_trace))
        surrogate = detach_provenance(_surrogate(model_trace, guide_trace))
        return detach_provenance(_value(model_trace, guide_trace)), -(surrogate + detach_provenance(scores))

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """The negative ELBO, whose derivative is that of the surrogate; a scalar, in nats."""
        elbo, surrogate = self._loss_and_surrogate_loss(model, guide, args, kwargs)
        return -torch.as_tensor(elbo).detach() + (surrogate - surrogate.detach())


def _check_provenance(model_trace: Trace, guide_trace: Trace) -> None:
    """Warn where Pyro has lost track of what depends on a draw, as it does where a tensor is written in place."""
    seen = [get_provenance(site["log_prob_sum"]) for site in observed_sites(model_trace).values()]
    for name in score_sites(guide_trace):
        if seen and not any(name in provenance for provenance in seen):
            warnings.warn(
                f"no observation depends on {name!r} as far as Pyro can track it, and none is credited to its score; "
                "if the model writes into a tensor in place (x[:, 0] = z), build it by torch.stack or torch.cat, or "
                "use the estimator 'score'",
                stacklevel=2,
            )


class _Unverified(TraceMeanField_ELBO):
    """Pyro's ``TraceMeanField_ELBO`` without its warning of an order of sites that is refused here."""

    def _get_trace(self, model: Callable, guide: Callable, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        return super(TraceMeanField_ELBO, self)._get_trace(model, guide, args, kwargs)


class TraceMeanFieldELBO(WatchedELBO, _Unverified):
    """Pyro's ``TraceMeanField_ELBO``: the KL of each latent site in closed form.

    A site that is differentiated by its score has its score multiplied by the likelihood and by minus the KL of the
    sites that are drawn after it. What has no closed form, and a guide that does not draw the sites in the order of the
    model, are refused.
    """

    def _differentiable_loss_particle(self, model_trace: Trace, guide_trace: Trace) -> Losses:
        check_guide(guide_trace)
        drawn = [*latent_sites(model_trace)]
        auxiliary = {name: site for name, site in latent_sites(guide_trace).items() if name not in drawn}
        order = [name for name in latent_sites(guide_trace) if name not in auxiliary]
        if order != drawn:
            raise EstimatorError(
                f"expected a guide that draws the sites in the model's order {drawn} for a KL in closed form, got "
                f"{order}: a site must not depend, in the model, on one that the guide draws after it; draw them in "
                "that order, or use the estimator 'pathwise' (or 'score')"
            )
        terms = {name: -_kl(name, guide_trace.nodes[name], model_trace.nodes[name]) for name in order}
        likelihood = observed_sites(model_trace).values()
        paths = sum(term.sum() for term in terms.values()) + sum(site["log_prob_sum"] for site in likelihood)
        paths = paths - sum(torch.as_tensor(site["score_parts"].entropy_term).sum() for site in auxiliary.values())
        # What only the guide has is drawn: its entropy is a cost of its own score, too.
        terms |= {name: -site["log_prob"] for name, site in auxiliary.items()}
        elbo = sum(term.sum() for term in terms.values()) + sum(site["log_prob_sum"] for site in likelihood)
        everything, costs = [*latent_sites(guide_trace)], {}
        for name, site in score_sites(guide_trace).items():
            downstream = MultiFrameTensor(
                *((seen["cond_indep_stack"], seen["log_prob"].detach()) for seen in likelihood)
            )
            for later in everything[everything.index(name) + (name not in auxiliary) :]:
                downstream.add((guide_trace.nodes[later]["cond_indep_stack"], terms[later].detach()))
            costs[name] = downstream.sum_to(site["cond_indep_stack"])
        scores = self.score_surrogate(guide_trace, costs)
        return -torch.as_tensor(elbo).detach(), -torch.as_tensor(paths + scores)

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """The negative ELBO, in nats."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()


def _kl(name: str, guide_site: Any, model_site: Any) -> Tensor:
    try:
        kl = closed_form_kl(guide_site["fn"], model_site["fn"])
    except NotImplementedError:
        pair = f"{kind(guide_site['fn'])} and {kind(model_site['fn'])}"
        raise EstimatorError(
            f"expected a guide and a prior of {name!r} whose KL has a closed form, got {pair}; use the estimator "
            "'pathwise' (or 'score'), which draws it"
        ) from None
    return scale_and_mask(kl.expand(guide_site["fn"].batch_shape), guide_site["scale"], guide_site["mask"])


class TraceEnumELBO(WatchedELBO, TraceEnum_ELBO):
    """Pyro's ``TraceEnum_ELBO``: discrete sites of the guide are summed over."""


class DeltaELBO(TraceELBO):
    """An ELBO by the score of one normal site, less a first-order expansion of its costs around the guide's location.

    The expansion has a known mean, whose gradient is added: it needs a second run of the model, and its derivative.

    References:
        Paisley, Blei, Jordan (2012). Variational Bayesian inference with stochastic search.
        doi:10.48550/arXiv.1206.6430
    """

    def _get_trace(self, model: Callable, guide: Callable, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        with PlateIndices() as plates:
            model_trace, guide_trace = super()._get_trace(model, guide, args, kwargs)
        latents = latent_sites(guide_trace)
        if len(latents) != 1 or not all(is_normal(site["fn"]) for site in latents.values()):
            found = ", ".join(f"{name!r} ({kind(site['fn'])})" for name, site in latents.items())
            raise EstimatorError(
                f"expected one normal latent site for the baseline 'delta', got {found}; use the estimator 'score-loo'"
            )
        ((name, site),) = latents.items()
        with torch.enable_grad(), PlateIndices(plates.found):
            centre = innermost(site["fn"]).mean.expand(site["value"].shape).detach().requires_grad_()
            expanded = guide_trace.copy()
            expanded.nodes[name] = {**site, "value": centre}
            at_centre = poutine.trace(poutine.replay(model, trace=expanded)).get_trace(*args, **kwargs)
            at_centre = prune_subsample_sites(at_centre)
            at_centre.compute_log_prob()
            (slope,) = torch.autograd.grad(at_centre.log_prob_sum(), centre)
        self.expansion = [(at_centre, centre.detach(), slope)]
        return model_trace, guide_trace

    def _differentiable_loss_particle(self, model_trace: Trace, guide_trace: Trace) -> Losses:
        at_centre, centre, slope = self.expansion.pop()
        ((name, site),) = latent_sites(guide_trace).items()
        linear = sum_rightmost(slope * (site["value"] - centre), site["fn"].event_dim)
        centred = guide_trace.copy()
        log_q = unwrapped(site["fn"]).log_prob(centre).detach()
        centred.nodes[name] = {**site, "log_prob": scale_and_mask(log_q, site["scale"], site["mask"])}
        expected = costs_in_plates(at_centre, centred)[name] + linear
        costs = {name: costs_in_plates(model_trace, guide_trace)[name] - expected}
        known_mean = (slope * innermost(site["fn"]).mean.expand(centre.shape)).sum()
        surrogate = _surrogate(model_trace, guide_trace) + self.score_surrogate(guide_trace, costs) + known_mean
        return -_value(model_trace, guide_trace), -surrogate


class AntitheticELBO(TraceELBO):
    """An ELBO of antithetic pairs of particles, for one layer of bits.

    For logits ``a`` and a pair ``b, b'``, whose costs are ``f, f'``, the gradient in each logit is
    ``(f - f') / 2 * (-1)^b' * [b != b'] * sigmoid(|a|)``.

    References:
        Dong, Mnih, Tucker (2020). DisARM: an antithetic gradient estimator for binary latent variables.
        doi:10.48550/arXiv.2006.10680
    """

    def _differentiable_loss_particle(self, model_trace: Trace, guide_trace: Trace) -> Losses:
        costs = costs_in_plates(model_trace, guide_trace)
        half = self.num_particles // 2
        surrogate = _surrogate(model_trace, guide_trace)
        for name, site in latent_sites(guide_trace).items():
            if is_deterministic(site["fn"]):
                continue
            _check_pairs(name, site["fn"])
            value = site["value"]
            logits = innermost(site["fn"]).logits.expand(value.shape)
            _check_one_layer(name, logits, half)
            cost = torch.as_tensor(costs[name]).expand(site["fn"].batch_shape)
            difference = (cost[:half] - cost[half:]).reshape(half, *cost.shape[1:], *[1] * (value.dim() - cost.dim()))
            first, second = value[:half], value[half:]
            sign = (1 - 2 * second) * (first != second)
            weight = difference / 2 * sign * logits[:half].detach().abs().sigmoid()
            # The mean is over pairs, where the loss divides by particles.
            surrogate = surrogate + 2 * (weight.detach() * logits[:half]).sum()
        return -_value(model_trace, guide_trace), -surrogate


def _check_pairs(name: str, site: Any) -> None:
    if not isinstance(site, Estimated) or site.rule.whole != "disarm":
        rule = site.rule.name if isinstance(site, Estimated) else None
        raise EstimatorError(
            f"expected no rule of its own for a site beside antithetic pairs, got {rule!r} at {name!r}; use the "
            "estimator 'score-loo', whose sites may have different ones"
        )


def _check_one_layer(name: str, logits: Tensor, half: int) -> None:
    if not torch.equal(logits[:half], logits[half:]):
        raise EstimatorError(
            f"expected one layer of bits, whose logits are the same in each pair of particles; those of {name!r} "
            "depend on another latent; use the estimator 'score-loo'"
        )
