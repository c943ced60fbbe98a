"""The contenders run, and those that are written here compute what ours does."""

import gc
import importlib.util

import h5py
import numpy as np
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

import genailab_pyro as glp
from genailab_pyro.data.cells import Cells
from genailab_pyro.sparse import nonzeros_of
from genailab_pyro.train.run import Run, own_state
from tests.benchmarks import memory, scvi_tools, speed
from tests.benchmarks.__main__ import main
from tests.benchmarks.counts import density_of, simulated
from tests.benchmarks.networks import Network, loss_by_hand, pyro_programs
from tests.benchmarks.step import TRAINING
from tests.benchmarks.timing import Seconds, alternate
from tests.benchmarks.training import (
    CONTENDERS,
    DENSE,
    DROPOUT,
    OURS,
    PYRO,
    SCVI,
    TORCH,
    DenseCells,
    DenseReader,
    Task,
)

LIKELIHOODS = pytest.mark.parametrize("inflated", [False, True], ids=["NB", "ZINB"])
HERE = [name for name in CONTENDERS if name != SCVI]
needs_scvi = pytest.mark.skipif(importlib.util.find_spec("scvi") is None, reason="scvi-tools is not installed")


@pytest.fixture(scope="module")
def cells():
    return simulated(200, 30)


@pytest.fixture(autouse=True)
def no_collections(monkeypatch):
    """They take longer here than all contenders."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


def without_scvi(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@LIKELIHOODS
def test_every_contender_has_a_positive_speed(cells, inflated):
    measured = speed.measure(Task(cells, inflated), scored=16, rounds=1, scvi_too=False)
    for timings, num_cells in measured.values():
        assert num_cells in (200, 16)
        assert all(timings.median(name) > 0 for name in timings.seconds)
    assert [*measured["Training"][0].seconds] == HERE


@needs_scvi
@LIKELIHOODS
def test_scvi_trains_encodes_and_scores(cells, inflated):
    measured = speed.measure(Task(cells, inflated, most=128), scored=16, rounds=1, scvi_too=True)
    speeds = [timings.median(name) for timings, _ in measured.values() for name in timings.seconds if SCVI in name]
    assert len(speeds) == 4
    assert min(speeds) > 0


@LIKELIHOODS
@pytest.mark.parametrize("contender", [PYRO, TORCH])
def test_the_loss_and_its_gradient_are_ours(cells, inflated, contender):
    vae = Task(cells, inflated).vae().double()
    if inflated:
        torch.nn.init.normal_(vae.likelihood.gate.weight)
    network = Network.of(vae).train()
    dropouts = [[part for part in whole.modules() if isinstance(part, nn.Dropout)] for whole in (vae, network)]
    assert [part.p for part in dropouts[0]] == [part.p for part in dropouts[1]] == [DROPOUT] * 2
    for part in (*dropouts[0], *dropouts[1]):
        part.p = 0.0  # the draws are not the same
    minibatch = cells.take(range(120), dtype=torch.float64)  # a part, so that the plate's factor is not one
    assert nonzeros_of(minibatch.counts) is not None
    with own_state(0):
        run = Run(vae, cells, glp.estimators.get("pathwise"), TRAINING)
        vae.train()
        torch.manual_seed(3)
        ours = run.objective.loss_and_grads(run.model, run.guide, minibatch)
        torch.manual_seed(3)
        if contender == PYRO:
            loss = Trace_ELBO().differentiable_loss(*pyro_programs(network), minibatch)
        else:
            loss = loss_by_hand(network, minibatch)
        loss.backward()
    assert loss.item() == pytest.approx(ours, rel=1e-12)
    pairs = {
        "encoder": (network.encoder.trunk[0].weight.grad, vae.encoder.trunk.layers[0].weight.grad.t()),
        "scale": (network.encoder.scale.weight.grad, vae.encoder.scale.weight.grad),
        "decoder": (network.decoder.trunk[0].weight.grad, vae.decoder.layers[0].weight.grad.t()),
        "mean": (network.decoder.log_expression.weight.grad, vae.likelihood.log_expression.weight.grad),
        "dispersion": (
            network.decoder.log_inverse_dispersion.grad,
            vae.likelihood.log_inverse_dispersion.log_value.grad,
        ),
    }
    if inflated:
        pairs["gate"] = network.decoder.gate.weight.grad, vae.likelihood.gate.weight.grad
    for theirs, mine in pairs.values():
        torch.testing.assert_close(theirs, mine, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", [OURS, DENSE])
@pytest.mark.parametrize(("most", "size"), [(None, 200), (150, 150)])
def test_our_epoch_reads_so_many_cells(cells, name, most, size, monkeypatch):
    taken = []
    with own_state(0):
        epoch = CONTENDERS[name](Task(cells, most=most))
        take = Cells.take
        monkeypatch.setattr(
            Cells, "take", lambda self, index, **of: taken.append(len(index)) or take(self, index, **of)
        )
        epoch()
    assert sum(taken) == size


def test_cells_in_the_dense_form_do_not_know_their_zeros(cells):
    known, plain = (held.take(range(9)).counts for held in (cells, DenseCells.of(cells)))
    assert nonzeros_of(known) is not None
    assert type(plain) is torch.Tensor
    torch.testing.assert_close(plain, known.as_subclass(torch.Tensor))
    assert type(DenseCells.of(cells).subset([3, 1])) is DenseCells


def test_a_dense_epoch_has_each_cell_once(cells):
    minibatches = [*DenseReader(Task(cells, minibatch_size=64))]
    index = torch.cat([minibatch.index for minibatch in minibatches])
    assert sorted(index.tolist()) == [*range(200)]
    assert [minibatch.size for minibatch in minibatches] == [50] * 4
    for minibatch in minibatches:
        torch.testing.assert_close(minibatch.counts.sum(1), minibatch.library)
    assert sum(minibatch.size for minibatch in DenseReader(Task(cells, most=150))) == 150


def test_large_data_repeat_small_ones(monkeypatch):
    monkeypatch.setattr("tests.benchmarks.counts.AT_ONCE", 40 * 30)
    cells = simulated(100, 30, 0.25)
    counts = cells.counts_matrix().toarray()
    assert counts.shape == (100, 30)
    np.testing.assert_array_equal(counts[40:80], counts[:40])
    assert 0.2 < density_of(cells) < 0.3


def test_without_scvi_one_line_says_how_to_install_it(monkeypatch, capsys):
    without_scvi(monkeypatch)
    assert not scvi_tools.available()
    assert capsys.readouterr().out.splitlines() == [
        "scvi-tools is left out, as it is not installed: pip install 'genailab-pyro[bench]'"
    ]


def test_a_contender_may_time_itself():
    timings = alternate({"a": lambda: Seconds(2.0)}, rounds=2, repeats=3, warmup=0)
    assert timings.seconds["a"].tolist() == [2.0, 2.0]


def test_tables_and_figure_of_tiny_data(monkeypatch, capsys, tmp_path):
    without_scvi(monkeypatch)
    threads = torch.get_num_threads()
    main(
        ["speed", "scaling", "--small", "--rounds", "1", "--threads", str(threads), "--figure", str(tmp_path / "a.png")]
    )
    printed = capsys.readouterr().out
    for text in ("Training, negative binomial: 256 cells", "Encoding, zero-inflated", "100 draws", *HERE):
        assert text in printed
    assert (tmp_path / "a.png").stat().st_size > 0


@pytest.mark.parametrize("storage", [memory.IN_MEMORY, memory.ON_DISK])
def test_a_file_in_parts_is_trained_on(storage, tmp_path, monkeypatch):
    for name, value in {"CHUNK": 30, "GENES": 20}.items():
        monkeypatch.setattr(memory, name, value)
    path = tmp_path / "cells.h5ad"
    size = memory.write_cells(path, 70)
    with h5py.File(path) as file:
        assert size == pytest.approx(sum(file["X"][name].nbytes for name in ("data", "indices", "indptr")) / 1e6)
    assert memory.train(path, storage) > 50
