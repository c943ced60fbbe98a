"""What a registration remembers of each column: its levels, or its scale."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from genailab_pyro.data.validation import named, suggestion

T = TypeVar("T")


def read_field(plain: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """A field of a JSON object.

    Args:
        plain: The object.
        name: Name of the field.
        kind: Its type; an integer may stand for a float, a tuple for a list.

    Returns:
        The value.

    Raises:
        ValueError: If the field is missing or of another type.
    """
    if not isinstance(plain, Mapping) or name not in plain:
        raise ValueError(f"registration: expected an object with the field {name!r}, got {plain!r:.80}")
    value = plain[name]
    if kind is float:
        value = number(value, name)
    if kind is list and isinstance(value, tuple):
        value = list(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"registration: expected {name!r} as {kind.__name__}, got {value!r:.80}")
    return value


def number(value: object, name: str) -> float:
    """A JSON number as a float.

    Raises:
        ValueError: If it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"registration: expected numbers in {name!r}, got {value!r:.80}")
    return float(value)


def texts(plain: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A list of strings in a JSON object.

    Raises:
        ValueError: If it is none.
    """
    values = read_field(plain, name, list)
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"registration: expected strings in {name!r}, got {values!r:.80}")
    return tuple(values)


@dataclass(frozen=True)
class Categorical:
    """A categorical column: the names of its levels in the order of their codes.

    Attributes:
        name: Name of the column.
        levels: Names of the levels; the code of a level is its position.
        frequencies: Fraction of the registered cells at each level, of those whose level is known.

    Examples:
        >>> Categorical("batch", ("b1", "b2"), (0.25, 0.75)).encode(["b2", "b1"])
        array([1, 0])
    """

    name: str
    levels: tuple[str, ...]
    frequencies: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.levels or len(set(self.levels)) != len(self.levels):
            raise ValueError(f"expected distinct levels of {self.name!r}, at least one, got {self.levels}")
        fair = all(math.isfinite(value) and value >= 0 for value in self.frequencies)
        if len(self.frequencies) != len(self.levels) or not fair or abs(sum(self.frequencies) - 1) > 1e-8:
            raise ValueError(
                f"expected one frequency for each of the {len(self.levels)} levels of {self.name!r}, with a "
                f"sum of one, got {self.frequencies}"
            )

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Categorical":
        """The column that its fields, in plain types, describe."""
        frequencies = tuple(number(value, "frequencies") for value in read_field(plain, "frequencies", list))
        return cls(read_field(plain, "name", str), texts(plain, "levels"), frequencies)

    def encode(self, values: Iterable[object]) -> npt.NDArray[np.int64]:
        """Codes of some levels.

        Args:
            values: Names of levels; other values stand for their text.

        Returns:
            Their codes, shape ``[values]``.

        Raises:
            ValueError: If a name is no level; it is named, and so are the known ones.
        """
        codes = {level: code for code, level in enumerate(self.levels)}
        asked = [str(value) for value in values]
        unseen = list(dict.fromkeys(value for value in asked if value not in codes))
        if unseen:
            raise ValueError(
                f"{self.name!r} has no level {named(unseen)}: expected one of {named(self.levels, 20)}"
                f"{suggestion(unseen[0], self.levels)}"
            )
        return np.array([codes[value] for value in asked], dtype=np.int64)


@dataclass(frozen=True)
class Continuous:
    """A continuous column, standardised as ``(value - loc) / scale``.

    Attributes:
        name: Name of the column.
        loc: Mean over the registered cells, in the column's unit.
        scale: Standard deviation over the registered cells, in the column's unit, above zero.
    """

    name: str
    loc: float
    scale: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.loc) and math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(
                f"expected a finite mean and a standard deviation above zero for {self.name!r}, "
                f"got loc={self.loc}, scale={self.scale}"
            )

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Continuous":
        """The covariate that its fields, in plain types, describe."""
        return cls(read_field(plain, "name", str), read_field(plain, "loc", float), read_field(plain, "scale", float))

    def standardise(self, values: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Values in units of standard deviations from the mean.

        Args:
            values: In the column's unit, any shape.

        Returns:
            The same shape, without unit.

        Raises:
            ValueError: If a value is not a finite number.

        Examples:
            >>> Continuous("dose", loc=2.0, scale=0.5).standardise([2.0, 3.0])
            array([0., 2.], dtype=float32)
        """
        try:
            found = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError):
            raise ValueError(f"expected numbers for {self.name!r}, got {values!r:.80}") from None
        if not np.all(np.isfinite(found)):
            raise ValueError(f"expected finite numbers for {self.name!r}, got NaN or infinite values")
        return np.asarray((found - self.loc) / self.scale, dtype=np.float32)


@dataclass(frozen=True)
class LibraryStatistics:
    """Moments of the log library: the natural logarithm of a cell's total counts, or of its size factor.

    Attributes:
        loc: Mean over all registered cells, in log counts.
        scale: Standard deviation over all registered cells, in log counts, at least ``FLOOR``.
        levels: The same pair for the cells of each level of the first condition; empty without one.
    """

    loc: float
    scale: float
    levels: tuple[tuple[float, float], ...] = ()

    FLOOR: ClassVar[float] = 1e-2

    def __post_init__(self) -> None:
        for loc, scale in ((self.loc, self.scale), *self.levels):
            if not (math.isfinite(loc) and math.isfinite(scale) and scale > 0):
                raise ValueError(f"expected finite moments of the log library, scale above zero, got ({loc}, {scale})")

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "LibraryStatistics":
        """The moments that their fields, in plain types, describe."""
        pairs = read_field(plain, "levels", list)
        if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            raise ValueError(f"registration: expected pairs (mean, standard deviation) in 'levels', got {pairs}")
        levels = tuple((number(loc, "levels"), number(scale, "levels")) for loc, scale in pairs)
        return cls(read_field(plain, "loc", float), read_field(plain, "scale", float), levels)

    @classmethod
    def of(
        cls, library: npt.NDArray[np.floating], codes: Sequence[int] | npt.NDArray[np.int64], num_levels: int
    ) -> "LibraryStatistics":
        """Moments of some cells.

        Args:
            library: Total counts or size factor of each cell, above zero, shape ``[cells]``.
            codes: Codes of the first condition, shape ``[cells]``.
            num_levels: Number of its levels; 0 without a condition.

        Returns:
            The moments. A level without cells gets those of all cells.
        """
        logs = np.log(np.asarray(library, dtype=np.float64))

        def moments(values: npt.NDArray[np.float64]) -> tuple[float, float]:
            return float(values.mean()), max(float(values.std()), cls.FLOOR)

        overall = moments(logs)
        members = [logs[np.asarray(codes) == level] for level in range(num_levels)]
        return cls(*overall, tuple(moments(values) if values.size else overall for values in members))
