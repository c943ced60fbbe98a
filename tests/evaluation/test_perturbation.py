"""Scores of predicted perturbed cells: by hand, against closed forms, and with errors planted."""

from dataclasses import asdict

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse
from scipy.stats import norm, ranksums
from sklearn.decomposition import PCA

from genailab_pyro.evaluation import two_samples
from genailab_pyro.evaluation.perturbation import (
    ControlSplit,
    PerturbationScores,
    discrimination,
    halves,
    log_normalise,
    pearson_of_shift,
    perturbation_table,
    r2_of_shift,
    score_perturbation,
)
from genailab_pyro.evaluation.two_samples import (
    RankSumTest,
    de_direction_match,
    de_overlap,
    de_spearman,
    energy_distance,
    maximum_mean_discrepancy,
    r2_of_means,
    rank_sum_test,
    rmse_of_means,
)

NUM_REPEATS = 200


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def around(means, rng, cells=60, scale=0.1):
    return np.asarray(means) + scale * rng.normal(size=(cells, len(means)))


def within_five_errors(values, expected):
    return abs(np.mean(values) - expected) < 5 * np.std(values, ddof=1) / np.sqrt(len(values))


class TestLogNormalise:
    COUNTS = np.array([[1.0, 0.0, 3.0], [2.0, 2.0, 0.0]])

    def test_it_is_the_logarithm_of_one_plus_scaled_counts(self):
        expected = [[np.log1p(2.5), 0, np.log1p(7.5)], [np.log1p(5), np.log1p(5), 0]]
        np.testing.assert_allclose(log_normalise(self.COUNTS, 10), expected)

    def test_it_is_scanpys(self, rng):
        import scanpy as sc

        adata = AnnData(rng.poisson(2.0, size=(20, 30)).astype(float))
        expected = log_normalise(adata.X)
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
        np.testing.assert_allclose(expected, adata.X)

    @pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csr_array, sparse.csc_matrix, np.float32])
    def test_sparse_and_dense_counts_are_the_same(self, kind):
        found = log_normalise(kind(self.COUNTS))
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, log_normalise(self.COUNTS))

    def test_a_library_of_more_genes_is_taken_where_given(self):
        np.testing.assert_allclose(log_normalise(self.COUNTS, 8, library=[8, 16])[:, 0], np.log1p([1, 1]))

    @pytest.mark.parametrize(
        ("counts", "options", "message"),
        [
            (-COUNTS, {}, "finite counts of at least 0"),
            (COUNTS[0], {}, r"\[cells, genes\], got shape \[3\]"),
            (COUNTS * np.nan, {}, "values out of range; pass raw counts"),
            (COUNTS * [[1], [0]], {}, "library above 0 .* least 0, .* leave out cells without counts"),
            (COUNTS, {"library": [1.0]}, r"each of 2 cells .* got shape \[1\]"),
            (COUNTS, {"target": 0}, "target above 0, .* target 0;"),
        ],
    )
    def test_input_that_does_not_fit_is_named(self, counts, options, message):
        with pytest.raises(ValueError, match=message):
            log_normalise(counts, **options)


class TestMeans:
    def test_by_hand(self):
        real, predicted = np.array([[0.0, 0.0, 4.0], [0.0, 2.0, 0.0]]), np.array([[0.0, 1.0, 1.0]])
        assert r2_of_means(real, predicted) == pytest.approx(1 - 1 / 2)
        assert rmse_of_means(real, predicted) == pytest.approx(np.sqrt(1 / 3))

    def test_an_offset_counts_where_squared_correlation_does_not_see_it(self, rng):
        real = around(rng.uniform(0, 3, 50), rng)
        assert r2_of_means(real, real) == 1
        assert r2_of_means(real, real + 5) < -5
        assert r2_of_means(real, 0.5 * real) < 0.6

    def test_no_change_has_a_high_r2_of_means_and_none_of_the_shift(self, rng):
        controls = around(rng.uniform(0, 3, 50), rng)
        real = controls + 0.2 * rng.normal(size=50)
        assert r2_of_means(real, controls) > 0.9
        assert r2_of_shift(real, controls, controls) <= 0
        assert pearson_of_shift(real, controls, controls) == 0


class TestShift:
    CONTROLS = np.array([[1.0, 1.0, 1.0, 1.0], [3.0, 3.0, 3.0, 3.0]])
    REAL = np.array([[3.0, 2.0, 6.0, 2.0]])  # shifts 1, 0, 4, 0
    PREDICTED = np.array([[4.0, 2.0, 4.0, 2.0]])  # shifts 2, 0, 2, 0

    def test_by_hand(self):
        real, predicted = np.array([1, 0, 4, 0]), np.array([2, 0, 2, 0])
        total = ((real - real.mean()) ** 2).sum()
        arguments = (self.REAL, self.PREDICTED, self.CONTROLS)
        assert r2_of_shift(*arguments) == pytest.approx(1 - (1 + 4) / total)
        assert pearson_of_shift(*arguments) == pytest.approx(np.corrcoef(real, predicted)[0, 1])

    def test_the_largest_real_shifts_are_the_top(self):
        arguments = (self.REAL, self.PREDICTED, self.CONTROLS)
        assert r2_of_shift(*arguments, top=2) == pytest.approx(1 - 5 / 4.5)
        assert pearson_of_shift(*arguments, top=2) == 0  # the predicted ones are 2 and 2
        assert r2_of_shift(*arguments, top=99) == r2_of_shift(*arguments)

    def test_falls_count_as_rises_do(self):
        real = 1 + np.array([[0.1, -4.0, 0.2, 3.0]])
        predicted = 1 + np.array([[9.0, -1.0, 9.0, 1.0]])
        assert pearson_of_shift(real, predicted, self.CONTROLS, top=2) == pytest.approx(1)
        assert pearson_of_shift(real, -predicted, self.CONTROLS, top=2) == pytest.approx(-1)

    def test_each_shift_has_its_own_controls_where_given(self, rng):
        other = around([0.0, 1.0, 2.0, 3.0], rng)
        expected = r2_of_shift(self.REAL, self.PREDICTED - other.mean(0) + 2, self.CONTROLS)
        found = r2_of_shift(self.REAL, self.PREDICTED, self.CONTROLS, predicted_controls=other)
        assert found == pytest.approx(expected)
        assert found != pytest.approx(r2_of_shift(self.REAL, self.PREDICTED, self.CONTROLS))

    def test_shared_controls_predict_something_where_there_is_nothing_and_split_ones_do_not(self):
        shared, split = [], []
        for seed in range(NUM_REPEATS):
            rng = np.random.default_rng(seed)
            real, predicted, controls = (around(np.zeros(40), rng, cells=10) for _ in range(3))
            shared.append(pearson_of_shift(real, predicted, controls))
            halved = ControlSplit.of(predicted, controls, seed=seed)
            split.append(pearson_of_shift(real, predicted, halved.second, predicted_controls=halved.first))
        assert within_five_errors(split, 0)
        assert not within_five_errors(shared, 0)
        assert np.mean(shared) == pytest.approx(0.5, abs=0.05)  # half of a shift's variance is that of the controls

    def test_a_shift_that_is_the_same_in_all_genes_has_no_r2(self):
        assert np.isnan(r2_of_shift(self.CONTROLS + 1, self.PREDICTED, self.CONTROLS))
        assert pearson_of_shift(self.CONTROLS + 1, self.PREDICTED, self.CONTROLS) == 0

    @pytest.mark.parametrize("score", [r2_of_shift, pearson_of_shift])
    def test_fewer_than_two_genes_are_refused(self, score):
        with pytest.raises(ValueError, match="top to be at least 2 genes, got 1; None takes all"):
            score(self.REAL, self.PREDICTED, self.CONTROLS, top=1)


def pairs(cells, others=None):
    """Distances of all pairs, one by one."""
    if others is None:
        return [np.linalg.norm(a - b) for i, a in enumerate(cells) for j, b in enumerate(cells) if i != j]
    return [np.linalg.norm(a - b) for a in cells for b in others]


class TestDistances:
    def test_the_energy_distance_is_that_of_all_pairs(self, rng):
        real, predicted = rng.normal(size=(6, 3)), rng.normal(1, 2, size=(9, 3))
        expected = 2 * np.mean(pairs(real, predicted)) - np.mean(pairs(real)) - np.mean(pairs(predicted))
        assert energy_distance(real, predicted) == pytest.approx(expected)

    def test_the_discrepancy_is_that_of_all_pairs(self, rng):
        real, predicted = rng.normal(size=(6, 3)), rng.normal(1, 2, size=(9, 3))
        sigma = np.median(pairs(real))
        within, without, between = (
            np.mean(np.exp(-np.square(distances) / (2 * sigma**2)))
            for distances in (pairs(real), pairs(predicted), pairs(real, predicted))
        )
        assert maximum_mean_discrepancy(real, predicted) == pytest.approx(within + without - 2 * between)

    @pytest.mark.parametrize("score", [energy_distance, maximum_mean_discrepancy])
    def test_distances_are_the_same_by_blocks(self, score, rng, monkeypatch):
        real, predicted = rng.normal(size=(23, 3)), rng.normal(size=(10, 3))
        expected = score(real, predicted)
        monkeypatch.setattr(two_samples, "_ROWS", 7)
        assert score(real, predicted) == pytest.approx(expected)

    def test_the_energy_distance_of_two_normals_is_unbiased(self):
        # X - Y is normal with variance 2, and so is X - X'.
        mean, scale = 0.5, np.sqrt(2)
        apart = scale * np.sqrt(2 / np.pi) * np.exp(-(mean**2) / 4) + mean * (1 - 2 * norm.cdf(-mean / scale))
        expected = 2 * apart - 2 * scale * np.sqrt(2 / np.pi)
        found, biased = [], []
        for seed in range(NUM_REPEATS):
            rng = np.random.default_rng(seed)
            real, predicted = rng.normal(size=(20, 1)), rng.normal(mean, 1, size=(20, 1))
            found.append(energy_distance(real, predicted))
            biased.append(found[-1] + (np.mean(pairs(real)) + np.mean(pairs(predicted))) / 20)  # over n^2
        assert within_five_errors(found, expected)
        assert not within_five_errors(biased, expected)

    def test_the_discrepancy_of_two_normals_is_unbiased(self):
        mean, sigma = 0.7, 1.3
        height = sigma / np.sqrt(sigma**2 + 2)
        expected = 2 * height * (1 - np.exp(-(mean**2) / (2 * (sigma**2 + 2))))
        found = []
        for seed in range(NUM_REPEATS):
            rng = np.random.default_rng(seed)
            real, predicted = rng.normal(size=(20, 1)), rng.normal(mean, 1, size=(20, 1))
            found.append(maximum_mean_discrepancy(real, predicted, bandwidth=sigma))
        assert within_five_errors(found, expected)
        assert not within_five_errors(np.array(found) + 2 * (1 - height) / 20, expected)  # over n^2

    def test_distances_see_more_than_means(self, rng):
        real, wider = rng.normal(size=(200, 2)), 3 * rng.normal(size=(200, 2))
        assert energy_distance(real, wider) > 0.5
        assert maximum_mean_discrepancy(real, wider) > 0.1

    @pytest.mark.parametrize("score", [energy_distance, maximum_mean_discrepancy])
    def test_a_single_cell_has_no_distance(self, score, rng):
        assert np.isnan(score(rng.normal(size=(5, 2)), rng.normal(size=(1, 2))))

    def test_a_bandwidth_of_zero_is_refused(self):
        with pytest.raises(ValueError, match=r"bandwidth above 0, got 0.0; pass bandwidth="):
            maximum_mean_discrepancy(np.zeros((5, 2)), np.ones((5, 2)))


def results(changes, fdr):
    return RankSumTest(np.array(changes, dtype=float), np.array(fdr, dtype=float), np.array(fdr, dtype=float))


class TestDifferentialExpression:
    REAL = results([5, -4, 3, 2, 9, -1], [0.01, 0.01, 0.04, 0.01, 0.2, 0.05])  # four are significant: 0, 1, 2, 3

    def test_the_test_is_scipys_rank_sum_with_a_correction_for_continuity(self, rng):
        cells, controls = rng.gamma(2, size=(30, 25)) + np.linspace(0, 1, 25), rng.gamma(2, size=(40, 25))
        deviation = np.sqrt(30 * 40 * 71 / 12)
        scores = np.abs(ranksums(cells, controls).statistic) - 0.5 / deviation
        np.testing.assert_allclose(norm.isf(rank_sum_test(cells, controls).p_value / 2), scores, rtol=1e-6)

    def test_the_false_discovery_rate_is_that_of_benjamini_and_hochberg(self, rng):
        found = rank_sum_test(rng.random((30, 9)) + np.linspace(0, 0.5, 9), rng.random((30, 9)))
        order = np.argsort(found.p_value)
        steps = found.p_value[order] * 9 / np.arange(1, 10)
        expected = [steps[rank:].min() for rank in range(9)]
        np.testing.assert_allclose(found.fdr[order], expected)
        assert 0 < found.significant.sum() < 9

    def test_fold_changes_are_of_means_before_the_logarithm(self):
        cells, controls = np.log1p([[1.0, 3.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]]), np.log1p([[1.0, 0.0, 4.0, 0.0]])
        np.testing.assert_allclose(rank_sum_test(cells, controls).log2_fold_change, [1, np.inf, -np.inf, 0])

    def test_a_mean_below_zero_counts_as_none(self):
        found = rank_sum_test(np.array([[-1.0, 1.0]]), np.array([[1.0, -1.0]])).log2_fold_change
        np.testing.assert_array_equal(found, [-np.inf, np.inf])

    def test_genes_that_are_the_same_in_all_cells_do_not_differ(self, rng):
        cells, controls = np.ones((30, 3)), np.ones((30, 3))
        cells[:, 0] += rng.random(30)
        found = rank_sum_test(cells, controls)
        np.testing.assert_array_equal(found.significant, [True, False, False])
        np.testing.assert_array_equal(found.p_value[1:], 1)
        assert not rank_sum_test(controls, controls).significant.any()

    def test_false_discoveries_are_controlled(self, rng):
        found = [
            rank_sum_test(rng.random((20, 50)), rng.random((20, 50))).significant.any() for _ in range(NUM_REPEATS)
        ]
        assert np.mean(found) < 0.05 + 5 * np.sqrt(0.05 * 0.95 / NUM_REPEATS)

    def test_the_ranking_is_of_significant_genes_by_absolute_change(self):
        assert self.REAL.ranked().tolist() == [0, 1, 2, 3]

    def test_overlap_is_the_share_of_the_k_most_changed_real_genes(self):
        predicted = results([1, -8, 0, 6, 7, 5], [0.01] * 6)  # ranked 1, 4, 3, 5, 0, 2
        assert de_overlap(self.REAL, predicted) == 2 / 4  # 1 and 3 of 0 to 3
        assert de_overlap(self.REAL, predicted, 2) == 1 / 2
        assert de_overlap(self.REAL, predicted, 1) == 0
        assert de_overlap(self.REAL, predicted, 50) == 2 / 4  # k is not above the real genes
        assert de_overlap(self.REAL, self.REAL) == 1

    def test_predicted_genes_that_are_not_significant_are_not_found(self):
        assert de_overlap(self.REAL, results(self.REAL.log2_fold_change, [0.5] * 6)) == 0
        one = results(self.REAL.log2_fold_change, [0.01, *[0.5] * 5])
        assert de_overlap(self.REAL, one) == 1 / 4

    def test_direction_and_ranks_are_those_of_the_significant_real_genes(self):
        predicted = results([1, -2, -3, 0, -9, 9], [1] * 6)
        assert de_direction_match(self.REAL, predicted) == 2 / 4
        assert de_spearman(self.REAL, predicted) == pytest.approx(1 - 6 * (0 + 1 + 4 + 1) / (4 * 15))

    def test_infinite_changes_have_ranks(self):
        real = results([np.inf, 2, -np.inf], [0.01] * 3)
        assert de_spearman(real, results([3, 2, 1], [1] * 3)) == pytest.approx(1)
        assert de_spearman(real, results([2, 2, 2], [1] * 3)) == 0

    def test_where_no_real_gene_is_significant_there_is_no_score(self):
        nothing = results([1, 2], [0.5, 0.5])
        scores = [score(nothing, nothing) for score in (de_overlap, de_direction_match, de_spearman)]
        assert np.isnan(scores).all()


class TestDiscrimination:
    REAL = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [5, 5, 5]])

    def test_by_hand(self):
        predicted = np.array([[0.9, 0, 0], [0.6, 0.5, 0], [0, 0.9, 0], [0, 0, 0]])
        # The second has one real shift nearer than its own, the third two of which one ties, the last all.
        np.testing.assert_allclose(discrimination(self.REAL, predicted), [1, 3 / 4, 1 - 1.5 / 4, 1 / 4])

    def test_the_target_gene_does_not_tell(self):
        real = np.eye(3)
        predicted = np.array([[9.0, 0.6, 0], [0, 9, 0.6], [0.6, 0, 9]])
        np.testing.assert_allclose(discrimination(real, predicted), 1)
        np.testing.assert_allclose(discrimination(real, predicted, targets=[0, 1, 2]), [2 / 3, 2 / 3, 2 / 3])
        assert discrimination(real, predicted, targets=[0, None, None])[1] == 1

    def test_predictions_at_random_are_at_chance(self, rng):
        real = rng.normal(size=(8, 20))
        found = [discrimination(real, rng.normal(size=(8, 20))).mean() for _ in range(NUM_REPEATS)]
        assert within_five_errors(found, 9 / 16)

    def test_shifts_and_targets_are_one_for_each(self):
        with pytest.raises(ValueError, match="each of 4 perturbations, got 3 shifts and 4 targets"):
            discrimination(self.REAL, self.REAL[:3])
        with pytest.raises(ValueError, match="got 4 shifts and 1 targets"):
            discrimination(self.REAL, self.REAL, targets=[0])


class TestSplit:
    def test_halves_hold_each_cell_once(self):
        first, second = halves(11)
        assert (len(first), len(second)) == (5, 6)
        assert sorted([*first, *second]) == list(range(11))
        assert halves(11, 1)[0].tolist() != first.tolist()
        np.testing.assert_array_equal(halves(11)[0], first)

    def test_predicted_cells_are_those_from_the_first_half(self, rng):
        controls = rng.normal(size=(6, 2))
        origin = np.tile(np.arange(6), 3)
        split = ControlSplit.of(controls[origin] + 1, controls, origin=origin)
        first, second = halves(6)
        np.testing.assert_array_equal(split.first, controls[first])
        np.testing.assert_array_equal(split.second, controls[second])
        np.testing.assert_allclose(split.predicted.mean(0) - split.first.mean(0), 1)
        assert len(split.predicted) == 9

    def test_cells_without_an_origin_are_all_kept(self, rng):
        predicted = rng.normal(size=(4, 2))
        np.testing.assert_array_equal(ControlSplit.of(predicted, rng.normal(size=(6, 2))).predicted, predicted)

    @pytest.mark.parametrize(
        ("origin", "message"),
        [
            ([0, 1], r"row of the 4 controls for each of 3 predicted cells as origin, got shape \[2\]"),
            ([0, 1, 4], r"for one from each pass origin=np.arange\(4\)"),
            ([halves(4)[1][0]] * 3, "from both halves of the controls, got none from the first"),
        ],
    )
    def test_origins_that_do_not_fit_are_named(self, origin, message):
        with pytest.raises(ValueError, match=message):
            ControlSplit.of(np.ones((3, 2)), np.ones((4, 2)), origin=origin)

    def test_a_single_cell_has_no_halves(self):
        with pytest.raises(ValueError, match="at least two cells to halve, got 1"):
            halves(1)


@pytest.fixture
def group(rng):
    """Real, predicted and control cells of 40 genes of which ten change."""
    means, shift = rng.uniform(2, 4, 40), np.where(np.arange(40) < 10, np.linspace(-1, 1, 40), 0)
    controls = around(means, rng)
    return {"real": around(means + shift, rng), "predicted": controls + shift, "controls": controls}


class TestScores:
    def test_each_score_is_that_of_its_function(self, group, rng):
        centroids, origin = rng.normal(size=(3, 40)), np.arange(60)
        projection = PCA(5).fit(group["controls"])
        scores = score_perturbation(**group, origin=origin, centroids=centroids, projection=projection, top=8, seed=3)
        pair = group["real"], group["predicted"]
        spaces = [projection.transform(cells) for cells in pair]
        tests = [rank_sum_test(cells, group["controls"]) for cells in pair]
        split = ControlSplit.of(group["predicted"], group["controls"], origin=origin, seed=3)
        apart = (group["real"], split.predicted, split.second)
        expected = {
            "r2": r2_of_means(*pair),
            "rmse": rmse_of_means(*pair),
            "r2_shift": r2_of_shift(*pair, group["controls"]),
            "r2_shift_top": r2_of_shift(*pair, group["controls"], top=8),
            "pearson_shift": pearson_of_shift(*pair, group["controls"]),
            "pearson_shift_top": pearson_of_shift(*pair, group["controls"], top=8),
            "r2_shift_split": r2_of_shift(*apart, predicted_controls=split.first),
            "pearson_shift_split": pearson_of_shift(*apart, predicted_controls=split.first),
            "pearson_systema": pearson_of_shift(*pair, centroids),
            "energy_distance": energy_distance(*spaces),
            "mmd": maximum_mean_discrepancy(*spaces),
            "de_overlap": de_overlap(*tests, 8),
            "de_direction_match": de_direction_match(*tests),
            "de_spearman": de_spearman(*tests),
        }
        assert asdict(scores) == pytest.approx(expected)

    def test_the_true_shift_is_near_perfect_and_its_negative_is_not(self, group):
        scores = score_perturbation(**group, origin=np.arange(60))
        assert min(scores.r2, scores.r2_shift, scores.pearson_shift_split, scores.de_direction_match) > 0.97
        assert scores.energy_distance < 0.01
        wrong = 2 * group["controls"] - group["predicted"]
        scores = score_perturbation(**{**group, "predicted": wrong}, origin=np.arange(60))
        assert max(scores.r2_shift, scores.pearson_shift, scores.pearson_shift_split) < -0.9
        assert scores.de_direction_match < 0.2
        assert scores.energy_distance > 1

    def test_origins_keep_the_prediction_from_the_controls_of_the_truth(self, group):
        nothing = {**group, "predicted": group["controls"], "real": group["controls"]}
        assert score_perturbation(**nothing, origin=np.arange(60)).pearson_shift_split == 0
        assert score_perturbation(**nothing).pearson_shift_split == pytest.approx(-1)

    def test_a_split_that_is_given_is_taken(self, group):
        split = ControlSplit(group["predicted"] + 1, group["controls"][:20], group["controls"][20:])
        found = score_perturbation(**group, split=split).r2_shift_split
        expected = r2_of_shift(group["real"], split.predicted, split.second, predicted_controls=split.first)
        assert found == pytest.approx(expected)

    def test_scores_are_those_of_the_seed(self, group):
        origin = np.arange(60)
        assert score_perturbation(**group, origin=origin, centroids=group["real"][:3]) == score_perturbation(
            **group, origin=origin, centroids=group["real"][:3]
        )
        others = [score_perturbation(**group, origin=origin, seed=seed).pearson_shift_split for seed in (0, 1)]
        assert others[0] != others[1]

    def test_a_mean_alone_has_no_distribution(self, group):
        scores = score_perturbation(**{**group, "predicted": group["predicted"].mean(0, keepdims=True)})
        assert np.isnan([scores.energy_distance, scores.mmd, scores.pearson_systema]).all()
        assert scores.pearson_shift > 0.97

    @pytest.mark.parametrize(
        ("name", "cells", "message"),
        [
            ("predicted", np.ones((4, 39)), r"predicted of shape \[cells, 40\] .* got \[4, 39\]; .* same genes"),
            ("controls", np.ones((0, 40)), r"controls of shape \[cells, 40\] with at least one cell, got \[0, 40\]"),
            ("real", np.ones(40), r"real of shape \[cells, genes\]"),
            ("real", np.full((3, 40), np.nan), "finite values for real, got 120 NaN or infinite"),
            (
                "predicted",
                sparse.csr_matrix(np.ones((3, 40))),
                r"dense .* for predicted, .* log_normalise\(counts\)",
            ),
            ("controls", np.ones((1, 40)), "at least two cells to halve, got 1"),
        ],
    )
    def test_cells_that_do_not_fit_are_named(self, group, name, cells, message):
        with pytest.raises(ValueError, match=message):
            score_perturbation(**{**group, name: cells})


class TestTable:
    def scores(self, r2, energy=0.0):
        values = dict.fromkeys(asdict(PerturbationScores(*[0.0] * 14)), 0.0)
        return PerturbationScores(**{**values, "r2": r2, "energy_distance": energy})

    def test_means_are_over_the_groups_that_have_the_score(self):
        table = perturbation_table(
            {
                "B cells": {"ridge": self.scores(0.8, np.nan), "none": self.scores(0.2)},
                "T cells": {"ridge": self.scores(0.4, 3.0)},
            }
        )
        assert table.index.tolist() == [
            ("B cells", "ridge"),
            ("B cells", "none"),
            ("T cells", "ridge"),
            ("mean", "ridge"),
            ("mean", "none"),
        ]
        assert table.loc[("mean", "ridge"), "r2"] == pytest.approx(0.6)
        assert table.loc[("mean", "ridge"), "energy_distance"] == 3
        assert table.loc[("mean", "none"), "r2"] == 0.2
        assert table.index.names == ["group", "method"]

    @pytest.mark.parametrize("groups", [{}, {"a": {}}, {"mean": {"ridge": PerturbationScores(*[0.0] * 14)}}])
    def test_groups_that_make_no_table_are_refused(self, groups):
        with pytest.raises(ValueError, match="scores of groups of which none is called 'mean'"):
            perturbation_table(groups)
