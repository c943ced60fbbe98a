"""Estimated effects of a treatment against the true ones, one panel for each way to estimate them."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from genailab_pyro.plots.checks import as_vector
from genailab_pyro.plots.style import INK, SOFT, colour, describe, headline, padded, square_panels

_NORMAL_QUANTILE = 1.96


def contrasts(
    truth: npt.ArrayLike,
    estimates: Mapping[str, npt.ArrayLike],
    *,
    errors: Mapping[str, npt.ArrayLike] | None = None,
    title: str = "",
) -> Figure:
    """Draw the estimated against the true log fold change of each gene, one panel per estimate on the same axes.

    Points on the dashed line are right. The root mean squared error over all genes is written on each panel.

    Args:
        truth: True log2 fold change of each gene, shape ``[genes]``.
        estimates: Estimated ones by name, such as ``"naive"`` and ``"adjusted"``, each of shape ``[genes]``.
        errors: Standard errors of the estimates, by the same names, which are drawn as intervals of 95 %; None draws
            points alone.
        title: What is seen; an empty one tells which estimate has the least error.

    Returns:
        A figure of square panels.

    Raises:
        TypeError: If the values are not numbers.
        ValueError: If there is no estimate, the errors have other names or are negative, or values are not one per
            gene or not finite.

    Example:
        >>> figure = contrasts([1.0, -1.0], {"naive": [2.0, 0.0], "adjusted": [1.1, -1.0]})
        >>> [panel.get_title(loc="left") for panel in figure.axes]
        ['naive, RMSE 1.00', 'adjusted, RMSE 0.07']
    """
    true = as_vector("truth", truth)
    if not estimates:
        message = "estimates must hold at least one, such as 'adjusted', got none"
        raise ValueError(message)
    found = {name: as_vector(f"estimates[{name!r}]", values, true.size) for name, values in estimates.items()}
    if errors is not None and set(errors) != set(found):
        message = f"errors must have the names of the estimates {[*found]}, got {[*errors]}"
        raise ValueError(message)
    reaches = {
        name: _NORMAL_QUANTILE * as_vector(f"errors[{name!r}]", values, true.size)
        for name, values in (errors or {}).items()
    }
    if any((reach < 0).any() for reach in reaches.values()):
        message = "errors must be standard errors of at least 0, got a negative one"
        raise ValueError(message)
    rmse = {name: float(np.sqrt(np.mean((values - true) ** 2))) for name, values in found.items()}
    figure, axes = square_panels(len(found))
    ends = [values + sign * reaches.get(name, 0.0) for name, values in found.items() for sign in (-1, 1)]
    limits = padded([0.0, *true, *np.concatenate(ends)])
    for position, (panel, (name, values)) in enumerate(zip(axes, found.items(), strict=True)):
        panel.axline((0, 0), slope=1, color=INK, linewidth=1.1, linestyle="--", zorder=1)
        if name in reaches:
            panel.vlines(true, values - reaches[name], values + reaches[name], color=SOFT, linewidth=0.9, zorder=2)
        panel.scatter(true, values, s=14, color=colour(position), alpha=0.8, linewidths=0, zorder=3)
        panel.set_xlim(limits)
        panel.set_ylim(limits)
        describe(
            panel,
            x="True log2 fold change",
            y="Estimated log2 fold change",
            title=f"{name}, RMSE {rmse[name]:.2f}",
        )
    best = min(rmse, key=lambda name: rmse[name])
    headline(figure, title or f"Effect of the treatment on each gene: {best} is nearest (RMSE {rmse[best]:.2f})")
    return figure
