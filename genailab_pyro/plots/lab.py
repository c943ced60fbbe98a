"""The figures of the ELBO lab: gradient draws, the surface of a bound, posterior collapse, and shapes of counts."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from genailab_pyro.plots.checks import as_array, as_matrix, as_vector
from genailab_pyro.plots.style import INK, PALETTE, SOFT, colour, describe, headline, key, line_style, panels

_SHOWN = (0.5, 99.5)
_LEVELS = 24
_LEAST = -30.0


def gradient_histogram(draws: npt.ArrayLike, mean: float, *, title: str) -> Figure:
    """Draw the distribution of the draws of one coordinate of a gradient.

    The axis holds the central 99 % of the draws; how many lie beyond it is written above the panel.

    Args:
        draws: Draws of the gradient, in nats per unit, shape ``[num_draws]``.
        mean: The exact gradient.
        title: What is seen.

    Returns:
        A figure of one panel.

    Raises:
        TypeError: If the draws are not numbers.
        ValueError: If a draw is not finite.

    Example:
        >>> import numpy as np
        >>> gradient_histogram(np.random.default_rng(0).normal(size=100), 0.0, title="pathwise").get_suptitle()
        'pathwise'
    """
    values = as_vector("draws", draws)
    low, high = np.percentile(values, _SHOWN)
    reach = max(high - low, 1e-3 * max(abs(mean), 1.0))
    low, high = min(low, mean) - 0.05 * reach, max(high, mean) + 0.05 * reach
    figure, (panel,) = panels(1, columns=1, panel_height=2.7)
    panel.hist(values, bins=80, range=(low, high), color=PALETTE[0], alpha=0.75)
    panel.axvline(mean, color=INK, linewidth=1.3, linestyle="--", label="exact gradient")
    panel.axvline(values.mean(), color=PALETTE[1], linewidth=1.3, label="mean of the draws")
    panel.set_xlim(low, high)
    beyond = int(((values < low) | (values > high)).sum())
    note = f"{beyond:,} of {values.size:,} draws lie beyond the axis" if beyond else ""
    describe(panel, x="Gradient in the location (nats per unit of z)", y="Draws", title=note)
    key(figure, [panel])
    headline(figure, title)
    return figure


def bound_path(
    locs: npt.ArrayLike, log_scales: npt.ArrayLike, surface: npt.ArrayLike, path: npt.ArrayLike, *, title: str
) -> Figure:
    """Draw a bound over location and log scale of a guide, and the way that gradient steps took on it.

    Args:
        locs: Locations, in rising order, shape ``[columns]``.
        log_scales: Log scales, in rising order, shape ``[rows]``.
        surface: The bound in nats, shape ``[rows, columns]``; what is 30 nats or more below the highest is one colour.
        path: Location and log scale before each step and after the last, shape ``[steps, 2]``.
        title: What is seen.

    Returns:
        A figure of one panel and its colour bar.

    Raises:
        TypeError: If the values are not numbers.
        ValueError: If the shapes differ, or a value is not finite.

    Example:
        >>> figure = bound_path([0.0, 1.0], [-1.0, 0.0], [[-1.0, -2.0], [-1.5, -2.5]], [[0.0, 0.0]], title="pathwise")
        >>> figure.axes[0].get_xlabel()
        'Location of the guide'
    """
    x, y = as_vector("locs", locs), as_vector("log_scales", log_scales)
    heights = as_array("surface", surface)
    if heights.shape != (y.size, x.size):
        message = f"surface must have shape [{y.size}, {x.size}], a row per log scale, got {list(heights.shape)}"
        raise ValueError(message)
    steps = as_matrix("path", path, 2, "steps")
    figure, (panel,) = panels(1, columns=1, panel_height=3.6)
    shown = np.maximum(heights - heights.max(), _LEAST)
    # Finer levels near the top, where the path ends.
    levels = -(np.linspace(np.sqrt(max(-shown.min(), 1e-6)), 0, _LEVELS) ** 2)
    filled = panel.contourf(x, y, shown, levels=levels, cmap="viridis", extend="min")
    bar = figure.colorbar(filled, ax=panel, format="%.2g")
    bar.set_label("Bound less its highest value here (nats)", fontsize=9, color=INK)
    panel.plot(steps[:, 0], steps[:, 1], ".-", color="white", linewidth=1.2, markersize=4, label="steps")
    panel.plot(*steps[0], "o", color=PALETTE[1], markersize=8, markeredgecolor="white", label="start")
    panel.plot(*steps[-1], "D", color=PALETTE[3], markersize=8, markeredgecolor="white", label="end")
    panel.set_xlim(x[0], x[-1])
    panel.set_ylim(y[0], y[-1])
    panel.grid(visible=False)
    describe(panel, x="Location of the guide", y="Log scale of the guide")
    panel.legend(loc="upper right", fontsize=8.5, facecolor=SOFT, labelcolor="white", edgecolor="none")
    headline(figure, title)
    return figure


def collapse_curves(betas: npt.ArrayLike, kl: npt.ArrayLike, beta: float, *, title: str) -> Figure:
    """Draw the KL of each latent against the weight beta of the KL.

    Args:
        betas: Weights above zero, in rising order, shape ``[betas]``.
        kl: Mean KL of each latent in nats, shape ``[betas, latents]``.
        beta: The weight that is looked at: a dotted line.
        title: What is seen.

    Returns:
        A figure of one panel.

    Raises:
        TypeError: If the values are not numbers.
        ValueError: If the shapes differ.

    Example:
        >>> collapse_curves([1.0, 2.0], [[1.0, 0.3], [0.7, 0.0]], 1.0, title="linear").axes[0].get_xscale()
        'log'
    """
    x, curves = as_vector("betas", betas), as_array("kl", kl)
    if curves.ndim != 2 or len(curves) != x.size:
        message = f"kl must have shape [{x.size}, latents], a row per beta, got {list(curves.shape)}"
        raise ValueError(message)
    figure, (panel,) = panels(1, columns=1, panel_height=2.7)
    for latent, curve in enumerate(curves.T):
        panel.plot(x, curve, color=colour(latent), linestyle=line_style(latent), label=f"latent {latent + 1}")
    panel.axvline(beta, color=INK, linestyle=":", linewidth=1.3)
    panel.set_xscale("log")
    describe(panel, x="Weight beta of the KL", y="Mean KL to the prior (nats)")
    key(figure, [panel], columns=6)
    headline(figure, title)
    return figure


def kl_over_training(epochs: npt.ArrayLike, kl: npt.ArrayLike, beta: npt.ArrayLike, *, title: str) -> Figure:
    """Draw the KL and its weight over the epochs of a training run.

    Args:
        epochs: Epochs, in rising order, shape ``[epochs]``.
        kl: KL summed over latents in nats per cell, shape ``[epochs]``.
        beta: Weight of the KL, shape ``[epochs]``.
        title: What is seen.

    Returns:
        A figure of two panels.

    Raises:
        TypeError: If the values are not numbers.
        ValueError: If the lengths differ.

    Example:
        >>> len(kl_over_training([1, 2], [0.1, 0.4], [0.0, 1.0], title="fit").axes)
        2
    """
    x = as_vector("epochs", epochs)
    figure, axes = panels(2, columns=2, panel_height=2.4)
    curves = (("KL (nats per cell)", "kl", kl), ("Weight beta of the KL", "beta", beta))
    for position, (panel, (label, name, values)) in enumerate(zip(axes, curves, strict=True)):
        panel.plot(x, as_vector(name, values, x.size), color=colour(position))
        panel.set_ylim(bottom=0)
        describe(panel, x="Epoch", y=label)
    headline(figure, title)
    return figure


def count_bars(observed: npt.ArrayLike, expected: Mapping[str, npt.ArrayLike], *, gene: str, title: str = "") -> Figure:
    """Draw the shares of cells with each count as bars, and what distributions expect as points.

    Args:
        observed: Share of the cells with 0, 1, 2, ... counts, shape ``[counts]``.
        expected: Name of each distribution and its probabilities of the same counts, shape ``[counts]``.
        gene: Name of the gene.
        title: What is seen; an empty one names the gene.

    Returns:
        A figure of two panels: all counts, and the same on a logarithmic axis, where the tail can be seen.

    Raises:
        TypeError: If the values are not numbers.
        ValueError: If the lengths differ.

    Example:
        >>> figure = count_bars([0.5, 0.3, 0.2], {"Poisson": [0.45, 0.36, 0.14]}, gene="CD74")
        >>> figure.axes[1].get_yscale()
        'log'
    """
    heights = as_vector("observed", observed)
    curves = {name: as_vector(f"expected[{name!r}]", values, heights.size) for name, values in expected.items()}
    counts = np.arange(heights.size)
    figure, axes = panels(2, columns=2, panel_height=2.8)
    for panel in axes:
        panel.bar(counts, heights, color=SOFT, alpha=0.7, width=0.85, label="observed")
        for position, (name, values) in enumerate(curves.items()):
            panel.plot(counts, values, "o-", color=colour(position), markersize=3.5, linewidth=1, label=name)
        describe(panel, x=f"Counts of {gene} in a cell", y="Share of cells")
    axes[1].set_yscale("log")
    least = heights[heights > 0].min(initial=1.0)
    axes[1].set_ylim(bottom=least / 5)
    key(figure, axes[:1])
    headline(figure, title or f"Counts of {gene}")
    return figure
