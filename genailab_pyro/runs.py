"""A run from a configuration: cells from a file, a fit, its held-out scores, and a folder that tells all of it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from jaxtyping import Bool
from rich.console import Console

from genailab_pyro.analysis import annotate, label_probabilities
from genailab_pyro.configuration import STRUCTURE, Configuration, marked_cells
from genailab_pyro.data.cells import Cells
from genailab_pyro.data.preprocess import preprocess
from genailab_pyro.data.registration import register
from genailab_pyro.data.validation import suggestion
from genailab_pyro.evaluation import Estimate, compare_models
from genailab_pyro.files import whole
from genailab_pyro.report.folder import RunFolder, check_free, clear_run, is_unfinished
from genailab_pyro.report.run import Findings, map_cells, run_card, run_report
from genailab_pyro.train.diagnosis import Diagnosis
from genailab_pyro.train.fit import fit, resume
from genailab_pyro.train.fitted import Fit
from genailab_pyro.train.loading import load

PARTICLES = 100


@dataclass(frozen=True, eq=False)
class RunResult:
    """What a run gave.

    Attributes:
        fit: The fit.
        scores: Held-out scores, one row; None where no cell was held out, or the run was interrupted.
        diagnosis: Signs of health; None where the run was interrupted.
        folder: Where everything is; after an interruption, the state from which `continue_run` goes on.
    """

    fit: Fit
    scores: pd.DataFrame | None
    diagnosis: Diagnosis | None
    folder: Path


@dataclass(frozen=True, eq=False)
class Prepared:
    """Cells in the terms of a configuration.

    Attributes:
        adata: All cells, preprocessed where that was asked for.
        held_out: Which of them are held out.
        training: The others, registered; what is held out has no part in the registration.
        test: Those that are held out, bound to the registration; None for none.
    """

    adata: AnnData
    held_out: Bool[np.ndarray, " cells"]
    training: Cells
    test: Cells | None


def read_cells(path: str | Path) -> AnnData:
    """Read an h5ad file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no h5ad file.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"expected an h5ad file, {path} is a folder; name a file in it")
    if not path.is_file():
        near = [file.name for file in path.parent.glob("*.h5ad")] if path.parent.is_dir() else []
        raise FileNotFoundError(f"expected an h5ad file at {path}, found none{suggestion(path.name, near)}")
    try:
        return anndata.read_h5ad(path)
    except (OSError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"expected an AnnData in {path}, written by adata.write_h5ad(path); it cannot be read ({reason}). Read "
            "other formats with scanpy, and write them as h5ad"
        ) from error


def select_cells(adata: AnnData, column: str, level: str) -> AnnData:
    """The cells with a value in a column of ``.obs``.

    Raises:
        ValueError: If there is no such column, or no such cell.
    """
    return adata[marked_cells(adata, column, (level,))].copy()


def check_new(path: Path, *, overwrite: bool) -> Path:
    """A file that is to be written, which is not there yet.

    Raises:
        FileExistsError: If it is there, unless it may be overwritten.
        ValueError: If it is a folder.
    """
    if path.is_dir():
        raise ValueError(f"expected a file to write, {path} is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise FileExistsError(f"expected a new file, {path} is there already; name another one, or pass --overwrite")
    return path


def write_cells(adata: AnnData, path: Path) -> Path:
    """Write an h5ad file that is whole or not there; one that is there is replaced."""
    with whole(path) as part:
        adata.write_h5ad(part, compression="gzip")
    return path


def load_model(path: str | Path) -> Fit:
    """A saved fit, from its own folder or from that of the run that made it.

    Raises:
        FileNotFoundError: If there is no fit in either.
        ValueError: If it is damaged.
    """
    path = Path(path)
    inner = path / "model"
    return load(inner if inner.is_dir() and not (path / "fit.json").exists() else path)


def load_models(paths: Sequence[str | Path]) -> dict[str, Fit]:
    """Saved fits by the names of their runs, or by their paths where runs in different places share a name.

    Raises:
        FileNotFoundError: If one is not there.
        ValueError: If one is named twice, or damaged.
    """
    folders = [Path(path).resolve() for path in paths]
    runs = [folder.parent if folder.name == "model" else folder for folder in folders]
    if len(set(runs)) < len(runs):
        raise ValueError(f"expected each model once, got {', '.join(map(str, paths))}; leave out the second one")
    names = [folder.name for folder in runs]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return {name: load_model(path) for name, path in zip(names, paths, strict=True)}


def prepare(configuration: Configuration) -> Prepared:
    """Read the cells, keep those that are asked for, hold some out, and register the others.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If no file is named, or the cells do not fit the configuration.
    """
    data = configuration.data
    if data.path is None:
        raise ValueError("expected an h5ad file: name it, or set data.path in the configuration")
    adata = read_cells(data.path)
    if data.preprocess is not None:
        adata = preprocess(adata, counts=data.counts, **asdict(data.preprocess))
    mask = configuration.held_out.mask(adata, seed=configuration.seed)
    training = register(
        adata[~mask].copy(),
        counts=data.counts,
        conditions=data.conditions,
        continuous=data.continuous,
        labels=data.labels,
        size_factor=data.size_factor,
    )
    if not mask.any():
        return Prepared(adata, mask, training, None)
    try:
        test = training.registration.bind(adata[mask].copy())
    except ValueError as error:
        raise ValueError(
            f"the {int(mask.sum())} held-out cells do not fit what the {len(training)} training cells were registered "
            f"as: {error}. Another seed, or held_out.column, holds out others"
        ) from error
    return Prepared(adata, mask, training, test)


def run(
    configuration: Configuration, folder: str | Path, *, overwrite: bool = False, progress: bool = True
) -> RunResult:
    """Fit the model of a configuration to its cells, score it on the held-out ones, and write a folder.

    The folder gets ``config.yaml`` with every value, ``metrics.csv`` (the history), ``scores.csv``, ``model/`` (the
    saved fit), ``cells.h5ad`` (all cells with latents, expression and split, and with the labels that a model tells and
    their probabilities), ``figures/``, ``report.html``, ``MODEL_CARD.md``, and ``state/``, from which `continue_run`
    goes on after an interruption.

    Args:
        configuration: What is run.
        folder: A new or empty folder.
        overwrite: Whether what an earlier run left in the folder is removed, once the new run is ready to begin.
        progress: Whether to show a line of progress.

    Returns:
        The fit and its scores; after Ctrl-C the fit so far, without scores and reports.

    Raises:
        FileExistsError: If the folder holds files.
        FileNotFoundError: If the cells are not there.
        TrainingError: If the loss or its gradient is NaN or infinite.
        ValueError: If the cells do not fit the configuration.
    """
    folder = Path(folder)
    if not overwrite:
        _check_free(folder)
    device = _device(configuration.device)
    path = Path(str(configuration.data.path)).resolve()
    if overwrite and folder.resolve() in path.parents:
        raise ValueError(f"expected another folder than that of the cells, {path} is in {folder}; name a new one")
    prepared = prepare(configuration)
    vae = configuration.model.build(prepared.training, seed=configuration.seed)
    if overwrite:
        clear_run(folder)
    out = RunFolder(folder)
    configuration = replace(configuration, data=replace(configuration.data, path=str(path)))
    out.config(configuration.to_mapping())
    fitted = fit(
        vae,
        prepared.training,
        configuration.estimator.build(),
        training=configuration.training,
        penalties=configuration.penalties.build(prepared.training, configuration.model.latent_dim),
        seed=configuration.seed,
        device=device,
        run_folder=out.path / "state",
        progress=progress,
    )
    return _write(out, configuration, prepared, fitted, progress=progress)


def continue_run(folder: str | Path, *, overwrite: bool = False, progress: bool = True) -> RunResult:
    """Go on with a run that was interrupted, and write what `run` writes.

    Args:
        folder: The folder of the run.
        overwrite: Whether the outputs of a complete run are written again.
        progress: Whether to show a line of progress.

    Returns:
        What `run` would have returned without the interruption.

    Raises:
        FileExistsError: If the run is complete.
        FileNotFoundError: If the folder holds no run, or the cells are not there.
        ValueError: If the cells are no longer those of the run.
    """
    folder = Path(folder)
    if not (folder / "state" / "run.json").is_file() or not (folder / "config.yaml").is_file():
        raise FileNotFoundError(
            f"expected a run in {folder} that 'genailab-pyro fit' has begun, with a config.yaml and a folder state/, "
            "found none; check the folder, or begin a new run"
        )
    if (folder / "report.html").exists() and not overwrite:
        raise FileExistsError(
            f"the run in {folder} is complete, there is nothing to go on with; pass --overwrite to write its model, "
            "report and cells again"
        )
    configuration = Configuration.from_file(folder / "config.yaml")
    device = _device(configuration.device) or "cpu"
    prepared = prepare(configuration)
    penalties = configuration.penalties.build(prepared.training, configuration.model.latent_dim)
    fitted = resume(folder / "state", prepared.training, penalties=penalties, device=device, progress=progress)
    return _write(RunFolder(folder, going_on=True), configuration, prepared, fitted, progress=progress)


def score(
    fits: Mapping[str, Fit], adata: AnnData | Cells, *, num_particles: int = PARTICLES, seed: int = 0
) -> pd.DataFrame:
    """Held-out scores of one fit, or of several with their paired differences from the best.

    Args:
        fits: The fits, by name.
        adata: Cells that none of them was trained on.
        num_particles: Draws per cell of the importance-weighted bound.
        seed: Seed of the draws.

    Returns:
        What `compare_models` returns; for one fit without the differences.

    Raises:
        ValueError: If the cells do not fit a registration, or the fits score different things.
    """
    if len(fits) > 1:
        return compare_models(fits, adata, num_particles=num_particles, seed=seed)
    (name, fitted), *_ = fits.items()
    cells = fitted.bind(adata)
    elbo = Estimate.of(fitted.elbo(cells, seed=seed))
    bound = Estimate.of(fitted.log_likelihood(cells, num_particles=num_particles, seed=seed))
    row = {
        "elbo": elbo.mean,
        "elbo_standard_error": elbo.standard_error,
        "log_likelihood": bound.mean,
        "log_likelihood_standard_error": bound.standard_error,
    }
    return pd.DataFrame.from_dict({name: row}, orient="index").rename_axis("model")


def _check_free(folder: Path) -> None:
    """Refuse a folder with files, and tell how to go on with a run that was interrupted there."""
    try:
        check_free(folder)
    except FileExistsError as error:
        if not is_unfinished(folder) or not (folder / "state" / "run.json").exists():
            raise
        raise FileExistsError(f"{error}, or go on with the run in it by 'genailab-pyro resume {folder}'") from None


def _device(name: str | None) -> str | None:
    """The name of a device that is there."""
    if name is not None:
        try:
            torch.empty(1, device=name)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"expected a device that torch has here, such as 'cpu', got {name!r} ({reason})"
            ) from error
    return name


def _write(
    out: RunFolder, configuration: Configuration, prepared: Prepared, fitted: Fit, *, progress: bool
) -> RunResult:
    """Score the fit and write the outputs; the report comes last, as the sign that all of them are there."""
    if fitted.interrupted:
        return RunResult(fitted, None, None, out.path)
    seed, name = configuration.seed, configuration.model.name
    if progress:
        Console(stderr=True).print("training is done; scoring the cells and writing the report")
    scores = None if prepared.test is None else score({name: fitted}, prepared.test, seed=seed)
    diagnosis = fitted.diagnose(seed=seed)
    annotated = annotate(fitted, prepared.adata, seed=seed)
    annotated.obs["split"] = pd.Categorical(np.where(prepared.held_out, "held-out", "train"))
    findings = Findings(
        name=name,
        source=Path(str(configuration.data.path)).name,
        fit=fitted,
        training=prepared.training,
        held_out=prepared.test,
        annotated=annotated,
        scores=scores,
        num_particles=PARTICLES,
        diagnosis=diagnosis,
    )
    if findings.learned is not None:
        _tell_labels(annotated, fitted, findings.learned, seed=seed)
    report, figures = run_report(findings, map_cells(annotated, seed=seed), seed=seed)
    out.model(fitted)
    out.metrics(fitted.history.set_index("epoch"))
    if scores is not None:
        out.scores(scores)
    out.cells(annotated)
    for title, figure in figures.items():
        out.figure(title, figure)
    run_card(
        out.path / "MODEL_CARD.md",
        findings,
        data=_source(configuration, prepared),
        model=_model(configuration, fitted),
    )
    report.write(out.path / "report.html")
    return RunResult(fitted, scores, diagnosis, out.path)


def _model(configuration: Configuration, fitted: Fit) -> dict[str, object]:
    """The settings of the model, with what the library has chosen, for the card."""
    chosen = fitted.vae.declaration()["arguments"]
    settings = configuration.to_mapping()["model"]
    return {
        name: chosen.get(name) if value is None else value
        for name, value in settings.items()
        if name in chosen or name not in STRUCTURE
    }


def _tell_labels(annotated: AnnData, fitted: Fit, name: str, *, seed: int) -> None:
    """Put the label that each cell is told as, and its probability, into ``.obs``."""
    probabilities = label_probabilities(fitted, annotated, seed=seed)
    codes = probabilities.to_numpy().argmax(1)
    annotated.obs[f"{name}_told"] = pd.Categorical.from_codes(codes, categories=probabilities.columns)
    annotated.obs[f"{name}_probability"] = probabilities.max(axis=1)


def _source(configuration: Configuration, prepared: Prepared) -> dict[str, object]:
    """Where the cells came from and how they were chosen, for the card."""
    path, held_out = Path(str(configuration.data.path)), configuration.held_out
    kept = configuration.data.preprocess
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    by_column = f'adata.obs["{held_out.column}"]' + (f" in {list(held_out.levels)}" if held_out.levels else "")
    return {
        "file": path.name,
        "sha256 of the file": digest,
        "raw counts in": prepared.training.matrix.place,
        "preprocessing": None if kept is None else asdict(kept),
        "held out": f"a share of {held_out.fraction:g} of the cells, by the seed"
        if held_out.column is None
        else by_column,
    }
