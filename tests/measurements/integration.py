"""How batches mix and labels stay apart without a condition, with it, and with an adversary of each weight."""

import argparse
from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.decomposition import PCA

import genailab_pyro as glp

SCORES = ["purity", "batch_excess", "ilisi", "ari"]
LATENT = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is asked for beside the cells."""
    parser.add_argument("--batch", default="batch", help="column of the batches")
    parser.add_argument("--labels", default="cell_type", help="column of the labels")
    parser.add_argument("--weights", type=float, nargs="*", default=[10.0], help="weights of the adversary")


def measure(
    adata: AnnData, *, batch: str, labels: str, weights: Sequence[float], seeds: int, epochs: int
) -> pd.DataFrame:
    """One row of scores for each latent and seed."""

    def scores(latent: np.ndarray) -> dict[str, float]:
        found = glp.evaluation.integration_scores(latent, adata.obs[batch], adata.obs[labels])
        return {name: getattr(found, name) for name in SCORES}

    components = PCA(30, random_state=0).fit_transform(glp.evaluation.log_normalise(adata.X))
    rows = {("principal components", 0): scores(components)}
    for seed in range(seeds):
        rows["VAE", seed] = scores(_latent(adata, [], 0.0, seed, epochs))
        for weight in (0.0, *weights):
            rows[f"CVAE, weight {weight:g}", seed] = scores(_latent(adata, [batch], weight, seed, epochs))
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["latent", "seed"])


def _latent(adata: AnnData, conditions: list[str], weight: float, seed: int, epochs: int) -> np.ndarray:
    cells = glp.register(adata, conditions=conditions)
    declare = glp.CVAE_NB if conditions else glp.VAE_NB
    vae = declare.from_registration(cells, latent_dim=LATENT, hidden_dims=[128], seed=seed)
    penalties = []
    if weight:
        levels = len(cells.registration.conditions[0].levels)
        penalties = [glp.ConditionAdversary(weight, LATENT, levels, seed=seed)]
    return glp.fit(vae, cells, penalties=penalties, max_epochs=epochs, seed=seed, progress=False).latent()
