"""The registration: what a model must know of its data, without the data."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from anndata import AnnData
from jaxtyping import Int64

from genailab_pyro.data.cells import Cells
from genailab_pyro.data.columns import (
    Columns,
    columns_of,
    condition_codes,
    condition_of,
    continuous_of,
    label_codes,
    labels_of,
    numbers,
    size_factors,
)
from genailab_pyro.data.matrix import CountMatrix, open_counts
from genailab_pyro.data.schema import Categorical, Continuous, LibraryStatistics, read_field, texts
from genailab_pyro.data.validation import (
    Totals,
    check_anndata,
    check_counts,
    check_genes,
    check_layer,
    check_names,
    match_genes,
    named,
    warn_silent_genes,
)

__all__ = ["Categorical", "Continuous", "LibraryStatistics", "Registration", "register"]


@dataclass(frozen=True)
class Registration:
    """The schema of a data set: genes, conditions and their levels, moments of the library; no cells.

    Attributes:
        genes: Names of the genes, in the order of the count matrix.
        counts: Layer that holds the counts; None for ``.X``.
        conditions: Categorical conditions.
        continuous: Continuous covariates.
        labels: Labels of the cells, or None.
        size_factor: Column of size factors that takes the place of the total counts, or None.
        library: Moments of the log library.
        num_cells: Number of cells that were registered.
    """

    genes: tuple[str, ...]
    counts: str | None
    conditions: tuple[Categorical, ...]
    continuous: tuple[Continuous, ...]
    labels: Categorical | None
    size_factor: str | None
    library: LibraryStatistics
    num_cells: int

    def __post_init__(self) -> None:
        names = [item.name for item in self.conditions] + [item.name for item in self.continuous]
        if not self.genes or self.num_cells < 1 or len(set(names)) != len(names):
            raise ValueError(
                f"expected genes, at least one cell and distinct names of covariates, got {len(self.genes)} "
                f"genes, {self.num_cells} cells and {names}"
            )
        levels = len(self.conditions[0].levels) if self.conditions else 0
        if len(self.library.levels) != levels:
            raise ValueError(
                f"expected moments of the library for {levels} levels of the first condition, "
                f"got {len(self.library.levels)}"
            )

    def bind(self, adata: AnnData) -> Cells:
        """Bind another AnnData to this schema.

        Genes may come in any order, and others beside them are ignored. Labels are optional: without the
        column they are None, and a label that was not registered counts as missing.

        Args:
            adata: The cells. It is not modified.

        Returns:
            The cells, in this registration's terms.

        Raises:
            TypeError: If it is no AnnData.
            ValueError: If genes, the layer or a column are missing, a category is unseen, or the values are
                no counts.
        """
        check_anndata(adata)
        positions = match_genes(adata, self.genes)
        check_layer(adata, self.counts)
        labels = self.labels.name if self.labels is not None and self.labels.name in adata.obs.columns else None
        names = [item.name for item in self.conditions], [item.name for item in self.continuous]
        columns = columns_of(adata, *names, labels, self.size_factor)
        matrix = open_counts(adata, self.counts, positions)
        return _bind(self, columns, matrix, np.asarray(adata.obs_names, dtype=str), adata)[0]

    def codes(
        self,
        conditions: Mapping[str, str | Sequence[str]],
        num_cells: int,
        rng: np.random.Generator | None = None,
    ) -> Int64[np.ndarray, "cells conditions"]:
        """Codes of the conditions of new cells.

        Args:
            conditions: Level of each named condition: one for all cells, or one for each.
            num_cells: Number of cells.
            rng: Draws the conditions that are not named, by their frequencies.

        Returns:
            Codes, shape ``[num_cells, conditions]``.

        Raises:
            ValueError: If a name or a level is not registered, a sequence has another length, or a condition
                is not named and ``rng`` is None.

        Examples:
            >>> cells = Cells.from_tensors([[3, 1], [2, 2]], conditions={"batch": ["b1", "b2"]})
            >>> cells.registration.codes({"batch": "b2"}, num_cells=3).ravel()
            array([1, 1, 1])
        """
        if num_cells < 1:
            raise ValueError(f"expected at least one cell, got num_cells={num_cells}")
        known = [condition.name for condition in self.conditions]
        check_names(conditions, known, "condition")
        columns = np.zeros((num_cells, len(known)), dtype=np.int64)
        for position, condition in enumerate(self.conditions):
            if condition.name not in conditions:
                if rng is None:
                    raise ValueError(
                        f"expected a level of {condition.name!r}, one of {named(condition.levels, 20)}, got "
                        "none: name one, or pass rng to draw it by its frequency"
                    )
                columns[:, position] = rng.choice(len(condition.levels), num_cells, p=condition.frequencies)
                continue
            level = conditions[condition.name]
            asked = [level] * num_cells if np.ndim(level) == 0 else list(level)
            if len(asked) != num_cells:
                raise ValueError(
                    f"expected one level of {condition.name!r} or {num_cells} of them, one for each cell, "
                    f"got {len(asked)}"
                )
            columns[:, position] = condition.encode(asked)
        return columns

    def with_levels(self, condition: str, levels: Sequence[str]) -> "Registration":
        """The same schema, which also knows other levels of a condition, coded after those that were registered.

        Args:
            condition: Name of the condition.
            levels: Levels that no registered cell has: their frequency is zero.

        Returns:
            The schema. Where it is the first condition, the new levels have the library moments of all cells.

        Raises:
            ValueError: If the condition is not registered, or a level already is.

        Examples:
            >>> cells = Cells.from_tensors([[3, 1], [2, 2]], conditions={"drug": ["A", "B"]})
            >>> cells.registration.with_levels("drug", ["A+B"]).conditions[0].levels
            ('A', 'B', 'A+B')
        """
        known = [item.name for item in self.conditions]
        check_names({condition: levels}, known, "condition")
        place, added = known.index(condition), tuple(levels)
        item = self.conditions[place]
        opened = replace(item, levels=item.levels + added, frequencies=item.frequencies + (0.0,) * len(added))
        library = self.library
        if place == 0:
            moments = ((library.loc, library.scale),) * len(added)
            library = replace(library, levels=library.levels + moments)
        conditions = (*self.conditions[:place], opened, *self.conditions[place + 1 :])
        return replace(self, conditions=conditions, library=library)

    def to_json(self) -> dict[str, Any]:
        """The registration in plain JSON types; ``from_json`` restores it exactly."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Registration":
        """The registration that ``to_json`` described.

        Args:
            plain: What ``to_json`` gave, also after a journey through a JSON file.

        Returns:
            The same registration.

        Raises:
            ValueError: If a field is missing, unknown, or of another type; it is named.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(plain, Mapping) or sorted(plain) != sorted(names):
            got = sorted(plain) if isinstance(plain, Mapping) else type(plain).__name__
            raise ValueError(f"expected a registration as to_json gives it, with the fields {names}, got {got}")
        library = read_field(plain, "library", dict)
        labels = plain["labels"]
        return cls(
            genes=check_genes(texts(plain, "genes"), "the registration"),
            counts=None if plain["counts"] is None else read_field(plain, "counts", str),
            conditions=tuple(Categorical.from_json(item) for item in read_field(plain, "conditions", list)),
            continuous=tuple(Continuous.from_json(item) for item in read_field(plain, "continuous", list)),
            labels=None if labels is None else Categorical.from_json(labels),
            size_factor=None if plain["size_factor"] is None else read_field(plain, "size_factor", str),
            library=LibraryStatistics.from_json(library),
            num_cells=read_field(plain, "num_cells", int),
        )


def register(
    adata: AnnData,
    counts: str | None = None,
    conditions: Sequence[str] = (),
    continuous: Sequence[str] = (),
    labels: str | None = None,
    size_factor: str | None = None,
) -> Cells:
    """Check an AnnData once and remember its schema.

    Args:
        adata: Cells by genes, in memory, backed, or a view. It is not modified.
        counts: Layer with the raw counts; None for ``adata.X``.
        conditions: Categorical columns of ``adata.obs`` to condition on, such as ``["batch"]``.
        continuous: Numeric columns of ``adata.obs`` to condition on, such as ``["dose"]``.
        labels: Column of ``adata.obs`` with a label of each cell. Cells whose label is not known have NaN
            there: a name such as "unlabelled" would be a label like any other.
        size_factor: Column of ``adata.obs`` that takes the place of the total counts of a cell.

    Returns:
        The cells, with their ``registration``.

    Raises:
        TypeError: If ``adata`` is no AnnData or the matrix is of an unknown type.
        ValueError: If the values are no raw counts, a slot is missing, or a column can not play its role.

    Examples:
        >>> import numpy as np, pandas as pd
        >>> obs = pd.DataFrame({"batch": ["b1", "b2", "b2"]}, index=["c1", "c2", "c3"])
        >>> adata = AnnData(np.array([[3, 1], [2, 2], [0, 5]]), obs, pd.DataFrame(index=["GNLY", "CD3D"]))
        >>> cells = register(adata, conditions=["batch"])
        >>> cells
        Cells(3 cells x 2 genes; counts=adata.X (in memory, dense); conditions=batch[2]; ...)
        >>> cells.registration.bind(adata[:, ["CD3D", "GNLY"]]).take([0]).counts
        tensor([[3., 1.]])
    """
    check_anndata(adata)
    genes = check_genes(adata.var_names)
    check_layer(adata, counts)
    columns = columns_of(adata, conditions, continuous, labels, size_factor)
    matrix = open_counts(adata, counts)
    return register_columns(genes, columns, matrix, np.asarray(adata.obs_names, dtype=str), adata, counts)


def register_columns(
    genes: tuple[str, ...],
    columns: Columns,
    matrix: CountMatrix,
    obs_names: npt.NDArray[np.str_],
    adata: AnnData | None = None,
    counts: str | None = None,
) -> Cells:
    """Register counts and columns that are at hand, from an AnnData or not.

    Args:
        genes: Names of the genes.
        columns: The columns by their roles.
        matrix: The counts.
        obs_names: Names of the cells.
        adata: Where they come from, if from an AnnData.
        counts: Layer of the counts.

    Returns:
        The cells.
    """
    described = tuple(condition_of(columns, name) for name in columns.conditions)
    covariates = tuple(continuous_of(columns, name) for name in columns.continuous)
    labels = None if columns.labels is None else labels_of(columns, str(columns.labels.name))
    size_factor = None if columns.size_factor is None else str(columns.size_factor.name)
    num_levels = len(described[0].levels) if described else 0
    unset = LibraryStatistics(0.0, 1.0, ((0.0, 1.0),) * num_levels)
    schema = Registration(genes, counts, described, covariates, labels, size_factor, unset, len(obs_names))
    cells, totals = _bind(schema, columns, matrix, obs_names, adata)
    warn_silent_genes(totals, genes)
    library = LibraryStatistics.of(cells.library, cells.conditions[:, :1].ravel(), num_levels)
    return replace(cells, registration=replace(schema, library=library))


def _bind(
    registration: Registration,
    columns: Columns,
    matrix: CountMatrix,
    obs_names: npt.NDArray[np.str_],
    adata: AnnData | None,
) -> tuple[Cells, Totals]:
    """Encode the columns, check the counts, and put both together."""
    conditions = np.zeros((len(obs_names), len(registration.conditions)), dtype=np.int64)
    for position, condition in enumerate(registration.conditions):
        place = columns.place("conditions", condition.name)
        conditions[:, position] = condition_codes(columns.conditions[condition.name], condition, place)
    continuous = np.zeros((len(obs_names), len(registration.continuous)), dtype=np.float32)
    for position, covariate in enumerate(registration.continuous):
        values = numbers(columns.continuous[covariate.name], columns.place("continuous", covariate.name))
        continuous[:, position] = covariate.standardise(values)
    labels = factors = None
    if registration.labels is not None and columns.labels is not None:
        place = columns.place("labels", registration.labels.name)
        labels = label_codes(columns.labels, registration.labels, place)
    if registration.size_factor is not None and columns.size_factor is not None:
        factors = size_factors(columns.size_factor, columns.place("size_factor", registration.size_factor))
    totals = check_counts(matrix, obs_names, registration.genes, adata)
    library = (totals.cells if factors is None else factors).astype(np.float32)
    cells = Cells(
        registration=registration,
        matrix=matrix,
        source=adata,
        rows=np.arange(len(obs_names)),
        obs_names=obs_names,
        conditions=conditions,
        continuous=continuous,
        library=library,
        labels=labels,
        totals=totals.cells,
    )
    return cells, totals
