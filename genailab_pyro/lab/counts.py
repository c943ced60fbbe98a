"""The shapes of the negative binomial, without and with extra zeros, beside the counts of a gene."""

from dataclasses import dataclass

import numpy as np
import torch
from anndata import AnnData
from jaxtyping import Float
from pyro.distributions import TorchDistribution

from genailab_pyro.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial


@dataclass(frozen=True)
class Moments:
    """Mean, variance and share of zeros of counts.

    Attributes:
        mean: In counts.
        variance: In counts squared.
        zeros: Probability, or share of cells, of a count of zero.
    """

    mean: float
    variance: float
    zeros: float


def count_distribution(mean: float, inverse_dispersion: float, gate: float = 0.0) -> TorchDistribution:
    """The library's negative binomial, or with extra zeros.

    Args:
        mean: Mean mu of the negative binomial part, above zero (counts).
        inverse_dispersion: theta, above zero; the variance is mu + mu^2 / theta.
        gate: Probability of an extra zero, in [0, 1); at 0 the distribution has no gate.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> count_distribution(2.0, 1.0).variance
        tensor(6., dtype=torch.float64)
    """
    if not (0 < mean < np.inf and 0 < inverse_dispersion < np.inf and 0 <= gate < 1):
        raise ValueError(
            f"expected mean and inverse_dispersion above zero and finite, and gate in [0, 1), got {mean}, "
            f"{inverse_dispersion} and {gate}"
        )
    log_mean, log_theta = torch.tensor([mean, inverse_dispersion], dtype=torch.float64).log()
    if gate == 0:
        return NegativeBinomial(log_mean, log_theta)
    return ZeroInflatedNegativeBinomial(
        log_mean, log_theta, gate_logits=torch.tensor(gate, dtype=torch.float64).logit()
    )


def probabilities(distribution: TorchDistribution, highest: int) -> Float[np.ndarray, " counts"]:
    """Probability of each count from 0 to the highest.

    Example:
        >>> probabilities(count_distribution(1.0, 1.0), 3).round(4).tolist()
        [0.5, 0.25, 0.125, 0.0625]
    """
    return distribution.log_prob(torch.arange(highest + 1, dtype=torch.float64)).exp().numpy()


def moments_of(distribution: TorchDistribution) -> Moments:
    """Mean, variance and probability of a zero of a distribution of counts."""
    zero = distribution.log_prob(torch.zeros((), dtype=torch.float64)).exp()
    return Moments(distribution.mean.item(), distribution.variance.item(), zero.item())


def gene_counts(adata: AnnData, gene: str) -> Float[np.ndarray, " cells"]:
    """The counts of a gene in ``.X``.

    Raises:
        KeyError: If there is no such gene.
    """
    if gene not in adata.var_names:
        raise KeyError(
            f"expected a gene among adata.var_names, got {gene!r}; choose one such as {adata.var_names[0]!r}"
        )
    return np.asarray(adata.obs_vector(gene), dtype=np.float64)


def observed_moments(counts: Float[np.ndarray, " cells"]) -> Moments:
    """Mean, variance and share of zeros of counts.

    Example:
        >>> observed_moments(np.array([0.0, 0.0, 1.0, 3.0]))
        Moments(mean=1.0, variance=2.0, zeros=0.5)
    """
    return Moments(float(counts.mean()), float(counts.var(ddof=1)), float((counts == 0).mean()))


def shares(counts: Float[np.ndarray, " cells"], highest: int) -> Float[np.ndarray, " counts"]:
    """Share of the cells with each count from 0 to the highest.

    Example:
        >>> shares(np.array([0.0, 0.0, 1.0, 3.0]), 2).tolist()
        [0.5, 0.25, 0.0]
    """
    found = np.bincount(counts.astype(np.int64), minlength=highest + 1)
    return found[: highest + 1] / len(counts)


def matching(moments: Moments) -> tuple[float, float]:
    """Mean and inverse dispersion of the negative binomial with the mean and variance of some counts.

    theta = mean^2 / (variance - mean); infinite where the variance is not above the mean, as of a Poisson.

    Example:
        >>> matching(Moments(2.0, 6.0, 0.3))
        (2.0, 1.0)
    """
    excess = moments.variance - moments.mean
    return moments.mean, moments.mean**2 / excess if excess > 0 else float("inf")
