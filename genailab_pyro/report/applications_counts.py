"""Sections of a report on counts that a fit makes: denoised, counterfactual and generated ones."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Float
from scipy import sparse

from genailab_pyro import plots
from genailab_pyro.evaluation import GeneStatistics
from genailab_pyro.evaluation.references import HALF
from genailab_pyro.plots.dose_response import dose_response
from genailab_pyro.plots.numbers import plus_minus
from genailab_pyro.report.applications import SHOWN_GENES, Told
from genailab_pyro.report.html import Report

MODEL = "model"
SHOWN_TARGETS = 4
SHOWN_SCORES = [
    *("r2", "r2_shift", "r2_shift_split", "pearson_shift", "pearson_shift_split"),
    *("energy_distance", "de_direction_match"),
]


def recovery_section(report: Report, scores: pd.DataFrame, *, name: str, fraction: float) -> Told:
    """How well denoised expression predicts molecules that were held back.

    Args:
        report: The report.
        scores: What `denoising_scores` returns.
        name: The row of the model.
        fraction: Share of the molecules that were learned from.
    """
    best = str(scores.index[0])
    behind = scores.loc[name, ["difference", "standard_error"]]
    findings = [
        f"{name} predicts the held-back molecules best."
        if best == name
        else f"{best} predicts the held-back molecules best; {name} is behind by {plus_minus(*behind.abs())} nats "
        "per cell."
    ]
    for reference in scores.index.drop(name):
        lead = scores.loc[name, "log_likelihood"] - scores.loc[reference, "log_likelihood"]
        findings.append(f"{name} against {reference}: {lead:+.2f} nats per cell.")
    report.section("Molecules that were held back").bullets(findings)
    figure = plots.estimates(
        [*scores.index.astype(str)],
        scores["difference"],
        scores["standard_error"],
        xlabel="Log-likelihood of the held-back molecules, less that of the best (nats per cell)",
        title=f"{best} predicts held-back molecules best",
        reference=("the best", 0.0),
    )
    report.figure(
        figure,
        f"Each method learned from {fraction:.0%} of the molecules of each cell, drawn at random, and gives each gene "
        "a share; scored is the Poisson log-likelihood of the others. Errors are over cells, paired.",
        alt="A row for each method, the best at zero.",
    )
    report.table(scores, "The same as numbers, in nats per cell.", formats=".4g")
    report.note(
        "The references choose their own neighbours and pseudocounts, by thinning the first half once more. The score "
        "tells how well a cell's expression is known, averaged over molecules: abundant genes weigh most. It does not "
        "tell whether correlations of genes that are seen in denoised expression are real, nor how well the model does "
        "on all of the molecules, where every method has more to go by."
    )
    return Told({"recovery": figure}, findings)


def prediction_section(
    report: Report,
    genes: pd.DataFrame,
    premise: pd.DataFrame | None,
    *,
    what: str,
    control: str,
    num_cells: int,
) -> Told:
    """What the model predicts, and whether the latent forgets the condition, as a counterfactual supposes.

    Args:
        report: The report.
        genes: One row per gene: ``mean_control``, ``mean_predicted`` and ``log2_fold_change``, largest first.
        premise: What `latent_invariance` returns; None where the data hold one level alone.
        what: The intervention in words.
        control: The level of the cells as they were observed.
        num_cells: How many cells there are.
    """
    findings = [f"{num_cells:,} cells of {control} were decoded under {what}."]
    report.section("The prediction").bullets(findings)
    report.table(
        genes.head(SHOWN_GENES),
        "Genes of the largest predicted change: mean counts as observed, expected counts under the intervention, and "
        "the log2 fold change of the decoded mean expression.",
        formats=".3g",
    )
    if premise is not None:
        report.table(
            premise,
            "What the latent tells of the condition: balanced accuracy of a classifier in held-out folds, beside "
            "chance. A counterfactual supposes chance: what the latent keeps of the level that was observed is decoded "
            "beside the level that is set.",
            formats={"balanced_accuracy": ".3f", "chance": ".3f"},
        )
    return Told({}, findings)


def target_section(
    report: Report,
    table: pd.DataFrame,
    shifts: Mapping[str, tuple[Float[np.ndarray, " genes"], Mapping[str, Float[np.ndarray, " genes"]]]],
    left_out: Mapping[str, str],
    genes: list[str],
) -> Told:
    """Predicted against real cells at the level that was set, beside what needs no model.

    Args:
        report: The report.
        table: What `perturbation_table` returns.
        shifts: The real shift of each gene and the predicted ones by method, by target.
        left_out: Why references do not apply.
        genes: Names of the genes.
    """
    means = table.loc[["mean"]].droplevel("group")
    split = means["r2_shift_split"]
    best = str(split.drop([HALF, MODEL]).idxmax())
    energy, reached = means["energy_distance"], split[HALF]
    findings = [
        f"Variance of the real shift that is explained, split controls: {MODEL} {split[MODEL]:.2f}, the best "
        f"reference ({best}) {split[best]:.2f}; half of the real cells explain {reached:.2f} of the other half.",
        f"Energy distance to the real cells: {MODEL} {energy[MODEL]:.3g}, the controls as they "
        f"are {energy['no change']:.3g}.",
    ]
    report.section("Beside real cells").bullets(findings)
    report.table(
        means[SHOWN_SCORES],
        "Mean over targets. r2 of the means is high for whatever looks like a cell: read the shifts. Shared controls "
        "lend the prediction and the truth the same noise, split ones do not. Of energy_distance 0 is best, of the "
        "others 1. 'half against half' scores one half of the real cells as a prediction of the other; it carries the "
        "noise of half the cells, so that a smooth predictor may exceed it.",
        formats=".3f",
    )
    figures = {}
    for score, label, higher in (
        ("r2_shift_split", "R^2 of the shift, split controls", True),
        ("energy_distance", "Energy distance", False),
    ):
        groups = table[score].drop("mean", level="group").unstack("method").dropna(axis=1, how="all")
        figures[score] = plots.method_scores(groups, label=label, reference=HALF, higher_is_better=higher)
        report.figure(
            figures[score], f"{label} of each method on each target.", alt="A bar for each method, points for targets."
        )
    for place, (target, (real, predicted)) in enumerate([*shifts.items()][:SHOWN_TARGETS], 1):
        figure = plots.shift_scatter(real, predicted, genes=genes)
        report.figure(figure, f"Shift of each gene's mean, {target}: predicted and real.", alt="Genes on a diagonal.")
        figures[f"shift_{place}"] = figure
    for name, reason in left_out.items():
        report.paragraph(f"{name} does not apply: {reason}.")
    report.note(
        "References never see the real cells of a target. Whether the model did is not in its file: where it was "
        "trained on them, its scores tell how well it remembers, not how well it predicts. Model and 'no change' keep "
        "the scatter of cells; other references move all controls alike."
    )
    return Told(figures, findings)


def dose_section(report: Report, curves: pd.DataFrame, *, covariate: str, what: str) -> Told:
    """Expected expression over the dose.

    Args:
        report: The report.
        curves: What `dose_response` returns.
        covariate: Name of the dose.
        what: The perturbation in words.
    """
    wide = {name: curves.pivot_table(name, "gene", "dose", sort=False) for name in ("mean", "low", "high")}
    genes = [*wide["mean"].index]
    largest = curves.iloc[int(curves["log2_fold_change"].abs().to_numpy().argmax())]
    findings = [
        f"Of the genes shown, {largest['gene']} moves most: a log2 fold change of {largest['log2_fold_change']:+.2f} "
        f"at {covariate} {largest['dose']:g}."
    ]
    report.section("Response to the dose").bullets(findings)
    figure = dose_response(
        wide["mean"].columns.to_numpy(),
        wide["mean"],
        wide["low"],
        wide["high"],
        genes=genes,
        title=f"Response to the {covariate}",
    )
    report.figure(
        figure,
        f"Expected counts under {what} over {covariate}, in the same cells: mean, and where 90 % of the cells and "
        "posterior draws lie. That is not the error of the curve: doses that were not measured are interpolated by the "
        "network, and beyond the measured ones it extrapolates.",
        alt="A curve with a band for each gene.",
    )
    return Told({"dose_response": figure}, findings)


def augmentation_section(report: Report, real: AnnData, augmented: AnnData, condition: str, *, held_out: bool) -> Told:
    """How many cells of each level there are now, and whether the generated ones look like real ones.

    Args:
        report: The report.
        real: Real cells to compare with, counts in ``.X``.
        augmented: What `augment` returns.
        condition: Name of the condition.
        held_out: Whether the model never saw the real cells.
    """
    generated = augmented[augmented.obs["generated"].to_numpy(dtype=bool)]
    numbers = pd.crosstab(augmented.obs[condition], augmented.obs["generated"].astype(bool))
    numbers.columns = pd.Index(["generated" if made else "real" for made in numbers.columns])
    findings = [f"{generated.n_obs:,} cells were generated beside {augmented.n_obs - generated.n_obs:,} real ones."]
    report.section("Cells").bullets(findings)
    report.table(numbers, f"Cells of each level of {condition}.")
    alike = generated.obs[condition].astype(str).unique()
    chosen = real[real.obs[condition].astype(str).isin(alike)]
    statistics = [GeneStatistics.of(sparse.csr_matrix(part.X)) for part in (chosen, generated)]
    observed, drawn = statistics
    moments = plots.mean_variance((observed.mean, observed.variance), {"generated": (drawn.mean, drawn.variance)})
    zeros = plots.zero_fraction(observed.zero_fraction, {"generated": drawn.zero_fraction})
    source = "real cells that the model never saw" if held_out else "the real cells that the model was given"
    report.figure(
        moments,
        f"Mean and variance of each gene in generated cells and in {source}, of the augmented levels. The mix of "
        "levels differs between the two.",
        alt="Two clouds of genes on logarithmic axes.",
    )
    report.figure(zeros, "Share of cells without a count, in the same cells.", alt="Genes along a diagonal.")
    return Told({"mean_variance": moments, "zero_fraction": zeros}, findings)


def fidelity_section(report: Report, table: pd.DataFrame, *, held_out: bool) -> Told:
    """Scores of generated counts, beside those of real ones.

    Args:
        report: The report.
        table: What `fidelity` returns.
        held_out: Whether the model never saw the real cells.
    """
    report.section("Do generated cells look real?")
    auc = table["auc"].unstack("source")
    worst = str(auc["generated"].idxmax())
    made, reached = auc["generated"][worst], auc["real"][worst]
    findings = [
        f"A linear classifier tells generated from real cells with an area under the curve of up to "
        f"{made:.2f} ({worst}; real from other real cells: {reached:.2f}; 0.5 is "
        "chance)."
    ]
    report.bullets(findings)
    report.table(
        table.reset_index().set_index("group").rename_axis("level"),
        "Rank correlation and slope over genes of mean, variance and share of zeros; correlation of gene-gene "
        "correlations; area under the curve of a classifier (0.5 is best); numbers of cells. 'real' scores other real "
        "cells in place of generated ones: what can be reached.",
        formats={name: ".3f" for name in table.columns if not name.endswith("cells")},
    )
    report.note(
        "Few cells make correlations noisy on both sides, and an area of 0.5 does not prove two distributions equal. "
        + (
            ""
            if held_out
            else "The real cells here are those that the model was given: from the posterior each new cell starts at "
            "one of them, and looks better than it would beside cells that were held out (--test)."
        )
    )
    return Told({}, findings)


def classifier_section(report: Report, accuracies: pd.DataFrame, *, condition: str, num_test: int, rarest: int) -> Told:
    """Whether a classifier learns more from augmented cells, scored on real ones.

    Args:
        report: The report.
        accuracies: Balanced accuracy of each repeat (rows) by what was trained on (columns).
        condition: What is told apart.
        num_test: Number of test cells.
        rarest: How many of them are of the rarest level.
    """
    means, errors = accuracies.mean(), accuracies.sem()
    findings = [
        f"Balanced accuracy on {num_test:,} real test cells: "
        + ", ".join(f"{name} {plus_minus(*pair)}" for name, *pair in zip(accuracies, means, errors, strict=True))
        + "."
    ]
    report.section(f"A classifier of {condition}").bullets(findings)
    figure = plots.estimates(
        [*accuracies.columns],
        means,
        errors,
        xlabel=f"Balanced accuracy on {num_test:,} real test cells",
        title="What the classifier was trained on",
    )
    report.figure(
        figure,
        f"Logistic regression on principal components, trained on the real cells (none), on these with copies of the "
        f"rare ones (oversampled), and on these with generated ones (augmented); errors over {len(accuracies)} draws.",
        alt="A row for each set of training cells.",
    )
    report.note(
        "The classifier weighs the levels alike in any case, so that balance alone gains nothing. The errors are those "
        f"of the draws and not of the test cells, of which the rarest level has {rarest:,}: a difference within about "
        f"{0.5 / max(rarest, 1) ** 0.5:.2f} of that level's accuracy may be chance."
    )
    return Told({"classifier": figure}, findings)
