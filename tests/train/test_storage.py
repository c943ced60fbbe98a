"""Files are written whole or not at all, and read without a pickle."""

import os

import pytest
import torch
from torch import nn

from genailab_pyro.files import remove_parts
from genailab_pyro.train.storage import (
    load_weights,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_tensors_and_note_come_back_to_the_last_bit(tmp_path):
    table = torch.arange(6.0).reshape(2, 3)
    tensors = {
        "table": table,
        "the same memory": table,
        "a view": table.T,
        "double": torch.tensor([0.1, torch.inf, torch.nan], dtype=torch.float64),
        "whole": torch.tensor(3),
        "bytes": torch.get_rng_state(),
        "none": torch.zeros(0, 4),
        "gradient": nn.Parameter(torch.ones(2)),
    }
    note = {"epoch": 3, "elbo": 0.1 + 0.2, "best": -float("inf"), "history": [{"kl": 1e-300}]}
    write_tensors(tmp_path / "state", tensors, note)
    read, read_note = read_tensors(tmp_path / "state")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(read[name], tensor.detach(), rtol=0, atol=0, equal_nan=True)
    assert read_note == note
    assert names(tmp_path) == ["state"]


def test_json_comes_back_to_the_last_digit(tmp_path):
    content = {"number": 0.1 + 0.2, "text": "Müller-Glia, 神経", "nested": {"list": [1, None, True]}}
    write_json(tmp_path / "new" / "content.json", content)
    assert read_json(tmp_path / "new" / "content.json") == content


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    for name in ("state", ".state.0123.part", "other", ".other.0123.part"):
        (tmp_path / name).touch()
    remove_parts(tmp_path / "state")
    assert names(tmp_path) == [".other.0123.part", "other", "state"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"format": 1, "vae"', "expected JSON in .*content.json.*the file is damaged"),
        (b"", "expected JSON"),
        (b"\x80\x04\x95", "expected JSON"),
        (b"[1, 2]", "a JSON object in .*, got list"),
    ],
)
def test_json_that_is_none_is_refused(tmp_path, content, message):
    (tmp_path / "content.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / "content.json")


class Bomb:
    """Pickled, it would leave a file behind when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_is_refused_and_not_opened(tmp_path):
    torch.save({"weight": Bomb(tmp_path / "exploded")}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"a pickle, as torch\.save writes, is never loaded"):
        read_tensors(tmp_path / "weights.safetensors")
    assert names(tmp_path) == ["weights.safetensors"]


@pytest.mark.parametrize("kept", [0, 4, 8, 40, -1])
def test_a_file_that_is_cut_off_is_refused(tmp_path, kept):
    write_tensors(tmp_path / "state", {"weight": torch.ones(100)})
    content = (tmp_path / "state").read_bytes()
    (tmp_path / "state").write_bytes(content[:kept])
    with pytest.raises(ValueError, match=r"expected a safetensors file at .*state, got something else"):
        read_tensors(tmp_path / "state")


def test_a_missing_file_names_the_pickles_beside_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a file weights\.safetensors in .*, found none$"):
        read_tensors(tmp_path / "weights.safetensors")
    torch.save({}, tmp_path / "weights.pt")
    with pytest.raises(FileNotFoundError, match=r"found none, only weights\.pt, and pickles are never loaded"):
        read_tensors(tmp_path / "weights.safetensors")


def test_weights_must_be_the_modules_own(tmp_path):
    module = nn.Linear(2, 3)
    good = {name: value.clone() + 1 for name, value in module.state_dict().items()}
    wrong = {
        r"missing: \['bias'\]": {"weight": good["weight"]},
        r"not its own: \['scale'\]": {**good, "scale": torch.ones(1)},
        r"'weight' of shape \(3, 2\) .* got \(2, 3\)": {**good, "weight": good["weight"].T},
        "type torch.float32 .* torch.float64": {**good, "bias": good["bias"].double()},
    }
    before = module.weight.detach().clone()
    for message, weights in wrong.items():
        with pytest.raises(ValueError, match=message):
            load_weights(module, weights, tmp_path / "file")
    assert torch.equal(module.weight, before)
    load_weights(module, good, tmp_path / "file")
    assert torch.equal(module.weight, before + 1)
