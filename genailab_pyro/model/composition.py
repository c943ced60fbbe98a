"""Holds the parts of a VAE against each other, on the cells that they are to describe."""

from typing import TYPE_CHECKING, Any

import pyro
import torch
from torch import Tensor

from genailab_pyro.model.answers import (
    CompositionError,
    asked,
    check_support,
    distribution_of,
    kind_of,
    spoken,
    support_of,
)
from genailab_pyro.nn import beside
from genailab_pyro.types import Minibatch

if TYPE_CHECKING:
    from genailab_pyro.model.vae import VAE


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
        genailab_pyro.model.answers.CompositionError: expected a prior of 4 latents, as the encoder...
    """
    alone = _first(minibatch)
    modes = [(part, part.training) for part in vae.modules()]
    with torch.random.fork_rng(), torch.no_grad(), pyro.validation_enabled(False):
        vae.eval()
        try:
            for cells in (minibatch, alone):  # what squeezes dimensions away shows with a single cell
                _check(vae, cells)
        finally:
            for part, training in modes:
                part.training = training


def _first(minibatch: Minibatch) -> Minibatch:
    """The first of some cells."""
    first: dict[str, Any] = {name: item[:1] for name, item in minibatch._asdict().items() if isinstance(item, Tensor)}
    return minibatch._replace(**first)


def _check(vae: "VAE", minibatch: Minibatch) -> None:
    condition = context = vae.condition(minibatch)
    above: tuple[Tensor, ...] = ()
    genes = 0 if minibatch.counts is None else minibatch.counts.shape[-1]
    seen = f"cells of {genes} genes"
    if vae.upper is not None:
        above = (_check_upper(vae.upper, condition, minibatch),)
        context = beside(condition, above[0])
        seen += f" beside an upper latent of width {above[0].shape[-1]} (upper_dim)"
    posterior = distribution_of("encoder", vae.encoder, minibatch, *above, seen=seen)
    _check_event("encoder", posterior, minibatch.size)
    prior = distribution_of("prior", vae.prior, context, seen=f"a condition of width {context.shape[-1]}")
    _check_prior("prior", prior, posterior)
    if vae.upper is not None and not vae.heads:
        _check_dependence(vae, condition, above[0])
    # Two draws of each cell: parts see any number of them in front.
    z = posterior.expand((minibatch.size,)).sample(torch.Size([2]))
    width = f"{z.shape[-1]} latents beside a condition of width {condition.shape[-1]}"
    features = asked("decoder", vae.decoder, z, condition, seen=width)
    seen = f"features of width {features.shape[-1]}"
    likelihood = distribution_of("likelihood", vae.likelihood, features[0], minibatch, seen=seen)
    _check_likelihood(vae, likelihood, minibatch)
    observed = vae.likelihood.observed(minibatch)
    if observed is not None:
        _check_draws("decoder", vae.decoder, features, [vae.decoder(draw, condition) for draw in z])
        both = distribution_of("likelihood", vae.likelihood, features, minibatch, seen=f"two draws of {seen}")
        each = [vae.likelihood(draw, minibatch).log_prob(observed) for draw in features]
        _check_draws("likelihood", vae.likelihood, both.log_prob(observed), each)
        _check_cells("decoder", vae.decoder, features, vae.decoder(z[:, :1], condition[:1]))
        alone = vae.likelihood(features[:, :1], _first(minibatch)).log_prob(observed[:1])
        _check_cells("likelihood", vae.likelihood, both.log_prob(observed), alone)
    heads: Any = vae.heads
    for head in heads:
        told: tuple[Any, ...] = (vae.condition, getattr(vae.encoder, "condition", None))
        for encoding in filter(None, told):
            head.check_condition(encoding, minibatch)
        _check_head(head, z, minibatch, above)


def _check_upper(upper: Any, condition: Tensor, minibatch: Minibatch) -> Tensor:
    """Hold an upper latent against itself; returns a draw for each cell."""
    posterior = distribution_of("posterior of the upper latent", upper.posterior, minibatch)
    _check_event("upper", posterior, minibatch.size)
    _check_prior("upper", distribution_of("prior of the upper latent", upper.prior, condition), posterior)
    width = posterior.event_shape[0]
    if getattr(upper, "output_dim", None) != width:
        raise CompositionError(
            f"expected {kind_of(upper)} to say how wide its value is, got output_dim="
            f"{getattr(upper, 'output_dim', None)} and a posterior of width {width}; set output_dim = {width}"
        )
    return posterior.expand((minibatch.size,)).sample()


def _check_dependence(vae: "VAE", condition: Tensor, upper: Tensor) -> None:
    """Refuse an upper latent that nothing depends on."""
    with torch.enable_grad():
        value = upper.detach().clone().requires_grad_()
        prior = vae.prior(beside(condition, value))
        log_prob = prior.log_prob(prior.sample()).sum()
        if not log_prob.requires_grad or torch.autograd.grad(log_prob, value, allow_unused=True)[0] is None:
            raise CompositionError(
                f"expected a prior that depends on the upper latent, got {kind_of(vae.prior)}, which passes it over: "
                f"counts would know nothing of it; use DependentNormal({upper.shape[-1] + condition.shape[-1]}, ...)"
            )


def _check_draws(role: str, part: Any, both: Tensor, each: list[Tensor]) -> None:
    """Refuse a part whose answer to a draw depends on the other draws."""
    alone = torch.stack(each)
    broadcast = torch.broadcast_shapes(both.shape, alone.shape)
    if broadcast != alone.shape or not torch.allclose(both, alone, rtol=1e-3, atol=1e-3, equal_nan=True):
        raise CompositionError(
            f"expected the {role} {kind_of(part)} to answer each draw by itself, got other values for two draws at a "
            "time; count dimensions from the end (softmax(-1), .unsqueeze(-1)): draws come in front of the cells"
        )


def _check_cells(role: str, part: Any, together: Tensor, alone: Tensor) -> None:
    """Refuse a part whose answer to a cell depends on the other cells of its minibatch."""
    if not torch.allclose(together[:, :1], alone, rtol=1e-3, atol=1e-3, equal_nan=True):
        raise CompositionError(
            f"expected the {role} {kind_of(part)} to answer each cell by itself, got other values for a cell alone and "
            "among others; keep what is taken over the cells of a minibatch, such as a mean or a maximum, out of the "
            "model: the ELBO of a cell must not depend on which cells are beside it"
        )


def _check_event(role: str, distribution: Any, size: int) -> None:
    batch, event = distribution.batch_shape, distribution.event_shape
    if len(event) == 1 and list(batch) in ([], [1], [size]):
        return
    what = "encoder" if role == "encoder" else "posterior of the upper latent"
    fix = "use OneHotCategorical" if "Categorical" in kind_of(distribution) else "add .to_event(1)"
    raise CompositionError(
        f"expected the {what} to give one distribution of event shape [latent] per cell, got batch shape "
        f"{list(batch)} and event shape {list(event)} for {size} cells; {fix}"
    )


def _check_likelihood(vae: "VAE", likelihood: Any, minibatch: Minibatch) -> None:
    """Hold a likelihood against what is observed, and against the counts that are drawn from it."""
    name, observed = kind_of(vae.likelihood), vae.likelihood.observed(minibatch)
    if observed is None:
        return
    if len(likelihood.event_shape) != 1:
        raise CompositionError(
            f"expected the likelihood {name} to have one distribution over all genes of a cell, got batch shape "
            f"{list(likelihood.batch_shape)} and event shape {list(likelihood.event_shape)}; use .to_event(1)"
        )
    if tuple(likelihood.event_shape) != tuple(observed.shape[1:]):
        raise CompositionError(
            f"expected a likelihood over {observed.shape[-1]} genes, as the cells have, got {name} of event shape "
            f"{list(likelihood.event_shape)}; declare it with genes={observed.shape[-1]}"
        )
    check_support("likelihood", name, likelihood, observed)
    if vae.likelihood.scale == "counts":
        drawn = vae.likelihood.to_counts(likelihood.sample(), minibatch)
        wrong = drawn[(drawn < 0) | (drawn != drawn.round())]
        if len(wrong):
            raise CompositionError(
                f"expected the likelihood {name} to draw counts, got {wrong[0]:g}; a model over other values sets "
                "scale, and overrides observed() and to_counts()"
            )


def _check_head(head: Any, z: Tensor, minibatch: Minibatch, above: tuple[Tensor, ...]) -> None:
    """Hold a head's distribution against what is observed: one that is broadcast counts each cell many times."""
    name, size = kind_of(head), minibatch.size
    value, known = _observed(head, minibatch)
    if known.dtype != torch.bool or tuple(known.shape) != (size,):
        raise CompositionError(
            f"expected the head {name} to say which of {size} cells are known, booleans of shape [{size}], got "
            f"{known.dtype} of shape {list(known.shape)}; return values, known from observed()"
        )
    seen = f"{z.shape[-1]} latents"
    distribution = distribution_of("head", head, z[0], minibatch, *above, seen=seen)
    batch, event = list(distribution.batch_shape), list(distribution.event_shape)
    if list(value.shape) != [size, *event] or batch not in ([], [1], [size]):
        raise CompositionError(
            f"expected the head {name} to have one distribution for each of {size} cells, over values of shape "
            f"{list(value.shape)}, got batch shape {batch} and event shape {event}; take a last dimension of one away "
            "by .squeeze(-1)"
        )
    if known.any():
        check_support("head", name, distribution, value[known])
        value = torch.where(known.reshape(-1, *[1] * len(event)), value, value[known][0])
        both = distribution_of("head", head, z, minibatch, *above, seen=f"two draws of {seen}").log_prob(value)
        each = [head(draw, minibatch, *above).log_prob(value) for draw in z]
        _check_draws("head", head, both, [item.expand(size) for item in each])


def _observed(head: Any, minibatch: Minibatch) -> tuple[Tensor, Tensor]:
    """What a head observes of some cells, which must be something; where there are no counts it may be nothing."""
    name = kind_of(head)
    if minibatch.counts is not None:
        try:
            head.observed(minibatch._replace(counts=None))
        except (TypeError, AttributeError) as error:
            raise CompositionError(
                f"expected the head {name} to observe nothing where cells have no counts, as when they are drawn, got: "
                f"{error}; begin observed() with: if minibatch.counts is None: return None"
            ) from error
    found = head.observed(minibatch)
    if found is None:
        raise CompositionError(
            f"expected cells with observations for the head {name} ({head.site!r}), got none; register them, such as "
            "labels by register(adata, labels=...), or leave the head out"
        )
    if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(item, Tensor) for item in found)):
        raise CompositionError(
            f"expected the head {name} to return two tensors from observed(), values and which of them are known, got "
            f"{type(found).__name__}; return values, known"
        )
    return found


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
    mine, drawn = support_of(where, prior), support_of("encoder", posterior)
    if mine.is_discrete != drawn.is_discrete:
        kinds = ["discrete" if item.is_discrete else "continuous" for item in (mine, drawn)]
        raise CompositionError(
            f"expected a {where} and an encoder over the same kind of latent, got a {kinds[0]} prior and a {kinds[1]} "
            "encoder; such as Bits with a BernoulliEncoder, or StandardNormal with a NormalEncoder"
        )
    if not mine.check(_probes(posterior, drawn)).all():
        raise CompositionError(
            f"expected a {where} over all that the encoder can draw, {spoken(drawn)}, got one over {spoken(mine)}; "
            "use an encoder over the same values, such as a LogNormal posterior under a Gamma prior"
        )


def _probes(posterior: Any, support: Any) -> Tensor:
    """Values that a posterior can draw: some draws, and how far they can go where it has no bound."""
    draws = posterior.sample(torch.Size([16]))
    reached = torch.cat([draws, -draws, 100 * draws]).flatten(0, -2)
    return reached[support.check(reached)]
