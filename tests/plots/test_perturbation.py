"""Scatters hold the shifts of all genes, and rows hold the scores of all groups with their means."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Annotation

from genailab_pyro.plots.perturbation import method_scores, shift_scatter

GENES = [f"gene {number}" for number in range(8)]
REAL = np.array([3.0, -2.0, 1.0, 0.5, -0.4, 0.3, 0.2, 0.1])
PREDICTED = {"model": 0.9 * REAL + 0.1, "no change": np.zeros(8)}


def named(panel):
    return [text.get_text() for text in panel.texts if isinstance(text, Annotation)]


class TestShiftScatter:
    def test_each_gene_is_a_point_in_the_panel_of_each_method(self):
        axes = shift_scatter(REAL, PREDICTED, genes=GENES, top=3).axes
        for panel, predicted in zip(axes, PREDICTED.values(), strict=True):
            others, top = (np.asarray(points.get_offsets()) for points in panel.collections)
            assert (len(others), len(top)) == (5, 3)
            np.testing.assert_allclose(np.sort(top[:, 0]), [-2, 1, 3])
            drawn = np.concatenate([top, others])
            np.testing.assert_allclose(
                drawn[np.argsort(drawn[:, 0])], np.stack([REAL, predicted], axis=1)[np.argsort(REAL)]
            )

    def test_panels_share_square_axes_with_the_line_of_what_is_right(self):
        figure = shift_scatter(REAL, PREDICTED, genes=GENES)
        figure.draw_without_rendering()
        for panel in figure.axes:
            assert panel.get_xlim() == panel.get_ylim() == figure.axes[0].get_xlim()
            assert panel.get_xlim()[0] < -2 < 3 < panel.get_xlim()[1]
            (line,) = panel.get_lines()
            assert (line.get_xy1(), line.get_slope()) == ((0, 0), 1)

    def test_the_genes_of_the_largest_shift_are_named(self):
        axes = shift_scatter(REAL, PREDICTED, genes=GENES, named=3).axes
        assert [sorted(named(panel)) for panel in axes] == [["gene 0", "gene 1", "gene 2"]] * 2
        assert not named(shift_scatter(REAL, PREDICTED, genes=GENES, named=0).axes[0])

    def test_names_do_not_lie_on_each_other(self):
        (panel,) = shift_scatter(np.full(6, 2.0), {"model": np.full(6, 2.0)}, genes=GENES[:6]).axes
        heights = sorted(text.xyann[1] for text in panel.texts)
        assert np.diff(heights).min() > 0.04 * np.ptp(panel.get_ylim())

    def test_correlations_are_told(self):
        figure = shift_scatter(REAL, {**PREDICTED, "wrong": -REAL}, genes=GENES)
        titles = [panel.get_title(loc="left") for panel in figure.axes]
        assert titles == ["model, r = 1.00", "no change, r = 0.00", "wrong, r = \N{MINUS SIGN}1.00"]
        assert figure.get_suptitle() == "Shift of each gene: model is nearest (r = 1.00)"
        assert shift_scatter(REAL, PREDICTED, genes=GENES, title="IFN").get_suptitle() == "IFN"

    @pytest.mark.parametrize(
        ("real", "predicted", "message"),
        [
            (REAL, {}, "at least one method, got none"),
            (REAL[:7], PREDICTED, r"real must be a vector of shape \[8\], got shape \[7\]"),
            (REAL, {"model": REAL[:7]}, r"predicted\['model'\] must be a vector of shape \[8\]"),
            (REAL, {"model": REAL * np.nan}, r"predicted\['model'\] must be finite"),
        ],
    )
    def test_shifts_that_do_not_fit_are_named(self, real, predicted, message):
        with pytest.raises(ValueError, match=message):
            shift_scatter(real, predicted, genes=GENES)


@pytest.fixture
def scores():
    values = {"no change": [0.7, 0.5], "ridge": [0.9, 0.8], "additive": [0.95, np.nan], "halves": [1.0, 0.9]}
    return pd.DataFrame(values, index=["B cells", "T cells"])


class TestMethodScores:
    def test_bars_are_means_and_points_are_groups(self, scores):
        (panel,) = method_scores(scores, label="R2").axes
        order = ["additive", "halves", "ridge", "no change"]
        assert [text.get_text() for text in panel.get_yticklabels()] == order
        np.testing.assert_allclose([bar.get_width() for bar in panel.patches], scores[order].mean())
        points = {
            group.get_label(): group.get_offsets() for group in panel.collections if group.get_label() in scores.index
        }
        for group, drawn in points.items():
            kept = scores.loc[group, order].notna().to_numpy()
            np.testing.assert_allclose(drawn[kept, 0], scores.loc[group, order][kept])
            np.testing.assert_allclose(drawn[:, 1], np.arange(4), atol=0.3)
        assert [text.get_text() for text in panel.texts] == ["0.95", "0.95", "0.85", "0.6"]

    def test_the_least_is_the_best_of_an_error(self, scores):
        figure = method_scores(scores, label="RMSE", higher_is_better=False)
        assert figure.axes[0].get_yticklabels()[0].get_text() == "no change"
        assert figure.get_suptitle() == "RMSE: no change is best on average (0.6)"

    def test_the_reference_is_a_line_and_no_row(self, scores):
        (panel,) = method_scores(scores, label="R2", reference="halves").axes
        assert "halves" not in [text.get_text() for text in panel.get_yticklabels()]
        (line,) = panel.get_lines()
        assert list(line.get_xdata()) == pytest.approx([0.95, 0.95])
        assert panel.get_xlabel().endswith("dashed: halves, 0.95")

    def test_many_groups_differ_in_colour_or_shape(self):
        scores = pd.DataFrame({"a": np.linspace(0, 1, 20)}, index=[f"group {number}" for number in range(20)])
        (panel,) = method_scores(scores, label="R2").axes
        points = [item for item in panel.collections if item.get_label().startswith("group")]
        looks = {(tuple(item.get_facecolor()[0]), item.get_paths()[0].vertices.tobytes()) for item in points}
        assert len(looks) == 20

    @pytest.mark.parametrize(
        ("scores", "options", "error", "message"),
        [
            ([1.0], {}, TypeError, "scores must be a DataFrame of numbers, .* got list"),
            (pd.DataFrame({"a": ["x"]}), {}, TypeError, "DataFrame of numbers"),
            (pd.DataFrame(), {}, ValueError, r"got shape \[0, 0\]"),
            (pd.DataFrame({"a": [1.0], "b": [np.nan]}), {}, ValueError, r"finite score of each method, .* \['b'\]"),
            (pd.DataFrame({"a": [1.0]}), {"reference": "b"}, ValueError, r"one of several methods \['a'\], got 'b'"),
        ],
    )
    def test_scores_that_do_not_fit_are_named(self, scores, options, error, message):
        with pytest.raises(error, match=message):
            method_scores(scores, label="R2", **options)
