"""What simulated counts were drawn from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import expit, softmax

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
DoseResponse = Callable[[FloatArray], FloatArray]

_BLOCK = 1024
_ATTEMPTS = 1000


@dataclass(frozen=True, eq=False)
class Truth:
    """What simulated counts were drawn from; rows of ``[cells, ...]`` are those of the AnnData.

    Attributes:
        latent: Latent coordinates z, ``[cells, latent_dim]``.
        loadings: Log-proportion per unit of each latent coordinate W, ``[genes, latent_dim]``.
        log_baseline: Log-proportion of each gene at z = 0, up to a constant, ``[genes]``.
        types: Code of each cell's type, ``[cells]``.
        type_latent: Latent position of each type, ``[types, latent_dim]``.
        batches: Code of each cell's batch, ``[cells]``.
        batch_effects: Log factors, ``[batches, genes]``; they sum to zero over the batches.
        perturbations: Code of each cell's perturbation, ``[cells]``; 0 is the control.
        perturbation_effects: Log fold changes at full effect, ``[1 + perturbations, genes]``; row 0 is zero.
        type_responses: Factor on the effect by cell type, ``[1 + perturbations, types]``.
        dose: Dose of each cell, ``[cells]``: 0 in controls, and 1 in all others where no doses are given.
        response: Factor by which a dose scales the effect; None where no doses are given.
        library: Expected total counts before extra zeros, ``[cells]``.
        inverse_dispersion: theta, ``[genes]``.
        gate_logits: Logit of the probability of an extra zero, ``[genes]``; minus infinity: none.
        type_names: The name behind each code of a type.
        batch_names: The name behind each code of a batch.
        perturbation_names: The name behind each code of a perturbation; the first is ``"control"``.
    """

    latent: FloatArray
    loadings: FloatArray
    log_baseline: FloatArray
    types: IntArray
    type_latent: FloatArray
    batches: IntArray
    batch_effects: FloatArray
    perturbations: IntArray
    perturbation_effects: FloatArray
    type_responses: FloatArray
    dose: FloatArray
    response: DoseResponse | None
    library: FloatArray
    inverse_dispersion: FloatArray
    gate_logits: FloatArray
    type_names: tuple[str, ...]
    batch_names: tuple[str, ...]
    perturbation_names: tuple[str, ...]

    @cached_property
    def proportions(self) -> FloatArray:
        """Expected share of each gene rho, ``[cells, genes]``; rows sum to one."""
        return self.proportions_under()

    @property
    def mean(self) -> FloatArray:
        """Mean count before extra zeros mu = library x rho, ``[cells, genes]``."""
        return self.library[:, None] * self.proportions

    @property
    def extra_zeros(self) -> FloatArray:
        """Probability of an extra zero, ``[genes]``."""
        return expit(self.gate_logits)

    def proportions_under(
        self, *, batch: str | None = None, perturbation: str | None = None, dose: float | None = None
    ) -> FloatArray:
        """What rho would be if the same cells had been treated otherwise; what is not named stays as it was.

        Args:
            batch: Name of the batch that all cells are put into.
            perturbation: Name of the perturbation that all cells get, or ``"control"``.
            dose: Dose that all perturbed cells get; needed for a named perturbation where doses are given.

        Returns:
            Proportions, shape ``[cells, genes]``.

        Raises:
            ValueError: If a name is unknown, or a dose is missing or has no meaning.
        """
        batches, perturbations, doses = self.batches, self.perturbations, self.dose
        if batch is not None:
            batches = np.full_like(batches, _code(batch, self.batch_names, "batch"))
        if perturbation is not None:
            code = _code(perturbation, self.perturbation_names, "perturbation")
            perturbations, doses = np.full_like(perturbations, code), np.full_like(doses, float(code > 0))
            if code and self.response is not None and dose is None:
                raise ValueError(f"perturbation {perturbation!r} was given in doses: name one, as in dose=1.0")
        if dose is not None:
            if self.response is None:
                raise ValueError(f"dose={dose} has no meaning: no doses were simulated; leave it out")
            if not 0 <= dose < np.inf:
                raise ValueError(f"dose should be zero or above and finite, but is {dose}")
            doses = np.full_like(doses, dose)
        factor = doses if self.response is None else self.response(doses)
        strength = factor * self.type_responses[perturbations, self.types]
        logits = self.log_baseline + self.latent @ self.loadings.T + self.batch_effects[batches]
        return softmax(logits + strength[:, None] * self.perturbation_effects[perturbations], axis=1)

    def draw(self, rng: np.random.Generator) -> sparse.csr_matrix:
        """Counts of the same cells, drawn once more; a cell without any count is drawn again.

        Args:
            rng: Source of randomness; it is advanced.

        Returns:
            Counts, CSR float32, shape ``[cells, genes]``, with at least one count in each cell.

        Raises:
            ValueError: If a cell stays without counts, since its expected total is too small.
        """
        starts = range(0, len(self.library), _BLOCK)
        blocks = [self._draw_cells(np.arange(i, min(i + _BLOCK, len(self.library))), rng) for i in starts]
        return sparse.csr_matrix(sparse.vstack(blocks, format="csr"))

    def _draw_cells(self, cells: IntArray, rng: np.random.Generator) -> sparse.csr_matrix:
        mean = self.library[cells, None] * self.proportions[cells]
        counts = np.zeros(mean.shape)
        empty = np.arange(len(cells))
        for _ in range(_ATTEMPTS):
            shape = (len(empty), mean.shape[1])
            rate = mean[empty] * rng.gamma(self.inverse_dispersion, size=shape) / self.inverse_dispersion
            counts[empty] = rng.poisson(rate) * (rng.random(shape) >= self.extra_zeros)
            empty = np.flatnonzero(counts.sum(axis=1) == 0)
            if not empty.size:
                return sparse.csr_matrix(counts.astype(np.float32))
        raise ValueError(
            f"{empty.size} cells have no counts after {_ATTEMPTS} draws (lowest expected total without extra "
            f"zeros {mean[empty].sum(axis=1).min():.2g}): raise LibrarySizes(median=...) or "
            "lower CountNoise(gate_logits=...)"
        )


def _code(name: str, known: Sequence[str], what: str) -> int:
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}; simulated were: {', '.join(known)}")
    return list(known).index(name)
