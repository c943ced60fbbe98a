"""The figures of the lab."""

import numpy as np
import pytest

from genailab_pyro.plots.lab import bound_path, collapse_curves, count_bars, gradient_histogram, kl_over_training


def test_the_histogram_says_what_it_leaves_out():
    draws = np.append(np.random.default_rng(0).normal(size=9_999), 1e6)
    panel = gradient_histogram(draws, 0.0, title="score").axes[0]
    assert "of 10,000 draws lie beyond the axis" in panel.get_title(loc="left")
    assert panel.get_xlim()[1] < 10
    assert sum(bar.get_height() for bar in panel.patches) < 10_000


def test_draws_that_do_not_scatter_have_a_histogram():
    panel = gradient_histogram(np.zeros(10), 0.0, title="stl").axes[0]
    assert sum(bar.get_height() for bar in panel.patches) == 10


def test_the_path_starts_and_ends_on_the_surface():
    panel = bound_path([0.0, 1.0], [-1.0, 0.0], [[-1.0, -2.0], [-1.5, -2.5]], [[0, 0], [1, -1]], title="").axes[0]
    starts = {line.get_label(): line.get_xydata()[0].tolist() for line in panel.lines}
    assert starts["start"] == [0, 0]
    assert starts["end"] == [1, -1]


def test_a_surface_without_slope_is_drawn():
    assert bound_path([0.0, 1.0], [-1.0, 0.0], np.zeros((2, 2)), [[0.0, 0.0]], title="flat").axes


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"surface must have shape \[1, 2\]"):
        bound_path([0.0, 1.0], [0.0], np.zeros((2, 1)), [[0.0, 0.0]], title="")
    with pytest.raises(ValueError, match=r"kl must have shape \[2, latents\]"):
        collapse_curves([1.0, 2.0], [[1.0, 2.0]], 1.0, title="")
    with pytest.raises(ValueError, match="beta must be a vector of shape"):
        kl_over_training([1, 2], [0.1, 0.2], [1.0], title="")
    with pytest.raises(ValueError, match=r"expected\['NB'\] must be a vector"):
        count_bars([0.5, 0.5], {"NB": [1.0]}, gene="CD74")


def test_the_bars_are_those_of_the_gene():
    figure = count_bars([0.5, 0.3, 0.2], {"NB": [0.5, 0.25, 0.125]}, gene="CD74")
    assert [bar.get_height() for bar in figure.axes[0].patches] == [0.5, 0.3, 0.2]
    assert figure.get_suptitle() == "Counts of CD74"
