"""The report and the model card of one run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from genailab_pyro import estimators
from genailab_pyro.analysis import calibrate, label_probabilities, umap
from genailab_pyro.data.cells import Cells
from genailab_pyro.evaluation import batch_excess, label_agreement
from genailab_pyro.model.heads import AnnotationHead, LabelHead
from genailab_pyro.plots.numbers import plus_minus
from genailab_pyro.report import sections
from genailab_pyro.report.card import model_card
from genailab_pyro.report.html import Report
from genailab_pyro.train.diagnosis import Diagnosis
from genailab_pyro.train.fitted import Fit

# A map of more takes minutes and shows nothing more.
MOST_MAPPED = 8_000
FEWEST_LABELLED = 16  # a cell and its 15 neighbours
FEWEST_CALIBRATED = 40  # in each half of them a temperature is fitted


@dataclass(frozen=True, eq=False)
class Findings:
    """What a run gave, ready to be told.

    Attributes:
        name: Name of the model.
        source: Where the cells came from, such as the name of a file.
        fit: The fit.
        training: The cells it was trained on.
        held_out: The cells it never saw, or None.
        annotated: All cells with ``obsm["X_vae"]``.
        scores: One row of held-out scores, or None.
        num_particles: Draws of the importance-weighted bound.
        diagnosis: Signs of health.
    """

    name: str
    source: str
    fit: Fit
    training: Cells
    held_out: Cells | None
    annotated: AnnData
    scores: pd.DataFrame | None
    num_particles: int
    diagnosis: Diagnosis

    @property
    def log_likelihood(self) -> str | None:
        """The held-out log-likelihood with its standard error, in nats per cell."""
        return None if self.scores is None else _estimate(self.scores, "log_likelihood")

    @property
    def learned(self) -> str | None:
        """Name of the labels that the model learns from and tells, or None."""
        labels = self.fit.registration.labels
        tells = any(isinstance(head, (AnnotationHead, LabelHead)) for head in self.fit.vae.heads)
        return labels.name if labels is not None and tells else None

    @cached_property
    def labelled(self) -> Cells | None:
        """The held-out cells whose label is known, where the model tells it; None where there are none."""
        cells = self.held_out
        if self.learned is None or cells is None or cells.labels is None or not (cells.labels >= 0).any():
            return None
        return cells.subset(cells.labels >= 0)

    @cached_property
    def told(self) -> Float[np.ndarray, "cells labels"] | None:
        """The probabilities of the labels of `labelled`."""
        return None if self.labelled is None else label_probabilities(self.fit, self.labelled).to_numpy()

    @property
    def accuracy(self) -> str | None:
        """Share of `labelled` that is told right, with its standard error."""
        cells, told = self.labelled, self.told
        if cells is None or told is None or cells.labels is None:
            return None
        return str(sections.label_scores(told, cells.labels)["accuracy"])

    @property
    def estimator(self) -> str:
        """Name of the gradient estimator."""
        return estimators.name_of(self.fit.estimator)


class Map(NamedTuple):
    """Cells in two dimensions.

    Attributes:
        cells: Positions of the cells on the map, in the data.
        xy: Their places.
    """

    cells: Int[np.ndarray, " mapped"]
    xy: Float[np.ndarray, "mapped 2"]


def map_cells(annotated: AnnData, *, seed: int) -> Map:
    """A UMAP of the latent, of all cells unless they are very many; then it goes to ``obsm["X_umap"]`` too.

    Args:
        annotated: Cells with ``obsm["X_vae"]``.
        seed: Seed of the layout, and of the choice of cells.
    """
    latent = annotated.obsm["X_vae"]
    cells = np.arange(len(latent))
    if len(latent) > MOST_MAPPED:
        cells = np.sort(np.random.default_rng(seed).choice(len(latent), MOST_MAPPED, replace=False))
    xy = umap(latent[cells], seed=seed)
    if len(cells) == len(latent):
        annotated.obsm["X_umap"] = xy
    return Map(cells, xy)


def run_report(findings: Findings, drawn: Map, *, seed: int) -> tuple[Report, dict[str, Figure]]:
    """The report of a run, and its figures by name.

    Args:
        findings: What the run gave.
        drawn: The map of its cells.
        seed: Seed of the clustering and of the cells that are generated.
    """
    fit, diagnosis = findings.fit, findings.diagnosis
    cells = fit.registration.bind(findings.annotated)
    agreement = _agreement(findings, cells, seed=seed)
    report = Report(f"{findings.name} on {findings.source}", _summary(findings), versions=_versions(fit))
    report.key_figures(_key_figures(findings, agreement))
    figures = sections.data_section(report, findings.training, findings.held_out, _told(findings))
    if findings.scores is not None and findings.held_out is not None:
        figures |= sections.held_out_section(report, findings.scores, len(findings.held_out), findings.num_particles)
    figures |= sections.training_section(report, f"{findings.name} by the estimator '{findings.estimator}'", fit)
    figures |= _latent(report, findings, drawn, cells, agreement)
    if findings.learned is not None:
        figures |= _labels(report, findings, seed=seed)
    figures |= sections.predictive_section(report, {findings.name: fit}, findings.training, seed=seed)
    figures |= sections.health_section(report, diagnosis)
    return report, figures


def run_card(path: Path, findings: Findings, *, data: Mapping[str, object], model: Mapping[str, object]) -> Path:
    """The model card of a run.

    Args:
        path: The file to write.
        findings: What the run gave.
        data: Where the cells came from and how they were chosen.
        model: Settings of the model.
    """
    fit, schema = findings.fit, findings.fit.registration
    conditions = {item.name: ", ".join(item.levels) for item in schema.conditions}
    continuous = {item.name: f"mean {item.loc:.4g}, standard deviation {item.scale:.4g}" for item in schema.continuous}
    held_out: dict[str, object] = {"cells": "none: all cells were trained on, so there is no unbiased figure"}
    if findings.scores is not None and findings.held_out is not None:
        draws = f"{findings.num_particles} draws"
        held_out = {
            "cells": len(findings.held_out),
            "ELBO (nats per cell)": _estimate(findings.scores, "elbo"),
            f"log-likelihood, importance-weighted, {draws} (nats per cell)": findings.log_likelihood,
        }
    if findings.labelled is not None:
        told = f"share told right of {len(findings.labelled):,} with a known {findings.learned}"
        held_out[told] = findings.accuracy
    named = _listed([*conditions, *continuous]) or "no conditions"
    return model_card(
        path,
        f"{findings.name} on {findings.source}",
        data={
            **data,
            "training cells": len(findings.training),
            "genes": len(schema.genes),
            "conditions": conditions,
            "continuous covariates": continuous,
            f"labels ({'from which the model learns' if findings.learned else 'not seen by the model'})": None
            if schema.labels is None
            else schema.labels.name,
        },
        model={
            **model,
            "likelihood": type(fit.vae.likelihood).__name__,
            "prior": type(fit.vae.prior).__name__,
            "encoder": type(fit.vae.encoder).__name__,
            "parameters": sum(parameter.numel() for parameter in fit.vae.parameters()),
        },
        estimator={"name": findings.estimator, **asdict(fit.estimator)},
        training={"seed": fit.seed, "epochs": len(fit.history), **fit.training.to_json()},
        held_out=held_out,
        versions=_versions(fit),
        intended_use=f"Latent space, denoised expression and new cells for counts like those of {findings.source}, of "
        f"the same {len(schema.genes):,} genes, given {named}.",
        limits=[
            "It knows no genes and no levels of conditions beside those above, and no other tissue or technology.",
            "Held-out cells come from the same experiment as the training cells, unless a column was named to hold "
            "them out: their figures do not tell how the model does on new experiments.",
            "It is not for diagnosis.",
        ],
    )


def _summary(findings: Findings) -> str:
    scored = (
        "No cell was held out, so there is no score on unseen cells."
        if findings.held_out is None
        else f"It was scored on {len(findings.held_out):,} cells that it never saw."
    )
    return (
        f"A variational autoencoder, {findings.name}, was trained on the counts of {len(findings.training):,} cells "
        f"and {len(findings.fit.registration.genes):,} genes. {scored} The latent of every cell, its denoised "
        "expression and the split are in cells.h5ad beside this report, the model in model/."
    )


def _told(findings: Findings) -> str:
    fit, schema = findings.fit, findings.fit.registration
    names = [item.name for item in schema.conditions] + [item.name for item in schema.continuous]
    seen = bool(fit.vae.condition.output_dim)
    if not names:
        told = "The model sees the counts alone."
    elif seen:
        told = f"The model is told {_listed(names)} beside the counts."
    else:
        told = f"This model sees the counts alone; {_listed(names)} are used in this report only."
    if findings.learned is not None and findings.training.labels is not None:
        known = int((findings.training.labels >= 0).sum())
        told += f" It learns {findings.learned} from the {known:,} training cells of which it is known."
    elif schema.labels is not None and schema.labels.name not in names:
        told += f" It is not told {schema.labels.name}, which is used to judge the latent space."
    return told


def _key_figures(findings: Findings, agreement: pd.DataFrame | None) -> dict[str, object]:
    diagnosis = findings.diagnosis
    shown: dict[str, object] = {}
    if findings.log_likelihood is not None:
        shown["Held-out log-likelihood"] = (findings.log_likelihood, "nats per cell")
    shown["Active latents"] = (f"{diagnosis.active_units} of {len(diagnosis.latents.variance)}", "used by the decoder")
    if agreement is not None:
        purity, chance = agreement[["label_purity", "label_purity_by_chance"]].iloc[0]
        shown["Neighbours with the same label"] = (f"{purity:.0%}", f"{chance:.0%} by chance")
    if findings.accuracy is not None:
        shown["Held-out labels told right"] = (findings.accuracy, f"share of the cells with a known {findings.learned}")
    shown["Training time"] = (
        f"{findings.fit.history['seconds'].iloc[-1]:.0f} s",
        f"{len(findings.fit.history)} epochs",
    )
    return shown


def _agreement(findings: Findings, cells: Cells, *, seed: int) -> pd.DataFrame | None:
    """Agreement of the latent with the labels; None where the model knows them, or there are none to speak of."""
    labels = cells.labels
    if (
        findings.learned is not None
        or labels is None
        or (labels >= 0).sum() < FEWEST_LABELLED
        or len(np.unique(labels[labels >= 0])) < 2
    ):
        return None
    found = label_agreement(findings.annotated.obsm["X_vae"], labels, seed=seed)
    row = {"ari": found.ari, "nmi": found.nmi, "label_purity": found.purity, "label_purity_by_chance": found.chance}
    return pd.DataFrame.from_dict({findings.name: row}, orient="index")


def _latent(
    report: Report, findings: Findings, drawn: Map, cells: Cells, agreement: pd.DataFrame | None
) -> dict[str, Figure]:
    schema = findings.fit.registration
    obs = findings.annotated.obs.iloc[drawn.cells]
    names = [item.name for item in schema.conditions] + [item.name for item in schema.continuous]
    told = names if findings.fit.vae.condition.output_dim else []
    labels = None if schema.labels is None or schema.labels.name in told else obs[schema.labels.name]
    figures = sections.latent_section(report, drawn.xy, labels, agreement, learned=findings.learned is not None)
    if len(drawn.cells) < len(cells):
        report.paragraph(f"The maps show {len(drawn.cells):,} of the {len(cells):,} cells, drawn at random.")
    for condition in schema.conditions:
        figures |= sections.condition_map(report, drawn.xy, obs[condition.name].astype(str), told=bool(told))
    for covariate in schema.continuous:
        figures |= sections.condition_map(report, drawn.xy, obs[covariate.name].astype(float), told=bool(told))
    if not figures:
        figures |= sections.depth_map(report, drawn.xy, cells.subset(drawn.cells))
    for position, condition in enumerate(schema.conditions):
        if cells.labels is not None and schema.labels is not None and condition.name != schema.labels.name:
            _mixing(report, findings, cells, position)
    return figures


def _labels(report: Report, findings: Findings, *, seed: int) -> dict[str, Figure]:
    """How well labels are told on the held-out cells that have one, as trained and with one temperature."""
    cells, own, schema = findings.labelled, findings.told, findings.fit.registration.labels
    if cells is None or own is None:
        report.section(
            "Labels", f"No held-out cell has a known {findings.learned}, so there is no score on unseen cells."
        )
        return {}
    assert cells.labels is not None
    assert schema is not None
    told = {"as trained": own}
    if len(cells) >= FEWEST_CALIBRATED:
        told["with a temperature"] = _calibrated(findings.fit, cells, seed=seed)
    known = findings.training.labels
    assert known is not None
    frequent = np.bincount(known[known >= 0]).argmax()
    figures = sections.label_section(
        report, told, cells.labels, schema.levels, column=schema.name, chance=float((cells.labels == frequent).mean())
    )
    if len(told) > 1:
        report.paragraph(
            "The second line divides the logits by one number, the temperature, which is fitted to one half of these "
            "cells for the other half. genailab_pyro.analysis.calibrate(fit, cells) gives the fit that has it."
        )
    return figures


def _calibrated(fit: Fit, cells: Cells, *, seed: int) -> Float[np.ndarray, "cells labels"]:
    """Probabilities of the labels of each half of some cells, with the temperature that suits the other half."""
    order = np.random.default_rng(seed).permutation(len(cells))
    half = len(cells) // 2
    blocks = [
        label_probabilities(calibrate(fit, cells.subset(other), seed=seed), cells.subset(mine), seed=seed).to_numpy()
        for mine, other in ((order[:half], order[half:]), (order[half:], order[:half]))
    ]
    return np.concatenate(blocks)[np.argsort(order)]


def _mixing(report: Report, findings: Findings, cells: Cells, position: int) -> None:
    schema = findings.fit.registration
    codes, labels = cells.conditions[:, position], cells.labels
    assert labels is not None
    assert schema.labels is not None
    name = schema.conditions[position].name
    try:
        excess = batch_excess(findings.annotated.obsm["X_vae"], codes, labels)
    except ValueError:
        return
    report.paragraph(
        f"Mixing of {name}: of the 15 nearest neighbours that a cell has among those of its {schema.labels.name}, the "
        f"share from its own {name} is {100 * excess:.1f} percentage points above chance. 0 is perfect mixing, which "
        "is wanted of a technical difference; one that is real biology should not be mixed away."
    )


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _versions(fit: Fit) -> dict[str, object]:
    return {**fit.versions, "seed": fit.seed, "device": str(fit.device), "torch threads": torch.get_num_threads()}


def _estimate(scores: pd.DataFrame, column: str) -> str:
    return plus_minus(*scores[[column, f"{column}_standard_error"]].iloc[0])
