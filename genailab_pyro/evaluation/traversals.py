"""What a walk along one latent does to the expression of every gene."""

from collections.abc import Mapping

import numpy as np
import torch
from anndata import AnnData
from jaxtyping import Float

from genailab_pyro.data.cells import Cells
from genailab_pyro.data.new_cells import NewCells
from genailab_pyro.data.registration import Registration
from genailab_pyro.model.priors import Bits
from genailab_pyro.train.fitted import Fit


def positions(steps: int = 7, width: float = 2.0) -> Float[np.ndarray, " steps"]:
    """The steps of a walk through 0, in standard deviations.

    Args:
        steps: Number of steps, odd, so that the middle one is at 0; at least three.
        width: How far the walk goes to either side.

    Raises:
        ValueError: If the number of steps is even or below three, or the width is not above zero.

    Example:
        >>> positions(5, 2.0)
        array([-2., -1.,  0.,  1.,  2.])
    """
    if steps < 3 or steps % 2 == 0:
        raise ValueError(f"expected an odd number of steps of at least three, as the middle one is at 0, got {steps!r}")
    if not (np.isfinite(width) and width > 0):
        raise ValueError(f"expected width to be finite and above 0, got {width!r}")
    return np.linspace(-width, width, steps)


def traverse(
    fit: Fit,
    adata: AnnData | Cells | None = None,
    *,
    steps: int = 7,
    width: float = 2.0,
    conditions: Mapping[str, str] | None = None,
    continuous: Mapping[str, float] | None = None,
) -> Float[np.ndarray, "latent steps genes"]:
    r"""Expected counts along a walk of each latent, the others held at their mean over cells.

    With posterior means :math:`m_n` of the cells, their mean :math:`\bar m` and standard deviation :math:`s`, the
    walk of latent d decodes :math:`z = \bar m + t\, s_d\, e_d` at the steps t of `positions`, in a cell of a typical
    library under one condition. A latent that the encoder does not use has :math:`s_d` near zero, and moves nothing.

    Args:
        fit: The fit; its latents are real numbers.
        adata: The cells whose centre the walk goes through, such as those of one type; None for all that the fit was
            trained on.
        steps: Number of steps, odd; at least three.
        width: How far the walk goes to either side, in standard deviations.
        conditions: Levels to decode under; a condition not named is at its most frequent level.
        continuous: Values of covariates to decode under; a covariate not named is at its mean.

    Returns:
        Mean counts in a cell of the geometric mean library (or size factor) of the data, shape
        ``[latent, steps, genes]``.

    Raises:
        ValueError: If the latents are bits, a condition or level is not known, or a number is out of range.

    Example:
        >>> import genailab_pyro as glp
        >>> cells = glp.register(glp.data.pbmc68k())
        >>> vae = glp.CVAE_NB.from_registration(cells, latent_dim=4, hidden_dims=[16])
        >>> traverse(glp.fit(vae, cells, max_epochs=1, progress=False)).shape
        (4, 7, 765)
    """
    walk = positions(steps, width)
    if isinstance(fit.vae.prior, Bits):
        raise ValueError("expected latents that are real numbers, got bits, which have no steps between 0 and 1")
    latents = fit.latent(adata)
    moves = walk[:, None] * np.diag(latents.std(0))[:, None, :]  # [latent, steps, latent]
    reference = NewCells.draw(
        fit.registration, 1, conditions=_levels(fit.registration) | dict(conditions or {}), continuous=continuous
    )
    minibatch = next(reference.minibatches(1)).to(fit.device, next(fit.vae.parameters()).dtype)
    library = np.exp(fit.registration.library.loc)
    with torch.no_grad():
        z = torch.as_tensor(latents.mean(0) + moves).to(minibatch.library).flatten(0, 1).unsqueeze(1)
        expression = fit.vae.likelihood.expression(fit.vae.decode(z, minibatch), minibatch)
    return library * expression.cpu().numpy().reshape(*moves.shape[:2], -1)


def _levels(registration: Registration) -> dict[str, str]:
    """The most frequent level of each condition."""
    return {
        condition.name: condition.levels[int(np.argmax(condition.frequencies))] for condition in registration.conditions
    }
