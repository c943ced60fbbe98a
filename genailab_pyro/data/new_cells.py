"""Cells that are not observed: conditions and a library, from which a model draws counts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from genailab_pyro.data.registration import Registration, check_names
from genailab_pyro.types import Minibatch


@dataclass(frozen=True)
class NewCells:
    """Conditions, covariates and libraries of cells to be drawn from a model.

    Attributes:
        registration: The schema.
        codes: Codes of the conditions, shape ``[cells, conditions]``.
        continuous: Covariates in their own units, shape ``[cells, covariates]``.
        library: Total counts (or size factors), shape ``[cells]``.
    """

    registration: Registration
    codes: Int[np.ndarray, "cells conditions"]
    continuous: Float[np.ndarray, "cells covariates"]
    library: Float[np.ndarray, " cells"]

    @classmethod
    def draw(
        cls,
        registration: Registration,
        num_cells: int,
        *,
        conditions: Mapping[str, str | Sequence[str]] | None = None,
        continuous: Mapping[str, float | Sequence[float]] | None = None,
        seed: int = 0,
    ) -> "NewCells":
        """Conditions as asked for, or by frequency; libraries log-normal as in the level of the first condition.

        Args:
            registration: The schema.
            num_cells: How many.
            conditions: A level for all cells, or one per cell, of each named condition.
            continuous: A value for all cells, or one per cell, of each named covariate; others are at their mean.
            seed: Seed of the draws.

        Raises:
            ValueError: If the number of cells is below one, or a name, level or length does not fit.
        """
        if isinstance(num_cells, bool) or not isinstance(num_cells, (int, np.integer)) or num_cells < 1:
            raise ValueError(f"expected a whole number of cells of at least one, got {num_cells!r}")
        rng = np.random.default_rng(seed)
        codes = registration.codes(conditions or {}, num_cells, rng)
        given = continuous or {}
        check_names(given, [covariate.name for covariate in registration.continuous], "covariate")
        columns = []
        for covariate in registration.continuous:
            values = np.asarray(given.get(covariate.name, covariate.loc), dtype=float)
            if values.shape not in ((), (num_cells,)) or not np.isfinite(values).all():
                raise ValueError(
                    f"expected one finite value of {covariate.name!r}, or {num_cells} of them, one for each cell, got "
                    f"shape {values.shape}"
                )
            columns.append(np.broadcast_to(values, (num_cells,)))
        statistics = registration.library
        moments = np.array(statistics.levels or [(statistics.loc, statistics.scale)])
        level = codes[:, 0] if codes.shape[1] else np.zeros(num_cells, dtype=int)
        loc, scale = moments[level].T
        library = np.exp(loc + scale * rng.standard_normal(num_cells))
        return cls(registration, codes, np.stack(columns, 1) if columns else np.zeros((num_cells, 0)), library)

    def minibatches(self, size: int) -> Iterator[Minibatch]:
        """Minibatches without counts, in order."""
        standardised = np.zeros(self.continuous.shape, dtype=np.float32)
        for position, covariate in enumerate(self.registration.continuous):
            standardised[:, position] = covariate.standardise(self.continuous[:, position])
        for start in range(0, len(self.library), size):
            rows = slice(start, start + size)
            library = torch.from_numpy(self.library[rows].astype(np.float32))
            yield Minibatch(
                None,
                torch.from_numpy(self.codes[rows]),
                torch.from_numpy(standardised[rows]),
                library,
                torch.arange(start, start + len(library)),
                len(self.library),
            )

    def obs(self) -> pd.DataFrame:
        """One row per cell: its conditions as categories, its covariates."""
        columns: dict[str, object] = {}
        for position, condition in enumerate(self.registration.conditions):
            columns[condition.name] = pd.Categorical.from_codes(
                self.codes[:, position], categories=pd.Index(condition.levels)
            )
        for position, covariate in enumerate(self.registration.continuous):
            columns[covariate.name] = self.continuous[:, position]
        return pd.DataFrame(columns, index=pd.Index([f"cell_{i}" for i in range(len(self.library))]))
