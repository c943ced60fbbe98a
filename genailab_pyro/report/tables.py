"""Tables of a report: what is written in each cell, and on which side."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from genailab_pyro.plots.numbers import readable

Formats = str | Mapping[str, str]

_NUMBER = re.compile(r"^[<>~≈]?\s*[+\-\N{MINUS SIGN}]?\d")
_ABSENT = "\N{EN DASH}"
_SIGNIFICANT = 4


@dataclass(frozen=True)
class Table:
    """A table as text, ready for a template.

    Attributes:
        columns: Heading of each column, the names of the rows first where there are any.
        rows: The cells of each row, in the order of the columns.
        numeric: Whether each column holds numbers, and is set to the right.
        named_rows: Whether the first column is the name of the row.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...]
    named_rows: bool


def as_table(frame: pd.DataFrame, formats: Formats | None = None) -> Table:
    """Write a data frame as text.

    Whole numbers get separators of thousands. Other numbers get, within a column, the decimals that show four
    significant digits of its largest value, or four digits each where the column spans more than three orders
    of magnitude. Text stays as it is: give estimates with their errors as text, by
    :func:`genailab_pyro.plots.numbers.plus_minus`. Missing values are a dash.

    Args:
        frame: The table. Its index names the rows, unless it is the default one without a name.
        formats: A format specification such as ``".3f"`` for all columns of numbers, or one for each column
            named.

    Returns:
        The table as text.

    Raises:
        TypeError: If ``frame`` is no DataFrame.
        ValueError: If it has no column, has a hierarchical index or columns, or ``formats`` names no column
            of it.

    Example:
        >>> import pandas as pd
        >>> elbo = ["-812.35 ± 0.43", "-845.2 ± 2.1"]
        >>> as_table(pd.DataFrame({"cells": [2700, 700], "ELBO": elbo}, index=["a", "b"])).rows
        (('a', '2,700', '-812.35 ± 0.43'), ('b', '700', '-845.2 ± 2.1'))
    """
    if not isinstance(frame, pd.DataFrame):
        message = f"a table must be a pandas DataFrame, got {type(frame).__name__}"
        raise TypeError(message)
    if frame.index.nlevels > 1 or frame.columns.nlevels > 1:
        message = "a table must have one level of rows and of columns; flatten them, by frame.reset_index()"
        raise ValueError(message)
    if frame.shape[1] == 0:
        message = "a table must have at least one column, got a DataFrame without any"
        raise ValueError(message)
    named = not (isinstance(frame.index, pd.RangeIndex) and frame.index.name is None)
    given = _by_column(frame, formats)
    names = [str(name) for name in frame.columns]
    series = [frame.iloc[:, position] for position in range(frame.shape[1])]
    cells = [_column(column, given.get(name)) for name, column in zip(names, series, strict=True)]
    numeric = [_is_numeric(column, text) for column, text in zip(series, cells, strict=True)]
    if named:
        names.insert(0, "" if frame.index.name is None else str(frame.index.name))
        cells.insert(0, [str(label) for label in frame.index])
        numeric.insert(0, False)
    return Table(tuple(names), tuple(zip(*cells, strict=True)), tuple(numeric), named)


def _by_column(frame: pd.DataFrame, formats: Formats | None) -> Mapping[str, str]:
    names = [str(name) for name in frame.columns]
    if formats is None:
        return {}
    if isinstance(formats, str):
        return {name: formats for name, dtype in zip(names, frame.dtypes, strict=True) if dtype.kind in "iuf"}
    unknown = [name for name in formats if name not in names]
    if unknown:
        message = f"formats names the columns {unknown}, which the table has not; it has {names}"
        raise ValueError(message)
    return formats


def _column(column: pd.Series, given: str | None) -> list[str]:
    missing = column.isna().to_numpy()
    if given is not None:
        return [_ABSENT if gone else format(value, given) for value, gone in zip(column, missing, strict=True)]
    if column.dtype.kind == "f":
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        decimals = _decimals(values[np.isfinite(values)])
        return [_ABSENT if np.isnan(value) else _number(float(value), decimals) for value in values]
    return [_ABSENT if gone else as_text(value) for value, gone in zip(column, missing, strict=True)]


def _decimals(values: np.ndarray) -> int | None:
    """Decimals that show the largest value with four digits; None where the values span too far for one."""
    sizes = np.abs(values[values != 0])
    if sizes.size == 0:
        return 1
    if np.all(values == np.rint(values)) and sizes.max() < 1e9:
        return 0
    magnitude = int(np.floor(np.log10(sizes.max())))
    if sizes.min() < 1e-3 * sizes.max() or not -4 <= magnitude < 6:
        return None
    return max(0, _SIGNIFICANT - 1 - magnitude)


def _number(value: float, decimals: int | None) -> str:
    if not np.isfinite(value):
        return "\N{INFINITY}" if value > 0 else "-\N{INFINITY}"
    return readable(value, _SIGNIFICANT) if decimals is None else f"{value:,.{decimals}f}"


def as_text(value: object) -> str:
    """Write one value: numbers with separators of thousands and four digits, yes or no for booleans."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if isinstance(value, float | np.floating):
        return readable(float(value), _SIGNIFICANT)
    return str(value)


def _is_numeric(column: pd.Series, texts: list[str]) -> bool:
    if column.dtype.kind in "iuf":
        return True
    shown = [text for text in texts if text != _ABSENT]
    return bool(shown) and all(_NUMBER.match(text) for text in shown)
