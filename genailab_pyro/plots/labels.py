"""How well labels are told: who is taken for whom, and how often a probability is right."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from genailab_pyro.plots.checks import as_array, as_vector
from genailab_pyro.plots.style import INK, MUTED, colour, describe, headline, key, line_style, panels, square_panels

_MOST_WRITTEN = 16
_LONGEST = 22
_Z = 1.959964  # of the 95 % interval


def confusion_matrix(counts: npt.ArrayLike, names: Sequence[str]) -> Figure:
    """Draw the share of each label's cells that is told as each label.

    Args:
        counts: Cells with the label of the row that are told as the label of the column, shape ``[labels, labels]``.
        names: Names of the labels, in the order of rows and columns.

    Returns:
        A figure of one panel: rows sum to one, and labels without a cell are left out of the rows.

    Raises:
        TypeError: If the counts are not numbers.
        ValueError: If the counts are not square, negative or all zero, or the names do not match them.

    Example:
        >>> figure = confusion_matrix([[8, 2], [1, 9]], ["B cell", "T cell"])
        >>> figure.get_suptitle()
        '17 of 20 cells are told as what they are labelled (85%)'
    """
    cells = as_array("counts", counts)
    if cells.ndim != 2 or cells.shape != (len(names), len(names)) or not (cells >= 0).all() or not cells.any():
        message = (
            f"counts must be numbers of cells of shape [{len(names)}, {len(names)}], as there are names, at least one "
            f"above zero, got shape {list(cells.shape)}"
        )
        raise ValueError(message)
    rows = np.flatnonzero(cells.sum(1))
    shares = cells[rows] / cells[rows].sum(1, keepdims=True)
    side = min(max(0.42 * len(names), 2.6), 9.0)
    figure, (panel,) = panels(1, columns=1, panel_height=side + 1.3, width=side + 3.0)
    image = panel.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    if len(names) <= _MOST_WRITTEN:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.005:
                shade = "white" if share > 0.55 else INK
                panel.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=shade)
    short = [_short(str(name)) for name in names]
    panel.set_xticks(range(len(names)), short, rotation=45, ha="right", rotation_mode="anchor")
    panel.set_yticks(range(len(rows)), [f"{short[row]} ({cells[row].sum():,.0f})" for row in rows])
    panel.grid(visible=False)
    bar = figure.colorbar(image, ax=panel, format=PercentFormatter(1.0), fraction=0.05, pad=0.02)
    bar.set_label("Share of the cells of a row", fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8.5, colors=MUTED)
    bar.outline.set_visible(False)
    describe(panel, x="Told as", y="Labelled (number of cells)")
    right, total = int(np.trace(cells)), int(cells.sum())
    headline(figure, f"{right:,} of {total:,} cells are told as what they are labelled ({right / total:.0%})")
    return figure


def calibration_curve(told: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]], *, num_bins: int = 10) -> Figure:
    """Draw how often labels are right, against the probability that they were told with.

    Cells are put into bins of equal width by the probability of the label they are told as. Each point is the mean
    probability and the share of right labels in a bin, with its 95 % interval by Wilson's score; beside it is the
    number of cells in each. On the diagonal, probabilities mean what they say; under it, they are too sure.

    Args:
        told: For each classifier the probability of each cell's most probable label, shape ``[cells]``, and whether it
            is right, booleans of shape ``[cells]``.
        num_bins: Number of bins from zero to one.

    Returns:
        A figure of two panels.

    Raises:
        TypeError: If the values are not numbers.
        ValueError: If nothing is given, a probability is outside of [0, 1], the shapes differ or there is no bin.

    References:
        Guo, Pleiss, Sun, Weinberger (2017). On calibration of modern neural networks. doi:10.48550/arXiv.1706.04599
        Wilson, E. B. (1927). Probable inference, the law of succession, and statistical inference.
        doi:10.1080/01621459.1927.10502953

    Example:
        >>> figure = calibration_curve({"model": ([0.9, 0.8, 0.95, 0.6], [True, True, True, False])})
        >>> figure.axes[0].get_ylabel()
        'Share of right labels'
    """
    if not told or num_bins < 1:
        message = f"there must be at least one classifier and one bin, got {len(told)} and num_bins={num_bins}"
        raise ValueError(message)
    figure, (panel, beside) = square_panels(2)
    panel.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="means what it says")
    for position, (name, (probabilities, right)) in enumerate(told.items()):
        mean, share, counts = binned(probabilities, right, num_bins)
        low, high = _wilson(share, counts)
        panel.errorbar(
            mean,
            share,
            # Rounding may put an end of the interval on the wrong side of a share of zero or one.
            yerr=np.clip([share - low, high - share], 0, None),
            color=colour(position),
            linestyle=line_style(position),
            marker="o",
            markersize=4,
            linewidth=1.4,
            elinewidth=0.9,
            capsize=2,
            label=name,
        )
        beside.plot(mean, counts, color=colour(position), linestyle=line_style(position), marker="o", markersize=4)
    for axes in (panel, beside):
        axes.set_xlim(-0.02, 1.02)
    panel.set_ylim(-0.02, 1.02)
    beside.set_ylim(0, 1.08 * beside.dataLim.ymax)
    describe(panel, x="Probability of the label that is told", y="Share of right labels")
    describe(beside, x="Probability of the label that is told", y="Cells in the bin")
    headline(figure, "How often a label is right, by its probability")
    key(figure, [panel])
    return figure


def binned(
    probabilities: npt.ArrayLike, right: npt.ArrayLike, num_bins: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Mean probability, share of right labels and number of cells of the bins that hold any.

    Args:
        probabilities: Probability of each cell's label, from zero to one, shape ``[cells]``.
        right: Whether it is right, booleans of shape ``[cells]``.
        num_bins: Number of bins of equal width; one holds its upper end.

    Raises:
        TypeError: If the values are not numbers.
        ValueError: If a probability is outside of [0, 1], or the shapes differ.
    """
    values = as_vector("probabilities", probabilities)
    hits = as_vector("right", right, values.size)
    if values.min() < 0 or values.max() > 1 + 1e-6:
        message = f"probabilities must be from 0 to 1, got values from {values.min():g} to {values.max():g}"
        raise ValueError(message)
    bins = np.clip(np.ceil(values * num_bins).astype(int) - 1, 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    held = counts > 0
    mean, share = (np.bincount(bins, each, num_bins)[held] / counts[held] for each in (values, hits))
    return mean, share, counts[held]


def _wilson(
    share: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Ends of the 95 % interval of shares of some numbers of cells."""
    centre = (share + _Z**2 / (2 * counts)) / (1 + _Z**2 / counts)
    half = _Z * np.sqrt(share * (1 - share) / counts + _Z**2 / (4 * counts**2)) / (1 + _Z**2 / counts)
    return centre - half, centre + half


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "\N{HORIZONTAL ELLIPSIS}"
