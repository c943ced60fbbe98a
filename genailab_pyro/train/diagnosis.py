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
class Diagnosis:
    """What a fitted model's latents, importance weights and gradients look like.

    Attributes:
        kl: Mean KL of each latent from its prior, in nats; empty where it has no closed form.
        variance: Variance over cells of each latent's posterior mean.
        pareto_k: Pareto k-hat of the importance weights of each cell; above .7 they are not to be trusted.
        gradient_norm: Mean gradient norm of the last tenth of the epochs, in nats per cell.
        gap: Mean of the importance-weighted bound minus the ELBO, in nats: what the guide's form costs at least.
        overfit: Validation minus train ELBO of the last epoch, in nats per cell; NaN without validation cells.
    """

    kl: Float[np.ndarray, " latent"]
    variance: Float[np.ndarray, " latent"]
    pareto_k: Float[np.ndarray, " cells"]
    gradient_norm: float
    gap: float
    overfit: float

    @staticmethod
    def kl_of(guide_trace: Trace, model_trace: Trace) -> Float[np.ndarray, "cells latent"]:
        """KL of each latent of each cell; no columns where it has no closed form."""
        try:
            kl = kl_per_latent(guide_trace, model_trace)
        except NotImplementedError:
            return np.zeros((guide_trace.nodes["z"]["value"].shape[-2], 0))
        return kl.flatten(0, -2).cpu().numpy()

    @classmethod
    def of(
        cls,
        *,
        kl: Float[np.ndarray, "cells latent"],
        locs: Float[np.ndarray, "cells latent"],
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
            kl=kl.mean(0),
            variance=locs.var(0),
            pareto_k=np.asarray(pareto_k),
            gradient_norm=float(last["gradient_norm"].mean()) if len(last) else float("nan"),
            gap=float((bound - log_weights.mean(0)).mean()),
            overfit=float((last["validation_elbo"] - last["train_elbo"]).iloc[-1]) if len(last) else float("nan"),
        )

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
        """Whether no latent is active: the decoder ignores them all."""
        return self.active_units == 0

    @property
    def verdict(self) -> list[str]:
        """What this means and what usually helps, a sentence each."""
        total = len(self.variance)
        share = float((self.pareto_k > TRUSTWORTHY).mean())
        lines = [f"{self.active_units} of {total} latents are active."]
        if self.collapsed:
            lines.append(
                "The posterior has collapsed onto the prior: the decoder ignores the latent. A longer warm-up, free "
                "bits or a smaller beta usually help; check that the counts are not scaled."
            )
        elif self.active_units <= total // 2:
            lines.append("More than half of the latents are not used; a smaller latent_dim would do as well.")
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
        return "\n".join(
            [
                *self.verdict,
                f"KL per latent (nats): {', '.join(f'{value:.2f}' for value in self.kl) or 'no closed form'}",
                f"Importance-weighted bound minus ELBO: {self.gap:.2f} nats; gradient norm {self.gradient_norm:.3g}",
            ]
        )
