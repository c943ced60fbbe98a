"""What mixing the batches costs: batch excess and label purity over the weight of an adversary."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from genailab_pyro.plots.checks import Array, as_array, as_vector
from genailab_pyro.plots.style import INK, PALETTE, SOFT, describe, headline, key, panels


def mixing_against_purity(
    weights: Sequence[float], batch_excess: npt.ArrayLike, purity: npt.ArrayLike, *, chance: float | None = None
) -> Figure:
    """Draw how batches mix and labels stay over the weights of an adversary, a point per run and a line of means.

    The weights are evenly spaced in their order. A dashed line goes on from the first weight, which is zero where the
    runs without an adversary are among them.

    Args:
        weights: Rising weights, at least two of them.
        batch_excess: Share of neighbours from a cell's own batch above chance, within labels: shape ``[weights]``, or
            ``[runs, weights]`` for several seeds.
        purity: Share of neighbours with a cell's label, of the same shape.
        chance: The purity of random neighbours, written beside the axis; None to leave it out.

    Returns:
        A figure of two panels.

    Raises:
        TypeError: If the values are not numbers.
        ValueError: If shapes differ, values are not finite, or the weights do not rise.

    Example:
        >>> figure = mixing_against_purity([0, 10, 100], [0.09, 0.04, 0.05], [0.91, 0.90, 0.85])
        >>> figure.get_suptitle()
        'At weight 10: batch excess 0.090 → 0.040, label purity 0.910 → 0.900'
    """
    strengths = as_vector("weights", weights)
    if len(strengths) < 2 or np.any(np.diff(strengths) <= 0):
        message = f"weights must be at least two and rise, got {[float(value) for value in strengths]}"
        raise ValueError(message)
    excess = _runs("batch_excess", batch_excess, len(strengths))
    kept = _runs("purity", purity, len(strengths))
    if excess.shape != kept.shape:
        message = f"batch_excess and purity must have one shape, got {list(excess.shape)} and {list(kept.shape)}"
        raise ValueError(message)
    figure, axes = panels(2, columns=2, panel_height=3.1)
    names = [f"{value:g}" for value in strengths]
    for panel, values in zip(axes, (excess, kept), strict=True):
        _draw(panel, values, names)
    axes[0].axhline(0, color=SOFT, linewidth=1)
    beside = "" if chance is None else f" (chance: {chance:.2f})"
    describe(axes[0], x="Weight of the adversary", y="Batch excess within label", title="Mixing (0 is perfect)")
    describe(axes[1], x="Weight of the adversary", y=f"Label purity{beside}", title="Labels (1 is perfect)")
    key(figure, axes[:1])
    before, after = excess.mean(0), kept.mean(0)
    best = int(before.argmin())
    headline(
        figure,
        f"At weight {names[best]}: batch excess {before[0]:.3f} → {before[best]:.3f}, label purity {after[0]:.3f} → "
        f"{after[best]:.3f}",
    )
    return figure


def _runs(name: str, values: npt.ArrayLike, weights: int) -> Array:
    array = np.atleast_2d(as_array(name, values))
    if array.ndim != 2 or not len(array) or array.shape[1] != weights or not np.isfinite(array).all():
        message = f"{name} must be finite, of shape [{weights}] or [runs, {weights}], got shape {list(array.shape)}"
        raise ValueError(message)
    return array


def _draw(panel: Axes, values: Array, names: Sequence[str]) -> None:
    places, means = np.arange(values.shape[1]), values.mean(0)
    for run in values:
        panel.plot(places, run, "o", color=INK, alpha=0.45, markersize=4, linewidth=0, label="one run")
    panel.plot(places, means, color=PALETTE[0], linewidth=2, label="mean over runs")
    panel.axhline(means[0], color=INK, linewidth=1.1, linestyle="--", label=f"at weight {names[0]}")
    panel.set_xticks(places, names)
    panel.margins(y=0.15)
