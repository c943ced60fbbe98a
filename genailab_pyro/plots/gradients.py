"""How far the draws of a gradient estimator scatter."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from genailab_pyro.plots.checks import Array, as_matrix, as_vector
from genailab_pyro.plots.estimates import draw_rows
from genailab_pyro.plots.numbers import readable
from genailab_pyro.plots.style import INK, colour, describe, headline, key, panels, square_panels, typeset

_TINY = 0.15
_SAME_AXES = 0.995
_LEAST_SHOWN = 1e-3


def gradient_scatter(
    draws: Mapping[str, npt.ArrayLike],
    *,
    coordinates: tuple[str, str],
    reference: npt.ArrayLike | None = None,
    unit: str = "nats",
    title: str = "",
) -> Figure:
    """Draw two coordinates of repeated gradient estimates, at one scale and then each estimator at its own.

    The first panel holds all estimators on the same axes. Each further panel shows one of those that scatter
    less, magnified by the factor that its title names; the frame that it magnifies is drawn in the first
    panel. All panels share one centre, and a panel has the same magnification in both coordinates.

    Args:
        draws: Name of each estimator and its draws at the same parameters and minibatch, each of shape
            ``[num_draws, 2]``.
        coordinates: Names of the two parameters that the gradient is taken in.
        reference: The exact gradient, or a precise estimate of it, shape ``[2]``: dotted lines in every
            panel.
        unit: Unit of the gradient.
        title: What is seen; an empty one tells the ratio of the largest to the least variance.

    Returns:
        A figure of one panel, and one more for each estimator that fills less than the first panel's axes.

    Raises:
        TypeError: If the draws are not numbers.
        ValueError: If there is no estimator, a shape differs, or there are fewer than two draws of an
            estimator.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> draws = {"pathwise": rng.normal(size=(100, 2)), "score": 100 * rng.normal(size=(100, 2))}
        >>> figure = gradient_scatter(draws, coordinates=("z.loc[0]", "z.loc[1]"), reference=[0.0, 0.0])
        >>> len(figure.axes)
        2
    """
    clouds = {name: as_matrix(f"draws[{name!r}]", values, 2, "num_draws") for name, values in draws.items()}
    if not clouds or any(len(cloud) < 2 for cloud in clouds.values()):
        message = "draws must hold at least one estimator, as {name: draws}, with two draws or more each"
        raise ValueError(message)
    variances = {name: float(cloud.var(axis=0, ddof=1).sum()) for name, cloud in clouds.items()}
    ranked = sorted(clouds, key=lambda name: -variances[name])
    centre = clouds[ranked[-1]].mean(axis=0) if reference is None else as_vector("reference", reference, 2)
    shares, half = _scales(clouds, centre)
    magnified = [name for name in ranked if shares[name] < _SAME_AXES]
    figure, axes = square_panels(1 + len(magnified))
    labels = tuple(f"Gradient in {name} ({unit})" for name in coordinates)
    shades = {name: colour(position) for position, name in enumerate(clouds)}

    for name in ranked:
        _cloud(axes[0], clouds[name], shades[name], f"{name}: total variance {readable(variances[name])}")
    _frame(axes[0], centre, half, cross=reference is not None)
    heading = "All on the same axes" if len(clouds) > 1 else ranked[0]
    describe(axes[0], x=labels[0], y=labels[1], title=heading)
    for position, name in enumerate(magnified):
        panel, within = axes[position + 1], half * shares[name]
        _cloud(panel, clouds[name], shades[name], None)
        _frame(panel, centre, within, cross=reference is not None)
        panel.plot(*clouds[name].mean(axis=0), "D", markersize=5, color=INK, label="mean of draws")
        times = readable(1 / shares[name], 2)
        describe(panel, x=labels[0], y=labels[1], title=f"{name}, magnified {times} times")
        _outline(axes[0], centre, within, shades[name])
        if shares[name] < _TINY:
            _point_at(axes[0], centre, within, name, position)
    key(figure, axes[:2], columns=2)
    headline(figure, title or _ratio(variances, ranked))
    return figure


def gradient_variances(
    names: Sequence[str],
    variances: npt.ArrayLike,
    intervals: npt.ArrayLike | None = None,
    *,
    xlabel: str = "Variance of the gradient, summed over parameters (nats²)",
    title: str = "Variance of the gradient by estimator",
) -> Figure:
    """Draw the gradient variance of each estimator on a logarithmic axis.

    Points, not bars: a logarithmic axis has no zero for a bar to start from. An estimator without variance is
    kept as a row that says so.

    Args:
        names: Names of the estimators, from top to bottom.
        variances: Variance, or ratio of variances, of each, shape ``[estimators]``, not negative.
        intervals: Lower and upper end of each, shape ``[estimators, 2]``; None draws no intervals. A lower
            end of zero, which the axis cannot show, is drawn at a thousandth of its variance.
        xlabel: What is measured, with its unit.
        title: What is seen.

    Returns:
        A figure of one panel.

    Raises:
        TypeError: If the values are not numbers.
        ValueError: If the lengths differ, a variance is negative, or an interval does not hold its variance.

    Example:
        >>> figure = gradient_variances(["pathwise", "score"], [0.03, 310.0], [[0.02, 0.05], [250.0, 400.0]])
        >>> figure.axes[0].get_xscale()
        'log'
    """
    values = as_vector("variances", variances, len(names) or None)
    ends = np.stack([values, values], axis=1)
    if intervals is not None:
        ends = as_matrix("intervals", intervals, 2, "estimators")
        if len(ends) != len(values):
            message = f"intervals must have shape [{len(values)}, 2], one row per variance, got {list(ends.shape)}"
            raise ValueError(message)
    if np.any(values < 0) or np.any(ends[:, 0] > values) or np.any(ends[:, 1] < values):
        message = "variances must not be negative, and each must lie within its interval [lower, upper]"
        raise ValueError(message)
    figure, (panel,) = panels(1, columns=1, panel_height=0.8 + 0.34 * len(values))
    panel.set_xscale("log")
    kept = values > 0
    lower = values - np.maximum(ends[:, 0], _LEAST_SHOWN * values)
    texts = [readable(float(value)) if value > 0 else "0, not shown" for value in values]
    draw_rows(panel, names, values, np.stack([lower, ends[:, 1] - values]), kept, texts)
    describe(panel, x=xlabel, y="")
    headline(figure, title)
    return figure


def _scales(clouds: Mapping[str, Array], centre: Array) -> tuple[dict[str, float], Array]:
    """Half width of the axes that hold every draw, and the share of it that each estimator needs."""
    resolution = 1e-9 * float(np.abs(centre).max())
    reach = {name: np.abs(cloud - centre).max(axis=0) for name, cloud in clouds.items()}
    half = 1.08 * np.max(list(reach.values()), axis=0)
    half = np.where(half > resolution, half, half.max() if half.max() > resolution else 1.0)
    shares = {}
    for name in clouds:
        share = 1.08 * float(np.max(reach[name] / half))
        shares[name] = share if share * half.min() > resolution else 1.0
    return shares, half


def _ratio(variances: Mapping[str, float], ranked: Sequence[str]) -> str:
    widest, narrowest = ranked[0], ranked[-1]
    if len(ranked) == 1:
        return f"Gradient draws of {widest}"
    if variances[narrowest] == 0:
        return f"The draws of {narrowest} do not scatter at all"
    times = readable(variances[widest] / variances[narrowest], 2)
    return f"The draws of {widest} have {times} times the variance of {narrowest}"


def _cloud(panel: Axes, cloud: Array, shade: str, name: str | None) -> None:
    panel.scatter(cloud[:, 0], cloud[:, 1], s=7, color=shade, alpha=0.4, linewidths=0, label=name)


def _frame(panel: Axes, centre: Array, half: Array, *, cross: bool) -> None:
    panel.set_xlim(centre[0] - half[0], centre[0] + half[0])
    panel.set_ylim(centre[1] - half[1], centre[1] + half[1])
    panel.locator_params(nbins=5)
    if cross:
        panel.axvline(centre[0], color=INK, linewidth=0.9, linestyle=":", label="reference")
        panel.axhline(centre[1], color=INK, linewidth=0.9, linestyle=":")


def _outline(panel: Axes, centre: Array, half: Array, shade: str) -> None:
    corner = centre - half
    panel.add_patch(Rectangle((corner[0], corner[1]), *(2 * half), fill=False, edgecolor=shade, linewidth=1.2))


def _point_at(panel: Axes, centre: Array, half: Array, name: str, position: int) -> None:
    panel.annotate(
        typeset(f"{name}: all draws lie here"),
        (centre[0] + half[0], centre[1] - half[1]),
        xytext=(0.97, 0.04 + 0.085 * position),
        textcoords="axes fraction",
        fontsize=8.5,
        color=INK,
        ha="right",
        arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.9},
        bbox={"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 1},
    )
