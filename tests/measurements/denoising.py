"""How likely molecules that were held back are under expression that was learned from the others."""

import argparse

import pandas as pd
from anndata import AnnData

import genailab_pyro as glp
from tests.benchmarks import scvi_tools


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing is asked for beside the cells."""


def measure(adata: AnnData, *, seeds: int, epochs: int) -> pd.DataFrame:
    """One row for each method and seed: Poisson log-likelihood in nats per cell, and how far it is from the best."""
    scvi_too, rows = scvi_tools.available(), {}
    for seed in range(seeds):
        kept, held_back = glp.data.thin(adata, 0.5, seed=seed)
        cells = glp.register(kept)
        vae = glp.CVAE_NB.from_registration(cells, latent_dim=10, hidden_dims=[128], seed=seed)
        fit = glp.fit(vae, cells, max_epochs=epochs, seed=seed, progress=False)
        shares = {"CVAE_NB": fit.expression(num_samples=100)}
        if scvi_too:
            shares["SCVI"] = scvi_tools.expression(kept, seed)
        rows[seed] = glp.evaluation.denoising_scores(shares, held_back, references=kept.X)
    return pd.concat(rows, names=["seed"]).swaplevel().sort_index()
