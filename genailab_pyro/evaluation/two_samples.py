"""Comparisons of two sets of cells: their means, distances of their distributions, and tests of each gene."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse
from scipy.spatial.distance import cdist, pdist
from scipy.stats import false_discovery_control, mannwhitneyu, spearmanr
from sklearn.metrics import r2_score

FDR = 0.05
_ROWS = 1000  # of a matrix of distances that is held at a time

Cells = Float[np.ndarray, "cells genes"]
Genes = Float[np.ndarray, " genes"]


def r2_of_means(real: Cells, predicted: Cells) -> float:
    r"""Share of the variance over genes of the real means that the predicted means explain, 1 - SSE/SST.

    .. math:: R^2 = 1 - \frac{\sum_g (\bar p_g - \bar q_g)^2}{\sum_g (\bar p_g - \bar p)^2}

    It is ``sklearn.metrics.r2_score`` of the means, as in CPA and CellFlow, and may be negative. scGen and pertpy
    report the squared Pearson correlation under this name, which is blind to scale and offset; CellOT the correlation
    itself; chemCPA cuts negative values to 0. As genes differ more than conditions do, no change at all has a high
    one.

    Args:
        real: Real perturbed cells p, log-normalised.
        predicted: Predicted cells q of the same genes.

    Raises:
        ValueError: If the cells are not finite matrices of the same genes.

    References:
        Lotfollahi et al. (2023). Predicting cellular responses to complex perturbations in high-throughput screens.
        doi:10.15252/msb.202211517

    Example:
        >>> r2_of_means(np.array([[0.0, 1.0, 2.0]]), np.array([[0.0, 1.0, 1.0]]))
        0.5
    """
    real, predicted = checked_cells(real=real, predicted=predicted)
    return float(r2_score(real.mean(0), predicted.mean(0)))


def rmse_of_means(real: Cells, predicted: Cells) -> float:
    """Root of the mean over genes of the squared difference of means, in log-counts.

    Args:
        real: Real perturbed cells, log-normalised.
        predicted: Predicted cells of the same genes.

    Raises:
        ValueError: If the cells are not finite matrices of the same genes.

    Example:
        >>> rmse_of_means(np.array([[0.0, 1.0], [0.0, 3.0]]), np.array([[3.0, 6.0]]))
        3.5355339059327378
    """
    real, predicted = checked_cells(real=real, predicted=predicted)
    return float(np.sqrt(np.mean((real.mean(0) - predicted.mean(0)) ** 2)))


def energy_distance(real: Float[np.ndarray, "cells features"], predicted: Float[np.ndarray, "cells features"]) -> float:
    r"""Unbiased Euclidean energy distance of two sets of cells.

    .. math:: 2\, E|x - y| - E|x - x'| - E|y - y'|,

    with means over the n(n - 1) pairs of different cells within a set, so that its expectation is 0 for cells of the
    same distribution; it may be negative. cell-eval and pertpy's precomputed path divide by n^2, which is above 0 for
    the same distribution; pertpy is otherwise as here. scPerturb squares the distances, and CellFlow does so over n^2,
    which is twice the squared difference of means.

    Args:
        real: Real cells in the space of the distance, such as principal components.
        predicted: Predicted cells in the same space.

    Returns:
        The distance in the units of the features; NaN where a set has a single cell.

    Raises:
        ValueError: If the cells are not finite matrices of the same features.

    References:
        Szekely, Rizzo (2013). Energy statistics: a class of statistics based on distances.
        doi:10.1016/j.jspi.2013.03.018
        Peidli et al. (2024). scPerturb: harmonized single-cell perturbation data. doi:10.1038/s41592-023-02144-y

    Example:
        >>> energy_distance(np.array([[0.0], [1.0]]), np.array([[10.0], [11.0]]))
        18.0
    """
    real, predicted = checked_cells(real=real, predicted=predicted)
    return -_contrast(real, predicted, lambda distances: distances)


def maximum_mean_discrepancy(
    real: Float[np.ndarray, "cells features"],
    predicted: Float[np.ndarray, "cells features"],
    *,
    bandwidth: float | None = None,
) -> float:
    r"""Unbiased squared maximum mean discrepancy of two sets of cells under a Gaussian kernel.

    .. math:: E\,k(x, x') + E\,k(y, y') - 2\,E\,k(x, y), \quad k(x, y) = \exp\big(-|x - y|^2 / 2\sigma^2\big),

    with means over pairs of different cells within a set (Gretton et al., lemma 6). The bandwidth is the median
    distance of two real cells, so that it is the same for all predictions; Gretton et al. take it over both sets.
    pertpy's default has a linear kernel, which is the squared difference of means.

    Args:
        real: Real cells in the space of the distance, such as principal components.
        predicted: Predicted cells in the same space.
        bandwidth: Sigma, in the units of the features; None for the median.

    Returns:
        At most 2; 0 on average for cells of the same distribution. NaN where a set has a single cell.

    Raises:
        ValueError: If the cells are not finite matrices of the same features, or the bandwidth is not above zero (as is
            the median where most real cells are the same).

    References:
        Gretton, Borgwardt, Rasch, Schoelkopf, Smola (2012). A kernel two-sample test. Journal of Machine Learning
        Research 13, 723.
    """
    real, predicted = checked_cells(real=real, predicted=predicted)
    if min(len(real), len(predicted)) < 2:
        return np.nan
    sigma = float(np.median(pdist(real))) if bandwidth is None else bandwidth
    if not (np.isfinite(sigma) and sigma > 0):
        raise ValueError(f"expected a bandwidth above 0, got {sigma!r}; pass bandwidth=, or cells that differ")
    return _contrast(real, predicted, lambda distances: np.exp(-(distances**2) / (2 * sigma**2)))


class RankSumTest(NamedTuple):
    """Each gene's difference between cells and controls.

    Attributes:
        log2_fold_change: Of the means of the values before the logarithm; infinite where one of them is 0, and 0 where
            both are.
        p_value: Of the two-sided Wilcoxon rank-sum test.
        fdr: False discovery rate by Benjamini and Hochberg.
    """

    log2_fold_change: Genes
    p_value: Genes
    fdr: Genes

    @property
    def significant(self) -> Bool[np.ndarray, " genes"]:
        """Genes with a false discovery rate below .05."""
        return self.fdr < FDR

    def ranked(self) -> Int[np.ndarray, " significant"]:
        """Positions of the significant genes, from the largest absolute fold change down."""
        order = np.argsort(-np.abs(self.log2_fold_change), kind="stable")
        return order[self.significant[order]]


def rank_sum_test(cells: Cells, controls: Cells) -> RankSumTest:
    """Differential expression as cell-eval has it: Wilcoxon rank-sum tests with the control of Benjamini and Hochberg.

    The p-value is that of the normal approximation, with corrections for ties and continuity. The fold change is that
    of means of ``expm1`` of the values, at least 0; scanpy's takes ``expm1`` of means.

    Args:
        cells: Perturbed cells, log-normalised.
        controls: Controls of the same genes.

    Raises:
        ValueError: If the cells are not finite matrices of the same genes.

    References:
        Wilcoxon (1945). Individual comparisons by ranking methods. doi:10.2307/3001968
        Benjamini, Hochberg (1995). Controlling the false discovery rate. doi:10.1111/j.2517-6161.1995.tb02031.x

    Example:
        >>> cells = np.log1p(np.repeat([[8.0, 1.0]], 20, axis=0))
        >>> test = rank_sum_test(cells, np.log1p(np.ones((20, 2))))
        >>> test.log2_fold_change, test.significant
        (array([3., 0.]), array([ True, False]))
    """
    cells, controls = checked_cells(cells=cells, controls=controls)
    means, control_means = (np.clip(np.expm1(values).mean(0), 0, None) for values in (cells, controls))
    differ = np.ptp(np.concatenate([cells, controls]), axis=0) > 0  # the test has no variance where all are tied
    p_value = np.ones(cells.shape[1])
    if differ.any():
        p_value[differ] = mannwhitneyu(cells[:, differ], controls[:, differ], method="asymptotic").pvalue
    with np.errstate(divide="ignore", invalid="ignore"):
        change = np.log2(means / control_means)
    change[means == control_means] = 0.0
    return RankSumTest(change, p_value, false_discovery_control(p_value))


def de_overlap(real: RankSumTest, predicted: RankSumTest, top: int | None = None) -> float:
    """Share of the k most changed real genes that are among the k most changed predicted ones, as in cell-eval.

    Genes are the significant ones, by absolute fold change; k is ``top``, but not more than there are real ones. Where
    no real gene is significant, cell-eval has 0.

    Args:
        real: Test of real cells.
        predicted: Test of predicted cells.
        top: The largest k; None for all the significant real genes.

    Returns:
        Between 0 and 1; NaN where no real gene is significant.

    References:
        Adduri et al. (2025). Predicting cellular responses to perturbation across diverse contexts with State.
        doi:10.1101/2025.06.26.661135
    """
    genes = real.ranked()[:top]
    return float(np.isin(genes, predicted.ranked()[: len(genes)]).mean()) if len(genes) else np.nan


def de_direction_match(real: RankSumTest, predicted: RankSumTest) -> float:
    """Share of the significant real genes whose predicted fold change has the same sign, as in cell-eval.

    Args:
        real: Test of real cells.
        predicted: Test of predicted cells, whose significance is not looked at.

    Returns:
        Between 0 and 1; NaN where no real gene is significant.

    References:
        Adduri et al. (2025). doi:10.1101/2025.06.26.661135
    """
    genes = real.significant
    matches = np.sign(real.log2_fold_change) == np.sign(predicted.log2_fold_change)
    return float(matches[genes].mean()) if genes.any() else np.nan


def de_spearman(real: RankSumTest, predicted: RankSumTest) -> float:
    """Rank correlation of the predicted with the real fold changes of the significant real genes, as in cell-eval.

    Args:
        real: Test of real cells.
        predicted: Test of predicted cells, whose significance is not looked at.

    Returns:
        Between -1 and 1; 0 where all predicted ones are the same, NaN where fewer than two real genes are significant.

    References:
        Adduri et al. (2025). doi:10.1101/2025.06.26.661135
    """
    genes = real.significant
    changes = real.log2_fold_change[genes], predicted.log2_fold_change[genes]
    if genes.sum() < 2:
        return np.nan
    return float(spearmanr(*changes).statistic) if all(len(np.unique(change)) > 1 for change in changes) else 0.0


def checked_cells(**named: Any) -> list[Cells]:
    """Dense float64 matrices of cells by the same genes.

    Raises:
        ValueError: If one is sparse, without cells, not finite, or has other genes than the first.
    """
    matrices: list[Cells] = []
    for name, values in named.items():
        if sparse.issparse(values):
            raise ValueError(f"expected dense values for {name}, got a sparse matrix; pass log_normalise(counts)")
        matrix = np.asarray(values, dtype=float)
        columns = matrices[0].shape[1] if matrices else None
        if matrix.ndim != 2 or not matrix.size or columns not in (None, matrix.shape[1]):
            expected = "[cells, genes]" if columns is None else f"[cells, {columns}]"
            raise ValueError(
                f"expected {name} of shape {expected} with at least one cell, got {list(matrix.shape)}; give all of "
                "them the same genes in the same order"
            )
        if not np.isfinite(matrix).all():
            wrong = int((~np.isfinite(matrix)).sum())
            raise ValueError(f"expected finite values for {name}, got {wrong} NaN or infinite; leave those cells out")
        matrices.append(matrix)
    return matrices


def _contrast(real: np.ndarray, predicted: np.ndarray, kernel: Callable[[np.ndarray], np.ndarray]) -> float:
    """Mean of a function of distances within both sets less twice its mean between them."""
    sizes = len(real), len(predicted)
    if min(sizes) < 2:
        return np.nan
    alike = float(kernel(np.zeros(1))[0])  # of a cell and itself, which is no pair
    within = [
        (_total(cells, cells, kernel) - size * alike) / (size * (size - 1))
        for cells, size in zip((real, predicted), sizes, strict=True)
    ]
    return sum(within) - 2 * _total(real, predicted, kernel) / (sizes[0] * sizes[1])


def _total(left: np.ndarray, right: np.ndarray, kernel: Callable[[np.ndarray], np.ndarray]) -> float:
    return sum(float(kernel(cdist(left[at : at + _ROWS], right)).sum()) for at in range(0, len(left), _ROWS))
