"""Cells in two dimensions, coloured by a label or by a number."""

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from genailab_pyro.plots.checks import Array, as_matrix, as_vector
from genailab_pyro.plots.style import INK, PALETTE, SOFT, describe, headline, panels, typeset

_MOST_LABELS = 30
_SHORT = 2  # letters of a label that is written on the map itself
_REST, _MISSING = SOFT, "#cfcfcf"
_GREYS = (_REST, _MISSING)
_MIXTURES = ((0.0, 0.0), (0.0, 0.4), (1.0, 0.45), (0.0, 0.65), (1.0, 0.7))


def embedding(
    xy: npt.ArrayLike,
    colour_by: npt.ArrayLike | pd.Series | pd.Categorical,
    *,
    title: str,
    name: str = "",
    axis: str = "UMAP",
) -> Figure:
    """Draw cells at two coordinates, coloured by a label or by a number.

    Cells are drawn in a random (seeded) order, so that no label hides another. Beyond seven labels the
    colours alone do not tell them apart: each is then written on the map, by a number of the legend, or by
    itself where all labels have at most two letters. Beyond thirty, the rarest share one grey entry.

    Args:
        xy: Coordinates of the cells, shape ``[cells, 2]``.
        colour_by: One value per cell, shape ``[cells]``. Text, booleans and categoricals are labels (None and
            NaN: unlabelled, in grey); integers and floats are a continuous quantity. Make cluster codes text.
        title: What is seen.
        name: Heading of the legend, or label of the colour bar with its unit: ``"total counts per cell"``.
        axis: Name of the coordinates.

    Returns:
        A figure of one map.

    Raises:
        TypeError: If the coordinates are not numbers.
        ValueError: If the shapes do not match, or a coordinate or a number is not finite.

    Example:
        >>> figure = embedding([[0.0, 1.0], [2.0, 3.0]], ["B cell", "T cell"], title="Two cells")
        >>> figure.axes[0].get_xlabel()
        'UMAP 1 (arbitrary units)'
    """
    places = as_matrix("xy", xy, 2, "cells")
    series = pd.Series(colour_by)
    if len(series) != len(places):
        message = f"colour_by must have one value for each of the {len(places)} cells of xy, got {len(series)}"
        raise ValueError(message)
    figure, (panel,) = panels(1, columns=1, panel_height=4.6)
    order = np.random.default_rng(0).permutation(len(places))
    x, y = places[order].T
    size = float(np.clip(12_000 / len(places), 2, 18))
    if pd.api.types.is_numeric_dtype(series) and not pd.api.types.is_bool_dtype(series):
        values = as_vector("colour_by", series.to_numpy())
        points = panel.scatter(x, y, c=values[order], s=size, cmap="viridis", linewidths=0)
        bar = figure.colorbar(points, ax=panel, shrink=0.7, aspect=25)
        bar.set_label(typeset(name), fontsize=9.5, color=INK)
        bar.ax.tick_params(labelsize=8.5)
        bar.outline.set_visible(False)
    else:
        codes, labels, colours = _labels(series)
        panel.scatter(x, y, c=np.asarray(colours)[codes[order]], s=size, linewidths=0)
        marks = _marks(labels, colours)
        _legend(panel, codes, labels, marks, colours, name)
        _mark(panel, places, codes, marks)
    describe(panel, x=f"{axis} 1 (arbitrary units)", y=f"{axis} 2 (arbitrary units)")
    panel.set_aspect("equal", adjustable="datalim")
    panel.set_xticks([])
    panel.set_yticks([])
    headline(figure, title)
    return figure


def _labels(series: pd.Series) -> tuple[npt.NDArray[np.int64], list[str], list[str]]:
    """Code of each cell, and the labels and colours that the codes point at; grey ones come last."""
    ordered = series.astype("category").cat.remove_unused_categories().cat
    codes = ordered.codes.to_numpy().astype(np.int64)
    names = [str(category) for category in ordered.categories]
    if len(names) > _MOST_LABELS:
        by_size = np.argsort(-np.bincount(codes[codes >= 0], minlength=len(names)), kind="stable")
        kept = np.sort(by_size[: _MOST_LABELS - 1])
        position = np.full(len(names) + 1, len(kept))
        position[kept] = np.arange(len(kept))
        missing = codes < 0
        codes = position[codes]
        codes[missing] = -1
        names = [names[old] for old in kept] + [f"{len(names) - len(kept)} rarer labels"]
        colours = [*_shades(len(kept)), _REST]
    else:
        colours = _shades(len(names))
    if np.any(codes < 0):
        codes[codes < 0] = len(names)
        names.append("unlabelled")
        colours.append(_MISSING)
    return codes, names, colours


def _shades(count: int) -> list[str]:
    """The palette, then shades of it mixed with black or white."""
    shades = []
    for position in range(count):
        toward, amount = _MIXTURES[position // len(PALETTE)]
        mixed = (1 - amount) * np.asarray(to_rgb(PALETTE[position % len(PALETTE)])) + amount * toward
        shades.append(to_hex(tuple(mixed)))
    return shades


def _marks(labels: list[str], colours: list[str]) -> list[str]:
    """What is written on the map for each label; nothing where colours tell labels apart, or for a grey one."""
    if len(labels) <= len(PALETTE):
        return [""] * len(labels)
    coloured = [shade not in _GREYS for shade in colours]
    short = all(len(label) <= _SHORT for label, wanted in zip(labels, coloured, strict=True) if wanted)
    marks = labels if short else [str(position + 1) for position in range(len(labels))]
    return [mark if wanted else "" for mark, wanted in zip(marks, coloured, strict=True)]


def _legend(
    panel: Axes, codes: npt.NDArray[np.int64], labels: list[str], marks: list[str], colours: list[str], name: str
) -> None:
    sizes = np.bincount(codes, minlength=len(labels))
    handles = []
    for label, mark, shade, size in zip(labels, marks, colours, sizes, strict=True):
        prefix = f"{mark}  " if mark not in ("", label) else ""
        text = f"{prefix}{label} ({size:,})"
        handles.append(Line2D([], [], linestyle="", marker="o", markersize=5.5, color=shade, label=typeset(text)))
    panel.legend(
        handles=handles,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
        fontsize=8.5 if len(labels) <= 20 else 7.5,
        labelcolor=INK,
        labelspacing=0.3,
        handletextpad=0.2,
        title=typeset(f"{name or 'label'} (cells)"),
        title_fontsize=8.5,
        alignment="left",
    )


def _mark(panel: Axes, places: Array, codes: npt.NDArray[np.int64], marks: list[str]) -> None:
    """Write each label's mark on the cell next to its median that is clear of the marks before."""
    clear = 0.045 * float(np.ptp(places, axis=0).max())
    written: list[Array] = []
    for position, mark in enumerate(marks):
        if not mark:
            continue
        members = places[codes == position]
        nearest = members[np.argsort(np.sum((members - np.median(members, axis=0)) ** 2, axis=1))]
        spot = next((cell for cell in nearest if _apart(cell, written, clear)), nearest[0])
        written.append(spot)
        panel.text(
            spot[0],
            spot[1],
            typeset(mark),
            fontsize=8.5,
            fontweight="bold",
            color=INK,
            ha="center",
            va="center",
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )


def _apart(cell: Array, written: list[Array], distance: float) -> bool:
    return all(float(np.linalg.norm(cell - other)) >= distance for other in written)
