"""What training returns: a fitted model that answers the probabilistic questions about cells."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import torch
from anndata import AnnData
from jaxtyping import Float
from matplotlib.figure import Figure
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from scipy import sparse
from torch import Tensor

from genailab_pyro import plots
from genailab_pyro.data.cells import Cells
from genailab_pyro.data.new_cells import NewCells
from genailab_pyro.data.registration import Registration
from genailab_pyro.estimators import Estimator
from genailab_pyro.memory import memory_kept
from genailab_pyro.model.encoders import mean_of
from genailab_pyro.model.particles import draw_particles, paired_traces
from genailab_pyro.model.vae import VAE
from genailab_pyro.train.checkpoint import write_parts
from genailab_pyro.train.diagnosis import Diagnosis, LatentUse
from genailab_pyro.train.objective import Terms
from genailab_pyro.train.settings import Training
from genailab_pyro.train.storage import write_json, write_tensors
from genailab_pyro.types import Minibatch

WEIGHTS = "weights.safetensors"
BASELINE = "baseline.safetensors"
DECLARATION = "fit.json"
PACKAGES = ("genailab-pyro", "pyro-ppl", "torch", "anndata", "numpy", "scanpy", "arviz")
# Counts times draws that are scored at a time: 16 MB in single precision, and a few times that in intermediates.
CHUNK = 4_000_000


def installed() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    return {name: version(name) for name in PACKAGES}


@dataclass(frozen=True, eq=False)
class Fit:
    """A trained VAE with the schema of its data, its history and its settings.

    Every question about cells takes an AnnData (checked against the registration), `Cells`, or nothing for the cells
    that it was trained on, which are not saved with it.

    Attributes:
        vae: The trained VAE, in evaluation mode.
        registration: The schema of the data.
        history: One row per epoch: train and validation ELBO, reconstruction and KL (nats per cell), beta, learning
            rate, gradient norm (nats per cell), seconds since the beginning.
        estimator: How the gradient was estimated.
        training: The settings.
        seed: The seed of the run.
        cells: The cells that it was trained on, validation cells included; None after `load`.
        interrupted: Whether the run was stopped before its end.
        versions: Versions of the packages that it was trained with.
        baseline: What the estimator's baseline has learned, by name; None without one.
    """

    vae: VAE
    registration: Registration = field(repr=False)
    history: pd.DataFrame = field(repr=False)
    estimator: Estimator
    training: Training
    seed: int
    cells: Cells | None = field(default=None, repr=False)
    interrupted: bool = False
    versions: Mapping[str, str] = field(default_factory=installed)
    baseline: Mapping[str, Tensor] | None = field(default=None, repr=False)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.vae.parameters()).device

    def bind(self, adata: AnnData | Cells | None = None) -> Cells:
        """The cells that a question is about.

        Raises:
            TypeError: If something other than an AnnData, `Cells` or None is given.
            ValueError: If there are no training cells, or the data do not fit the registration.
        """
        if adata is None:
            if self.cells is None:
                raise ValueError("expected cells, a loaded Fit holds none; pass an AnnData: fit.latent(adata)")
            return self.cells
        if isinstance(adata, Cells):
            if not _same_schema(self.registration, adata.registration):
                raise ValueError(
                    "expected cells registered with the genes and conditions of this fit, got others; pass the "
                    "AnnData, or bind it by fit.registration.bind(adata)"
                )
            return adata
        return self.registration.bind(adata)

    def latent(self, adata: AnnData | Cells | None = None) -> Float[np.ndarray, "cells latent"]:
        """Posterior mean of the latent of each cell, shape ``[cells, latent]``."""
        return self._gathered(adata, self.vae.posterior_mean)

    def posterior_samples(
        self, adata: AnnData | Cells | None = None, *, num_samples: int = 100, site: str = "z", seed: int = 0
    ) -> Float[np.ndarray, "samples cells *event"]:
        """Draws from the approximate posterior of a latent site.

        Args:
            adata: The cells; None for those it was trained on, validation cells included.
            num_samples: Number of draws per cell.
            site: ``"z"``, or ``"library"`` where it is latent.
            seed: Seed of the draws.

        Returns:
            Shape ``[samples, cells, latent]``, or ``[samples, cells]`` for the library.

        Raises:
            ValueError: If the guide has no such site, or the number of draws is below one.
        """
        _check_number("num_samples", num_samples)

        def draws(minibatch: Minibatch) -> Tensor:
            with pyro.plate("particles", num_samples, dim=-2):
                trace = prune_subsample_sites(poutine.trace(self.vae.guide).get_trace(minibatch))
            latents = [name for name, node in trace.nodes.items() if node["type"] == "sample"]
            if site not in latents:
                raise ValueError(f"expected a latent site of the guide among {latents}, got {site!r}")
            return trace.nodes[site]["value"].transpose(0, 1)

        with _seeded(seed):
            return self._gathered(adata, draws).swapaxes(0, 1)

    def expression(
        self,
        adata: AnnData | Cells | None = None,
        *,
        conditions: Mapping[str, str] | None = None,
        continuous: Mapping[str, float] | None = None,
        num_samples: int = 25,
        seed: int = 0,
    ) -> Float[np.ndarray, "cells genes"]:
        """Library-normalised mean expression of each cell, averaged over its posterior.

        With conditions, the cell is encoded as it was observed and decoded under the conditions named.

        Args:
            adata: The cells; None for those it was trained on, validation cells included.
            conditions: Levels to decode under, such as ``{"batch": "b1"}``; conditions not named stay.
            continuous: Values of continuous covariates to decode under.
            num_samples: Number of posterior draws that are averaged.
            seed: Seed of the draws.

        Returns:
            Proportions of the cell's counts where the library is a total, shape ``[cells, genes]``.

        Raises:
            ValueError: If a condition or level is not known, or the number of draws is below one.
        """
        return self._expression(adata, conditions, continuous, num_samples, seed, lambda draws: draws.mean(0))

    def expression_quantiles(
        self,
        adata: AnnData | Cells | None = None,
        *,
        quantiles: Sequence[float] = (0.05, 0.95),
        conditions: Mapping[str, str] | None = None,
        continuous: Mapping[str, float] | None = None,
        num_samples: int = 100,
        seed: int = 0,
    ) -> Float[np.ndarray, "quantiles cells genes"]:
        """Quantiles of the mean expression of each cell over its posterior: how far the latent leaves it open.

        The parameters of the model are taken as known, so that intervals are too narrow where there are few cells to
        learn them from.

        Args:
            adata: The cells; None for those it was trained on, validation cells included.
            quantiles: Between 0 and 1; an interval of 90 % unless given.
            conditions: Levels to decode under; conditions not named stay.
            continuous: Values of continuous covariates to decode under.
            num_samples: Number of posterior draws.
            seed: Seed of the draws.

        Returns:
            Proportions of the cell's counts where the library is a total, shape ``[quantiles, cells, genes]``.

        Raises:
            ValueError: If a quantile is out of range, a condition or level is not known, or the number of draws is
                below one.
        """
        asked = np.asarray(quantiles, dtype=float)
        if asked.ndim != 1 or not len(asked) or not ((asked >= 0) & (asked <= 1)).all():
            raise ValueError(f"expected quantiles from 0 to 1, such as [0.05, 0.95], got {quantiles!r}")

        def at(draws: Tensor) -> Tensor:
            return draws.quantile(torch.as_tensor(asked, device=draws.device, dtype=draws.dtype), dim=0).transpose(0, 1)

        return self._expression(adata, conditions, continuous, num_samples, seed, at).swapaxes(0, 1)

    def _expression(
        self,
        adata: AnnData | Cells | None,
        conditions: Mapping[str, str] | None,
        continuous: Mapping[str, float] | None,
        num_samples: int,
        seed: int,
        summary: Callable[[Float[Tensor, "draws cells genes"]], Tensor],
    ) -> np.ndarray:
        """A summary of draws of the mean expression, with the cells in front."""
        _check_number("num_samples", num_samples)
        observed = self.bind(adata)
        decoded = observed
        if conditions or continuous:
            decoded = observed.with_conditions(conditions or {}, continuous)

        def summed_up(minibatch: Minibatch) -> Tensor:
            other = decoded.take(minibatch.index.cpu(), device=self.device, dtype=minibatch.library.dtype)
            z = self.vae.posterior_draws(minibatch, num_samples)
            return summary(self.vae.likelihood.expression(self.vae.decode(z, other), other))

        with _seeded(seed):
            return self._gathered(observed, summed_up, per_cell=num_samples * len(self.registration.genes))

    def generate(
        self,
        num_cells: int,
        *,
        conditions: Mapping[str, str | Sequence[str]] | None = None,
        continuous: Mapping[str, float | Sequence[float]] | None = None,
        seed: int = 0,
    ) -> AnnData:
        """Draw new cells from the model: conditions, library, latent, counts.

        Args:
            num_cells: How many.
            conditions: A level for all cells, or one per cell; a condition not named is drawn by its frequencies.
            continuous: A value for all cells, or one per cell; a covariate not named is at its mean.
            seed: Seed of the draws.

        Returns:
            Counts in ``.X`` (CSR), conditions, covariates and the library drawn in ``.obs``.

        Raises:
            ValueError: If a condition, level or number is not known.
        """
        cells = NewCells.draw(self.registration, num_cells, conditions=conditions, continuous=continuous, seed=seed)
        blocks, libraries = [], []
        with _seeded(seed), torch.no_grad():
            for minibatch in cells.minibatches(self._rows(len(self.registration.genes))):
                placed = minibatch.to(self.device, self._dtype)
                trace = poutine.trace(self.vae.model).get_trace(placed)
                if self.vae.library is not None:
                    placed = placed._replace(library=trace.nodes["library"]["value"])
                counts = self.vae.likelihood.to_counts(trace.nodes["x"]["value"], placed)
                blocks.append(sparse.csr_matrix(counts.float().cpu().numpy()))
                libraries.append(placed.library.float().cpu().numpy())
        obs = cells.obs().assign(library=np.concatenate(libraries))
        return AnnData(sparse.vstack(blocks, format="csr"), obs=obs, var=pd.DataFrame(index=[*self.registration.genes]))

    def elbo(
        self, adata: AnnData | Cells | None = None, *, num_particles: int = 10, seed: int = 0
    ) -> Float[np.ndarray, " cells"]:
        """Evidence lower bound of each cell at beta = 1, in nats, a mean over draws.

        Args:
            adata: The cells; None for those it was trained on, validation cells included.
            num_particles: Number of draws per cell.
            seed: Seed of the draws.
        """
        return self._log_weights(adata, num_particles, seed).mean(0).numpy()

    def log_likelihood(
        self, adata: AnnData | Cells | None = None, *, num_particles: int = 100, seed: int = 0
    ) -> Float[np.ndarray, " cells"]:
        """Importance-weighted lower bound of log p(x) of each cell, in nats.

        It is above the ELBO of the same draws and rises with their number towards log p(x). Models over counts and
        models over log-normalised values have densities of different things, which do not compare.

        Args:
            adata: The cells; None for those it was trained on, validation cells included.
            num_particles: Number of draws per cell.
            seed: Seed of the draws.

        References:
            Burda, Grosse, Salakhutdinov (2016). Importance weighted autoencoders. doi:10.48550/arXiv.1509.00519
        """
        log_weights = self._log_weights(adata, num_particles, seed)
        return (log_weights.logsumexp(0) - np.log(num_particles)).numpy()

    def terms(self, adata: AnnData | Cells | None = None, *, num_particles: int = 10, seed: int = 0) -> Terms:
        """Reconstruction and KL, whose sum is the negative ELBO, as means over cells in nats.

        Args:
            adata: The cells; None for those it was trained on, validation cells included.
            num_particles: Number of draws per cell.
            seed: Seed of the draws.
        """
        _check_number("num_particles", num_particles)
        cells = self.bind(adata)
        parts = []
        with _seeded(seed), torch.no_grad():
            for minibatch in self._minibatches(cells, num_particles * len(self.registration.genes)):
                traces = paired_traces(self.vae.model, self.vae.guide, minibatch, num_particles)
                for trace in traces:
                    trace.compute_log_prob()
                terms = Terms.of(*traces, minibatch.num_cells, num_particles)
                parts.append([minibatch.size * terms.reconstruction, minibatch.size * terms.kl])
        reconstruction, kl = np.sum(parts, axis=0) / len(cells)
        return Terms(float(reconstruction), float(kl))

    def diagnose(self, adata: AnnData | Cells | None = None, *, num_particles: int = 100, seed: int = 0) -> Diagnosis:
        """Look for posterior collapse, unused latents and untrustworthy importance weights.

        Args:
            adata: The cells, None for those it was trained on; at most 2,000 of them are looked at.
            num_particles: Number of draws per cell, at least 25.
            seed: Seed of the draws.

        Raises:
            ValueError: If there are too few draws to judge the importance weights by.
        """
        cells = self.bind(adata)
        if len(cells) > 2000:
            cells = cells.subset(np.sort(np.random.default_rng(seed).choice(len(cells), 2000, replace=False)))
        return Diagnosis.of(
            **self._latent_use(cells, seed),
            log_weights=self._log_weights(cells, num_particles, seed).numpy(),
            history=self.history,
        )

    def _latent_use(self, cells: Cells, seed: int) -> dict[str, LatentUse]:
        sites = {"latents": "z"}
        kls, locs = defaultdict(list), defaultdict(list)
        with _seeded(seed), torch.no_grad():
            for minibatch in self._minibatches(cells, len(self.registration.genes)):
                model_trace, guide_trace = paired_traces(self.vae.model, self.vae.guide, minibatch, 1)
                upper = self.vae.upper
                if upper is not None and not guide_trace.nodes[upper.site]["fn"].support.is_discrete:
                    sites["upper"] = upper.site
                    locs["upper"].append(mean_of(upper.posterior(minibatch)).cpu().numpy())
                locs["latents"].append(self.vae.posterior_deviation(minibatch).cpu().numpy())
                for which, site in sites.items():
                    kls[which].append(Diagnosis.kl_of(guide_trace, model_trace, site))
        return {which: LatentUse.of(np.concatenate(kls[which]), np.concatenate(locs[which])) for which in sites}

    def plot(self) -> Figure:
        """Training curves: ELBO, reconstruction and KL over epochs."""
        return plots.training_curves(self.history)

    def save(self, folder: str | Path) -> Path:
        """Write the fit to a folder: weights as safetensors, the rest as JSON. The data are not written.

        Raises:
            FileExistsError: If the folder holds another fit.
            TypeError: If a part of the model cannot be declared by an import path and plain arguments.
        """
        folder = Path(folder)
        content = {
            **write_parts(self.vae, self.registration, self.estimator, self.training, self.seed),
            "interrupted": self.interrupted,
            "versions": dict(self.versions),
            "history": {
                name: [None if np.isnan(value) else value for value in column.tolist()]
                for name, column in self.history.items()
            },
        }
        if (folder / DECLARATION).exists():
            raise FileExistsError(f"expected a folder without a fit, {folder} holds one; name another folder")
        write_tensors(folder / WEIGHTS, self.vae.state_dict())
        if self.baseline is not None:
            write_tensors(folder / BASELINE, self.baseline)
        write_json(folder / DECLARATION, content)
        return folder

    def _log_weights(self, adata: AnnData | Cells | None, num_particles: int, seed: int) -> Float[Tensor, "k cells"]:
        _check_number("num_particles", num_particles)
        cells = self.bind(adata)
        genes = len(self.registration.genes)
        at_once = min(num_particles, max(CHUNK // genes, 1))
        blocks = [at_once] * (num_particles // at_once) + [num_particles % at_once] * (num_particles % at_once > 0)
        columns = []
        with _seeded(seed), torch.no_grad():
            for minibatch in self._minibatches(cells, at_once * genes):
                draws = [draw_particles(self.vae.model, self.vae.guide, minibatch, block) for block in blocks]
                columns.append(torch.cat([draw.log_weights for draw in draws]).double().cpu())
        return torch.cat(columns, dim=1)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.vae.parameters()).dtype

    def _rows(self, per_cell: int) -> int:
        return min(max(CHUNK // per_cell, 1), 512)

    def _minibatches(self, cells: Cells, per_cell: int) -> Iterator[Minibatch]:
        return cells.minibatches(self._rows(per_cell), device=self.device, dtype=self._dtype)

    def _gathered(self, adata: AnnData | Cells | None, answer: Any, *, per_cell: int = 1) -> np.ndarray:
        cells = self.bind(adata)
        per_cell = max(per_cell, len(self.registration.genes))
        with torch.no_grad(), memory_kept():
            return np.concatenate([answer(minibatch).cpu().numpy() for minibatch in self._minibatches(cells, per_cell)])


def _check_number(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"expected {name} to be a whole number of at least one, got {value!r}")


def _same_schema(mine: Registration, other: Registration) -> bool:
    def schema(registration: Registration) -> tuple:
        levels = tuple((condition.name, condition.levels) for condition in registration.conditions)
        return registration.genes, levels, registration.continuous, registration.size_factor is None

    return schema(mine) == schema(other)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(), pyro.get_param_store().scope(), pyro.validation_enabled(False), memory_kept():
        torch.manual_seed(seed)
        yield
