"""Estimators side by side: variance against cost, the shape of their draws, and their race to a bound."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator
from matplotlib.transforms import Bbox

from genailab_pyro.plots import style
from genailab_pyro.plots.checks import Array, as_matrix, as_vector
from genailab_pyro.plots.numbers import readable
from genailab_pyro.plots.style import INK, MUTED, SOFT, colour, describe, headline, panels, typeset

_STANDARD_ERRORS = 5
_WIDEST = 4.5
_MARKERS = "osD^vP"
_COURSE = ("steps", "seconds", "mean", "low", "high")
_DIRECTIONS = ((1, 0), (-1, 0), (0.8, 0.8), (0.8, -0.8), (-0.8, 0.8), (-0.8, -0.8), (0, 1), (0, -1))
_DISTANCES = (7, 15, 26, 38, 52, 68, 86, 110, 140)
_DASHES = (0, (5, 3))


def variance_against_cost(
    names: Sequence[str],
    variances: npt.ArrayLike,
    seconds: npt.ArrayLike,
    *,
    intervals: npt.ArrayLike | None = None,
    ylabel: str = "Variance of the gradient, summed over parameters (nats²)",
    title: str = "",
) -> Figure:
    """Draw the gradient variance of each estimator against the time that one gradient takes.

    Both axes are logarithmic. A dashed line joins equal variance times seconds, which is the variance left after
    one second of averaging: of two estimators, the one on the line further down and left is better at equal wall
    time. The axis on the right tells each line as a multiple of the lowest. An estimator without variance has no
    place on the axis, and is named above it.

    Args:
        names: Names of the estimators.
        variances: Variance of the gradient of each, shape ``[estimators]``, not negative.
        seconds: Time that one gradient takes, in seconds, shape ``[estimators]``, positive.
        intervals: Lower and upper end of each variance, shape ``[estimators, 2]``: vertical bars; None draws
            none. A lower end of zero is drawn down to the end of the axis.
        ylabel: What is measured, with its unit.
        title: What is seen; an empty one names the estimator of the lowest variance times seconds.

    Returns:
        A figure of one panel.

    Raises:
        TypeError: If the values are not numbers.
        ValueError: If the lengths differ, a time is not positive, or an interval does not hold its variance.

    Example:
        >>> figure = variance_against_cost(["pathwise", "score"], [0.03, 310.0], [2e-3, 1e-3])
        >>> figure.get_suptitle()
        'pathwise has the lowest variance times seconds'
    """
    values = as_vector("variances", variances, len(names) or None)
    times = as_vector("seconds", seconds, values.size)
    ends = _ends(values, intervals)
    if np.any(times <= 0):
        message = f"seconds must be positive, got {times.min():g}; time several gradients and divide by their number"
        raise ValueError(message)
    figure, (panel,) = panels(1, columns=1, panel_height=4.7)
    panel.set(xscale="log", yscale="log")
    describe(panel, x="Time of one gradient (seconds)", y=ylabel)
    shown = values > 0
    still = [name for name, value in zip(names, values, strict=True) if value == 0]
    if still:
        _note(panel, f"Not drawn, since without variance: {', '.join(still)}")
    if not shown.any():
        headline(figure, title or "No estimator has any variance")
        return figure
    drawn = [name for name, value in zip(names, values, strict=True) if value > 0]
    places, products = np.stack([times, values], axis=1)[shown], (values * times)[shown]
    best = int(np.argmin(products))
    headline(figure, title or f"{drawn[best]} has the lowest variance times seconds")
    _scale(panel, places, ends[shown], products[best])
    _guides(panel, products[best], products.max())
    bars = np.maximum(ends[shown], panel.get_ylim()[0])
    for row, (place, bar) in enumerate(zip(places, bars, strict=True)):
        shade = colour(int(row == best))
        panel.plot(*place, "o", color=shade, markersize=8 if row == best else 6, zorder=3)
        if intervals is not None:
            panel.vlines(place[0], *bar, color=shade, linewidth=1.6, zorder=2.5)
    _place_labels(figure, panel, drawn, places, bars, best)
    return figure


def gradient_histograms(
    draws: Mapping[str, npt.ArrayLike],
    *,
    reference: float | None = None,
    xlabel: str = "Projection of the gradient (nats)",
    title: str = "",
) -> Figure:
    """Draw the distribution of one projection of the gradient, a panel per estimator with an axis of its own.

    A band marks the mean of the draws ± 5 standard errors: an unbiased estimator holds the reference in it, and
    the band has another colour where it does not. An axis ends at 4.5 standard deviations from the mean, or at the
    last draw; how many draws lie outside is said in the panel.

    Args:
        draws: Name of each estimator and its independent draws at the same parameters, shape ``[num_draws]``.
        reference: The exact value, or a precise estimate of it: a dotted line in every panel.
        xlabel: What is projected, with its unit.
        title: What is seen; an empty one tells how many bands hold the reference.

    Returns:
        A figure of one panel per estimator, three in a row.

    Raises:
        TypeError: If the draws are not numbers.
        ValueError: If a shape differs, a value is not finite, or there are fewer than two draws of an estimator.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> draws = {"pathwise": rng.normal(size=500), "score": 100 * rng.normal(size=500)}
        >>> gradient_histograms(draws, reference=0.0).get_suptitle()
        'The mean of 2 of 2 estimators is within 5 standard errors of the reference'
    """
    samples = {name: as_vector(f"draws[{name!r}]", values) for name, values in draws.items()}
    fewest = min((sample.size for sample in samples.values()), default=0)
    if fewest < 2:
        message = "draws must hold at least one estimator, as {name: draws}, with two draws or more each; "
        message += f"got {len(samples)} estimators, and {fewest} draws of one; draw the gradient again"
        raise ValueError(message)
    if reference is not None and not np.isfinite(reference):
        message = f"reference must be finite, got {reference}; pass None where there is none"
        raise ValueError(message)
    figure, axes = panels(len(samples), columns=3, panel_height=1.75 if len(samples) > 3 else 2.3)
    agreeing = 0
    for position, (panel, (name, sample)) in enumerate(zip(axes, samples.items(), strict=True)):
        agreeing += _histogram(panel, name, sample, reference)
        panel.set_xlabel(typeset(xlabel) if position + 3 >= len(axes) else "", fontsize=8.5, color=INK)
        panel.set_ylabel("Draws" if position % 3 == 0 else "", fontsize=8.5, color=INK)
    style.key(figure, axes, columns=3)
    told = f"The mean of {agreeing} of {len(samples)} estimators is within {_STANDARD_ERRORS} standard errors"
    headline(figure, title or (f"{told} of the reference" if reference is not None else "Draws of the gradient"))
    return figure


def signal_to_noise(
    particles: npt.ArrayLike,
    ratios: Mapping[str, npt.ArrayLike],
    *,
    title: str = "Signal-to-noise ratio of the gradient by number of particles",
) -> Figure:
    """Draw how the signal-to-noise ratio of each estimator changes with the number of particles.

    The ratio of a gradient g is ``|E g| / sd(g)``, without unit. Both axes are logarithmic; dashed lines rise as the
    mean of K independent draws would, with the square root of K: a flatter estimator makes less of its particles.

    Args:
        particles: Numbers of particles K, shape ``[k]``, positive and increasing.
        ratios: Name of each estimator and its ratio at each K, shape ``[k]``, positive; NaN where not offered.
        title: What is seen.

    Returns:
        A figure of one panel; its legend lists the estimators from the highest last ratio down.

    Raises:
        TypeError: If the values are not numbers.
        ValueError: If a shape differs, the particles do not increase, a ratio is not positive, or none is given.

    References:
        Rainforth, T., Kosiorek, A., Le, T. A., Maddison, C., Igl, M., Wood, F., Teh, Y. W. (2018). Tighter
        variational bounds are not necessarily better. ICML. doi:10.48550/arXiv.1802.04537

    Example:
        >>> figure = signal_to_noise([1, 4, 16], {"iwae": [1.0, 0.5, 0.25], "dreg": [1.0, 2.0, float("nan")]})
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()][:2]
        ['dreg', 'iwae']
    """
    counts = as_vector("particles", particles)
    if np.any(counts <= 0) or np.any(np.diff(counts) <= 0):
        message = f"particles must be positive and increase, got {counts.tolist()}; sort them, each once"
        raise ValueError(message)
    if not ratios:
        message = "ratios must hold at least one estimator, as {name: ratios}; it is empty"
        raise ValueError(message)
    series = {}
    for name, values in ratios.items():
        heights = as_vector(f"ratios[{name!r}]", values, counts.size, finite=False)
        offered = ~np.isnan(heights)
        if not offered.any() or np.any(heights[offered] <= 0) or np.any(np.isinf(heights)):
            message = f"ratios[{name!r}] must hold a ratio, each positive and finite, got {heights.tolist()}; "
            message += "pass NaN where there is none, and leave out an estimator that has none at all"
            raise ValueError(message)
        series[name] = (counts[offered], heights[offered])
    figure, (panel,) = panels(1, columns=1, panel_height=4.0)
    panel.set(xscale="log", yscale="log")
    for name in sorted(series, key=lambda name: -series[name][1][-1]):
        position = list(series).index(name)
        look = {"color": colour(position), "linestyle": style.line_style(position), "linewidth": 1.7}
        panel.plot(*series[name], **look, marker=_MARKERS[position % 6], markersize=5, label=typeset(name))
    _square_root_guides(panel, counts)
    _plain_ticks(panel.yaxis, *panel.get_ylim())
    panel.set_xticks(counts, [f"{count:g}" for count in counts])
    panel.minorticks_off()
    describe(panel, x="Particles K", y="Signal-to-noise ratio |E g| / sd(g)")
    panel.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8.5, labelcolor=INK, frameon=False)
    headline(figure, title)
    return figure


def race_curves(
    curves: Mapping[str, Mapping[str, npt.ArrayLike]],
    *,
    ylabel: str = "Held-out bound (nats per cell)",
    title: str = "",
) -> Figure:
    """Draw what each estimator reaches, against optimiser steps and against seconds.

    A line is the mean over seeds, and its band the spread over them. Where a bad start would flatten the rest,
    the vertical axis is cut below, and the estimators that go on outside are named above it. Seconds are on a
    logarithmic axis where the slowest estimator takes more than ten times as long as the fastest.

    Args:
        curves: Name of each estimator and its course, with the keys ``"steps"``, ``"seconds"`` (since the start),
            ``"mean"``, ``"low"`` and ``"high"`` (over seeds, in the unit of ``ylabel``), each of shape ``[t]``.
        ylabel: What is reached, higher being better, with its unit.
        title: What is seen; an empty one names the estimator with the highest last mean.

    Returns:
        A figure of two panels with one vertical axis.

    Raises:
        TypeError: If the values are not numbers.
        ValueError: If a key is missing, the lengths differ, a course goes back, or a mean is outside its band.

    Example:
        >>> course = {"steps": [0, 100], "seconds": [0.0, 2.0], "mean": [-900.0, -850.0]}
        >>> course |= {"low": [-910.0, -852.0], "high": [-890.0, -848.0]}
        >>> race_curves({"pathwise": course}).get_suptitle()
        'Held-out bound: pathwise ends highest'
    """
    if not curves:
        message = "curves must hold at least one estimator, as {name: course}; it is empty"
        raise ValueError(message)
    courses = {name: _course(name, course) for name, course in curves.items()}
    figure, axes = panels(2, columns=2, panel_height=3.5)
    totals = [course["seconds"][-1] for course in courses.values()]
    wide = max(totals) > 10 * min(totals) > 0
    low, high = _readable_limits(courses)
    for panel, along in zip(axes, ("steps", "seconds"), strict=True):
        for position, (name, course) in enumerate(courses.items()):
            kept = course[along] > 0 if wide and along == "seconds" else course[along] >= course[along][0]
            places, mean, least, most = (course[part][kept] for part in (along, "mean", "low", "high"))
            look = {"color": colour(position), "linestyle": style.line_style(position), "linewidth": 1.7}
            panel.fill_between(places, least, most, color=colour(position), alpha=0.16, linewidth=0)
            panel.plot(places, mean, **look, marker="o" if places.size < 3 else None, markersize=4, label=name)
        panel.set_ylim(low, high)
    describe(axes[0], x="Optimiser steps", y=ylabel)
    if wide:
        axes[1].set_xscale("log")
        _plain_ticks(axes[1].xaxis, *axes[1].get_xlim())
        axes[1].minorticks_off()
    describe(axes[1], x="Training time (seconds)", y="")
    axes[1].tick_params(labelleft=False)
    _note(axes[0], _below(courses, low))
    style.key(figure, axes[:1], columns=4)
    best = max(courses, key=lambda name: courses[name]["mean"][-1])
    headline(figure, title or f"{ylabel.split(' (')[0]}: {best} ends highest")
    return figure


def _note(panel: Axes, text: str) -> None:
    """Write what is not drawn above the first panel, where it may run over its neighbours."""
    if text:
        lines = textwrap.wrap(typeset(text), 90, break_on_hyphens=False)
        panel.set_title("\n".join(lines), fontsize=8.5, color=MUTED, loc="left")


def _ends(values: Array, intervals: npt.ArrayLike | None) -> Array:
    pairs = np.stack([values, values], axis=1)
    ends = pairs if intervals is None else as_matrix("intervals", intervals, 2, "estimators")
    if len(ends) != len(values):
        message = f"intervals must have shape [{len(values)}, 2], one row per variance, got {list(ends.shape)}"
        raise ValueError(message)
    wrong = (ends[:, 0] < 0) | (ends[:, 0] > values) | (ends[:, 1] < values)
    if wrong.any():
        message = "variances must not be negative, and each must lie within its interval [lower, upper]; "
        message += f"got {values[wrong][0]:g} in {ends[wrong][0].tolist()}; pass ends, not standard errors"
        raise ValueError(message)
    return ends


def _scale(panel: Axes, places: Array, ends: Array, lowest: float) -> None:
    """Set limits that hold every point and bar, and the line of the lowest product up to the right edge."""
    first, last = places[:, 0].min(), places[:, 0].max()
    room = max(1.6, (last / first) ** 0.35)
    bottom, top = min(ends[ends > 0].min(), places[:, 1].min(), lowest / (last * room)), ends.max()
    margin = max(1.4, (top / bottom) ** 0.05)
    panel.set(xlim=(first / room, last * room), ylim=(bottom / margin, top * margin))
    _plain_ticks(panel.xaxis, *panel.get_xlim())
    _plain_ticks(panel.yaxis, *panel.get_ylim())
    panel.minorticks_off()


def _plain_ticks(axis: Axis, low: float, high: float) -> None:
    if high / low < 100:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low > 8 else (1, 1.5, 2, 3, 4, 6, 8)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _guides(panel: Axes, lowest: float, highest: float) -> None:
    """Draw lines of equal variance times seconds, and tell each on the right as a multiple of the lowest."""
    edges, spread = np.array(panel.get_xlim()), highest / lowest
    step = 10.0 ** np.ceil(np.log10(spread) / 6) if spread > 10 else 2.0
    multiples = [step**number for number in range(1 + int(np.log(spread) / np.log(step)))]
    for multiple in multiples:
        shade = colour(1) if multiple == 1 else SOFT
        panel.plot(edges, multiple * lowest / edges, color=shade, linewidth=1, linestyle=_DASHES, zorder=1)
    scale = edges[1] / lowest
    margin = panel.secondary_yaxis("right", functions=(lambda y: np.multiply(y, scale), lambda y: np.divide(y, scale)))
    margin.set_yticks(multiples, ["lowest", *(f"{multiple:,.0f} times" for multiple in multiples[1:])])
    margin.minorticks_off()
    margin.spines["right"].set_visible(False)
    margin.tick_params(labelsize=8.5, colors=MUTED, width=0.8, length=3)
    told = "Dashed: equal variance times seconds, against the lowest\n(further down and left is better)"
    margin.set_ylabel(told, fontsize=8.5, color=MUTED)


def _place_labels(figure: Figure, panel: Axes, names: Sequence[str], places: Array, bars: Array, best: int) -> None:
    """Write each name at the first free place near its point; the order of points and places is fixed."""
    figure.draw_without_rendering()
    unit = figure.dpi / 72
    points = panel.transData.transform(places)
    taken = [Bbox.from_extents(x - 5 * unit, y - 5 * unit, x + 5 * unit, y + 5 * unit) for x, y in points]
    for x, *ends in zip(places[:, 0], *bars.T, strict=True):
        (left, low), (_, high) = panel.transData.transform([(x, end) for end in ends])
        taken.append(Bbox.from_extents(left - 2 * unit, low, left + 2 * unit, high))
    for row in np.lexsort(points.T[::-1]):
        look: dict[str, Any] = {"fontsize": 8.5, "ha": "center", "va": "center", "zorder": 4, "in_layout": False}
        look |= {"color": INK} if row != best else {"color": colour(1), "fontweight": "bold"}
        look["bbox"] = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 0.5}
        text = panel.annotate(typeset(names[row]), places[row], (0, 0), textcoords="offset points", **look)
        size = np.array(text.get_window_extent().size) + 2 * unit
        offset, boxes = _free_place(points[row], size, unit, panel.get_window_extent(), taken)
        text.set_position(tuple(offset / unit))
        if np.max(np.abs(offset) - size / 2) > 8 * unit:
            tip = panel.transData.inverted().transform(points[row] + offset)
            panel.plot(*zip(places[row], tip, strict=True), color=SOFT, linewidth=0.7, zorder=2.4)
        taken.extend(boxes)


def _free_place(point: Array, size: Array, unit: float, inside: Bbox, taken: list[Bbox]) -> tuple[Array, list[Bbox]]:
    """Offset of a label from its point, and what it and the line to it cover; the least crowded if none is free."""
    choices: list[tuple[int, Array, list[Bbox]]] = []
    for offset in (np.array(way) * (far * unit + size / 2) for far in _DISTANCES for way in _DIRECTIONS):
        line = [point + offset * share for share in np.linspace(0, 1, 24) if share * np.hypot(*offset) > 8 * unit]
        label = Bbox([point + offset - size / 2, point + offset + size / 2])
        boxes = [label, *(Bbox([place - unit, place + unit]) for place in line)]
        beyond = not (inside.contains(*label.p0) and inside.contains(*label.p1))
        hits = 20 * label.count_overlaps(taken) + sum(box.count_overlaps(taken) for box in boxes)
        choices.append((1000 * beyond + hits, offset, boxes))
    return min(choices, key=lambda choice: choice[0])[1:]


def _histogram(panel: Axes, name: str, sample: Array, reference: float | None) -> bool:
    """Draw the draws of one estimator, and tell whether its band holds the reference."""
    mean, spread = float(sample.mean()), float(sample.std(ddof=1))
    constant = spread <= 1e-12 * abs(mean)
    half = max(_STANDARD_ERRORS * spread / np.sqrt(sample.size), 1e-9 * abs(mean) if constant else 0.0)
    agrees = reference is not None and abs(mean - reference) <= half
    shade = colour(1) if reference is not None and not agrees else colour(2)
    reach = _WIDEST * spread if not constant else max(abs(mean), 1.0) / 2
    low, high = max(mean - reach, sample.min()), min(mean + reach, sample.max())
    if constant:
        low, high, told = mean - reach, mean + reach, f"no variance: all are {readable(mean)}"
        panel.axvline(mean, color=shade, linewidth=2.5)
    else:
        told = f"sd {readable(spread)}"
        panel.hist(sample, bins=40, range=(low, high), color=colour(5), alpha=0.55)
        label = f"mean ± {_STANDARD_ERRORS} standard errors" + (", reference outside" if shade == colour(1) else "")
        panel.axvspan(mean - half, mean + half, color=shade, alpha=0.75, linewidth=0.8, label=label)
        outside = int(np.count_nonzero((sample < low) | (sample > high)))
        told += f"; {outside:,} draws off the axis" if outside else ""
    if reference is not None:
        if abs(reference - mean) <= 2 * reach:
            low, high = min(low, reference), max(high, reference)
            panel.axvline(reference, color=INK, linewidth=1.3, linestyle=":", label="reference")
        else:
            told += f"; reference {'→' if reference > mean else '←'} {readable(reference)}"
    panel.set_xlim(style.padded([low, high, mean - half, mean + half]))
    panel.locator_params(axis="x", nbins=4)
    panel.set_yticks([])
    panel.set_title(typeset(f"{name}\n{told}"), fontsize=8.5, color=INK, loc="left")
    return agrees


def _square_root_guides(panel: Axes, counts: Array) -> None:
    low, high = panel.set_ylim(panel.get_ylim())
    growth = np.sqrt(counts / counts[0])
    for number, start in enumerate(np.geomspace(low / growth[-1], high, 7)):
        label = "slope 1/2: the mean of\nK independent draws" if number == 0 else None
        panel.plot(counts, start * growth, color=SOFT, linewidth=0.9, linestyle=_DASHES, zorder=1, label=label)


def _course(name: str, course: Mapping[str, npt.ArrayLike]) -> dict[str, Array]:
    missing = [part for part in _COURSE if part not in course]
    if missing:
        message = f"curves[{name!r}] lacks the keys {missing}; it has {list(course)}"
        raise ValueError(message)
    steps = as_vector(f"curves[{name!r}]['steps']", course["steps"])
    parts = {part: as_vector(f"curves[{name!r}][{part!r}]", course[part], steps.size) for part in _COURSE}
    if np.any(np.diff(steps) <= 0) or np.any(np.diff(parts["seconds"]) < 0):
        message = f"curves[{name!r}]: steps must increase and seconds must not fall; sort the course by its steps"
        raise ValueError(message)
    if np.any(parts["low"] > parts["mean"]) or np.any(parts["high"] < parts["mean"]):
        message = f"curves[{name!r}]: each mean must lie within [low, high]; pass ends of the band, not its widths"
        raise ValueError(message)
    return parts


def _readable_limits(courses: Mapping[str, dict[str, Array]]) -> tuple[float, float]:
    """Limits of the bound: cut below where the worst values would take more than two thirds of the axis."""
    lowest = min(course["low"].min() for course in courses.values())
    highest = max(course["high"].max() for course in courses.values())
    late = [float(np.quantile(course["low"], 0.1)) for course in courses.values()]
    ends = [float(course["low"][-1]) for course in courses.values()]
    quarters = np.quantile(late + ends, [0.25, 0.75])
    floor = min(late) if len(late) < 3 else quarters[0] - 1.5 * (quarters[1] - quarters[0])
    floor = min(floor, *(end for end in [highest, *ends] if highest - end <= 1.5 * (highest - floor)))
    if highest - lowest <= 3 * (highest - floor):
        floor = lowest
    return style.padded([floor, highest])


def _below(courses: Mapping[str, dict[str, Array]], low: float) -> str:
    """Tell what the cut of the vertical axis leaves out."""
    lowest = {name: course["low"].min() for name, course in courses.items() if course["low"].min() < low}
    if not lowest:
        return ""
    worst = min(lowest, key=lambda name: lowest[name])
    told = f"Axis cut at {readable(low)}: {len(lowest)} of {len(courses)} estimators have values below it"
    told += f", the lowest {readable(lowest[worst])} ({worst})."
    ends = {name: readable(courses[name]["mean"][-1]) for name in lowest if courses[name]["mean"].max() < low}
    hidden = ", ".join(f"{name}, which ends at {end}" for name, end in ends.items())
    return f"{told} Not seen: {hidden}." if hidden else told
