"""A run that is killed at any moment goes on to the bits of one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from pandas.testing import assert_frame_equal

import genailab_pyro as glp
from genailab_pyro.train.storage import read_tensors, write_tensors

NUM_EPOCHS = 10
STATE = "checkpoint.safetensors"
# Kills so many seconds after so many epochs; and while the n-th file is written.
_draws = random.Random(0)
MOMENTS = tuple((epoch, _draws.uniform(0.0, 0.05)) for epoch in _draws.sample(range(NUM_EPOCHS - 1), 5))
WRITES = (1, 2, 3, 6, 9)


def begin(folder, **changes):
    """A run whose every step depends on all that came before: dropout, warm-up, schedule, patience."""
    adata, _ = glp.data.simulate(120, 20, num_types=3, num_batches=2, seed=1)
    cells = glp.register(adata, conditions=["batch"])
    vae = glp.CVAE_NB.from_registration(
        cells, latent_dim=3, hidden_dims=[16], embedding_dim=2, library="latent", norm="batch", dropout=0.2
    )
    settings = {
        "max_epochs": NUM_EPOCHS,
        "minibatch_size": 32,
        "optimizer": "adamw",
        "learning_rate": 0.02,
        "learning_rate_schedule": "one-cycle",
        "weight_decay": 0.1,
        "gradient_clip": 1000.0,
        "warmup": glp.Warmup(shape="cosine", length=0.5, cycles=2),
        "free_bits": 0.05,
        "validation_fraction": 0.2,
        "patience": 9,
        **changes,
    }
    return glp.fit(vae, cells, seed=5, run_folder=folder, progress=False, **settings)


def killed(folder, *, moment=None, write=None):
    """Run in a child process that is killed: at a moment, or just before its n-th file is in place."""
    child = os.fork()
    if child == 0:
        if write is not None:
            replace, calls = Path.replace, iter(range(1, 10**6))

            def deadly(path, target):
                if next(calls) == write:
                    os.kill(os.getpid(), signal.SIGKILL)
                return replace(path, target)

            Path.replace = deadly
        if (folder / "run.json").exists():
            resumed(folder)
        else:
            begin(folder)
        os._exit(0)
    if moment is not None:
        epoch, seconds = moment
        while not (folder / "run.json").exists() or epochs_done(folder) < epoch:
            time.sleep(0.001)
        time.sleep(seconds)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def kill_over_and_over(folder):
    """Kill one run, and each process that goes on with it, until it has come to its end."""
    draws = random.Random(1)
    begin(folder / "whole")
    while not (folder / "again" / "run.json").exists() or epochs_done(folder / "again") < NUM_EPOCHS:
        write = draws.choice([None, 1, 2])
        killed(folder / "again", write=write, moment=None if write else (0, draws.uniform(0.0, 0.3)))


def kill_once(folder):
    """In a process of its own, since a fork of one that has started threads may hang."""
    begin(folder / "whole")
    for number, moment in enumerate(MOMENTS):
        killed(folder / f"moment{number}", moment=moment)
    epochs = [epochs_done(folder / f"moment{number}") for number in range(len(MOMENTS))]
    (folder / "epochs.json").write_text(json.dumps(epochs))
    for write in WRITES:
        killed(folder / f"write{write}", write=write)


def run_this_file(way, folder):
    # A fork of a process with a pool of threads may hang: the children are forked from one that has none.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run([sys.executable, __file__, way, str(folder)], check=True, timeout=300, env=environment)


@pytest.fixture(scope="module")
def graveyard(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    run_this_file("once", folder)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return begin(folder), folder


def resumed(folder, cells=None, **options):
    adata, _ = glp.data.simulate(120, 20, num_types=3, num_batches=2, seed=1)
    given = glp.register(adata, conditions=["batch"]) if cells is None else cells
    return glp.resume(folder, given, progress=False, **options)


def assert_same_run(first, second):
    """Two fits and their folders, equal in everything but the time they took."""
    (mine, my_folder), (theirs, their_folder) = first, second
    assert mine.vae.state_dict().keys() == theirs.vae.state_dict().keys()
    for name, value in mine.vae.state_dict().items():
        assert torch.equal(value, theirs.vae.state_dict()[name]), name
    histories = [fit.history.drop(columns="seconds") for fit in (mine, theirs)]
    assert_frame_equal(*histories, check_exact=True)
    states = [read_tensors(folder / STATE) for folder in (my_folder, their_folder)]
    assert states[0][0].keys() == states[1][0].keys()
    for name, value in states[0][0].items():
        assert torch.equal(value, states[1][0][name]), name
    parts = {name.partition("/")[0] for name in states[0][0]}
    assert parts == {"random", "weights", "optimizer", "best"}


def epochs_done(folder):
    return read_tensors(folder / STATE)[1]["epoch"]


def test_the_kills_were_at_different_moments_of_the_run(graveyard):
    epochs = json.loads((graveyard / "epochs.json").read_text())
    assert len(set(epochs)) > 2
    assert min(epochs) < NUM_EPOCHS - 2


@pytest.mark.parametrize(
    "name", [*(f"moment{n}" for n in range(len(MOMENTS))), *(f"write{n}" for n in WRITES if n > 2)]
)
def test_a_killed_run_goes_on_to_the_same_bits(graveyard, whole, name):
    folder = graveyard / name
    if name.startswith("write"):
        # The state at the beginning, the declaration, then a state after each epoch.
        assert epochs_done(folder) == int(name.removeprefix("write")) - 3
        assert len(list(folder.glob(f".{STATE}.*"))) == 1
    fit = resumed(folder)
    assert not list(folder.glob(".*"))
    assert_same_run((fit, folder), whole)


@pytest.mark.slow
def test_a_run_that_is_killed_over_and_over_ends_the_same(whole, tmp_path):
    run_this_file("over and over", tmp_path)
    folder = tmp_path / "again"
    assert_same_run((resumed(folder), folder), whole)


@pytest.mark.parametrize("write", [1, 2])
def test_a_run_that_was_killed_before_it_began_can_be_begun_again(graveyard, whole, write):
    folder = graveyard / f"write{write}"
    with pytest.raises(FileNotFoundError, match=r"a file run\.json"):
        resumed(folder)
    assert_same_run((begin(folder), folder), whole)


def test_another_process_gives_the_same_bits(graveyard, whole):
    assert_same_run((resumed(graveyard / "whole"), graveyard / "whole"), whole)


def test_a_run_may_be_interrupted_again_and_again(whole, tmp_path):
    def interrupt(epoch, row):
        raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="interrupted after epoch 1 "):
        begin(tmp_path, callback=interrupt)
    for epoch in (2, 3):
        with pytest.warns(UserWarning, match=f"interrupted after epoch {epoch} "):
            assert resumed(tmp_path, callback=interrupt).interrupted
    assert_same_run((resumed(tmp_path), tmp_path), whole)


def test_a_finished_run_gives_its_fit_again(whole):
    fit, folder = whole
    before = (folder / STATE).read_bytes()
    rows = []
    again = resumed(folder, callback=lambda epoch, row: rows.append(row))
    assert rows == []
    assert (folder / STATE).read_bytes() == before
    assert_frame_equal(again.history, fit.history, check_exact=True)
    assert_same_run((again, folder), whole)
    assert again.latent().tolist() == fit.latent().tolist()
    assert (again.seed, again.training, again.estimator) == (fit.seed, fit.training, fit.estimator)


def test_a_run_that_stopped_early_stays_stopped(tmp_path):
    fit = begin(tmp_path, learning_rate=1e-6, patience=1, max_epochs=300)
    assert len(fit.history) < 300
    assert len(resumed(tmp_path).history) == len(fit.history)


def test_no_parts_are_left_and_no_pickle(whole):
    _, folder = whole
    assert sorted(path.name for path in folder.iterdir()) == [STATE, "run.json"]


def test_a_second_fit_into_the_folder_is_refused(whole):
    _, folder = whole
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError, match=r"go on with it by glp\.resume\(folder, cells\)"):
        begin(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_other_cells_are_refused(whole, adata):
    _, folder = whole
    simulated, _ = glp.data.simulate(120, 20, num_types=3, num_batches=2, seed=1)
    own = glp.register(simulated, conditions=["batch"])
    first, second = own.split(0.5, seed=1), own.split(0.5, seed=2)
    others = {
        "other conditions": glp.register(simulated, conditions=["cell_type"]),
        "fewer": own.subset(range(119)),
        "another order": own.subset(range(119, -1, -1)),
        "another condition of a cell": own.with_conditions({"batch": "batch1"}),
        "other names": glp.register(renamed(simulated), conditions=["batch"]),
    }
    for cells in others.values():
        with pytest.raises(ValueError, match=r"the 120 cells .* begun with.*split it by the same seed"):
            resumed(folder, cells)
    assert len(first[0]) == len(second[0])
    assert glp.train.checkpoint.fingerprint(first[0]) != glp.train.checkpoint.fingerprint(second[0])


def test_other_labels_and_other_genes_are_other_cells():
    adata = glp.data.simulate(40, 10, num_types=2, seed=0).adata
    relabelled, turned = adata.copy(), adata[:, ::-1].copy()
    relabelled.obs["cell_type"] = adata.obs["cell_type"].to_numpy()[::-1]
    known, *others = (
        glp.train.checkpoint.fingerprint(glp.register(cells, labels="cell_type"))
        for cells in (adata, relabelled, turned, adata.copy())
    )
    assert [known == other for other in others] == [False, False, True]


def renamed(adata):
    copy = adata.copy()
    copy.obs_names = [f"other{name}" for name in copy.obs_names]
    return copy


def test_other_penalties_are_refused(vae, cells, train, tmp_path):
    train(vae, cells, penalties=[glp.FreeBits(0.1)], run_folder=tmp_path)
    with pytest.raises(ValueError, match=r"expected the penalties \[.FreeBits\(floor=0.1.* got \[\]"):
        glp.resume(tmp_path, cells, progress=False)
    with pytest.raises(ValueError, match=r"got .*FreeBits\(floor=0.2"):
        glp.resume(tmp_path, cells, penalties=[glp.FreeBits(0.2)], progress=False)
    fit = glp.resume(tmp_path, cells, penalties=[glp.FreeBits(0.1)], progress=False)
    assert len(fit.history) == 3


def test_frozen_parameters_stay_frozen(vae, cells, train, tmp_path):
    def interrupt(epoch, row):
        raise KeyboardInterrupt

    for parameter in vae.encoder.parameters():
        parameter.requires_grad_(False)
    whole = train(vae, cells, run_folder=tmp_path / "whole")
    with pytest.warns(UserWarning, match="interrupted"):
        train(vae, cells, run_folder=tmp_path / "run", callback=interrupt)
    fit = glp.resume(tmp_path / "run", cells, progress=False)
    for each in (whole, fit, glp.load(fit.save(tmp_path / "fit"))):
        for before, after in zip(vae.parameters(), each.vae.parameters(), strict=True):
            assert after.requires_grad == before.requires_grad
            assert before.requires_grad or torch.equal(before, after)
    assert_same_run((fit, tmp_path / "run"), (whole, tmp_path / "whole"))


@pytest.fixture
def folder(vae, cells, train, tmp_path):
    train(vae, cells, run_folder=tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("kept", [0, 7, 0.5, 0.999])
def test_a_checkpoint_that_is_cut_off_is_refused(folder, cells, kept):
    content = (folder / STATE).read_bytes()
    (folder / STATE).write_bytes(content[: int(kept if kept >= 1 else kept * len(content))])
    with pytest.raises(ValueError, match=r"a safetensors file at .*checkpoint\.safetensors, got something else"):
        glp.resume(folder, cells, progress=False)


def test_a_checkpoint_without_its_parts_is_refused(folder, cells):
    tensors, note = read_tensors(folder / STATE)
    damages = {
        "'random'": ({name: value for name, value in tensors.items() if name != "random"}, note),
        "RNG state": ({**tensors, "random": tensors["random"][:5]}, note),
        "'pace'": (tensors, {**note, "pace": 3}),
        "missing: .*bias": ({name: value for name, value in tensors.items() if "weights/" not in name}, note),
        "got .*float64": ({**tensors, "best/decoder.layers.0.bias": torch.zeros(16).double()}, note),
    }
    for message, (content, record) in damages.items():
        write_tensors(folder / STATE, content, record)
        with pytest.raises(ValueError, match=message):
            glp.resume(folder, cells, progress=False)


def test_a_missing_checkpoint_is_named(folder, cells):
    (folder / STATE).unlink()
    with pytest.raises(FileNotFoundError, match=r"expected a file checkpoint\.safetensors"):
        glp.resume(folder, cells, progress=False)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 2, "format 1 or older .* got 2; update genailab_pyro"),
        ("vae", {"class": "os:system", "arguments": {}, "part": 0}, "a subclass of genailab_pyro.nn.Declared"),
        ("training", {"pace": 3}, r"got \['pace'\]"),
        ("estimator", {"rule": "magic"}, "got 'magic'"),
        ("registration", {}, "a registration as to_json gives it"),
        ("precision", "float8", "precision to be one of 'float32', 'float64', got 'float8'"),
    ],
)
def test_a_declaration_that_is_wrong_is_refused(folder, cells, key, value, message):
    content = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**content, key: value}))
    with pytest.raises(ValueError, match=message):
        glp.resume(folder, cells, progress=False)


def test_a_folder_without_a_run_is_refused(tmp_path, cells):
    with pytest.raises(FileNotFoundError, match=r"a file run\.json"):
        glp.resume(tmp_path, cells, progress=False)


def test_a_model_that_cannot_be_declared_is_refused_before_anything_is_written(cells, train, tmp_path):
    class Local(glp.VAE_NB):
        pass

    with pytest.raises(TypeError, match="defined inside a function"):
        train(Local(20, 3, [16]), cells, run_folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


if __name__ == "__main__":
    {"once": kill_once, "over and over": kill_over_and_over}[sys.argv[1]](Path(sys.argv[2]))
