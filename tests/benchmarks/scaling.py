"""How fast training is as one size varies: cells, genes, density, minibatch; a table and a figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from rich import box
from rich.table import Table

from genailab_pyro.plots.style import colour, describe, headline, key, panels
from genailab_pyro.report.terminal import console, say
from genailab_pyro.train.run import own_state
from tests.benchmarks.counts import density_of, simulated
from tests.benchmarks.options import Options
from tests.benchmarks.scvi_tools import available
from tests.benchmarks.timing import alternate
from tests.benchmarks.training import CONTENDERS, DENSE, FLOOR, OURS, SCVI, Task

ROUNDS, THREADS = 5, 2
MOST_CELLS, FEWEST_STEPS = 2560, 5
"""An epoch is over so many cells drawn anew, or as many as make so many steps."""
STYLES: dict[str, dict[str, Any]] = {
    OURS: {"color": colour(0), "linewidth": 2.2, "marker": "o"},
    DENSE: {"color": colour(5), "linewidth": 1.5, "marker": "o", "linestyle": (0, (5, 2))},
    SCVI: {"color": colour(1), "linewidth": 1.5, "marker": "s"},
    FLOOR: {"color": "#777777", "linewidth": 1.2, "marker": "D", "linestyle": (0, (1.5, 1.5))},
}


@dataclass(frozen=True)
class Size:
    """The sizes of data and minibatches."""

    cells: int = 10_000
    genes: int = 2_000
    density: float = 0.08
    minibatch: int = 128

    def without(self, varied: str) -> str:
        """The sizes that do not vary, to be read."""
        texts = {
            "cells": f"{self.cells:,} cells",
            "genes": f"{self.genes:,} genes",
            "density": f"{self.density:.0%} above zero",
            "minibatch": f"minibatch {self.minibatch:,}",
        }
        return ", ".join(text for name, text in texts.items() if name != varied)


AXES = {
    "cells": "Cells in the data",
    "genes": "Genes",
    "density": "Share of counts above zero",
    "minibatch": "Cells in a minibatch",
}
STANDARD = Size()
VARIED: dict[str, Sequence[Any]] = {
    "cells": (1_000, 10_000, 100_000),
    "genes": (500, 2_000, 20_000),
    "density": (0.02, 0.08, 0.25, 0.5),
    "minibatch": (64, 128, 256, 1024),
}
SMALL = Size(cells=256, genes=50, minibatch=32)
SMALL_VARIED: dict[str, Sequence[Any]] = {
    "cells": (128, 256),
    "genes": (50, 100),
    "density": (0.08, 0.5),
    "minibatch": (32, 64),
}


@dataclass(frozen=True)
class Point:
    """Measured at one size: density as it came out, and cells per second of each contender."""

    density: float
    speeds: Mapping[str, float]


def measure(size: Size, *, rounds: int, scvi_too: bool) -> Point:
    """Time epochs over some of the cells."""
    cells = simulated(size.cells, size.genes, size.density)
    most = size.minibatch * max(MOST_CELLS // size.minibatch, FEWEST_STEPS)
    with own_state(0):
        task = Task(cells, minibatch_size=size.minibatch, most=most)
        contenders = {name: CONTENDERS[name](task) for name in STYLES if scvi_too or name != SCVI}
        timings = alternate(contenders, rounds=rounds, repeats=1, warmup=1, settle=0)
    return Point(density_of(cells), {name: task.size / timings.median(name) for name in contenders})


def draw(curves: Mapping[str, Mapping[float, Point]], standard: Size) -> Figure:
    """A panel for each size that varies; the others are standard."""
    figure, axes = panels(len(curves), columns=2, panel_height=2.9)
    for panel, (varied, points) in zip(axes, curves.items(), strict=True):
        ordered = sorted(points)
        for name in next(iter(points.values())).speeds:
            speeds = [points[value].speeds[name] for value in ordered]
            panel.plot(ordered, speeds, label=name, markersize=4.5, **STYLES[name])
        scale_axes(panel, ordered, varied)
        describe(panel, x=AXES[varied], y="Cells per second", title=standard.without(varied))
    headline(figure, "Training speed as one size varies")
    key(figure, axes)
    return figure


def scale_axes(panel: Axes, values: Sequence[float], varied: str) -> None:
    """Logarithmic axes, whose ticks are the values measured and round numbers of cells per second."""
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.xaxis.set_major_locator(FixedLocator(values))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: written(varied, value)))
    low, high = panel.get_ylim()
    rounded = [mantissa * 10.0**power for power in range(7) for mantissa in (1, 2, 5)]
    panel.yaxis.set_major_locator(FixedLocator([value for value in rounded if low <= value <= high]))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    panel.yaxis.set_minor_locator(NullLocator())


def written(varied: str, value: float) -> str:
    """A size as it is read."""
    return f"{value:.0%}" if varied == "density" else f"{value:,}" if isinstance(value, int) else f"{value:,.0f}"


def show(curves: Mapping[str, Mapping[float, Point]]) -> None:
    """Print cells per second."""
    names = list(next(iter(next(iter(curves.values())).values())).speeds)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("varied")
    for name in ("", "above zero", *names):
        table.add_column(name, justify="right")
    for varied, points in curves.items():
        for value, point in points.items():
            speeds = [f"{point.speeds[name]:,.0f}" for name in names]
            table.add_row(varied, written(varied, value), f"{point.density:.1%}", *speeds)
    console().print(table)


def run(options: Options) -> None:
    """Measure, print and draw."""
    standard, ranges = (SMALL, SMALL_VARIED) if options.small else (STANDARD, VARIED)
    scvi_too = available()
    known: dict[Size, Point] = {}
    for varied, values in ranges.items():
        for value in values:
            size = replace(standard, **{varied: value})
            if size not in known:
                known[size] = measure(size, rounds=options.rounds, scvi_too=scvi_too)
    curves = {
        varied: {value: known[replace(standard, **{varied: value})] for value in values}
        for varied, values in ranges.items()
    }
    say(f"Training, negative binomial: cells/s as one size varies; the others are {standard.without('')}")
    show(curves)
    draw(curves, standard).savefig(options.figure, dpi=200)
    say(f"Figure: {options.figure}")
