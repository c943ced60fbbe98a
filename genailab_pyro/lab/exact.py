"""The exact mean and variance of the gradient of a bound in one normal latent, by quadrature."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from genailab_pyro.estimators import Estimator, get, table
from genailab_pyro.nn import choose

BEST = "score-best"
"""The score less the constant that leaves the least variance, which only an exact integral tells."""
LEAVE_ONE_OUT, AVERAGE = "score-loo", "score-graph-ema"
MOST_WEIGHTED = 3  # the exact variance is an integral over all particles
LEARNED_FROM = 10  # gradients of which a baseline takes its average
NODES = {1: 8001, 2: 601, 3: 121}
"""Nodes of the noise of each particle, by the number of particles that are integrated over together."""


@dataclass(frozen=True)
class Objective:
    """What is bounded: the evidence of a model of one latent, or the mean of a cost, which has no prior or entropy.

    Args:
        formula: How it is written.
        function: log p(x | z) of a model with prior N(0, 1), or minus the cost, for each value of z.
        model: Whether it is a model.
    """

    formula: str
    function: Callable[[Tensor], Tensor] = field(repr=False)
    model: bool = False

    def log_joint(self, z: Tensor) -> Tensor:
        """Log p(x, z), or minus the cost."""
        return self.function(z) + (dist.Normal(torch.zeros_like(z), 1.0).log_prob(z) if self.model else 0.0)

    def terms(self, z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        """What the bound is the mean of: log p(x, z) - log q(z), or minus the cost."""
        return self.log_joint(z) - (dist.Normal(loc, scale).log_prob(z) if self.model else 0.0)


def _poisson(z: Tensor) -> Tensor:
    return 3 * z - z.exp() - math.log(6)


def _normal(mean: Tensor) -> Tensor:
    return dist.Normal(mean, 1.0).log_prob(torch.full_like(mean, 2.0))


OBJECTIVES: dict[str, Objective] = {
    "normal": Objective("x = 2 ~ N(z, 1), z ~ N(0, 1)", _normal, model=True),
    "squared": Objective("x = 2 ~ N(z², 1), z ~ N(0, 1)", lambda z: _normal(z**2), model=True),
    "Poisson": Objective("x = 3 ~ Poisson(exp z), z ~ N(0, 1)", _poisson, model=True),
    "z^2": Objective("cost z²", lambda z: -(z**2)),
    "quartic": Objective("cost z⁴ - 3 z²", lambda z: 3 * z**2 - z**4),
    "exp": Objective("cost exp z", lambda z: -z.exp()),
    "sin": Objective("cost sin 3z", lambda z: -(3 * z).sin()),
    "step": Objective("cost sigmoid 10z", lambda z: -(10 * z).sigmoid()),
    "bump": Objective("cost exp(-5 z²)", lambda z: -(-5 * z**2).exp()),
    "wave": Objective("cost cos 5z", lambda z: -(5 * z).cos()),
}
"""What the lab can bound. The costs z², exp(-5 z²) and cos 5z are those of Mohamed et al. (2020), section 3."""


@dataclass(frozen=True)
class Exact:
    """Mean and variance of one draw of the gradient of a bound in the guide's location.

    Attributes:
        mean: In nats per unit of z.
        variance: In squares of that unit.
    """

    mean: float
    variance: float


@dataclass(frozen=True)
class Integral:
    """Integrals over the noise of the particles of a guide, z = loc + scale noise.

    The single-particle rules take ``cost``, ``path`` and ``score``, each of shape ``[1, nodes]``; the weighted ones
    see all particles at once, on a grid of ``[particles, nodes]``.

    Args:
        objective: What is bounded.
        loc: Location of the guide.
        scale: Scale of the guide.
        num_particles: Number of particles that are integrated over together.
    """

    objective: Objective
    loc: float
    scale: float
    num_particles: int = 1

    @cached_property
    def noise(self) -> Float[Tensor, "particles nodes"]:
        """Standard normal noise of each particle."""
        reach = 12 if self.num_particles == 1 else 7
        nodes = torch.linspace(-reach, reach, NODES[self.num_particles], dtype=torch.float64)
        return torch.stack([axis.flatten() for axis in torch.meshgrid(*[nodes] * self.num_particles, indexing="ij")])

    @cached_property
    def mass(self) -> Float[Tensor, " nodes"]:
        """Probability of each node."""
        density = (-0.5 * self.noise**2).sum(0).exp()
        return density / density.sum()

    @cached_property
    def z(self) -> Tensor:
        """The latent at each node."""
        return self.loc + self.scale * self.noise

    @cached_property
    def score(self) -> Tensor:
        """Derivative of log q in its location, the draw held fixed."""
        return self.noise / self.scale

    @cached_property
    def cost(self) -> Tensor:
        """What the bound is the mean of, in nats."""
        loc, scale = torch.tensor([self.loc, self.scale], dtype=torch.float64)
        return self.objective.terms(self.z, loc, scale)

    @cached_property
    def likelihood(self) -> Tensor:
        """Log p(x | z), or minus the cost."""
        return self.objective.function(self.z)

    @cached_property
    def path(self) -> Tensor:
        """Derivative of log p(x, z), or of minus the cost, along the draw."""
        z = self.z.clone().requires_grad_()
        return torch.autograd.grad(self.objective.log_joint(z).sum(), z)[0]

    @property
    def closed_kl_path(self) -> Tensor:
        """Derivative of log p(x | z) along the draw, less that of the KL from N(0, 1), which is the location."""
        return self.path + self.z - self.loc

    def weights(self, order: float = 1.0) -> Tensor:
        """Normalised importance weights, raised to a power."""
        return (order * self.cost).softmax(0)

    def leave_one_out_bound(self) -> Tensor:
        """The bound with each log weight replaced by the mean of the others'."""
        means = (self.cost.sum(0) - self.cost) / (self.num_particles - 1)
        return torch.stack(
            [
                torch.cat([self.cost[:k], means[k : k + 1], self.cost[k + 1 :]]).logsumexp(0)
                for k in range(self.num_particles)
            ]
        )

    def mean(self, values: Tensor) -> float:
        """Mean of a function of the noise."""
        return float((values * self.mass).sum())

    def moments(self, values: Tensor) -> Exact:
        """Mean and variance of a function of the noise."""
        mean = self.mean(values)
        return Exact(mean, self.mean((values - mean) ** 2))

    @property
    def best_constant(self) -> float:
        """E[cost score^2] / E[score^2]."""
        return self.mean(self.cost * self.score**2) / self.mean(self.score**2)


SINGLE: dict[str, Callable[[Integral], Tensor]] = {
    "pathwise": lambda at: at.path,
    "pathwise-kl": lambda at: at.closed_kl_path,
    "stl": lambda at: at.path + at.score,
    "score": lambda at: at.cost * at.score,
    "score-graph": lambda at: at.cost * at.score,
    AVERAGE: lambda at: (at.cost - at.mean(at.cost)) * at.score,
    BEST: lambda at: (at.cost - at.best_constant) * at.score,
    "score-kl": lambda at: at.likelihood * at.score - at.loc,
}
"""The gradient in the location of one particle; particles are independent of each other."""
WEIGHTED: dict[str, Callable[[Integral], Tensor]] = {
    "iwae": lambda at: (at.weights() * at.path).sum(0),
    "dreg": lambda at: (at.weights() ** 2 * (at.path + at.score)).sum(0),
    "renyi": lambda at: (at.weights(0.5) * at.path).sum(0),
    "vimco": lambda at: (at.score * (at.cost.logsumexp(0) - at.leave_one_out_bound() - at.weights())).sum(0),
}
"""The gradient in the location of all particles together."""
OF_MODELS = {"pathwise-kl", "stl", "score-kl", *WEIGHTED}
"""Those that differ from another only where there are a prior and an entropy."""


def names_for(objective: str) -> list[str]:
    """The estimators that can be told apart on an objective, in the order of the table of estimators.

    Example:
        >>> names_for("z^2")
        ['pathwise', 'score', 'score-graph', 'score-graph-ema', 'score-loo', 'score-best']
    """
    model = choose(OBJECTIVES, objective, "objective").model
    known = {*SINGLE, *WEIGHTED, LEAVE_ONE_OUT}
    return [name for name in [*table().index, BEST] if name in known and (model or name not in OF_MODELS)]


def particles_for(name: str) -> list[int]:
    """The numbers of particles to choose from: those for which the exact variance is known.

    Example:
        >>> particles_for("score-loo"), particles_for("dreg")
        ([2, 4, 8, 16], [1, 2, 3])
    """
    least = estimator_of(name, 8).least_particles
    numbers = range(1, MOST_WEIGHTED + 1) if name in WEIGHTED else (1, 2, 4, 8, 16)
    return [number for number in numbers if number >= least]


def estimator_of(name: str, num_particles: int) -> Estimator:
    """The estimator of a name of the lab.

    Raises:
        ValueError: If the name is unknown, or the number of particles too small for it.
    """
    return get("score" if name == BEST else name, num_particles=num_particles)


def exact_gradient(objective: str, name: str, loc: float, scale: float, num_particles: int = 1) -> Exact:
    r"""Mean and variance of the gradient of a bound in the guide's location, by quadrature.

    For the leave-one-out baseline, whose gradient is the sample covariance of costs c and scores s, with central
    moments :math:`m`,

    .. math:: \mathrm{Var} = \frac{m_{22}}{K} - \frac{K-2}{K(K-1)} m_{11}^2 + \frac{m_{20} m_{02}}{K(K-1)},

    and for the exponential average, an even mean of 10 K earlier costs, :math:`m_{20} m_{02} / (10 K^2)` is added to
    the variance with the mean cost as baseline.

    Args:
        objective: A name in `OBJECTIVES`.
        name: An estimator that `names_for` lists.
        loc: Location of the guide.
        scale: Scale of the guide, above zero.
        num_particles: Number of particles.

    Raises:
        ValueError: If the estimator is not one for the objective, or there are too many particles to integrate over.

    References:
        Mohamed, Rosca, Figurnov, Mnih (2020). Monte Carlo gradient estimation in machine learning. JMLR 21(132).
        doi:10.48550/arXiv.1906.10652

    Example:
        >>> exact = {name: exact_gradient("z^2", name, 1.0, 1.0).variance for name in ("score", "pathwise")}
        >>> round(exact["score"] / exact["pathwise"], 6)
        7.5
    """
    check(objective, name, loc, scale)
    chosen = OBJECTIVES[objective]
    if num_particles not in particles_for(name):
        raise ValueError(
            f"expected num_particles among {particles_for(name)} for {name!r}, got {num_particles}; for others the "
            "exact variance is not known"
        )
    if name in WEIGHTED:
        at = Integral(chosen, loc, scale, num_particles)
        return at.moments(WEIGHTED[name](at))
    at = Integral(chosen, loc, scale)
    if name == LEAVE_ONE_OUT:
        cost, score = at.cost - at.mean(at.cost), at.score
        pairs, slope = num_particles * (num_particles - 1), at.mean(cost * score)
        variance = at.mean((cost * score) ** 2) / num_particles - (num_particles - 2) / pairs * slope**2
        return Exact(slope, variance + at.mean(cost**2) * at.mean(score**2) / pairs)
    one = at.moments(SINGLE[name](at))
    # The average of a few draws scatters, too.
    scatter = at.moments(at.cost).variance / (LEARNED_FROM * num_particles) / scale**2 if name == AVERAGE else 0.0
    return Exact(one.mean, (one.variance + scatter) / num_particles)


def check(objective: str, name: str, loc: float, scale: float) -> None:
    """Refuse an objective, an estimator or a guide that the lab does not have.

    Raises:
        ValueError: If it does not have it.
    """
    choose(OBJECTIVES, objective, "objective")
    if name not in names_for(objective):
        raise ValueError(
            f"expected an estimator among {', '.join(names_for(objective))} for {objective!r}, got {name!r}; others "
            "are the same as one of these there, or their exact variance is not known"
        )
    if not (math.isfinite(loc) and math.isfinite(scale) and scale > 0):
        raise ValueError(f"expected a finite location and a scale above zero, got loc={loc} and scale={scale}")
