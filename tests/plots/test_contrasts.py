"""Panels hold the estimated against the true effects of all genes, with their errors and the line of what is right."""

import numpy as np
import pytest

from genailab_pyro.plots.contrasts import contrasts

TRUTH = np.array([2.0, -1.0, 0.5, 0.0])
ESTIMATES = {"naive": TRUTH + np.array([1, -1, 1, -1]), "adjusted": TRUTH + 0.1}
ERRORS = {"adjusted": np.full(4, 0.2), "naive": np.full(4, 0.5)}


def test_each_gene_is_a_point_in_the_panel_of_each_estimate():
    for panel, values in zip(contrasts(TRUTH, ESTIMATES).axes, ESTIMATES.values(), strict=True):
        (points,) = panel.collections
        np.testing.assert_allclose(points.get_offsets(), np.stack([TRUTH, values], axis=1))


def test_panels_share_square_axes_with_the_line_of_what_is_right():
    figure = contrasts(TRUTH, ESTIMATES)
    figure.draw_without_rendering()
    for panel in figure.axes:
        assert panel.get_xlim() == panel.get_ylim() == figure.axes[0].get_xlim()
        assert panel.get_xlim()[0] < -2 < 3 < panel.get_xlim()[1]
        (line,) = panel.get_lines()
        assert (line.get_xy1(), line.get_slope()) == ((0, 0), 1)


def test_errors_are_told_and_the_least_is_in_the_headline():
    figure = contrasts(TRUTH, ESTIMATES)
    assert [panel.get_title(loc="left") for panel in figure.axes] == ["naive, RMSE 1.00", "adjusted, RMSE 0.10"]
    assert figure.get_suptitle().endswith("adjusted is nearest (RMSE 0.10)")
    assert contrasts(TRUTH, ESTIMATES, title="A drug").get_suptitle() == "A drug"


def test_intervals_are_drawn_by_name():
    for panel, (name, values) in zip(contrasts(TRUTH, ESTIMATES, errors=ERRORS).axes, ESTIMATES.items(), strict=True):
        lines, _ = panel.collections
        for segment, value in zip(lines.get_segments(), values, strict=True):
            np.testing.assert_allclose(segment[:, 1], value + 1.96 * ERRORS[name][0] * np.array([-1, 1]))
        assert panel.get_xlim()[1] > 3 + 1.96 * 0.5


@pytest.mark.parametrize(
    ("estimates", "errors", "message"),
    [
        ({}, None, "at least one, such as 'adjusted', got none"),
        ({"naive": TRUTH[:3]}, None, r"estimates\['naive'\] must be a vector of shape \[4\], got shape \[3\]"),
        ({"naive": TRUTH * np.nan}, None, r"estimates\['naive'\] must be finite"),
        ({"naive": TRUTH}, {"adjusted": TRUTH}, r"names of the estimates \['naive'\], got \['adjusted'\]"),
        ({"naive": TRUTH}, {"naive": TRUTH}, "standard errors of at least 0, got a negative one"),
    ],
)
def test_effects_that_do_not_fit_are_named(estimates, errors, message):
    with pytest.raises(ValueError, match=message):
        contrasts(TRUTH, estimates, errors=errors)
