"""Estimates with their uncertainty, one row each."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from genailab_pyro.plots.checks import Array, as_vector
from genailab_pyro.plots.numbers import plus_minus
from genailab_pyro.plots.style import INK, MUTED, PALETTE, describe, headline, padded, panels, typeset

_NORMAL_975 = 1.959963984540054


def estimates(
    names: Sequence[str],
    values: npt.ArrayLike,
    standard_errors: npt.ArrayLike,
    *,
    xlabel: str,
    title: str,
    reference: tuple[str, float] | None = None,
) -> Figure:
    """Draw one estimate per row, as a point with its 95 % interval.

    The interval is the value ± 1.96 standard errors, as for a normal estimate. A row whose value or error is
    not finite is kept, without a point, and says so.

    Args:
        names: Names of the rows, from top to bottom.
        values: The estimates, shape ``[rows]``.
        standard_errors: Their standard errors in the same unit, shape ``[rows]``, not negative.
        xlabel: What is estimated, with its unit: ``"Held-out ELBO (nats per cell)"``.
        title: What is seen.
        reference: Name and value to compare with, drawn as a dashed line.

    Returns:
        A figure of one panel.

    Raises:
        TypeError: If the values are not numbers.
        ValueError: If the lengths differ, or a standard error is negative.

    Example:
        >>> figure = estimates(
        ...     ["CVAE_NB", "CVAE_ZINB"],
        ...     [-812.3, -811.9],
        ...     [0.4, 0.5],
        ...     xlabel="Held-out ELBO (nats per cell)",
        ...     title="Both likelihoods fit alike",
        ... )
        >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
        ['CVAE_NB', 'CVAE_ZINB']
    """
    points = as_vector("values", values, len(names) or None, finite=False)
    errors = as_vector("standard_errors", standard_errors, len(names) or None, finite=False)
    if np.any(errors < 0):
        message = f"standard_errors must not be negative, the least is {errors.min():.3g}"
        raise ValueError(message)
    kept = np.isfinite(points) & np.isfinite(errors)
    half = _NORMAL_975 * errors
    figure, (panel,) = panels(1, columns=1, panel_height=0.9 + 0.34 * len(names))
    texts = [plus_minus(*pair) if shown else "not finite" for *pair, shown in zip(points, errors, kept, strict=True)]
    draw_rows(panel, names, points, np.stack([half, half]), kept, texts)
    ends = [*(points - half)[kept], *(points + half)[kept], *([] if reference is None else [reference[1]])]
    if ends:
        panel.set_xlim(padded([float(end) for end in ends]))
    if reference is not None:
        panel.axvline(reference[1], color=INK, linewidth=1.1, linestyle="--", zorder=1)
    dashed = "" if reference is None else f"; dashed: {reference[0]}"
    describe(panel, x=f"{xlabel}\nline: 95 % interval; right: estimate ± standard error{dashed}", y="")
    headline(figure, title)
    return figure


def draw_rows(
    panel: Axes,
    names: Sequence[str],
    values: Array,
    reach: Array,
    kept: npt.NDArray[np.bool_],
    texts: Sequence[str],
) -> None:
    """Draw points with intervals, one row each from top to bottom, their names left and a text right of them.

    Args:
        panel: Where to draw.
        names: Names of the rows.
        values: The points, shape ``[rows]``.
        reach: How far the interval goes below and above the point, shape ``[2, rows]``.
        kept: Which rows have a point, shape ``[rows]``.
        texts: What is written right of each row.
    """
    rows = np.arange(len(names))
    panel.errorbar(
        values[kept],
        rows[kept],
        xerr=reach[:, kept],
        fmt="o",
        color=PALETTE[0],
        markersize=5.5,
        linewidth=1.8,
        capsize=3,
    )
    for row, text in enumerate(texts):
        panel.annotate(
            typeset(text),
            (1.0, row),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            fontsize=8.5,
            color=INK if kept[row] else MUTED,
            va="center",
        )
    panel.set_ylim(len(names) - 0.4, -0.6)
    panel.set_yticks(rows, [typeset(name) for name in names], fontsize=9.5, color=INK)
    panel.grid(visible=False, axis="y")
