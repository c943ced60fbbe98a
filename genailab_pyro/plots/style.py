"""The one look of every figure: sizes, colours and axes, set on the figure itself.

Nothing here touches pyplot or ``rcParams``, so that no figure stays in memory and none needs a display.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

WIDTH = 7.6
INK = "#1a1a1a"
MUTED = "#5c5c5c"
SOFT = "#9a9a9a"
FAINT = "#e3e3e3"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F6000")
"""Six colours of Okabe and Ito, and a dark yellow in place of their light one, which is faint on white.

References:
    Wong, B. (2011). Points of view: Color blindness. Nature Methods 8, 441. doi:10.1038/nmeth.1618
"""
LINE_STYLES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))


def colour(position: int) -> str:
    """Colour of the series at a position; the seven colours repeat."""
    return PALETTE[position % len(PALETTE)]


def line_style(position: int) -> Any:
    """Line style of the series at a position: it changes when the colours start again."""
    return LINE_STYLES[(position // len(PALETTE)) % len(LINE_STYLES)]


def panels(count: int, *, columns: int, panel_height: float, width: float = WIDTH) -> tuple[Figure, list[Axes]]:
    """Make a figure of panels in rows, styled and empty.

    Args:
        count: Number of panels, at least 1.
        columns: Panels in a row; fewer where there are fewer panels.
        panel_height: Height of a row in inches.
        width: Width of the figure in inches.

    Returns:
        The figure, and its panels row by row.
    """
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    layout = ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.085, wspace=0.02, hspace=0.02)
    figure = Figure(figsize=(width, panel_height * rows + 0.35), layout=layout, facecolor="white")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for spare in grid[count:]:
        figure.delaxes(spare)
    axes = list(grid[:count])
    for panel in axes:
        _style(panel)
    return figure, axes


def square_panels(count: int) -> tuple[Figure, list[Axes]]:
    """Make a figure of square panels: up to three in a row, four as two by two."""
    columns = {1: 1, 2: 2, 4: 2}.get(count, 3)
    side = 2.5 if columns == 3 else 3.6
    figure, axes = panels(count, columns=columns, panel_height=side + 0.35, width=max(5.2, (side + 0.15) * columns))
    for panel in axes:
        panel.set_box_aspect(1)
    return figure, axes


def describe(axes: Axes, *, x: str, y: str, title: str = "") -> None:
    """Write the axis labels and the title of a panel."""
    axes.set_xlabel(typeset(x), fontsize=9.5, color=INK)
    axes.set_ylabel(typeset(y), fontsize=9.5, color=INK)
    if title:
        axes.set_title(typeset(title), fontsize=9.5, color=INK, loc="left")


def headline(figure: Figure, text: str) -> None:
    """Write the title of a figure: what is seen in it."""
    figure.suptitle(typeset(text), fontsize=11.5, fontweight="bold", color=INK, x=0.012, ha="left")


def key(figure: Figure, axes: Sequence[Axes], *, columns: int = 4) -> None:
    """Draw one legend for all panels below them, where it hides nothing; a label is listed once."""
    handles: dict[str, Artist] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(typeset(label), handle)
    legend = figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower left",
        ncols=columns,
        fontsize=8.5,
        labelcolor=INK,
        frameon=False,
        handlelength=2.2,
        columnspacing=1.6,
    )
    for shown in legend.legend_handles:
        if isinstance(shown, PathCollection):
            shown.set_sizes([28])
            shown.set_alpha(1)


def typeset(text: str) -> str:
    """Set a hyphen before a number as a minus sign, as on the axes, and keep a dollar sign as it is."""
    return re.sub(r"(?<![\w)])-(?=[\d.])", "\N{MINUS SIGN}", text).replace("$", r"\$")


def padded(values: Sequence[float], fraction: float = 0.06) -> tuple[float, float]:
    """Limits of an axis that hold all the values with some room at both ends."""
    low, high = min(values), max(values)
    room = fraction * (high - low) or max(abs(high), 1.0) * fraction
    return low - room, high + room


def _style(axes: Axes) -> None:
    axes.set_facecolor("white")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SOFT)
    axes.tick_params(labelsize=8.5, colors=MUTED, width=0.8, length=3)
    axes.grid(visible=True, color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
