"""What an interrupted run needs to go on bit for bit: its declaration once, its state after each epoch."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genailab_pyro.data.cells import Cells
from genailab_pyro.data.registration import Registration
from genailab_pyro.estimators import Estimator
from genailab_pyro.files import remove_parts
from genailab_pyro.model.penalties import Penalty
from genailab_pyro.model.vae import VAE
from genailab_pyro.nn import Declared, choose
from genailab_pyro.train.run import Record, Run
from genailab_pyro.train.settings import Training
from genailab_pyro.train.storage import (
    load_weights,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)

RUN = "run.json"
STATE = "checkpoint.safetensors"
FORMAT = 1
PRECISIONS = {"float32": torch.float32, "float64": torch.float64}


def declare_run(folder: Path, run: Run, cells: Cells, estimator: Estimator, penalties: Sequence[Penalty]) -> None:
    """Write the state at the beginning, then what does not change during a run.

    Raises:
        FileExistsError: If the folder holds a run already.
        TypeError: If a part of the model cannot be declared by an import path and plain arguments.
    """
    if (folder / RUN).exists():
        raise FileExistsError(
            f"expected a folder without a run, {folder} holds one; go on with it by "
            "glp.resume(folder, cells), or name another folder"
        )
    content = {
        **write_parts(run.vae, cells.registration, estimator, run.training, run.seed),
        "num_cells": len(cells),
        "cells": fingerprint(cells),
        "penalties": _kinds(penalties),
    }
    save_state(folder, run)
    write_json(folder / RUN, content)


def read_run(folder: Path, cells: Cells, penalties: Sequence[Penalty]) -> dict[str, Any]:
    """Read back what `declare_run` wrote, each part as the object it was.

    Raises:
        FileNotFoundError: If the folder holds no run.
        ValueError: If it was written by a newer version, is damaged, or is a run on other cells or with other
            penalties.
    """
    content = read_json(folder / RUN)
    parts = read_parts(content, folder / RUN)
    if cells.registration != parts["registration"] or fingerprint(cells) != content.get("cells"):
        raise ValueError(
            f"expected the {content.get('num_cells')} cells that the run in {folder} was begun with, "
            f"registered in the same way and in the same order, got {len(cells)} others; register the same "
            "AnnData with the same arguments, and split it by the same seed"
        )
    if _kinds(penalties) != content.get("penalties"):
        raise ValueError(
            f"expected the penalties {content.get('penalties')} that the run in {folder} was begun with, got "
            f"{_kinds(penalties)}; pass the same ones to glp.resume(folder, cells, penalties=...)"
        )
    return parts


def fingerprint(cells: Cells) -> str:
    """A digest of the genes, and of each cell's name, total, library, conditions and label, in their order."""
    digest = hashlib.sha256("\n".join((*cells.registration.genes, *cells.obs_names)).encode())
    for values in (cells.totals, cells.library, cells.conditions, cells.continuous, cells.labels):
        if values is not None:
            digest.update(values.tobytes())
    return digest.hexdigest()


def _kinds(penalties: Sequence[Penalty]) -> list[str]:
    """What each penalty is, with what it was declared with where that can be told."""
    return [_kind(penalty) for penalty in penalties]


def _kind(penalty: Penalty) -> str:
    if isinstance(penalty, Declared):
        return json.dumps(penalty.declaration())
    return repr(penalty) if is_dataclass(penalty) else getattr(penalty, "__qualname__", type(penalty).__name__)


def write_parts(
    vae: VAE, registration: Registration, estimator: Estimator, training: Training, seed: int
) -> dict[str, Any]:
    """The VAE (without its weights), registration, estimator, settings and seed as plain JSON types.

    Raises:
        TypeError: If a part of the model cannot be declared by an import path and plain arguments.
    """
    return {
        "format": FORMAT,
        **declared_model(vae),
        "registration": registration.to_json(),
        "estimator": asdict(estimator),
        "training": training.to_json(),
        "seed": seed,
    }


def declared_model(vae: VAE) -> dict[str, Any]:
    """The VAE without its weights, its precision, and which of its weights are frozen, as plain JSON types.

    Raises:
        TypeError: If a part of the model cannot be declared by an import path and plain arguments.
    """
    return {
        "vae": vae.declaration(),
        "precision": str(next(vae.parameters()).dtype).removeprefix("torch."),
        "frozen": [name for name, parameter in vae.named_parameters() if not parameter.requires_grad],
    }


def read_parts(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The VAE, registration, estimator, settings and seed of a run or a fit, from plain JSON types.

    Raises:
        ValueError: If a newer version wrote it, or a part is missing or wrong.
    """
    found = content.get("format")
    if not isinstance(found, int) or found > FORMAT:
        raise ValueError(f"expected format {FORMAT} or older in {path}, got {found!r}; update genailab_pyro to read it")
    try:
        with torch.random.fork_rng():
            vae = Declared.declare(content["vae"])
        if not isinstance(vae, VAE):
            raise TypeError(f"it declares a {type(vae).__name__} in place of a VAE")
        vae.to(choose(PRECISIONS, content["precision"], "precision"))
        for name in content["frozen"]:
            vae.get_parameter(name).requires_grad_(False)
        return {
            "vae": vae,
            "registration": Registration.from_json(content["registration"]),
            "estimator": Estimator(**content["estimator"]),
            "training": Training.from_json(content["training"]),
            "seed": int(content["seed"]),
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"expected a saved model in {path}, a part is missing or wrong: {error}") from error


def save_state(folder: Path, run: Run) -> None:
    """Write the state after an epoch: weights, optimizer, what penalties learned, random state, record, in one file."""
    tensors: dict[str, Tensor] = {"random": torch.get_rng_state()}
    if run.device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(run.device)
    tensors |= {f"weights/{name}": value for name, value in run.vae.state_dict().items()}
    tensors |= {f"optimizer/{name}": value for name, value in run.optim.get_state().items()}
    if run.baseline is not None:
        tensors |= {f"baseline/{name}": value for name, value in run.baseline.state_dict().items()}
    for position, penalty in enumerate(run.learning_penalties):
        tensors |= {f"penalty_{position}/{name}": value for name, value in penalty.state_dict().items()}
    if run.best_weights is not None:
        tensors |= {f"best/{name}": value for name, value in run.best_weights.items()}
    write_tensors(folder / STATE, tensors, asdict(run.record))


def restore_state(folder: Path, run: Run) -> None:
    """Put a run back to where `save_state` left it.

    Raises:
        FileNotFoundError: If there is no state.
        ValueError: If the state is another run's, or is damaged.
    """
    path = folder / STATE
    remove_parts(path)
    tensors, note = read_tensors(path)
    learning = [f"penalty_{position}" for position in range(len(run.learning_penalties))]
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in ("weights", "optimizer", "best", "baseline", *learning)}
    for key, value in tensors.items():
        part, _, name = key.partition("/")
        if part in parts:
            parts[part][name] = value
    if parts["best"]:
        load_weights(run.vae, parts["best"], path)
        run.best_weights = {name: value.clone() for name, value in run.vae.state_dict().items()}
    load_weights(run.vae, parts["weights"], path)
    try:
        if run.baseline is not None:
            run.baseline.load_state_dict(parts["baseline"])
        for name, penalty in zip(learning, run.learning_penalties, strict=True):
            penalty.load_state_dict(parts[name])
        run.optim.set_state(parts["optimizer"])
        run.record = Record(**note)
        torch.set_rng_state(tensors["random"])
        if "random.cuda" in tensors and run.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], run.device)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"expected the state of a run in {path}, a part is missing or wrong: {error}; it is damaged"
        ) from error
