"""How the expression of some genes answers to a dose, with intervals."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, StrMethodFormatter

from genailab_pyro.plots.checks import Array, as_array, as_vector
from genailab_pyro.plots.style import PALETTE, describe, headline, key, panels

_MOST_PANELS = 12


def dose_response(
    doses: npt.ArrayLike,
    mean: npt.ArrayLike,
    low: npt.ArrayLike | None = None,
    high: npt.ArrayLike | None = None,
    *,
    genes: Sequence[str],
    observed: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]] | None = None,
    shown: Sequence[str] | None = None,
    unit: str = "",
    y: str = "Expected counts",
    title: str = "",
) -> Figure:
    """Draw the expected expression of genes over the dose, one panel per gene, with what was observed as points.

    Doses are spaced by the logarithm above the smallest positive one, and linearly below it, so that dose zero has a
    place.

    Args:
        doses: Doses of the curves, increasing, not negative, at least two; shape ``[doses]``.
        mean: Expected expression, shape ``[genes, doses]``.
        low: Lower end of the interval, likewise; None for no interval.
        high: Upper end of the interval; given where ``low`` is.
        genes: Names of the genes.
        observed: For some of the genes, the doses and the expression of observed cells or replicates.
        shown: Which genes to draw; None draws all, up to the twelve whose log expression moves most.
        unit: Unit of the dose, such as ``"mmol/kg"``.
        y: What is on the vertical axis, with its unit.
        title: What is seen; an empty one tells which gene moves most.

    Returns:
        A figure of one panel per gene.

    Raises:
        TypeError: If the values are not numbers.
        ValueError: If a shape differs, a value is negative or not finite, doses do not increase, or a gene is unknown.

    Example:
        >>> doses = np.array([0.0, 1.0, 10.0])
        >>> figure = dose_response(doses, [2 + doses, 5 - 0.1 * doses], genes=["CYP2E1", "ALB"], unit="mmol/kg")
        >>> figure.get_suptitle()
        'Response to the dose; of 2 genes CYP2E1 moves most'
    """
    places = as_vector("doses", doses)
    if places.size < 2 or places[0] < 0 or (np.diff(places) <= 0).any():
        raise ValueError(f"doses must increase from zero or above, at least two of them, got {places.tolist()}")
    curves = _curves("mean", mean, (len(genes), places.size))
    ends = _interval(low, high, curves.shape)
    moves = np.ptp(np.log1p(curves), axis=1)
    rows = _rows(genes, shown, moves)
    figure, axes = panels(len(rows), columns=3, panel_height=2.1)
    for place, (panel, row) in enumerate(zip(axes, rows, strict=True)):
        if ends is not None:
            low_end, high_end = ends[0][row], ends[1][row]
            panel.fill_between(places, low_end, high_end, color=PALETTE[0], alpha=0.18, linewidth=0, label="interval")
        panel.plot(places, curves[row], color=PALETTE[0], linewidth=1.6, label="predicted mean")
        if observed is not None and genes[row] in observed:
            at, values = (as_vector(f"observed[{genes[row]!r}]", part) for part in observed[genes[row]])
            panel.plot(at, values, "o", color=PALETTE[1], markersize=3.5, alpha=0.8, label="observed")
        _spaced(panel, places)
        described = f"Dose ({unit})" if unit else "Dose"
        describe(
            panel,
            x=described if place + 3 >= len(rows) else "",
            y=y if place % 3 == 0 else "",
            title=genes[row],
        )
    key(figure, axes)
    headline(figure, title or f"Response to the dose; of {len(genes)} genes {genes[int(np.argmax(moves))]} moves most")
    return figure


def _curves(name: str, values: npt.ArrayLike, shape: tuple[int, int]) -> Array:
    curves = as_array(name, values)
    if curves.shape != shape or not (np.isfinite(curves).all() and (curves >= 0).all()):
        raise ValueError(
            f"{name} must be finite and not negative, of shape {list(shape)}, a row for each gene and a column for "
            f"each dose, got shape {list(curves.shape)}"
        )
    return curves


def _interval(
    low: npt.ArrayLike | None, high: npt.ArrayLike | None, shape: tuple[int, int]
) -> tuple[Array, Array] | None:
    if low is None and high is None:
        return None
    if low is None or high is None:
        raise ValueError("low and high must be given together, or neither of them")
    ends = _curves("low", low, shape), _curves("high", high, shape)
    if (ends[0] > ends[1]).any():
        raise ValueError("low must not be above high")
    return ends


def _rows(genes: Sequence[str], shown: Sequence[str] | None, moves: Array) -> list[int]:
    if shown is None:
        return [int(row) for row in np.argsort(-moves, kind="stable")[:_MOST_PANELS]]
    unknown = [gene for gene in shown if gene not in genes]
    if unknown or not len(shown):
        raise ValueError(f"shown must be some of the genes, at least one, got {unknown or 'none'} beside them")
    return [list(genes).index(gene) for gene in shown]


def _spaced(panel: Axes, places: Array) -> None:
    """Space the doses by their logarithm, with a place for zero."""
    smallest = float(places[places > 0].min())
    panel.set_xscale("symlog", linthresh=smallest, linscale=0.5)
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.margins(x=0.03)
    panel.set_ylim(bottom=0)
