"""Estimators are compared by what was measured, and what is not drawn is said."""

import sys
from itertools import combinations

import matplotlib as mpl
import numpy as np
import pytest

from genailab_pyro.plots import gradient_histograms, race_curves, signal_to_noise, variance_against_cost

RNG = np.random.default_rng(0)
NAMES = [
    "pathwise",
    "pathwise-stl",
    "exact-kl",
    "iwae",
    "iwae-dreg",
    "renyi",
    "score",
    "score-ema",
    "score-graph",
    "score-graph-ema",
    "score-graph-network",
    "score-leave-one-out",
    "vimco",
    "reweighted-wake-sleep",
    "tail-adaptive",
    "thermodynamic",
    "relax",
]
VARIANCES = np.array([0.05, 0.01, 0.03, 0.2, 0.06, 0.17, 1e5, 9e3, 4e3, 2e3, 1500, 950, 300, 4, 2, 11, 25])
SECONDS = 1e-3 * np.array([2.1, 2.2, 2.0, 7.5, 8.9, 7.4, 1.5, 1.5, 1.7, 1.9, 2.6, 4.1, 8.1, 8.4, 7.9, 9.2, 5.5])
DRAWS = {"pathwise": 1 + RNG.normal(size=2000), "score": 1 + 100 * RNG.normal(size=2000), "exact": np.full(50, 1.0)}
RATIOS = {"dreg": [1.0, 2.0, 4.0], "iwae": [2.0, 1.0, 0.5], "pathwise": [3.0, np.nan, np.nan]}


def course(*, start=-900.0, end=-820.0, seconds=10.0):
    steps = np.arange(0, 1001, 50)
    mean = end + (start - end) * np.exp(-steps / 100)
    return {"steps": steps, "seconds": steps / 1000 * seconds, "mean": mean, "low": mean - 2, "high": mean + 3}


RACE = {"pathwise": course(), "iwae": course(end=-815, seconds=40), "score-ema": course(end=-830)}
FIGURES = {
    "cost": lambda: variance_against_cost(
        NAMES, VARIANCES, SECONDS, intervals=np.stack([VARIANCES / 2, VARIANCES * 2], axis=1)
    ),
    "cost without variance": lambda: variance_against_cost(["a", "b"], [0, 0], [1, 2]),
    "one cost": lambda: variance_against_cost(["a"], [2.0], [0.1], intervals=[[0, 3]]),
    "histograms": lambda: gradient_histograms({**DRAWS, "biased": DRAWS["pathwise"] + 1}, reference=1.0),
    "ratios": lambda: signal_to_noise([1, 4, 16], RATIOS),
    "race": lambda: race_curves({**RACE, "score": course(start=-1e6, end=-5e5)}),
}


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def texts(axes):
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_keeps_to_itself_and_holds_its_words(name):
    before = dict(mpl.rcParams)
    figure = FIGURES[name]()
    figure.draw_without_rendering()
    assert dict(mpl.rcParams) == before
    outer, (width, height) = figure.get_tightbbox().padded(-0.001), figure.get_size_inches()
    assert min(outer.x0, outer.y0) >= 0
    assert outer.x1 <= width
    assert outer.y1 <= height
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_each_estimator_is_a_point_with_its_interval_on_logarithmic_axes():
    figure = variance_against_cost(["a", "b"], [0.5, 100.0], [0.02, 0.01], intervals=[[0.4, 0.7], [80.0, 130.0]])
    (axes,) = figure.axes
    assert axes.get_xscale() == axes.get_yscale() == "log"
    points = [line.get_xydata()[0] for line in axes.get_lines() if line.get_marker() == "o"]
    np.testing.assert_allclose(points, [[0.02, 0.5], [0.01, 100.0]])
    bars = [bar.get_segments()[0] for bar in axes.collections]
    np.testing.assert_allclose(bars, [[[0.02, 0.4], [0.02, 0.7]], [[0.01, 80.0], [0.01, 130.0]]])
    assert texts(axes) == ["b", "a"]
    assert axes.get_xlabel() == "Time of one gradient (seconds)"
    assert axes.get_ylabel().endswith("(nats²)")


def test_the_lowest_product_is_named_though_its_variance_is_not_lowest():
    figure = variance_against_cost(["slow", "fast"], [1.0, 2.0], [1.0, 0.1])
    assert figure.get_suptitle() == "fast has the lowest variance times seconds"


def test_guides_join_equal_products_and_are_told_on_the_right():
    (axes,) = variance_against_cost(["a", "b"], [0.01, 50.0], [0.1, 0.1]).axes
    guides = [line.get_xydata() for line in axes.get_lines() if line.get_marker() == "None"]
    (margin,) = axes.child_axes
    np.testing.assert_allclose([guide.prod(axis=1) for guide in guides], 1e-3 * 10.0 ** np.arange(4)[:, None] * [1, 1])
    axes.figure.draw_without_rendering()
    assert [tick.get_text() for tick in margin.get_yticklabels()] == ["lowest", "10 times", "100 times", "1,000 times"]
    for guide, tick in zip(guides, margin.get_yticks(), strict=True):
        np.testing.assert_allclose(
            axes.transData.transform(guide[1])[1], margin.transData.transform((0, tick))[1], rtol=1e-6
        )


@pytest.mark.parametrize("kept", [10, 12, 17])
def test_names_do_not_overlap_and_stay_within_the_axes(kept):
    ends = np.stack([VARIANCES / 2, VARIANCES * 2], axis=1)[:kept]
    figure = variance_against_cost(NAMES[:kept], VARIANCES[:kept], SECONDS[:kept], intervals=ends)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    assert sorted(texts(axes)) == sorted(NAMES[:kept])
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    inside, points = axes.get_window_extent(), axes.transData.transform(np.stack([SECONDS, VARIANCES], axis=1)[:kept])
    for box in boxes:
        assert inside.contains(*box.p0)
        assert inside.contains(*box.p1)
        assert not any(box.contains(*point) for point in points)


def test_the_same_points_get_the_same_labels():
    first, second = (variance_against_cost(NAMES, VARIANCES, SECONDS).axes[0].texts for _ in range(2))
    assert [text.get_position() for text in first] == [text.get_position() for text in second]


def test_an_estimator_without_variance_is_said_and_not_drawn():
    figure = variance_against_cost(["exact", "score"], [0.0, 10.0], [0.1, 0.1], intervals=[[0, 0], [0, 20]])
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "Not drawn, since without variance: exact"
    assert texts(axes) == ["score"]
    assert FIGURES["cost without variance"]().get_suptitle() == "No estimator has any variance"


@pytest.mark.parametrize(
    ("values", "seconds", "ends", "message"),
    [
        ([1.0], [1.0, 1.0], None, r"variances must be a vector of shape \[2\]"),
        ([1.0, 2.0], [1.0], None, r"seconds must be a vector of shape \[2\]"),
        ([1.0, 2.0], [1.0, 0.0], None, "seconds must be positive, got 0"),
        ([1.0, -1.0], [1.0, 1.0], None, "must not be negative.*got -1"),
        ([1.0, 2.0], [1.0, 1.0], [[1.1, 1.2], [1.0, 3.0]], r"within its interval.*got 1 in \[1.1, 1.2\]"),
        ([1.0, 2.0], [1.0, 1.0], [[0.5, 1.2]], r"intervals must have shape \[2, 2\]"),
        ([1.0, np.nan], [1.0, 1.0], None, "variances must be finite"),
    ],
)
def test_costs_that_do_not_fit_are_named(values, seconds, ends, message):
    with pytest.raises(ValueError, match=message):
        variance_against_cost(["a", "b"], values, seconds, intervals=ends)


def test_each_estimator_has_a_histogram_of_its_draws_at_its_own_scale():
    figure = gradient_histograms(DRAWS, reference=1.0)
    heads = [axes.get_title(loc="left").split("\n")[0] for axes in figure.axes]
    assert heads == list(DRAWS)
    widths = [np.ptp(axes.get_xlim()) for axes in figure.axes[:2]]
    np.testing.assert_allclose(widths[1] / widths[0], 100, rtol=0.2)
    counted = sum(bar.get_height() for bar in figure.axes[0].containers[0])
    assert counted == 2000
    assert f"sd {DRAWS['score'].std(ddof=1):.1f}" in figure.axes[1].get_title(loc="left")


def test_the_band_is_the_mean_and_five_standard_errors():
    sample = DRAWS["score"]
    axes = gradient_histograms({"score": sample}, reference=1.0).axes[0]
    (band,) = [patch for patch in axes.patches if patch.get_label().startswith("mean")]
    half = 5 * sample.std(ddof=1) / np.sqrt(sample.size)
    np.testing.assert_allclose([band.get_x(), band.get_width()], [sample.mean() - half, 2 * half])
    assert list(lines(axes)["reference"].get_xdata()) == [1.0, 1.0]


def test_a_biased_estimator_is_told_from_the_others():
    figure = gradient_histograms({**DRAWS, "biased": DRAWS["pathwise"] + 1}, reference=1.0)
    assert figure.get_suptitle() == "The mean of 3 of 4 estimators is within 5 standard errors of the reference"
    labels = [{patch.get_label() for patch in axes.patches} for axes in figure.axes]
    assert ["mean ± 5 standard errors, reference outside" in found for found in labels] == [False, False, False, True]


def test_draws_without_variance_are_a_line_that_says_so():
    figure = gradient_histograms({"exact": np.full(30, 0.1), "wrong": np.full(30, 0.2)}, reference=0.1)
    figure.draw_without_rendering()
    exact, _ = figure.axes
    assert exact.get_title(loc="left") == "exact\nno variance: all are 0.100"
    assert not exact.containers
    assert figure.get_suptitle().startswith("The mean of 1 of 2")


def test_draws_and_a_reference_off_the_axis_are_said():
    sample = np.append(DRAWS["pathwise"], 500.0)
    axes = gradient_histograms({"heavy": sample}, reference=-900.0).axes[0]
    assert axes.get_title(loc="left").endswith("1 draws off the axis; reference ← \N{MINUS SIGN}900")
    assert axes.get_xlim()[1] < 500
    assert "reference" not in lines(axes)


@pytest.mark.parametrize(
    ("draws", "reference", "message"),
    [
        ({}, None, "at least one estimator.*got 0 estimators"),
        ({"a": [1.0]}, None, "two draws or more each"),
        ({"a": [[1.0, 2.0]]}, None, r"draws\['a'\] must be a vector"),
        ({"a": [1.0, np.nan]}, None, r"draws\['a'\] must be finite"),
        ({"a": [1.0, 2.0]}, np.nan, "reference must be finite"),
    ],
)
def test_draws_that_cannot_be_drawn_are_named(draws, reference, message):
    with pytest.raises(ValueError, match=message):
        gradient_histograms(draws, reference=reference)


def test_ratios_are_drawn_where_offered_and_ranked_by_the_last():
    (axes,) = signal_to_noise([1, 4, 16], RATIOS).axes
    drawn = lines(axes)
    np.testing.assert_array_equal(drawn["dreg"].get_xydata(), [[1, 1], [4, 2], [16, 4]])
    np.testing.assert_array_equal(drawn["pathwise"].get_xydata(), [[1, 3]])
    assert [text.get_text() for text in axes.get_legend().get_texts()][:3] == ["dreg", "pathwise", "iwae"]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "4", "16"]


def test_the_guides_rise_with_the_square_root_of_the_particles():
    (axes,) = signal_to_noise([1, 4, 16], RATIOS).axes
    guides = [line.get_ydata() for name, line in lines(axes).items() if name not in RATIOS]
    assert guides
    for guide in guides:
        np.testing.assert_allclose(guide / guide[0], [1, 2, 4])


@pytest.mark.parametrize(
    ("particles", "ratios", "message"),
    [
        ([1, 4], {}, "at least one estimator"),
        ([4, 1], {"a": [1.0, 2.0]}, "particles must be positive and increase"),
        ([0, 1], {"a": [1.0, 2.0]}, "particles must be positive and increase"),
        ([1, 4], {"a": [1.0]}, r"ratios\['a'\] must be a vector of shape \[2\]"),
        ([1, 4], {"a": [1.0, 0.0]}, r"ratios\['a'\] must hold a ratio, each positive"),
        ([1, 4], {"a": [1.0, np.inf]}, "positive and finite"),
        ([1, 4], {"a": [np.nan, np.nan]}, "leave out an estimator"),
    ],
)
def test_ratios_that_cannot_be_drawn_are_named(particles, ratios, message):
    with pytest.raises(ValueError, match=message):
        signal_to_noise(particles, ratios)


def test_both_panels_hold_every_mean_and_band():
    figure = race_curves(RACE)
    for axes, along in zip(figure.axes, ("steps", "seconds"), strict=True):
        for (name, curve), band in zip(RACE.items(), axes.collections, strict=True):
            np.testing.assert_array_equal(lines(axes)[name].get_xdata(), curve[along])
            np.testing.assert_array_equal(lines(axes)[name].get_ydata(), curve["mean"])
            heights = band.get_paths()[0].vertices[:, 1]
            assert (heights.min(), heights.max()) == (curve["low"].min(), curve["high"].max())
        assert axes.get_ylim()[0] < -900
    assert [axes.get_xlabel() for axes in figure.axes] == ["Optimiser steps", "Training time (seconds)"]
    assert figure.axes[0].get_ylabel() == "Held-out bound (nats per cell)"
    assert figure.axes[0].get_title(loc="left") == ""
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(RACE)
    assert figure.get_suptitle() == "Held-out bound: iwae ends highest"


def test_a_bad_start_does_not_flatten_the_race_and_is_said():
    figure = race_curves({**RACE, "score": course(start=-1e6, end=-825)})
    for axes in figure.axes:
        low, high = axes.get_ylim()
        assert -1300 < low < -830
        assert high > -812
    note = figure.axes[0].get_title(loc="left").replace("\n", " ")
    assert note.endswith("estimators have values below it, the lowest \N{MINUS SIGN}1.00e+06 (score).")


def test_an_estimator_that_stays_below_the_axis_is_named():
    note = FIGURES["race"]().axes[0].get_title(loc="left").replace("\n", " ")
    assert "Not seen: score, which ends at \N{MINUS SIGN}500,023" in note


def test_alike_curves_and_one_estimator_have_limits():
    flat = {key: np.full(3, -800.0) for key in ("mean", "low", "high")}
    flat |= {"steps": np.arange(3), "seconds": np.arange(3.0)}
    for names in ("a", "ab", "abcd"):
        low, high = race_curves(dict.fromkeys(names, flat)).axes[0].get_ylim()
        assert low < -800 < high


def test_seconds_are_logarithmic_where_they_differ_by_more_than_ten():
    slow = {**RACE, "iwae": course(seconds=1000)}
    _, even = race_curves(RACE).axes
    steps, wide = race_curves(slow).axes
    assert (even.get_xscale(), steps.get_xscale(), wide.get_xscale()) == ("linear", "linear", "log")
    assert lines(wide)["iwae"].get_xdata().min() > 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"mean": np.zeros(3)}, r"curves\['a'\]\['mean'\] must be a vector of shape \[21\]"),
        ({"steps": np.arange(21)[::-1]}, "steps must increase"),
        ({"seconds": np.arange(21)[::-1]}, "seconds must not fall"),
        ({"low": course()["mean"] + 1}, r"within \[low, high\]"),
        ({"mean": np.full(21, np.nan)}, "must be finite"),
    ],
)
def test_courses_that_cannot_be_drawn_are_named(spoil, message):
    with pytest.raises(ValueError, match=message):
        race_curves({"a": {**course(), **spoil}})


def test_missing_courses_and_keys_are_named():
    with pytest.raises(ValueError, match="at least one estimator"):
        race_curves({})
    with pytest.raises(ValueError, match=r"lacks the keys \['seconds', 'mean', 'low', 'high'\]"):
        race_curves({"a": {"steps": [1, 2]}})
