"""Log fold changes: against their probability, against the truth, and with their credible intervals."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from genailab_pyro.plots.checks import Array, as_vector
from genailab_pyro.plots.estimates import draw_rows
from genailab_pyro.plots.style import (
    INK,
    PALETTE,
    SOFT,
    describe,
    headline,
    key,
    padded,
    panels,
    square_panels,
    typeset,
)

_NAMES_FROM = 1.1
_LFC = "Log2 fold change (posterior mean)"


def volcano(
    lfc: npt.ArrayLike,
    probability: npt.ArrayLike,
    is_de: npt.ArrayLike,
    genes: Sequence[str],
    *,
    delta: float,
    num_named: int = 10,
    title: str = "",
) -> Figure:
    """Draw the probability of a change of each gene against its size, the discoveries marked and the largest named.

    Args:
        lfc: Posterior mean of each gene's log2 fold change, shape ``[genes]``.
        probability: Posterior probability that it is larger than delta in size, shape ``[genes]``, in [0, 1].
        is_de: Which genes are called, booleans of shape ``[genes]``.
        genes: Names of the genes.
        delta: Smallest log2 fold change of interest; dashed at plus and minus it.
        num_named: Number of called genes that are named, those of the largest change.
        title: What is seen; how many genes are called by default.

    Returns:
        A figure of one panel.

    Raises:
        TypeError: If the values are not numbers.
        ValueError: If the lengths differ, or a probability is outside [0, 1].

    Example:
        >>> figure = volcano([2.0, 0.1], [0.99, 0.2], [True, False], ["CD79A", "ACTB"], delta=0.25)
        >>> figure.get_suptitle()
        '1 of 2 genes differ by more than 0.25 in log2 fold change'
    """
    changes = as_vector("lfc", lfc, len(genes) or None)
    chances = _probabilities(probability, changes.size)
    called = as_vector("is_de", is_de, changes.size) != 0
    figure, (panel,) = panels(1, columns=1, panel_height=4.4)
    _draw_calls(panel, changes, chances, called)
    for edge in (-delta, delta):
        panel.axvline(edge, color=INK, linewidth=1.0, linestyle="--", zorder=1)
    panel.set_ylim(-0.03, 1.42 if called.any() and num_named else 1.05)
    panel.set_yticks(np.linspace(0, 1, 6))
    panel.set_xlim(padded([float(changes.min()), float(changes.max()), -2 * delta, 2 * delta], 0.1))
    _name_largest(panel, changes, chances, called, genes, num_named)
    describe(panel, x=_LFC, y=f"Probability of a change larger than {delta:g}")
    found = f"{called.sum()} of {changes.size} genes differ by more than {delta:g} in log2 fold change"
    headline(figure, title or found)
    key(figure, [panel])
    return figure


def lfc_against_truth(
    lfc: npt.ArrayLike,
    truth: npt.ArrayLike,
    is_de: npt.ArrayLike,
    *,
    delta: float,
    title: str = "",
) -> Figure:
    """Draw estimated log fold changes against the true ones, where a simulation knows them.

    Args:
        lfc: Posterior mean of each gene's log2 fold change, shape ``[genes]``.
        truth: The true one, likewise.
        is_de: Which genes are called, booleans of shape ``[genes]``.
        delta: Smallest log2 fold change of interest: a call of a gene between the dashed lines, or of
            the other sign, is false.
        title: What is seen; the shares of false and of missed calls by default.

    Returns:
        A figure of one square panel.

    Raises:
        TypeError: If the values are not numbers.
        ValueError: If the lengths differ.

    Example:
        >>> lfc_against_truth([1.0, 0.1, 0.6], [1.2, 0.0, 0.1], [True, False, True], delta=0.25).get_suptitle()
        '1 of 2 calls are false, 0 of 1 changes are missed'
    """
    changes = as_vector("lfc", lfc)
    real = as_vector("truth", truth, changes.size)
    called = as_vector("is_de", is_de, changes.size) != 0
    right = called & (np.sign(changes) * real > delta)
    changed = np.abs(real) > delta
    figure, (panel,) = square_panels(1)
    limits = padded([float(min(changes.min(), real.min())), float(max(changes.max(), real.max()))])
    panel.plot(limits, limits, color=INK, linewidth=1.1, label="equal")
    _draw_calls(panel, real, changes, called)
    for edge in (-delta, delta):
        panel.axvline(edge, color=INK, linewidth=1.0, linestyle="--", zorder=1)
    panel.set_xlim(limits)
    panel.set_ylim(limits)
    describe(panel, x="True log2 fold change", y=_LFC)
    false, missed = (called & ~right).sum(), (changed & ~right).sum()
    scores = f"{false} of {called.sum()} calls are false, {missed} of {changed.sum()} changes are missed"
    headline(figure, title or scores)
    key(figure, [panel])
    return figure


def lfc_intervals(
    genes: Sequence[str],
    mean: npt.ArrayLike,
    low: npt.ArrayLike,
    high: npt.ArrayLike,
    *,
    delta: float,
    title: str = "Posterior of the log2 fold change",
) -> Figure:
    """Draw the posterior mean and credible interval of the log fold change of some genes, one row each.

    Args:
        genes: Names of the genes, from top to bottom.
        mean: Posterior means, shape ``[genes]``.
        low: Lower ends of the credible intervals, likewise.
        high: Upper ends, likewise.
        delta: Smallest log2 fold change of interest; dashed at plus and minus it.
        title: What is seen.

    Returns:
        A figure of one panel.

    Raises:
        TypeError: If the values are not numbers.
        ValueError: If the lengths differ, or a mean is outside its interval.

    Example:
        >>> figure = lfc_intervals(["CD79A", "MS4A1"], [3.1, 2.0], [2.5, 1.2], [3.8, 2.9], delta=0.25)
        >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
        ['CD79A', 'MS4A1']
    """
    means = as_vector("mean", mean, len(genes) or None)
    lows, highs = as_vector("low", low, means.size), as_vector("high", high, means.size)
    if np.any((means < lows) | (means > highs)):
        outside = genes[int(np.argmax((means < lows) | (means > highs)))]
        message = f"each mean must lie in its interval, that of {outside!r} does not; low and high may be swapped"
        raise ValueError(message)
    figure, (panel,) = panels(1, columns=1, panel_height=0.9 + 0.3 * len(genes))
    texts = [f"{value:.2f} [{a:.2f}, {b:.2f}]" for value, a, b in zip(means, lows, highs, strict=True)]
    draw_rows(panel, genes, means, np.stack([means - lows, highs - means]), np.ones(means.size, bool), texts)
    for edge in (-delta, delta):
        panel.axvline(edge, color=INK, linewidth=1.0, linestyle="--", zorder=1)
    panel.set_xlim(padded([float(lows.min()), float(highs.max()), -delta, delta]))
    describe(panel, x=f"Log2 fold change\nline: credible interval; dashed: ±{delta:g}", y="")
    headline(figure, title)
    return figure


def _draw_calls(panel: Axes, x: Array, y: Array, called: npt.NDArray[np.bool_]) -> None:
    for chosen, shade, label in ((~called, SOFT, "not called"), (called, PALETTE[1], "called")):
        if chosen.any():
            panel.scatter(x[chosen], y[chosen], s=13, color=shade, alpha=0.75, linewidths=0, label=label)


def _name_largest(
    panel: Axes, x: Array, y: Array, called: npt.NDArray[np.bool_], genes: Sequence[str], number: int
) -> None:
    """Upright names in a row above the points, moved apart where the points lie side by side."""
    largest = [place for place in np.argsort(-np.abs(x), kind="stable") if called[place]][:number]
    ordered = sorted(largest, key=lambda place: x[place])
    low, high = panel.get_xlim()
    for place, above in zip(ordered, _apart(x[ordered], 0.03 * (high - low), high), strict=True):
        panel.annotate(
            typeset(genes[place]),
            (x[place], y[place]),
            xytext=(above, _NAMES_FROM),
            ha="center",
            va="bottom",
            rotation=90,
            fontsize=7.5,
            color=INK,
            arrowprops={"arrowstyle": "-", "color": SOFT, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2},
        )


def _apart(sorted_places: Array, gap: float, limit: float) -> Array:
    """Places at least a gap from each other and from a limit above them, as near to where they were as that allows."""
    moved = sorted_places.copy()
    for i in range(1, moved.size):
        moved[i] = max(moved[i], moved[i - 1] + gap)
    for i in range(moved.size)[::-1]:
        moved[i] = min(moved[i], (moved[i + 1] if i + 1 < moved.size else limit) - gap)
    return moved


def _probabilities(values: npt.ArrayLike, length: int) -> Array:
    array = as_vector("probability", values, length)
    if np.any((array < 0) | (array > 1)):
        message = f"probability must lie in [0, 1]; it spans {array.min():.3g} to {array.max():.3g}"
        raise ValueError(message)
    return array
