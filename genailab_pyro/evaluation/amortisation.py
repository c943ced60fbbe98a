"""What a guide loses by being amortised: its bound beside that of a guide refined for each cell by itself."""

import copy
import math
from collections.abc import Callable
from typing import Any, ClassVar

import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from anndata import AnnData
from jaxtyping import Float
from pyro.infer import SVI
from torch import Tensor, nn

from genailab_pyro import estimators
from genailab_pyro.data.cells import Cells
from genailab_pyro.model.particles import draw_particles
from genailab_pyro.model.programs import cells_plate
from genailab_pyro.model.vae import VAE
from genailab_pyro.train.fitted import Fit
from genailab_pyro.types import Minibatch

CELLS_AT_ONCE = 512
DRAWS_PER_STEP = 4
DRAWS_FOR_MOMENTS = 200  # of a posterior whose variance has no closed form
# Counts times draws that are scored at a time: 16 MB in single precision, and a few times that in intermediates.
CHUNK = 4_000_000


class CellwiseNormal(nn.Module):
    """Independent normal latents of a fixed set of cells, with a location and a scale for each.

    Args:
        loc: Where the locations start, one row per cell.
        scale: Where the scales start, above zero, of the same shape.
    """

    def __init__(self, loc: Float[Tensor, "cells ..."], scale: Float[Tensor, "cells ..."]) -> None:
        super().__init__()
        self.loc = nn.Parameter(loc.detach().clone())
        self.log_scale = nn.Parameter(scale.detach().log())

    @property
    def scale(self) -> Float[Tensor, "cells ..."]:
        """The scales."""
        return self.log_scale.exp()


class CellwiseGuide(nn.Module):
    """A guide of one minibatch that holds the parameters of each cell: normal z, log-normal library where latent.

    It starts at the amortised guide: at the mean and the standard deviation of each latent.

    Args:
        vae: Whose guide it starts at.
        minibatch: The cells.

    Raises:
        ValueError: If the VAE has an upper latent, or its latents are discrete.
    """

    max_plate_nesting: ClassVar[int] = 1

    def __init__(self, vae: VAE, minibatch: Minibatch) -> None:
        super().__init__()
        if vae.upper is not None:
            raise ValueError(
                f"expected a VAE whose only latents are z and a library, got {type(vae).__name__} with "
                f"{vae.upper.site!r} above z; a guide of each cell by itself is not defined for it"
            )
        with torch.no_grad():
            posterior = vae.encoder(minibatch)
            if not posterior.has_rsample:
                raise ValueError(
                    f"expected continuous latents to refine, got {type(vae).__name__} with an encoder of draws without "
                    "a path to its parameters; compare fit.elbo with fit.log_likelihood"
                )
            self.z = CellwiseNormal(*_mean_and_deviation(posterior))
            self.library = None
            if vae.library is not None:
                log_library = vae.library.posterior(minibatch)
                self.library = CellwiseNormal(log_library.loc, log_library.scale)

    def forward(self, minibatch: Minibatch) -> None:
        """Declare the latent sites."""
        pyro.module("cellwise", self)
        with cells_plate(minibatch):
            if self.library is not None:
                pyro.sample("library", dist.LogNormal(self.library.loc, self.library.scale))
            pyro.sample("z", dist.Normal(self.z.loc, self.z.scale).to_event(1))


def refine(vae: VAE, minibatch: Minibatch, *, num_steps: int = 200, learning_rate: float = 0.1) -> CellwiseGuide:
    """A guide fitted to each cell of a minibatch by itself, from where the amortised one is, with the decoder frozen.

    Its steps are those of Adam, which scales each parameter of each cell for itself, along the path of a few draws;
    the learning rate falls to zero by a cosine. Call it with the random state and Pyro's store forked.

    Args:
        vae: The VAE, in evaluation mode and without gradients.
        minibatch: The cells.
        num_steps: Number of steps; 0 for none.
        learning_rate: Of the first step, in units of the latents.

    Returns:
        The guide of these cells.

    Raises:
        ValueError: If the VAE has an upper latent, or its latents are discrete.
    """
    guide = CellwiseGuide(vae, minibatch)
    if num_steps:
        estimator = estimators.get("pathwise", num_particles=DRAWS_PER_STEP)
        options = {"lr": learning_rate, "betas": (0.9, 0.99)}
        optimizer = pyro.optim.CosineAnnealingLR(
            {"optimizer": torch.optim.Adam, "optim_args": options, "T_max": num_steps}
        )
        model, bound_guide, elbo = estimator.bind(vae.model, guide)
        svi = SVI(model, bound_guide, optimizer, elbo)
        for _ in range(num_steps):
            svi.step(minibatch)
            optimizer.step()
    return guide


def amortisation_gap(
    fit: Fit,
    cells: AnnData | Cells | None = None,
    *,
    num_steps: int = 200,
    learning_rate: float = 0.1,
    num_particles: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Split what a cell's bound falls short of its likelihood into what amortisation and what the guide's form costs.

    With the amortised guide :math:`q(z \mid x_n)`, and :math:`q^*_n` the normal with independent latents that is
    fitted to cell n alone,

    .. math::
        \log p(x_n) - L(q) = \underbrace{\log p(x_n) - L(q^*_n)}_{\text{approximation gap}}
        + \underbrace{L(q^*_n) - L(q)}_{\text{amortisation gap}}.

    A large amortisation gap asks for a wider or longer trained encoder; a large approximation gap for a richer guide,
    such as a `FullRankEncoder`. Where the amortised guide is itself richer than a normal with independent latents, its
    amortisation gap may be below zero. The fit does not change.

    Args:
        fit: The fit.
        cells: The cells; None for those that it was trained on.
        num_steps: Steps of the refinement; 0 for none.
        learning_rate: Of its first step, in units of the latents; it falls to zero by a cosine.
        num_particles: Draws per cell of each bound, the same for both guides where these draw alike.
        seed: Seed of the draws.

    Returns:
        One row per cell, in nats: ``elbo`` of the amortised guide, ``refined_elbo``, ``log_likelihood`` (the
        importance-weighted bound by draws of the refined guide), ``amortisation_gap``, the second less the first, and
        ``approximation_gap``, the third less the second. As the likelihood is a lower bound, so is the last.

    Raises:
        ValueError: If the VAE has an upper latent, its latents are discrete, or a number is out of range.

    References:
        Cremer, Li, Duvenaud (2018). Inference suboptimality in variational autoencoders.
        doi:10.48550/arXiv.1801.03558

    Example:
        >>> import genailab_pyro as glp
        >>> cells = glp.register(glp.data.pbmc68k()).subset(range(40))
        >>> vae = glp.CVAE_NB.from_registration(cells, latent_dim=2, hidden_dims=[8])
        >>> fit = glp.fit(vae, cells, max_epochs=1, progress=False)
        >>> gaps = amortisation_gap(fit, num_steps=100)
        >>> bool(gaps["amortisation_gap"].mean() > 0)
        True
    """
    _check(num_steps, learning_rate, num_particles)
    observed = fit.bind(cells)
    frozen = copy.deepcopy(fit.vae).requires_grad_(False)  # a copy: the flag belongs to the fit's own parameters
    dtype = next(frozen.parameters()).dtype
    blocks, seeds = [], torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(), pyro.validation_enabled(False):
        for minibatch in observed.minibatches(CELLS_AT_ONCE, device=fit.device, dtype=dtype):
            alone = minibatch._replace(num_cells=minibatch.size)  # of these cells, none stands for others
            common = int(torch.randint(2**31, (), generator=seeds))
            with pyro.get_param_store().scope():
                torch.manual_seed(common)
                guide = refine(frozen, alone, num_steps=num_steps, learning_rate=learning_rate)
                bounds = [_log_weights(frozen, each, alone, num_particles, common) for each in (frozen.guide, guide)]
            elbo, refined = (log_weights.mean(0) for log_weights in bounds)
            likelihood = bounds[1].logsumexp(0) - math.log(num_particles)
            blocks.append(torch.stack([elbo, refined, likelihood, refined - elbo, likelihood - refined], dim=1))
    columns = ["elbo", "refined_elbo", "log_likelihood", "amortisation_gap", "approximation_gap"]
    return pd.DataFrame(torch.cat(blocks).numpy(), index=pd.Index(observed.obs_names, name="cell"), columns=columns)


def _mean_and_deviation(posterior: Any) -> tuple[Tensor, Tensor]:
    try:
        return posterior.mean, posterior.stddev
    except NotImplementedError:
        return posterior.mean, posterior.sample((DRAWS_FOR_MOMENTS,)).std(0)


def _log_weights(
    vae: VAE, guide: Callable[..., Any], minibatch: Minibatch, num_particles: int, seed: int
) -> Float[Tensor, "particles cells"]:
    genes = 1 if minibatch.counts is None else minibatch.counts.shape[1]
    at_once = max(CHUNK // (minibatch.size * genes), 1)
    torch.manual_seed(seed)
    with torch.no_grad():
        draws = [
            draw_particles(vae.model, guide, minibatch, min(at_once, num_particles - done)).log_weights
            for done in range(0, num_particles, at_once)
        ]
    return torch.cat(draws).double().cpu()


def _check(num_steps: int, learning_rate: float, num_particles: int) -> None:
    for name, value, least in (("num_steps", num_steps, 0), ("num_particles", num_particles, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"expected {name} to be a whole number of at least {least}, got {value!r}")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"expected learning_rate to be finite and above 0, got {learning_rate!r}")
