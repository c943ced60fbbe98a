"""Gradient draws of an estimator at frozen parameters."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyro
import torch
from jaxtyping import Float
from torch import nn

from genailab_pyro.estimators import Estimator, get
from genailab_pyro.types import Minibatch


@dataclass(frozen=True)
class GradientDraws:
    """Draws of the gradient of one estimator with respect to one group of parameters, in nats per cell.

    Args:
        values: Shape ``[draws, parameters]``.
    """

    values: Float[np.ndarray, "draws parameters"]

    @property
    def variance(self) -> float:
        """Trace of the covariance of the gradient."""
        return float(self.values.var(axis=0, ddof=1).sum())

    @property
    def mean(self) -> Float[np.ndarray, " parameters"]:
        """Mean gradient."""
        return self.values.mean(axis=0)

    def variance_interval(self, *, num_resamples: int = 500, seed: int = 0) -> tuple[float, float]:
        """Central 95 % bootstrap interval of the variance, over resampled draws."""
        rng = np.random.default_rng(seed)
        centred = ((self.values - self.mean) ** 2).sum(axis=1)
        count = len(centred)
        resampled = centred[rng.integers(count, size=(num_resamples, count))].sum(axis=1) / (count - 1)
        low, high = np.quantile(resampled, [0.025, 0.975])
        return float(low), float(high)


def draw_gradients(
    model: nn.Module,
    guide: nn.Module,
    minibatch: Minibatch,
    estimator: str | Estimator,
    parameters: Mapping[str, nn.Parameter],
    *,
    num_draws: int = 200,
    seed: int = 0,
) -> dict[str, GradientDraws]:
    """Draw the gradient of an estimator many times at fixed parameters and cells.

    Estimators that are given the same seed share their random numbers.

    Args:
        model: The generative program.
        guide: The variational program.
        minibatch: The cells.
        estimator: A name in the table of estimators, or an `Estimator`.
        parameters: Which parameters to look at, by name.
        num_draws: Number of draws, at least two.
        seed: Seed of the draws; the caller's random state is left as it was.

    Returns:
        The draws for each parameter, per cell of the minibatch's data set.

    Raises:
        ValueError: If there are fewer than two draws, or the estimator is unknown.
    """
    if num_draws < 2:
        raise ValueError(f"expected at least two draws, whose scatter is asked for, got {num_draws}")
    bound_model, bound_guide, elbo = get(estimator).bind(model, guide)
    loss_of = elbo(bound_model, bound_guide)
    draws: dict[str, list[np.ndarray]] = {name: [] for name in parameters}
    wanted = list(parameters.values())
    with torch.random.fork_rng(), pyro.get_param_store().scope(), pyro.validation_enabled(False):
        for draw in range(num_draws):
            torch.manual_seed(seed * 1_000_003 + draw)
            gradients = torch.autograd.grad(loss_of(minibatch), wanted, allow_unused=True)
            for name, parameter, gradient in zip(parameters, wanted, gradients, strict=True):
                filled = torch.zeros_like(parameter) if gradient is None else gradient
                draws[name].append((filled / minibatch.num_cells).flatten().double().cpu().numpy())
    return {name: GradientDraws(np.stack(values)) for name, values in draws.items()}
