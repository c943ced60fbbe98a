"""Agreement with labels and mixing of batches, on latents whose answer is known."""

import numpy as np
import pytest

from genailab_pyro.evaluation import batch_excess, label_agreement

SIZES = (60, 90, 150)


@pytest.fixture
def labels():
    return np.repeat([0, 1, 2], SIZES)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def islands(codes, rng, distance=20.0):
    """One far island per code."""
    return distance * np.eye(codes.max() + 1)[codes] + rng.normal(size=(len(codes), codes.max() + 1))


def chance(sizes):
    total = sum(sizes)
    return sum(size * (size - 1) for size in sizes) / (total * (total - 1))


class TestLabelAgreement:
    def test_islands_of_labels_agree_perfectly(self, labels, rng):
        found = label_agreement(islands(labels, rng), labels)
        assert (found.ari, found.nmi, found.purity) == (1.0, pytest.approx(1.0), 1.0)
        assert found.chance == pytest.approx(chance(SIZES))

    def test_the_names_of_the_labels_do_not_matter(self, labels, rng):
        latent = islands(labels, rng)
        swapped = np.array([7, 2, 40])[labels]
        assert label_agreement(latent, swapped) == label_agreement(latent, labels)

    def test_random_labels_agree_by_chance_alone(self, labels, rng):
        latent = islands(labels, rng)
        found = label_agreement(latent, rng.permutation(labels))
        assert abs(found.ari) < 0.03
        assert found.nmi < 0.03
        assert found.purity == pytest.approx(found.chance, abs=0.03)

    def test_two_labels_in_one_island_cost_agreement(self, labels, rng):
        merged = label_agreement(islands(np.minimum(labels, 1), rng), labels)
        assert merged.ari < 0.8
        inside = chance(SIZES[1:])
        expected = (SIZES[0] + (SIZES[1] + SIZES[2]) * inside) / sum(SIZES)
        assert merged.purity == pytest.approx(expected, abs=0.03)

    def test_a_cell_is_not_its_own_neighbour(self):
        # Each cell's one neighbour is its twin, which has the other label.
        latent = np.repeat(np.arange(40.0), 2)[:, None] * 10 + np.tile([0.0, 1.0], 40)[:, None]
        assert label_agreement(latent, np.tile([0, 1], 40), num_neighbours=1).purity == 0

    def test_cells_without_a_label_are_left_out(self, labels, rng):
        latent = islands(labels, rng)
        partly = labels.copy()
        partly[::3] = -1
        latent[::3] = rng.normal(size=latent[::3].shape)
        found = label_agreement(latent, partly)
        assert found == label_agreement(latent[partly >= 0], partly[partly >= 0])
        assert found.ari == 1

    @pytest.mark.parametrize(
        ("codes", "got"),
        [
            (np.zeros(100, dtype=int), "1 labels and 100 cells"),
            (np.repeat([0, 1, -1], [5, 5, 90]), "2 labels and 10 cells"),
        ],
    )
    def test_too_few_labels_or_cells_are_refused(self, codes, got, rng):
        with pytest.raises(ValueError, match=f"more than 15 labelled cells, got {got}"):
            label_agreement(rng.normal(size=(100, 2)), codes)


class TestBatchExcess:
    def test_batches_drawn_at_random_mix_perfectly(self, labels, rng):
        latent, batches = islands(labels, rng), rng.integers(2, size=len(labels))
        assert batch_excess(latent, batches, labels) == pytest.approx(0, abs=0.03)

    def test_batches_apart_exceed_chance_by_all_there_is(self, labels, rng):
        batches = np.tile([0, 1, 2], 100)
        latent = islands(labels, rng) + 8 * islands(batches, rng)
        expected = np.average([1 - chance([size // 3] * 3) for size in SIZES], weights=SIZES)
        assert batch_excess(latent, batches, labels) == pytest.approx(expected)

    def test_neighbours_are_looked_for_within_the_label(self, labels, rng):
        # The batches lie apart only because their labels do, which is no lack of mixing.
        batches = np.where(labels == 0, rng.random(300) < 0.9, rng.random(300) < 0.1).astype(int)
        latent = islands(labels, rng)
        assert batch_excess(latent, batches, labels) == pytest.approx(0, abs=0.03)
        assert batch_excess(latent, batches, np.zeros(300, dtype=int)) > 0.15

    def test_labels_are_weighted_by_their_cells(self, rng):
        labels = np.repeat([0, 1], [50, 150])
        batches = np.tile([0, 1], 100)
        apart = np.where(labels == 0, 50.0 * batches, 0.0)[:, None] + rng.normal(size=(200, 1))
        alone = 1 - chance([25, 25])
        assert batch_excess(apart, batches, labels) == pytest.approx(alone / 4, abs=0.05)

    def test_labels_that_cannot_mix_are_left_out(self, labels, rng):
        latent, batches = islands(labels, rng), rng.integers(2, size=len(labels))
        batches[labels == 2] = 1
        kept = labels < 2
        expected = batch_excess(latent[kept], batches[kept], labels[kept])
        assert batch_excess(latent, batches, labels) == expected
        few = np.concatenate([labels, [3] * 5, [-1] * 40])
        more = np.concatenate([latent, rng.normal(size=(45, 3))])
        assert batch_excess(more, np.concatenate([batches, np.arange(45) % 2]), few) == expected

    def test_where_no_label_can_mix_it_is_refused(self, labels, rng):
        with pytest.raises(ValueError, match="at least two batches, got none"):
            batch_excess(islands(labels, rng), labels, labels)
