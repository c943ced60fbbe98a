"""Shares of a confusion matrix, bins of a calibration curve and their intervals."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve as curve_of_sklearn

from genailab_pyro.plots.labels import binned, calibration_curve, confusion_matrix

COUNTS = np.array([[6, 2, 0], [0, 0, 0], [1, 0, 3]])
NAMES = ["B cell", "T cell", "a label of a name that is far too long for an axis"]


@pytest.fixture(scope="module")
def told():
    """Probabilities that are right less often than they say."""
    rng = np.random.default_rng(0)
    probabilities = rng.uniform(0.3, 1.0, 400)
    return probabilities, rng.random(400) < 0.8 * probabilities


class TestConfusion:
    def test_rows_are_shares_of_the_labels_that_cells_have(self):
        axes = confusion_matrix(COUNTS, NAMES).axes[0]
        (image,) = axes.images
        np.testing.assert_allclose(image.get_array(), [[0.75, 0.25, 0], [0.25, 0, 0.75]])
        ticks = [tick.get_text() for tick in axes.get_yticklabels()]
        assert ticks[0] == "B cell (8)"
        assert ticks[1].startswith("a label of a name")
        assert ticks[1].endswith("\N{HORIZONTAL ELLIPSIS} (4)")
        assert [text.get_text() for text in axes.texts] == ["75", "25", "25", "75"]

    def test_the_title_counts_what_is_right(self):
        assert (
            confusion_matrix(COUNTS, NAMES).get_suptitle() == "9 of 12 cells are told as what they are labelled (75%)"
        )
        assert confusion_matrix(COUNTS[[2, 1, 0]], NAMES).get_suptitle().startswith("1 of 12")

    def test_many_labels_have_shades_alone(self):
        figure = confusion_matrix(np.eye(30), [f"label {code}" for code in range(30)])
        assert not figure.axes[0].texts
        assert figure.get_figwidth() <= 12

    @pytest.mark.parametrize("counts", [COUNTS[:2], COUNTS[0], -COUNTS, 0 * COUNTS, np.eye(4)])
    def test_what_is_no_confusion_matrix_is_refused(self, counts):
        with pytest.raises(ValueError, match=r"counts must be numbers of cells of shape \[3, 3\]"):
            confusion_matrix(counts, NAMES)


class TestCalibration:
    @pytest.mark.parametrize("num_bins", [1, 7, 10])
    def test_bins_are_those_of_scikit_learn(self, told, num_bins):
        probabilities, right = told
        mean, share, counts = binned(probabilities, right, num_bins)
        theirs = curve_of_sklearn(right, probabilities, n_bins=num_bins)
        np.testing.assert_allclose((share, mean), theirs)
        assert counts.sum() == 400
        # A planted error: cells that are right are counted as wrong.
        assert not np.allclose(binned(probabilities, ~right, num_bins)[1], theirs[0])

    def test_a_bin_holds_its_upper_end(self):
        mean, _, counts = binned([0.0, 0.1, 0.11, 1.0], [True] * 4, 10)
        np.testing.assert_allclose(mean, [0.05, 0.11, 1.0])
        assert counts.tolist() == [2, 1, 1]

    def test_intervals_are_those_of_wilson(self, told):
        _, share, counts = binned(*told, 10)
        (panel, _) = calibration_curve({"model": told}).axes
        (bars,) = [container[2][0] for container in panel.containers]
        for segment, hits, number in zip(bars.get_segments(), share * counts, counts, strict=True):
            interval = binomtest(round(hits), int(number)).proportion_ci(method="wilson")
            np.testing.assert_allclose(segment[:, 1], [interval.low, interval.high], atol=1e-6)

    def test_each_classifier_has_a_line_and_its_cells(self, told):
        panel, beside = calibration_curve({"first": told, "second": (told[0][:50], told[1][:50])}).axes
        assert len(panel.containers) == 2
        assert [line.get_ydata().sum() for line in beside.lines] == [400, 50]
        labels = [text.get_text() for text in panel.figure.legends[0].get_texts()]
        assert labels == ["means what it says", "first", "second"]

    @pytest.mark.parametrize(
        ("told", "options", "message"),
        [
            ({}, {}, "at least one classifier and one bin, got 0"),
            ({"a": ([0.5], [True])}, {"num_bins": 0}, "num_bins=0"),
            ({"a": ([1.5], [True])}, {}, "probabilities must be from 0 to 1, got values from 1.5"),
            ({"a": ([0.5, 0.5], [True])}, {}, r"right must be a vector of shape \[2\]"),
        ],
    )
    def test_what_cannot_be_drawn_is_named(self, told, options, message):
        with pytest.raises(ValueError, match=message):
            calibration_curve(told, **options)
