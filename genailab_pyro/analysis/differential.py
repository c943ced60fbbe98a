r"""Differential expression of two groups of cells, and the markers of each group.

What is compared is the mean normalised expression of two **populations**, of which the cells are a sample. The mean of
group k for gene g is the model's, corrected by what was counted,

.. math::
    m_{kg} = \frac{\sum_n w_n \rho_{ng}}{\sum_n w_n} \cdot
        \frac{\sum_n w_n x_{ng} + \gamma}{\sum_n w_n l_n \rho_{ng} + 1/2},
    \qquad w_n \sim \mathrm{Exp}(1), \quad z_n \sim q(z \mid x_n), \quad \gamma \sim \mathrm{Gamma}(1/2, 1),

with counts x, library l and decoded expression :math:`\rho_n = \rho(z_n)`; under other conditions only the first factor
is decoded anew. The weights are those of the Bayesian bootstrap and carry the uncertainty of a finite number of cells
and of their counts; gamma is Jeffreys' prior, which decides where there are none. The second factor takes the decoder's
error out of a group's mean, so that nothing rests on weights that are known only as a point.

The log fold changes then share a prior over the genes, learned by empirical Bayes: a mixture of a point, near zero, and
normals about it. Without it, the largest of many noisy changes look certain. Groups that by chance hold more of one
kind of cell differ in many genes together, which the prior would take for true changes; the standard errors are
therefore multiplied by the root of the 90 % quantile, over draws, of the mean over genes of the squared error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from jaxtyping import Float
from scipy.special import ndtr
from torch import Tensor
from torch.nn.functional import one_hot

from genailab_pyro.data.cells import Cells
from genailab_pyro.train.fitted import Fit

REST = "rest"
FEWEST_CELLS = 5
NULL_FAVOUR = 9
WIDENING_LEVEL = 0.9
ROUNDS = 100
# Decoded values that are held at a time: 16 MB in single precision, and a few times that in intermediates.
CHUNK = 4_000_000


@dataclass(frozen=True)
class ScaleMixture:
    r"""Prior of effects, :math:`\beta \sim \sum_j \pi_j N(c, \sigma_j^2)` with :math:`\sigma_0 = 0`.

    Attributes:
        centre: What most effects are near: log fold changes of proportions are not near zero where a few genes take
            their share from all others.
        centre_error: Its standard error.
        weights: Proportions of the components, shape ``[components]``.
        scales: Their standard deviations, the first zero, shape ``[components]``.
    """

    centre: float
    centre_error: float
    weights: Float[np.ndarray, " components"]
    scales: Float[np.ndarray, " components"]

    @classmethod
    def learned(cls, estimates: Float[np.ndarray, " genes"], errors: Float[np.ndarray, " genes"]) -> "ScaleMixture":
        r"""The mixture under which the estimates, :math:`N(\beta_g, s_g^2)`, are most likely, by EM.

        As in ``ashr`` with normal components and ``mode="estimate"``, the scales go from a tenth of the smallest error
        to twice the largest excess by steps of the root of two, and the point at the centre counts nine genes more than
        are seen, which errs on its side.

        Args:
            estimates: One per gene.
            errors: Their standard errors, above zero.

        Example:
            >>> rng = np.random.default_rng(0)
            >>> mixture = ScaleMixture.learned(rng.normal(size=500), np.ones(500))
            >>> bool(mixture.weights[mixture.scales < 0.2].sum() > 0.8)
            True
        """
        centre, smallest = float(np.median(estimates)), errors.min() / 10
        excess = ((estimates - centre) ** 2 - errors**2).max()
        largest = max(2 * np.sqrt(max(excess, 0)), 8 * smallest)
        steps = int(np.ceil(2 * np.log2(largest / smallest)))
        scales = np.concatenate([[0.0], largest * 2 ** (-0.5 * np.arange(steps, -1, -1))])
        spreads = np.hypot(errors[:, None], scales)
        weights = np.full(len(scales), 1 / len(scales))
        for _ in range(ROUNDS):
            log_densities = _log_normal(estimates - centre, spreads)
            densities = np.exp(log_densities - log_densities.max(1, keepdims=True))
            for _ in range(ROUNDS):
                shares = weights * densities
                shares /= shares.sum(1, keepdims=True)
                weights = shares.sum(0) + NULL_FAVOUR * (scales == 0)
                weights /= weights.sum()
            precisions = shares / spreads**2
            before, centre = centre, float((precisions * estimates[:, None]).sum() / precisions.sum())
            if abs(centre - before) < 1e-4:
                break
        return cls(centre, precisions.sum() ** -0.5, weights, scales)

    def posterior(self, estimates: Float[np.ndarray, " genes"], errors: Float[np.ndarray, " genes"]) -> "Posterior":
        """Posterior of each gene's effect under this prior."""
        deviations, spreads = estimates - self.centre, np.hypot(errors[:, None], self.scales)
        log_joint = np.log(self.weights + 1e-300) + _log_normal(deviations, spreads)
        joint = np.exp(log_joint - log_joint.max(1, keepdims=True))
        kept = (self.scales / spreads) ** 2
        locs = self.centre + kept * deviations[:, None]
        spread = np.hypot(np.sqrt(kept) * errors[:, None], (1 - kept) * self.centre_error)
        return Posterior(joint / joint.sum(1, keepdims=True), locs, spread)


@dataclass(frozen=True)
class Posterior:
    """Posterior of each gene's effect, a mixture of normals of shape ``[genes, components]``."""

    weights: Float[np.ndarray, "genes components"]
    locs: Float[np.ndarray, "genes components"]
    scales: Float[np.ndarray, "genes components"]

    @property
    def mean(self) -> Float[np.ndarray, " genes"]:
        """Posterior mean."""
        return (self.weights * self.locs).sum(1)

    @property
    def sd(self) -> Float[np.ndarray, " genes"]:
        """Posterior standard deviation."""
        square = (self.weights * (self.locs**2 + self.scales**2)).sum(1)
        return np.sqrt(np.maximum(square - self.mean**2, 0))

    def cdf(self, values: Float[np.ndarray, " genes"] | float) -> Float[np.ndarray, " genes"]:
        """Probability that the effect is at most a value, or half of that of a point just there."""
        deviations = (np.broadcast_to(values, len(self.locs))[:, None] - self.locs) / np.maximum(self.scales, 1e-12)
        return (self.weights * ndtr(deviations)).sum(1)

    def quantile(self, level: float) -> Float[np.ndarray, " genes"]:
        """The value below which the effect lies with a probability, by bisection."""
        reach = np.abs(self.locs).max(1) + 10 * self.scales.max(1) + 1e-6
        low, high = -reach, reach
        for _ in range(60):
            middle = (low + high) / 2
            below = self.cdf(middle) < level
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return (low + high) / 2

    def beyond(self, delta: float) -> Float[np.ndarray, "2 genes"]:
        """Probabilities that the effect is below -delta and that it is above delta."""
        return np.clip([self.cdf(-delta), 1 - self.cdf(delta)], 0, 1)


def _log_normal(values: Float[np.ndarray, " genes"], scales: Float[np.ndarray, "genes k"]) -> np.ndarray:
    return -0.5 * (values[:, None] / scales) ** 2 - np.log(scales)


def expected_fdr(local_fdr: Float[np.ndarray, " genes"]) -> Float[np.ndarray, " genes"]:
    """Expected share of false discoveries among a gene and all that are surer: the running mean of the local ones.

    References:
        Newton, Noueiry, Sarkar, Ahlquist (2004). Detecting differential gene expression with a semiparametric
        hierarchical mixture method. doi:10.1093/biostatistics/5.2.155

    Example:
        >>> expected_fdr(np.array([0.5, 0.0, 0.1])).round(2).tolist()
        [0.2, 0.0, 0.05]
    """
    order = np.argsort(local_fdr, kind="stable")
    running = np.cumsum(local_fdr[order]) / np.arange(1, len(order) + 1)
    return running[np.argsort(order)]


@dataclass(frozen=True)
class GroupSums:
    """Weighted sums over the cells of each group, one per draw.

    Attributes:
        weight: Sum of the weights, shape ``[samples, groups, 1]``.
        expression: Of the decoded expression, under the conditions asked for, shape ``[samples, groups, genes]``.
        expected: Of the counts that the model expects, likewise.
        observed: Of the counts, likewise.
        detected: Number of cells with a count, shape ``[groups, genes]``.
        cells: Number of cells, shape ``[groups, 1]``.
    """

    weight: Float[Tensor, "samples groups 1"]
    expression: Float[Tensor, "samples groups genes"]
    expected: Float[Tensor, "samples groups genes"]
    observed: Float[Tensor, "samples groups genes"]
    detected: Float[Tensor, "groups genes"]
    cells: Float[Tensor, "groups 1"]

    def log2_mean(self, groups: list[int], gamma: Float[Tensor, "samples genes"]) -> Tensor:
        """Draws of the log2 mean of a union of groups, shape ``[samples, genes]``."""
        weight, expression, expected, observed = (
            sums[:, groups].sum(1) for sums in (self.weight, self.expression, self.expected, self.observed)
        )
        return torch.log2(expression / weight) + torch.log2((observed + gamma) / (expected + 0.5))

    def detection(self, groups: list[int]) -> Float[np.ndarray, " genes"]:
        """Share of the cells of a union of groups with a count."""
        return (self.detected[groups].sum(0) / self.cells[groups].sum(0)).numpy()


def differential_expression(
    fit: Fit,
    adata: AnnData | Cells | None,
    groupby: str,
    group: str,
    reference: str = REST,
    *,
    delta: float = 0.25,
    fdr: float = 0.05,
    conditions: Mapping[str, str] | None = None,
    num_samples: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Which genes differ in mean normalised expression between two groups of cells, and by how much.

    A call says that the log fold change is above delta, or that it is below -delta. It is false where the change is
    at most delta in size or has the other sign, and the expected share of false calls is at most ``fdr``. (Without the
    sign, a gene that nothing is known of would be called where most others change.)

    What is controlled is that share on average over genes, for the two populations that the cells are drawn from, each
    cell for itself. It is **not** controlled where the groups are clusters of the same counts, which differ by
    construction; where cells of few donors stand for all donors, as donors are not drawn again; or under conditions
    that a group was never seen in, as the decoder's error there cannot be seen.

    The ``change`` mode of scvi-tools asks for the change between two **random cells**, which stays unsure however many
    cells there are, and takes the decoder as known; its probabilities are not those of means.

    Args:
        fit: The fitted model.
        adata: The cells; None for those it was trained on.
        groupby: Column of ``adata.obs``; cells without a value are left out.
        group: Its level of interest.
        reference: The level it is compared with, or ``"rest"`` for all other cells that have one.
        delta: Smallest log2 fold change of interest, above 0.
        fdr: Nominal level, in (0, 1).
        conditions: Levels to decode all cells under, such as ``{"batch": "b1"}``; None compares them as observed.
        num_samples: Number of posterior draws, at least 25.
        seed: Seed of the draws.

    Returns:
        One row per gene, surest first. ``lfc_mean``, ``lfc_sd``, ``lfc_low``, ``lfc_high``: posterior mean, standard
        deviation and 95 % credible interval of the log2 fold change; ``probability`` that it is larger than delta in
        size; ``local_fdr``, the posterior error probability of a call, sign included; ``expected_fdr`` of the genes
        down to this one; ``is_de``; ``estimate`` and ``standard_error`` before the genes share a prior; ``mean_group``,
        ``mean_reference``: mean expression at a library of one (proportions); ``detected_group``,
        ``detected_reference``: share of the cells with a count.

    Raises:
        ValueError: If a column, level or condition is unknown, a group has fewer than five cells, or a number is out of
            range.

    References:
        Lopez, Regier, Cole, Jordan, Yosef (2018). Deep generative modeling for single-cell transcriptomics.
        doi:10.1038/s41592-018-0229-2
        Boyeau, Regier, Gayoso, Jordan, Lopez, Yosef (2023). An empirical Bayes method for differential expression
        analysis of single cells with deep generative models. doi:10.1073/pnas.2209124120
        Rubin (1981). The Bayesian bootstrap. doi:10.1214/aos/1176345338
        Stephens (2017). False discovery rates: a new deal. doi:10.1093/biostatistics/kxw041

    Example:
        >>> import genailab_pyro as glp
        >>> cells = glp.register(glp.data.pbmc68k())
        >>> vae = glp.CVAE_NB.from_registration(cells, latent_dim=2, hidden_dims=[8])
        >>> fit = glp.fit(vae, cells, max_epochs=1, progress=False)
        >>> table = differential_expression(fit, cells, "bulk_labels", "Dendritic", "CD19+ B", num_samples=25)
        >>> bool(table.loc["CD79A", "lfc_high"] < 0), bool(table.loc["CD79A", "is_de"])
        (True, True)
    """
    _check_numbers(delta, fdr, num_samples)
    cells, groups = _grouped(fit, adata, groupby)
    positions = _positions(groups, group, reference)
    sums = _group_sums(fit, cells, groups, conditions, num_samples, seed)
    return _table(fit, sums, *positions, delta=delta, fdr=fdr, seed=seed)


def markers(
    fit: Fit,
    adata: AnnData | Cells | None,
    groupby: str,
    n: int = 10,
    *,
    delta: float = 0.25,
    fdr: float = 0.05,
    conditions: Mapping[str, str] | None = None,
    num_samples: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """The genes that each group has more of than the rest: called at the level, by their least plausible change.

    Args:
        fit: The fitted model.
        adata: The cells; None for those it was trained on.
        groupby: Column of ``adata.obs``; cells without a value are left out.
        n: Most markers of a group.
        delta: Smallest log2 fold change of interest.
        fdr: Nominal level of each group's calls.
        conditions: Levels to decode all cells under.
        num_samples: Number of posterior draws, at least 25.
        seed: Seed of the draws.

    Returns:
        The columns of `differential_expression`, at most n rows of each group in falling order of ``lfc_low``, with an
        index of ``group`` and ``gene``.

    Raises:
        ValueError: As `differential_expression`.

    Example:
        >>> import genailab_pyro as glp
        >>> cells = glp.register(glp.data.pbmc68k())
        >>> vae = glp.CVAE_NB.from_registration(cells, latent_dim=2, hidden_dims=[8])
        >>> fit = glp.fit(vae, cells, max_epochs=1, progress=False)
        >>> "CD79A" in markers(fit, cells, "bulk_labels", num_samples=25).loc["CD19+ B"].index
        True
    """
    _check_numbers(delta, fdr, num_samples)
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"expected n to be a whole number of at least one, got {n!r}")
    cells, groups = _grouped(fit, adata, groupby)
    positions = {level: _positions(groups, level, REST) for level in groups.cat.categories}
    sums = _group_sums(fit, cells, groups, conditions, num_samples, seed)
    tables = {}
    for level, sides in positions.items():
        table = _table(fit, sums, *sides, delta=delta, fdr=fdr, seed=seed)
        found = table[table["is_de"] & (table["lfc_mean"] > 0)]
        tables[level] = found.sort_values("lfc_low", ascending=False, kind="stable").head(n)
    return pd.concat(tables, names=["group", "gene"])


def _table(
    fit: Fit, sums: GroupSums, group: list[int], reference: list[int], *, delta: float, fdr: float, seed: int
) -> pd.DataFrame:
    generator = torch.Generator().manual_seed(seed)
    shape = 2, len(sums.weight), sums.observed.shape[-1]
    # Half the square of a standard normal is Gamma(1/2, 1).
    gammas = torch.randn(shape, generator=generator, dtype=torch.float64).square() / 2
    draws = [sums.log2_mean(side, gamma) for side, gamma in zip((group, reference), gammas, strict=True)]
    changes = draws[0] - draws[1]
    estimates, errors = changes.mean(0).numpy(), changes.std(0).numpy()
    wide = errors * _widening(changes)
    posterior = ScaleMixture.learned(estimates, wide).posterior(estimates, wide)
    below_and_above = posterior.beyond(delta)
    local = 1 - below_and_above.max(0)
    expected = expected_fdr(local)
    table = pd.DataFrame(
        {
            "lfc_mean": posterior.mean,
            "lfc_sd": posterior.sd,
            "lfc_low": posterior.quantile(0.025),
            "lfc_high": posterior.quantile(0.975),
            "probability": below_and_above.sum(0),
            "local_fdr": local,
            "expected_fdr": expected,
            "is_de": expected <= fdr,
            "estimate": estimates,
            "standard_error": errors,
            "mean_group": draws[0].exp2().mean(0).numpy(),
            "mean_reference": draws[1].exp2().mean(0).numpy(),
            "detected_group": sums.detection(group),
            "detected_reference": sums.detection(reference),
        },
        index=pd.Index(fit.registration.genes, name="gene"),
    )
    return table.sort_values("local_fdr", kind="stable")


def _widening(changes: Float[Tensor, "samples genes"]) -> float:
    """By how much the errors of one sample may exceed their standard errors in all genes together."""
    squares = ((changes - changes.mean(0)) / changes.std(0)).square().mean(1)
    return max(float(squares.quantile(WIDENING_LEVEL).sqrt()), 1.0)


def _group_sums(
    fit: Fit, cells: Cells, groups: pd.Series, conditions: Mapping[str, str] | None, num_samples: int, seed: int
) -> GroupSums:
    decoded = cells.with_conditions(conditions) if conditions else cells
    dtype, genes = next(fit.vae.parameters()).dtype, len(fit.registration.genes)
    size = min(max(CHUNK // (num_samples * genes), 1), 512)
    codes = torch.as_tensor(groups.cat.codes.to_numpy(copy=True), dtype=torch.long)
    totals: Sequence[Any] = (0.0,) * 6
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for minibatch in cells.minibatches(size, device=fit.device, dtype=dtype):
            z = fit.vae.posterior_draws(minibatch, num_samples)
            rate = moved = fit.vae.likelihood.expression(fit.vae.decode(z, minibatch), minibatch)
            if conditions:
                other = decoded.take(minibatch.index.cpu(), device=fit.device, dtype=dtype)
                moved = fit.vae.likelihood.expression(fit.vae.decode(z, other), other)
            member = one_hot(codes[minibatch.index.cpu()], len(groups.cat.categories)).T.to(rate)
            weights = member * torch.empty(num_samples, 1, minibatch.size).exponential_().to(rate)
            counts = torch.as_tensor(minibatch.counts)
            parts = (
                weights.sum(-1, keepdim=True),
                weights @ moved,
                (weights * minibatch.library) @ rate,
                weights @ counts,
                member @ (counts > 0).to(rate),
                member.sum(-1, keepdim=True),
            )
            totals = [total + part.cpu().double() for total, part in zip(totals, parts, strict=True)]
    return GroupSums(*totals)


def _grouped(fit: Fit, adata: AnnData | Cells | None, groupby: str) -> tuple[Cells, pd.Series]:
    """The cells that have a value in the column, and these."""
    cells = fit.bind(adata)
    if cells.adata is None or groupby not in cells.adata.obs:
        known = "no AnnData" if cells.adata is None else ", ".join(map(repr, cells.adata.obs.columns))
        raise ValueError(f"expected groupby to be a column of adata.obs, got {groupby!r}; there are: {known}")
    column = cells.adata.obs[groupby]
    if column.isna().all():
        raise ValueError(f"expected cells with a value in adata.obs[{groupby!r}], got none; name another column")
    kept = np.flatnonzero(column.notna().to_numpy())
    return cells.subset(kept), column.iloc[kept].astype(str).astype("category")


def _positions(groups: pd.Series, group: str, reference: str) -> tuple[list[int], list[int]]:
    levels = [*groups.cat.categories]
    sides = []
    for name, level in (("group", group), ("reference", reference)):
        if str(level) not in levels and (name == "group" or level != REST):
            raise ValueError(f"expected {name} to be a level of {groups.name!r}, one of {levels}, got {level!r}")
        rest = level == REST and level not in levels
        sides.append([i for i, each in enumerate(levels) if (each != str(group) if rest else each == str(level))])
    if sides[0] == sides[1]:
        raise ValueError(f"expected two groups to compare, got {group!r} twice; name another reference")
    for side in sides:
        found = int(np.isin(groups.cat.codes, side).sum())
        if found < FEWEST_CELLS:
            names = ", ".join(levels[i] for i in side) or "the rest"
            raise ValueError(
                f"expected at least {FEWEST_CELLS} cells in a group, got {found} in {names} of {groups.name!r}; set "
                "the column to NaN there, or compare larger groups"
            )
    return sides[0], sides[1]


def _check_numbers(delta: float, fdr: float, num_samples: int) -> None:
    if not (np.isfinite(delta) and delta > 0):
        raise ValueError(
            f"expected delta to be a log2 fold change above 0, got {delta!r}; no proportion stays exactly as it was"
        )
    if not 0 < fdr < 1:
        raise ValueError(f"expected fdr above 0 and below 1, got {fdr!r}")
    if isinstance(num_samples, bool) or not isinstance(num_samples, (int, np.integer)) or num_samples < 25:
        raise ValueError(f"expected num_samples to be a whole number of at least 25, got {num_samples!r}")
