"""Confounded data from randomised data: a treatment that comes to depend on what the cells are."""

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Float
from scipy.special import expit
from scipy.stats import rankdata

from genailab_pyro.data.validation import check_anndata, check_names


def confound(adata: AnnData, treatment: str, level: str, by: str, *, odds: float = 16.0, seed: int = 0) -> AnnData:
    r"""Keep cells so that who is treated depends on a covariate, and nothing else does.

    A cell of score :math:`s_n`, which goes from -1 to 1 over the levels of the covariate, or over the ranks of its
    values, is kept with the probability

    .. math::
        \mathrm{expit}(\pm \tfrac{1}{2} s_n \log \mathrm{odds}),

    plus for the treated, minus for all others. The odds of being treated are those that they were times
    :math:`\mathrm{odds}^{s_n/2}`: between the two ends of the covariate they differ by the factor ``odds``. Where half
    of the cells were treated at random, half of the cells are kept, and the mix of the covariate is what it was. Given
    covariate and treatment, cells are kept whatever their counts are: the covariate is the one confounder.

    Args:
        adata: Cells whose treatment was given at random; they stay as they are.
        treatment: Column of ``adata.obs`` with the treatment.
        level: The level whose odds change against those of all others.
        by: Column of ``adata.obs`` with the covariate: numbers, or categories, whose order is that of their scores.
        odds: Odds ratio of the treatment between the two ends, above 0; 1 keeps half of the cells at random.
        seed: Seed of the draws.

    Returns:
        A copy of the cells kept, under the names that they had: the rows of a `Truth` that are theirs are
        ``adata.obs_names.get_indexer(kept.obs_names)``.

    Raises:
        TypeError: If ``adata`` is no AnnData.
        ValueError: If a column or level is unknown, the covariate is missing somewhere or the same everywhere, or the
            odds are not above zero and finite.

    References:
        Robins, Hernan, Brumback (2000). Marginal structural models and causal inference in epidemiology.
        doi:10.1097/00001648-200009000-00011 (whose weights undo such a dependence)

    Example:
        >>> import genailab_pyro as glp
        >>> adata = glp.data.simulate(2000, 20, 2, perturbations=glp.data.Perturbations(number=1)).adata
        >>> obs = confound(adata, "perturbation", "perturbation1", "cell_type").obs
        >>> obs["perturbation"].eq("perturbation1").groupby(obs["cell_type"], observed=True).mean().round(1).to_dict()
        {'type0': 0.2, 'type1': 0.8}
    """
    check_anndata(adata)
    check_names({treatment: None, by: None}, [*map(str, adata.obs)], "column of adata.obs")
    check_names({level: None}, [*map(str, adata.obs[treatment].unique())], f"level of {treatment!r}")
    if not 0 < odds < np.inf:
        raise ValueError(f"expected odds above zero and finite, got {odds!r}; 1 leaves the treatment independent")
    treated = (adata.obs[treatment].astype(str) == level).to_numpy()
    steps = np.where(treated, 0.5, -0.5) * _scores(adata.obs[by]) * np.log(odds)
    return adata[np.random.default_rng(seed).random(adata.n_obs) < expit(steps)].copy()


def _scores(covariate: pd.Series) -> Float[np.ndarray, " cells"]:
    """From -1 to 1 over the levels of categories, or over the ranks of numbers."""
    if covariate.isna().any():
        raise ValueError(f"expected a value in every cell of {covariate.name!r}, got {covariate.isna().sum()} missing")
    if pd.api.types.is_numeric_dtype(covariate) and not pd.api.types.is_bool_dtype(covariate):
        places = rankdata(covariate.to_numpy())
    else:
        places = covariate.astype("category").cat.remove_unused_categories().cat.codes.to_numpy().astype(float)
    if np.ptp(places) == 0:
        raise ValueError(f"expected {covariate.name!r} to differ between cells, got one value; name another column")
    return 2 * (places - places.min()) / np.ptp(places) - 1
