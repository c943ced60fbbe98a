"""Importance weights of a guide's draws, cell by cell."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from pyro import plate, poutine
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from genailab_pyro.types import Minibatch


class Particles(NamedTuple):
    """Draws of a guide and how the model scores them, in nats per cell.

    Attributes:
        log_likelihood: log p(x | z), shape ``[particles, cells]``.
        log_ratio: log p(z) - log q(z | x) summed over the latent sites, shape ``[particles, cells]``.
    """

    log_likelihood: Float[Tensor, "particles cells"]
    log_ratio: Float[Tensor, "particles cells"]

    @property
    def log_weights(self) -> Float[Tensor, "particles cells"]:
        """Log p(x, z) - log q(z | x)."""
        return self.log_likelihood + self.log_ratio


def paired_traces(model: Callable, guide: Callable, minibatch: Minibatch, num_particles: int) -> tuple[Trace, Trace]:
    """Traces of the model and of the guide it was replayed against, under a leading plate of particles."""
    with plate("particles", num_particles, dim=-2):
        guide_trace = poutine.trace(guide).get_trace(minibatch)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(minibatch)
    return prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)


def draw_particles(model: Callable, guide: Callable, minibatch: Minibatch, num_particles: int) -> Particles:
    """Draw the latents of each cell from the guide and score them under the model.

    Every latent must be local to its cell. Heads are left out: the likelihood is that of the counts.

    Args:
        model: The generative program.
        guide: The variational program.
        minibatch: The cells.
        num_particles: Number of draws per cell.
    """
    model_trace, guide_trace = paired_traces(model, guide, minibatch, num_particles)
    shape = (num_particles, minibatch.size)
    log_likelihood = log_ratio = torch.zeros(shape, dtype=minibatch.library.dtype, device=minibatch.library.device)
    for name, site in model_trace.nodes.items():
        if site["type"] != "sample" or site["infer"].get("is_head"):
            continue
        prior: Any = site["fn"]
        log_prob = prior.log_prob(site["value"])
        if site["is_observed"]:
            log_likelihood = log_likelihood + log_prob
        else:
            posterior: Any = guide_trace.nodes[name]["fn"]
            log_ratio = log_ratio + log_prob - posterior.log_prob(site["value"])
    return Particles(log_likelihood.expand(shape), log_ratio.expand(shape))
