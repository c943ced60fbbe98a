"""Whether each latent stands for one factor: mutual information gap, DCI, and the gap of attribute predictability.

Factors are what is known of each cell: text, categories, booleans and whole numbers are discrete; floating-point
numbers are continuous. In an array all factors are of the array's kind; a DataFrame may mix them.

References:
    Locatello, Bauer, Lucic, Raetsch, Gelly, Schoelkopf, Bachem (2019). Challenging common assumptions in the
    unsupervised learning of disentangled representations. doi:10.48550/arXiv.1811.12359
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from jaxtyping import Float, Int
from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor
from sklearn.metrics import mutual_info_score
from sklearn.model_selection import train_test_split
from sklearn.svm import LinearSVC

_BINS = 20
_FEWEST = 4  # cells at each level of a factor, of which one is held out

Factors = pd.DataFrame | pd.Series | npt.ArrayLike


@dataclass(frozen=True)
class _Factor:
    """One factor: codes of its levels where it is discrete, standardised values where it is continuous."""

    values: Int[np.ndarray, " cells"] | Float[np.ndarray, " cells"]
    discrete: bool

    @property
    def codes(self) -> Int[np.ndarray, " cells"]:
        return self.values if self.discrete else _binned(self.values)

    def split(self, latents: Float[np.ndarray, "cells latent"], seed: int) -> list[Any]:
        """Latents and values of three quarters of the cells and of the rest; each level is in both."""
        strata = self.values if self.discrete else None
        return train_test_split(latents, self.values, test_size=0.25, random_state=seed, stratify=strata)


def mutual_information_gap(latents: Float[np.ndarray, "cells latent"], factors: Factors) -> float:
    r"""Mean over factors of how much more the best latent tells of a factor than the second best.

    .. math::
        MIG = \frac1K \sum_k \frac{I(z_{(1)}; v_k) - I(z_{(2)}; v_k)}{H(v_k)},

    with latents (and continuous factors) cut into 20 bins of equal width from their smallest to their largest value,
    and information from the table of counts, as in Locatello et al. Chen et al. integrate over the posteriors
    instead. Information from counts is too high by about (bins - 1) (levels - 1) / 2N nats, which the gap mostly
    cancels; outliers leave few bins to the other cells.

    Args:
        latents: One row per cell, such as ``fit.latent()``.
        factors: What is known of the cells, shape ``[cells, factors]``.

    Returns:
        Between 0 and 1; 1 where each factor is told by one latent, and by no other.

    Raises:
        ValueError: If latents and factors do not fit, are not finite, or a factor is the same in all cells.

    References:
        Chen, Li, Grosse, Duvenaud (2018). Isolating sources of disentanglement in variational autoencoders.
        doi:10.48550/arXiv.1802.04942

    Example:
        >>> factors = np.random.default_rng(0).integers(4, size=(500, 2))
        >>> round(mutual_information_gap(factors.astype(float), factors), 2)
        0.99
    """
    values, columns = _checked(latents, factors)
    binned = [_binned(column) for column in values.T]
    information = np.array([[mutual_info_score(codes, factor.codes) for factor in columns] for codes in binned])
    entropy = np.array([mutual_info_score(factor.codes, factor.codes) for factor in columns])
    return float((_gap(information) / entropy).mean())


@dataclass(frozen=True)
class DCI:
    """Three scores of a representation.

    Attributes:
        disentanglement: 1 where each latent is important for one factor alone.
        completeness: 1 where one latent alone is important for each factor.
        informativeness: How well the latents together predict the factors of held-out cells: mean over factors of the
            accuracy (discrete; chance is not 0, but the share of the largest level) or of R^2 (continuous, at least 0).
    """

    disentanglement: float
    completeness: float
    informativeness: float


def dci(latents: Float[np.ndarray, "cells latent"], factors: Factors, *, seed: int = 0) -> DCI:
    r"""Disentanglement, completeness and informativeness by gradient-boosted trees.

    Trees predict each factor k from all latents; :math:`R_{dk}` is the importance of latent d for it (share of the
    impurity that splits on d remove). With D latents and K factors,

    .. math::
        \text{disentanglement} = \sum_d \rho_d \Big(1 - H_K\Big(\frac{R_{d\cdot}}{\sum_k R_{dk}}\Big)\Big), \quad
        \text{completeness} = \sum_k \omega_k \Big(1 - H_D\Big(\frac{R_{\cdot k}}{\sum_d R_{dk}}\Big)\Big),

    where :math:`H_K` is the entropy to base K, and :math:`\rho_d`, :math:`\omega_k` are the shares of the latent and of
    the factor in the sum of R. Trees, weights and accuracy are those of Locatello et al., with scikit-learn's defaults.
    Eastwood and Williams use a lasso and random forests as well, and report informativeness as an error. With one
    factor every latent is disentangled, and with one latent every factor complete. There are a hundred trees for each
    level of a factor: some thousand cells are enough.

    Args:
        latents: One row per cell, such as ``fit.latent()``.
        factors: What is known of the cells, shape ``[cells, factors]``.
        seed: Seed of the split (a quarter of the cells is held out) and of the trees.

    Raises:
        ValueError: If latents and factors do not fit, are not finite, a factor is the same in all cells, or a level
            has less than four cells.

    References:
        Eastwood, Williams (2018). A framework for the quantitative evaluation of disentangled representations.
        https://openreview.net/forum?id=By-7dz-AZ

    Example:
        >>> factors = np.random.default_rng(0).integers(2, size=(200, 2))
        >>> scores = dci(factors.astype(float), factors)
        >>> round(scores.disentanglement, 3), round(scores.completeness, 3), scores.informativeness
        (1.0, 1.0, 1.0)
    """
    values, columns = _checked(latents, factors, fewest=_FEWEST)
    importances, scores = [], []
    for factor in columns:
        kind = GradientBoostingClassifier if factor.discrete else GradientBoostingRegressor
        train, test, train_values, test_values = factor.split(values, seed)
        trees = kind(random_state=seed).fit(train, train_values)
        importances.append(trees.feature_importances_)
        scores.append(max(trees.score(test, test_values), 0.0))
    importance = np.stack(importances, axis=1)
    return DCI(_concentration(importance), _concentration(importance.T), float(np.mean(scores)))


def separated_attribute_predictability(
    latents: Float[np.ndarray, "cells latent"], factors: Factors, *, seed: int = 0
) -> float:
    """Mean over factors of how much better the best single latent predicts a factor linearly than the second best.

    A latent's score is, for a continuous factor, their squared correlation over all cells, and for a discrete one the
    accuracy on held-out cells of a linear support vector machine (C = 0.01, levels weighted alike), as in Locatello et
    al. Here latents are standardised first, so that the score does not depend on their units, and the accuracy is the
    mean of that of each level, so that the commonest level is no score.

    Args:
        latents: One row per cell, such as ``fit.latent()``.
        factors: What is known of the cells, shape ``[cells, factors]``.
        seed: Seed of the split (a quarter of the cells is held out).

    Returns:
        Between 0 and 1; as chance is above 0 for a discrete factor, the best is 1 - 1 / levels there.

    Raises:
        ValueError: If latents and factors do not fit, are not finite, a factor is the same in all cells, or a level
            has less than four cells.

    References:
        Kumar, Sattigeri, Balakrishnan (2018). Variational inference of disentangled latent concepts from unlabeled
        observations. doi:10.48550/arXiv.1711.00848

    Example:
        >>> factors = np.random.default_rng(0).normal(size=(500, 2))
        >>> round(separated_attribute_predictability(factors, factors), 2)
        1.0
    """
    values, columns = _checked(latents, factors, fewest=_FEWEST)
    values = _standardised(values)
    return float(_gap(np.stack([_predictability(values, factor, seed) for factor in columns], axis=1)).mean())


def disentanglement(latents: Float[np.ndarray, "cells latent"], factors: Factors, *, seed: int = 0) -> pd.Series:
    """All scores of a latent space against known factors.

    Args:
        latents: One row per cell, such as ``fit.latent()``.
        factors: What is known of the cells, shape ``[cells, factors]``.
        seed: Seed of the splits and of the trees.

    Returns:
        ``mig``, ``dci_disentanglement``, ``dci_completeness``, ``dci_informativeness`` and ``sap``; each is 0 at worst
        and 1 at best, but for what their functions say of discrete factors.

    Raises:
        ValueError: If latents and factors do not fit, are not finite, a factor is the same in all cells, or a level
            has less than four cells.

    Example:
        >>> import genailab_pyro as glp
        >>> adata, truth = glp.data.simulate(200, 30, num_types=2, seed=0)
        >>> disentanglement(truth.latent, adata.obs[["cell_type"]]).index.tolist()
        ['mig', 'dci_disentanglement', 'dci_completeness', 'dci_informativeness', 'sap']
    """
    scores = {f"dci_{name}": score for name, score in asdict(dci(latents, factors, seed=seed)).items()}
    gap = mutual_information_gap(latents, factors)
    predictability = separated_attribute_predictability(latents, factors, seed=seed)
    return pd.Series({"mig": gap, **scores, "sap": predictability}, name="disentanglement")


def _checked(
    latents: Any, factors: Factors, fewest: int = 1
) -> tuple[Float[np.ndarray, "cells latent"], list[_Factor]]:
    values = np.asarray(latents, dtype=float)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ValueError(
            f"expected finite latents of shape [cells, latent], got shape {list(values.shape)} with "
            f"{np.count_nonzero(~np.isfinite(values))} values NaN or infinite"
        )
    if not isinstance(factors, pd.DataFrame | pd.Series):
        factors = np.asarray(factors)
    frame = pd.DataFrame(factors)
    if len(frame) != len(values) or not frame.shape[1]:
        raise ValueError(
            f"expected factors of shape [{len(values)}, factors], one row for each row of the latents, got "
            f"{list(frame.shape)}"
        )
    return values, [_factor(str(name), column, fewest) for name, column in frame.items()]


def _factor(name: str, column: pd.Series, fewest: int) -> _Factor:
    continuous = pd.api.types.is_float_dtype(column)
    missing = ~np.isfinite(column.to_numpy(dtype=float)) if continuous else column.isna().to_numpy()
    if missing.any():
        raise ValueError(
            f"expected a known value of the factor {name!r} in every cell, got {missing.sum()} missing or infinite; "
            "leave these cells out of latents and factors"
        )
    codes, levels = pd.factorize(column, sort=False)
    if len(levels) < 2:
        raise ValueError(f"expected at least two values of the factor {name!r}, got {len(levels)}; leave it out")
    if continuous:
        return _Factor(_standardised(column.to_numpy(dtype=float)), discrete=False)
    sizes = np.bincount(codes)
    rarest = int(sizes.argmin())
    size = sizes[rarest]
    if size < fewest:
        raise ValueError(
            f"expected at least {fewest} cells at each level of the factor {name!r}, to hold one out, got {size} at "
            f"{levels[rarest]!r}; leave these cells out, or pass a number as floating-point: it is then continuous"
        )
    return _Factor(codes, discrete=True)


def _standardised(values: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Mean 0 and standard deviation 1; a constant is 0 throughout."""
    centred = values - values.mean(0)
    scale = centred.std(0)
    constant = scale <= 1e-12 * np.abs(values).max(0)
    return np.where(constant, 0.0, centred / np.where(constant, 1.0, scale))


def _binned(values: Float[np.ndarray, " cells"]) -> Int[np.ndarray, " cells"]:
    return np.digitize(values, np.histogram_bin_edges(values, _BINS)[1:-1])


def _gap(scores: Float[np.ndarray, "latent factors"]) -> Float[np.ndarray, " factors"]:
    """The best latent's score less the second best; a single latent has none beside it."""
    second, best = np.sort(np.vstack([np.zeros_like(scores[:1]), scores]), axis=0)[-2:]
    return best - second


def _concentration(importance: Float[np.ndarray, "rows columns"]) -> float:
    """How far the importance of each row lies in one column: 1 - entropy, rows weighted by their share of the sum."""
    totals = importance.sum(1)
    used, columns = totals > 0, importance.shape[1]
    if columns < 2 or not used.any():
        return float(used.any())
    shares = importance[used] / totals[used, None]
    entropy = -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(1) / np.log(columns)
    return float(np.average(1 - entropy, weights=totals[used]))


def _predictability(
    latents: Float[np.ndarray, "cells latent"], factor: _Factor, seed: int
) -> Float[np.ndarray, " latent"]:
    if not factor.discrete:
        return (latents * factor.values[:, None]).mean(0) ** 2
    train, test, train_codes, test_codes = factor.split(latents, seed)
    scores = []
    for column in range(latents.shape[1]):
        machine = LinearSVC(C=0.01, class_weight="balanced", dual=False)
        predicted = machine.fit(train[:, [column]], train_codes).predict(test[:, [column]])
        scores.append(np.mean([np.mean(predicted[test_codes == code] == code) for code in np.unique(test_codes)]))
    return np.array(scores)
