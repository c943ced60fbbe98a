"""How expression changes along a walk of each latent."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from genailab_pyro.plots.checks import Array, as_array, as_vector
from genailab_pyro.plots.style import INK, MUTED, describe, headline, panels, typeset

_COLOURS = "RdBu_r"
_SCALE = "Expected count plus one: log2 fold change from position 0 (blue falls, red rises)"


def traversals(
    counts: npt.ArrayLike,
    positions: npt.ArrayLike,
    *,
    genes: Sequence[str],
    latents: Sequence[int] | None = None,
    num_genes: int = 8,
    title: str = "",
) -> Figure:
    r"""Draw how the genes that a latent moves most change along its walk, one panel per latent.

    The change is :math:`\log_2 \frac{1 + \mu(t)}{1 + \mu(0)}` for the expected count :math:`\mu` at position t: that
    of a gene of which hardly a count is expected anywhere is near zero, however many times it grows. Panels share one
    scale of colours, and are in order of their largest change.

    Args:
        counts: Expected counts, shape ``[latents, steps, genes]``.
        positions: Where the steps are, in standard deviations of the latent, increasing, one of them 0; shape
            ``[steps]``.
        genes: Names of the genes.
        latents: Which latents to draw, by index; None draws all, up to the nine that move most.
        num_genes: Rows of each panel, at least 1.
        title: What is seen; an empty one tells which latent moves what.

    Returns:
        A figure of one heat map per latent: rows are genes (those that rise above those that fall), columns steps.

    Raises:
        TypeError: If the counts are not numbers.
        ValueError: If a shape differs, a count is negative or not finite, or no step is at 0.

    Example:
        >>> walk = np.exp(np.linspace(-1, 1, 5))[None, :, None] * np.array([10.0, 1.0])
        >>> figure = traversals(walk, [-2, -1, 0, 1, 2], genes=["A", "B"])
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['A', 'B']
    """
    change, places = _change(counts, positions, len(genes))
    chosen = _chosen(change, latents)
    shown = min(_whole(num_genes), len(genes))
    limit = max(float(np.abs(change[chosen]).max()), 1e-9)
    height = 0.75 + 0.17 * shown + 0.75 / math.ceil(len(chosen) / 3)  # a heading, the rows, a share of the colour bar
    figure, axes = panels(len(chosen), columns=3, panel_height=height, width=8.4)
    for position, (panel, latent) in enumerate(zip(axes, chosen, strict=True)):
        rows = _most_moved(change[latent], shown)
        image = panel.imshow(
            change[latent][:, rows].T, cmap=_COLOURS, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest"
        )
        _ticks(panel, places, [genes[row] for row in rows])
        lowest = position + 3 >= len(chosen)
        describe(panel, x="Position (sd of the latent)" if lowest else "", y="", title=f"Latent {latent}")
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.6, aspect=45)
    bar.set_label(typeset(_SCALE), fontsize=9.5, color=INK)
    bar.ax.tick_params(labelsize=8.5, colors=MUTED)
    bar.outline.set_visible(False)
    headline(figure, title or _told(change, chosen, genes))
    return figure


def _change(counts: npt.ArrayLike, positions: npt.ArrayLike, num_genes: int) -> tuple[Array, Array]:
    means, places = as_array("counts", counts), as_vector("positions", positions)
    if means.ndim != 3 or not means.size or means.shape[1:] != (places.size, num_genes):
        message = (
            f"counts must have shape [latents, {places.size}, {num_genes}], a step for each position and a gene for "
            f"each name, got {list(means.shape)}"
        )
        raise ValueError(message)
    if not np.isfinite(means).all() or means.min() < 0:
        message = "counts must be finite and not negative; pass expected counts, not their logarithms"
        raise ValueError(message)
    if np.any(np.diff(places) <= 0) or 0 not in places:
        message = f"positions must increase and hold 0, from which the change is told, got {places.tolist()}"
        raise ValueError(message)
    logs = np.log2(1 + means)
    return logs - logs[:, places == 0], places


def _chosen(change: Array, latents: Sequence[int] | None) -> list[int]:
    largest = np.abs(change).max(axis=(1, 2))
    if latents is None:
        return np.argsort(-largest, kind="stable")[:9].tolist()
    unknown = [latent for latent in latents if latent not in range(len(change))]
    if unknown or not len(latents):
        message = f"latents must be indices from 0 to {len(change) - 1}, at least one, got {list(latents)}"
        raise ValueError(message)
    return list(latents)


def _whole(num_genes: int) -> int:
    if num_genes < 1:
        message = f"num_genes must be at least 1, got {num_genes!r}"
        raise ValueError(message)
    return num_genes


def _most_moved(change: Array, shown: int) -> list[int]:
    """The genes of the largest change, by its slope along the walk, from the one that rises most down."""
    moved = np.argsort(-np.abs(change).max(axis=0), kind="stable")[:shown]
    rise = (change[-1] - change[0])[moved]
    return moved[np.argsort(-rise, kind="stable")].tolist()


def _ticks(panel: Axes, places: Array, names: list[str]) -> None:
    panel.grid(visible=False)
    panel.spines[["left", "bottom"]].set_visible(False)
    # Round numbers, which lie between steps as well.
    round_numbers = MaxNLocator(nbins=5, steps=[1, 2, 5]).tick_values(places[0], places[-1])
    marks = [mark for mark in round_numbers if places[0] <= mark <= places[-1]]
    panel.set_xticks(np.interp(marks, places, np.arange(places.size)), [typeset(f"{mark:g}") for mark in marks])
    panel.set_yticks(range(len(names)), [typeset(name) for name in names])
    panel.tick_params(length=0)


def _told(change: Array, chosen: list[int], genes: Sequence[str]) -> str:
    latent = max(chosen, key=lambda index: np.abs(change[index]).max())
    strongest = genes[int(np.abs(change[latent]).max(axis=0).argmax())]
    shown = "each latent moves" if len(chosen) == len(change) else f"{len(chosen)} of {len(change)} latents move"
    return f"Genes that {shown} most; the strongest is {strongest}, along latent {latent}"
