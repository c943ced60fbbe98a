"""The configuration of a run: which cells, model, estimator and settings, as one file of YAML.

Nothing is said twice: the defaults are those of the functions that the values go to.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Self, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd
import yaml
from anndata import AnnData
from jaxtyping import Bool

from genailab_pyro import estimators
from genailab_pyro.data.cells import Cells
from genailab_pyro.data.preprocess import preprocess
from genailab_pyro.data.validation import named, suggestion
from genailab_pyro.model.perturbation_vae import PerturbationVAE
from genailab_pyro.model.structured import BernoulliVAE, HierarchicalVAE, LabelVAE, SemiSupervisedVAE
from genailab_pyro.model.vae import CVAE, CVAE_NB, CVAE_ZINB, VAE, VAE_NB, VAE_ZINB, VAE_Gaussian
from genailab_pyro.nn import choose
from genailab_pyro.penalty_settings import PenaltySettings
from genailab_pyro.train.fit import fit
from genailab_pyro.train.settings import Training

MODELS: dict[str, Any] = {
    model.__name__: model
    for model in (
        *(CVAE, CVAE_NB, CVAE_ZINB, VAE_Gaussian, VAE_NB, VAE_ZINB),
        *(HierarchicalVAE, LabelVAE, SemiSupervisedVAE, BernoulliVAE, PerturbationVAE),
    )
}
# What one model alone takes.
STRUCTURE: dict[str, Any] = {
    "upper_dim": HierarchicalVAE,
    "num_labels": LabelVAE,
    "error": SemiSupervisedVAE,
    "weight": SemiSupervisedVAE,
    "perturbation": PerturbationVAE,
    "control": PerturbationVAE,
    "dose": PerturbationVAE,
}


def _default(function: Callable[..., Any], name: str) -> Any:
    """What a function takes an argument to be when it is not given."""
    return inspect.signature(function).parameters[name].default


@dataclass(frozen=True)
class Preprocessing:
    """Which cells and genes are kept: the arguments of `genailab_pyro.preprocess`, which describes them."""

    min_cells: int = _default(preprocess, "min_cells")
    min_counts: int = _default(preprocess, "min_counts")
    max_genes: int | None = _default(preprocess, "max_genes")
    max_mito_fraction: float | None = _default(preprocess, "max_mito_fraction")
    mito_prefix: str = _default(preprocess, "mito_prefix")
    batch: str | None = _default(preprocess, "batch")


@dataclass(frozen=True)
class DataSettings:
    """The cells, and what their columns mean; see `genailab_pyro.register`.

    Attributes:
        path: An h5ad file.
        counts: Layer with the raw counts; None for ``.X``.
        conditions: Categorical columns of ``.obs`` that the model is told.
        continuous: Numeric columns of ``.obs`` that the model is told.
        labels: Column of ``.obs`` with labels that the report compares the latent space with, and from which
            ``SemiSupervisedVAE`` learns.
        size_factor: Column of ``.obs`` in place of the total counts.
        preprocess: Which cells and genes to keep; None keeps all.
    """

    path: str | None = None
    counts: str | None = None
    conditions: tuple[str, ...] = ()
    continuous: tuple[str, ...] = ()
    labels: str | None = None
    size_factor: str | None = None
    preprocess: Preprocessing | None = None


@dataclass(frozen=True)
class ModelSettings:
    """The model; see ``CVAE_NB.from_registration``, which describes the fields beside the name, and chooses for None.

    The last seven are of one model each: ``upper_dim`` of ``HierarchicalVAE``, ``num_labels`` of ``LabelVAE``,
    ``error`` and ``weight`` of ``SemiSupervisedVAE``, ``perturbation``, ``control`` and ``dose`` of
    ``PerturbationVAE``, which describe them, and choose for None.

    Raises:
        ValueError: If there is no model of that name, or an option is another model's.
    """

    name: str = CVAE_NB.__name__
    latent_dim: int = _default(CVAE_NB.from_registration, "latent_dim")
    hidden_dims: tuple[int, ...] = _default(CVAE_NB.from_registration, "hidden_dims")
    embedding_dim: int | None = _default(CVAE_NB.from_registration, "embedding_dim")
    library: str = _default(CVAE_NB.from_registration, "library")
    dropout: float | None = None
    norm: str | None = None
    inverse_dispersion: str | None = None
    upper_dim: int | None = None
    num_labels: int | None = None
    error: float | None = None
    weight: float | None = None
    perturbation: str | None = None
    control: str | None = None
    dose: str | None = None

    def __post_init__(self) -> None:
        model = choose(MODELS, self.name, "name")
        for option, owner in STRUCTURE.items():
            if getattr(self, option) is not None and model is not owner:
                raise ValueError(
                    f"expected no {option} for {self.name}, got {getattr(self, option)}; leave it out, or choose "
                    f"{owner.__name__}"
                )

    def build(self, cells: Cells, *, seed: int) -> VAE:
        """The model for some registered cells, with its initial weights."""
        options = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "name"}
        chosen = {name: value for name, value in options.items() if value is not None}
        model = MODELS[self.name]
        declared = getattr(model, "latents", model.from_registration)
        defaults = {name: _default(declared, name) for name, owner in STRUCTURE.items() if owner is model}
        vae: VAE = model.from_registration(cells, seed=seed, **defaults | chosen)
        return vae


@dataclass(frozen=True)
class EstimatorSettings:
    """The gradient estimator.

    Attributes:
        name: A name in ``estimators.table()``.
        num_particles: Draws per cell and step; None for the number in the table.

    Raises:
        ValueError: If there is no estimator of that name, or its draws are below one.
    """

    name: str = _default(fit, "estimator")
    num_particles: int | None = None

    def __post_init__(self) -> None:
        self.build()

    def build(self) -> estimators.Estimator:
        """The estimator."""
        changes = {} if self.num_particles is None else {"num_particles": self.num_particles}
        return estimators.get(self.name, **changes)


@dataclass(frozen=True)
class HeldOut:
    """Which cells are scored and never reach the training.

    Attributes:
        fraction: Share of the cells, drawn by the seed; 0 holds out none.
        column: Column of ``.obs`` that marks them, in place of the fraction: true or false, or with `levels`.
        levels: Values of the column that mark held-out cells.

    Raises:
        ValueError: If the fraction is out of range, or levels are given without a column.
    """

    fraction: float = _default(Cells.split, "fraction")
    column: str | None = None
    levels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1:
            raise ValueError(f"expected fraction to be at least 0 and below 1, got {self.fraction}")
        if self.levels and self.column is None:
            raise ValueError(f"expected a column of obs beside levels={list(self.levels)}, got none; name it")

    def mask(self, adata: AnnData, *, seed: int) -> Bool[np.ndarray, " cells"]:
        """Which cells are held out.

        Args:
            adata: The cells.
            seed: Seed of the draw, where they are a fraction.

        Raises:
            ValueError: If the column cannot tell, or no cell is left on one of the sides.
        """
        if self.column is not None:
            mask = marked_cells(adata, self.column, self.levels)
        else:
            mask = np.zeros(adata.n_obs, dtype=bool)
            number = min(max(round(self.fraction * adata.n_obs), 1), adata.n_obs - 1) if self.fraction else 0
            mask[np.random.default_rng(seed).permutation(adata.n_obs)[:number]] = True
        if mask.all() or (self.column is not None and not mask.any()):
            raise ValueError(
                f"expected cells to train on and cells to hold out, got {int((~mask).sum())} and {int(mask.sum())}"
                + ("" if self.column is None else f' by adata.obs["{self.column}"]')
            )
        return mask


def marked_cells(adata: AnnData, name: str, levels: tuple[str, ...]) -> Bool[np.ndarray, " cells"]:
    """The cells that a column of ``.obs`` marks: by true, or by one of some values.

    Raises:
        ValueError: If there is no such column, or no such value in it.
    """
    known = list(adata.obs.columns)
    if name not in known:
        raise ValueError(
            f'expected adata.obs["{name}"], but there are {named(known, 20) or "no columns"}{suggestion(name, known)}'
        )
    column = adata.obs[name]
    if pd.api.types.is_bool_dtype(column.dtype) and not levels:
        return column.to_numpy(dtype=bool)
    values = column.astype(str).to_numpy()
    there = [str(value) for value in column.dropna().unique()]
    strange = [level for level in levels if level not in there]
    if strange or not levels:
        raise ValueError(
            f'expected values of adata.obs["{name}"] that mark cells, among {named(there, 20)}, or a column of '
            f"true and false, got {named(strange) or 'none'}{suggestion(strange[0], there) if strange else ''}"
        )
    return np.isin(values, levels)


@dataclass(frozen=True)
class Configuration:
    """Everything that decides what a run gives, beside the data themselves.

    Attributes:
        data: The cells.
        model: The model.
        estimator: The gradient estimator.
        training: How it is trained.
        penalties: What is added to the loss.
        held_out: Which cells are scored.
        seed: Seed of the split, the initial weights, the training and the scores.
        device: Where to train; None for the processor.

    Raises:
        ValueError: If the model learns from labels, and no column of labels is named.

    Example:
        >>> configuration = Configuration.from_mapping({"data": {"path": "cells.h5ad"}, "seed": 1})
        >>> configuration.model.name, configuration.training.max_epochs
        ('CVAE_NB', None)
        >>> Configuration.from_mapping(configuration.to_mapping()) == configuration
        True
    """

    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    estimator: EstimatorSettings = field(default_factory=EstimatorSettings)
    training: Training = field(default_factory=Training)
    penalties: PenaltySettings = field(default_factory=PenaltySettings)
    held_out: HeldOut = field(default_factory=HeldOut)
    seed: int = _default(fit, "seed")
    device: str | None = _default(fit, "device")

    def __post_init__(self) -> None:
        if self.model.name == SemiSupervisedVAE.__name__ and self.data.labels is None:
            raise ValueError(
                f"expected a column of obs with labels, from which {self.model.name} learns, got none; name it by "
                "--labels or data.labels, with NaN where a label is not known, or choose another model, such as "
                f"{LabelVAE.__name__}, which finds clusters"
            )

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any]) -> Self:
        """Read nested mappings; what they leave out is as the library has it.

        Raises:
            ValueError: If a key is unknown, or a value of the wrong type or out of range.
        """
        return _build(cls, content, "")

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a YAML file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no YAML, or for what `from_mapping` refuses.
        """
        return cls.from_mapping(read_yaml(path))

    def to_mapping(self) -> dict[str, Any]:
        """The configuration with all of its values, as plain types."""
        return _plain(self)

    def to_yaml(self) -> str:
        """The configuration with all of its values, as YAML."""
        return yaml.safe_dump(self.to_mapping(), sort_keys=False, allow_unicode=True)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file whose top is a mapping; an empty file is an empty one.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no YAML, or not a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a configuration at {path}, found no such file")
    content = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"expected keys such as 'data:' and 'model:' in {path}, got {type(content).__name__}")
    return content


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML of plain types.

    Raises:
        ValueError: If it is no YAML; the line is named.
    """
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"expected YAML in {where}, got something else: {' '.join(str(error).split())}") from None


def override(content: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """A configuration with some values set: ``["training.max_epochs=50", "data.conditions=[batch]"]``.

    Args:
        content: Nested mappings; they stay as they are.
        assignments: Dotted keys and values, which are read as YAML.

    Raises:
        ValueError: If an assignment has no ``=``, or goes through a value that has no keys.

    Example:
        >>> override({"seed": 1, "model": {"name": "VAE_NB"}}, ["model.latent_dim=5"])
        {'seed': 1, 'model': {'name': 'VAE_NB', 'latent_dim': 5}}
    """
    changed = dict(content)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not all(key.strip().split(".")):
            raise ValueError(f"expected key=value, such as training.max_epochs=50, got {assignment!r}")
        changed = assign(changed, key.strip(), parse_yaml(text, assignment))
    return changed


def assign(content: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Nested mappings with the value of one dotted key set; the ones given stay as they are.

    Raises:
        ValueError: If the key goes through a value that has no keys.
    """
    section, dot, rest = key.partition(".")
    if not dot:
        return {**content, key: value}
    inner = content.get(section)
    if inner is not None and not isinstance(inner, Mapping):
        raise ValueError(f"expected keys under {section!r} to set {rest!r}, it is {inner!r}")
    return {**content, section: assign(inner or {}, rest, value)}


def _build(kind: type[Any], content: Any, where: str) -> Any:
    """A settings class from a mapping."""
    if not isinstance(content, Mapping):
        raise ValueError(f"expected keys under {where or 'the configuration'!r}, got {content!r}")
    hints = get_type_hints(kind)
    known = [item.name for item in fields(kind)]
    for name in content:
        if name not in known:
            full = _joined(where, name)
            raise ValueError(
                f"{full!r} is no setting: expected one of {named(known, 20)}{suggestion(str(name), known)}"
            )
    values = {name: _read(hints[name], value, _joined(where, name)) for name, value in content.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if where else str(error)) from error


def _read(kind: Any, value: Any, where: str) -> Any:
    """A value of the type that a field declares."""
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if value is None and NoneType in kinds:
        return None
    for each in kinds:
        # A key without a value, which YAML reads as null, is an empty section or list.
        if is_dataclass(each) and isinstance(each, type):
            return _build(each, {} if value is None else value, where)
        if get_origin(each) is tuple:
            single = value is not None and (isinstance(value, str) or not isinstance(value, Sequence))
            items = [value] if single else value or []
            return tuple(_read(get_args(each)[0], item, f"{where}[{i}]") for i, item in enumerate(items))
        found = _READERS[each](value) if each in _READERS else None
        if found is not None:
            return found
    words = " or ".join(_WORDS.get(each, str(each)) for each in kinds)
    hint = "; put it in quotes if it is a name" if isinstance(value, bool) and str in kinds else ""
    raise ValueError(f"expected {where} to be {words}, got {value!r}{hint}")


def _text(value: Any) -> str | None:
    return str(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _truth(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _number(value: Any) -> float | None:
    # YAML reads 1e-3, without a point, as text.
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except ValueError:
        return None


_READERS: dict[Any, Callable[[Any], Any]] = {str: _text, int: _whole, float: _number, bool: _truth}
_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}


def _joined(where: str, name: object) -> str:
    return f"{where}.{name}" if where else str(name)


def _plain(value: Any) -> Any:
    """Settings as mappings, lists, numbers and text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
