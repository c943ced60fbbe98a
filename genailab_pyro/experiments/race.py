"""Training runs of several estimators side by side, scored by one held-out bound."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from genailab_pyro import plots
from genailab_pyro.data.cells import Cells
from genailab_pyro.estimators import Estimator
from genailab_pyro.experiments.compare import named_estimators
from genailab_pyro.experiments.comparison import read_dataset, write_dataset
from genailab_pyro.experiments.ledger import Ledger
from genailab_pyro.experiments.trajectory import Snapshot, check_usable, load, sample, trajectory
from genailab_pyro.model.vae import VAE
from genailab_pyro.train.checkpoint import declared_model, fingerprint
from genailab_pyro.train.fit import check_arguments
from genailab_pyro.train.fitted import Fit
from genailab_pyro.train.settings import Training

RUNS = "runs.json"


@dataclass(frozen=True, eq=False)
class Race:
    """Held-out bounds of training runs, by estimator, seed and time.

    Attributes:
        dataset: Over the dimensions ``estimator``, ``seed`` and ``share`` (of the epochs): ``bound``, the
            importance-weighted bound of the held-out cells (nats per cell), at ``step`` and ``seconds`` of training;
            ``learning_rate``, the one chosen for each estimator by the ``tuning`` over ``candidate`` rates.
    """

    dataset: xr.Dataset

    def to_dataframe(self) -> pd.DataFrame:
        """One row per estimator, best first: the final bound (mean and standard error over seeds), and what it took.

        ``difference`` is that from the best, paired by seeds, with its standard error.
        """
        final = self.dataset.isel(share=-1)
        bounds = final["bound"]
        differences = bounds - bounds.isel(estimator=int(bounds.mean("seed").fillna(-np.inf).argmax("estimator")))
        finished = bounds.count("seed")
        number = np.sqrt(finished)
        table = xr.Dataset(
            {
                "bound": bounds.mean("seed"),
                "bound_standard_error": bounds.std("seed", ddof=1) / number,
                "difference": differences.mean("seed"),
                "difference_standard_error": differences.std("seed", ddof=1) / number,
                "learning_rate": final["learning_rate"],
                "diverged": bounds.sizes["seed"] - finished,
                "steps": final["step"].mean("seed"),
                "seconds": final["seconds"].mean("seed"),
            }
        )
        frame = table.drop_vars("share").to_dataframe()
        return frame.sort_values(["diverged", "bound"], ascending=[True, False])

    def plot(self) -> Figure:
        """The bound against steps and against seconds: mean and range over seeds."""
        curves: dict[str, Mapping[str, np.ndarray]] = {}
        for name in self.dataset["estimator"].values:
            run = self.dataset.sel(estimator=name).dropna("seed")
            if not run.sizes["seed"]:
                continue  # all its runs diverged
            run = run.isel(share=np.diff(run["step"].mean("seed"), prepend=-1) > 0)  # points may share an epoch
            curves[str(name)] = {
                "steps": run["step"].mean("seed").values,
                "seconds": run["seconds"].mean("seed").values,
                "mean": run["bound"].mean("seed").values,
                "low": run["bound"].min("seed").values,
                "high": run["bound"].max("seed").values,
            }
        number = self.dataset.attrs["num_particles"]
        return plots.race_curves(
            curves,
            ylabel=f"Held-out bound, {number} draws (nats per cell)",
            title=f"Training by each estimator: mean and range of {self.dataset.sizes['seed']} seeds",
        )

    def save(self, path: str | Path) -> Path:
        """Write the dataset as netCDF, such as ``"race.nc"``; a file that is there is replaced."""
        return write_dataset(self.dataset, path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
        """
        return cls(read_dataset(path))


def race(  # noqa: PLR0913
    vae: VAE,
    cells: Cells,
    estimators: Sequence[str | Estimator],
    *,
    held_out: Cells | float = 0.1,
    num_seeds: int = 5,
    learning_rates: Sequence[float] = (1e-3, 4e-3, 1e-2),
    num_particles: int = 100,
    num_points: int = 8,
    seed: int = 0,
    run_folder: str | Path | None = None,
    callback: Callable[[str], None] | None = None,
    **settings: Any,
) -> Race:
    """Train a VAE by each estimator over several seeds, and score all by one bound on cells that no run sees.

    For each estimator the learning rate is chosen first, by a run of a seed of its own for each candidate and the
    bound of validation cells. All runs of a seed see the cells in the same order. Scored are the weights as they are
    at that step, not those of the best epoch.

    Args:
        vae: The VAE; it stays as it is, and all runs begin with its weights.
        cells: Registered cells.
        estimators: Names in ``glp.estimators.table()``, or `Estimator` objects.
        held_out: Cells that none of the runs sees, or the share of ``cells`` to set aside.
        num_seeds: Runs of each estimator.
        learning_rates: Candidates for the highest learning rate; a single one is taken as it is.
        num_particles: Draws per cell of the importance-weighted bound.
        num_points: Points of the curves, the untrained weights beside them.
        seed: Seed of the first run; the others have those after it.
        run_folder: Where each run leaves its bounds; a race that was interrupted, or is to have more seeds or
            estimators, does not repeat the runs that are there.
        callback: Called with a line on what is being done.
        settings: Fields of `Training`. All epochs are run: ``patience`` has no effect.

    Returns:
        The bounds by estimator, seed and step.

    Raises:
        EstimatorError: If an estimator cannot be used with the VAE; before anything is done.
        TypeError: If there is a ``run_folder``, and a part of the VAE cannot be declared by an import path and plain
            arguments.
        ValueError: If an argument is out of range, or the folder holds runs of another VAE, cells or settings.

    Example:
        >>> import genailab_pyro as glp
        >>> cells = glp.register(glp.data.pbmc68k())
        >>> vae = glp.CVAE_NB.from_registration(cells, hidden_dims=[16])
        >>> options = {"num_seeds": 2, "learning_rates": [4e-3], "num_particles": 5, "num_points": 2, "max_epochs": 4}
        >>> glp.race(vae, cells, ["pathwise", "score"], **options).to_dataframe().index[0]
        'pathwise'
    """
    for name, value in {"num_seeds": num_seeds, "num_particles": num_particles, "num_points": num_points}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"expected {name} to be a whole number of at least one, got {value!r}")
    if not len(learning_rates):
        raise ValueError("expected at least one learning rate, got none; pass learning_rates=(4e-3,)")
    check_arguments(vae, cells)
    named = named_estimators(estimators)
    training = Training.from_json(settings)
    for rate in learning_rates:
        replace(training, learning_rate=rate)  # refuses a rate out of range before any work is done
    seen, test = cells.split(held_out, seed=0) if isinstance(held_out, (int, float)) else (cells, held_out)
    _check_unseen(seen, test)
    check_usable(vae, named, sample(seen, 8, seed=0, device=next(vae.parameters()).device))
    shares = [position / num_points for position in range(num_points + 1)]
    ledger = None
    if run_folder is not None:
        of = {
            **declared_model(vae),
            "weights": _digest(vae),
            "cells": fingerprint(seen),
            "held-out cells": fingerprint(test),
            "training settings": training.to_json(),
            "points and particles": [num_points, num_particles],
        }
        ledger = Ledger(Path(run_folder) / RUNS, of)
    track = _Track(vae, seen, test, training, num_particles, seed, ledger, callback or (lambda line: None))
    runs = []
    for name, estimator in named.items():
        tuning, rate = track.tune(name, estimator, learning_rates)
        run = track.runs(name, estimator, rate, num_seeds, shares)
        runs.append(run.assign(learning_rate=rate, tuning=("candidate", tuning)))
    dataset = xr.concat(runs, xr.Variable("estimator", [*named])).assign_coords(candidate=[*learning_rates])
    dataset.attrs |= {"num_particles": num_particles, "num_held_out": len(test), "model": type(vae).__name__}
    return Race(dataset)


def _digest(vae: VAE) -> str:
    """What tells the weights of a VAE from others."""
    digest = hashlib.sha256()
    for name, value in vae.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def _check_unseen(seen: Cells, test: Cells) -> None:
    """Refuse held-out cells of another schema, or that the runs would be trained on."""
    if test.registration != seen.registration:
        raise ValueError(
            "expected held-out cells of the registration of the others, got another; bind them by "
            "cells.registration.bind(adata)"
        )
    both = set(seen.obs_names) & set(test.obs_names)
    if both:
        raise ValueError(
            f"expected held-out cells that none of the runs sees, {len(both)} of them are among those that are trained "
            "on; leave them out of cells"
        )


@dataclass(frozen=True, eq=False)
class _Track:
    """Where the runs take place."""

    vae: VAE
    seen: Cells
    test: Cells
    training: Training
    num_particles: int
    seed: int
    ledger: Ledger | None
    say: Callable[[str], None]

    def tune(self, name: str, estimator: Estimator, rates: Sequence[float]) -> tuple[list[float], float]:
        """The bound of validation cells after a run by each learning rate, and the rate with the highest."""
        if len(rates) == 1:
            return [np.nan], rates[0]
        rest, validation = self.seen.split(0.1, seed=1)
        scores = []
        for rate in rates:
            self.say(f"{name}: trying the learning rate {rate:g}")
            found = self._run(
                "tuning", estimator, rate, seed=self.seed + 1_000, shares=[1.0], cells=rest, scored=validation
            )
            scores.append(found["bound"][0])  # NaN if it diverged, which tells that the rate is too high
        if np.isnan(scores).all():
            self.say(f"{name}: diverged at each of the learning rates {rates!r}; add a lower one")
            return scores, min(rates)
        return scores, rates[int(np.nanargmax(scores))]

    def runs(self, name: str, estimator: Estimator, rate: float, num_seeds: int, shares: Sequence[float]) -> xr.Dataset:
        """The bound of the held-out cells along the runs of all seeds."""
        runs = []
        for seed in range(self.seed, self.seed + num_seeds):
            self.say(f"{name}: seed {seed} ({seed - self.seed + 1} of {num_seeds}) at the learning rate {rate:g}")
            runs.append(self._run("race", estimator, rate, seed=seed, shares=shares, cells=self.seen, scored=self.test))
            if np.isnan(runs[-1]["bound"]).all():
                self.say(f"{name}: seed {seed} diverged at the learning rate {rate:g}")
        coordinates = {"seed": range(self.seed, self.seed + num_seeds), "share": [*shares]}
        values = {key: (("seed", "share"), [run[key] for run in runs]) for key in ("bound", "step", "seconds")}
        return xr.Dataset(values, coords=coordinates)

    def _run(
        self,
        stage: str,
        estimator: Estimator,
        rate: float,
        *,
        seed: int,
        shares: Sequence[float],
        cells: Cells,
        scored: Cells,
    ) -> dict[str, list[float]]:
        """The bound, step and seconds at some shares of a run; NaN if it diverged."""

        def measured() -> dict[str, list[float]]:
            settings = replace(self.training, learning_rate=rate)
            try:
                snapshots = trajectory(self.vae, cells, estimator, settings, shares, seed=seed)
            except ArithmeticError:
                return dict.fromkeys(("bound", "step", "seconds"), [np.nan] * len(shares))
            return {
                "bound": [self._bound(snapshot, estimator, scored) for snapshot in snapshots],
                "step": [float(snapshot.step) for snapshot in snapshots],
                "seconds": [snapshot.seconds for snapshot in snapshots],
            }

        if self.ledger is None:
            return measured()
        return self.ledger.measure(f"{stage}, {estimator!r}, learning rate {float(rate)!r}, seed {seed}", measured)

    def _bound(self, snapshot: Snapshot, estimator: Estimator, cells: Cells) -> float:
        fitted = Fit(
            vae=load(self.vae, snapshot),
            registration=self.seen.registration,
            history=pd.DataFrame(),
            estimator=estimator,
            training=self.training,
            seed=0,
        )
        return float(fitted.log_likelihood(cells, num_particles=self.num_particles).mean())
