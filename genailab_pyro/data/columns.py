"""The columns of a registration: read, checked, and encoded as codes and standardised values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData

from genailab_pyro.data.schema import Categorical, Continuous
from genailab_pyro.data.validation import named, suggestion


@dataclass(frozen=True)
class Columns:
    """Columns of some cells as they came, by name.

    Attributes:
        conditions: Categorical conditions.
        continuous: Continuous covariates.
        labels: Labels, or None.
        size_factor: Size factors, or None.
        adata: Whether they come from ``adata.obs``; for messages.
        fixed: Names of columns whose levels are given, so that those without cells stay.
    """

    conditions: dict[str, pd.Series] = field(default_factory=dict)
    continuous: dict[str, pd.Series] = field(default_factory=dict)
    labels: pd.Series | None = None
    size_factor: pd.Series | None = None
    adata: bool = True
    fixed: frozenset[str] = frozenset()

    def place(self, role: str, name: str) -> str:
        """Where a column is, in the user's words."""
        if self.adata:
            return f'adata.obs["{name}"]'
        return role if role in ("labels", "size_factor") else f'{role}["{name}"]'


def columns_of(
    adata: AnnData,
    conditions: Sequence[str],
    continuous: Sequence[str],
    labels: str | None,
    size_factor: str | None,
) -> Columns:
    """Columns of ``adata.obs`` by their roles.

    Raises:
        ValueError: If one does not exist, or is named twice as a covariate.
    """
    conditions = [conditions] if isinstance(conditions, str) else list(conditions)
    continuous = [continuous] if isinstance(continuous, str) else list(continuous)
    covariates = [*conditions, *continuous]
    twice = sorted({name for name in covariates if covariates.count(name) > 1})
    if twice:
        raise ValueError(
            f"expected each column once in conditions and continuous, got {named(twice)} more than once: "
            "a categorical column belongs in conditions, a measured one in continuous"
        )
    roles = dict.fromkeys(conditions, "conditions") | dict.fromkeys(continuous, "continuous")
    singles = {"labels": labels, "size_factor": size_factor}
    roles |= {name: role for role, name in singles.items() if name is not None and name not in roles}
    _check_columns(adata, roles)
    return Columns(
        {name: adata.obs[name] for name in conditions},
        {name: adata.obs[name] for name in continuous},
        None if labels is None else adata.obs[labels],
        None if size_factor is None else adata.obs[size_factor],
    )


def _check_columns(adata: AnnData, roles: Mapping[str, str]) -> None:
    """Refuse columns that do not exist or exist more than once; all of them are named."""
    known = list(adata.obs.columns)
    missing = [name for name in roles if name not in known]
    if missing:
        wanted = ", ".join(f'adata.obs["{name}"] ({roles[name]})' for name in missing)
        there = f"there are {named(known, 20)}" if known else "adata.obs has no columns"
        raise ValueError(f"expected {wanted}, but {there}{suggestion(str(missing[0]), known)}")
    for name in roles:
        if known.count(name) > 1:
            raise ValueError(
                f'expected one column adata.obs["{name}"], got {known.count(name)} of that name: rename all but one'
            )


def condition_of(columns: Columns, name: str) -> Categorical:
    """Levels and frequencies of a condition.

    Raises:
        ValueError: If it is measured, incomplete, or has fewer than two levels.
    """
    _check_condition(columns.conditions[name], columns.place("conditions", name))
    levels, codes = levels_of(columns.conditions[name], keep=name in columns.fixed)
    counts = np.bincount(codes, minlength=len(levels))
    if np.count_nonzero(counts) < 2:
        raise ValueError(
            f"expected at least two levels in {columns.place('conditions', name)}, got one, {named(levels)}, "
            "in all cells: leave it out of conditions"
        )
    return Categorical(name, levels, tuple(float(value) for value in counts / counts.sum()))


def labels_of(columns: Columns, name: str) -> Categorical:
    """Levels and frequencies of the labels, over the cells that have one.

    Raises:
        ValueError: If no cell has a label.
    """
    assert columns.labels is not None
    levels, codes = levels_of(_whole(columns.labels, columns.place("labels", name)), keep=name in columns.fixed)
    if not np.any(codes >= 0):
        raise ValueError(
            f"expected labels in {columns.place('labels', name)}, got missing values only: "
            "name a column with labels, or leave labels out"
        )
    counts = np.bincount(codes[codes >= 0], minlength=len(levels))
    return Categorical(name, levels, tuple(float(value) for value in counts / counts.sum()))


def continuous_of(columns: Columns, name: str) -> Continuous:
    """Mean and standard deviation of a continuous column.

    Raises:
        ValueError: If it is constant.
    """
    values = numbers(columns.continuous[name], columns.place("continuous", name))
    scale = float(values.std())
    if not scale > 1e-12 * max(1.0, float(np.abs(values).max())):
        raise ValueError(
            f"expected values that differ in {columns.place('continuous', name)}, got {values[0]:.6g} in all "
            "cells: leave it out of continuous"
        )
    return Continuous(name, float(values.mean()), scale)


def _check_condition(values: pd.Series, place: str) -> None:
    """Refuse a condition that is measured or incomplete."""
    name = str(values.name)
    if pd.api.types.is_float_dtype(values.dtype):
        raise ValueError(
            f"expected categories in {place}, got {values.dtype} numbers: pass a measured quantity as "
            f'continuous=["{name}"]; where the numbers are names of groups, convert the column with '
            '.astype(str).astype("category")'
        )
    missing = int(values.isna().sum())
    if missing:
        raise ValueError(
            f"expected a category for every cell in {place}, got {missing} of {len(values)} missing: drop "
            f'those cells (adata[adata.obs["{name}"].notna()].copy()), or give them a category of their own'
        )


def numbers(values: pd.Series, place: str) -> npt.NDArray[np.float64]:
    """A continuous column as numbers.

    Raises:
        ValueError: If it is not numeric, or a value is missing or infinite.
    """
    kind = values.dtype
    if not pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_bool_dtype(kind):
        raise ValueError(
            f"expected numbers in {place}, got {kind}: convert the column with .astype(float), or pass a "
            "categorical one as a condition"
        )
    if pd.api.types.is_complex_dtype(kind):
        raise ValueError(f"expected real numbers in {place}, got {kind}")
    found = values.to_numpy(dtype=np.float64, na_value=np.nan)
    bad = int(np.count_nonzero(~np.isfinite(found)))
    if bad:
        raise ValueError(
            f"expected a finite number for every cell in {place}, got {bad} of {len(found)} NaN or infinite: "
            "drop those cells, or fill the values in"
        )
    return found


def size_factors(values: pd.Series, place: str) -> npt.NDArray[np.float64]:
    """A column of size factors.

    Raises:
        ValueError: If it is not numeric, or a value is not positive and finite.
    """
    found = numbers(values, place)
    single = found.astype(np.float32)
    bad = int(np.count_nonzero(~((single > 0) & np.isfinite(single))))
    if bad:
        raise ValueError(
            f"expected size factors above zero in {place}, got {bad} of {len(found)} that are not: "
            "drop those cells or compute the factors again"
        )
    return found


def levels_of(values: pd.Series, keep: bool = False) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Names of the levels of a column, and the code of each cell, -1 where it is missing.

    The order is that of a categorical column, of the values where they are numbers, of their names otherwise.

    Args:
        values: The column.
        keep: Keep the categories that no cell has.

    Returns:
        The levels and the codes.
    """
    if isinstance(values.dtype, pd.CategoricalDtype):
        known, codes = list(values.cat.categories), np.asarray(values.cat.codes, dtype=np.int64)
    else:
        found, uniques = pd.factorize(values)
        key: Any = None if pd.api.types.is_numeric_dtype(values.dtype) else str
        known, codes = list(uniques), np.asarray(found, dtype=np.int64)
        order = sorted(range(len(known)), key=lambda position: known[position] if key is None else key(known[position]))
        codes = np.append(np.argsort(order), -1)[codes].astype(np.int64)
        known = [known[position] for position in order]
    used = np.bincount(codes[codes >= 0], minlength=len(known)) > 0
    names = [str(level) for level in known]
    levels = tuple(dict.fromkeys(name for name, seen in zip(names, used, strict=True) if keep or seen))
    position = {level: code for code, level in enumerate(levels)}
    return levels, np.array([*(position.get(name, -1) for name in names), -1], dtype=np.int64)[codes]


def _whole(values: pd.Series, place: str) -> pd.Series:
    """Labels as they are, or as integers where a missing value made floats of them."""
    if not pd.api.types.is_float_dtype(values.dtype):
        return values
    known = values.dropna()
    if (known % 1 != 0).any():
        raise ValueError(
            f'expected categories in {place}, got fractional numbers: convert groups with .astype("category")'
        )
    return values.astype("Int64")


def label_codes(values: pd.Series, labels: Categorical, place: str) -> npt.NDArray[np.int64]:
    """Codes of labels; -1 where the label is missing or no registered level."""
    levels, codes = levels_of(_whole(values, place))
    known = {level: code for code, level in enumerate(labels.levels)}
    return np.array([*(known.get(level, -1) for level in levels), -1], dtype=np.int64)[codes]


def condition_codes(values: pd.Series, condition: Categorical, place: str) -> npt.NDArray[np.int64]:
    """Codes of a condition.

    Raises:
        ValueError: If the column is measured or incomplete, or a category is not registered.
    """
    _check_condition(values, place)
    levels, codes = levels_of(values)
    unseen = [level for level in levels if level not in condition.levels]
    if unseen:
        raise ValueError(
            f"expected the registered levels in {place}, {named(condition.levels, 20)}, got {len(unseen)} "
            f"unseen: {named(unseen)}; leave those cells out, rename the levels, or register anew"
            f"{suggestion(unseen[0], condition.levels)}"
        )
    return condition.encode(levels)[codes]
