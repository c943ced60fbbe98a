"""How well denoised expression predicts molecules that were held back, or a truth that is known."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Float
from scipy import sparse
from scipy.special import gammaln
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from genailab_pyro.data.thinning import thin
from genailab_pyro.evaluation.heldout import Estimate

Shares = Float[np.ndarray, "cells genes"]
# What references are chosen among, by thinning the counts that they learn from once more.
PSEUDOCOUNTS = (1.0, 10.0, 100.0, 300.0)
NEIGHBOURS = (5, 15, 30, 60)


def poisson_log_likelihood(shares: Shares, counts: sparse.csr_matrix) -> Float[np.ndarray, " cells"]:
    r"""Log-probability of counts under Poisson rates that are shares of each cell's total.

    .. math::
        \sum_g x_{ng} \log \lambda_{ng} - \lambda_{ng} - \log x_{ng}!, \qquad \lambda_{ng} = s_{ng} \sum_h x_{nh}.

    Args:
        shares: Share of each gene in the expression of each cell; each row is divided by its sum.
        counts: Counts that the shares were not estimated from, such as the second half of `data.thin`.

    Returns:
        Nats per cell, shape ``[cells]``; minus infinity where a gene of share zero has counts.

    Raises:
        ValueError: If the shapes differ, or a share is negative or not finite.

    Example:
        >>> poisson_log_likelihood(np.array([[0.5, 0.5]]), sparse.csr_matrix([[1.0, 1.0]]))
        array([-2.])

    References:
        Batson, Royer, Webber (2019). Molecular cross-validation for single-cell RNA-seq. doi:10.1101/786269 (their
        Poisson loss, without the constants of the counts)
    """
    shares, counts = np.asarray(shares, dtype=np.float64), sparse.csr_matrix(counts, dtype=np.float64)
    if shares.shape != counts.shape:
        raise ValueError(f"expected shares of the shape of the counts, {counts.shape}, got {shares.shape}")
    if not np.isfinite(shares).all() or (shares < 0).any():
        raise ValueError("expected finite shares of at least 0, got others; are they logarithms?")
    totals = np.asarray(counts.sum(1)).ravel()
    rates = shares * (totals / shares.sum(1))[:, None]
    seen = counts.tocoo()
    with np.errstate(divide="ignore"):
        terms = seen.data * np.log(rates[seen.row, seen.col]) - gammaln(seen.data + 1)
    return np.bincount(seen.row, terms, minlength=len(totals)) - rates.sum(1)


def observed_shares(counts: sparse.csr_matrix, *, pseudocounts: float = 1.0) -> Shares:
    """No denoising: the shares of a cell's own counts.

    Args:
        counts: The counts, shape ``[cells, genes]``.
        pseudocounts: Counts of the mean of all cells that are added to each: without any, a gene that was not seen in
            a cell has no probability there.
    """
    counts = sparse.csr_matrix(counts, dtype=np.float64)
    return _with_pseudocounts(counts.toarray(), counts, pseudocounts)


def neighbour_shares(
    counts: sparse.csr_matrix, *, num_neighbours: int = 15, pseudocounts: float = 1.0, num_components: int = 30
) -> Shares:
    """The k-NN average: summed counts of a cell and its neighbours, as shares.

    Neighbours are nearest in the principal components of log1p of counts scaled to the median total.

    Args:
        counts: The counts, shape ``[cells, genes]``.
        num_neighbours: Neighbours of a cell, beside itself.
        pseudocounts: Counts of the mean of all cells that are added.
        num_components: Number of principal components; at most as many as cells and genes.

    References:
        Wagner, Yan, Yanai (2018). K-nearest neighbor smoothing for high-throughput single-cell RNA-Seq data.
        doi:10.1101/217737 (one step of it)
    """
    counts = sparse.csr_matrix(counts, dtype=np.float64)
    totals = np.asarray(counts.sum(1)).ravel()
    logs = sparse.diags(np.median(totals) / np.maximum(totals, 1)).dot(counts).log1p().toarray()
    scores = PCA(min(num_components, *logs.shape), random_state=0).fit_transform(logs)
    number = min(num_neighbours, len(scores) - 1)
    graph = NearestNeighbors(n_neighbors=number).fit(scores).kneighbors_graph() + sparse.identity(len(scores))
    return _with_pseudocounts(graph.dot(counts).toarray(), counts, pseudocounts)


def reference_shares(counts: sparse.csr_matrix, *, seed: int = 0) -> dict[str, Shares]:
    """Expression of each cell by what needs no model, as good as it can be made without looking further.

    Neighbours and pseudocounts are those of `NEIGHBOURS` and `PSEUDOCOUNTS` that predict one half of the counts best
    from the other.

    Args:
        counts: The counts that the models learned from, shape ``[cells, genes]``.
        seed: Seed of the halves.

    Returns:
        ``"no denoising"``, ``"k-NN average"`` and ``"mean of all cells"``, the same for each.
    """
    counts = sparse.csr_matrix(counts, dtype=np.float64)
    first, second = (half.X for half in thin(AnnData(counts), seed=seed))

    def best(shares: Callable[..., Shares], grid: Sequence[dict[str, float]]) -> Shares:
        scores = [poisson_log_likelihood(shares(first, **options), second).mean() for options in grid]
        return shares(counts, **grid[int(np.argmax(scores))])

    alone = [{"pseudocounts": number} for number in PSEUDOCOUNTS]
    grid = [{"num_neighbours": number, **options} for number in NEIGHBOURS for options in alone]
    mean = _with_pseudocounts(np.zeros((1, counts.shape[1])), counts, 1.0)
    return {
        "no denoising": best(observed_shares, alone),
        "k-NN average": best(neighbour_shares, grid),
        "mean of all cells": np.repeat(mean, counts.shape[0], axis=0),
    }


def denoising_scores(
    shares: Mapping[str, Shares], held_back: AnnData | sparse.csr_matrix, *, references: sparse.csr_matrix | None = None
) -> pd.DataFrame:
    """Score denoised expression on molecules that were held back, beside what needs no model.

    Args:
        shares: Expression of each cell by each method, learned from the other molecules.
        held_back: The second half of `data.thin`.
        references: The first half, to score its `reference_shares`, too; None to score `shares` alone.

    Returns:
        One row per method, best first: ``log_likelihood`` in nats per cell and ``difference`` from the best with its
        paired ``standard_error`` over cells.

    Raises:
        ValueError: If there is nothing to score, a reference's name is taken, or shapes differ.

    References:
        Batson, Royer, Webber (2019). doi:10.1101/786269
    """
    counts = sparse.csr_matrix(held_back.X if isinstance(held_back, AnnData) else held_back)
    scored = dict(shares)
    if references is not None:
        beside = reference_shares(references)
        taken = sorted(scored.keys() & beside.keys())
        if taken:
            raise ValueError(f"expected names other than those of the references, got {', '.join(map(repr, taken))}")
        scored |= beside
    if not scored:
        raise ValueError("expected the shares of at least one method, got none; pass {name: fit.expression(...)}")
    values = {name: poisson_log_likelihood(expression, counts) for name, expression in scored.items()}
    order = sorted(values, key=lambda name: -values[name].mean())
    best = values[order[0]]
    rows = {}
    for name in order:
        difference = Estimate.of(values[name] - best)
        rows[name] = {
            "log_likelihood": values[name].mean(),
            "difference": difference.mean,
            "standard_error": difference.standard_error,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def interval_coverage(
    low: Float[np.ndarray, "cells genes"],
    high: Float[np.ndarray, "cells genes"],
    truth: Float[np.ndarray, "cells genes"],
) -> float:
    """Share of true values inside their intervals, bounds included; near the nominal level where they are calibrated.

    Args:
        low: Lower bounds, such as the first of `Fit.expression_quantiles`.
        high: Upper bounds.
        truth: What the intervals are of.

    Raises:
        ValueError: If the shapes differ.
    """
    if not low.shape == high.shape == truth.shape:
        raise ValueError(f"expected bounds and truth of one shape, got {low.shape}, {high.shape} and {truth.shape}")
    return float(((low <= truth) & (truth <= high)).mean())


def _with_pseudocounts(summed: Shares, counts: sparse.csr_matrix, pseudocounts: float) -> Shares:
    totals = np.asarray(counts.sum(0)).ravel()
    # Half a count for genes that no cell has: their share is small, and not zero.
    mixed = summed + pseudocounts * np.maximum(totals, 0.5) / max(totals.sum(), 1)
    return mixed / mixed.sum(1, keepdims=True)
