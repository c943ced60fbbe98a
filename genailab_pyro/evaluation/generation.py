"""Whether generated counts look like real ones: gene by gene, gene against gene, and to a classifier."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData
from jaxtyping import Float
from scipy import sparse
from scipy.stats import linregress, rankdata, spearmanr
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from genailab_pyro.evaluation.genes import GeneStatistics
from genailab_pyro.evaluation.perturbation import log_normalise

Matrix = Float[np.ndarray, "cells genes"]
FLOOR = 1e-3  # counts; below it, the logarithm of a mean or variance says nothing


class Agreement(NamedTuple):
    """How a statistic of each gene agrees between real and generated cells.

    Attributes:
        rank: Spearman correlation over genes; 1 is perfect.
        slope: Of the generated on the real statistic; 1 is perfect. For mean and variance, of their logarithms.
    """

    rank: float
    slope: float


def gene_agreement(real: sparse.csr_matrix, generated: sparse.csr_matrix) -> dict[str, Agreement]:
    """Agreement of the mean, the variance and the share of zeros of each gene.

    Args:
        real: Counts, shape ``[cells, genes]``.
        generated: Counts of other cells over the same genes.

    Returns:
        By ``"mean"``, ``"variance"`` and ``"zero_fraction"``.

    Raises:
        ValueError: If the genes differ in number, or there are fewer than two cells on a side.
    """
    _check_pair(real, generated)
    found, asked = GeneStatistics.of(sparse.csr_matrix(generated)), GeneStatistics.of(sparse.csr_matrix(real))
    agreements = {}
    for name in GeneStatistics._fields:
        one, other = getattr(asked, name), getattr(found, name)
        if name != "zero_fraction":
            one, other = np.log(np.maximum(one, FLOOR)), np.log(np.maximum(other, FLOOR))
        constant = np.ptp(one) == 0 or np.ptp(other) == 0
        agreements[name] = Agreement(
            float("nan") if constant else float(spearmanr(one, other).statistic),
            float("nan") if constant else float(linregress(one, other).slope),
        )
    return agreements


def correlation_preservation(real: Matrix, generated: Matrix) -> float:
    """Pearson correlation of gene-gene correlations, over all pairs of genes that vary on both sides; 1 is perfect.

    Correlations are of ranks (Spearman), of log-normalised values. With few cells they are noisy: read it beside that
    of one half of the real cells against the other.

    Args:
        real: Log-normalised values, shape ``[cells, genes]``.
        generated: Those of other cells over the same genes.

    Raises:
        ValueError: If fewer than three genes vary on both sides.

    References:
        Crowell, Morillo Leonardo, Soneson, Robinson (2023). The shaky foundations of simulating single-cell RNA
        sequencing data. doi:10.1186/s13059-023-02904-1 (gene correlations as a summary; they compare distributions)
    """
    _check_pair(real, generated)
    vary = (np.ptp(real, axis=0) > 0) & (np.ptp(generated, axis=0) > 0)
    if vary.sum() < 3:
        raise ValueError(f"expected at least three genes that vary on both sides, got {vary.sum()}")
    upper = np.triu_indices(int(vary.sum()), 1)
    ranks = [rankdata(values[:, vary], axis=0) for values in (real, generated)]
    one, other = (np.asarray(np.corrcoef(item.T))[upper] for item in ranks)
    return float(np.corrcoef(one, other)[0, 1])


def pathway_concordance(
    real: AnnData, generated: AnnData, gene_sets: Mapping[str, Sequence[str]], groupby: str
) -> float:
    """Pearson correlation, over groups and gene sets, of mean pathway activity, less that of each set's mean.

    The activity of a set in a cell is the mean log-normalised expression of its genes. Sets differ more in level than
    groups do within a set; without taking the mean of each set away, any two data sets agree.

    Args:
        real: Counts in ``.X``.
        generated: Counts over the same genes.
        gene_sets: Names of genes by the name of the set; genes that are not there are passed over.
        groupby: Column of ``.obs`` with the groups, which must be the same on both sides.

    Raises:
        ValueError: If a set has no gene here, or there are fewer than two groups in common.
    """
    found = {name: [gene for gene in genes if gene in real.var_names] for name, genes in gene_sets.items()}
    empty = [name for name, genes in found.items() if not genes]
    if empty or not found:
        which = ", ".join(map(repr, empty)) or "any"
        raise ValueError(f"expected gene sets with genes of the cells, got no gene of {which}; use their names")
    groups = sorted(set(real.obs[groupby]) & set(generated.obs[groupby]))
    if len(groups) < 2:
        raise ValueError(f"expected at least two groups of {groupby!r} on both sides, got {len(groups)}")
    profiles = []
    for cells in (real, generated):
        values = pd.DataFrame(log_normalise(cells.X), columns=cells.var_names)
        activity = pd.DataFrame({name: values[genes].mean(axis=1) for name, genes in found.items()})
        means = activity.groupby(cells.obs[groupby].to_numpy()).mean().loc[groups]
        profiles.append((means - means.mean()).to_numpy().ravel())
    return float(np.corrcoef(profiles[0], profiles[1])[0, 1])


def classifier(num_components: int = 30, seed: int = 0) -> Pipeline:
    """Logistic regression on standardised principal components, balanced over classes."""
    return make_pipeline(
        PCA(num_components, svd_solver="randomized", random_state=seed),
        StandardScaler(),
        LogisticRegression(max_iter=2000, class_weight="balanced"),
    )


def two_sample_auc(real: Matrix, generated: Matrix, *, num_components: int = 30, seed: int = 0) -> float:
    """Area under the curve of a classifier that tells generated from real cells, cross-validated; .5 is perfect.

    A linear classifier sees differences of means and little more; .5 does not prove that two distributions are equal.

    Args:
        real: Log-normalised values, shape ``[cells, genes]``.
        generated: Those of other cells over the same genes.
        num_components: Principal components that it sees; at most as many as genes and cells.
        seed: Seed of the folds.

    Raises:
        ValueError: If there are fewer than ten cells on a side.

    References:
        Lopez-Paz, Oquab (2017). Revisiting classifier two-sample tests. doi:10.48550/arXiv.1610.06545 (accuracy; here
        the area under the curve, which does not depend on a threshold)
    """
    _check_pair(real, generated, least=10)
    values, codes = np.concatenate([real, generated]), np.repeat([0, 1], [len(real), len(generated)])
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    components = min(num_components, values.shape[1], int(0.8 * len(values)) - 1)
    scores = cross_val_predict(classifier(components, seed), values, codes, cv=folds, method="decision_function")
    return float(roc_auc_score(codes, scores))


def transfer_accuracy(
    train: Matrix, labels: npt.NDArray[Any], test: Matrix, test_labels: npt.NDArray[Any], *, seed: int = 0
) -> float:
    """Balanced accuracy on real cells of a classifier that was trained on others, such as generated ones.

    Args:
        train: Log-normalised values to train on.
        labels: Their labels.
        test: Log-normalised values of real cells that neither the classifier nor the generator has seen.
        test_labels: Their labels.
        seed: Seed of the principal components.

    References:
        Esteban, Hyland, Rätsch (2017). Real-valued (medical) time series generation with recurrent conditional GANs.
        doi:10.48550/arXiv.1706.02633 (train on synthetic, test on real)
    """
    components = min(30, train.shape[1], len(train) - 1)
    fitted = classifier(components, seed).fit(train, labels)
    return float(balanced_accuracy_score(test_labels, fitted.predict(test)))


def fidelity(
    real: AnnData, generated: AnnData, *, groupby: str | None = None, reference: AnnData | None = None, seed: int = 0
) -> pd.DataFrame:
    """All scores of generated counts, for each group of cells, beside those of real cells.

    Args:
        real: Real cells that the model was not trained on, counts in ``.X``.
        generated: Generated cells over the same genes.
        groupby: Column of ``.obs``, such as a condition; None for all cells together. Groups of fewer than ten cells
            on a side are left out.
        reference: Other real cells, to see what real cells score; None to split the real ones in halves.
        seed: Seed of halves, folds and components.

    Returns:
        One row per group and source (``group``, ``source``: ``"generated"`` or ``"real"``): rank and slope of each
        gene's mean, variance and zero fraction, ``correlations``, ``auc``, and numbers of cells.

    Raises:
        ValueError: If the genes differ, or no group has enough cells.
    """
    if [*real.var_names] != [*generated.var_names]:
        raise ValueError("expected generated cells over the genes of the real ones, in the same order, got others")
    if reference is None:
        order = np.random.default_rng(seed).permutation(real.n_obs)
        real, reference = real[order[: real.n_obs // 2]], real[order[real.n_obs // 2 :]]
    groups = ["all"] if groupby is None else sorted(map(str, set(real.obs[groupby])))
    rows = {}
    for group in groups:
        parts = [
            cells if groupby is None else cells[cells.obs[groupby].astype(str) == group]
            for cells in (real, generated, reference)
        ]
        if min(part.n_obs for part in parts) < 10:
            continue
        one = parts[0]
        for source, other in {"generated": parts[1], "real": parts[2]}.items():
            rows[group, source] = _scores(one.X, other.X, seed)
    if not rows:
        raise ValueError("expected a group of at least ten cells on each side, got none; leave groupby out")
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["group", "source"])


def _scores(real: sparse.csr_matrix, other: sparse.csr_matrix, seed: int) -> dict[str, float]:
    agreements = gene_agreement(real, other)
    values, others = log_normalise(real), log_normalise(other)
    scores = {
        f"{name}_{field}": value
        for name, agreement in agreements.items()
        for field, value in agreement._asdict().items()
    }
    return {
        **scores,
        "correlations": correlation_preservation(values, others),
        "auc": two_sample_auc(values, others, seed=seed),
        "real_cells": real.shape[0],
        "other_cells": other.shape[0],
    }


def _check_pair(real: sparse.csr_matrix | Matrix, generated: sparse.csr_matrix | Matrix, least: int = 2) -> None:
    if real.shape[1] != generated.shape[1]:
        raise ValueError(f"expected the same genes on both sides, got {real.shape[1]} and {generated.shape[1]}")
    if min(real.shape[0], generated.shape[0]) < least:
        raise ValueError(f"expected at least {least} cells on each side, got {real.shape[0]} and {generated.shape[0]}")
