"""Times of things that are to be compared, taken in turn so that a busy machine slows all of them alike."""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from genailab_pyro.memory import memory_kept


@dataclass(frozen=True)
class Ratio:
    """A ratio of two times over rounds: its median, and the range that holds the middle half of the rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Timings:
    """Seconds per step of each contender in each round."""

    seconds: Mapping[str, np.ndarray]

    def median(self, name: str) -> float:
        """Seconds per step, the median over rounds."""
        return float(np.median(self.seconds[name]))

    def ratio(self, name: str, to: str) -> Ratio:
        """The median of the rounds' ratios, in which what slows a whole round cancels."""
        low, median, high = np.quantile(self.seconds[name] / self.seconds[to], [0.25, 0.5, 0.75])
        return Ratio(float(median), float(low), float(high))


class Seconds(float):
    """What a contender returns that times itself, where a call holds more than what is compared."""


def alternate(
    contenders: Mapping[str, Callable[[], object]], *, rounds: int, repeats: int = 2, warmup: int = 5, settle: int = 1
) -> Timings:
    """Time each contender in every round, in an order that is drawn anew for each.

    The first call of a turn is not timed: it finds the caches as another contender has left them. In all turns the C
    library keeps what is freed, which some contenders ask of it by themselves.

    Args:
        contenders: What is timed, by name.
        rounds: How often each is timed.
        repeats: How many calls make one time.
        warmup: Calls of each before the first round.
        settle: Calls at the beginning of a turn that are not timed; none for calls that are long by themselves.
    """
    for contender in contenders.values():
        for _ in range(warmup):
            contender()
    names, order = [*contenders], np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()  # a collection would fall on whoever comes next
    try:
        for _ in range(rounds):
            for name in order.permutation(names):
                with memory_kept():
                    for _ in range(settle):
                        contenders[name]()
                    seconds[name].append(_seconds(contenders[name], repeats))
            gc.collect()
    finally:
        gc.enable()
    return Timings({name: np.array(values) for name, values in seconds.items()})


def _seconds(contender: Callable[[], object], repeats: int) -> float:
    total = 0.0
    for _ in range(repeats):
        begun = time.perf_counter()
        result = contender()
        total += result if isinstance(result, Seconds) else time.perf_counter() - begun
    return total / repeats
