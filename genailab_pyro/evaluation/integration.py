"""Whether a latent space mixes batches and keeps labels apart: the scores of scIB, beside purity and excess.

References:
    Luecken, Buettner, Chaichoompu, Danese, Interlandi, Mueller, Strobl, Zappia, Dugas, Colome-Tatche, Theis (2022).
    Benchmarking atlas-level data integration in single-cell genomics. doi:10.1038/s41592-021-01336-8
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_samples, silhouette_score
from sklearn.neighbors import NearestNeighbors

from genailab_pyro.evaluation.clusters import batch_excess, label_agreement
from genailab_pyro.threads import threads_kept

_COMPONENTS = 50
_TRIES, _TOLERANCE = 50, 1e-5  # of the search for a perplexity


@dataclass(frozen=True)
class IntegrationScores:
    """Scores of a latent space; but for `batch_excess` and `chance`, 1 is best.

    Attributes:
        purity: Mean share of a cell's 15 nearest neighbours that have its label.
        chance: The same share among all other cells.
        ari: Adjusted Rand index of k-means and labels.
        nmi: Normalised mutual information of k-means and labels.
        label_asw: (s + 1) / 2 of the mean silhouette width s of the labels.
        clisi: (L - median cLISI) / (L - 1) for L labels: 1 where neighbours have one label.
        graph_connectivity: See `graph_connectivity`.
        batch_excess: Share of a cell's neighbours from its own batch above chance, within labels; 0 is best.
        batch_asw: See `batch_silhouette`.
        ilisi: (median iLISI - 1) / (B - 1) for B batches: 1 where neighbours are of all batches alike.
        pcr: See `batch_variance_removed`; None without a reference.
    """

    purity: float
    chance: float
    ari: float
    nmi: float
    label_asw: float
    clisi: float
    graph_connectivity: float
    batch_excess: float
    batch_asw: float
    ilisi: float
    pcr: float | None


def integration_scores(
    latent: Float[np.ndarray, "cells latent"],
    batches: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    reference: Float[np.ndarray, "cells features"] | None = None,
    num_neighbours: int = 15,
    perplexity: float = 30.0,
    seed: int = 0,
) -> IntegrationScores:
    """Score how well a latent space mixes batches and keeps labels.

    The scores of scIB are those of scib-metrics 0.5 (`scib_scores` gives that package's own): exact neighbours in
    place of approximate ones is the one difference. They are not those of the package scib, which has LISI on a graph,
    silhouettes and PCR on other components, and an undirected graph. Mixing is scored by `batch_excess` within labels,
    too: iLISI is below 1 wherever batches have other shares of the labels, however well they are mixed.

    Args:
        latent: One row per cell, such as ``fit.latent()``.
        batches: Batch of each cell: names or codes.
        labels: Label of each cell: names or codes; cells with NaN or a negative code have none, and are left out of
            all scores.
        reference: The cells before integration, such as principal components of log-normalised counts, for `pcr`.
        num_neighbours: Neighbours of a cell, itself excluded, for purity and excess. The graph's connectivity counts
            the cell among as many, as scib-metrics does.
        perplexity: Of LISI, which looks at three times as many neighbours.
        seed: Seed of k-means and of principal components.

    Raises:
        ValueError: If lengths differ, values are not finite, or there are fewer than two batches or labels, too few
            cells, or no label in two batches.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> labels, batches = np.repeat([0, 1], 100), np.tile([0, 1], 100)
        >>> scores = integration_scores(rng.normal(size=(200, 2)) + 9 * labels[:, None], batches, labels)
        >>> scores.purity, round(scores.clisi, 3), bool(scores.ilisi > 0.8), bool(abs(scores.batch_excess) < 0.05)
        (1.0, 1.0, True, True)
    """
    matrix = _matrix("latent", latent, len(latent))
    batch_codes, label_codes = _codes("batches", batches, len(matrix)), _codes("labels", labels, len(matrix))
    before = None if reference is None else _matrix("reference", reference, len(matrix))
    known = label_codes >= 0
    matrix, batch_codes, label_codes = matrix[known], batch_codes[known], label_codes[known]
    if (batch_codes < 0).any():
        raise ValueError(
            f"expected a batch of every labelled cell, got {(batch_codes < 0).sum()} without; leave them out"
        )
    if len(np.unique(batch_codes)) < 2:
        raise ValueError(f"expected cells of at least two batches, got {len(np.unique(batch_codes))}")
    agreement = label_agreement(matrix, label_codes, num_neighbours=num_neighbours, seed=seed)
    return IntegrationScores(
        purity=agreement.purity,
        chance=agreement.chance,
        ari=agreement.ari,
        nmi=agreement.nmi,
        label_asw=(float(silhouette_score(matrix, label_codes)) + 1) / 2,
        clisi=1 - _scaled(lisi(matrix, label_codes, perplexity=perplexity), label_codes),
        graph_connectivity=graph_connectivity(matrix, label_codes, num_neighbours=num_neighbours),
        batch_excess=batch_excess(matrix, batch_codes, label_codes, num_neighbours=num_neighbours),
        batch_asw=batch_silhouette(matrix, batch_codes, label_codes),
        ilisi=_scaled(lisi(matrix, batch_codes, perplexity=perplexity), batch_codes),
        pcr=None if before is None else batch_variance_removed(before[known], matrix, batch_codes, seed=seed),
    )


def lisi(
    latent: Float[np.ndarray, "cells latent"], codes: Int[np.ndarray, " cells"], *, perplexity: float = 30.0
) -> Float[np.ndarray, " cells"]:
    r"""Local inverse Simpson index of each cell: the effective number of batches, or labels, around it.

    .. math:: LISI_i = 1 \Big/ \sum_b \Big(\sum_{j: b_j = b} p_{ij}\Big)^2, \quad p_{ij} \propto \exp(-\beta_i d_{ij}),

    over the 3 * perplexity nearest cells, of which the cell itself is one that does not count, with Euclidean
    distances d and beta such that the entropy of p is log(perplexity). (The package scib takes distances on a graph.)

    Args:
        latent: One row per cell.
        codes: Code of the batch or label of each cell.
        perplexity: Effective number of neighbours.

    Returns:
        From 1, where all neighbours are alike, to the number of codes.

    Raises:
        ValueError: If there are fewer than 3 * perplexity cells.

    References:
        Korsunsky, Millard, Fan, Slowikowski, Zhang, Wei, Baglaenko, Brenner, Loh, Raychaudhuri (2019). Fast, sensitive
        and accurate integration of single-cell data with Harmony. doi:10.1038/s41592-019-0619-0
    """
    distances, neighbours = _neighbours(latent, int(3 * perplexity) - 1)
    weights = _weights(distances, perplexity)
    near = codes[neighbours]
    shares = [(weights * (near == code)).sum(1) for code in np.unique(codes)]
    return 1 / np.square(shares).sum(0)


def graph_connectivity(
    latent: Float[np.ndarray, "cells latent"], labels: Int[np.ndarray, " cells"], *, num_neighbours: int = 15
) -> float:
    """Mean over labels of the share of its cells that are in the largest connected part of its graph of neighbours.

    The graph is directed and its parts are strongly connected, as in scib-metrics; scib symmetrises it first, and
    gives higher values.

    Args:
        latent: One row per cell.
        labels: Code of the label of each cell.
        num_neighbours: Neighbours of a cell, itself included.

    Returns:
        Above 0; 1 where each label is one piece.

    Raises:
        ValueError: If there are no more cells than neighbours.
    """
    _, neighbours = _neighbours(latent, num_neighbours - 1)
    rows = np.repeat(np.arange(len(latent)), num_neighbours - 1)
    graph = csr_matrix((np.ones(neighbours.size), (rows, neighbours.ravel())), shape=(len(latent),) * 2)
    shares = []
    for label in np.unique(labels):
        inside = np.flatnonzero(labels == label)
        parts = connected_components(graph[inside][:, inside], connection="strong")[1]
        shares.append(np.bincount(parts).max() / len(inside))
    return float(np.mean(shares))


def batch_silhouette(
    latent: Float[np.ndarray, "cells latent"], batches: Int[np.ndarray, " cells"], labels: Int[np.ndarray, " cells"]
) -> float:
    """Mean over labels of the mean of ``1 - |s|``, with s the silhouette width of the batches within the label.

    The labels weigh alike. Labels of one batch, or of one cell in each, are left out. It is that of scib and of
    scib-metrics (whose ``bras`` takes cosine distances and the mean over other batches instead).

    Args:
        latent: One row per cell.
        batches: Code of the batch of each cell.
        labels: Code of the label of each cell.

    Raises:
        ValueError: If no label is left.
    """
    widths = []
    for label in np.unique(labels):
        inside = labels == label
        if 1 < len(np.unique(batches[inside])) < inside.sum():
            widths.append(np.mean(1 - np.abs(silhouette_samples(latent[inside], batches[inside]))))
    if not widths:
        raise ValueError("expected a label with cells in at least two batches, got none")
    return float(np.mean(widths))


def batch_variance_removed(
    reference: Float[np.ndarray, "cells features"],
    latent: Float[np.ndarray, "cells latent"],
    batches: Int[np.ndarray, " cells"],
    *,
    seed: int = 0,
) -> float:
    """Principal component regression: share of the variance between batches before that is gone after.

    It is max(0, (R - r) / R) with R and r the share of the variance that lies between the batches' means, before and
    after. Summed over all principal components, weighted by their variance, R^2 of the regression on batches is this
    share. The reference is reduced to its first 50 components, as scanpy's are.

    Args:
        reference: The cells before, such as log-normalised counts or their principal components.
        latent: The cells after.
        batches: Code of the batch of each cell.
        seed: Seed of the principal components.

    Returns:
        Between 0 and 1.

    Raises:
        ValueError: If the batches' means do not differ before.

    References:
        Buettner, Miao, Wolf, Teichmann, Theis (2019). A test metric for assessing single-cell RNA-seq batch
        correction. doi:10.1038/s41592-018-0254-1
    """
    if min(reference.shape) > _COMPONENTS:
        reference = PCA(_COMPONENTS, random_state=seed).fit_transform(reference)
    before, after = _between(reference, batches), _between(latent, batches)
    if before <= 0:
        raise ValueError("expected a reference in which the batches' means differ, got one where they do not")
    return max(0.0, (before - after) / before)


def scib_scores(
    latents: Mapping[str, Float[np.ndarray, "cells latent"]],
    batches: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    reference: Float[np.ndarray, "cells features"],
) -> pd.DataFrame:
    """The table of the package scib-metrics, with its version as the name of its columns.

    Its scores change from version to version; name it beside them. Neighbours are exact.

    Args:
        latents: Latents by name.
        batches: Name or code of the batch of each cell.
        labels: Name or code of the label of each cell.
        reference: The cells before integration, such as principal components of log-normalised counts.

    Returns:
        One row per latent space, one column per score, with the aggregates last.

    Raises:
        ImportError: If scib-metrics is not installed.
        ValueError: If lengths differ, values are not finite, or a cell has no batch or no label.
    """
    try:
        benchmarker = import_module("scib_metrics.benchmark").Benchmarker
        results = import_module("scib_metrics.nearest_neighbors").NeighborsResults
    except ImportError:
        raise ImportError(
            "expected scib-metrics for its scores, it is not installed; pip install 'genailab-pyro[integration]'"
        ) from None
    before = _matrix("reference", reference, len(reference))
    codes = {"batch": _codes("batches", batches, len(before)), "label": _codes("labels", labels, len(before))}
    missing = sum(int((values < 0).sum()) for values in codes.values())
    if missing:
        raise ValueError(f"expected a batch and a label of every cell, got {missing} missing; leave these cells out")
    columns = {name: pd.Categorical(values) for name, values in codes.items()}
    cells = AnnData(before, obs=pd.DataFrame(columns, index=[f"cell_{i}" for i in range(len(before))]))
    cells.obsm["reference"] = before
    for name, latent in latents.items():
        cells.obsm[name] = _matrix(name, latent, len(before))

    def exact(latent: Float[np.ndarray, "cells latent"], number: int) -> Any:
        distances, neighbours = NearestNeighbors(n_neighbors=number).fit(latent).kneighbors(latent)
        return results(indices=neighbours, distances=distances)

    keys = {"batch_key": "batch", "label_key": "label", "pre_integrated_embedding_obsm_key": "reference"}
    with threads_kept():
        benchmark = benchmarker(cells, embedding_obsm_keys=[*latents], progress_bar=False, **keys)
        benchmark.prepare(exact)
        benchmark.benchmark()
    table = benchmark.get_results().loc[[*latents]].astype(float)
    return table.rename_axis(columns=f"scib-metrics {version('scib-metrics')}")


def _matrix(name: str, values: npt.ArrayLike, cells: int) -> Float[np.ndarray, "cells columns"]:
    matrix = np.asarray(values, dtype=float)
    if matrix.ndim != 2 or len(matrix) != cells or not np.isfinite(matrix).all():
        raise ValueError(
            f"expected {name} of shape [{cells}, columns] with finite values, got shape {list(matrix.shape)} with "
            f"{np.count_nonzero(~np.isfinite(matrix))} values NaN or infinite"
        )
    return matrix


def _codes(name: str, values: npt.ArrayLike, cells: int) -> Int[np.ndarray, " cells"]:
    found = np.asarray(values)
    if found.shape != (cells,):
        raise ValueError(f"expected {name} of shape [{cells}], one for each row, got {list(found.shape)}")
    return found if found.dtype.kind == "i" else pd.factorize(found)[0]


def _neighbours(
    latent: Float[np.ndarray, "cells latent"], number: int
) -> tuple[Float[np.ndarray, "cells neighbours"], Int[np.ndarray, "cells neighbours"]]:
    """Distances and positions of a cell's nearest neighbours, itself excluded."""
    if len(latent) <= number:
        raise ValueError(f"expected more than {number} cells, as many neighbours are looked at, got {len(latent)}")
    return NearestNeighbors(n_neighbors=number).fit(latent).kneighbors()


def _weights(
    distances: Float[np.ndarray, "cells neighbours"], perplexity: float
) -> Float[np.ndarray, "cells neighbours"]:
    """Weights of neighbours that fall with the distance, so that their entropy is log(perplexity)."""
    # A number taken from all distances of a cell leaves its weights as they are, and keeps them above zero.
    distances = distances - distances.min(1, keepdims=True)
    low, high, beta = np.zeros(len(distances)), np.full(len(distances), np.inf), np.ones(len(distances))
    for _ in range(_TRIES):
        weights = np.exp(-beta[:, None] * distances)
        total = weights.sum(1)
        excess = np.log(total) + beta * (weights * distances).sum(1) / total - np.log(perplexity)
        if (np.abs(excess) < _TOLERANCE).all():
            break
        low, high = np.where(excess > 0, beta, low), np.where(excess > 0, high, beta)
        beta = np.where(np.isinf(high), 2 * beta, (low + high) / 2)
    return weights / total[:, None]


def _scaled(values: Float[np.ndarray, " cells"], codes: Int[np.ndarray, " cells"]) -> float:
    return float((np.median(values) - 1) / (len(np.unique(codes)) - 1))


def _between(matrix: Float[np.ndarray, "cells columns"], codes: Int[np.ndarray, " cells"]) -> float:
    """Share of the variance, over all columns, that lies between the means of the codes."""
    centred = matrix - matrix.mean(0)
    groups = [centred[codes == code] for code in np.unique(codes)]
    between = sum(len(group) * np.square(group.mean(0)).sum() for group in groups)
    return float(between / np.square(centred).sum())
