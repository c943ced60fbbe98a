"""Posterior collapse: of a linear VAE exactly, and of a small VAE of counts by the library's training."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from genailab_pyro.train.diagnosis import ACTIVE, Diagnosis

if TYPE_CHECKING:
    from genailab_pyro.data.cells import Cells

NUM_CELLS, NUM_GENES = 400, 60
LATENT_DIM = 6


@dataclass(frozen=True, eq=False)
class LinearVAE:
    r"""The best linear VAE of some values at each weight beta of the KL.

    With p(z) = N(0, I), p(x | z) = N(W z + m, noise I) and a linear guide, each latent takes one principal axis. On an
    axis along which the values have variance :math:`\lambda`, the best loading has
    :math:`\|w\|^2 = \max(0, \lambda - \beta\,\mathrm{noise})`, and the mean KL of its latent is

    .. math:: \mathrm{KL} = \tfrac12 \max\Bigl(0, \log\frac{\lambda}{\beta\,\mathrm{noise}}\Bigr),

    so that it collapses at :math:`\beta = \lambda / \mathrm{noise}` and not before, whatever the training.

    Args:
        lengths: Variance of the values along each axis that has a latent, in falling order.
        noise: Variance of the likelihood, held fixed.

    References:
        Lucas, Tucker, Grosse, Norouzi (2019). Don't blame the ELBO! A linear VAE perspective on posterior collapse.
        doi:10.48550/arXiv.1911.02469 (beta = 1 there; a weight beta is a noise beta times as large)

    Example:
        >>> linear = LinearVAE(np.array([8.0, 2.0]), 1.0)
        >>> linear.kl(np.array([1.0, 4.0])).round(3).tolist()
        [[1.04, 0.347], [0.347, 0.0]]
        >>> linear.active_units(np.array([1.0, 4.0, 10.0])).tolist()
        [2, 1, 0]
    """

    lengths: Float[np.ndarray, " latents"]
    noise: float

    @classmethod
    def of(cls, values: Float[np.ndarray, "cells genes"], num_latents: int) -> "LinearVAE":
        """The linear VAE of values, its noise the mean variance along the axes that have no latent.

        That is the noise of the highest likelihood (Tipping and Bishop 1999, doi:10.1111/1467-9868.00196).

        Raises:
            ValueError: If there are not more genes and cells than latents.
        """
        values = np.asarray(values, dtype=np.float64)
        if values.ndim != 2 or not 1 <= num_latents < min(values.shape):
            raise ValueError(
                f"expected values [cells, genes] with more of both than num_latents, at least one, got shape "
                f"{values.shape} and {num_latents} latents"
            )
        lengths = np.linalg.eigvalsh(np.cov(values.T, bias=True))[::-1]
        return cls(lengths[:num_latents], float(lengths[num_latents:].mean()))

    @property
    def thresholds(self) -> Float[np.ndarray, " latents"]:
        """The beta at which each latent collapses."""
        return self.lengths / self.noise

    def kl(self, betas: Float[np.ndarray, " betas"]) -> Float[np.ndarray, "betas latents"]:
        """Mean KL of each latent, in nats.

        Raises:
            ValueError: If a beta is not above zero.
        """
        betas = np.asarray(betas, dtype=np.float64)
        if not (betas > 0).all():
            raise ValueError(f"expected betas above zero, at which the KL is finite, got {betas.min()}")
        return 0.5 * np.log(np.maximum(self.thresholds / betas[:, None], 1.0))

    def active_units(self, betas: Float[np.ndarray, " betas"]) -> Int[np.ndarray, " betas"]:
        """Number of latents whose KL and whose variance of posterior means, 1 - exp(-2 KL), are above .01."""
        kl = self.kl(betas)
        return ((kl > ACTIVE) & (1 - np.exp(-2 * kl) > ACTIVE)).sum(1)


@dataclass(frozen=True, eq=False)
class SmallFit:
    """What is shown of a small VAE that was fitted to simulated counts.

    Attributes:
        history: A row per epoch: ``epoch``, ``beta``, ``train_kl`` and more.
        diagnosis: What `Fit.diagnose` says.
    """

    history: pd.DataFrame
    diagnosis: Diagnosis


def simulated_cells(*, seed: int = 0) -> "Cells":
    """Counts of 400 cells of 4 types and 60 genes, which differ along 3 directions.

    Example:
        >>> len(simulated_cells())
        400
    """
    from genailab_pyro.data import register
    from genailab_pyro.data.simulate import CellTypes, LibrarySizes, simulate

    types, library = CellTypes(latent_dim=3, separation=1.5), LibrarySizes(median=300)
    return register(simulate(NUM_CELLS, NUM_GENES, types=types, library=library, seed=seed).adata)


def linear_vae(cells: "Cells") -> LinearVAE:
    """The linear VAE of log counts: log1p of the counts of each cell, scaled to the median library."""
    found = np.asarray(cells.counts_matrix().toarray(), dtype=np.float64)
    library = found.sum(1, keepdims=True)
    return LinearVAE.of(np.log1p(found / library * np.median(library)), LATENT_DIM)


def fit_small(cells: "Cells", beta: float, warmup: float, *, max_epochs: int = 60, seed: int = 0) -> SmallFit:
    """Fit a negative binomial VAE with six latents to cells, and diagnose it.

    Args:
        cells: The cells, such as `simulated_cells`.
        beta: Final weight of the KL, at least zero.
        warmup: Share of the training over which beta rises linearly from zero, in [0, 1]; 0 for none.
        max_epochs: Passes over the cells.
        seed: Seed of weights, order and draws; the caller's random state is left as it was.

    Raises:
        ValueError: If a number is out of range.
    """
    from genailab_pyro.model import VAE_NB
    from genailab_pyro.train.fit import fit
    from genailab_pyro.train.schedules import Warmup

    if not 0 <= warmup <= 1:
        raise ValueError(f"expected warmup to be a share of the training in [0, 1], got {warmup}")
    schedule = Warmup(beta=beta, length=float(warmup)) if warmup else Warmup(beta=beta, shape="constant")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = VAE_NB.from_registration(cells, latent_dim=LATENT_DIM, hidden_dims=[32])
    fitted = fit(vae, cells, max_epochs=max_epochs, minibatch_size=64, warmup=schedule, seed=seed, progress=False)
    return SmallFit(fitted.history, fitted.diagnose(num_particles=25, seed=seed))
