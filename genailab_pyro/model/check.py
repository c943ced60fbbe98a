"""Holds a model against its guide, and names what Pyro passes over in silence."""

import difflib
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from genailab_pyro.types import Minibatch


class PairError(ValueError):
    """A model and a guide that Pyro would run, but that do not mean what they seem to."""


def check_pair(model: Callable, guide: Callable, minibatch: Any, *, num_cells: int | None = None) -> None:
    """Catch the mistakes in a model/guide pair that give no error but a wrong posterior.

    Found are: a latent site that the guide lacks or spells otherwise; a guide site that the model lacks; a network
    that takes part but is not registered by ``pyro.module`` or ``pyro.param``, and so does not train; a plate that is
    not as large as the data set (with a minibatch of a tenth of the cells, a global posterior comes out about three
    times too wide); batch dimensions that no plate declares, where ``to_event`` was forgotten; a site that is scaled
    in the model and not in the guide.

    The caller's random state and Pyro's parameter store are left as they were.

    Args:
        model: The generative program.
        guide: The variational program.
        minibatch: What both are called with: a `Minibatch`, one argument, or a tuple of arguments.
        num_cells: Size of the data set; None reads it from a `Minibatch`, and skips the plate's check without one.

    Raises:
        PairError: If something is found; the message lists all findings, each with its fix.

    Example:
        >>> import pyro.distributions as dist
        >>> model = lambda: pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> guide = lambda: pyro.sample("zz", dist.Normal(0.0, 1.0))
        >>> check_pair(model, guide, ())
        Traceback (most recent call last):
            ...
        genailab_pyro.model.check.PairError: the model and the guide do not fit together:
          - the model's latent site 'z' is not in the guide...
    """
    is_minibatch = isinstance(minibatch, Minibatch)
    if is_minibatch and num_cells is None:
        num_cells = minibatch.num_cells
    args = minibatch if isinstance(minibatch, tuple) and not is_minibatch else (minibatch,)
    with torch.random.fork_rng(), pyro.get_param_store().scope(), pyro.validation_enabled(False):
        guide_trace = _run(guide, args, "guide")
        model_trace = _run(poutine.replay(model, trace=guide_trace), args, "model")
        traces = {"model": model_trace, "guide": guide_trace}
        findings = [
            *_unpaired(model_trace, guide_trace),
            *(finding for who, trace in traces.items() for finding in _shapes(who, trace)),
            *_plates(model_trace, num_cells, minibatch.size if is_minibatch else None),
            *_scales(model_trace, guide_trace),
            *_unregistered(traces),
        ]
    if findings:
        raise PairError("\n  - ".join(["the model and the guide do not fit together:", *dict.fromkeys(findings)]))


def _run(program: Callable, args: tuple, who: str) -> Trace:
    try:
        return poutine.trace(program).get_trace(*args)
    except ValueError as error:
        if "Shape mismatch inside plate" not in str(error):
            raise
        raise PairError(
            f"the {who} has a batch dimension that is not its plate's ({str(error).splitlines()[0]}); declare the "
            "dimensions of one cell as its event: dist.Normal(loc, scale).to_event(1)"
        ) from error


def _sites(trace: Trace, *, observed: bool | None = None) -> dict[str, dict[str, Any]]:
    nodes: dict[str, Any] = dict(trace.nodes)
    return {
        name: site
        for name, site in nodes.items()
        if site["type"] == "sample"
        and not site_is_subsample(site)
        and observed in (None, site["is_observed"])
        and not site["infer"].get("is_auxiliary")
    }


def _unpaired(model_trace: Trace, guide_trace: Trace) -> Iterator[str]:
    model_sites, guide_sites = _sites(model_trace), _sites(guide_trace)
    for name in _sites(model_trace, observed=False):
        enumerated = model_sites[name]["infer"].get("enumerate") == "parallel"
        if name not in guide_sites and not enumerated:
            close = difflib.get_close_matches(name, [site for site in guide_sites if site not in model_sites], n=1)
            hint = f"; did you mean it by {close[0]!r}?" if close else ""
            yield f"the model's latent site {name!r} is not in the guide{hint} (it has {sorted(guide_sites)})"
    for name in guide_sites:
        if name not in model_sites:
            yield (
                f"the guide's site {name!r} is not in the model (it has {sorted(model_sites)}); rename it, or mark it "
                "with infer={'is_auxiliary': True}"
            )
        elif model_sites[name]["is_observed"] and not guide_sites[name]["is_observed"]:
            yield f"the guide draws {name!r}, which the model observes; leave it out of the guide"


def _shapes(who: str, trace: Trace) -> Iterator[str]:
    for name, site in _sites(trace).items():
        dims = {frame.dim: frame.size for frame in site["cond_indep_stack"] if frame.vectorized}
        shape = site["fn"].batch_shape
        stray = [(dim, size) for dim, size in zip(range(-len(shape), 0), shape, strict=True) if size > 1]
        stray = [(dim, size) for dim, size in stray if dim not in dims]
        if stray:
            yield (
                f"the {who}'s site {name!r} has batch shape {tuple(shape)}, of which dimension {stray[0][0]} (size "
                f"{stray[0][1]}) is in no plate; add .to_event({max(len(shape) - len(dims), 1)}), or as many "
                "dimensions as one cell has"
            )


def _plates(model_trace: Trace, num_cells: int | None, num_seen: int | None) -> Iterator[str]:
    """Observed sites that no plate of the data set's size encloses; plates elsewhere are the model's own affair."""
    if num_cells is None:
        return
    for name, site in _sites(model_trace, observed=True).items():
        sizes = {frame.name: frame.full_size or frame.size for frame in site["cond_indep_stack"]}
        unplated = not sizes and num_seen in (None, num_cells)
        if unplated or num_cells in sizes.values():
            continue
        found = ", ".join(f"plate {plate!r} has size {size}" for plate, size in sizes.items()) or "it is in no plate"
        plate = next(iter(sizes), "cells")
        yield (
            f"the model's observed site {name!r} must be in a plate of the data set's {num_cells} cells, but {found}; "
            f"write pyro.plate({plate!r}, size=<cells in the data set>, subsample=<the minibatch's indices>), or the "
            "likelihood counts too little and the posterior of a global latent is too wide"
        )


def _scales(model_trace: Trace, guide_trace: Trace) -> Iterator[str]:
    model_sites = _sites(model_trace, observed=False)
    for name, site in _sites(guide_trace).items():
        if name in model_sites:
            mine, theirs = (torch.as_tensor(scale).float() for scale in (model_sites[name]["scale"], site["scale"]))
            if not torch.allclose(*torch.broadcast_tensors(mine, theirs)):
                yield (
                    f"the site {name!r} is scaled by {mine.mean().item():g} in the model and by "
                    f"{theirs.mean().item():g} in the guide; put the same plates and poutine.scale around both"
                )


def _unregistered(traces: dict[str, Trace]) -> Iterator[str]:
    values: list[Any] = [
        site["value"] for trace in traces.values() for site in trace.nodes.values() if site["type"] == "param"
    ]
    known = {id(value.unconstrained()) for value in values}
    # The guide comes first: its draws carry its parameters into the model's sites, where they are not at fault.
    for who in ("guide", "model"):
        for name, site in _sites(traces[who]).items():
            log_prob = site["fn"].log_prob(site["value"])
            missing = [leaf for leaf in _leaves(log_prob) if id(leaf) not in known]
            known |= {id(leaf) for leaf in missing}
            if missing:
                shapes = ", ".join(str(tuple(leaf.shape)) for leaf in missing[:3])
                yield (
                    f"the {who}'s site {name!r} depends on {len(missing)} tensor(s) (shapes {shapes}) that no "
                    "pyro.module or pyro.param registers, so they will not train; add pyro.module('name', network)"
                )


def _leaves(tensor: Tensor) -> list[Tensor]:
    """The leaves with gradients of a tensor's graph."""
    pending, seen, leaves = [tensor.grad_fn], set(), []
    if tensor.grad_fn is None and tensor.requires_grad:
        return [tensor]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        pending += [parent for parent, _ in node.next_functions]
    return leaves
