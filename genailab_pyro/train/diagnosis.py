"""Signs of health of a fitted VAE, and what they mean in plain words."""

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from pyro.poutine import Trace

from genailab_pyro.model.penalties import kl_per_latent

ACTIVE = 0.01
TRUSTWORTHY = 0.7
# The generalised Pareto distribution is fitted to the largest fifth of the weights: five at least.
FEWEST_DRAWS = 25


@dataclass(frozen=True, eq=False)
class LatentUse:
    """How much the latents of one site are used.

    Attributes:
        kl: Mean KL of each latent from its prior, in nats; empty where it has no closed form.
        variance: Variance over cells of each latent's posterior mean; below an upper latent, of its deviation from the
            mean of the prior, which depends on the cell, too.
    """

    kl: Float[np.ndarray, " latent"]
    variance: Float[np.ndarray, " latent"]

    @classmethod
    def of(cls, kl: Float[np.ndarray, "cells latent"], locs: Float[np.ndarray, "cells latent"]) -> "LatentUse":
        """Sum up the KL of each latent of some cells, and the means of their posteriors."""
        return cls(kl.mean(0), locs.var(0))

    @property
    def active(self) -> Bool[np.ndarray, " latent"]:
        """Whether each latent has a mean KL and a variance of its posterior mean above .01.

        References:
            Burda, Grosse, Salakhutdinov (2016). doi:10.48550/arXiv.1509.00519
        """
        spread = self.variance > ACTIVE
        return spread & (self.kl > ACTIVE) if len(self.kl) else spread

    @property
    def active_units(self) -> int:
        """Number of active latents."""
        return int(self.active.sum())

    @property
    def collapsed(self) -> bool:
        """Whether the posterior of every latent is the prior: the decoder ignores them all."""
        return self.active_units == 0 and not (self.kl > ACTIVE).any() and not np.isnan(self.kl).any()

    def verdict(self, what: str = "latents") -> list[str]:
        """What this means and what usually helps, a sentence each."""
        total = len(self.variance)
        lines = [f"{self.active_units} of {total} {what} are active."]
        if not np.isfinite(self.kl).all():
            lines.append("Their KL is not finite: the posterior goes where the prior has no probability.")
        elif self.collapsed:
            lines.append(
                "The posterior has collapsed onto the prior: the decoder ignores the latent. A longer warm-up, free "
                "bits or a smaller beta usually help; check that the counts are not scaled."
            )
        elif self.active_units == 0:
            lines.append(
                f"The posterior differs from the prior, by up to {self.kl.max():.2f} nats, but hardly from cell to "
                "cell: it has not learned to tell cells apart. More epochs or another learning rate usually help: a "
                "higher one where the ELBO rises steadily, a lower one where it jumps or falls."
            )
        elif 2 * self.active_units <= total:
            lines.append(f"Half or more of the {what} are not used; fewer of them would do as well.")
        return lines


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What a fitted model's latents, importance weights and gradients look like.

    Attributes:
        latents: Use of the latents ``"z"``.
        upper: Use of the continuous latents above them; None without any.
        pareto_k: Pareto k-hat of the importance weights of each cell; above .7 they are not to be trusted.
        gradient_norm: Mean gradient norm of the last tenth of the epochs, in nats per cell.
        gap: Mean of the importance-weighted bound minus the ELBO, in nats: what the guide's form costs at least.
        overfit: Validation minus train ELBO of the last epoch, in nats per cell; NaN without validation cells.
    """

    latents: LatentUse
    upper: LatentUse | None
    pareto_k: Float[np.ndarray, " cells"]
    gradient_norm: float
    gap: float
    overfit: float

    @staticmethod
    def kl_of(guide_trace: Trace, model_trace: Trace, site: str = "z") -> Float[np.ndarray, "cells latent"]:
        """KL of each latent of a site for each cell; no columns where it has no closed form."""
        try:
            kl = kl_per_latent(guide_trace, model_trace, site)
        except NotImplementedError:
            return np.zeros((guide_trace.nodes[site]["value"].shape[-2], 0))
        return kl.flatten(0, -2).cpu().numpy()

    @classmethod
    def of(
        cls,
        *,
        latents: LatentUse,
        upper: LatentUse | None = None,
        log_weights: Float[np.ndarray, "particles cells"],
        history: pd.DataFrame,
    ) -> "Diagnosis":
        """Sum up what was measured on some cells.

        Raises:
            ValueError: If there are too few draws to judge the importance weights by.
        """
        if len(log_weights) < FEWEST_DRAWS:
            raise ValueError(f"expected num_particles of at least {FEWEST_DRAWS}, got {len(log_weights)}")
        import arviz as az  # takes seconds to import, which only a diagnosis needs

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ArviZ warns for each cell above .7, which the verdict counts
            _, pareto_k = az.psislw(log_weights.T)
        bound = np.logaddexp.reduce(log_weights, axis=0) - np.log(len(log_weights))
        last = history.tail(max(len(history) // 10, 1))
        return cls(
            latents=latents,
            upper=upper,
            pareto_k=np.asarray(pareto_k),
            gradient_norm=float(last["gradient_norm"].mean()) if len(last) else float("nan"),
            gap=float((bound - log_weights.mean(0)).mean()),
            overfit=float((last["validation_elbo"] - last["train_elbo"]).iloc[-1]) if len(last) else float("nan"),
        )

    @property
    def active_units(self) -> int:
        """Number of active latents ``"z"``."""
        return self.latents.active_units

    @property
    def collapsed(self) -> bool:
        """Whether the posterior of ``"z"`` is the prior."""
        return self.latents.collapsed

    @property
    def verdict(self) -> list[str]:
        """What this means and what usually helps, a sentence each."""
        share = float((self.pareto_k > TRUSTWORTHY).mean())
        lines = self.latents.verdict()
        if self.upper is not None:
            lines += self.upper.verdict("upper latents")
        if share > 0.1:
            lines.append(
                f"The importance weights of {share:.0%} of the cells have a Pareto k above {TRUSTWORTHY}: the guide "
                "misses part of the posterior there, and more particles raise the likelihood bound only slowly."
            )
        else:
            lines.append("The importance weights are well behaved, so the likelihood bound can be trusted.")
        if self.overfit < -0.05 * abs(self.gap) - 30:
            lines.append(
                f"Validation cells score {-self.overfit:.0f} nats per cell below training cells: it overfits; more "
                "dropout or weight decay, or fewer epochs, usually help."
            )
        return lines

    def __str__(self) -> str:
        uses = {"latent": self.latents} | ({} if self.upper is None else {"upper latent": self.upper})
        return "\n".join(
            [
                *self.verdict,
                *(
                    f"KL per {what} (nats): {', '.join(f'{value:.2f}' for value in use.kl) or 'no closed form'}"
                    for what, use in uses.items()
                ),
                f"Importance-weighted bound minus ELBO: {self.gap:.2f} nats; gradient norm {self.gradient_norm:.3g}",
            ]
        )
