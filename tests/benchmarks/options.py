"""What the benchmarks are told."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """What each benchmark is told; it takes what concerns it.

    Attributes:
        rounds: How often each contender is timed.
        small: Whether to run on tiny data, to see that it runs.
        figure: Where the figure goes.
        cells: Numbers of cells in files whose memory is measured.
    """

    rounds: int
    small: bool = False
    figure: Path = Path("scaling.png")
    cells: tuple[int, ...] = (10_000, 30_000, 100_000)
