"""Latents and denoised expression put beside the counts that they came from."""

import warnings
from collections.abc import Mapping

import numpy as np
from anndata import AnnData
from jaxtyping import Float

from genailab_pyro.threads import threads_kept
from genailab_pyro.train.fitted import Fit


def annotate(fit: Fit, adata: AnnData, *, conditions: Mapping[str, str] | None = None, seed: int = 0) -> AnnData:
    """A copy of the cells with their latent in ``obsm["X_vae"]`` and expression in ``layers["expression"]``.

    Expression is given on the scale of the data: proportions times the median library, so that it reads as counts of
    a cell of median depth.

    Args:
        fit: The fitted model.
        adata: The cells, with at least the fit's genes; the copy holds the fit's genes in the fit's order.
        conditions: Levels to decode under, such as ``{"batch": "b1"}``.
        seed: Seed of the posterior draws.

    Returns:
        The copy; ``uns["expression_library"]`` holds the library to which expression is scaled.

    Raises:
        ValueError: If the data do not fit the registration.
    """
    cells = fit.bind(adata)
    annotated = adata[:, [*fit.registration.genes]].copy()
    library = float(np.median(cells.library))
    annotated.obsm["X_vae"] = fit.latent(cells)
    annotated.layers["expression"] = fit.expression(cells, conditions=conditions, seed=seed) * np.float32(library)
    annotated.uns["expression_library"] = library
    return annotated


def umap(latent: Float[np.ndarray, "cells latent"], *, seed: int = 0) -> Float[np.ndarray, "cells 2"]:
    """UMAP of a latent space on its 15 nearest neighbours, through scanpy.

    Args:
        latent: One row per cell.
        seed: Seed of the layout.

    References:
        McInnes, Healy, Melville (2018). UMAP. doi:10.48550/arXiv.1802.03426
    """
    import scanpy as sc  # takes seconds to import, which only a map needs

    cells = AnnData(obsm={"X_vae": latent}, shape=(len(latent), 0))
    neighbours = min(15, len(latent) - 1)
    with threads_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # UMAP says that a seed leaves it one thread
        # Exact neighbours: those that UMAP approximates above 8,000 cells fail with scipy's newer sparse arrays.
        sc.pp.neighbors(cells, n_neighbors=neighbours, use_rep="X_vae", random_state=seed, transformer="sklearn")
        sc.tl.umap(cells, random_state=seed)
    return cells.obsm["X_umap"]
