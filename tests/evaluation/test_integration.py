"""Integration scores on neighbours counted by hand, and against scib-metrics where it is installed."""

import sys
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from genailab_pyro.evaluation import batch_excess, integration, label_agreement
from genailab_pyro.evaluation.integration import (
    batch_silhouette,
    batch_variance_removed,
    graph_connectivity,
    integration_scores,
    lisi,
    scib_scores,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def cells(rng):
    """Latents with four labels and three batches that differ, and the cells before."""
    labels, batches = rng.integers(4, size=400), rng.integers(3, size=400)
    latent = rng.normal(size=(400, 5)) + 2.5 * np.eye(5)[labels] + 0.7 * np.eye(5)[batches]
    reference = rng.normal(size=(400, 20))
    reference[:, :5] += 3 * np.eye(5)[labels]
    reference[:, 5:10] += 2 * np.eye(5)[batches]
    return latent, batches, labels, reference


def mixed(rng, size=300):
    """Two far labels, in each of which three batches are mixed perfectly."""
    labels, batches = np.repeat([0, 1], size // 2), np.tile([0, 1, 2], size // 3)
    return rng.normal(size=(size, 3)) + 30 * labels[:, None], batches, labels


class TestLisi:
    def test_equal_distances_count_the_neighbours_of_each_batch(self):
        # All points of a simplex are equally far; beside each are 30 - 1 others: 14 of its batch, 15 of the other.
        latent, codes = np.eye(30), np.repeat([0, 1], 15)
        expected = 1 / ((14 / 29) ** 2 + (15 / 29) ** 2)
        np.testing.assert_allclose(lisi(latent, codes, perplexity=10.0), expected)
        counting_itself = 1 / ((15 / 30) ** 2 + (15 / 30) ** 2)
        assert abs(counting_itself - expected) > 1e-3

    def test_two_distances_weigh_by_a_beta_of_the_given_entropy(self):
        # The first cell has 20 others at distance 1 and 69 at distance 2; one weight solves for the entropy.
        latent = np.zeros((90, 90))
        latent[1:, 1:] = np.eye(89) * np.where(np.arange(89) < 20, 1.0, 2.0)
        codes = np.array([0, *[0] * 20, *[1] * 69])
        found = lisi(latent, codes, perplexity=30.0)[0]
        near = np.linspace(0.01, 0.999, 200_001)  # the weight of all near cells together
        entropy = -near * np.log(near / 20) - (1 - near) * np.log((1 - near) / 69)
        # The weight is on the branch on which near cells weigh more.
        near = near[near > 20 / 89][np.argmin(np.abs(entropy[near > 20 / 89] - np.log(30)))]
        assert found == pytest.approx(1 / (near**2 + (1 - near) ** 2), abs=1e-4)
        squared = lisi(latent**2, codes, perplexity=30.0)[0]
        assert squared == pytest.approx(found, abs=1e-4)  # two distances alone decide, whatever they are

    def test_one_batch_around_is_one_and_all_alike_is_their_number(self, rng):
        latent, batches, labels = mixed(rng)
        np.testing.assert_allclose(lisi(latent, labels), 1)
        assert np.median(lisi(latent, batches)) > 2.7

    def test_more_neighbours_than_cells_are_refused(self):
        with pytest.raises(ValueError, match="expected more than 89 cells, as many neighbours are looked at, got 89"):
            lisi(np.zeros((89, 2)), np.zeros(89, dtype=int))


class TestGraphConnectivity:
    LATENT = np.concatenate([np.linspace(0, 1, 6), np.linspace(100, 101, 4), np.linspace(200, 201, 10)])[:, None]

    def test_the_largest_piece_of_each_label_counts(self):
        labels = np.repeat([0, 1], 10)  # the first is in pieces of 6 and 4
        assert graph_connectivity(self.LATENT, labels, num_neighbours=3) == pytest.approx((0.6 + 1) / 2)

    def test_edges_of_other_labels_do_not_connect(self):
        # Every second cell of a line: its neighbours on both sides are of the other label.
        line = np.arange(20.0)[:, None]
        labels = np.arange(20) % 2
        assert graph_connectivity(line, labels, num_neighbours=3) == pytest.approx(0.1, abs=0.1)
        assert graph_connectivity(line, labels // 2, num_neighbours=3) == 1

    def test_a_one_way_neighbour_does_not_connect(self):
        # The far cell has two near neighbours, and is the neighbour of none.
        latent = np.array([0.0, 0.1, 0.2, 9.0])[:, None]
        assert graph_connectivity(latent, np.zeros(4, dtype=int), num_neighbours=3) == 0.75


class TestBatchSilhouette:
    def test_four_cells_by_hand(self):
        # Within each batch the other cell is 1 away; the other batch is (d, d + 1) or (d - 1, d) away.
        latent, batches = np.array([0.0, 1.0, 10.0, 11.0])[:, None], np.array([0, 0, 1, 1])
        widths = np.array([1 - 1 / 10.5, 1 - 1 / 9.5, 1 - 1 / 9.5, 1 - 1 / 10.5])
        labels = np.zeros(4, dtype=int)
        assert batch_silhouette(latent, batches, labels) == pytest.approx(1 - widths.mean())

    def test_cells_nearer_to_the_other_batch_than_to_their_own_are_no_better(self):
        # The other cell of the batch is 10 away, the other batch 6 or 5 away: s is -0.4 or -0.5.
        latent, batches = np.array([0.0, 10.0, 1.0, 11.0])[:, None], np.array([0, 0, 1, 1])
        assert batch_silhouette(latent, batches, np.zeros(4, dtype=int)) == pytest.approx(0.55)

    def test_labels_weigh_alike_and_those_that_cannot_mix_are_left_out(self, rng):
        latent, batches, labels = mixed(rng)
        both = [batch_silhouette(latent[labels == k], batches[labels == k], labels[labels == k]) for k in (0, 1)]
        more = np.concatenate([latent, latent[labels == 0], latent[:5]])
        more_batches = np.concatenate([batches, batches[labels == 0], [0] * 5])
        more_labels = np.concatenate([labels, [0] * 150, [2] * 5])  # the label 2 is in one batch
        found = batch_silhouette(more, more_batches, more_labels)
        twice = batch_silhouette(*(np.tile(v[labels == 0], (2, 1)[: v.ndim]) for v in (latent, batches, labels)))
        assert found == pytest.approx((twice + both[1]) / 2)
        with pytest.raises(ValueError, match="expected a label with cells in at least two batches, got none"):
            batch_silhouette(latent, labels, labels)


class TestBatchVarianceRemoved:
    def test_the_share_between_means_by_hand(self):
        # Means of -1 and 1 with 1 within: half of the variance. After, means of -1 and 1 with 3 within: a quarter.
        batches = np.array([0, 0, 1, 1])
        before = np.array([-2.0, 0.0, 0.0, 2.0])[:, None]
        after = np.array([-1 - 3**0.5, -1 + 3**0.5, 1 - 3**0.5, 1 + 3**0.5])[:, None]
        assert batch_variance_removed(before, after, batches) == pytest.approx(0.5)
        assert batch_variance_removed(after, before, batches) == 0  # more than before counts as none removed
        with pytest.raises(ValueError, match="expected a reference in which the batches' means differ"):
            batch_variance_removed(after, before, np.array([0, 1, 1, 0]))

    def test_it_is_the_regression_of_principal_components(self, cells):
        latent, batches, _, reference = cells

        def regression(matrix):
            scores, sizes, _ = np.linalg.svd(matrix - matrix.mean(0), full_matrices=False)
            design = np.eye(3)[batches]
            fitted = design @ np.linalg.lstsq(design, scores, rcond=None)[0]
            return ((fitted**2).sum(0) * sizes**2).sum() / (sizes**2).sum()

        before, after = regression(reference), regression(latent)
        assert batch_variance_removed(reference, latent, batches) == pytest.approx((before - after) / before)

    def test_many_features_are_reduced_to_fifty(self, rng):
        batches = np.repeat([0, 1], 100)
        noise = rng.normal(size=(200, 80))
        latent = rng.normal(size=(200, 3)) + batches[:, None]
        wide = noise + 2 * batches[:, None]
        centred = wide - wide.mean(0)
        components = np.linalg.svd(centred, full_matrices=False)[2][:50]
        found = batch_variance_removed(wide, latent, batches)
        assert found == pytest.approx(batch_variance_removed(centred @ components.T, latent, batches), abs=1e-3)


class TestIntegrationScores:
    def test_perfect_mixing_of_labels_that_are_apart(self, rng):
        latent, batches, labels = mixed(rng)
        scores = integration_scores(latent, batches, labels, reference=latent + 5 * batches[:, None])
        assert (scores.purity, scores.ari, scores.clisi, scores.graph_connectivity) == (1.0, 1.0, 1.0, 1.0)
        assert abs(scores.batch_excess) < 0.03
        assert scores.ilisi > 0.85
        assert scores.batch_asw > 0.95
        assert scores.pcr > 0.95

    def test_batches_that_are_apart_are_seen_by_every_score_of_mixing(self, rng):
        latent, batches, labels = mixed(rng)
        apart = latent + 8 * np.eye(3)[batches]
        good = integration_scores(latent, batches, labels, reference=apart)
        bad = integration_scores(apart, batches, labels, reference=apart)
        assert bad.batch_excess > good.batch_excess + 0.5
        for name in ("ilisi", "batch_asw", "pcr", "graph_connectivity"):
            assert getattr(bad, name) < getattr(good, name) - 0.2, name
        assert bad.purity == good.purity == 1

    def test_labels_that_are_lost_are_seen_by_every_score_of_labels(self, rng):
        latent, batches, labels = mixed(rng)
        good, bad = (integration_scores(latent, batches, codes) for codes in (labels, rng.permutation(labels)))
        for name in ("purity", "ari", "nmi", "label_asw", "clisi", "graph_connectivity"):
            assert getattr(bad, name) < getattr(good, name) - 0.1, name
        assert bad.purity == pytest.approx(bad.chance, abs=0.03)
        assert bad.clisi < 0.1

    def test_its_parts_are_the_functions_of_the_package(self, cells):
        latent, batches, labels, reference = cells
        scores = integration_scores(latent, batches, labels, reference=reference, seed=3)
        agreement = label_agreement(latent, labels, seed=3)
        assert (scores.ari, scores.nmi, scores.purity, scores.chance) == tuple(vars(agreement).values())
        assert scores.batch_excess == batch_excess(latent, batches, labels)
        assert scores.pcr == batch_variance_removed(reference, latent, batches)
        assert integration_scores(latent, batches, labels).pcr is None

    def test_names_are_as_good_as_codes_and_cells_without_a_label_are_left_out(self, cells):
        latent, batches, labels, _ = cells
        partly = np.where(np.arange(400) % 4 == 0, -1, labels)
        names = pd.Series([None if code < 0 else f"type {code}" for code in partly], dtype="category")
        known = partly >= 0
        expected = integration_scores(latent[known], batches[known], labels[known])
        for found in (
            integration_scores(latent, batches, partly),
            integration_scores(latent, np.array(["a", "b", "c"])[batches], names),
        ):
            assert asdict(found) == pytest.approx(asdict(expected))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"latent": np.zeros(400)}, r"expected latent of shape \[400, columns\] .* got shape \[400\]"),
            ({"latent": np.full((400, 2), np.nan)}, "800 values NaN or infinite"),
            ({"batches": np.zeros(3, dtype=int)}, r"expected batches of shape \[400\], one for each row, got \[3\]"),
            ({"batches": np.zeros(400, dtype=int)}, "expected cells of at least two batches, got 1"),
            ({"batches": np.full(400, -1)}, "expected a batch of every labelled cell, got 400 without"),
            ({"labels": np.zeros(400, dtype=int)}, "expected at least two labels"),
            ({"reference": np.zeros((3, 2))}, r"expected reference of shape \[400, columns\]"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, cells, change, message):
        arguments = dict(zip(("latent", "batches", "labels"), cells, strict=False)) | change
        with pytest.raises(ValueError, match=message):
            integration_scores(**arguments)


class TestScibMetrics:
    @pytest.mark.slow
    def test_the_scores_are_those_of_scib_metrics(self, cells):
        scib_metrics = pytest.importorskip("scib_metrics")
        latent, batches, labels, reference = cells
        ours = integration_scores(latent, batches, labels, reference=reference)
        with np.errstate(all="ignore"):
            table = scib_scores({"X_vae": latent}, batches, labels, reference=reference)
        assert table.columns.name == f"scib-metrics {scib_metrics.__version__}"
        row = table.loc["X_vae"]
        named = {
            "Silhouette label": ours.label_asw,
            "cLISI": ours.clisi,
            "iLISI": ours.ilisi,
            "Graph connectivity": ours.graph_connectivity,
            "PCR comparison": ours.pcr,
        }
        assert {name: row[name] for name in named} == pytest.approx(named, abs=1e-4)
        batch_asw = scib_metrics.silhouette_batch(latent, labels, batches)
        assert batch_asw == pytest.approx(ours.batch_asw, abs=1e-4)

    def test_without_it_the_command_is_named(self, cells, monkeypatch):
        monkeypatch.setitem(sys.modules, "scib_metrics.benchmark", None)
        with pytest.raises(ImportError, match=r"pip install 'genailab-pyro\[integration\]'") as caught:
            scib_scores({"X_vae": cells[0]}, cells[1], cells[2], reference=cells[3])
        assert "\n" not in str(caught.value)


def test_a_planted_error_in_the_weights_is_found(cells, monkeypatch):
    latent, batches, _, _ = cells
    right = lisi(latent, batches)
    monkeypatch.setattr(integration, "_weights", lambda distances, perplexity: np.full_like(distances, 1 / 89))
    assert np.abs(np.median(lisi(latent, batches)) - np.median(right)) > 1e-3
