"""Which costs the score of a site multiplies: those in its plates, or those downstream of it."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from pyro.infer.util import MultiFrameTensor
from pyro.ops.provenance import detach_provenance, get_provenance
from pyro.poutine import Trace
from torch import Tensor

PARTICLES = "num_particles_vectorized"


@dataclass(frozen=True)
class ScoreSite:
    """A site that is differentiated by its score, and the costs that the score multiplies.

    Attributes:
        name: Name of the site.
        cost: Sum of the costs, in nats per element of the plates (the factor of sub-sampling taken out), detached, of
            the batch shape of the site.
        factor: The factor of sub-sampling.
        particle_dim: Dimension of the particles, from the right; None for one particle.
        cell_dim: Dimension of the one plate of data that the site is in, from the right; None for none, or several.
        index: Positions in the data set of the elements of that plate; None where the plate does not say.
        num_cells: Size of the data set that the plate stands for.
        inputs: What a baseline may read: rows of data, one per element of the plate; None for none.
    """

    name: str
    cost: Float[Tensor, "*batch"]
    factor: float
    particle_dim: int | None
    cell_dim: int | None
    index: Int[Tensor, " cells"] | None
    num_cells: int
    inputs: Float[Tensor, "cells columns"] | None

    @classmethod
    def of(
        cls, name: str, site: Any, cost: Any, indices: dict[str, Any], inputs: Float[Tensor, "cells columns"] | None
    ) -> "ScoreSite":
        """Read it off a site of a guide's trace.

        Args:
            name: Name of the site.
            site: The site.
            cost: The costs with the factor of sub-sampling, broadcastable to the batch shape of the site.
            indices: Positions in the data set, by the name of the plate.
            inputs: Rows of data.
        """
        factor = plate_factor(site)
        shape = site["fn"].batch_shape
        cost = torch.as_tensor(detach_provenance(cost)).detach() / factor
        frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
        particles = [frame.dim for frame in frames if frame.name == PARTICLES]
        data = [frame for frame in frames if frame.name != PARTICLES]
        cells = data[0] if len(data) == 1 else None
        return cls(
            name=name,
            cost=cost.expand(shape),
            factor=factor,
            particle_dim=particles[0] if particles else None,
            cell_dim=None if cells is None else cells.dim,
            index=None if cells is None else _positions(indices.get(cells.name), cells.size),
            num_cells=1 if cells is None else int(cells.full_size or cells.size),
            inputs=inputs if cells is not None and inputs is not None and len(inputs) == cells.size else None,
        )

    def per_cell(self, values: Float[Tensor, " cells"]) -> Tensor:
        """Values of the cells, with the dimension of their plate where the costs have it."""
        assert self.cell_dim is not None
        return values.reshape(-1, *[1] * (-self.cell_dim - 1))

    @property
    def cell_means(self) -> Float[Tensor, " cells"]:
        """The cost of each cell, averaged over particles."""
        assert self.cell_dim is not None
        kept = self.cost.dim() + self.cell_dim
        return self.cost.movedim(kept, 0).flatten(1).mean(1) if self.cost.dim() > 1 else self.cost


def _positions(index: Any, size: int) -> Tensor | None:
    if index is None or len(index) != size:
        return None
    return torch.as_tensor(index)


def plate_factor(site: Any) -> float:
    """How many elements of the data set each element of a site's plates stands for."""
    factor = 1.0
    for frame in site["cond_indep_stack"]:
        if frame.full_size is not None and frame.full_size > 0:
            factor *= frame.full_size / frame.size
    return factor


def latent_sites(trace: Trace) -> dict[str, Any]:
    """The sites of a trace that are drawn, in their order."""
    nodes: dict[str, Any] = dict(trace.nodes)
    return {name: site for name, site in nodes.items() if site["type"] == "sample" and not site["is_observed"]}


def observed_sites(trace: Trace) -> dict[str, Any]:
    """The sites of a trace that are observed."""
    nodes: dict[str, Any] = dict(trace.nodes)
    return {name: site for name, site in nodes.items() if site["type"] == "sample" and site["is_observed"]}


def score_sites(guide_trace: Trace) -> dict[str, Any]:
    """The sites of a guide that are differentiated by their score."""
    return {
        name: site
        for name, site in latent_sites(guide_trace).items()
        if torch.is_tensor(site["score_parts"].score_function)
    }


def costs_in_plates(model_trace: Trace, guide_trace: Trace) -> dict[str, Any]:
    """For each site with a score, the sum of all costs, element by element of its plates; with plate factors."""
    terms = MultiFrameTensor()
    for frames, term in _terms(model_trace, guide_trace):
        terms.add((frames, term.detach()))
    return {name: terms.sum_to(site["cond_indep_stack"]) for name, site in score_sites(guide_trace).items()}


def costs_downstream(model_trace: Trace, guide_trace: Trace) -> dict[str, Any]:
    """For each site with a score, the sum of the costs that depend on its value; with plate factors.

    The values of the traces must carry their provenance.
    """
    costs = {name: MultiFrameTensor() for name in score_sites(guide_trace)}
    for frames, term in _terms(model_trace, guide_trace):
        for name in get_provenance(term) & costs.keys():
            costs[name].add((frames, detach_provenance(term).detach()))
    return {name: cost.sum_to(guide_trace.nodes[name]["cond_indep_stack"]) for name, cost in costs.items()}


def _terms(model_trace: Trace, guide_trace: Trace) -> list[tuple[Any, Tensor]]:
    model = {**latent_sites(model_trace), **observed_sites(model_trace)}
    terms = [(site["cond_indep_stack"], site["log_prob"]) for site in model.values()]
    return terms + [(site["cond_indep_stack"], -site["log_prob"]) for site in latent_sites(guide_trace).values()]
