"""Scores of predicted against real perturbed cells, on log-normalised values, always beside the real controls.

Means are over cells. A shift is the mean of perturbed cells less the mean of controls. Where the predicted and the real
shift subtract the same (shared) controls they share their noise, by which no model at all seems to predict something;
with split controls one half is for the prediction and the other for the truth.

References:
    Ahlmann-Eltze, Huber, Anders (2025). Deep-learning-based gene perturbation effect prediction does not yet outperform
    simple linear baselines. doi:10.1038/s41592-025-02772-6
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple, Protocol, Self

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import sparse
from sklearn.metrics import r2_score

from genailab_pyro.evaluation.two_samples import (
    Cells,
    Genes,
    checked_cells,
    de_direction_match,
    de_overlap,
    de_spearman,
    energy_distance,
    maximum_mean_discrepancy,
    r2_of_means,
    rank_sum_test,
    rmse_of_means,
)


class Projection(Protocol):
    """What maps cells to the space that distances are measured in, such as a fitted ``sklearn.decomposition.PCA``."""

    def transform(self, cells: Cells, /) -> Float[np.ndarray, "cells features"]:
        """The cells in that space."""


def log_normalise(
    counts: np.ndarray | sparse.csr_matrix | sparse.csr_array,
    target: float = 1e4,
    *,
    library: Float[np.ndarray, " cells"] | None = None,
) -> Cells:
    r"""Log-normalised values :math:`\log(1 + t\, x_{ng} / l_n)` of counts.

    Counts drawn from a model are to be normalised as the real ones were: the logarithm of a mean is above the mean of
    logarithms.

    Args:
        counts: Counts, dense or sparse, shape ``[cells, genes]``.
        target: The library t that all cells are scaled to, in counts.
        library: The library l of each cell in counts, where it is not the sum over these genes.

    Returns:
        Dense values in log-counts, float64.

    Raises:
        ValueError: If the counts are no matrix of finite values of at least 0, or a library or the target is not above
            zero.

    Example:
        >>> log_normalise(np.array([[1.0, 3.0], [0.0, 2.0]]), target=4).round(3)
        array([[0.693, 1.386],
               [0.   , 1.609]])
    """
    values = np.asarray(getattr(counts, "toarray", lambda: counts)(), dtype=float)
    if values.ndim != 2 or not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(
            f"expected finite counts of at least 0 of shape [cells, genes], got shape {list(values.shape)}"
            f"{', values out of range' if values.ndim == 2 else ''}; pass raw counts"
        )
    libraries = values.sum(1) if library is None else np.asarray(library, dtype=float)
    if libraries.shape != values.shape[:1] or not (np.isfinite(libraries) & (libraries > 0)).all() or not target > 0:
        raise ValueError(
            f"expected a library above 0 for each of {len(values)} cells and a target above 0, got shape "
            f"{list(libraries.shape)}, least {libraries.min(initial=np.inf):g}, target {target!r}; leave out cells "
            "without counts"
        )
    return np.log1p(values * (target / libraries)[:, None])


def r2_of_shift(
    real: Cells,
    predicted: Cells,
    controls: Cells,
    *,
    predicted_controls: Cells | None = None,
    top: int | None = None,
) -> float:
    """Share of the variance over genes of the real shift that the predicted shift explains, 1 - SSE/SST.

    As in CPA, which takes the genes that a t-test ranks first where not all are used; here they are those of the
    largest real shift. CPA's figure during training sets the other genes to 0 instead of leaving them out, which
    inflates it.

    Args:
        real: Real perturbed cells, log-normalised.
        predicted: Predicted cells of the same genes.
        controls: Real controls, whose mean is subtracted from the real cells.
        predicted_controls: Real controls, whose mean is subtracted from the predicted cells; None for the same ones.
        top: Over how many genes, those of the largest absolute real shift; None for all.

    Returns:
        At most 1; 0 is the mean of the real shift for every gene. NaN where the real shift is the same in all genes.

    Raises:
        ValueError: If the cells are not finite matrices of the same genes, or ``top`` is below 2.

    References:
        Lotfollahi et al. (2023). doi:10.15252/msb.202211517
    """
    return _r2(*_shifts(real, predicted, controls, predicted_controls, top))


def pearson_of_shift(
    real: Cells,
    predicted: Cells,
    controls: Cells,
    *,
    predicted_controls: Cells | None = None,
    top: int | None = None,
) -> float:
    """Correlation over genes of the predicted with the real shift; 0 where a shift is the same in all genes.

    In cell-eval the predicted shift subtracts the predictor's own controls, by which a predictor may choose its score;
    here all controls are real. Systema subtracts the mean of the centroids of all perturbations, so that what all of
    them have in common does not count: pass those centroids in place of the controls.

    Args:
        real: Real perturbed cells, log-normalised.
        predicted: Predicted cells of the same genes.
        controls: Real controls, whose mean is subtracted from the real cells.
        predicted_controls: Real controls, whose mean is subtracted from the predicted cells; None for the same ones.
        top: Over how many genes, those of the largest absolute real shift; None for all.

    Raises:
        ValueError: If the cells are not finite matrices of the same genes, or ``top`` is below 2.

    References:
        Vinas Torne et al. (2025). Systema: a framework for evaluating genetic perturbation response prediction beyond
        systematic variation. doi:10.1038/s41587-025-02777-8

    Example:
        >>> controls = np.zeros((2, 3))
        >>> round(pearson_of_shift(np.array([[1.0, 2.0, 3.0]]), np.array([[5.0, 6.0, 7.0]]), controls), 6)
        1.0
    """
    return _pearson(*_shifts(real, predicted, controls, predicted_controls, top))


def discrimination(
    real: Float[np.ndarray, "perturbations genes"],
    predicted: Float[np.ndarray, "perturbations genes"],
    *,
    targets: Sequence[int | None] | None = None,
) -> Float[np.ndarray, " perturbations"]:
    r"""How near each predicted shift is to the real shift of its own perturbation, among those of all, as in cell-eval.

    .. math:: 1 - \frac1P \#\{p' : |s_{p'} - \hat s_p|_1 < |s_p - \hat s_p|_1\},

    with s and s hat the real and the predicted shifts, and the gene that is the target of p left out of the sums, for
    it alone tells a knock-out. Ties count one half each here; in cell-eval they are broken by the order of the rows.

    Args:
        real: Real shifts, one row per perturbation.
        predicted: Predicted shifts, in the same order.
        targets: Column of the gene that each perturbation acts on, or None for those without one.

    Returns:
        One score per perturbation: 1 is the best, and (P + 1) / 2P is chance.

    Raises:
        ValueError: If the shifts are not finite matrices of the same shape, or the targets are not one for each.

    References:
        Adduri et al. (2025). doi:10.1101/2025.06.26.661135

    Example:
        >>> discrimination(np.eye(2), np.array([[0.9, 0.0], [0.8, 0.1]]))
        array([1. , 0.5])
    """
    real, predicted = checked_cells(real=real, predicted=predicted)
    targets = [None] * len(real) if targets is None else targets
    if not len(real) == len(predicted) == len(targets):
        raise ValueError(
            f"expected a predicted shift and a target for each of {len(real)} perturbations, got {len(predicted)} "
            f"shifts and {len(targets)} targets"
        )
    scores = []
    for own, (shift, target) in enumerate(zip(predicted, targets, strict=True)):
        kept = np.arange(real.shape[1]) != target
        distances = np.abs(real[:, kept] - shift[kept]).sum(1)
        nearer = (distances < distances[own]).sum() + 0.5 * ((distances == distances[own]).sum() - 1)
        scores.append(1 - nearer / len(real))
    return np.array(scores)


class ControlSplit(NamedTuple):
    """Two halves of the controls, one for the prediction and the other for the truth.

    Attributes:
        predicted: Predicted cells for which the second half was not used.
        first: Controls that are subtracted from them.
        second: Controls that are subtracted from the real cells.
    """

    predicted: Cells
    first: Cells
    second: Cells

    @classmethod
    def of(
        cls, predicted: Cells, controls: Cells, *, origin: Int[np.ndarray, " predicted"] | None = None, seed: int = 0
    ) -> Self:
        """Random halves of the controls, with the predicted cells that were made from the first.

        Args:
            predicted: Predicted cells.
            controls: Real controls.
            origin: The row of the controls that each predicted cell was made from. None: they were made from none, and
                all belong to the first half; of cells that were made from all controls the second half is then still a
                part, which lowers the scores.
            seed: Seed of the halves.

        Raises:
            ValueError: If there are fewer than two controls, or the origins are not a row for each predicted cell, some
                of them in the first half.
        """
        first, second = halves(len(controls), seed)
        if origin is None:
            return cls(predicted, controls[first], controls[second])
        rows = np.asarray(origin)
        if rows.shape != (len(predicted),) or not np.isin(rows, np.arange(len(controls))).all():
            raise ValueError(
                f"expected a row of the {len(controls)} controls for each of {len(predicted)} predicted cells as "
                f"origin, got shape {list(rows.shape)}; for one from each pass origin=np.arange({len(controls)})"
            )
        kept = np.isin(rows, first)
        if not kept.any():
            raise ValueError("expected predicted cells from both halves of the controls, got none from the first")
        return cls(predicted[kept], controls[first], controls[second])


def halves(size: int, seed: int = 0) -> tuple[Int[np.ndarray, " first"], Int[np.ndarray, " second"]]:
    """Positions of two random halves, in ascending order; of an odd number the second has one more.

    Raises:
        ValueError: If there are fewer than two cells.
    """
    if size < 2:
        raise ValueError(f"expected at least two cells to halve, got {size}")
    order = np.random.default_rng(seed).permutation(size)
    return np.sort(order[: size // 2]), np.sort(order[size // 2 :])


@dataclass(frozen=True)
class PerturbationScores:
    """Scores of one prediction for one held-out group; NaN is a score that these cells cannot have.

    Attributes:
        r2: R^2 of the means over all genes.
        rmse: Root mean squared error of the means, log-counts.
        r2_shift: R^2 of the shift, shared controls.
        r2_shift_top: The same over the genes of the largest real shift.
        pearson_shift: Correlation of the shifts, shared controls.
        pearson_shift_top: The same over the genes of the largest real shift.
        r2_shift_split: R^2 of the shift, split controls.
        pearson_shift_split: Correlation of the shifts, split controls.
        pearson_systema: Correlation of what differs from the mean of the context's other perturbed groups.
        energy_distance: Unbiased Euclidean energy distance.
        mmd: Unbiased squared maximum mean discrepancy.
        de_overlap: Share of the most changed real genes that are found.
        de_direction_match: Share of the changed real genes with the right sign.
        de_spearman: Rank correlation of the fold changes of the changed real genes.
    """

    r2: float
    rmse: float
    r2_shift: float
    r2_shift_top: float
    pearson_shift: float
    pearson_shift_top: float
    r2_shift_split: float
    pearson_shift_split: float
    pearson_systema: float
    energy_distance: float
    mmd: float
    de_overlap: float
    de_direction_match: float
    de_spearman: float


def score_perturbation(
    *,
    real: Cells,
    predicted: Cells,
    controls: Cells,
    origin: Int[np.ndarray, " predicted"] | None = None,
    split: ControlSplit | None = None,
    centroids: Float[np.ndarray, "groups genes"] | None = None,
    projection: Projection | None = None,
    top: int = 50,
    seed: int = 0,
) -> PerturbationScores:
    """All scores of the predicted cells of one held-out group.

    Everything is log-normalised alike (`log_normalise`). The tests of genes compare the predicted cells with the real
    controls: controls that were all moved alike have no zeros, and find other genes than cells do.

    Args:
        real: Real perturbed cells of the group.
        predicted: Predicted cells of the same genes.
        controls: Real controls of the group.
        origin: The row of the controls that each predicted cell was made from, for the split controls: so
            ``np.arange(len(controls))`` for one cell from each. None: see `ControlSplit.of`.
        split: A split of the controls with what was predicted without its second half; None for a random one.
        centroids: Mean of each perturbed group of training cells of the same context, for ``pearson_systema``, which
            needs many; None leaves it NaN.
        projection: What maps cells to the space of the two distances, fitted to training cells; None for the genes.
        top: Number of genes for the scores over few, at least 2.
        seed: Seed of the split.

    Raises:
        ValueError: If the cells are not finite matrices of the same genes, there are fewer than two controls, or
            ``top`` is below 2.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> controls, shift = rng.normal(2, 0.1, size=(40, 30)), np.linspace(0, 1, 30)
        >>> real = rng.normal(2, 0.1, size=(40, 30)) + shift
        >>> scores = score_perturbation(real=real, predicted=controls + shift, controls=controls, top=10)
        >>> scores.pearson_shift > 0.99, scores.de_overlap
        (True, 1.0)
    """
    real, predicted, controls = checked_cells(real=real, predicted=predicted, controls=controls)
    halved = ControlSplit.of(predicted, controls, origin=origin, seed=seed) if split is None else split
    shared = _shifts(real, predicted, controls, None, None)
    shared_top = _shifts(real, predicted, controls, None, top)
    apart = _shifts(real, halved.predicted, halved.second, halved.first, None)
    here, there = (cells if projection is None else projection.transform(cells) for cells in (real, predicted))
    truth, found = rank_sum_test(real, controls), rank_sum_test(predicted, controls)
    return PerturbationScores(
        r2=r2_of_means(real, predicted),
        rmse=rmse_of_means(real, predicted),
        r2_shift=_r2(*shared),
        r2_shift_top=_r2(*shared_top),
        pearson_shift=_pearson(*shared),
        pearson_shift_top=_pearson(*shared_top),
        r2_shift_split=_r2(*apart),
        pearson_shift_split=_pearson(*apart),
        pearson_systema=np.nan if centroids is None else pearson_of_shift(real, predicted, centroids),
        energy_distance=energy_distance(here, there),
        mmd=maximum_mean_discrepancy(here, there),
        de_overlap=de_overlap(truth, found, top),
        de_direction_match=de_direction_match(truth, found),
        de_spearman=de_spearman(truth, found),
    )


def perturbation_table(scores: Mapping[str, Mapping[str, PerturbationScores]]) -> pd.DataFrame:
    """Scores of several methods on several held-out groups, with the means over groups.

    Args:
        scores: Scores by group and then by method.

    Returns:
        One row per group and method, and last the ``"mean"`` of each method over the groups that have the score.

    Raises:
        ValueError: If there is no score, or a group is called ``"mean"``.
    """
    rows = {(group, name): asdict(found) for group, methods in scores.items() for name, found in methods.items()}
    if not rows or "mean" in scores:
        raise ValueError(f"expected scores of groups of which none is called 'mean', got {list(scores)}")
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = pd.MultiIndex.from_tuples(list(rows), names=["group", "method"])
    means = table.groupby(level="method", sort=False).mean()
    return pd.concat([table, pd.concat({"mean": means}, names=["group"])])


def _shifts(
    real: Cells, predicted: Cells, controls: Cells, predicted_controls: Cells | None, top: int | None
) -> tuple[Genes, Genes]:
    """Real and predicted shift over the genes of the largest absolute real shift."""
    if top is not None and top < 2:
        raise ValueError(f"expected top to be at least 2 genes, got {top!r}; None takes all")
    own = controls if predicted_controls is None else predicted_controls
    means = [cells.mean(0) for cells in checked_cells(real=real, predicted=predicted, controls=controls, own=own)]
    shift = means[0] - means[2]
    genes = np.argsort(-np.abs(shift), kind="stable")[:top]
    return shift[genes], (means[1] - means[3])[genes]


def _r2(real: Genes, predicted: Genes) -> float:
    return float(r2_score(real, predicted)) if np.ptp(real) > 0 else np.nan


def _pearson(real: Genes, predicted: Genes) -> float:
    # Means of the same cells differ by rounding, which would correlate with something.
    if min(np.ptp(real), np.ptp(predicted)) < 1e-9:
        return 0.0
    return float(np.corrcoef(real, predicted)[0, 1])
