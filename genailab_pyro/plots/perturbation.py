"""Predicted against real effects of a perturbation, and scores of many methods over many held-out groups."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from genailab_pyro.plots.checks import Array, as_vector
from genailab_pyro.plots.style import (
    INK,
    MUTED,
    PALETTE,
    SOFT,
    colour,
    describe,
    headline,
    key,
    padded,
    panels,
    square_panels,
    typeset,
)

_NAMED = 6
_TOP = 50
_MARKERS = "osD^vP*X"


def shift_scatter(
    real: npt.ArrayLike,
    predicted: Mapping[str, npt.ArrayLike],
    *,
    genes: Sequence[str],
    top: int = _TOP,
    named: int = _NAMED,
    title: str = "",
) -> Figure:
    """Draw the predicted against the real shift of each gene, one panel per method on the same axes.

    Points on the dashed line are right. Genes of the largest absolute real shift are in colour, and the first of them
    are named; the correlation over all genes is written on each panel.

    Args:
        real: Real shift of each gene, log-counts, shape ``[genes]``.
        predicted: Predicted shifts by method, each of shape ``[genes]``; the first is that of the model, say, and the
            others what it is to be seen beside.
        genes: Names of the genes.
        top: How many genes are in colour.
        named: How many of these are named, 0 for none.
        title: What is seen; an empty one tells which method has the largest correlation.

    Returns:
        A figure of square panels.

    Raises:
        TypeError: If the shifts are not numbers.
        ValueError: If there is no method, a shift is not one per gene, or not finite.

    Example:
        >>> figure = shift_scatter([1.0, -2.0, 0.5], {"ridge": [0.8, -1.5, 0.2]}, genes=["A", "B", "C"])
        >>> figure.axes[0].get_title(loc="left")
        'ridge, r = 1.00'
    """
    shift = as_vector("real", real, len(genes) or None)
    if not predicted:
        message = "predicted must hold the shift by at least one method, got none"
        raise ValueError(message)
    methods = {name: as_vector(f"predicted[{name!r}]", values, shift.size) for name, values in predicted.items()}
    correlations = {name: _correlation(shift, values) for name, values in methods.items()}
    titles = {name: f"{name}, r = {correlation:.2f}" for name, correlation in correlations.items()}
    order = np.argsort(-np.abs(shift), kind="stable")
    figure, axes = square_panels(len(methods))
    limits = padded([0.0, *shift, *(value for values in methods.values() for value in values)])
    for panel, (name, values) in zip(axes, methods.items(), strict=True):
        panel.axline((0, 0), slope=1, color=INK, linewidth=1.1, linestyle="--", zorder=1)
        for rows, shade, size, label in (
            (order[top:], SOFT, 7, "other genes"),
            (order[:top], PALETTE[0], 14, f"{min(top, shift.size)} genes of the largest real shift"),
        ):
            panel.scatter(shift[rows], values[rows], s=size, color=shade, alpha=0.75, linewidths=0, label=label)
        _name_genes(panel, shift, values, order[:named], genes, limits)
        panel.set_xlim(limits)
        panel.set_ylim(limits)
        describe(panel, x="Real shift (log-counts)", y="Predicted shift (log-counts)", title=titles[name])
    key(figure, axes, columns=2)
    best = max(correlations, key=lambda name: correlations[name])
    headline(figure, title or f"Shift of each gene: {best} is nearest (r = {correlations[best]:.2f})")
    return figure


def method_scores(
    scores: pd.DataFrame,
    *,
    label: str,
    reference: str | None = None,
    higher_is_better: bool = True,
    title: str = "",
) -> Figure:
    """Draw one score of several methods, as a bar to the mean over held-out groups with each group as a point.

    Methods are in order of their means, the best above. Points of a group have one colour and one shape in all rows.

    Args:
        scores: One row per group and one column per method, such as ``table["r2"].drop("mean").unstack()`` of a table
            of scores; NaN for a method that does not apply to a group.
        label: What the score is, with its unit: ``"Energy distance"``.
        reference: A method whose mean is drawn as a dashed line instead of as a row: what real cells reach.
        higher_is_better: Whether the best method has the largest score.
        title: What is seen; an empty one names the best method.

    Returns:
        A figure of one panel.

    Raises:
        TypeError: If the scores are no DataFrame of numbers.
        ValueError: If there is no row or column, a method has no score, or the reference is not a column.

    Example:
        >>> scores = pd.DataFrame({"no change": [0.7, 0.8], "ridge": [0.9, 0.95]}, index=["B cells", "T cells"])
        >>> figure = method_scores(scores, label="R^2 of means")
        >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
        ['ridge', 'no change']
    """
    values = _checked(scores, reference)
    means = values.mean()
    methods = means.drop([] if reference is None else [reference])
    order = methods.sort_values(ascending=not higher_is_better, kind="stable").index
    figure, (panel,) = panels(1, columns=1, panel_height=1.5 + 0.36 * len(order))
    rows = np.arange(len(order))
    panel.barh(rows, methods[order], height=0.62, color=PALETTE[5], alpha=0.35, zorder=1)
    panel.vlines(methods[order], rows - 0.31, rows + 0.31, color=INK, linewidth=1.8, zorder=4)
    _draw_groups(panel, values[order])
    _write(panel, [f"{mean:.3g}" for mean in methods[order]])
    if reference is not None:
        panel.axvline(means[reference], color=INK, linewidth=1.1, linestyle="--", zorder=2)
    panel.set_xlim(padded([0.0, *values.to_numpy()[np.isfinite(values.to_numpy())]]))
    panel.set_ylim(len(order) - 0.4, -0.6)
    panel.set_yticks(rows, [typeset(str(name)) for name in order], fontsize=9.5, color=INK)
    panel.grid(visible=False, axis="y")
    dashed = "" if reference is None else f"; dashed: {reference}, {means[reference]:.3g}"
    describe(panel, x=f"{label}\nline and figure: mean over groups; points: groups{dashed}", y="")
    key(figure, [panel], columns=4)
    headline(figure, title or f"{label}: {order[0]} is best on average ({methods[order[0]]:.3g})")
    return figure


def _draw_groups(panel: Axes, values: pd.DataFrame) -> None:
    """Draw each group as points of one look, a little above or below those of the others."""
    rows = np.arange(len(values.columns))
    spread = np.linspace(-0.22, 0.22, len(values)) if len(values) > 1 else np.zeros(1)
    for position, (group, own) in enumerate(values.iterrows()):
        panel.scatter(
            own,
            rows + spread[position],
            s=26,
            zorder=3,
            label=str(group),
            color=colour(position),
            linewidths=0,
            marker=_MARKERS[position // len(PALETTE) % len(_MARKERS)],
        )


def _write(panel: Axes, texts: Sequence[str]) -> None:
    """Write a text right of each row."""
    for row, text in enumerate(texts):
        panel.annotate(
            typeset(text),
            (1.0, row),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            fontsize=8.5,
            color=INK,
            va="center",
        )


def _correlation(real: Array, predicted: Array) -> float:
    if min(np.ptp(real), np.ptp(predicted)) < 1e-9:
        return 0.0
    return float(np.corrcoef(real, predicted)[0, 1])


def _name_genes(
    panel: Axes,
    real: Array,
    predicted: Array,
    rows: npt.NDArray[Any],
    genes: Sequence[str],
    limits: tuple[float, float],
) -> None:
    """Name genes beside their points; names that would lie on others are moved up."""
    step = 0.07 * (limits[1] - limits[0])
    middle = (limits[0] + limits[1]) / 2
    for side in (real[rows] <= middle, real[rows] > middle):
        height = -np.inf
        for row in sorted(rows[side], key=lambda row: predicted[row]):
            height = max(predicted[row], height + step)
            left = real[row] <= middle
            panel.annotate(
                typeset(genes[row]),
                (real[row], predicted[row]),
                xytext=(real[row] + (0.4 if left else -0.4) * step, height),
                fontsize=7.5,
                color=INK,
                va="center",
                ha="left" if left else "right",
                path_effects=[withStroke(linewidth=2, foreground="white")],
                arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.6},
            )


def _checked(scores: pd.DataFrame, reference: str | None) -> pd.DataFrame:
    if not isinstance(scores, pd.DataFrame) or any(kind.kind not in "biuf" for kind in scores.dtypes):
        message = f"scores must be a DataFrame of numbers, [groups, methods], got {type(scores).__name__}"
        raise TypeError(message)
    empty = [str(name) for name in scores if not np.isfinite(scores[name]).any()]
    if scores.empty or empty:
        message = f"scores must hold a finite score of each method, got shape {list(scores.shape)}, none of {empty}"
        raise ValueError(message)
    if reference is not None and (reference not in scores or len(scores.columns) < 2):
        message = f"reference must be one of several methods {[*map(str, scores.columns)]}, got {reference!r}"
        raise ValueError(message)
    return scores.astype(np.float64)
