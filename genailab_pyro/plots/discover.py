"""Agreement of clusterings, and scores of cells that are like none the model has seen."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from genailab_pyro.plots.checks import Array, as_matrix, as_vector
from genailab_pyro.plots.style import INK, colour, describe, headline, key, line_style, panels, square_panels, typeset


def stability_heatmap(
    ari: npt.ArrayLike, names: Sequence[str], *, title: str = "Agreement of the clusters of each pair of runs"
) -> Figure:
    """Draw the adjusted Rand index of each pair of runs.

    Args:
        ari: Adjusted Rand indices, shape ``[runs, runs]``, symmetric, at most 1.
        names: Names of the runs.
        title: What is seen.

    Returns:
        A figure of one square panel with the numbers in it.

    Raises:
        TypeError: If the values are not numbers.
        ValueError: If the shape is not that of the names, the matrix is not symmetric, or a value is above 1.

    Example:
        >>> figure = stability_heatmap([[1.0, 0.8], [0.8, 1.0]], ["seed 0", "seed 1"])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['1.00', '0.80', '0.80', '1.00']
    """
    values = as_matrix("ari", ari, len(names), "runs")
    if len(values) != len(names) or not np.allclose(values, values.T):
        message = f"ari must be a symmetric matrix of shape [{len(names)}, {len(names)}], got {list(values.shape)}"
        raise ValueError(message)
    if values.max() > 1 + 1e-9:
        message = f"ari must be at most 1, the largest is {values.max():.3g}"
        raise ValueError(message)
    figure, (panel,) = square_panels(1)
    panel.grid(visible=False)
    image = panel.imshow(values, vmin=0, vmax=1, cmap="Blues")
    for row, column in np.ndindex(values.shape):
        shade = "white" if values[row, column] > 0.6 else INK
        panel.text(
            column, row, typeset(f"{values[row, column]:.2f}"), ha="center", va="center", fontsize=8.5, color=shade
        )
    ticks, labels = range(len(names)), [typeset(name) for name in names]
    panel.set_xticks(ticks, labels, rotation=45, ha="right")
    panel.set_yticks(ticks, labels)
    bar = figure.colorbar(image, ax=panel, shrink=0.7, aspect=25)
    bar.set_label("Adjusted Rand index (1: the same, 0: chance)", fontsize=9.5, color=INK)
    bar.ax.tick_params(labelsize=8.5)
    bar.outline.set_visible(False)
    headline(figure, title)
    return figure


def novelty_histogram(
    scores: Mapping[str, npt.ArrayLike],
    p_values: Mapping[str, npt.ArrayLike],
    *,
    title: str = "Novelty of the cells",
) -> Figure:
    """Draw the novelty scores of groups of cells, and how often their p-values are at most a level.

    Args:
        scores: Scores of each group's cells by its name, each of shape ``[cells]``; the higher, the more novel.
        p_values: Their p-values in [0, 1], for the same groups and cells.
        title: What is seen.

    Returns:
        A figure of two panels: histograms with a common axis, and the share of cells with a p-value of at most each
        level. Cells like the reference follow the dashed diagonal there; novel cells lie above it.

    Raises:
        TypeError: If the values are not numbers.
        ValueError: If there is no group, the groups or lengths differ, or a p-value is outside [0, 1].

    Example:
        >>> figure = novelty_histogram({"known": [0.1, -0.2], "new": [3.0]}, {"known": [0.4, 0.6], "new": [0.01]})
        >>> figure.axes[1].get_xlabel()
        'Level'
    """
    if not scores or [*scores] != [*p_values]:
        message = f"scores and p_values must hold the same groups, at least one, got {[*scores]} and {[*p_values]}"
        raise ValueError(message)
    values = {name: as_vector(f"scores[{name!r}]", each) for name, each in scores.items()}
    ranks = {name: _levels(name, p_values[name], each.size) for name, each in values.items()}
    figure, (left, right) = panels(2, columns=2, panel_height=3.3)
    edges = np.histogram_bin_edges(np.concatenate([*values.values()]), bins=30).tolist()
    levels = np.linspace(0, 1, 201)
    right.plot([0, 1], [0, 1], color=INK, linewidth=1.1, linestyle="--", label="as the reference")
    for position, name in enumerate(values):
        style = {"color": colour(position), "linestyle": line_style(position), "label": name}
        left.hist(values[name], bins=edges, density=True, histtype="step", linewidth=1.6, **style)
        shares = np.searchsorted(np.sort(ranks[name]), levels, side="right") / ranks[name].size
        right.plot(levels, shares, linewidth=1.6, **style)
    describe(left, x="Novelty score", y="Density of cells")
    describe(right, x="Level", y="Share of cells with p ≤ level")
    right.set_ylim(-0.02, 1.02)
    headline(figure, title)
    key(figure, [right])
    return figure


def _levels(name: str, values: npt.ArrayLike, length: int) -> Array:
    array = as_vector(f"p_values[{name!r}]", values, length)
    if np.any((array < 0) | (array > 1)):
        message = f"p_values[{name!r}] must lie in [0, 1]; they span {array.min():.3g} to {array.max():.3g}"
        raise ValueError(message)
    return array
