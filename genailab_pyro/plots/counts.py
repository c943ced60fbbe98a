"""Statistics of each gene, observed against generated: mean and variance, and the share of zeros.

The figures take statistics per gene, so that no sparse matrix has to be made dense for them.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from genailab_pyro.plots.checks import Array, as_vector
from genailab_pyro.plots.numbers import readable
from genailab_pyro.plots.style import INK, PALETTE, SOFT, describe, headline, key, padded, square_panels

Moments = tuple[npt.ArrayLike, npt.ArrayLike]


def mean_variance(
    observed: Moments, generated: Mapping[str, Moments], *, title: str = "Mean and variance of each gene"
) -> Figure:
    """Draw the variance of each gene's counts against their mean, observed and generated.

    The line is the Poisson law, variance = mean; what lies above it is overdispersed. Genes whose mean or
    variance is zero have no place on logarithmic axes: their number is written above the panel.

    Args:
        observed: Means and variances over cells, in counts and counts squared, each of shape ``[genes]``.
        generated: Name of each model, and the means and variances of counts drawn from it, each of shape
            ``[genes]`` for the same genes. May be empty.
        title: What is seen.

    Returns:
        A figure with a panel for each model, all on the same axes.

    Raises:
        TypeError: If a statistic is not a dense array of numbers.
        ValueError: If the shapes differ, or a statistic is negative or not finite.

    Example:
        >>> observed = ([0.5, 2.0, 8.0], [0.6, 4.0, 40.0])
        >>> figure = mean_variance(observed, {"negative binomial": ([0.5, 2.1, 7.5], [0.6, 4.2, 38.0])})
        >>> figure.axes[0].get_title(loc="left")
        'negative binomial'
    """
    means = as_vector("observed means", observed[0])
    genes = means.size
    real = (_positive("observed means", means), _positive("observed variances", observed[1], genes))
    models = {
        name: (
            _positive(f"generated[{name!r}] means", moments[0], genes),
            _positive(f"generated[{name!r}] variances", moments[1], genes),
        )
        for name, moments in generated.items()
    }
    shown = [pair[:, np.all(pair > 0, axis=0)] for pair in map(np.stack, (real, *models.values()))]
    limits = [_log_limits([pair[axis] for pair in shown]) for axis in (0, 1)]
    figure, axes = square_panels(max(1, len(models)))
    names = list(models) or ["observed"]
    for position, (panel, name) in enumerate(zip(axes, names, strict=True)):
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.scatter(shown[0][0], shown[0][1], s=9, color=SOFT, alpha=0.7, linewidths=0, label="observed")
        hidden = f"{genes - shown[0].shape[1]} observed" if shown[0].shape[1] < genes else ""
        if models:
            drawn = shown[position + 1]
            panel.scatter(drawn[0], drawn[1], s=9, color=PALETTE[0], alpha=0.6, linewidths=0, label="generated")
            missing = genes - drawn.shape[1]
            hidden = ", ".join(filter(None, [hidden, f"{missing} generated" if missing else ""]))
        panel.plot(limits[0], limits[0], color=INK, linewidth=1.1, linestyle="--", label="Poisson: variance = mean")
        if hidden:
            name = f"{name}\nvariance 0, so not drawn:\n{hidden}"
        panel.set_xlim(limits[0])
        panel.set_ylim(limits[1])
        describe(panel, x="Mean over cells (counts)", y="Variance over cells (counts²)", title=name)
    headline(figure, title)
    key(figure, axes[:1])
    return figure


def zero_fraction(
    observed: npt.ArrayLike,
    generated: Mapping[str, npt.ArrayLike],
    *,
    title: str = "Share of cells without a count, gene by gene",
) -> Figure:
    """Draw the share of zeros that a model expects for each gene against the observed one.

    Args:
        observed: Share of cells in which the gene has no count, shape ``[genes]``, in [0, 1].
        generated: Name of each model and the share it expects, shape ``[genes]`` for the same genes.
        title: What is seen.

    Returns:
        A figure with a panel for each model; points above the line are genes for which the model expects too
        many zeros. The mean absolute difference and the mean difference over genes are written above the
        panel.

    Raises:
        TypeError: If a share is not a dense array of numbers.
        ValueError: If there is no model, the shapes differ, or a share is outside [0, 1].

    Example:
        >>> figure = zero_fraction([0.2, 0.9], {"Poisson": [0.1, 0.85]})
        >>> figure.axes[0].get_ylabel()
        'Share of zeros expected'
    """
    if not generated:
        message = "generated must hold at least one model, as {name: shares}; it is empty"
        raise ValueError(message)
    real = _share("observed", observed)
    models = {name: _share(f"generated[{name!r}]", shares, real.size) for name, shares in generated.items()}
    figure, axes = square_panels(len(models))
    limits = padded([0.0, 1.0], 0.02)
    for panel, (name, expected) in zip(axes, models.items(), strict=True):
        panel.plot([0, 1], [0, 1], color=INK, linewidth=1.1, linestyle="--", label="equal shares")
        panel.scatter(real, expected, s=9, color=PALETTE[0], alpha=0.6, linewidths=0, label="a gene")
        difference = expected - real
        absolute, signed = np.mean(np.abs(difference)), np.mean(difference)
        heading = f"{name}\nmean |difference| {absolute:.3f}\nmean difference {signed:+.3f}"
        describe(panel, x="Share of zeros observed", y="Share of zeros expected", title=heading)
        panel.set_xlim(limits)
        panel.set_ylim(limits)
    headline(figure, title)
    key(figure, axes[:1])
    return figure


def _positive(name: str, values: npt.ArrayLike, length: int | None = None) -> Array:
    array = as_vector(name, values, length)
    if np.any(array < 0):
        message = f"{name} must not be negative, the least is {readable(float(array.min()))}"
        raise ValueError(message)
    return array


def _share(name: str, values: npt.ArrayLike, length: int | None = None) -> Array:
    array = as_vector(name, values, length)
    if np.any((array < 0) | (array > 1)):
        message = f"{name} must lie in [0, 1], as shares of cells; it spans {array.min():.3g} to {array.max():.3g}"
        raise ValueError(message)
    return array


def _log_limits(arrays: list[Array]) -> tuple[float, float]:
    values = np.concatenate(arrays)
    if values.size == 0:
        message = "no gene has a mean and a variance above zero; there is nothing to draw on logarithmic axes"
        raise ValueError(message)
    low, high = padded([float(np.log10(values.min())), float(np.log10(values.max()))])
    return 10**low, 10**high
