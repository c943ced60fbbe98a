"""Clusters of cells in the latent space, how stable they are, and cells that are like none the model has seen."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Float, Int
from sklearn.linear_model import LinearRegression
from sklearn.metrics import adjusted_rand_score
from sklearn.metrics.cluster import contingency_matrix
from sklearn.model_selection import KFold
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import SplineTransformer

from genailab_pyro.analysis.annotate import annotate
from genailab_pyro.data.cells import Cells
from genailab_pyro.threads import threads_kept
from genailab_pyro.train.fitted import Fit

FEWEST_CELLS = 20


def discover(
    fit: Fit,
    adata: AnnData,
    *,
    resolution: float = 1.0,
    num_neighbours: int = 15,
    key: str = "X_vae",
    umap: bool = True,
    tsne: bool = False,
    seed: int = 0,
) -> AnnData:
    """A copy of the cells with their latent, its neighbours, Leiden clusters and maps, where scanpy has them.

    Args:
        fit: The fitted model.
        adata: The cells, with at least the fit's genes.
        resolution: Of the Leiden clusters, above 0: the higher, the more clusters.
        num_neighbours: Neighbours of a cell in the graph, at least 2 and fewer than the cells.
        key: Slot of the latent in ``obsm``.
        umap: Whether to add ``obsm["X_umap"]``.
        tsne: Whether to add ``obsm["X_tsne"]``.
        seed: Seed of the posterior draws, the clusters and the maps.

    Returns:
        The copy of `annotate`, with ``obsm[key]`` (posterior means), ``obsm[key + "_sd"]`` (their posterior standard
        deviations), ``obs["latent_sd"]`` (root of the mean variance over latents), ``uns["neighbors"]`` and its two
        matrices in ``obsp``, ``obs["leiden"]``, and the maps.

    Raises:
        ValueError: If the data do not fit the registration, or a number is out of range.

    References:
        Traag, Waltman, van Eck (2019). From Louvain to Leiden: guaranteeing well-connected communities.
        doi:10.1038/s41598-019-41695-z
        Wolf, Angerer, Theis (2018). SCANPY: large-scale single-cell gene expression data analysis.
        doi:10.1186/s13059-017-1382-0

    Example:
        >>> import genailab_pyro as glp
        >>> adata = glp.data.pbmc68k()
        >>> cells = glp.register(adata)
        >>> vae = glp.CVAE_NB.from_registration(cells, latent_dim=2, hidden_dims=[8])
        >>> found = discover(glp.fit(vae, cells, max_epochs=1, progress=False), adata, umap=False)
        >>> bool(found.obs["leiden"].notna().all()), found.obsm["X_vae_sd"].shape
        (True, (700, 2))
    """
    import scanpy as sc  # takes seconds to import

    _check_graph(adata.n_obs, resolution, num_neighbours)
    found = annotate(fit, adata, seed=seed)
    found.obsm[key] = found.obsm.pop("X_vae")
    found.obsm[f"{key}_sd"] = latent_sd(fit, adata, seed=seed)
    found.obs["latent_sd"] = np.sqrt((found.obsm[f"{key}_sd"] ** 2).mean(axis=1))
    _add_leiden(found, key, resolution, num_neighbours, seed)
    with threads_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # UMAP says that a seed leaves it one thread
        if umap:
            sc.tl.umap(found, random_state=seed)
        if tsne:
            perplexity = min(30.0, (found.n_obs - 1) / 3)
            sc.tl.tsne(found, use_rep=key, perplexity=perplexity, random_state=seed)
    return found


def latent_sd(
    fit: Fit, adata: AnnData | Cells | None = None, *, num_samples: int = 100, seed: int = 0
) -> Float[np.ndarray, "cells latent"]:
    """Posterior standard deviation of the latent of each cell, from draws.

    It is that of the approximate posterior, in units of the prior (one where a latent says nothing of the cell), for
    the weights of the model as they are.

    Args:
        fit: The fitted model.
        adata: The cells; None for those it was trained on.
        num_samples: Number of draws, at least 2.
        seed: Seed of the draws.

    Raises:
        ValueError: If there are too few draws.
    """
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 2:
        raise ValueError(f"expected num_samples to be a whole number of at least 2, got {num_samples!r}")
    return fit.posterior_samples(adata, num_samples=num_samples, seed=seed).std(axis=0, ddof=1)


@dataclass(frozen=True)
class ClusterStability:
    """Agreement of clusterings of the same cells.

    Attributes:
        clusters: Cluster of each cell in each run, shape ``[cells, runs]``.
        ari: Adjusted Rand index of each pair of runs, shape ``[runs, runs]``; 1 is perfect, 0 is chance.
        uncertainty: Co-clustering uncertainty of each cell, in [0, 1]: one minus the mean over pairs of runs of the
            share that its two clusters have in common, shape ``[cells]``.
    """

    clusters: pd.DataFrame
    ari: pd.DataFrame
    uncertainty: pd.Series

    @classmethod
    def of(cls, clusters: pd.DataFrame) -> "ClusterStability":
        r"""Agreement of clusterings that are at hand.

        The share of cell n in runs a and b is its element-centric similarity,
        :math:`|C_a \cap C_b| / \max(|C_a|, |C_b|)` for the clusters C that hold it.

        Args:
            clusters: Cluster of each cell in each run, shape ``[cells, runs]``, in at least two runs.

        Raises:
            ValueError: If there are fewer than two runs.

        References:
            Gates, Wood, Hetrick, Ahn (2019). Element-centric clustering comparison unifies overlaps and hierarchy.
            doi:10.1038/s41598-019-44892-y

        Example:
            >>> runs = pd.DataFrame({"a": [0, 0, 1, 1], "b": [0, 0, 0, 1]})
            >>> ClusterStability.of(runs).uncertainty.round(2).tolist()
            [0.33, 0.33, 0.67, 0.5]
        """
        codes = [pd.factorize(clusters[name])[0] for name in clusters]
        if len(codes) < 2:
            raise ValueError(f"expected at least two runs to compare, got {len(codes)}; fit again with another seed")
        ari, shares = np.eye(len(codes)), []
        for a in range(len(codes)):
            for b in range(a):
                ari[a, b] = ari[b, a] = adjusted_rand_score(codes[a], codes[b])
                shares.append(_common_share(codes[a], codes[b]))
        return cls(
            clusters,
            pd.DataFrame(ari, clusters.columns, clusters.columns),
            pd.Series(1 - np.mean(shares, axis=0), clusters.index, name="uncertainty"),
        )

    @property
    def mean_ari(self) -> float:
        """Mean adjusted Rand index over pairs of runs."""
        return float(self.ari.to_numpy()[np.triu_indices(len(self.ari), 1)].mean())


def cluster_stability(
    runs: Mapping[str, Fit | np.ndarray] | Sequence[Fit | np.ndarray],
    adata: AnnData | Cells | None = None,
    *,
    resolution: float = 1.0,
    num_neighbours: int = 15,
    seed: int = 0,
) -> ClusterStability:
    """How far Leiden clusters agree over refits of a model, or over any latents of the same cells.

    Args:
        runs: Fits or latents of shape ``[cells, latent]``, by name, or in a row; at least two.
        adata: The cells that the fits are asked about; None for those they were trained on, which must be the same.
        resolution: Of the Leiden clusters.
        num_neighbours: Neighbours of a cell in the graph.
        seed: Seed of the clusters, the same for all runs, so that only the latents differ.

    Raises:
        ValueError: If there are fewer than two runs, or they are of different cells.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> islands = np.repeat(10 * np.eye(3), 30, axis=0)
        >>> latents = [islands + rng.normal(size=islands.shape) for _ in range(2)]
        >>> cluster_stability(latents, resolution=0.1).mean_ari
        1.0
    """
    named = dict(runs) if isinstance(runs, Mapping) else {f"run {i + 1}": run for i, run in enumerate(runs)}
    if len(named) < 2:
        raise ValueError(f"expected at least two runs to compare, got {len(named)}; fit again with another seed")
    bound = [run.bind(adata) for run in named.values() if isinstance(run, Fit)]
    latents = {name: run.latent(adata) if isinstance(run, Fit) else np.asarray(run) for name, run in named.items()}
    sizes = {name: len(latent) for name, latent in latents.items()}
    if len(set(sizes.values())) > 1 or any(not np.array_equal(bound[0].obs_names, each.obs_names) for each in bound):
        raise ValueError(f"expected runs over the same cells, got {sizes}; pass the cells as adata")
    index = bound[0].obs_names if bound else np.arange(next(iter(sizes.values())))
    _check_graph(len(index), resolution, num_neighbours)
    clusters = {}
    for name, latent in latents.items():
        cells = AnnData(obsm={"X_vae": latent}, shape=(len(latent), 0))
        _add_leiden(cells, "X_vae", resolution, num_neighbours, seed)
        clusters[name] = cells.obs["leiden"].to_numpy()
    return ClusterStability.of(pd.DataFrame(clusters, index=pd.Index(index, name="cell")))


def novelty(
    fit: Fit,
    adata: AnnData | Cells,
    reference: AnnData | Cells | None = None,
    *,
    num_particles: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    r"""How unlike known cells each cell is, by its likelihood and by where it lies, both for its depth.

    A cell is new where the model explains its counts badly, or where it lies far from known cells: y is the negative
    importance-weighted log-likelihood, or the log distance of the latent to the nearest known cell. Both change with
    the library l, so each is compared with the reference cells of that library, by splines m and s of log l for their
    mean and mean absolute deviation. The score is the larger of the two, and p its rank among the R reference cells r,

    .. math::
        a_n = \max_y \frac{y_n - m_y(l_n)}{s_y(l_n)}, \qquad p_n = \frac{1 + \#\{r : a_r \ge a_n\}}{1 + R}.

    For cells that are exchangeable with the reference, p is close to uniform (exactly so but for the splines); it
    cannot be below 1 / (R + 1). A new kind of cell can pass unseen where its counts are easy to predict and a known
    kind is its near relative.

    Args:
        fit: The fitted model.
        adata: The cells.
        reference: Known cells that were not trained on, at least 20, none of which is among ``adata``; distances are to
            them. None for the validation cells of the fit, of which training saw only the ELBO that it stopped at, and
            distances to its training cells.
        num_particles: Draws per cell of the importance-weighted bound.
        seed: Seed of the draws.

    Returns:
        One row per cell: ``log_likelihood`` (nats), ``surprise`` and ``distance`` (the two terms of the maximum, in
        mean absolute deviations), ``score`` (the higher, the more novel) and ``p_value``.

    Raises:
        ValueError: If there are too few reference cells, or the data do not fit the registration.

    References:
        Bates, Candès, Lei, Romano, Sesia (2023). Testing for outliers with conformal p-values.
        doi:10.1214/22-AOS2244
        Nalisnick, Matsukawa, Teh, Gorur, Lakshminarayanan (2019). Do deep generative models know what they don't know?
        doi:10.48550/arXiv.1810.09136

    Example:
        >>> import genailab_pyro as glp
        >>> cells = glp.register(glp.data.pbmc68k())
        >>> known, new = cells.split(0.1)
        >>> vae = glp.CVAE_NB.from_registration(known, latent_dim=2, hidden_dims=[8])
        >>> fit = glp.fit(vae, known, max_epochs=1, progress=False)
        >>> novelty(fit, new, num_particles=5).columns.tolist()
        ['log_likelihood', 'surprise', 'distance', 'score', 'p_value']
    """
    known, around = (fit.bind(reference), None) if reference is not None else _known_cells(fit)
    if len(known) < FEWEST_CELLS:
        raise ValueError(
            f"expected at least {FEWEST_CELLS} reference cells, got {len(known)}; pass more cells that the model was "
            "not trained on as reference"
        )
    cells = fit.bind(adata)
    usual, found = (fit.log_likelihood(each, num_particles=num_particles, seed=seed) for each in (known, cells))
    latent = fit.latent(known)
    neighbours = NearestNeighbors(n_neighbors=1).fit(latent if around is None else fit.latent(around))
    # Without a query, scikit-learn leaves each cell out of its own neighbours.
    near = _log(neighbours.kneighbors(None if around is None else latent)[0])
    far = _log(neighbours.kneighbors(fit.latent(cells))[0])
    pairs = (-usual, -found), (near, far)
    terms = [_AtDepth.of(known.library, ours)(cells.library, theirs) for ours, theirs in pairs]
    score = np.maximum(*terms)
    usual_score = np.sort(np.maximum(*(_AtDepth.of_others(known.library, ours) for ours, _ in pairs)))
    at_least = len(known) - np.searchsorted(usual_score, score, side="left")
    return pd.DataFrame(
        {
            "log_likelihood": found,
            "surprise": terms[0],
            "distance": terms[1],
            "score": score,
            "p_value": (1 + at_least) / (1 + len(known)),
        },
        index=pd.Index(cells.obs_names, name="cell"),
    )


@dataclass(frozen=True)
class _AtDepth:
    """Values in mean absolute deviations from the mean of reference cells of the same library.

    Attributes:
        loc: Mean by log library.
        scale: Mean absolute deviation by log library.
        least: What the latter is not allowed to fall below.
    """

    loc: Pipeline
    scale: Pipeline
    least: float

    @classmethod
    def of(cls, library: Float[np.ndarray, " cells"], values: Float[np.ndarray, " cells"]) -> "_AtDepth":
        loc, scale = (
            make_pipeline(
                SplineTransformer(4, degree=degree, knots="quantile", extrapolation="linear"), LinearRegression()
            )
            for degree in (2, 1)
        )
        depth = _log(library)[:, None]
        deviations = np.abs(values - loc.fit(depth, values).predict(depth))
        scale.fit(depth, deviations)
        return cls(loc, scale, max(deviations.mean() / 5, 1e-12))

    @classmethod
    def of_others(cls, library: Float[np.ndarray, " cells"], values: Float[np.ndarray, " cells"]) -> np.ndarray:
        """Each reference cell by the splines of other ones: by its own, it would look less unusual than a new cell."""
        scores = np.empty(len(values))
        for others, fold in KFold(5, shuffle=True, random_state=0).split(values):
            scores[fold] = cls.of(library[others], values[others])(library[fold], values[fold])
        return scores

    def __call__(self, library: Float[np.ndarray, " cells"], values: Float[np.ndarray, " cells"]) -> np.ndarray:
        depth = _log(library)[:, None]
        return (values - self.loc.predict(depth)) / np.maximum(self.scale.predict(depth), self.least)


def _log(values: Float[np.ndarray, "..."]) -> Float[np.ndarray, " cells"]:
    """Logarithm in double precision; cells of the same latent are a millionth apart."""
    return np.log(np.maximum(values.ravel().astype(float), 1e-6))


def _known_cells(fit: Fit) -> tuple[Cells, Cells]:
    """Validation and training cells of a fit."""
    fraction = fit.training.validation_fraction
    if fit.cells is None or fraction == 0:
        raise ValueError("expected reference cells, the fit has no validation cells at hand; pass reference=...")
    training, validation = fit.cells.split(fraction, seed=fit.seed)
    return validation, training


def _add_leiden(cells: AnnData, key: str, resolution: float, num_neighbours: int, seed: int) -> None:
    import scanpy as sc  # takes seconds to import

    with threads_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Exact neighbours, as for the maps of `annotate`.
        sc.pp.neighbors(cells, n_neighbors=num_neighbours, use_rep=key, random_state=seed, transformer="sklearn")
        options = {"flavor": "igraph", "n_iterations": 2, "directed": False}
        sc.tl.leiden(cells, resolution=resolution, random_state=seed, **options)


def _common_share(a: Int[np.ndarray, " cells"], b: Int[np.ndarray, " cells"]) -> Float[np.ndarray, " cells"]:
    common = contingency_matrix(a, b)
    largest = np.maximum(common.sum(1)[:, None], common.sum(0))
    return (common / largest)[a, b]


def _check_graph(num_cells: int, resolution: float, num_neighbours: int) -> None:
    if not (np.isfinite(resolution) and resolution > 0):
        raise ValueError(f"expected resolution to be finite and above 0, got {resolution!r}")
    if isinstance(num_neighbours, bool) or not isinstance(num_neighbours, int) or not 2 <= num_neighbours < num_cells:
        raise ValueError(
            f"expected num_neighbours to be a whole number from 2 to {num_cells - 1}, fewer than the cells, got "
            f"{num_neighbours!r}"
        )
