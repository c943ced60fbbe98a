"""Reading ahead, and the counts of minibatches that know their zeros."""

import threading

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from genailab_pyro.data.ahead import ahead
from genailab_pyro.data.cells import Cells
from genailab_pyro.data.registration import register
from genailab_pyro.sparse import CountTensor, nonzeros_of

PATIENCE = 10  # seconds after which a thread that waits has failed


def makers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    assert makers() == []
    yield
    assert makers() == []


def noted(made, count, error_at=None):
    for item in range(count):
        if item == error_at:
            raise KeyError(item)
        made.append(item)
        yield item


class TestAhead:
    @pytest.mark.parametrize("count", [0, 1, 2, 25])
    def test_items_come_in_their_order(self, count):
        assert list(ahead(iter(range(count)))) == list(range(count))

    @pytest.mark.parametrize("items", [[None, False, 0, ()], [None], [StopIteration]])
    def test_any_item_will_do(self, items):
        assert list(ahead(iter(items))) == items

    def test_nothing_is_made_before_the_first_is_asked_for(self):
        made = []
        items = ahead(noted(made, 3))
        assert made == []
        assert makers() == []
        assert next(items) == 0
        items.close()

    def test_at_most_one_is_made_before_it_is_asked_for(self):
        made = []
        for item in ahead(noted(made, 12)):
            for thread in makers():
                thread.join(0.01)
            assert len(made) <= item + 2

    def test_the_next_is_made_while_one_is_in_use(self):
        in_use, made = threading.Event(), threading.Event()

        def items():
            yield "first"
            assert in_use.wait(PATIENCE)
            made.set()
            yield "second"

        coming = ahead(items())
        assert next(coming) == "first"
        in_use.set()
        assert made.wait(PATIENCE)
        assert list(coming) == ["second"]

    def test_items_are_made_in_one_other_thread(self):
        names = list(ahead(threading.current_thread().name for _ in range(5)))
        assert len({*names}) == 1
        assert names[0].startswith("ahead")

    @pytest.mark.parametrize("place", [0, 1, 4])
    def test_an_error_comes_where_its_item_would_have(self, place):
        items = ahead(noted([], 6, error_at=place))
        assert [next(items) for _ in range(place)] == list(range(place))
        with pytest.raises(KeyError, match=str(place)):
            next(items)
        assert next(items, "over") == "over"

    @pytest.mark.parametrize("used", [1, 3])
    def test_closing_stops_the_thread_and_what_it_makes(self, used):
        made = []
        items = ahead(noted(made, 20))
        assert [next(items) for _ in range(used)] == list(range(used))
        assert len(makers()) == 1
        items.close()
        assert makers() == []
        assert used <= len(made) <= used + 1
        assert next(items, "over") == "over"

    def test_leaving_the_loop_stops_the_thread(self):
        made = []
        for item in ahead(noted(made, 20)):
            if item == 2:
                break
        assert makers() == []
        assert len(made) <= 4

    def test_an_error_of_the_user_stops_the_thread(self):
        def use(items):
            for item in items:
                raise RuntimeError(f"in use of {item}")

        with pytest.raises(RuntimeError, match="in use of 0"):
            use(ahead(iter(range(20))))

    def test_closing_does_not_raise_the_error_of_an_item_that_is_not_used(self):
        items = ahead(noted([], 5, error_at=1))
        assert next(items) == 0
        items.close()

    def test_two_are_read_side_by_side(self):
        assert list(zip(ahead(iter(range(9))), ahead(iter("abcdefghi")), strict=True)) == list(enumerate("abcdefghi"))


NUM_CELLS, NUM_GENES = 30, 8
KINDS = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.array, "by genes": np.asfortranarray}
STORAGES = [*KINDS, "backed csr", "backed csc", "backed dense", "stored zeros"]

storages = pytest.mark.parametrize("storage", STORAGES)
by_genes = pytest.mark.filterwarnings("ignore:.*stored by genes:UserWarning")


def raw_counts(nonzero=0.3):
    rng = np.random.default_rng(0)
    counts = (1 + rng.poisson(1.0, (NUM_CELLS, NUM_GENES))) * (rng.random((NUM_CELLS, NUM_GENES)) < nonzero)
    counts[:, 0] = 1 + np.arange(NUM_CELLS) % 3
    return counts.astype(np.float32)


def with_stored_zeros(counts):
    whole = sp.csr_matrix(counts + 1)
    whole.data -= 1
    columns = whole.indices.reshape(counts.shape)[:, ::-1].ravel().copy()
    values = whole.data.reshape(counts.shape)[:, ::-1].ravel().copy()
    return sp.csr_matrix((values, columns, whole.indptr), counts.shape)


def cells(storage, folder, counts=None):
    counts = raw_counts() if counts is None else counts
    kind = with_stored_zeros if storage == "stored zeros" else KINDS[storage.removeprefix("backed ")]
    obs = pd.DataFrame(index=[f"cell{position}" for position in range(NUM_CELLS)])
    var = pd.DataFrame(index=[f"G{position}" for position in range(NUM_GENES)])
    adata = anndata.AnnData(kind(counts), obs=obs, var=var)
    if "backed" not in storage:
        return register(adata)
    adata.write_h5ad(folder / "counts.h5ad")
    return register(anndata.read_h5ad(folder / "counts.h5ad", backed="r"))


def assert_known(counts, expected):
    assert isinstance(counts, CountTensor)
    np.testing.assert_array_equal(counts, expected)
    assert (counts.nonzeros.values != 0).all()
    assert counts.nonzeros.values.dtype == counts.dtype
    np.testing.assert_array_equal(counts.nonzeros.dense(), expected)
    np.testing.assert_array_equal(counts.nonzeros.transposed.dense(), np.transpose(expected))


class TestMinibatches:
    @storages
    @pytest.mark.parametrize("seed", [None, 4])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])
    @by_genes
    def test_they_know_their_nonzeros_whatever_holds_them(self, storage, seed, dtype, tmp_path):
        seen = []
        for minibatch in cells(storage, tmp_path).minibatches(7, seed=seed, dtype=dtype):
            assert minibatch.counts.dtype == dtype
            assert_known(minibatch.counts, raw_counts()[minibatch.index])
            seen += minibatch.index.tolist()
        assert sorted(seen) == list(range(NUM_CELLS))

    @storages
    @by_genes
    def test_they_come_ahead_as_they_come(self, storage, tmp_path):
        read = cells(storage, tmp_path)
        for first, second in zip(ahead(read.minibatches(7, seed=1)), read.minibatches(7, seed=1), strict=True):
            assert torch.equal(first.index, second.index)
            assert torch.equal(first.library, second.library)
            assert_known(first.counts, second.counts)

    @storages
    @by_genes
    def test_subsets_and_repeats_keep_their_own(self, storage, tmp_path):
        part = cells(storage, tmp_path).subset(np.arange(NUM_CELLS)[::-2])
        assert_known(part.take([3, 0, 3]).counts, raw_counts()[::-2][[3, 0, 3]])

    @pytest.mark.parametrize("storage", ["csr", "dense", "backed csr"])
    def test_other_genes_have_their_own(self, storage, tmp_path):
        order = [5, 0, 7, 2, 1, 3, 4, 6]
        bound = cells(storage, tmp_path)
        again = bound.registration.bind(
            bound.adata.to_memory()[:, order] if bound.adata.isbacked else bound.adata[:, order]
        )
        assert_known(again.take([4, 1]).counts, raw_counts()[[4, 1]])

    @pytest.mark.parametrize("storage", ["csr", "dense"])
    def test_counts_that_are_mostly_not_zero_are_ordinary(self, storage, tmp_path):
        full = cells(storage, tmp_path, raw_counts(nonzero=0.9))
        counts = full.take(np.arange(NUM_CELLS)).counts
        assert nonzeros_of(counts) is None
        np.testing.assert_array_equal(counts, raw_counts(nonzero=0.9))

    @pytest.mark.parametrize("kind", [np.array, sp.csr_matrix, torch.tensor])
    def test_tensors_know_theirs_too(self, kind):
        counts = raw_counts().astype(np.int64)
        assert_known(Cells.from_tensors(kind(counts)).take([2, 9]).counts, counts[[2, 9]])

    @storages
    @by_genes
    def test_changing_a_minibatch_changes_no_other(self, storage, tmp_path):
        read = cells(storage, tmp_path)
        first = read.take([1, 2]).counts
        first.nonzeros.values.zero_()
        first.zero_()
        assert first.nonzeros is None
        assert_known(read.take([1, 2]).counts, raw_counts()[[1, 2]])
