"""How a latent space agrees with labels, and how well it mixes batches."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.neighbors import NearestNeighbors


@dataclass(frozen=True)
class LabelAgreement:
    """Agreement of a latent space with labels.

    Attributes:
        ari: Adjusted Rand index of k-means with as many clusters as labels; 1 is perfect, 0 is chance.
        nmi: Normalised mutual information of the same clusters; 1 is perfect.
        purity: Mean share of a cell's nearest neighbours that have its label.
        chance: The same share among all other cells.
    """

    ari: float
    nmi: float
    purity: float
    chance: float


def label_agreement(
    latent: Float[np.ndarray, "cells latent"],
    labels: Int[np.ndarray, " cells"],
    *,
    num_neighbours: int = 15,
    seed: int = 0,
) -> LabelAgreement:
    """Compare clusters and neighbours in a latent space with labels.

    Args:
        latent: One row per cell.
        labels: Codes of the labels; cells with a negative code have none and are left out.
        num_neighbours: Neighbours of a cell, itself excluded.
        seed: Seed of k-means.

    Raises:
        ValueError: If fewer than two labels, or too few cells, are left.

    Example:
        >>> import numpy as np
        >>> points = np.repeat(np.eye(2), 20, axis=0)
        >>> label_agreement(points, np.repeat([0, 1], 20)).ari
        1.0
    """
    latent, labels = latent[labels >= 0], labels[labels >= 0]
    kinds = np.unique(labels)
    if len(kinds) < 2 or len(labels) <= num_neighbours:
        raise ValueError(
            f"expected at least two labels and more than {num_neighbours} labelled cells, got {len(kinds)} labels and "
            f"{len(labels)} cells"
        )
    clusters = KMeans(len(kinds), n_init=10, random_state=seed).fit_predict(latent)
    same = labels[_neighbours(latent, num_neighbours)] == labels[:, None]
    return LabelAgreement(
        float(adjusted_rand_score(labels, clusters)),
        float(normalized_mutual_info_score(labels, clusters)),
        float(same.mean()),
        _chance(labels),
    )


def batch_excess(
    latent: Float[np.ndarray, "cells latent"],
    batches: Int[np.ndarray, " cells"],
    labels: Int[np.ndarray, " cells"],
    *,
    num_neighbours: int = 15,
) -> float:
    """Share of a cell's neighbours from its own batch above chance, within each label, weighted by cells.

    0 is perfect mixing. Labels found in one batch alone, or in too few cells, cannot mix and are left out.

    Args:
        latent: One row per cell.
        batches: Codes of the batches.
        labels: Codes of the labels; cells with a negative code are left out.
        num_neighbours: Neighbours of a cell among those of its label, itself excluded.

    Raises:
        ValueError: If no label can mix.
    """
    excess, weights = [], []
    for label in np.unique(labels[labels >= 0]):
        cells = labels == label
        inside = batches[cells]
        if len(np.unique(inside)) < 2 or len(inside) <= num_neighbours:
            continue
        same = inside[_neighbours(latent[cells], num_neighbours)] == inside[:, None]
        excess.append(same.mean() - _chance(inside))
        weights.append(len(inside))
    if not weights:
        raise ValueError("expected a label with more cells than neighbours in at least two batches, got none")
    return float(np.average(excess, weights=weights))


def _neighbours(latent: Float[np.ndarray, "cells latent"], number: int) -> Int[np.ndarray, "cells neighbours"]:
    # Without a query, scikit-learn leaves each point out of its own neighbours.
    return NearestNeighbors(n_neighbors=number).fit(latent).kneighbors(return_distance=False)


def _chance(codes: Int[np.ndarray, " cells"]) -> float:
    _, sizes = np.unique(codes, return_counts=True)
    return float((sizes * (sizes - 1)).sum() / (len(codes) * (len(codes) - 1)))
