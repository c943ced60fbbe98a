"""Fold changes are drawn where they are, and the calls are marked."""

import numpy as np
import pytest

from genailab_pyro.plots.differential import lfc_against_truth, lfc_intervals, volcano
from genailab_pyro.plots.style import typeset

RNG = np.random.default_rng(0)
LFC = RNG.normal(size=40)
PROBABILITY = RNG.random(40)
CALLED = np.abs(LFC) > 1
GENES = [f"gene{i}" for i in range(40)]


def scatters(axes):
    return {points.get_label(): np.asarray(points.get_offsets()) for points in axes.collections}


def verticals(axes):
    return sorted(float(line.get_xdata()[0]) for line in axes.get_lines() if len(set(line.get_xdata())) == 1)


class TestVolcano:
    def test_called_genes_are_apart_from_the_others(self):
        (axes,) = volcano(LFC, PROBABILITY, CALLED, GENES, delta=0.5).axes
        points = np.stack([LFC, PROBABILITY], axis=1)
        drawn = scatters(axes)
        np.testing.assert_array_equal(drawn["called"], points[CALLED])
        np.testing.assert_array_equal(drawn["not called"], points[~CALLED])
        assert verticals(axes) == [-0.5, 0.5]
        assert axes.get_ylabel() == "Probability of a change larger than 0.5"

    def test_the_largest_calls_are_named_at_their_points(self):
        (axes,) = volcano(LFC, PROBABILITY, CALLED, GENES, delta=0.5, num_named=3).axes
        largest = np.argsort(-np.abs(LFC))[:3]
        assert {text.get_text(): text.xy for text in axes.texts} == {
            GENES[place]: (LFC[place], PROBABILITY[place]) for place in largest
        }

    def test_names_stay_apart_and_in_the_panel(self):
        lfc = np.concatenate([np.linspace(2.0, 2.01, 12), [-2.0]])
        (axes,) = volcano(lfc, np.ones(13), np.ones(13), GENES[:13], delta=0.5, num_named=13).axes
        places = sorted(text.get_position()[0] for text in axes.texts)
        low, high = axes.get_xlim()
        assert np.diff(places).min() > 0.029 * (high - low)
        assert places[-1] < high

    def test_calls_are_counted_and_none_is_drawn(self):
        figure = volcano(LFC, PROBABILITY, np.zeros(40, bool), GENES, delta=0.25)
        assert figure.get_suptitle() == "0 of 40 genes differ by more than 0.25 in log2 fold change"
        assert set(scatters(figure.axes[0])) == {"not called"}
        assert not figure.axes[0].texts
        assert volcano(LFC, PROBABILITY, CALLED, GENES, delta=0.25, title="B cells").get_suptitle() == "B cells"

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ((LFC[:3], PROBABILITY, CALLED), r"lfc must be a vector of shape \[40\], got shape \[3\]"),
            ((LFC, PROBABILITY + 1, CALLED), r"probability must lie in \[0, 1\]; it spans"),
            ((LFC, PROBABILITY, CALLED[:3]), r"is_de must be a vector of shape \[40\]"),
            ((LFC * np.nan, PROBABILITY, CALLED), "lfc must be finite"),
        ],
    )
    def test_what_cannot_be_drawn_is_named(self, values, message):
        with pytest.raises(ValueError, match=message):
            volcano(*values, GENES, delta=0.25)


class TestAgainstTruth:
    def test_each_gene_is_at_its_truth(self):
        truth = LFC + 0.1
        (axes,) = lfc_against_truth(LFC, truth, CALLED, delta=0.25).axes
        np.testing.assert_array_equal(scatters(axes)["called"], np.stack([truth, LFC], axis=1)[CALLED])
        diagonal = next(line for line in axes.get_lines() if line.get_label() == "equal")
        np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())
        assert axes.get_xlim() == axes.get_ylim()

    def test_false_and_missed_calls_are_counted(self):
        figure = lfc_against_truth([1.0, 1.0, -1.0, 0.1, 0.9], [1.0, 0.1, 1.0, 0.0, 0.8], [1, 1, 1, 0, 0], delta=0.25)
        assert figure.get_suptitle() == "2 of 3 calls are false, 2 of 3 changes are missed"

    def test_other_lengths_are_named(self):
        with pytest.raises(ValueError, match=r"truth must be a vector of shape \[40\], got shape \[3\]"):
            lfc_against_truth(LFC, LFC[:3], CALLED, delta=0.25)


class TestIntervals:
    def test_rows_are_in_order_with_their_intervals(self):
        (axes,) = lfc_intervals(["a", "b"], [1.0, -2.0], [0.5, -3.0], [2.0, -1.5], delta=0.25).axes
        assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b"]
        (bars,) = axes.containers
        points, _, (reach,) = bars
        np.testing.assert_array_equal(points.get_xdata(), [1.0, -2.0])
        np.testing.assert_array_equal([path[:, 0] for path in reach.get_segments()], [[0.5, 2.0], [-3.0, -1.5]])
        assert {-0.25, 0.25} <= set(verticals(axes))
        assert [text.get_text() for text in axes.texts] == [
            *map(typeset, ["1.00 [0.50, 2.00]", "-2.00 [-3.00, -1.50]"])
        ]

    def test_a_mean_outside_its_interval_is_named(self):
        with pytest.raises(ValueError, match="each mean must lie in its interval, that of 'b' does not"):
            lfc_intervals(["a", "b"], [1.0, -2.0], [0.5, -1.5], [2.0, -3.0], delta=0.25)
