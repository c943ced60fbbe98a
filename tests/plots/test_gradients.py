"""Draws of gradients are all drawn, at scales that are told."""

import numpy as np
import pytest

from genailab_pyro.plots import gradient_scatter, gradient_variances

RNG = np.random.default_rng(0)
NAMES = ("z.loc[0]", "z.loc[1]")
CENTRE = np.array([0.5, -1.0])
NARROW = CENTRE + RNG.uniform(-1, 1, size=(500, 2))
WIDE = CENTRE + 100 * (NARROW - CENTRE)


def clouds(axes):
    return [np.asarray(points.get_offsets()) for points in axes.collections]


def half_widths(axes):
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    return (right - left) / 2, (top - bottom) / 2


def test_every_draw_is_on_the_common_axes():
    figure = gradient_scatter({"pathwise": NARROW, "score": WIDE}, coordinates=NAMES, reference=CENTRE)
    common = figure.axes[0]
    widest, narrowest = clouds(common)
    np.testing.assert_array_equal(widest, WIDE)
    np.testing.assert_array_equal(narrowest, NARROW)
    assert common.get_xlim()[0] < WIDE[:, 0].min()
    assert common.get_ylim()[1] > WIDE[:, 1].max()
    assert common.get_xlabel() == "Gradient in z.loc[0] (nats)"
    assert common.get_ylabel() == "Gradient in z.loc[1] (nats)"


def test_the_narrow_estimator_is_magnified_by_the_factor_told():
    figure = gradient_scatter({"pathwise": NARROW, "score": WIDE}, coordinates=NAMES, reference=CENTRE)
    common, own = figure.axes
    np.testing.assert_array_equal(clouds(own)[0], NARROW)
    assert own.get_title(loc="left") == "pathwise, magnified 100 times"
    np.testing.assert_allclose(half_widths(common), 100 * np.array(half_widths(own)), rtol=1e-9)
    (frame,) = common.patches
    np.testing.assert_allclose([frame.get_width() / 2, frame.get_height() / 2], half_widths(own))
    np.testing.assert_allclose(frame.get_xy(), [own.get_xlim()[0], own.get_ylim()[0]])


def test_the_title_and_the_legend_tell_the_variances():
    figure = gradient_scatter({"pathwise": NARROW, "score": WIDE}, coordinates=NAMES, reference=CENTRE)
    assert figure.get_suptitle() == "The draws of score have 10,000 times the variance of pathwise"
    total = NARROW.var(axis=0, ddof=1).sum()
    labels = [points.get_label() for points in figure.axes[0].collections]
    assert f"pathwise: total variance {total:.3f}" in labels


def test_reference_and_mean_of_draws_are_marked():
    off = NARROW + np.array([0.3, 0.0])
    _, own = gradient_scatter({"biased": off, "score": WIDE}, coordinates=NAMES, reference=CENTRE).axes
    across, along, mean = own.get_lines()
    assert list(across.get_xdata()) == [0.5, 0.5]
    assert list(along.get_ydata()) == [-1.0, -1.0]
    np.testing.assert_allclose(mean.get_xydata()[0], off.mean(axis=0))


def test_without_a_reference_the_narrowest_draws_are_the_centre():
    common = gradient_scatter({"pathwise": NARROW, "score": WIDE}, coordinates=NAMES).axes[0]
    assert not common.get_lines()
    np.testing.assert_allclose(np.mean(common.get_xlim()), NARROW[:, 0].mean())


def test_coordinates_of_different_scale_share_the_magnification():
    stretch = np.array([1.0, 40.0])
    common, own = gradient_scatter({"a": NARROW * stretch, "b": WIDE * stretch}, coordinates=NAMES).axes
    ratios = np.array(half_widths(common)) / np.array(half_widths(own))
    np.testing.assert_allclose(ratios[0], ratios[1], rtol=1e-9)


def test_every_draw_is_within_the_panel_of_its_estimator():
    draws = {"narrow": NARROW * np.array([1.0, 0.1]), "wide": WIDE * np.array([0.5, 1.0])}
    for axes in gradient_scatter(draws, coordinates=NAMES).axes:
        for cloud in clouds(axes):
            (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
            assert np.all((left < cloud[:, 0]) & (cloud[:, 0] < right))
            assert np.all((bottom < cloud[:, 1]) & (cloud[:, 1] < top))


def test_four_estimators_have_a_panel_each_but_the_widest():
    draws = {f"e{power}": CENTRE + 10.0**power * (NARROW - CENTRE) for power in range(4)}
    figure = gradient_scatter(draws, coordinates=NAMES, reference=CENTRE)
    assert [axes.get_title(loc="left").split(",")[0] for axes in figure.axes[1:]] == ["e2", "e1", "e0"]


def test_draws_that_do_not_scatter_are_said_to():
    draws = {"exact": np.tile(CENTRE, (5, 1)), "score": WIDE}
    figure = gradient_scatter(draws, coordinates=NAMES, reference=CENTRE)
    figure.draw_without_rendering()
    assert figure.get_suptitle() == "The draws of exact do not scatter at all"
    assert len(gradient_scatter({"exact": draws["exact"]}, coordinates=NAMES).axes) == 1


@pytest.mark.parametrize(
    ("draws", "reference", "message"),
    [
        ({}, None, "at least one estimator"),
        ({"a": NARROW[:1]}, None, "two draws or more"),
        ({"a": NARROW[:, :1]}, None, r"draws\['a'\] must have shape \[num_draws, 2\]"),
        ({"a": NARROW}, [0.0], r"reference must be a vector of shape \[2\]"),
    ],
)
def test_draws_that_cannot_be_drawn_are_named(draws, reference, message):
    with pytest.raises(ValueError, match=message):
        gradient_scatter(draws, coordinates=NAMES, reference=reference)


def test_variances_and_their_intervals_are_rows_on_a_logarithmic_axis():
    values, ends = [0.5, 100.0], np.array([[0.4, 0.7], [80.0, 130.0]])
    (axes,) = gradient_variances(["pathwise", "score"], values, ends).axes
    ((points, _, (intervals,)),) = axes.containers
    np.testing.assert_allclose(points.get_xdata(), values)
    np.testing.assert_array_equal(points.get_ydata(), [0, 1])
    np.testing.assert_allclose([segment[:, 0] for segment in intervals.get_segments()], ends)
    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["pathwise", "score"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    assert [text.get_text() for text in axes.texts] == ["0.500", "100"]


def test_a_variance_of_zero_is_kept_as_a_row():
    figure = gradient_variances(["exact", "score"], [0.0, 10.0], [[0.0, 0.0], [0.0, 20.0]])
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert list(axes.containers[0][0].get_xdata()) == [10.0]
    assert axes.texts[0].get_text() == "0, not shown"


@pytest.mark.parametrize(
    ("values", "ends", "message"),
    [
        ([1.0], None, r"variances must be a vector of shape \[2\]"),
        ([1.0, -1.0], None, "must not be negative"),
        ([1.0, 2.0], [[1.1, 1.2], [1.0, 3.0]], "lie within its interval"),
        ([1.0, 2.0], [[0.5, 1.2]], r"intervals must have shape \[2, 2\]"),
    ],
)
def test_variances_that_do_not_fit_are_named(values, ends, message):
    with pytest.raises(ValueError, match=message):
        gradient_variances(["a", "b"], values, ends)
