"""The main job: four fits on real counts, scored on cells that none of them saw, and a report of what came out."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from matplotlib.figure import Figure

from genailab_pyro import data, plots
from genailab_pyro.analysis import annotate, umap
from genailab_pyro.data.cells import Cells
from genailab_pyro.data.registration import register
from genailab_pyro.estimators import table
from genailab_pyro.evaluation import Estimate, LabelAgreement, compare_models, label_agreement
from genailab_pyro.experiments import EstimatorComparison, compare_estimators
from genailab_pyro.model.vae import CVAE_NB, CVAE_ZINB
from genailab_pyro.report import Report, model_card, sections
from genailab_pyro.report.comparison import comparison_section, findings
from genailab_pyro.report.folder import RunFolder
from genailab_pyro.report.terminal import say
from genailab_pyro.train.fit import fit_whole
from genailab_pyro.train.fitted import Fit
from genailab_pyro.train.settings import Training

LABELS = "bulk_labels"
MAIN = "NB pathwise"
# name of the fit: the model and the estimator
FITS = {
    MAIN: (CVAE_NB, "pathwise"),
    "NB score": (CVAE_NB, "score"),
    "NB score-graph": (CVAE_NB, "score-graph"),
    "ZINB pathwise": (CVAE_ZINB, "pathwise"),
}
GRADIENTS = ("pathwise", "pathwise-kl", "score", "score-graph", "score-graph-ema")


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured.

    Attributes:
        fits: The fits, by name.
        scores: Held-out ELBO and importance-weighted log-likelihood with paired differences (nats per cell), seconds,
            active latents and agreement with the labels; one row per fit.
        comparison: Gradients of several estimators on the trained model.
        folder: Where the report is.
    """

    fits: dict[str, Fit]
    scores: pd.DataFrame
    comparison: EstimatorComparison
    folder: Path

    @property
    def findings(self) -> list[str]:
        """What the comparison of the estimators shows, a sentence each."""
        return findings(self.comparison)


def split_every_tenth(adata: AnnData) -> tuple[AnnData, AnnData]:
    """Training and held-out cells: held out is every cell whose position is a multiple of ten."""
    held_out = np.arange(adata.n_obs) % 10 == 0
    return adata[~held_out].copy(), adata[held_out].copy()


def run_demo(folder: str | Path, *, seed: int = 0, max_epochs: int | None = None, progress: bool = True) -> DemoResult:
    """Fit negative binomial and zero-inflated models to the embedded counts, by three estimators, and report.

    Args:
        folder: A new or empty folder, or one in which a demo of the same seed and epochs was interrupted: it goes on.
        seed: Seed of everything.
        max_epochs: Epochs of each fit; None for as many as `fit` chooses.
        progress: Whether to show a line of progress.

    Raises:
        FileExistsError: If the folder holds another job, or one that came to its end.
        KeyboardInterrupt: After Ctrl-C; the same call goes on.
    """
    settings = Training(max_epochs=max_epochs)
    out = RunFolder.of(folder, _config(settings, seed))
    training, held_out = split_every_tenth(data.preprocess(data.pbmc68k()))
    cells = register(training, labels=LABELS)
    fits = {}
    for name, (model, estimator) in FITS.items():
        if progress:
            say(f"Fitting {name}")
        vae = model.from_registration(cells, seed=seed)
        state = out.path / "state" / name.replace(" ", "-")
        fits[name] = fit_whole(vae, cells, estimator, run_folder=state, training=settings, seed=seed, progress=progress)
    test = cells.registration.bind(held_out)
    scores = score(fits, test, seed=seed)
    if progress:
        say(f"Comparing gradients on the trained model {MAIN}")
    main = fits[MAIN]
    compared = compare_estimators(main.vae, cells, GRADIENTS, checkpoints=("given",), particles=(), seed=seed)
    result = DemoResult(fits, scores, compared, out.path)
    _write(out, result, cells, test, seed=seed)
    return result


def score(fits: dict[str, Fit], test: Cells, *, seed: int) -> pd.DataFrame:
    """Held-out scores of each fit; labels are compared with the latent of training and held-out cells together."""
    scores = compare_models(fits, test, seed=seed)
    rows: dict[str, dict[str, float]] = {}
    for name, fitted in fits.items():
        agreement = agreement_of(fitted, test, seed=seed)
        diagnosis = fitted.diagnose(seed=seed)
        rows[name] = {
            "seconds": float(fitted.history["seconds"].iloc[-1]),
            "active_latents": diagnosis.active_units,
            "ari": agreement.ari,
            "nmi": agreement.nmi,
            "label_purity": agreement.purity,
            "label_purity_by_chance": agreement.chance,
        }
    return scores.join(pd.DataFrame.from_dict(rows, orient="index"))


def agreement_of(fitted: Fit, test: Cells, *, seed: int) -> LabelAgreement:
    """Agreement of the latent of all cells with their labels."""
    cells = fitted.bind()
    latent = np.concatenate([fitted.latent(cells), fitted.latent(test)])
    return label_agreement(latent, np.concatenate([_labels(cells), _labels(test)]), seed=seed)


def _labels(cells: Cells) -> np.ndarray:
    if cells.labels is None:
        raise ValueError(f"expected cells registered with labels={LABELS!r}")
    return cells.labels


def _write(
    out: RunFolder,
    result: DemoResult,
    cells: Cells,
    test: Cells,
    *,
    seed: int,
) -> None:
    main = result.fits[MAIN]
    everything = data.preprocess(data.pbmc68k())
    annotated = annotate(main, everything, seed=seed)
    held_out = np.isin(annotated.obs_names, test.obs_names)
    annotated.obs["split"] = pd.Categorical(np.where(held_out, "held-out", "train"))
    annotated.obsm["X_umap"] = umap(annotated.obsm["X_vae"], seed=seed)
    report, figures = _report(result, cells, annotated, seed=seed)
    for name, figure in figures.items():
        out.figure(name, figure)
    out.metrics(result.scores)
    out.model(main)
    out.cells(annotated)
    _card(out.path / "MODEL_CARD.md", result, cells, test, seed)
    report.write(out.path / "report.html")


def _config(training: Training, seed: int) -> dict[str, Any]:
    return {
        "data": {"name": "pbmc68k", "held_out": "every tenth cell", "labels": LABELS},
        "fits": {name: {"model": model.__name__, "estimator": estimator} for name, (model, estimator) in FITS.items()},
        "training": training.to_json(),
        "seed": seed,
    }


def _report(result: DemoResult, cells: Cells, annotated: AnnData, *, seed: int) -> tuple[Report, dict[str, Figure]]:
    fits, scores = result.fits, result.scores
    best = scores.index[0]
    main = fits[MAIN]
    report = Report(
        "Four variational autoencoders on real counts",
        f"Counts of {annotated.n_obs} blood cells and {annotated.n_vars} genes (10x Genomics, ten cell types). Each "
        "model was trained on nine tenths of the cells and scored on the rest, which it never saw.",
        versions={**main.versions, "seed": seed, "torch threads": torch.get_num_threads()},
    )
    bound = _with_errors(scores, "log_likelihood").iloc[0]
    agreement = scores[["ari", "nmi", "label_purity", "label_purity_by_chance"]]
    ratio = float(result.comparison.at()["ratio"].sel(estimator="score"))
    report.key_figures(
        {
            "Best held-out log-likelihood": (bound, "nats per cell"),
            "Best model": best,
            "Neighbours of the same type": (f"{float(agreement['label_purity'][MAIN]):.0%}", MAIN),
            "Variance, score over pathwise": (f"{ratio:,.0f}-fold", "latent location, trained model"),
        }
    )
    figures = _held_out_section(report, result)
    figures |= comparison_section(report, result.comparison)
    figures |= sections.training_section(report, MAIN, main)
    figures |= sections.latent_section(report, annotated.obsm["X_umap"], annotated.obs[LABELS], agreement)
    counts = {name: fits[name] for name in (MAIN, "ZINB pathwise")}
    figures |= sections.predictive_section(report, counts, cells, seed=seed)
    figures |= sections.health_section(report, main.diagnose(seed=seed))
    return report, figures


def _held_out_section(report: Report, result: DemoResult) -> dict[str, Figure]:
    scores = result.scores
    report.section(
        "Held-out likelihood",
        "The log-likelihood is how probable a model finds cells that it never saw, in nats per cell; higher is "
        "better. It is bounded from below: loosely by the ELBO, tightly by an importance-weighted bound of 100 draws. "
        "Cells differ much more than models do, so the difference of two models is taken cell by cell, with its own "
        "standard error.",
    )
    shown = pd.DataFrame(
        {
            "ELBO": _with_errors(scores, "elbo"),
            "log-likelihood": _with_errors(scores, "log_likelihood"),
            "difference from the best": _with_errors(scores, "difference"),
            "active latents": scores["active_latents"].astype(int),
            "seconds of training": scores["seconds"].map("{:.0f}".format),
        }
    )
    report.table(shown, "Held-out scores in nats per cell, mean ± standard error over cells; best first.")
    figure = plots.compare_curves({name: fitted.history for name, fitted in result.fits.items()})
    report.figure(
        figure,
        "ELBO of the validation cells over the epochs, for each model and estimator.",
        alt="A curve for each fit; those by score functions lie below those by pathwise gradients.",
    )
    report.note(
        "The plain score function is expected to train poorly here: its gradient is right on average, but its scatter "
        "drowns it (next section). That score and score-graph come out alike is no accident: they differ in which "
        "costs they credit to a latent, and with one latent site all costs are downstream of it. (Their curves part "
        "in the end because rounding differs, and noise amplifies it. Scored are the weights of each curve's peak.)"
    )
    return {"validation_elbo": figure}


def _with_errors(scores: pd.DataFrame, column: str) -> pd.Series:
    return pd.Series(
        [str(Estimate(*pair)) for pair in scores[[column, f"{column}_standard_error"]].to_numpy()], index=scores.index
    )


def _card(path: Path, result: DemoResult, cells: Cells, test: Cells, seed: int) -> None:
    main = result.fits[MAIN]
    scores = result.scores
    model_card(
        path,
        f"{type(main.vae).__name__} of blood cells",
        data={
            "source": "10x Genomics, 68k PBMC, as reduced in scanpy; doi:10.1038/ncomms14049",
            "training cells": len(cells),
            "held-out cells": len(test),
            "genes": len(cells.registration.genes),
            "conditions": "none",
        },
        model={
            "class": type(main.vae).__name__,
            "latents": main.latent(test).shape[1],
            "likelihood": type(main.vae.likelihood).__name__,
            "prior": type(main.vae.prior).__name__,
            "encoder": type(main.vae.encoder).__name__,
        },
        estimator={**asdict(main.estimator), "objective": table().loc["pathwise", "objective"]},
        training={"seed": seed, "epochs": len(main.history), **main.training.to_json()},
        held_out={
            "ELBO (nats per cell)": _with_errors(scores, "elbo")[MAIN],
            "log-likelihood, 100 draws (nats per cell)": _with_errors(scores, "log_likelihood")[MAIN],
        },
        versions=main.versions,
        intended_use="To show what the package does; a latent space and denoised expression of these blood cells.",
        limits=[
            "It was trained on 630 cells of one donor and knows no other tissue or technology.",
            "It is not for diagnosis.",
        ],
    )
