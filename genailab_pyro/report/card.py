"""The card of a trained model: what it is, what it was made from, and what it is for."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from genailab_pyro.files import write_whole

Fields = Mapping[str, object]
Prose = str | Sequence[str]

_SPECIAL = re.compile(r"([\\`*_\[\]|~$#])")
_LEADING = re.compile(r"^(\d*)([-+]|[.)](?=\s|$))")


def model_card(
    path: str | Path,
    name: str,
    *,
    data: Fields,
    model: Fields,
    estimator: Fields,
    training: Fields,
    held_out: Fields,
    versions: Fields,
    intended_use: Prose,
    limits: Prose,
) -> Path:
    """Write the card of a model as Markdown, in one step.

    Args:
        path: Where to write: ``MODEL_CARD.md`` beside the weights.
        name: Name of the model.
        data: What it was fitted to: number of cells and genes, conditions, source.
        model: Prior, decoder, likelihood, encoder and their sizes.
        estimator: Name of the gradient estimator and its settings.
        training: Settings of the fit; must hold ``"seed"``.
        held_out: Figures on cells that the fit never received, with their units; errors as text.
        versions: Versions of the packages that made it.
        intended_use: What it is for: a paragraph, or several points.
        limits: What it must not be taken for: a paragraph, or several points.

    Returns:
        The path.

    Raises:
        ValueError: If a part is empty, or ``training`` has no seed.

    Example:
        >>> import tempfile
        >>> card = model_card(
        ...     Path(tempfile.mkdtemp()) / "MODEL_CARD.md",
        ...     "NB-VAE on blood cells",
        ...     data={"cells": 700, "genes": 765},
        ...     model={"likelihood": "negative binomial", "latent_dim": 10},
        ...     estimator={"name": "pathwise"},
        ...     training={"seed": 0, "max_epochs": 100},
        ...     held_out={"ELBO (nats per cell)": "-812.35 ± 0.43"},
        ...     versions={"genailab-pyro": "0.1.0"},
        ...     intended_use="Denoising of counts of blood cells.",
        ...     limits=["No other tissue was seen.", "Not for diagnosis."],
        ... )
        >>> card.read_text().splitlines()[0]
        '# NB-VAE on blood cells'
    """
    tables = {
        "Data": data,
        "Model": model,
        "Gradient estimator": estimator,
        "Training": training,
        "Held-out figures": held_out,
        "Versions": versions,
    }
    words = {"Intended use": intended_use, "Limits": limits}
    empty = [part for part, content in {**words, **tables}.items() if not content]
    if empty:
        message = f"a model card must say something in each part; these are empty: {', '.join(empty)}"
        raise ValueError(message)
    if "seed" not in training:
        message = f"training must hold the seed of the fit, as training={{'seed': ...}}; it has {list(training)}"
        raise ValueError(message)
    parts = [f"# {_inline(name)}"]
    parts += [f"## {heading}\n\n{_prose(content)}" for heading, content in words.items()]
    parts += [f"## {heading}\n\n{_table(content)}" for heading, content in tables.items()]
    return write_whole(path, "\n\n".join(parts) + "\n")


def _prose(content: Prose) -> str:
    if isinstance(content, str):
        return _LEADING.sub(r"\1\\\2", _inline(content))
    return "\n".join(f"- {_prose(point)}" for point in content)


def _table(fields: Fields) -> str:
    rows = [f"| {_inline(key)} | {_inline(_value(value))} |" for key, value in _flat(fields)]
    return "\n".join(["| Field | Value |", "| --- | --- |", *rows])


def _flat(fields: Fields, prefix: str = "") -> list[tuple[str, object]]:
    pairs: list[tuple[str, object]] = []
    for key, value in fields.items():
        if isinstance(value, Mapping) and value:
            pairs += _flat(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", value))
    return pairs


def _value(value: object) -> str:
    if value is None or (isinstance(value, Mapping | Sequence) and not value):
        return "none"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return f"{value:.6g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_value(item) for item in value)
    return str(value)


def _inline(text: str) -> str:
    """Text on one line in which no character means anything to Markdown or HTML."""
    line = " ".join(str(text).split())
    return _SPECIAL.sub(r"\\\1", line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
