"""Holds the parts of a VAE against each other, on the cells that they are to describe."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pyro
import torch
from torch import Tensor

from genailab_pyro.nn import beside
from genailab_pyro.types import Minibatch

if TYPE_CHECKING:
    from genailab_pyro.model.vae import VAE


class CompositionError(ValueError):
    """Parts of a VAE that do not go together, or do not go with the cells; the message names them."""


def check_composition(vae: "VAE", minibatch: Minibatch) -> None:
    """Refuse parts that do not fit together, those among them that would train and mean something else.

    A prior of one latent under an encoder of four is broadcast, and a prior of bits scores any number: neither raises
    an error by itself. The caller's random state is left as it was.

    Args:
        vae: The VAE.
        minibatch: Some cells with counts.

    Raises:
        CompositionError: At the first part that does not fit, with the widths that it was given and those it expects.

    Example:
        >>> import genailab_pyro as glp
        >>> cells = glp.register(glp.data.pbmc68k())
        >>> parts = glp.StandardNormal(3), glp.MLP(4, [8]), glp.NegativeBinomialLikelihood(8, 765)
        >>> check_composition(glp.VAE(*parts, glp.NormalEncoder(765, 4)), cells.take(range(5)))
        Traceback (most recent call last):
            ...
        genailab_pyro.model.composition.CompositionError: expected a prior of 4 latents, as the encoder...
    """
    with torch.random.fork_rng(), torch.no_grad(), pyro.validation_enabled(False):
        _check(vae, minibatch)


def _check(vae: "VAE", minibatch: Minibatch) -> None:
    condition = context = vae.condition(minibatch)
    above: tuple[Tensor, ...] = ()
    genes = 0 if minibatch.counts is None else minibatch.counts.shape[-1]
    seen = f"cells of {genes} genes"
    if vae.upper is not None:
        posterior = _distribution("upper", vae.upper.posterior, minibatch)
        _check_event("upper", posterior, minibatch.size)
        _check_prior("upper", _distribution("upper", vae.upper.prior, condition), posterior)
        above = (posterior.sample().expand(minibatch.size, -1),)
        context = beside(condition, above[0])
        seen += f" beside an upper latent of width {above[0].shape[-1]} (upper_dim)"
    posterior = _distribution("encoder", vae.encoder, minibatch, *above, seen=seen)
    _check_event("encoder", posterior, minibatch.size)
    prior = _distribution("prior", vae.prior, context, seen=f"a condition of width {context.shape[-1]}")
    _check_prior("prior", prior, posterior)
    z = posterior.sample().expand(minibatch.size, -1)
    width = f"{z.shape[-1]} latents beside a condition of width {condition.shape[-1]}"
    features = _asked("decoder", vae.decoder, z, condition, seen=width)
    seen = f"features of width {features.shape[-1]}"
    _check_likelihood(vae, _distribution("likelihood", vae.likelihood, features, minibatch, seen=seen), minibatch)
    for head in vae.heads:
        told: tuple[Any, ...] = (vae.condition, getattr(vae.encoder, "condition", None))
        for encoding in filter(None, told):
            head.check_condition(encoding, minibatch)
        _check_head(head, _distribution("head", head, z, minibatch, *above, seen=f"{z.shape[-1]} latents"), minibatch)


def _named(part: Any) -> str:
    return type(part).__name__


def _asked(role: str, part: Callable[..., Any], *arguments: Any, seen: str = "the cells") -> Any:
    """What a part answers; its own errors about shapes are given its name."""
    try:
        return part(*arguments)
    except RuntimeError as error:
        owner = getattr(part, "__self__", part)
        reason = str(error).split("\n")[0]
        raise CompositionError(
            f"expected the {role} {_named(owner)} to take {seen}, got: {reason}; declare it with these widths"
        ) from error


def _distribution(role: str, part: Callable[..., Any], *arguments: Any, seen: str = "the cells") -> Any:
    """The distribution that a part answers with."""
    found = _asked(role, part, *arguments, seen=seen)
    if not isinstance(found, torch.distributions.Distribution):
        owner, method = getattr(part, "__self__", part), getattr(part, "__name__", "forward")
        raise CompositionError(
            f"expected the {role} {_named(owner)} to return a Pyro distribution, got {_named(found)}; return one from "
            f"{method}()"
        )
    return found


def _support(role: str, distribution: Any) -> Any:
    """The values that a distribution is over."""
    try:
        return distribution.support
    except (NotImplementedError, AttributeError):
        raise CompositionError(
            f"expected the {role} to say which values it is over, got {_named(distribution)} without a support; set "
            "support to one of pyro.distributions.constraints, such as real_vector"
        ) from None


def _spoken(support: Any) -> str:
    """A support as pyro.distributions.constraints spells it, of one element of an event."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return str(support)


def _check_event(role: str, distribution: Any, size: int) -> None:
    batch, event = distribution.batch_shape, distribution.event_shape
    if len(event) == 1 and list(batch) in ([], [1], [size]):
        return
    what = "encoder" if role == "encoder" else "posterior of the upper latent"
    fix = "use OneHotCategorical" if "Categorical" in _named(distribution) else "add .to_event(1)"
    raise CompositionError(
        f"expected the {what} to give one distribution of event shape [latent] per cell, got batch shape "
        f"{list(batch)} and event shape {list(event)} for {size} cells; {fix}"
    )


def _check_likelihood(vae: "VAE", likelihood: Any, minibatch: Minibatch) -> None:
    """Hold a likelihood against what is observed, and against the counts that are drawn from it."""
    name, observed = _named(vae.likelihood), vae.likelihood.observed(minibatch)
    if observed is None:
        return
    if tuple(likelihood.event_shape) != tuple(observed.shape[1:]):
        raise CompositionError(
            f"expected a likelihood over {observed.shape[-1]} genes, as the cells have, got {name} of event shape "
            f"{list(likelihood.event_shape)}; declare it with genes={observed.shape[-1]}, and its distribution with "
            ".to_event(1)"
        )
    support = _support("likelihood", likelihood)
    if not support.check(observed).all():
        raise CompositionError(
            f"expected observed values within the support of the likelihood {name}, {_spoken(support)}, got values "
            f"from {observed.min():g} to {observed.max():g}; override observed() to give the values that it is "
            "over, and set scale to what they are"
        )
    if vae.likelihood.scale == "counts":
        drawn = vae.likelihood.to_counts(likelihood.sample(), minibatch)
        wrong = drawn[(drawn < 0) | (drawn != drawn.round())]
        if len(wrong):
            raise CompositionError(
                f"expected the likelihood {name} to draw counts, got {wrong[0]:g}; a model over other values sets "
                "scale, and overrides observed() and to_counts()"
            )


def _check_head(head: Any, distribution: Any, minibatch: Minibatch) -> None:
    """Hold a head's distribution against what is observed: one that is broadcast counts each cell many times."""
    found, size = head.observed(minibatch), minibatch.size
    if found is None:
        return
    value, known = found
    if known.dtype != torch.bool or tuple(known.shape) != (size,):
        raise CompositionError(
            f"expected the head {_named(head)} to say which of {size} cells are known, booleans of shape [{size}], got "
            f"{known.dtype} of shape {list(known.shape)}; return values, known from observed()"
        )
    batch, event = list(distribution.batch_shape), list(distribution.event_shape)
    if list(value.shape) != [size, *event] or batch not in ([], [1], [size]):
        raise CompositionError(
            f"expected the head {_named(head)} to have one distribution for each of {size} cells, over values of shape "
            f"{list(value.shape)}, got batch shape {batch} and event shape {event}; take a last dimension of one away "
            "by .squeeze(-1)"
        )


def _check_prior(role: str, prior: Any, posterior: Any) -> None:
    """Hold a prior against what the guide draws in its place."""
    where = "prior" if role == "prior" else "prior of the upper latent"
    if prior.event_shape != posterior.event_shape:
        width = " x ".join(map(str, posterior.event_shape)) or "no"
        fix = "declare both with the same number of latents" if len(prior.event_shape) == 1 else "add .to_event(1)"
        raise CompositionError(
            f"expected a {where} of {width} latents, as the encoder has, got one of event shape "
            f"{list(prior.event_shape)}; {fix}"
        )
    mine, drawn = _support(where, prior), _support("encoder", posterior)
    if mine.is_discrete != drawn.is_discrete:
        kinds = ["discrete" if item.is_discrete else "continuous" for item in (mine, drawn)]
        raise CompositionError(
            f"expected a {where} and an encoder over the same kind of latent, got a {kinds[0]} prior and a {kinds[1]} "
            "encoder; such as Bits with a BernoulliEncoder, or StandardNormal with a NormalEncoder"
        )
    if not mine.check(_probes(posterior, drawn)).all():
        raise CompositionError(
            f"expected a {where} over all that the encoder can draw, {_spoken(drawn)}, got one over {_spoken(mine)}; "
            "use an encoder over the same values, such as a LogNormal posterior under a Gamma prior"
        )


def _probes(posterior: Any, support: Any) -> Tensor:
    """Values that a posterior can draw: some draws, and how far they can go where it has no bound."""
    draws = posterior.sample(torch.Size([16]))
    reached = torch.cat([draws, -draws, 100 * draws]).flatten(0, -2)
    return reached[support.check(reached)]
