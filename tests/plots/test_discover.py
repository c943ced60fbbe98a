"""Stability and novelty are drawn as they were given."""

import numpy as np
import pytest

from genailab_pyro.plots.discover import novelty_histogram, stability_heatmap
from genailab_pyro.plots.style import typeset

ARI = np.array([[1.0, 0.8, 0.55], [0.8, 1.0, -0.02], [0.55, -0.02, 1.0]])
NAMES = ["seed 0", "seed 1", "seed 2"]
RNG = np.random.default_rng(0)
SCORES = {"known": RNG.normal(size=200), "new": RNG.normal(3, 1, size=50)}
P_VALUES = {"known": RNG.random(200), "new": RNG.random(50) ** 4}


class TestStability:
    def test_each_pair_has_its_colour_and_number(self):
        axes = stability_heatmap(ARI, NAMES).axes[0]
        np.testing.assert_array_equal(axes.images[0].get_array(), ARI)
        assert axes.images[0].get_clim() == (0, 1)
        numbers = {text.get_position(): text.get_text() for text in axes.texts}
        assert numbers[(2, 0)] == numbers[(0, 2)] == "0.55"
        assert numbers[(1, 2)] == typeset("-0.02")
        assert [tick.get_text() for tick in axes.get_xticklabels()] == NAMES

    @pytest.mark.parametrize(
        ("ari", "message"),
        [
            (ARI[:2], r"ari must be a symmetric matrix of shape \[3, 3\], got \[2, 3\]"),
            (ARI + np.triu(ARI), "symmetric"),
            (2 * ARI, "ari must be at most 1, the largest is 2"),
            (ARI[:, :2], r"ari must have shape \[runs, 3\]"),
        ],
    )
    def test_what_is_no_agreement_is_named(self, ari, message):
        with pytest.raises(ValueError, match=message):
            stability_heatmap(ari, NAMES)


class TestNovelty:
    def test_the_shares_are_those_of_the_p_values(self):
        _, right = novelty_histogram(SCORES, P_VALUES).axes
        lines = {line.get_label(): line for line in right.get_lines()}
        assert [*lines] == ["as the reference", "known", "new"]
        for name, p in P_VALUES.items():
            levels, shares = lines[name].get_xdata(), lines[name].get_ydata()
            np.testing.assert_allclose(shares, [(p <= level).mean() for level in levels])

    def test_groups_share_the_bins_and_have_area_one(self):
        left, _ = novelty_histogram(SCORES, P_VALUES).axes
        ends = []
        for patch in left.patches:
            path = patch.get_path().vertices
            steps, heights = path[1:-1:2, 0], path[1:-1:2, 1]
            ends.append((path[:, 0].min(), path[:, 0].max()))
            assert np.sum(np.diff(steps)[0] * heights) == pytest.approx(1, abs=0.01)
        assert ends[0] == ends[1]

    @pytest.mark.parametrize(
        ("p_values", "message"),
        [
            ({"known": P_VALUES["known"]}, r"must hold the same groups, at least one, got \['known', 'new'\]"),
            ({**P_VALUES, "new": [0.5]}, r"p_values\['new'\] must be a vector of shape \[50\]"),
            ({**P_VALUES, "new": P_VALUES["new"] + 1}, r"p_values\['new'\] must lie in \[0, 1\]"),
        ],
    )
    def test_groups_that_do_not_fit_are_named(self, p_values, message):
        with pytest.raises(ValueError, match=message):
            novelty_histogram(SCORES, p_values)
