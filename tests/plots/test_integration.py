"""Mixing and purity over the weights of an adversary hold what they were given."""

import numpy as np
import pytest

from genailab_pyro.plots.integration import mixing_against_purity

WEIGHTS = [0, 3, 10, 100]
EXCESS = np.array([[0.09, 0.07, 0.03, 0.05], [0.08, 0.06, 0.05, 0.06]])
PURITY = np.array([[0.91, 0.91, 0.90, 0.85], [0.92, 0.90, 0.91, 0.86]])


def test_each_panel_holds_its_runs_and_their_mean():
    figure = mixing_against_purity(WEIGHTS, EXCESS, PURITY)
    for axes, values in zip(figure.axes, (EXCESS, PURITY), strict=True):
        runs = [line for line in axes.get_lines() if line.get_label() == "one run"]
        np.testing.assert_array_equal([line.get_ydata() for line in runs], values)
        (mean,) = [line for line in axes.get_lines() if line.get_label() == "mean over runs"]
        np.testing.assert_allclose(mean.get_ydata(), values.mean(0))
        (dashed,) = [line for line in axes.get_lines() if line.get_label() == "at weight 0"]
        np.testing.assert_allclose(dashed.get_ydata(), values.mean(0)[0])
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "3", "10", "100"]


def test_the_title_says_what_the_best_mixing_costs():
    title = mixing_against_purity(WEIGHTS, EXCESS, PURITY).get_suptitle()
    assert title == "At weight 10: batch excess 0.085 → 0.040, label purity 0.915 → 0.905"


def test_one_run_may_be_a_vector_and_chance_is_written():
    figure = mixing_against_purity(WEIGHTS, EXCESS[0], PURITY[0], chance=0.208)
    figure.draw_without_rendering()
    assert figure.axes[1].get_ylabel() == "Label purity (chance: 0.21)"
    assert sum(line.get_label() == "one run" for line in figure.axes[0].get_lines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0], [0.1], [0.9]), "weights must be at least two and rise"),
        (([0, 10, 3], [0.1] * 3, [0.9] * 3), r"weights must be at least two and rise, got \[0.0, 10.0, 3.0\]"),
        (([0, 1], [0.1] * 3, [0.9] * 2), r"batch_excess must be finite, of shape \[2\] or \[runs, 2\], got shape"),
        (([0, 1], [0.1, np.nan], [0.9] * 2), "batch_excess must be finite"),
        (([0, 1], [[0.1, 0.2]] * 2, [0.9] * 2), r"must have one shape, got \[2, 2\] and \[1, 2\]"),
    ],
)
def test_what_does_not_fit_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        mixing_against_purity(*arguments)
