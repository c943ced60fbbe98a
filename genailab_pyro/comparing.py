"""The job of the command ``compare``: estimators measured on one model, and a folder of what came out."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from genailab_pyro import data
from genailab_pyro.configuration import DataSettings, ModelSettings
from genailab_pyro.data.cells import Cells
from genailab_pyro.data.registration import register
from genailab_pyro.estimators import Estimator, get
from genailab_pyro.estimators import table as table_of_estimators
from genailab_pyro.experiments import EstimatorComparison, compare_estimators
from genailab_pyro.experiments.compare import named_estimators
from genailab_pyro.experiments.race import Race
from genailab_pyro.experiments.race import race as race_estimators
from genailab_pyro.experiments.trajectory import check_usable, sample, usable
from genailab_pyro.model.vae import VAE
from genailab_pyro.report import Report
from genailab_pyro.report.comparison import comparison_section, findings, race_section
from genailab_pyro.report.folder import RunFolder, clear_run
from genailab_pyro.runs import read_cells
from genailab_pyro.train.checkpoint import fingerprint
from genailab_pyro.train.fitted import installed
from genailab_pyro.train.settings import Training

STANDARD: tuple[str, ...] = (
    *("pathwise", "pathwise-kl", "stl", "score", "score-graph", "score-graph-ema", "score-graph-nn", "score-loo"),
    *("iwae", "dreg"),
)


@dataclass(frozen=True, eq=False)
class ComparisonResult:
    """What a comparison gave.

    Attributes:
        comparison: The gradients at frozen weights.
        race: The training runs; None without.
        folder: Where everything is.
    """

    comparison: EstimatorComparison
    race: Race | None
    folder: Path

    @property
    def findings(self) -> list[str]:
        """What it shows, a sentence each."""
        return findings(self.comparison)


def standard_estimators(vae: VAE, cells: Cells) -> list[str | Estimator]:
    """What is compared where nothing is asked for.

    For normal latents, ten estimators; for structured ones, all in the table that can be used, and the score with a
    baseline under both kinds of credit.
    """
    few = sample(cells, 8, seed=0, device=next(vae.parameters()).device)
    if vae.upper is None and usable(vae, get("pathwise"), few) is None:
        return [*STANDARD]
    names = [name for name in table_of_estimators().index if usable(vae, get(name), few) is None]
    return [*names, Estimator("score", baseline="cell-average")]


def run_comparison(
    folder: str | Path,
    settings: DataSettings | None = None,
    model: ModelSettings | None = None,
    *,
    estimators: Sequence[str] = (),
    num_draws: int = 200,
    num_seeds: int = 0,
    max_epochs: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    callback: Callable[[str], None] | None = None,
) -> ComparisonResult:
    """Compare estimators on a model of some cells, and write tables, figures and a report.

    The folder gets ``config.yaml``, ``comparison.nc`` and ``comparison.csv``, with a race ``race.nc`` and ``race.csv``,
    ``figures/`` and ``report.html``. The comparison, once it is done, and each run of the race that is done are kept
    after an interruption; the runs lie in ``state/``.

    Args:
        folder: A new or empty folder, or one in which the same comparison was interrupted: it goes on.
        settings: The cells; None for the blood cells that come with the package.
        model: The model; None for ``CVAE_NB``.
        estimators: Names in ``estimators.table()``; empty for the standard ones.
        num_draws: Gradient draws of each estimator.
        num_seeds: Training runs by each estimator; 0 for none.
        max_epochs: Epochs of the training runs; None for as many as `fit` chooses.
        seed: Seed of everything.
        overwrite: Whether what an earlier run left in the folder is removed, once the comparison can begin.
        callback: Called with a line on what is being done.

    Raises:
        EstimatorError: If an estimator cannot be used with the model.
        FileExistsError: If the folder holds another job, or one that came to its end.
        KeyboardInterrupt: After Ctrl-C; the same call goes on.
        ValueError: If the cells do not fit the settings.
    """
    settings, model = settings or DataSettings(), model or ModelSettings()
    cells = _cells(settings)
    vae = model.build(cells, seed=seed)
    chosen = [*estimators] or standard_estimators(vae, cells)
    training = Training(max_epochs=max_epochs)
    few = sample(cells, 8, seed=0, device=next(vae.parameters()).device)
    named = named_estimators(chosen)
    check_usable(vae, named, few)
    if overwrite:
        clear_run(folder)
    path = "pbmc68k" if settings.path is None else str(Path(settings.path).resolve())
    columns = {name: getattr(settings, name) for name in ("counts", "conditions", "continuous", "size_factor")}
    what = {"data": {"path": path, **columns}, "cells": fingerprint(cells), "model": asdict(model)}
    how = {"estimators": [*named], "num_draws": num_draws, "race": num_seeds, "training": training.to_json()}
    out = RunFolder.of(folder, {**what, **how, "seed": seed})
    saved = out.path / "comparison.nc"
    if saved.exists():
        compared = EstimatorComparison.load(saved)
    else:
        compared = compare_estimators(
            vae, cells, chosen, num_draws=num_draws, training=training, seed=seed, callback=callback
        )
        compared.save(saved)
    out.table("comparison", compared.to_dataframe())
    raced = None
    if num_seeds:
        raced = race_estimators(
            vae,
            cells,
            chosen,
            num_seeds=num_seeds,
            max_epochs=max_epochs,
            seed=seed,
            run_folder=out.path / "state",
            callback=callback,
        )
    result = ComparisonResult(compared, raced, out.path)
    _write(out, result, model, cells)
    return result


def _cells(settings: DataSettings) -> Cells:
    if settings.path is None:
        return register(data.preprocess(data.pbmc68k()))
    return register(
        read_cells(settings.path),
        counts=settings.counts,
        conditions=settings.conditions,
        continuous=settings.continuous,
        size_factor=settings.size_factor,
    )


def _write(
    out: RunFolder,
    result: ComparisonResult,
    model: ModelSettings,
    cells: Cells,
) -> None:
    attrs = result.comparison.dataset.attrs
    report = Report(
        f"Gradient estimators on {model.name}",
        f"{result.comparison.dataset.sizes['estimator']} estimators of the gradient of a bound, on counts of "
        f"{len(cells):,} cells and {len(cells.registration.genes):,} genes.",
        versions={**installed(), "seed": attrs["seed"], "torch threads": torch.get_num_threads()},
    )
    figures = comparison_section(report, result.comparison)
    if result.race is not None:
        figures |= race_section(report, result.race)
        result.race.save(out.path / "race.nc")
        out.table("race", result.race.to_dataframe())
    for name, figure in figures.items():
        out.figure(name, figure)
    report.write(out.path / "report.html")
