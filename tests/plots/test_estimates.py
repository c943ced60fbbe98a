"""Rows of estimates show the value, its interval and its figures."""

import numpy as np
import pytest

from genailab_pyro.plots import estimates

ARGUMENTS = {"xlabel": "Held-out ELBO (nats per cell)", "title": "Three models"}


def test_points_and_intervals_hold_the_estimates():
    values, errors = np.array([-812.3, -845.2, -811.9]), np.array([0.43, 2.1, 0.5])
    figure = estimates(["a", "b", "c"], values, errors, **ARGUMENTS)
    (axes,) = figure.axes
    ((points, _, (intervals,)),) = axes.containers
    np.testing.assert_allclose(points.get_xdata(), values)
    np.testing.assert_array_equal(points.get_ydata(), [0, 1, 2])
    ends = np.array([segment[:, 0] for segment in intervals.get_segments()])
    np.testing.assert_allclose(ends, np.stack([values - 1.959964 * errors, values + 1.959964 * errors], axis=1))
    assert axes.get_xlim()[0] < ends.min() < ends.max() < axes.get_xlim()[1]
    assert [text.get_text() for text in axes.texts] == [
        "\N{MINUS SIGN}812.30 ± 0.43",
        "\N{MINUS SIGN}845.2 ± 2.1",
        "\N{MINUS SIGN}811.90 ± 0.50",
    ]
    assert axes.get_xlabel().startswith("Held-out ELBO (nats per cell)\n")
    assert figure.get_suptitle() == "Three models"


def test_the_first_row_is_on_top():
    (axes,) = estimates(["first", "second"], [1, 2], [1, 1], **ARGUMENTS).axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["first", "second"]
    bottom, top = axes.get_ylim()
    assert bottom > top


def test_a_run_that_failed_is_kept_and_said():
    figure = estimates(["fine", "diverged"], [1.0, np.nan], [0.1, np.nan], **ARGUMENTS)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert list(axes.containers[0][0].get_xdata()) == [1.0]
    assert axes.texts[1].get_text() == "not finite"


def test_the_reference_is_within_the_axis_and_named():
    (axes,) = estimates(["a"], [1.0], [0.1], reference=("no change", 9.0), **ARGUMENTS).axes
    assert axes.get_xlim()[1] > 9.0
    assert axes.get_xlabel().endswith("dashed: no change")
    assert any(list(line.get_xdata()) == [9.0, 9.0] for line in axes.get_lines())


@pytest.mark.parametrize(
    ("names", "values", "errors", "message"),
    [
        (["a"], [1.0, 2.0], [0.1], r"values must be a vector of shape \[1\], got shape \[2\]"),
        (["a"], [1.0], [0.1, 0.2], "standard_errors must be a vector"),
        (["a"], [1.0], [-0.1], "standard_errors must not be negative"),
        ([], [], [], "n > 0"),
    ],
)
def test_rows_that_do_not_fit_are_named(names, values, errors, message):
    with pytest.raises(ValueError, match=message):
        estimates(names, values, errors, **ARGUMENTS)
