"""The jobs of the commands that make counts: denoised, counterfactual and generated ones, beside simple references."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Bool, Int

from genailab_pyro.analysis import annotate, augment
from genailab_pyro.analysis.perturb import dose_response, latent_invariance, predict
from genailab_pyro.applications import ApplicationResult, Job, column_of, finish
from genailab_pyro.configuration import DataSettings, ModelSettings
from genailab_pyro.data.preprocess import preprocess
from genailab_pyro.data.registration import register
from genailab_pyro.data.thinning import thin
from genailab_pyro.data.validation import check_names
from genailab_pyro.evaluation import (
    PerturbationTask,
    denoising_scores,
    fidelity,
    log_normalise,
    perturbation_table,
    predict_references,
    score_references,
    transfer_accuracy,
)
from genailab_pyro.evaluation.references import Group
from genailab_pyro.report import applications_counts as sections
from genailab_pyro.report.applications import Told
from genailab_pyro.report.applications_counts import MODEL
from genailab_pyro.report.html import Report
from genailab_pyro.runs import read_cells, select_cells
from genailab_pyro.train.fit import fit_whole
from genailab_pyro.train.fitted import Fit
from genailab_pyro.train.settings import Training

REPEATS = 5
FEWEST_SCORED = 10
MOST_CURVED = 500  # cells of which a dose response is shown
NUM_CURVES = 12
EVERYWHERE = "all cells"


def run_recovery(
    job: Job,
    settings: DataSettings,
    model: ModelSettings,
    *,
    fraction: float = 0.5,
    max_epochs: int | None = None,
    progress: bool = True,
) -> ApplicationResult:
    """Hold back part of the molecules of each cell, train a model on the others, and score it on those held back.

    Args:
        job: What is read and written.
        settings: The columns of the cells, and which genes are kept.
        model: The model.
        fraction: Share of the molecules that is trained on.
        max_epochs: Passes over the cells; None for as many as `fit` chooses.
        progress: Whether to show a line of progress.

    Raises:
        KeyboardInterrupt: After Ctrl-C; the same call goes on.
        ValueError: If the cells do not fit the settings.
    """
    adata = read_cells(job.data)
    if settings.preprocess is not None:
        adata = preprocess(adata, counts=settings.counts, **asdict(settings.preprocess))
    halves = thin(adata, fraction, counts=settings.counts, seed=job.seed)
    kept = np.logical_and(*(np.asarray(half.X.sum(1)).ravel() > 0 for half in halves))
    first, second = (half[kept].copy() for half in halves)
    cells = register(first, conditions=settings.conditions, continuous=settings.continuous)
    vae = model.build(cells, seed=job.seed)
    chosen = {"fraction": fraction, "model": asdict(model), "max_epochs": max_epochs, "counts": settings.counts}
    chosen |= {"conditions": [*settings.conditions], "continuous": [*settings.continuous]}
    chosen |= {"preprocess": None if settings.preprocess is None else asdict(settings.preprocess)}
    training = Training(max_epochs=max_epochs)
    out = job.begin("recover", chosen)
    state = out.path / "state" / "recover"  # where 'genailab-pyro resume', which is of 'fit', does not look
    fitted = fit_whole(vae, cells, run_folder=state, training=training, seed=job.seed, progress=progress)
    shares = {model.name: fitted.expression(cells, seed=job.seed)}
    scores = denoising_scores(shares, second, references=first.X)
    report = job.report(
        "Recovery of molecules",
        f"{model.name} was trained on {fraction:.0%} of the molecules of {len(cells):,} cells and scored on the "
        f"others. {int((~kept).sum()):,} cells without a molecule in one part were left out.",
    )
    told = sections.recovery_section(report, scores, name=model.name, fraction=fraction)
    annotated = annotate(fitted, first, seed=job.seed)
    annotated.layers["held_back"] = second.X
    tables = {"scores": scores, "metrics": fitted.history.set_index("epoch")}
    return finish(out, report, [told], tables=tables, cells=annotated, trained=fitted)


class Intervention(NamedTuple):
    """What is set, in which cells, and where it is scored.

    Attributes:
        condition: Name of the condition that is set.
        level: The level it is set to.
        control: The level of the cells that it is set in.
        context: Column of the contexts, such as the cell type, each of which is scored; None for all cells together.
        target: The one context that is asked about; None for all.
        dose: Name and value of a covariate that is set, too.
        noise: ``"drawn"`` or ``"kept"``; see `predict`.
    """

    condition: str
    level: str
    control: str = "control"
    context: str | None = None
    target: str | None = None
    dose: tuple[str, float] | None = None
    noise: str = "drawn"

    def __str__(self) -> str:
        return f"{self.condition} {self.level}" + (f", {self.dose[0]} {self.dose[1]:g}" if self.dose else "")

    @property
    def do(self) -> dict[str, str]:
        """The condition set."""
        return {self.condition: self.level}

    @property
    def continuous(self) -> dict[str, float]:
        """The covariate set."""
        return dict([self.dose] if self.dose else [])

    def among(self, adata: AnnData) -> AnnData:
        """The cells of the contexts that are asked about."""
        if self.context is None:
            return adata
        if self.target is not None:
            return select_cells(adata, self.context, self.target)
        return adata[column_of(adata, self.context).notna().to_numpy()].copy()

    def groups(self, adata: AnnData) -> pd.DataFrame:
        """Context, perturbation and dose of each cell."""
        contexts = np.repeat(EVERYWHERE, adata.n_obs) if self.context is None else adata.obs[self.context].astype(str)
        doses = np.ones(adata.n_obs) if self.dose is None else column_of(adata, self.dose[0]).astype(float)
        perturbations = column_of(adata, self.condition).astype(str)
        columns = {"context": contexts, "perturbation": perturbations, "dose": doses}
        return pd.DataFrame({name: np.asarray(column) for name, column in columns.items()})


def run_prediction(job: Job, asked: Intervention, *, doses: Sequence[float] = ()) -> ApplicationResult:
    """Predict what control cells would look like under an intervention, and score it where there are real cells.

    Args:
        job: What is read and written.
        asked: The intervention.
        doses: Where to look at the response to the dose; none for no curves.

    Raises:
        ValueError: If a condition, level, context or covariate is not known.
    """
    fitted, adata = job.load()
    schema = fitted.registration
    check_names({asked.condition: None}, [item.name for item in schema.conditions], "condition")
    if asked.level == asked.control:
        raise ValueError(f"expected a level other than that of the cells, got {asked.level!r} twice; see --control")
    covariate = _covariate(fitted, asked) if doses else ""
    if doses and asked.dose is None:
        asked = asked._replace(dose=(covariate, max(doses)))
    adata = adata[column_of(adata, asked.condition).notna().to_numpy()].copy()
    within = asked.among(adata)
    controls = select_cells(within, asked.condition, asked.control)
    predicted = predict(fitted, controls, asked.do, continuous=asked.continuous, noise=asked.noise, seed=job.seed)
    genes = _changes(fitted, controls, predicted, job.seed)
    report = job.report(
        "Prediction",
        f"{controls.n_obs:,} cells of {asked.control} as they would be under {asked}. One draw of the counts of each "
        'is in X of cells.h5ad, their expectation in layers["mean"].',
    )
    premise = _premise(fitted, within, asked, job.seed)
    told = [
        sections.prediction_section(
            report, genes, premise, what=str(asked), control=asked.control, num_cells=controls.n_obs
        )
    ]
    tables = {"genes": genes} | ({} if premise is None else {"invariance": premise})
    scored, part = _score(report, fitted, adata, controls, predicted, asked, job.seed)
    told.append(part)
    if scored is not None:
        tables["scores"] = scored
    if doses:
        curves = _curves(fitted, controls, asked, covariate, doses, job.seed)
        told.append(sections.dose_section(report, curves, covariate=covariate, what=f"{asked.condition} {asked.level}"))
        tables["dose_response"] = curves.set_index(["gene", "dose"])
    settings: dict[str, Any] = {
        "do": asked.do,
        "control": asked.control,
        "context": asked.context,
        "target": asked.target,
    }
    settings |= {"continuous": asked.continuous, "doses": [*doses]}
    return finish(job.begin("predict", settings), report, told, tables=tables, cells=predicted)


def _covariate(fitted: Fit, asked: Intervention) -> str:
    names = [item.name for item in fitted.registration.continuous]
    if asked.dose is not None:
        check_names({asked.dose[0]: None}, names, "continuous covariate")
        return asked.dose[0]
    if len(names) != 1:
        raise ValueError(
            f"expected a model with one continuous covariate, the dose, got {', '.join(names) or 'none'}; name it by "
            "--dose NAME=VALUE, or fit a model with --continuous"
        )
    return names[0]


def _changes(fitted: Fit, controls: AnnData, predicted: AnnData, seed: int) -> pd.DataFrame:
    """Mean counts as observed and as expected, and the change of the decoded mean expression, largest first."""
    cells = fitted.bind(controls)
    before = fitted.expression(cells, seed=seed).mean(0)
    after = (predicted.layers["mean"] / cells.library[:, None]).mean(0)
    table = pd.DataFrame(
        {
            "mean_control": np.asarray(cells.counts_matrix().mean(0)).ravel(),
            "mean_predicted": predicted.layers["mean"].mean(0),
            "log2_fold_change": np.log2(after / before),
        },
        index=pd.Index(fitted.registration.genes, name="gene"),
    )
    return table.iloc[np.argsort(-table["log2_fold_change"].abs().to_numpy(), kind="stable")]


def _premise(fitted: Fit, adata: AnnData, asked: Intervention, seed: int) -> pd.DataFrame | None:
    """What the latent tells of the condition; None where the cells are of one level."""
    schema = fitted.registration
    levels = next(item.levels for item in schema.conditions if item.name == asked.condition)
    known = adata.obs[asked.condition].astype(str).isin(levels).to_numpy()
    if adata.obs[asked.condition][known].nunique() < 2:
        return None
    names = [item.name for item in schema.conditions] + ([] if schema.labels is None else [schema.labels.name])
    context = asked.context if asked.context in names else None
    found = latent_invariance(fitted, adata[known].copy(), condition=asked.condition, context=context, seed=seed)
    return found.dropna()


def _score(
    report: Report,
    fitted: Fit,
    adata: AnnData,
    controls: AnnData,
    predicted: AnnData,
    asked: Intervention,
    seed: int,
) -> tuple[pd.DataFrame | None, Told]:
    """Scores of the model and the references on each context that has enough real cells."""
    groups = asked.groups(adata)
    dose = 1.0 if asked.dose is None else asked.dose[1]
    wanted = (groups["perturbation"] == asked.level) & (groups["dose"] == dose)
    origins = asked.groups(controls)["context"].to_numpy()
    numbers = groups["context"][wanted].value_counts(sort=False)
    targets = [
        name for name in dict.fromkeys(origins) if min(numbers.get(name, 0), (origins == name).sum()) >= FEWEST_SCORED
    ]
    if not targets:
        report.section("Beside real cells").note(
            f"The file has no context with {FEWEST_SCORED} real cells under {asked} and as many of {asked.control}: "
            "there is nothing to score the prediction on."
        )
        return None, Told({}, [f"No real cells under {asked} to score the prediction on."])
    genes = [*fitted.registration.genes]
    expression, own = log_normalise(_counts(fitted, adata)), log_normalise(predicted.X)
    scores, shifts = {}, {}
    left_out: dict[str, str] = {}
    for name in targets:
        task, real = PerturbationTask.hold_out(
            expression,
            groups,
            Group(name, asked.level, dose),
            context="context",
            perturbation="perturbation",
            dose=None if asked.dose is None else "dose",
            control=asked.control,
        )
        cells = own[origins == name]
        scores[name] = score_references(task, real, models={MODEL: cells}, seed=seed)
        references, left_out = predict_references(task)
        base = task.controls.mean(0)
        moved = {MODEL: cells, **{key: value for key, value in references.items() if key != "no change"}}
        shifts[name] = real.mean(0) - base, {key: value.mean(0) - base for key, value in moved.items()}
    table = perturbation_table(scores)
    return table, sections.target_section(report, table, shifts, left_out, genes)


def _counts(fitted: Fit, adata: AnnData) -> Any:
    """Counts of the fit's genes, of cells whose levels need not be registered."""
    chosen, layer = adata[:, [*fitted.registration.genes]], fitted.registration.counts
    return chosen.X if layer is None else chosen.layers[layer]


def _curves(
    fitted: Fit, controls: AnnData, asked: Intervention, covariate: str, doses: Sequence[float], seed: int
) -> pd.DataFrame:
    """Response to the dose of the genes that move most, in some of the cells."""
    rows = np.sort(np.random.default_rng(seed).permutation(controls.n_obs)[:MOST_CURVED])
    cells = controls[rows].copy()
    ends = [
        predict(fitted, cells, asked.do, continuous={covariate: dose}, num_samples=5, seed=seed).layers["mean"].mean(0)
        for dose in (min(doses), max(doses))
    ]
    moves = np.abs(np.log1p(ends[1]) - np.log1p(ends[0]))
    genes = [fitted.registration.genes[place] for place in np.argsort(-moves, kind="stable")[:NUM_CURVES]]
    return dose_response(fitted, cells, asked.do, doses, covariate=covariate, genes=genes, seed=seed)


def run_augmentation(
    job: Job,
    *,
    condition: str,
    target: int | None = None,
    levels: Sequence[str] | None = None,
    source: str = "posterior",
    test: Path | None = None,
) -> ApplicationResult:
    """Generate cells of rare levels of a condition, see whether they look real, and whether a classifier gains.

    Args:
        job: What is read and written.
        condition: Name of the condition.
        target: Cells that each level is to have; None for as many as the most frequent one.
        levels: Levels to augment; None for all.
        source: ``"posterior"`` or ``"prior"``.
        test: An h5ad file of real cells that the model was not trained on; None to leave the classifier out.

    Raises:
        ValueError: If `augment` refuses a name or number, or the test cells do not fit the model.
    """
    fitted, adata = job.load()
    held = None if test is None else _real(fitted, read_cells(test))
    augmented = augment(fitted, adata, condition, target=target, levels=levels, source=source, seed=job.seed)
    made = augmented.obs["generated"].to_numpy(dtype=bool)
    given = augmented[~made].copy()
    report = job.report(
        "Augmentation",
        f"{int(made.sum()):,} cells generated from the {source} beside {given.n_obs:,} real ones, by {condition}. All "
        'are in cells.h5ad, told apart by obs["generated"].',
    )
    real = given if held is None else held
    told = [sections.augmentation_section(report, real, augmented, condition, held_out=held is not None)]
    tables: dict[str, pd.DataFrame] = {}
    try:
        tables["fidelity"] = fidelity(
            real, augmented[made], groupby=condition, reference=None if held is None else given, seed=job.seed
        )
        told.append(sections.fidelity_section(report, tables["fidelity"], held_out=held is not None))
    except ValueError as reason:  # there may be too few cells of every level
        report.section("Do generated cells look real?").note(f"No level could be scored: {reason}.")
    if held is not None:
        ways = [
            augment(fitted, adata, condition, target=target, levels=levels, source=source, seed=job.seed + repeat)
            for repeat in range(REPEATS)
        ]
        tables["classifier"] = _accuracies(ways, held, condition, job.seed)
        rarest = int(held.obs[condition].astype(str).value_counts().min())
        told.append(
            sections.classifier_section(
                report, tables["classifier"], condition=condition, num_test=held.n_obs, rarest=rarest
            )
        )
    settings = {"condition": condition, "target": target, "levels": levels, "source": source}
    settings |= {"test": None if test is None else str(test)}
    return finish(job.begin("augment", settings), report, told, tables=tables, cells=augmented)


def _real(fitted: Fit, adata: AnnData) -> AnnData:
    """Real cells over the fit's genes, with counts in ``.X``."""
    cells = fitted.bind(adata)
    return AnnData(cells.counts_matrix(), obs=adata.obs.copy(), var=pd.DataFrame(index=[*fitted.registration.genes]))


def _accuracies(ways: Sequence[AnnData], test: AnnData, condition: str, seed: int) -> pd.DataFrame:
    """Balanced accuracy on the test cells, for each way that cells were generated, by what was trained on."""
    held, names = log_normalise(test.X), test.obs[condition].astype(str).to_numpy()
    rows = []
    for repeat, augmented in enumerate(ways):
        values, labels = log_normalise(augmented.X), augmented.obs[condition].astype(str).to_numpy()
        sets = _training_sets(labels, augmented.obs["generated"].to_numpy(dtype=bool), seed + repeat)
        rows.append(
            {
                name: transfer_accuracy(values[chosen], labels[chosen], held, names, seed=seed + repeat)
                for name, chosen in sets.items()
            }
        )
    return pd.DataFrame(rows).rename_axis("repeat")


def _training_sets(
    labels: np.ndarray, made: Bool[np.ndarray, " cells"], seed: int
) -> dict[str, Int[np.ndarray, " chosen"]]:
    """Rows of the real cells, of these with copies in place of each generated cell, and of all."""
    rng, real = np.random.default_rng(seed), np.flatnonzero(~made)
    numbers = zip(*np.unique(labels[made], return_counts=True), strict=True)
    own = [(real[labels[real] == level], number) for level, number in numbers]
    copies = [rng.choice(rows, number) for rows, number in own if len(rows)]
    return {"none": real, "oversampled": np.concatenate([real, *copies]), "augmented": np.arange(len(labels))}
