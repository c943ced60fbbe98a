"""What a figure may be drawn from: conversions to arrays that name what is wrong."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

Array = npt.NDArray[np.float64]


def as_array(name: str, values: npt.ArrayLike) -> Array:
    """Convert to an array of float64.

    Args:
        name: What the values are called in an error.
        values: Numbers of any shape.

    Returns:
        The values as float64, of the same shape.

    Raises:
        TypeError: If the values are not dense numbers.
    """
    raw = np.asarray(values)
    if raw.dtype.kind not in "biuf":
        message = (
            f"{name} must be a dense array of real numbers, got {type(values).__name__} "
            f"of dtype {raw.dtype}; pass statistics per gene or per cell, not a sparse matrix or text"
        )
        raise TypeError(message)
    return raw.astype(np.float64)


def as_vector(name: str, values: npt.ArrayLike, length: int | None = None, *, finite: bool = True) -> Array:
    """Convert to a vector, and check its length.

    Args:
        name: What the values are called in an error.
        values: Numbers, shape ``[length]``.
        length: The length expected; None takes any but zero.
        finite: Whether NaN and the infinities are refused.

    Returns:
        The values as float64, shape ``[length]``.

    Raises:
        TypeError: If the values are not dense numbers.
        ValueError: If the shape differs, or a value is not finite.
    """
    array = as_array(name, values)
    expected = "[n] with n > 0" if length is None else f"[{length}]"
    if array.ndim != 1 or array.size == 0 or (length is not None and array.size != length):
        message = f"{name} must be a vector of shape {expected}, got shape {list(array.shape)}"
        raise ValueError(message)
    if finite:
        _refuse_non_finite(name, array)
    return array


def as_matrix(name: str, values: npt.ArrayLike, columns: int, meaning: str) -> Array:
    """Convert to a matrix with a known number of columns and finite values.

    Args:
        name: What the values are called in an error.
        values: Numbers, shape ``[rows, columns]``.
        columns: The number of columns expected.
        meaning: What the rows are, for the error: ``"cells"``.

    Returns:
        The values as float64, shape ``[rows, columns]``.

    Raises:
        TypeError: If the values are not dense numbers.
        ValueError: If the shape differs, there is no row, or a value is not finite.
    """
    array = as_array(name, values)
    if array.ndim != 2 or array.shape[0] == 0 or array.shape[1] != columns:
        expected = f"[{meaning}, {columns}] with at least one row"
        message = f"{name} must have shape {expected}, got shape {list(array.shape)}"
        raise ValueError(message)
    _refuse_non_finite(name, array)
    return array


def as_history(name: str, history: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Check that a training history has the columns that a figure draws.

    Args:
        name: What the history is called in an error.
        history: One row per epoch.
        columns: The columns needed; the first is the horizontal axis, and must increase.

    Returns:
        These columns as float64.

    Raises:
        TypeError: If the history is no DataFrame.
        ValueError: If it is empty, a column is missing, or the first column does not increase.
    """
    if not isinstance(history, pd.DataFrame):
        message = f"{name} must be a pandas DataFrame with one row per epoch, got {type(history).__name__}"
        raise TypeError(message)
    if history.empty:
        message = f"{name} has no rows; there is nothing to draw before the first epoch"
        raise ValueError(message)
    missing = [column for column in columns if column not in history.columns]
    if missing:
        message = f"{name} lacks the columns {missing}; it has {list(map(str, history.columns))}"
        raise ValueError(message)
    frame = history[list(columns)].astype(np.float64)
    horizontal = as_vector(f"{name}[{columns[0]!r}]", frame[columns[0]].to_numpy())
    if np.any(np.diff(horizontal) <= 0):
        message = f"{name}[{columns[0]!r}] must increase from row to row; sort the history by it"
        raise ValueError(message)
    return frame


def _refuse_non_finite(name: str, array: Array) -> None:
    wrong = int(np.count_nonzero(~np.isfinite(array)))
    if wrong:
        message = f"{name} must be finite, got {wrong} of {array.size} values NaN or infinite"
        raise ValueError(message)
