"""How well the shift of each cell type under a perturbation is predicted that was never seen in that type."""

import argparse

import numpy as np
import pandas as pd
from anndata import AnnData

import genailab_pyro as glp
from genailab_pyro.evaluation import PerturbationTask, log_normalise, perturbation_table, score_references


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is asked for beside the cells."""
    parser.add_argument("--condition", required=True, help="column of the perturbations")
    parser.add_argument("--control", default="control", help="its level without a perturbation")
    parser.add_argument("--perturbed", required=True, help="its level that is predicted")
    parser.add_argument("--labels", default="cell_type", help="column of the cell types")
    parser.add_argument("--least", type=float, default=0.01, help="share of the cells that a gene is seen in, at least")
    parser.add_argument("--weight", type=float, default=100.0, help="weight of the alignment of latents")


def measure(
    adata: AnnData,
    *,
    condition: str,
    control: str,
    perturbed: str,
    labels: str,
    least: float,
    weight: float,
    seeds: int,
    epochs: int,
) -> pd.DataFrame:
    """One row of scores for each method, as means over types and seeds, and for each type."""
    adata = adata[:, np.asarray((adata.X > 0).mean(0)).ravel() >= least].copy()
    tables = {}
    for seed in range(seeds):
        for kind in sorted(adata.obs[labels].unique()):
            ofkind = (adata.obs[labels] == kind).to_numpy()
            training = adata[~(ofkind & (adata.obs[condition] == perturbed).to_numpy())].copy()
            controls = adata[ofkind & (adata.obs[condition] == control).to_numpy()].copy()
            cells = glp.register(training, conditions=[condition], labels=labels)
            vae = glp.PerturbationVAE.from_registration(cells, condition, control=control, seed=seed)
            penalties = [glp.LatentAlignment(weight)]
            fit = glp.fit(vae, cells, penalties=penalties, max_epochs=epochs, seed=seed, progress=False)
            predicted = glp.predict(fit, controls, do={condition: perturbed}, noise="kept", seed=seed)
            task, real = PerturbationTask.hold_out(
                log_normalise(adata.X),
                adata.obs,
                (kind, perturbed),
                context=labels,
                perturbation=condition,
                control=control,
            )
            scores = score_references(task, real, models={"PerturbationVAE": log_normalise(predicted.X)})
            tables[seed, kind] = perturbation_table({kind: scores}).loc[kind]
    table = pd.concat(tables, names=["seed", "type", "method"])
    shown = ["r2", "pearson_shift", "pearson_shift_split", "rmse", "energy_distance"]
    of_all = pd.concat({"all": table[shown].groupby("method").mean()}, names=["type"])
    return pd.concat([of_all, table[shown].groupby(["type", "method"]).mean()])
