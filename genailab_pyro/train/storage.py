"""Folders of safetensors and JSON: written whole or not at all, read without a pickle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from genailab_pyro.files import write_whole


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain JSON types, floats to their last digit."""
    write_whole(path, json.dumps(content, indent=1))


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not JSON.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a saved fit with a file {path.name} in {path.parent}, found none")
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"expected JSON in {path}, got something else ({error}); the file is damaged") from None
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object in {path}, got {type(content).__name__}; the file is damaged")
    return content


def write_tensors(path: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any] | None = None) -> None:
    """Write named tensors, and a note in JSON in the same file, so that both are of one moment."""
    # A part that two modules share has two names, and safetensors refuses two names of one memory.
    flat = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    write_whole(path, save(flat, metadata={"note": json.dumps(note or {})}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a safetensors file; a pickle, as torch.save writes, is never loaded.
    """
    if not path.is_file():
        pickles = [file.name for suffix in ("*.pt", "*.pth", "*.pkl", "*.bin") for file in path.parent.glob(suffix)]
        found = f", only {', '.join(pickles)}, and pickles are never loaded" if pickles else ""
        raise FileNotFoundError(f"expected a file {path.name} in {path.parent}, found none{found}")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
            note = json.loads((file.metadata() or {}).get("note", "{}"))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(
            f"expected a safetensors file at {path}, got something else ({error}); a pickle, as torch.save writes, is "
            "never loaded: save the fit again with fit.save(folder)"
        ) from None
    return tensors, note


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Put weights into a module, each of the name, shape and type that it has.

    Raises:
        ValueError: If a tensor is missing, is not the module's, or has another shape or type.
    """
    own = module.state_dict()
    missing, strange = sorted(set(own) - set(weights)), sorted(set(weights) - set(own))
    if missing or strange:
        raise ValueError(
            f"expected the weights of this {type(module).__name__} in {source}; missing: {missing[:3]}, not its own: "
            f"{strange[:3]}; the file is another model's or was changed"
        )
    for name, tensor in weights.items():
        if tensor.shape != own[name].shape or tensor.dtype != own[name].dtype:
            raise ValueError(
                f"expected {name!r} of shape {tuple(own[name].shape)} and type {own[name].dtype} in {source}, got "
                f"{tuple(tensor.shape)} and {tensor.dtype}; the file is another model's or was changed"
            )
    module.load_state_dict(dict(weights))
