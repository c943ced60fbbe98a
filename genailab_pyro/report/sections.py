"""Sections of a report that any fit can fill: training, health, latent space, predictive checks."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from matplotlib.figure import Figure

from genailab_pyro import plots
from genailab_pyro.data.cells import Cells
from genailab_pyro.evaluation import GeneStatistics
from genailab_pyro.plots.labels import binned, calibration_curve, confusion_matrix
from genailab_pyro.plots.numbers import plus_minus
from genailab_pyro.report.html import Report
from genailab_pyro.train.diagnosis import Diagnosis
from genailab_pyro.train.fitted import Fit

Figures = dict[str, Figure]


def data_section(report: Report, training: Cells, held_out: Cells | None, *paragraphs: str) -> Figures:
    """Which cells there were, and under which conditions."""
    report.section("Data", *paragraphs)
    parts = {"training": training} if held_out is None else {"training": training, "held-out": held_out}
    rows = {
        name: {
            "cells": len(cells),
            "genes": len(cells.registration.genes),
            "median counts per cell": float(np.median(cells.totals)),
        }
        for name, cells in parts.items()
    }
    report.table(
        pd.DataFrame.from_dict(rows, orient="index"), "The cells that were trained on and those that were not."
    )
    for position, condition in enumerate(training.registration.conditions):
        shown = {
            f"{name} cells": np.bincount(cells.conditions[:, position], minlength=len(condition.levels))
            for name, cells in parts.items()
        }
        table = pd.DataFrame(shown, index=pd.Index(condition.levels, name=condition.name))
        report.table(table, f"Cells in each level of the condition {condition.name}.")
    return {}


def held_out_section(report: Report, scores: pd.DataFrame, num_cells: int, num_particles: int) -> Figures:
    """How probable the cells are that a model never saw."""
    report.section(
        "Held-out likelihood",
        f"How probable the model finds the {num_cells:,} cells that it never saw, in nats (units of the natural "
        "logarithm) per cell; higher is better. The log-likelihood is bounded from below: loosely by the ELBO, which "
        f"training maximises, and tightly by an importance-weighted bound of {num_particles} draws. The numbers depend "
        "on the genes and on the depth of the cells: compare them with those of another model on the same cells and "
        "genes, by 'genailab-pyro evaluate', and with nothing else.",
    )
    shown = pd.DataFrame(
        {
            title: [plus_minus(*pair) for pair in scores[[name, f"{name}_standard_error"]].to_numpy()]
            for name, title in {"elbo": "ELBO", "log_likelihood": "log-likelihood"}.items()
        },
        index=scores.index,
    )
    report.table(shown, "Nats per cell: mean over held-out cells ± its standard error.")
    return {}


def condition_map(report: Report, xy: Float[np.ndarray, "cells 2"], values: pd.Series, *, told: bool = True) -> Figures:
    """The map of the latent space, coloured by a condition, which the model was told or not."""
    name = str(values.name)
    meaning = (
        f"The model is told {name} beside the latent, so the latent has no need to hold it. Where the same kinds of "
        f"cells occur at every {name}, mixed colours mean that it does not; patches of one colour, that it still does."
        if told
        else f"The model is not told {name}: where cells differ with it, the latent shows it."
    )
    figure = plots.embedding(xy, values, title=f"Latent space by {name}", name=name)
    report.figure(
        figure, f"UMAP of the latent, coloured by {name}. {meaning}", alt=f"A scatter of cells, coloured by {name}."
    )
    return {f"umap_{_file_name(name)}": figure}


def depth_map(report: Report, xy: Float[np.ndarray, "cells 2"], cells: Cells) -> Figures:
    """The map of the latent space, coloured by the depth of the cells, where there is nothing else to colour by."""
    figure = plots.embedding(
        xy, np.log10(cells.totals), title="Latent space by total counts", name="log10 of total counts per cell"
    )
    report.figure(
        figure,
        "UMAP of the latent, coloured by the total counts of each cell. Name a column of labels or a condition to see "
        "more than the depth.",
        alt="A scatter of cells, coloured by total counts.",
    )
    return {"umap": figure}


def training_section(report: Report, name: str, fit: Fit) -> Figures:
    """How the bound and its two parts moved over the epochs."""
    report.section(
        "Training",
        f"{name} was trained for {len(fit.history)} epochs. The ELBO, the bound that is maximised, is minus the sum of "
        "two costs: the reconstruction (how badly the counts are explained) and the KL (how far the latents of single "
        "cells depart from the prior). "
        + (
            "Validation cells are not trained on; the weights of the epoch with their highest ELBO are kept."
            if fit.training.validation_fraction
            else "There were no validation cells; the weights of the last epoch are kept."
        ),
    )
    figure = fit.plot()
    report.figure(
        figure,
        "ELBO, reconstruction and KL over the epochs, in nats per cell.",
        alt="Three panels of training and validation curves over epochs.",
    )
    return {"training": figure}


def health_section(report: Report, diagnosis: Diagnosis) -> Figures:
    """What the diagnosis found."""
    report.section("Health of the fit").bullets(diagnosis.verdict)
    use = diagnosis.latents
    if not len(use.kl) or not np.isfinite(use.kl).all():
        return {}
    figure = plots.kl_per_latent(use.kl, active=use.active)
    report.figure(
        figure,
        "Mean KL of each latent, in nats: how much it tells about a cell. A latent near zero is not used.",
        alt="A bar for each latent.",
    )
    return {"kl_per_latent": figure}


def latent_section(
    report: Report,
    xy: Float[np.ndarray, "cells 2"],
    labels: pd.Series | None,
    scores: pd.DataFrame | None,
    *,
    learned: bool = False,
) -> Figures:
    """A map of the latent space, coloured by labels that the model never saw, or has learned from."""
    report.section(
        "Latent space",
        "Each point is a cell, placed by a UMAP of its latent. Distances between far groups carry little meaning in "
        "such a map; neighbourhoods do.",
    )
    figures = {}
    if labels is not None:
        figure = plots.embedding(xy, labels, title="Latent space by label", name=str(labels.name))
        report.figure(
            figure,
            f"UMAP of the latent, coloured by {labels.name}, "
            + ("from which the model has learned." if learned else "which the model never saw."),
            alt="A scatter of cells in which colours form groups.",
        )
        figures["umap"] = figure
    if scores is not None:
        report.table(
            scores,
            "Agreement with the labels: adjusted Rand index and normalised mutual information of k-means with as many "
            "clusters as labels, and the share of a cell's 15 nearest neighbours that have its label (with what chance "
            "would give).",
            formats=".3f",
        )
    return figures


def label_section(
    report: Report,
    told: Mapping[str, Float[np.ndarray, "cells labels"]],
    labels: Int[np.ndarray, " cells"],
    names: Sequence[str],
    *,
    column: str,
    chance: float,
) -> Figures:
    """How well held-out cells are told their labels, and whether the probabilities mean what they say.

    Args:
        report: Where it is written.
        told: Probabilities of the labels of each cell, by the classifier that gives them; the first is the model's own.
        labels: Codes of the labels that the cells have.
        names: Names of the labels.
        column: Name of the labels.
        chance: Share of the cells that have the label most frequent in training.
    """
    report.section(
        "Labels",
        f"The model tells {column} of a cell from its counts. Here it is asked about the {len(labels):,} held-out "
        f"cells whose {column} is known, without being shown it. Telling the most frequent label of the training cells "
        f"each time would be right in {chance:.1%}.",
    )
    scores = pd.DataFrame.from_dict({name: label_scores(each, labels) for name, each in told.items()}, orient="index")
    report.table(
        scores,
        "Accuracy is the share of cells told right, with its standard error; balanced accuracy the mean of that share "
        "over the labels; log score the mean log-probability of the right label, in nats. The calibration error is the "
        "mean distance between the probability of the label that is told and the share of right ones, over ten bins of "
        "that probability; the last column is what it would be on as many cells if the probabilities meant what they "
        "say.",
        formats={str(name): ".3f" for name in scores if name != "accuracy"},
    )
    own = next(iter(told.values())).argmax(1)
    counts = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(counts, (labels, own), 1)
    matrix = confusion_matrix(counts, names)
    report.figure(
        matrix,
        f"Of the held-out cells with each {column}, the percentage that is told as each. Labels that lie close to each "
        "other are taken for one another.",
        alt="A square of shades that is darkest along its diagonal where labels are told right.",
    )
    curves = calibration_curve({name: (each.max(1), each.argmax(1) == labels) for name, each in told.items()})
    report.figure(
        curves,
        "How often the label that is told is right, by the probability that it is told with: on the dashed line, "
        "probabilities mean what they say; under it, they are too sure. Bars are 95 % intervals.",
        alt="Curves of the share of right labels along a diagonal, and the number of cells of each point.",
    )
    return {"confusion_matrix": matrix, "label_calibration": curves}


def label_scores(
    probabilities: Float[np.ndarray, "cells labels"], labels: Int[np.ndarray, " cells"]
) -> dict[str, str | float]:
    r"""Accuracy, balanced accuracy, log score and calibration error of the probabilities of labels.

    With the cells in ten bins b of equal width by the probability of their most probable label, of which
    :math:`\mathrm{conf}_b` is the mean and :math:`\mathrm{acc}_b` the share that is right, the calibration error is

    .. math:: \mathrm{ECE} = \sum_b \frac{n_b}{n} |\mathrm{acc}_b - \mathrm{conf}_b|.

    (Guo et al. take 15 bins; few cells call for fewer.) It is above zero for true probabilities, too, the more so the
    fewer cells: beside it stands its mean over 200 draws of which labels are right, by the probabilities.

    Args:
        probabilities: Each row sums to one.
        labels: Codes of the labels that the cells have.

    References:
        Guo, Pleiss, Sun, Weinberger (2017). On calibration of modern neural networks. doi:10.48550/arXiv.1706.04599

    Example:
        >>> label_scores(np.array([[0.75, 0.25], [0.25, 0.75]]), np.array([0, 1]))["calibration error"]
        0.25
    """
    right, sure = probabilities.argmax(1) == labels, np.minimum(probabilities.max(1), 1.0)
    by_label = [right[labels == label].mean() for label in np.unique(labels)]
    of_each = np.maximum(np.take_along_axis(probabilities, labels[:, None], 1), np.finfo(float).tiny)
    draws = np.random.default_rng(0).random((200, len(sure))) < sure
    share = right.mean()
    return {
        "accuracy": plus_minus(float(share), float((share * (1 - share) / len(right)) ** 0.5)),
        "balanced accuracy": float(np.mean(by_label)),
        "log score": float(np.log(of_each).mean()),
        "calibration error": _calibration_error(sure, right),
        "expected if calibrated": float(np.mean([_calibration_error(sure, draw) for draw in draws])),
    }


def _calibration_error(sure: Float[np.ndarray, " cells"], right: Bool[np.ndarray, " cells"]) -> float:
    mean, share, counts = binned(sure, right, 10)
    return float(counts @ np.abs(share - mean) / counts.sum())


def predictive_section(report: Report, fits: Mapping[str, Fit], cells: Cells, *, seed: int = 0) -> Figures:
    """Whether counts drawn from the models look like real ones, gene by gene."""
    observed = GeneStatistics.of(cells.counts_matrix())
    drawn = {name: GeneStatistics.of(fit.generate(2000, seed=seed).X) for name, fit in fits.items()}
    report.section(
        "Do generated cells look real?",
        "From each model 2,000 new cells were drawn: a library, a latent from the prior, counts. Genes on the "
        "diagonal, or on the cloud of real genes, are reproduced.",
    )
    moments = plots.mean_variance(
        (observed.mean, observed.variance), {name: (item.mean, item.variance) for name, item in drawn.items()}
    )
    report.figure(
        moments,
        "Mean and variance of each gene, in counts, of real and of generated cells; the line is the Poisson law.",
        alt="Two clouds of genes on logarithmic axes, above the Poisson line.",
    )
    zeros = plots.zero_fraction(observed.zero_fraction, {name: item.zero_fraction for name, item in drawn.items()})
    report.figure(
        zeros,
        "Share of cells without a count of the gene: real against generated.",
        alt="Genes along the diagonal from none to all zeros.",
    )
    rows = {
        name: {
            "log mean": _correlation(np.log10(observed.mean + 1e-3), np.log10(item.mean + 1e-3)),
            "log variance": _correlation(np.log10(observed.variance + 1e-3), np.log10(item.variance + 1e-3)),
            "zero fraction": _correlation(observed.zero_fraction, item.zero_fraction),
        }
        for name, item in drawn.items()
    }
    report.table(
        pd.DataFrame.from_dict(rows, orient="index"),
        "Correlation over genes between real and generated statistics; 1 is perfect.",
        formats=".3f",
    )
    return {"mean_variance": moments, "zero_fraction": zeros}


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first, second)[0, 1])
