"""Schedules over the steps of a run: the weight of the KL, and the learning rate."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pyro.poutine.messenger import Messenger

from genailab_pyro.nn import choose

SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda t: 1.0,
    "linear": lambda t: t,
    "cosine": lambda t: (1 - math.cos(math.pi * t)) / 2,
}


@dataclass(frozen=True)
class Warmup:
    """The weight beta of the KL over a run: it rises to its final value, once or in cycles.

    Args:
        beta: Final weight; above one it is the beta of a beta-VAE.
        shape: ``"constant"`` (no warm-up), ``"linear"`` or ``"cosine"``.
        length: How long the rise takes: a whole number of steps, or a fraction of the run (a float in (0, 1]).
            Beside cycles, the share of each cycle (or its steps) that rises.
        cycles: Number of times the rise is repeated over the run.

    Raises:
        ValueError: If a value is out of range.

    References:
        Bowman, Vilnis, Vinyals, Dai, Jozefowicz, Bengio (2016), doi:10.18653/v1/K16-1002 (warm-up);
        Fu, Li, Liu, Gao, Celikyilmaz, Carin (2019), doi:10.18653/v1/N19-1021 (cyclical).

    Example:
        >>> [Warmup(length=0.5).at(step, 8) for step in (0, 2, 4, 8)]
        [0.0, 0.5, 1.0, 1.0]
    """

    beta: float = 1.0
    shape: str = "linear"
    length: int | float = 0.2
    cycles: int = 1

    def __post_init__(self) -> None:
        choose(SHAPES, self.shape, "shape")
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise ValueError(f"expected beta to be finite and at least 0, got {self.beta}")
        in_range = 0 < self.length <= 1 if isinstance(self.length, float) else self.length >= 1
        if not in_range or not isinstance(self.cycles, int) or self.cycles < 1:
            raise ValueError(
                "expected length to be a whole number of steps, or a fraction of the run as a float in (0, 1], and "
                f"cycles a whole number of at least one; got length={self.length!r}, cycles={self.cycles!r}"
            )

    def at(self, step: int, num_steps: int) -> float:
        """The weight at a step (from 0) of a run of ``num_steps``."""
        cycle = max(num_steps / self.cycles, 1)
        rise = self.length * cycle if isinstance(self.length, float) else self.length
        into = step % cycle if step < num_steps else cycle
        return self.beta * SHAPES[self.shape](min(into / rise, 1.0))


class Annealed(Messenger):
    """Scales the log-probability of latent sites, in the model and in the guide alike.

    Args:
        sites: Names of the sites.
    """

    def __init__(self, sites: Sequence[str] = ("z",)) -> None:
        super().__init__()
        self.sites = frozenset(sites)
        self.beta = 1.0

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.sites and not msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.beta


def one_cycle(t: float) -> float:
    """Cosine rise from 1/25 over three tenths of the run, then cosine fall to 1/10,000.

    References:
        Smith, Topin (2019). Super-convergence. doi:10.1117/12.2520589
    """
    if t < 0.3:
        return 0.04 + 0.96 * SHAPES["cosine"](t / 0.3)
    return 1e-4 + (1 - 1e-4) * (1 - SHAPES["cosine"]((t - 0.3) / 0.7))


LEARNING_RATES: dict[str, Callable[[float], float]] = {
    "constant": lambda t: 1.0,
    "plateau": lambda t: 1.0,
    "cosine": lambda t: 1 - SHAPES["cosine"](t),
    "one-cycle": one_cycle,
}
