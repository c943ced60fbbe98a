"""Held-out likelihood of one fit, and paired differences between several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Float

from genailab_pyro.data.cells import Cells
from genailab_pyro.train.fitted import Fit


@dataclass(frozen=True)
class Estimate:
    """A mean over cells with its standard error.

    Args:
        mean: The mean.
        standard_error: Standard deviation over cells divided by the square root of their number.
    """

    mean: float
    standard_error: float

    @classmethod
    def of(cls, values: Float[np.ndarray, " cells"]) -> "Estimate":
        """Mean and standard error of one value per cell; the error of a single cell is NaN."""
        error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
        return cls(float(values.mean()), float(error))

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.standard_error:.2f}"


def compare_models(
    fits: Mapping[str, Fit] | Sequence[Fit],
    adata: AnnData | Cells,
    *,
    num_particles: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """Score several fits on the same held-out cells, and their paired differences from the best.

    Cells differ far more in likelihood than models do; the difference of two models on the same cell does not carry
    that spread, so its standard error is the one to read.

    Args:
        fits: The fits, by name, or in a row.
        adata: Cells that none of them was trained on.
        num_particles: Draws per cell of the importance-weighted bound.
        seed: Seed of the draws, the same for all.

    Returns:
        One row per fit, best first: ``elbo`` and ``log_likelihood`` (importance-weighted) with their standard errors,
        ``difference`` from the best with its paired standard error; all in nats per cell.

    Raises:
        ValueError: If fewer than two fits are given, or they score different things: counts and log-normalised
            values, or other genes.
    """
    named = dict(fits) if isinstance(fits, Mapping) else {f"model {i + 1}": fit for i, fit in enumerate(fits)}
    check_comparable(named)
    bounds, elbos = {}, {}
    for name, fit in named.items():
        cells = fit.bind(adata)
        bounds[name] = fit.log_likelihood(cells, num_particles=num_particles, seed=seed)
        elbos[name] = fit.elbo(cells, seed=seed)
    best = max(bounds, key=lambda name: bounds[name].mean())
    rows = {}
    for name in sorted(named, key=lambda name: -bounds[name].mean()):
        elbo, bound = Estimate.of(elbos[name]), Estimate.of(bounds[name])
        difference = Estimate.of(bounds[name] - bounds[best])
        rows[name] = {
            "elbo": elbo.mean,
            "elbo_standard_error": elbo.standard_error,
            "log_likelihood": bound.mean,
            "log_likelihood_standard_error": bound.standard_error,
            "difference": difference.mean,
            "difference_standard_error": difference.standard_error,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def check_comparable(fits: Mapping[str, Fit]) -> None:
    """Refuse fits whose likelihoods do not compare.

    Raises:
        ValueError: If there are fewer than two, or they score different things.
    """
    if len(fits) < 2:
        raise ValueError(f"expected at least two fits to compare, got {len(fits)}")
    scales = {name: _scale(fit) for name, fit in fits.items()}
    if len(set(scales.values())) > 1:
        raise ValueError(
            f"expected models over the same values, got {scales}; densities of different values do not compare: leave "
            "one kind out"
        )
    if len({frozenset(fit.registration.genes) for fit in fits.values()}) > 1:
        raise ValueError("expected models over the same genes, got different ones; fit them on the same genes")


def _scale(fit: Fit) -> str:
    """What the density of a fit is over, and what it is given: a latent library is scored, an observed one is not."""
    return fit.vae.likelihood.scale + (" given the library" if fit.vae.library is None else "")
