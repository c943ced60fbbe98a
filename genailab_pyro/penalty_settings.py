"""Which penalties a run on the command line adds to its loss."""

import math
from dataclasses import dataclass
from typing import Any

from genailab_pyro.data.cells import Cells
from genailab_pyro.data.validation import check_names
from genailab_pyro.model.adversary import ConditionAdversary
from genailab_pyro.model.alignment import LatentAlignment


@dataclass(frozen=True)
class PenaltySettings:
    """Penalties that take a condition out of the latent, by their weights; zero leaves one out.

    Attributes:
        alignment: Weight of `genailab_pyro.LatentAlignment`, for a perturbation whose counterfactuals are asked for.
        adversary: Weight of `genailab_pyro.ConditionAdversary`, for a batch.
        condition: Name of the condition; None for the first.

    Raises:
        ValueError: If a weight is negative or not finite, or a condition is named and no penalty.
    """

    alignment: float = 0.0
    adversary: float = 0.0
    condition: str | None = None

    def __post_init__(self) -> None:
        for name in ("alignment", "adversary"):
            weight = getattr(self, name)
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"expected {name} to be finite and at least 0, got {weight!r}")
        if self.condition is not None and not self.alignment and not self.adversary:
            raise ValueError(
                f"expected a weight of a penalty beside condition={self.condition!r}, got none; set "
                "penalties.alignment or penalties.adversary"
            )

    def build(self, cells: Cells, latent_dim: int) -> list[Any]:
        """The penalties for some registered cells.

        Raises:
            ValueError: If the cells have no such condition.
        """
        if not self.alignment and not self.adversary:
            return []
        conditions = cells.registration.conditions
        names = [condition.name for condition in conditions]
        if not names:
            raise ValueError("expected a condition for a penalty to take out of the latent, got none; register one")
        if self.condition is not None:
            check_names({self.condition: None}, names, "condition")
        position = 0 if self.condition is None else names.index(self.condition)
        built: list[Any] = []
        if self.alignment:
            built.append(LatentAlignment(self.alignment, condition=position))
        if self.adversary:
            levels = len(conditions[position].levels)
            built.append(ConditionAdversary(self.adversary, latent_dim, levels, condition=position))
        return built
