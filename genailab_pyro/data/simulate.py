"""Counts drawn from a declared process, beside everything that they were drawn from."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike
from scipy import sparse
from scipy.special import expit

from genailab_pyro.data.truth import DoseResponse, FloatArray, IntArray, Truth


@dataclass(frozen=True)
class CellTypes:
    """How cell types differ in the latent space.

    Attributes:
        latent_dim: Number of latent coordinates.
        separation: Standard deviation of the types' positions, per coordinate.
        spread: Standard deviation of the cells about their type, per coordinate.
        gene_scale: Standard deviation over genes of the baseline log-proportion.
        weights: Proportions of the types, shape ``[types]`` or ``[batches, types]``; None: all alike.
    """

    latent_dim: int = 5
    separation: float = 1.0
    spread: float = 0.3
    gene_scale: float = 1.0
    weights: ArrayLike | None = None

    def __post_init__(self) -> None:
        _check_counts(latent_dim=self.latent_dim)
        _check_scales(separation=self.separation, spread=self.spread, gene_scale=self.gene_scale)


@dataclass(frozen=True)
class LibrarySizes:
    """How library sizes are spread.

    Attributes:
        median: Median of the expected total counts of a cell, in counts.
        scale: Standard deviation of the log library within a batch.
        batch_scale: Standard deviation over batches of the mean log library.
    """

    median: float = 2000.0
    scale: float = 0.3
    batch_scale: float = 0.0

    def __post_init__(self) -> None:
        _check_positive(median=self.median)
        _check_scales(scale=self.scale, batch_scale=self.batch_scale)


@dataclass(frozen=True)
class CountNoise:
    """How counts scatter about their mean.

    Attributes:
        inverse_dispersion: Inverse dispersion theta (variance mu + mu^2 / theta): its median over genes,
            or one value per gene, shape ``[genes]``.
        spread: Standard deviation over genes of log theta about its median (unused where theta is per gene).
        gate_logits: Logit of the probability of an extra zero, common or per gene, shape ``[genes]``;
            minus infinity: none.
    """

    inverse_dispersion: ArrayLike = 5.0
    spread: float = 0.0
    gate_logits: ArrayLike = -np.inf

    def __post_init__(self) -> None:
        _check_positive(inverse_dispersion=self.inverse_dispersion)
        _check_scales(spread=self.spread)
        gates = np.asarray(self.gate_logits, dtype=np.float64)
        if np.isnan(gates).any() or np.isposinf(gates).any():
            raise ValueError("gate_logits should be below infinity (no gene can be zero in every cell) and no NaN")


@dataclass(frozen=True)
class Hill:
    """Saturating dose response d^slope / (half^slope + d^slope), from 0 at no dose to 1.

    Attributes:
        half: Dose of half the full effect.
        slope: Hill coefficient.
    """

    half: float = 1.0
    slope: float = 1.0

    def __post_init__(self) -> None:
        _check_positive(half=self.half, slope=self.slope)

    def __call__(self, dose: FloatArray) -> FloatArray:
        """The factor on the effect, of the shape of ``dose``."""
        with np.errstate(divide="ignore"):
            return expit(self.slope * np.log(np.asarray(dose, dtype=np.float64) / self.half))


@dataclass(frozen=True)
class LogLinear:
    """Dose response log(1 + d) / log(1 + reference): 0 at no dose, 1 at the reference dose, unbounded.

    Attributes:
        reference: Dose of the full effect.
    """

    reference: float = 1.0

    def __post_init__(self) -> None:
        _check_positive(reference=self.reference)

    def __call__(self, dose: FloatArray) -> FloatArray:
        """The factor on the effect, of the shape of ``dose``."""
        return np.log1p(np.asarray(dose, dtype=np.float64)) / np.log1p(self.reference)


@dataclass(frozen=True)
class Doses:
    """Which doses are given and what they do.

    Attributes:
        low: Lowest dose of a perturbed cell, above zero.
        high: Highest dose; doses are log-uniform between the two.
        levels: A few doses, drawn with equal chance, in place of the range.
        response: Factor by which a dose scales the effect, ``[cells]`` to ``[cells]``.
    """

    low: float = 0.1
    high: float = 10.0
    levels: tuple[float, ...] | None = None
    response: DoseResponse = field(default_factory=Hill)

    def __post_init__(self) -> None:
        _check_positive(low=self.low, high=self.high)
        if self.low > self.high:
            raise ValueError(f"low should not be above high, but the doses go from {self.low} to {self.high}")
        if self.levels is not None:
            _check_positive(levels=self.levels)


@dataclass(frozen=True)
class Perturbations:
    """Which perturbations there are beside the control, and how strong.

    Attributes:
        number: Number of perturbations beside ``"control"``.
        num_genes: Number of genes that each of them changes.
        scale: Size of a log fold change: each is plus or minus ``scale`` times a uniform of .5 to 1.5.
        type_spread: Standard deviation of the log factor by which a cell type answers more or less.
        dose: The doses; None: every perturbed cell gets the full effect.
    """

    number: int = 3
    num_genes: int = 10
    scale: float = 1.0
    type_spread: float = 0.0
    dose: Doses | None = None

    def __post_init__(self) -> None:
        _check_counts(number=self.number, num_genes=self.num_genes)
        _check_positive(scale=self.scale)
        _check_scales(type_spread=self.type_spread)


class Simulation(NamedTuple):
    """Simulated counts, and what they were drawn from.

    Attributes:
        adata: Counts in ``.X`` (CSR, float32) and what was assigned to each cell in ``.obs``.
        truth: Everything that the counts were drawn from.
    """

    adata: AnnData
    truth: Truth


def simulate(
    num_cells: int = 1000,
    num_genes: int = 200,
    num_types: int = 4,
    num_batches: int = 1,
    *,
    types: CellTypes | None = None,
    library: LibrarySizes | None = None,
    batch_scale: float = 0.3,
    noise: CountNoise | None = None,
    perturbations: Perturbations | None = None,
    seed: int = 0,
) -> Simulation:
    r"""Draw counts from a declared process, and return them with everything that they were drawn from.

    For cell n of type k, batch b and perturbation p at dose d, and gene g:

    .. math::
        z_n &\sim N(m_k, \mathrm{spread}^2), \quad m_k \sim N(0, \mathrm{separation}^2) \\
        \rho_n &= \mathrm{softmax}(a + W z_n + \beta_b + f(d)\, s_{pk}\, \delta_p) \\
        \log l_n &\sim N(\log \mathrm{median} + \lambda_b, \mathrm{scale}^2),
            \quad \lambda_b \sim N(0, \mathrm{batch\_scale}^2) \\
        y_{ng} &\sim \mathrm{NB}(\mu_{ng} = l_n \rho_{ng}, \theta_g),
            \quad x_{ng} = y_{ng}\,\mathrm{Bernoulli}(1 - \pi_g)

    with baseline :math:`a_g \sim N(0, \mathrm{gene\_scale}^2)`, loadings
    :math:`W_{gi} \sim N(0, 1/\mathrm{latent\_dim})`, batch effects :math:`\beta` normal of the given scale
    and centred over the batches, sparse log fold changes :math:`\delta_p`, responses of the types
    :math:`\log s_{pk} \sim N(0, \mathrm{type\_spread}^2)`, dose response f (1 for a perturbed cell where no
    doses are given), and variance :math:`\mu + \mu^2/\theta` of y. Batch, perturbation and (given the batch)
    type are drawn independently for each cell. A cell that gets no count is drawn again from the same
    library and mean, so x is conditional on a total above zero. Cells, genes, batches, libraries,
    perturbations and counts have a random stream each: other perturbations, say, do not change the types.

    Args:
        num_cells: Number of cells.
        num_genes: Number of genes, at least two.
        num_types: Number of cell types.
        num_batches: Number of experimental batches, drawn with equal chance.
        types: How types differ; None: ``CellTypes()``.
        library: Library sizes; None: ``LibrarySizes()``.
        batch_scale: Standard deviation of the log factor by which a batch changes a gene, before centring.
        noise: Inverse dispersion and extra zeros; None: ``CountNoise()``, which has no extra zeros.
        perturbations: Perturbations and doses; None: no such columns.
        seed: Seed of all draws.

    Returns:
        The counts, with ``.obs`` columns ``cell_type``, ``batch``, ``perturbation`` and ``dose`` (the last
        two only where asked for) and ``total_counts``, and the truth.

    Raises:
        ValueError: If a number is out of range or an array has another shape than documented.

    Examples:
        >>> adata, truth = simulate(100, 50, num_types=3, num_batches=2, seed=1)
        >>> adata.shape, list(adata.obs.columns)
        ((100, 50), ['cell_type', 'batch', 'total_counts'])
        >>> truth.mean.shape
        (100, 50)
    """
    types, library, noise = types or CellTypes(), library or LibrarySizes(), noise or CountNoise()
    _check_counts(num_cells=num_cells, num_types=num_types, num_batches=num_batches)
    _check_scales(batch_scale=batch_scale)
    if num_genes < 2:
        raise ValueError(f"num_genes should be 2 or more (proportions of one gene say nothing), but is {num_genes}")
    cells, genes, batch, sizes, effects, draws = np.random.default_rng(seed).spawn(6)
    theta, gate_logits = _draw_noise(noise, num_genes, genes)
    batches = batch.integers(num_batches, size=num_cells)
    batch_effects = batch.normal(0.0, batch_scale, (num_batches, num_genes))
    type_codes = _draw_types(batches, _type_weights(types.weights, num_batches, num_types), cells)
    type_latent = cells.normal(0.0, types.separation, (num_types, types.latent_dim))
    log_median = np.log(library.median) + sizes.normal(0.0, library.batch_scale, num_batches)
    treatment = _draw_treatment(perturbations, (num_cells, num_genes, num_types), effects)
    truth = Truth(
        latent=type_latent[type_codes] + cells.normal(0.0, types.spread, (num_cells, types.latent_dim)),
        loadings=genes.normal(0.0, types.latent_dim**-0.5, (num_genes, types.latent_dim)),
        log_baseline=genes.normal(0.0, types.gene_scale, num_genes),
        types=type_codes,
        type_latent=type_latent,
        batches=batches,
        batch_effects=batch_effects - batch_effects.mean(axis=0),
        perturbations=treatment.codes,
        perturbation_effects=treatment.effects,
        type_responses=treatment.type_responses,
        dose=treatment.dose,
        response=perturbations.dose.response if perturbations and perturbations.dose else None,
        library=np.exp(sizes.normal(log_median[batches], library.scale)),
        inverse_dispersion=theta,
        gate_logits=gate_logits,
        type_names=_names("type", num_types),
        batch_names=_names("batch", num_batches),
        perturbation_names=("control", *_names("perturbation", len(treatment.effects))[1:]),
    )
    return Simulation(_describe(truth, truth.draw(draws), perturbations, seed), truth)


class _Treatment(NamedTuple):
    codes: IntArray
    effects: FloatArray
    type_responses: FloatArray
    dose: FloatArray


def _draw_treatment(
    perturbations: Perturbations | None, sizes: tuple[int, int, int], rng: np.random.Generator
) -> _Treatment:
    num_cells, num_genes, num_types = sizes
    if perturbations is None:
        none = np.zeros(num_cells, dtype=np.int64)
        return _Treatment(none, np.zeros((1, num_genes)), np.ones((1, num_types)), np.zeros(num_cells))
    if perturbations.num_genes > num_genes:
        raise ValueError(f"a perturbation cannot change {perturbations.num_genes} of {num_genes} genes")
    effects = np.zeros((1 + perturbations.number, num_genes))
    for row in effects[1:]:
        changed = rng.choice(num_genes, perturbations.num_genes, replace=False)
        sizes_of_change = perturbations.scale * rng.uniform(0.5, 1.5, changed.size)
        row[changed] = rng.choice([-1.0, 1.0], changed.size) * sizes_of_change
    responses = np.exp(rng.normal(0.0, perturbations.type_spread, (len(effects), num_types)))
    codes = rng.integers(len(effects), size=num_cells)
    dose = np.ones(num_cells)
    if perturbations.dose is not None:
        given = perturbations.dose
        if given.levels is None:
            dose = np.exp(rng.uniform(np.log(given.low), np.log(given.high), num_cells))
        else:
            dose = rng.choice(given.levels, num_cells)
    return _Treatment(codes, effects, responses, np.where(codes > 0, dose, 0.0))


def _draw_noise(noise: CountNoise, num_genes: int, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    theta = np.asarray(noise.inverse_dispersion, dtype=np.float64)
    spread = np.exp(rng.normal(0.0, noise.spread, num_genes))
    theta = theta * spread if theta.ndim == 0 else theta
    gates = np.asarray(noise.gate_logits, dtype=np.float64)
    gates = np.full(num_genes, gates) if gates.ndim == 0 else gates
    for name, values in (("inverse_dispersion", theta), ("gate_logits", gates)):
        if values.shape != (num_genes,):
            raise ValueError(f"{name} should be one number or of shape ({num_genes},), but is {values.shape}")
    return theta, gates


def _type_weights(weights: ArrayLike | None, num_batches: int, num_types: int) -> FloatArray:
    given = np.asarray(np.ones(num_types) if weights is None else weights, dtype=np.float64)
    if given.shape not in {(num_types,), (num_batches, num_types)}:
        raise ValueError(
            f"weights of the types should have shape ({num_types},) or ({num_batches}, {num_types}), "
            f"but have {given.shape}"
        )
    if not (np.isfinite(given).all() and (given >= 0).all() and (given.sum(axis=-1) > 0).all()):
        raise ValueError("weights of the types should be zero or above, with at least one above zero in each batch")
    return np.broadcast_to(given / given.sum(axis=-1, keepdims=True), (num_batches, num_types))


def _draw_types(batches: IntArray, weights: FloatArray, rng: np.random.Generator) -> IntArray:
    # The last step is left out of the comparison: rounding may leave it below one.
    steps = weights.cumsum(axis=1)[:, :-1]
    return (rng.random((len(batches), 1)) >= steps[batches]).sum(axis=1).astype(np.int64)


def _describe(truth: Truth, counts: sparse.csr_matrix, perturbations: Perturbations | None, seed: int) -> AnnData:
    columns: dict[str, object] = {
        "cell_type": _categorical(truth.types, truth.type_names),
        "batch": _categorical(truth.batches, truth.batch_names),
    }
    if perturbations is not None:
        columns["perturbation"] = _categorical(truth.perturbations, truth.perturbation_names)
        if perturbations.dose is not None:
            columns["dose"] = truth.dose
    columns["total_counts"] = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel().astype(np.int64)
    num_cells, num_genes = counts.shape
    obs = pd.DataFrame(columns, index=pd.Index(_names("cell", num_cells)))
    var = pd.DataFrame(index=pd.Index(_names("gene", num_genes)))
    return AnnData(X=counts, obs=obs, var=var, uns={"simulation": {"seed": seed}})


def _categorical(codes: IntArray, names: tuple[str, ...]) -> "pd.Categorical[str]":
    return pd.Categorical.from_codes(codes.tolist(), pd.Index(names))


def _names(stem: str, number: int) -> tuple[str, ...]:
    return tuple(f"{stem}{i}" for i in range(number))


def _check_counts(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} should be 1 or more, but is {value!r}")


def _check_scales(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < np.inf:
            raise ValueError(f"{name} is a standard deviation and should be zero or above and finite, but is {value!r}")


def _check_positive(**values: ArrayLike) -> None:
    for name, value in values.items():
        array = np.asarray(value, dtype=np.float64)
        if not (array.size and np.isfinite(array).all() and (array > 0).all()):
            raise ValueError(f"{name} should be above zero and finite, but is {value!r}")
