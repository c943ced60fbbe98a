"""Figures of how a fit went: the bound and its terms over epochs, and several fits side by side."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from genailab_pyro.plots.checks import Array, as_history
from genailab_pyro.plots.numbers import readable
from genailab_pyro.plots.style import INK, MUTED, colour, describe, headline, key, line_style, panels, typeset

_PANELS = (
    ("elbo", "ELBO (higher is better)", "ELBO (nats per cell)"),
    ("reconstruction", "Reconstruction (lower is better)", "\N{MINUS SIGN}E log p(x | z) (nats per cell)"),
    ("kl", "KL of q(z | x) to the prior", "KL (nats per cell)"),
)
_HORIZONTAL = {
    "epoch": "Epoch",
    "step": "Optimiser step",
    "seconds": "Training time (seconds)",
}
_VERTICAL = {
    "validation_elbo": "Validation ELBO (nats per cell)",
    "held_out_elbo": "Held-out ELBO (nats per cell)",
    "held_out_bound": "Held-out bound (nats per cell)",
    "train_elbo": "Training ELBO (nats per cell)",
}


def training_curves(history: pd.DataFrame) -> Figure:
    """Draw the ELBO, the reconstruction and the KL of a fit over its epochs.

    The vertical axes are fitted to the curves after the first tenth of the epochs where the start would
    flatten the rest; what lies outside is said in the panel.

    Args:
        history: One row per epoch with the columns ``epoch``, ``train_elbo``, ``train_reconstruction``,
            ``train_kl``, ``validation_elbo``, ``validation_reconstruction`` and ``validation_kl``, in nats
            per cell. The reconstruction is a cost, -E log p(x | z): ELBO = -(reconstruction + KL). Validation
            may be NaN where it was not measured. The column ``beta``, the weight of the KL, is optional: a
            dotted line marks the epoch where a changing weight arrives at its last value.

    Returns:
        A figure of three panels.

    Raises:
        TypeError: If ``history`` is no DataFrame.
        ValueError: If it is empty, a column is missing, or the epochs do not increase.

    Example:
        >>> import pandas as pd
        >>> history = pd.DataFrame({"epoch": [1, 2, 3]})
        >>> for part in ("train", "validation"):
        ...     history[f"{part}_elbo"] = [-900.0, -850.0, -830.0]
        ...     history[f"{part}_reconstruction"] = [895.0, 840.0, 818.0]
        ...     history[f"{part}_kl"] = [5.0, 10.0, 12.0]
        >>> [axes.get_xlabel() for axes in training_curves(history).axes]
        ['Epoch', 'Epoch', 'Epoch']
    """
    needed = [f"{part}_{term}" for term, _, _ in _PANELS for part in ("train", "validation")]
    frame = as_history("history", history, ["epoch", *needed])
    figure, axes = panels(3, columns=3, panel_height=3.15)
    arrival = _arrival_of_beta(history)
    for panel, (term, title, label) in zip(axes, _PANELS, strict=True):
        curves = []
        for position, (part, name) in enumerate((("train", "training cells"), ("validation", "validation cells"))):
            curve = _finite(frame, "epoch", f"{part}_{term}")
            if curve[0].size:
                _draw(panel, curve, colour(position), name, dashed=position == 1)
                curves.append(curve)
        if arrival is not None:
            epoch, weight = arrival
            panel.axvline(epoch, color=MUTED, linewidth=1, linestyle=":", label=f"KL weight reaches {weight:g}")
        describe(panel, x="Epoch", y=label, title=title)
        _focus(panel, curves)
        panel.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    headline(figure, _best(frame, axes[0]))
    key(figure, axes)
    return figure


def compare_curves(
    histories: Mapping[str, pd.DataFrame | Sequence[pd.DataFrame]],
    *,
    y: str = "validation_elbo",
    x: str = "epoch",
) -> Figure:
    """Draw one curve per run, so that several runs are compared on the same held-out cells.

    Args:
        histories: Name of each run and its history; a sequence of histories is the same run under several
            seeds, drawn as thin lines of one colour. Missing values of ``y`` are skipped.
        y: Column to draw, in nats per cell: ``"validation_elbo"``, ``"held_out_elbo"``, ``"held_out_bound"``,
            ...
        x: Column of the horizontal axis: ``"epoch"``, ``"step"`` or ``"seconds"``.

    Returns:
        A figure of one panel; its legend lists the runs from the highest last value (the mean over seeds)
        down.

    Raises:
        TypeError: If a history is no DataFrame.
        ValueError: If there is no run, a run is empty or lacks a column, or has no finite value of ``y``.

    Example:
        >>> import pandas as pd
        >>> run = pd.DataFrame({"epoch": [1, 2, 3], "validation_elbo": [-900.0, -850.0, -830.0]})
        >>> figure = compare_curves({"pathwise": run, "score": run - [0, 40]})
        >>> figure.axes[0].get_ylabel()
        'Validation ELBO (nats per cell)'
    """
    if not histories:
        message = "histories must hold at least one run, as {name: history}; it is empty"
        raise ValueError(message)
    runs = {name: _curves_of(name, value, x, y) for name, value in histories.items()}
    last = {name: float(np.mean([values[-1] for _, values in curves])) for name, curves in runs.items()}
    figure, (panel,) = panels(1, columns=1, panel_height=3.9)
    ranked = sorted(runs, key=lambda name: -last[name])
    for name in ranked:
        position = list(runs).index(name)
        for number, (places, values) in enumerate(runs[name]):
            panel.plot(
                places,
                values,
                color=colour(position),
                linestyle=line_style(position),
                linewidth=1.8 if len(runs[name]) == 1 else 1.0,
                marker="o" if places.size < 3 else None,
                markersize=4,
                label=typeset(f"{name}: {readable(last[name], 4)}") if number == 0 else None,
            )
    label = _VERTICAL.get(y, y.replace("_", " ") + " (nats per cell)")
    describe(panel, x=_HORIZONTAL.get(x, x), y=label)
    _focus(panel, [curve for curves in runs.values() for curve in curves])
    panel.legend(
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        fontsize=8.5,
        labelcolor=INK,
        frameon=False,
        title="Run: last value" if all(len(curves) == 1 for curves in runs.values()) else "Run: last value, mean",
        title_fontsize=8.5,
        alignment="left",
    )
    headline(figure, f"{label.split(' (')[0]}: {ranked[0]} ends highest" if len(runs) > 1 else label.split(" (")[0])
    return figure


def _curves_of(name: str, value: pd.DataFrame | Sequence[pd.DataFrame], x: str, y: str) -> list[tuple[Array, Array]]:
    histories = [value] if isinstance(value, pd.DataFrame) else list(value)
    curves = [_finite(as_history(f"histories[{name!r}]", history, [x, y]), x, y) for history in histories]
    if not curves or any(places.size == 0 for places, _ in curves):
        message = f"histories[{name!r}] has no finite value of {y!r}; was the run fitted with validation cells?"
        raise ValueError(message)
    return curves


def _finite(frame: pd.DataFrame, x: str, y: str) -> tuple[Array, Array]:
    kept = frame[np.isfinite(frame[y])]
    return kept[x].to_numpy(), kept[y].to_numpy()


def _draw(panel: Axes, curve: tuple[Array, Array], shade: str, name: str, *, dashed: bool) -> None:
    marker = "o" if curve[0].size < 3 else None
    style = (0, (4, 1)) if dashed else "-"
    panel.plot(*curve, color=shade, linewidth=1.7, linestyle=style, marker=marker, markersize=4, label=name)


def _arrival_of_beta(history: pd.DataFrame) -> tuple[float, float] | None:
    if "beta" not in history.columns:
        return None
    beta = history["beta"].to_numpy(dtype=np.float64)
    if not np.all(np.isfinite(beta)) or np.all(beta == beta[-1]):
        return None
    first = int(np.nonzero(beta != beta[-1])[0][-1]) + 1
    if first == len(beta) - 1:
        return None
    return float(history["epoch"].iloc[first]), float(beta[-1])


def _best(frame: pd.DataFrame, panel: Axes) -> str:
    for part, name in (("validation", "Validation"), ("train", "Training")):
        epochs, values = _finite(frame, "epoch", f"{part}_elbo")
        if epochs.size:
            best = int(np.argmax(values))
            panel.plot(
                epochs[best],
                values[best],
                "o",
                color=INK,
                markersize=5,
                zorder=5,
                label=f"highest {name.lower()} ELBO",
            )
            height = readable(values[best], 4)
            return f"{name} ELBO is highest at epoch {epochs[best]:.0f}: {height} nats per cell"
    message = "history has no finite ELBO, neither of training nor of validation cells"
    raise ValueError(message)


def _focus(panel: Axes, curves: Sequence[tuple[Array, Array]]) -> None:
    """Fit the vertical axis to what follows the first tenth, if the start would flatten it, and say so."""
    if not curves:
        return
    start = min(places[0] for places, _ in curves)
    end = max(places[-1] for places, _ in curves)
    late = np.concatenate([values[places >= start + 0.1 * (end - start)] for places, values in curves])
    every = np.concatenate([values for _, values in curves])
    spread = float(np.ptp(late))
    if spread == 0 or np.ptp(every) < 3 * spread:
        return
    room = 0.15 * spread
    low, high = float(late.min()) - room, float(late.max()) + room
    if every.min() < low:
        _say_outside(panel, float(every.min()), 0.04, "↓")
    else:
        low = float(every.min()) - room
    if every.max() > high:
        _say_outside(panel, float(every.max()), 0.96, "↑")
    else:
        high = float(every.max()) + room
    panel.set_ylim(low, high)


def _say_outside(panel: Axes, value: float, height: float, arrow: str) -> None:
    panel.text(
        0.03,
        height,
        typeset(f"{arrow} early values to {readable(value, 4)}"),
        transform=panel.transAxes,
        fontsize=8,
        color=MUTED,
        va="center",
        bbox={"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 1},
    )
