"""Gradient draws of an estimator at frozen parameters."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyro
import torch
from jaxtyping import Float
from torch import Tensor, nn

from genailab_pyro.estimators import Estimator, get
from genailab_pyro.estimators.baselines import Baseline
from genailab_pyro.types import Minibatch

Groups = Mapping[str, Sequence[nn.Parameter]]
# Coordinates of a group that are looked at; a random choice stands for all of a larger one.
MOST_COORDINATES = 20_000


@dataclass(frozen=True)
class GradientDraws:
    """Draws of the gradient of one estimator with respect to one group of parameters, in nats per cell.

    Args:
        values: Shape ``[draws, parameters]``.
        share: Share of the group's parameters that are looked at, chosen at random.
    """

    values: Float[np.ndarray, "draws parameters"]
    share: float = 1.0

    @property
    def variance(self) -> float:
        """Trace of the covariance of the gradient."""
        return float(self.values.var(axis=0, ddof=1).sum()) / self.share

    @property
    def mean(self) -> Float[np.ndarray, " parameters"]:
        """Mean gradient."""
        return self.values.mean(axis=0)

    @property
    def squares(self) -> Float[np.ndarray, " draws"]:
        """Squared distance of each draw from the mean; their sum over one less than their number is the variance."""
        return ((self.values - self.mean) ** 2).sum(axis=1) / self.share

    @property
    def signal_to_noise(self) -> float:
        """Norm of the mean gradient over the standard deviation of a draw.

        What the scatter of the draws adds to the square of the norm is taken out.
        """
        variance = self.variance
        square = float((self.mean**2).sum()) / self.share - variance / len(self.values)
        if variance <= 0:
            return float("inf") if square > 0 else float("nan")
        return float(np.sqrt(max(square, 0.0) / variance))

    def variance_interval(self, *, num_resamples: int = 500, seed: int = 0) -> tuple[float, float]:
        """Central 95 % bootstrap interval of the variance, over resampled draws."""
        count = len(self.values)
        resampled = self.squares[resampled_draws(count, num_resamples, seed)].sum(axis=1) / (count - 1)
        low, high = np.quantile(resampled, [0.025, 0.975])
        return float(low), float(high)


def resampled_draws(count: int, num_resamples: int, seed: int) -> np.ndarray:
    """Positions of draws for the bootstrap, shape ``[resamples, draws]``."""
    return np.random.default_rng(seed).integers(count, size=(num_resamples, count))


@contextmanager
def frozen() -> Iterator[None]:
    """Leaves the caller's random state and Pyro's store as they were, and checks nothing again."""
    with torch.random.fork_rng(), pyro.get_param_store().scope(), pyro.validation_enabled(False):
        yield


class GradientSampler:
    """Draws the gradient of an estimator with respect to groups of parameters.

    It must be used inside `frozen`.

    Args:
        model: The generative program.
        guide: The variational program.
        estimator: The estimator.
        groups: Parameters, by the name of their group.

    Attributes:
        seconds: How long each draw took.
    """

    def __init__(self, model: nn.Module, guide: nn.Module, estimator: Estimator, groups: Groups) -> None:
        self.model, self.guide, self.elbo = estimator.bind(model, guide)
        self.groups = groups
        self.seconds: list[float] = []
        self.evaluations = float("nan")
        self.elbo.watchers.append(self._count)
        self._parameters = [parameter for group in groups.values() for parameter in group]
        generator = torch.Generator().manual_seed(0)
        self._chosen: dict[str, Tensor | None] = {}
        for name, group in groups.items():
            size = sum(parameter.numel() for parameter in group)
            many = size > MOST_COORDINATES
            self._chosen[name] = torch.randperm(size, generator=generator)[:MOST_COORDINATES] if many else None

    def _count(self, model_trace: pyro.poutine.Trace, guide_trace: pyro.poutine.Trace) -> None:
        shapes = [site["fn"].batch_shape for site in model_trace.nodes.values() if site["type"] == "sample"]
        self.evaluations = float(max(shape.numel() for shape in shapes))

    def share(self, group: str) -> float:
        """Share of a group's parameters that are looked at."""
        chosen = self._chosen[group]
        size = sum(parameter.numel() for parameter in self.groups[group])
        return 1.0 if chosen is None else len(chosen) / size

    def warm(self, minibatches: Iterable[Minibatch]) -> None:
        """Let the baseline learn from minibatches, the programs staying as they are; nothing without a baseline."""
        baseline = self.elbo.baseline
        if baseline is None:
            return
        parameters = [*baseline.parameters()]
        if not parameters and type(baseline).update is Baseline.update:
            return  # it learns nothing
        baseline.train()
        optimizer = torch.optim.Adam(parameters, lr=3e-3) if parameters else None
        for minibatch in minibatches:
            loss = self.elbo.differentiable_loss(self.model, self.guide, minibatch)
            if optimizer is not None:
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
        baseline.eval()

    def draw(self, minibatch: Minibatch, seed: int) -> dict[str, Float[np.ndarray, " parameters"]]:
        """One draw of the gradient of each group, in nats per cell of the data set."""
        torch.manual_seed(seed)
        begun = time.perf_counter()
        loss = self.elbo.differentiable_loss(self.model, self.guide, minibatch)
        gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        self.seconds.append(time.perf_counter() - begun)
        flat = iter(
            (torch.zeros_like(parameter) if gradient is None else gradient).flatten()
            for parameter, gradient in zip(self._parameters, gradients, strict=True)
        )
        drawn = {}
        for name, group in self.groups.items():
            values = torch.cat([next(flat) for _ in group]) / minibatch.num_cells
            chosen = self._chosen[name]
            drawn[name] = (values if chosen is None else values[chosen]).double().cpu().numpy()
        return drawn

    def draws(self, minibatch: Minibatch, num_draws: int, seed: int) -> dict[str, GradientDraws]:
        """Draws of each group, by seeds that estimators with the same seed share.

        Raises:
            ValueError: If there are fewer than two.
        """
        if num_draws < 2:
            raise ValueError(f"expected at least two draws, whose scatter is asked for, got {num_draws}")
        drawn = [self.draw(minibatch, seed * 1_000_003 + number) for number in range(num_draws)]
        return {name: GradientDraws(np.stack([one[name] for one in drawn]), self.share(name)) for name in self.groups}


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

    Estimators that are given the same seed share their random numbers. A baseline has learned nothing yet.

    Args:
        model: The generative program.
        guide: The variational program.
        minibatch: The cells.
        estimator: A name in the table of estimators, or an `Estimator`.
        parameters: Which parameters to look at, by name.
        num_draws: Number of draws, at least two.
        seed: Seed of the draws; the caller's random state is left as it was.

    Returns:
        The draws for each parameter, per cell of the minibatch's data set; of a parameter with more than 20,000
        values, as many chosen at random.

    Raises:
        ValueError: If there are fewer than two draws, or the estimator is unknown.
    """
    chosen = get(estimator)
    with frozen():
        sampler = GradientSampler(model, guide, chosen, {name: [value] for name, value in parameters.items()})
        if sampler.elbo.baseline is not None:
            sampler.elbo.baseline.eval()
        return sampler.draws(minibatch, num_draws, seed)
