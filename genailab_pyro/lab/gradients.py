"""Gradients of a bound in one normal latent, as the library's estimators draw them, and the steps that they take."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor, nn

from genailab_pyro.estimators import Baseline, ScoreSite
from genailab_pyro.experiments.gradients import frozen
from genailab_pyro.lab.exact import BEST, LEARNED_FROM, OBJECTIVES, Integral, Objective, check, estimator_of
from genailab_pyro.nn import choose


class OneLatent(nn.Module):
    """A guide N(loc, scale) of an objective, in independent copies: one gradient holds a draw for each of them.

    The site of a cost is masked, in the model and in the guide: that takes prior and entropy out of the bound, and
    leaves the score.

    Args:
        objective: What is bounded.
        loc: Location of the guide.
        scale: Scale of the guide.
        num_copies: Number of copies.
    """

    max_plate_nesting = 1

    def __init__(self, objective: Objective, loc: float, scale: float, num_copies: int = 1) -> None:
        super().__init__()
        self.objective = objective
        ones = torch.ones(num_copies, dtype=torch.float64)
        self.loc = nn.Parameter(loc * ones)
        self.log_scale = nn.Parameter(math.log(scale) * ones)

    def model(self) -> None:
        """Draw the latent from its prior, and weigh it by the objective."""
        with pyro.plate("copies", len(self.loc), dim=-1):
            with poutine.mask(mask=self.objective.model):
                z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            pyro.factor("objective", self.objective.function(z))

    model.max_plate_nesting = 1  # type: ignore[attr-defined]  # a bound method shows the attributes of its function

    def forward(self) -> None:
        """Draw the latent from the guide."""
        pyro.module("guide", self)
        with pyro.plate("copies", len(self.loc), dim=-1), poutine.mask(mask=self.objective.model):
            pyro.sample("z", dist.Normal(self.loc, self.log_scale.exp()))


class FixedBaseline(Baseline):
    """A constant that is known.

    Args:
        value: The constant, in nats.
    """

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = value

    def forward(self, site: ScoreSite) -> Tensor:
        """The constant."""
        return site.cost.new_tensor(self.value)


def draw_gradients(
    objective: str,
    name: str,
    loc: float,
    scale: float,
    *,
    num_particles: int = 1,
    num_draws: int = 20_000,
    seed: int = 0,
) -> Float[np.ndarray, " draws"]:
    """Draw the gradient of a bound in the guide's location by an estimator of the library.

    Args:
        objective: A name in `OBJECTIVES`.
        name: An estimator that `names_for` lists.
        loc: Location of the guide.
        scale: Scale of the guide, above zero.
        num_particles: Number of particles of each draw.
        num_draws: Number of independent draws, at least two.
        seed: Seed of the draws; the caller's random state is left as it was.

    Returns:
        The draws, in nats per unit of z.

    Raises:
        ValueError: If the estimator is not one for the objective, or a number is out of range.

    Example:
        >>> draws = draw_gradients("z^2", "pathwise", 1.0, 1.0, seed=1)
        >>> round(float(draws.mean()), 1)
        -2.0
    """
    check(objective, name, loc, scale)
    if num_draws < 2:
        raise ValueError(f"expected num_draws of at least 2, whose scatter is asked for, got {num_draws}")
    with frozen():
        torch.manual_seed(seed)
        run = _Run(objective, name, loc, scale, num_particles, num_copies=num_draws)
        if run.elbo.baseline is not None:
            for _ in range(LEARNED_FROM):
                run.gradients()
            run.elbo.baseline.eval()
        return run.gradients()[0].numpy()


class _Run:
    """An estimator bound to copies of a guide."""

    def __init__(
        self, objective: str, name: str, loc: float, scale: float, num_particles: int, num_copies: int
    ) -> None:
        self.program = OneLatent(OBJECTIVES[objective], loc, scale, num_copies)
        self.model, self.guide, self.elbo = estimator_of(name, num_particles).bind(self.program.model, self.program)
        if name == BEST:
            self.elbo.baseline = FixedBaseline()
        self.follow()

    def follow(self) -> None:
        """Set a constant that depends on where the guide is."""
        if isinstance(self.elbo.baseline, FixedBaseline):
            self.elbo.baseline.value = Integral(self.program.objective, *self.point).best_constant

    @property
    def point(self) -> tuple[float, float]:
        """Location and scale of the guide."""
        return self.program.loc[0].item(), self.program.log_scale[0].exp().item()

    def gradients(self) -> list[Tensor]:
        """One draw for each copy of the gradient of the bound, in the location and in the log scale."""
        loss = self.elbo.differentiable_loss(self.model, self.guide)
        return [-slope for slope in torch.autograd.grad(loss, [self.program.loc, self.program.log_scale])]


def variance_of(draws: Float[np.ndarray, " draws"]) -> tuple[float, float]:
    """Variance of draws, and its standard error sqrt((m4 - m2^2) / n).

    Example:
        >>> variance_of(np.array([-1.0, 1.0]))
        (2.0, 0.0)
    """
    centred = draws - draws.mean()
    second, fourth = (centred**2).mean(), (centred**4).mean()
    return float(draws.var(ddof=1)), float(np.sqrt(max(fourth - second**2, 0.0) / len(draws)))


def bound_surface(
    objective: str, locs: Float[np.ndarray, " columns"], log_scales: Float[np.ndarray, " rows"]
) -> Float[np.ndarray, "rows columns"]:
    """The ELBO of guides, or minus the mean cost under them, in nats, by quadrature.

    Args:
        objective: A name in `OBJECTIVES`.
        locs: Locations of the guides.
        log_scales: Logarithms of their scales.

    Raises:
        ValueError: If the objective is unknown.

    Example:
        >>> bound_surface("z^2", np.array([0.0, 2.0]), np.array([0.0])).round(6)
        array([[-1., -5.]])
    """
    chosen = choose(OBJECTIVES, objective, "objective")
    noise = torch.linspace(-8, 8, 401, dtype=torch.float64)
    mass = (-0.5 * noise**2).softmax(0)
    loc = torch.as_tensor(locs, dtype=torch.float64)[:, None]
    scales = torch.as_tensor(log_scales, dtype=torch.float64).exp()
    rows = [chosen.terms(loc + scale * noise, loc, scale) @ mass for scale in scales]
    return torch.stack(rows).numpy()


def ascend(
    objective: str,
    name: str,
    loc: float,
    scale: float,
    *,
    num_particles: int = 1,
    learning_rate: float = 0.05,
    num_steps: int = 60,
    limits: tuple[tuple[float, float], tuple[float, float]] = ((-4.0, 4.0), (-2.5, 1.0)),
    seed: int = 0,
) -> Float[np.ndarray, "steps 2"]:
    """Follow an estimator's gradient by plain stochastic steps, one draw each, while the guide stays within limits.

    Args:
        objective: A name in `OBJECTIVES`.
        name: An estimator that `names_for` lists.
        loc: Location of the guide at the start.
        scale: Scale of the guide at the start, above zero.
        num_particles: Number of particles of each step.
        learning_rate: Size of a step, above zero.
        num_steps: Number of steps.
        limits: Lowest and highest location and log scale; a step beyond them is the last.
        seed: Seed of the draws; the caller's random state is left as it was.

    Returns:
        Location and log scale before each step and after the last.

    Raises:
        ValueError: If the estimator is not one for the objective, or a number is out of range.

    Example:
        >>> ascend("z^2", "pathwise", 2.0, 1.0, num_steps=3).shape
        (4, 2)
    """
    check(objective, name, loc, scale)
    if not learning_rate > 0:
        raise ValueError(f"expected a learning_rate above zero, got {learning_rate}")
    with frozen():
        torch.manual_seed(seed)
        run = _Run(objective, name, loc, scale, num_particles, num_copies=1)
        return np.array([*itertools.islice(_steps(run, learning_rate, limits), num_steps + 1)])


def _steps(run: _Run, learning_rate: float, limits: tuple[tuple[float, float], ...]) -> Iterator[tuple[float, float]]:
    parameters = [run.program.loc, run.program.log_scale]
    optimizer = torch.optim.SGD(parameters, lr=learning_rate, maximize=True)
    while True:
        point = run.program.loc.item(), run.program.log_scale.item()
        if not all(low <= value <= high for value, (low, high) in zip(point, limits, strict=True)):
            return
        yield point
        run.follow()
        for parameter, slope in zip(parameters, run.gradients(), strict=True):
            parameter.grad = slope
        optimizer.step()
