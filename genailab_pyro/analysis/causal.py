r"""What a treatment does to cells, against how treated cells differ: intervening and conditioning.

Treated cells may differ from others in what they were before, such as their type. With the treatment t, what it is
confounded with c and the expression :math:`\rho`, conditioning and intervening are

.. math::
    E[\rho \mid t] = \int E[\rho \mid t, c]\, p(c \mid t)\, dc,
    \qquad E[\rho \mid do(t)] = \int E[\rho \mid t, c]\, p(c)\, dc,

which differ in the cells over which the same conditional expectation is averaged. Here c is the latent z and the
conditions registered beside the treatment, and the expectation is the decoder's, corrected by counts.

References:
    Robins (1986). A new approach to causal inference in mortality studies with a sustained exposure period.
    doi:10.1016/0270-0255(86)90088-6 (the g-formula)
    Pearl (2009). Causality, sections 3.2 and 3.3. doi:10.1017/CBO9780511803161
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from jaxtyping import Bool, Float, Int
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from genailab_pyro.data.cells import Cells
from genailab_pyro.data.validation import check_names
from genailab_pyro.nn import choose
from genailab_pyro.train.fitted import CHUNK, Fit
from genailab_pyro.types import Latent, Minibatch

FEWEST_CELLS = 5
FEWEST_DRAWS = 25
MOST_ALONE = 0.05
NORMAL_QUANTILE = 1.96  # of an interval of 95 %


def contrast(
    fit: Fit,
    adata: AnnData | Cells | None,
    treatment: str,
    level: str,
    reference: str,
    *,
    adjusted: bool = True,
    population: str = "all",
    num_samples: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Log2 fold change of each gene's mean expression under one level of a treatment against another.

    It is :math:`\log_2 (m_{1g} / m_{0g})`. Every cell is encoded as it was observed, which gives draws of
    :math:`z_n \sim q(z \mid x_n)`. With :math:`\rho_g(z, t, c)` the decoded share of gene g, the conditions and
    covariates :math:`c_n` of a cell beside the treatment, its counts x and its library l, the mean under t is

    .. math::
        m_{tg} = \frac{1}{|P_t|} \sum_{n \in P_t} \rho_g(z_n, t, c_n) \cdot
            \frac{\sum_{n: t_n = t} h_n x_{ng} + 1/2}{\sum_{n: t_n = t} h_n l_n \rho_g(z_n, t, c_n) + 1/2}.

    **Adjusted**, :math:`P_t` is P, the same cells for both t, decoded under both: the g-formula, or standardisation. Of
    all cells of both arms it gives the average effect of the treatment (ATE), of the treated alone its effect on them
    (ATT). **Naive**, :math:`P_t` is the arm as it is, and its mean that of its normalised counts.

    The second factor takes what the decoder misses out of the mean, by the counts of the cells that were seen under t,
    weighted to stand for P: :math:`h_n \propto p(P \mid z_n, c_n) / (l_n\, p(t \mid z_n, c_n))`, with a mean of one and
    the propensities of `overlap`. It is one on average where the decoder is right, and a wrong decoder is corrected
    where the propensities are right. Without it (see ``Fit.expression``, whose ``conditions`` intervene) a contrast
    scatters less, and errs by the decoder's error, which no standard error shows.

    The adjusted contrast is the effect of the treatment where three conditions hold: given z and c nothing else decides
    both on treatment and expression (no unobserved confounding); every cell could have been in either arm (positivity,
    see `overlap`); and the treatment is one, and one cell's does nothing to another (consistency).

    What it cannot say:

    - What a confounder does that leaves no trace in the counts but through the genes that the treatment changes, or
      that goes with the treatment in every cell, such as the day of the experiment: its effect is counted as the
      treatment's. **Nothing here can notice**, and no warning comes.
    - How much a confounder that is not registered explains. The latent is learned, and a prior that is the same for
      both arms asks that it tells nothing of the treatment, which is false where there is confounding: what moves cells
      along a normal latent goes in part into the decoder's effect of the treatment, and only the shape of the
      population, such as separate types, tells the two apart. A `MixtureOfNormals` prior leaves that shape to be
      learned. What is known of the cells is best registered as a condition. (Of five simulations of four types, the
      root mean squared error was 0.63 naive; adjusted, 0.21 with hidden types and a standard normal prior, 0.09 with a
      mixture, 0.09 with types registered; 16 %, 47 %, 90 % and 88 % of the intervals held the truth.) A penalty that
      takes the treatment out of the latent takes the confounder out as well.
    - What the treatment does through the state of a cell. A state that the treatment changes, such as the cell cycle,
      and that z holds is a mediator: it is held fixed, and its share of the effect is adjusted away.
    - What one cell would have been. Means over a population are identified; the pairs of values of one cell are not,
      by any data.

    Of what is uncertain, the standard error holds that the cells are a sample of a population and their counts of what
    they express (weights of the Bayesian bootstrap, the same under both levels, so that the cells are paired; the two
    arms of the naive contrast share none), and the latents' posterior (a draw for each weight). It does **not** hold
    that networks and propensities are learned from the same cells, nor any of the above. Where donors are few and all
    cells of a donor are treated or none, the cells are no such sample.

    The naive contrast is close to the estimate of `differential_expression`, before its genes share a prior.

    Args:
        fit: The fitted model, with the treatment as a condition.
        adata: The cells; None for those that it was trained on. Cells of a third level are left out.
        treatment: Name of the condition that is the treatment.
        level: The level of interest, such as ``"stimulated"``.
        reference: The level it is compared with, such as ``"control"``.
        adjusted: Whether to intervene, or to compare the arms as they are.
        population: ``"all"`` or ``"treated"``: the cells that both levels are averaged over. (The naive one has none.)
        num_samples: Number of posterior draws of each cell, and of bootstraps, at least 25.
        seed: Seed of the draws; the caller's random state is left as it was.

    Returns:
        One row per gene: ``log2_fold_change``; ``standard_error``, ``low`` and ``high``, its normal interval of 95 %;
        ``mean_level`` and ``mean_reference``, the mean expression (proportions) under each.

    Raises:
        ValueError: If a name is not registered, the levels are the same, one has fewer than five cells, or there are
            fewer than 25 draws.

    Warns:
        UserWarning: If more than 5 % of the cells averaged over have no cell of the other arm near by (`overlap`), so
            that the decoder extrapolates.

    References:
        Robins (1986). doi:10.1016/0270-0255(86)90088-6
        Bang, Robins (2005). Doubly robust estimation in missing data and causal inference models.
        doi:10.1111/j.1541-0420.2005.00377.x
        van der Laan, Rubin (2006). Targeted maximum likelihood learning. doi:10.2202/1557-4679.1043 (the correction is
        a step of it under a logarithmic link)
        Rubin (1981). The Bayesian bootstrap. doi:10.1214/aos/1176345338
        Louizos, Shalit, Mooij, Sontag, Zemel, Welling (2017). Causal effect inference with deep latent-variable models.
        doi:10.48550/arXiv.1705.08821
        Rissanen, Marttinen (2021). A critical look at the consistency of causal estimation with deep latent variable
        models. doi:10.48550/arXiv.2102.06648

    Example:
        >>> import genailab_pyro as glp
        >>> adata = glp.data.simulate(90, 20, perturbations=glp.data.Perturbations(number=1)).adata
        >>> cells = glp.register(adata, conditions=["perturbation", "cell_type"])
        >>> fit = glp.fit(glp.CVAE_NB.from_registration(cells), cells, max_epochs=1, progress=False)
        >>> contrast(fit, adata, "perturbation", "perturbation1", "control").columns.tolist()
        ['log2_fold_change', 'standard_error', 'low', 'high', 'mean_level', 'mean_reference']
    """
    choose({"all": "all", "treated": "treated"}, population, "population")
    if isinstance(num_samples, bool) or not isinstance(num_samples, (int, np.integer)) or num_samples < FEWEST_DRAWS:
        raise ValueError(f"expected num_samples to be a whole number of at least {FEWEST_DRAWS}, got {num_samples!r}")
    cells, treated = _arms(fit, adata, treatment, level, reference)
    arms = {level: treated.astype(float), reference: 1.0 - treated}
    if adjusted:
        table = overlap(fit, cells, treatment, level, reference, seed=seed)
        averaged = arms[level] if population == "treated" else np.ones(len(cells))
        _warn_alone(table["alone"].to_numpy()[averaged > 0])
        seen = _seen(table)
        among = np.where(treated, seen, 1 - seen) if population == "treated" else np.ones(len(cells))
        sides = [
            _Side(cells.with_conditions({treatment: arm}), averaged, _scaled(own * among / seen / cells.library))
            for arm, own in arms.items()
        ]
    else:
        sides = [_Side(cells, own, _scaled(own / cells.library)) for own in arms.values()]
    means, draws = _means(fit, cells, sides, num_samples, seed)
    change = np.log2(means[0] / means[1])
    error = np.log2(draws[0] / draws[1]).std(0, ddof=1)
    return pd.DataFrame(
        {
            "log2_fold_change": change,
            "standard_error": error,
            "low": change - NORMAL_QUANTILE * error,
            "high": change + NORMAL_QUANTILE * error,
            "mean_level": means[0],
            "mean_reference": means[1],
        },
        index=pd.Index(fit.registration.genes, name="gene"),
    )


def overlap(
    fit: Fit,
    adata: AnnData | Cells | None,
    treatment: str,
    level: str,
    reference: str,
    *,
    neighbours: int = 30,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Whether cells like a cell were seen in both arms: the share of its nearest neighbours that are treated.

    Neighbours are nearest by a posterior draw of the latent, which is what the decoder sees, and the continuous
    covariates, among the cells that have the same levels of all conditions but the treatment. The share of them that
    are treated estimates the propensity :math:`p(t = 1 \mid z, c)`, which positivity asks to be above 0 and below 1.

    A cell is **alone** where none of its neighbours is of the other arm. Then the treatment was never, or hardly ever,
    given to such cells; or the latent tells the treatment itself, as it does where the decoder leaves an effect to it;
    in both cases what the other arm would be is extrapolated. By chance, a cell of propensity 0.9 is alone among 30
    neighbours with a probability of 4 %. Nothing is learned of confounders that the latent does not hold.

    Args:
        fit: The fitted model, with the treatment as a condition.
        adata: The cells; None for those that it was trained on. Cells of a third level are left out.
        treatment: Name of the condition that is the treatment.
        level: The level of interest.
        reference: The level it is compared with.
        neighbours: How many cells are looked at; all others of the same conditions where there are fewer.
        seed: Seed of the draws.

    Returns:
        One row per cell of the two arms: ``treated``; ``propensity``, NaN for the only cell of its conditions;
        ``neighbours``, how many were looked at; ``alone``.

    Raises:
        ValueError: If a name is not registered, the levels are the same, one has fewer than five cells, or the number
            of neighbours is below one.

    References:
        Rosenbaum, Rubin (1983). The central role of the propensity score in observational studies for causal effects.
        doi:10.1093/biomet/70.1.41
        D'Amour, Ding, Feller, Lei, Sekhon (2021). Overlap in observational studies with high-dimensional covariates.
        doi:10.1016/j.jeconom.2019.10.014

    Example:
        >>> import genailab_pyro as glp
        >>> adata = glp.data.simulate(90, 20, perturbations=glp.data.Perturbations(number=1)).adata
        >>> cells = glp.register(adata, conditions=["perturbation"])
        >>> fit = glp.fit(glp.CVAE_NB.from_registration(cells), cells, max_epochs=1, progress=False)
        >>> float(overlap(fit, adata, "perturbation", "perturbation1", "control")["alone"].mean())
        0.0
    """
    if isinstance(neighbours, bool) or not isinstance(neighbours, (int, np.integer)) or neighbours < 1:
        raise ValueError(f"expected neighbours to be a whole number of at least one, got {neighbours!r}")
    cells, treated = _arms(fit, adata, treatment, level, reference)
    places = np.concatenate([fit.posterior_samples(cells, num_samples=1, seed=seed)[0], cells.continuous], axis=1)
    others = [position for position, item in enumerate(cells.registration.conditions) if item.name != treatment]
    _, strata = np.unique(cells.conditions[:, others], axis=0, return_inverse=True)
    propensity = _propensity(places, treated, strata.ravel(), neighbours)
    table = {
        "treated": treated,
        "propensity": propensity,
        "neighbours": np.minimum(neighbours, np.bincount(strata.ravel())[strata.ravel()] - 1),
        "alone": np.isnan(propensity) | (propensity == treated),
    }
    return pd.DataFrame(table, index=pd.Index(cells.obs_names))


def _propensity(
    places: Float[np.ndarray, "cells latent"],
    treated: Bool[np.ndarray, " cells"],
    strata: Int[np.ndarray, " cells"],
    neighbours: int,
) -> Float[np.ndarray, " cells"]:
    """Share of the treated among the nearest other cells of the same stratum; NaN where there is none."""
    propensity = np.full(len(treated), np.nan)
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        if len(members) > 1:
            nearest = NearestNeighbors(n_neighbors=min(neighbours, len(members) - 1)).fit(places[members])
            # Without an argument, a cell is not its own neighbour.
            propensity[members] = treated[members][nearest.kneighbors(return_distance=False)].mean(1)
    return propensity


def _arms(
    fit: Fit, adata: AnnData | Cells | None, treatment: str, level: str, reference: str
) -> tuple[Cells, Bool[np.ndarray, " cells"]]:
    """The cells of both arms, and which of them are treated."""
    cells = fit.bind(adata)
    known = cells.registration.conditions
    check_names({treatment: None}, [condition.name for condition in known], "condition")
    position = [condition.name for condition in known].index(treatment)
    levels = known[position].levels
    check_names({level: None, reference: None}, levels, f"level of {treatment!r}")
    if level == reference:
        raise ValueError(
            f"expected two levels of {treatment!r} to compare, got {level!r} twice; name another reference"
        )
    codes = cells.conditions[:, position]
    for arm in (level, reference):
        found = int((codes == levels.index(arm)).sum())
        if found < FEWEST_CELLS:
            raise ValueError(f"expected at least {FEWEST_CELLS} cells of {arm!r}, got {found}; pass more cells")
    both = np.flatnonzero(np.isin(codes, [levels.index(level), levels.index(reference)]))
    return cells.subset(both), codes[both] == levels.index(level)


def _warn_alone(alone: Bool[np.ndarray, " cells"]) -> None:
    if alone.mean() > MOST_ALONE:
        warnings.warn(
            f"{alone.mean():.0%} of the cells have no cell of the other arm near by, so that the decoder extrapolates "
            "what it never saw: see overlap(...), and leave such cells out, or ask for population='treated'",
            UserWarning,
            stacklevel=3,
        )


def _seen(table: pd.DataFrame) -> Float[np.ndarray, " cells"]:
    """Probability of the arm that each cell was seen in: its share of the neighbours and the cell itself.

    With the cell itself, one over the share of k draws has the expectation (1 - (1 - p)^(k + 1)) / p.
    """
    share, number = table["propensity"].fillna(0).to_numpy(), table["neighbours"].to_numpy()
    return (number * np.where(table["treated"], share, 1 - share) + 1) / (number + 1)


def _scaled(weights: Float[np.ndarray, " cells"]) -> Float[np.ndarray, " cells"]:
    """The weights with a mean of one over the cells that have one; where none has, nothing is corrected."""
    number = np.count_nonzero(weights)
    return weights * number / weights.sum() if number else weights


class _Side(NamedTuple):
    """One of the two populations whose means are compared.

    Attributes:
        cells: All cells, under the conditions that they are decoded under.
        averaged: One for each cell that is averaged over, zero for the others, shape ``[cells]``.
        balance: Weights that make the cells seen under these conditions stand for those averaged over; zero for cells
            seen under others, shape ``[cells]``.
    """

    cells: Cells
    averaged: Float[np.ndarray, " cells"]
    balance: Float[np.ndarray, " cells"]

    def sums(
        self, fit: Fit, minibatch: Minibatch, z: Latent, weights: Float[Tensor, "draws cells"]
    ) -> tuple[Float[Tensor, "draws 1"], *tuple[Float[Tensor, "draws genes"], ...]]:
        """Weighted sums over cells of: one and the expression, of those averaged over; counts, and expected counts.

        The first row of weights, which are one, is that of the means over the draws of the latent.
        """
        index = minibatch.index.cpu()
        other = self.cells.take(index, device=fit.device, dtype=z.dtype)
        rate = fit.vae.likelihood.expression(fit.vae.decode(z, other), other)
        rate = torch.cat([rate.mean(0, keepdim=True), rate])
        averaged = weights * torch.as_tensor(self.averaged)[index].to(z)
        balance = weights * torch.as_tensor(self.balance)[index].to(z)
        return (
            averaged.sum(1, keepdim=True),
            torch.einsum("sn,sng->sg", averaged, rate),
            balance @ torch.as_tensor(minibatch.counts),
            torch.einsum("sn,sng->sg", balance * minibatch.library, rate),
        )


def _means(
    fit: Fit, observed: Cells, sides: Sequence[_Side], num_samples: int, seed: int
) -> tuple[Float[np.ndarray, "sides genes"], Float[np.ndarray, "sides samples genes"]]:
    """Corrected mean expression of each side over cells and draws, and Bayesian bootstraps of it."""
    dtype = next(fit.vae.parameters()).dtype
    rows = min(max(CHUNK // (num_samples * len(fit.registration.genes)), 1), 512)
    totals: list[Float[np.ndarray, "sides draws genes"]] = []
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for minibatch in observed.minibatches(rows, device=fit.device, dtype=dtype):
            z = fit.vae.posterior_draws(minibatch, num_samples)
            bootstrap = torch.empty(num_samples, minibatch.size).exponential_().to(z)
            weights = torch.cat([torch.ones_like(bootstrap[:1]), bootstrap])
            parts = [side.sums(fit, minibatch, z, weights) for side in sides]
            blocks = [torch.stack(sums).double().cpu().numpy() for sums in zip(*parts, strict=True)]
            totals = [a + b for a, b in zip(totals, blocks, strict=True)] if totals else blocks
        jeffreys = torch.randn(totals[-1].shape, dtype=torch.float64).square().numpy() / 2  # it is Gamma(1/2, 1)
    weight, expression, counts, expected = totals
    jeffreys[:, 0] = 0.5
    means = expression / weight * (counts + jeffreys) / (expected + 0.5)
    return means[:, 0], means[:, 1:]
