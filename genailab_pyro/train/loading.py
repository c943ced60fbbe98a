"""Reading a fit that was saved."""

from pathlib import Path

import pandas as pd
import torch

from genailab_pyro.train.checkpoint import read_parts
from genailab_pyro.train.fitted import BASELINE, DECLARATION, WEIGHTS, Fit
from genailab_pyro.train.storage import load_weights, read_json, read_tensors


def load(folder: str | Path, *, device: str | torch.device = "cpu") -> Fit:
    """Read a fit that `Fit.save` wrote, on this machine or another; the training data are not needed.

    Args:
        folder: The folder.
        device: Where to put the model.

    Raises:
        FileNotFoundError: If the folder holds no fit.
        ValueError: If a newer version wrote it, if its weights are a pickle or not the model's, or it is damaged.
    """
    folder = Path(folder)
    content = read_json(folder / DECLARATION)
    parts = read_parts(content, folder / DECLARATION)
    weights, _ = read_tensors(folder / WEIGHTS)
    load_weights(parts["vae"], weights, folder / WEIGHTS)
    try:
        history = pd.DataFrame({name: pd.Series(column, dtype=float) for name, column in content["history"].items()})
        history = history.astype({"epoch": int} if len(history.columns) else {})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"expected the history of a fit in {folder / DECLARATION}, got none ({error})") from error
    parts["vae"].to(device).eval()
    return Fit(
        **parts,
        baseline=read_tensors(folder / BASELINE)[0] if (folder / BASELINE).exists() else None,
        history=history,
        interrupted=bool(content.get("interrupted", False)),
        versions=content.get("versions", {}),
    )
