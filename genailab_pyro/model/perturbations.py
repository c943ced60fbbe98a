r"""Perturbations that compose: the effect vector of a drug, a gene, or a pair of them, at a dose.

A perturbation p at a dose d has the effect vector

.. math:: e(p, d) = \sum_{s \in p} f_s(d)\, v_s,

the sum over its single parts (``"A+B"`` has two) of a learned vector times a monotone curve of the dose, which is zero
at dose zero. The control has no parts, so that its effect is exactly zero. A combination that no cell has been given
is encoded like any other.

References:
    Lotfollahi, Klimovskaia Susmelj, De Donno, Hetzel, et al. (2023). Predicting cellular responses to complex
    perturbations in high-throughput screens. doi:10.15252/msb.202211517
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Self, cast

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from genailab_pyro.data.cells import Cells
from genailab_pyro.data.registration import Registration
from genailab_pyro.data.validation import check_names, named, suggestion
from genailab_pyro.nn import ConditionEncoding, Declared, choose
from genailab_pyro.types import Minibatch


class DoseCurve(Declared):
    """Base of the dose curves: a factor on each single perturbation's effect, zero at dose zero, never falling.

    Args:
        singles: Number of single perturbations.
        index: Which of the continuous covariates is the dose.
        loc: What the dose was standardised by: its mean, in its unit.
        scale: And its standard deviation, in its unit.

    Raises:
        ValueError: If the index is negative, or the scale not above zero.
    """

    def __init__(self, singles: int, index: int = 0, loc: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        if index < 0 or not scale > 0:
            raise ValueError(f"expected the index of a covariate and a scale above zero, got {index} and {scale}")
        self.singles, self.index, self.loc, self.scale = singles, index, loc, scale
        self.log_half = nn.Parameter(torch.full((singles,), math.log(loc if loc > 0 else scale)))

    def dose(self, minibatch: Minibatch) -> Float[Tensor, "cells 1"]:
        """The dose of each cell in its own unit; what is left of zero after it was standardised is zero."""
        dose = self.loc + self.scale * minibatch.continuous[:, [self.index]]
        return dose * (dose > 1e-6 * (abs(self.loc) + self.scale))

    def forward(self, minibatch: Minibatch) -> Float[Tensor, "cells singles"]:
        """The factor of each single perturbation at the dose of each cell."""
        raise NotImplementedError


class HillCurve(DoseCurve):
    r"""Saturating response :math:`d^s / (h^s + d^s)` with a learned half-effect dose h and slope s per perturbation.

    Half-effect doses start at the mean dose, slopes at one.

    Args:
        singles: Number of single perturbations.
        index: Which of the continuous covariates is the dose.
        loc: What the dose was standardised by: its mean, in its unit.
        scale: And its standard deviation, in its unit.

    References:
        Hill (1910). The possible effects of the aggregation of the molecules of haemoglobin on its dissociation
        curves. The Journal of Physiology 40, iv-vii.

    Example:
        >>> doses, ones = torch.tensor([[-1.0], [0.0]]), torch.ones(2)  # 0 and 2 mg, standardised
        >>> cells = Minibatch(None, torch.zeros(2, 0).long(), doses, ones, ones.long(), 2)
        >>> HillCurve(1, loc=2.0, scale=2.0)(cells)[:, 0].tolist()
        [0.0, 0.5]
    """

    def __init__(self, singles: int, index: int = 0, loc: float = 0.0, scale: float = 1.0) -> None:
        super().__init__(singles, index, loc, scale)
        self.slope = nn.Parameter(torch.full((singles,), math.log(math.e - 1)))  # softplus makes it one

    def forward(self, minibatch: Minibatch) -> Float[Tensor, "cells singles"]:
        """The factor of each single perturbation at the dose of each cell, from 0 to 1."""
        dose = self.dose(minibatch)
        given = dose > 0
        return (softplus(self.slope) * (torch.where(given, dose, 1.0).log() - self.log_half)).sigmoid() * given


class LogCurve(DoseCurve):
    """Unbounded response ``log(1 + d / h)`` with a learned dose h per perturbation, which starts at the mean dose.

    Args:
        singles: Number of single perturbations.
        index: Which of the continuous covariates is the dose.
        loc: What the dose was standardised by: its mean, in its unit.
        scale: And its standard deviation, in its unit.
    """

    def forward(self, minibatch: Minibatch) -> Float[Tensor, "cells singles"]:
        """The factor of each single perturbation at the dose of each cell."""
        return (self.dose(minibatch) / self.log_half.exp()).log1p()


DOSE_CURVES: dict[str, type[DoseCurve]] = {"hill": HillCurve, "log": LogCurve}


class PerturbationEncoding(ConditionEncoding):
    """Contexts as indicators, other covariates as they are, and the composed effect of the perturbation.

    The columns are, in this order: indicators of the levels of each context, the covariates beside the dose, the
    effect. Where ``features`` describe each single perturbation (a fingerprint, an embedding of a gene), its vector is
    a map of them, and one that no cell was given is encoded by its features.

    The effects of a combination add up here. What a decoder makes of the sum is its own: the log fold changes add up,
    too, in a `PerturbationVAE`, and need not do so behind the hidden layers of a `CVAE_NB`.

    Attributes:
        singles: Names of the single perturbations.
        effect_dim: Width of the effect.

    Args:
        levels: Number of levels of each categorical condition.
        perturbations: Names of the levels of the perturbation, in the order of their codes.
        position: Which of the conditions is the perturbation.
        control: The level, or the part of one, that does nothing.
        separator: What stands between the parts of a combination; None where a level is one perturbation.
        effect_dim: Width of the effect.
        features: A row of numbers for each single perturbation; None to learn a vector for each.
        hidden_dims: Widths of the hidden layers of the map from features to effects; none for a linear one.
        continuous_dim: Number of continuous covariates, the dose included.
        dose: What the dose does to each single perturbation's effect; None where doses do not differ.

    Raises:
        ValueError: If the control is no level, the features leave a perturbation out, or a position does not exist.

    Example:
        >>> encoding = PerturbationEncoding([2, 4], ["control", "A", "B", "A+B"], position=1, effect_dim=3)
        >>> encoding.singles, encoding.output_dim
        (('A', 'B'), 5)
        >>> codes = torch.tensor([[0, 0], [0, 1], [0, 2], [0, 3]])
        >>> none = torch.zeros(4, 0)
        >>> effect = encoding(Minibatch(None, codes, none, torch.ones(4), torch.arange(4), 4))[:, 2:]
        >>> bool((effect[0] == 0).all()), bool(effect[3].allclose(effect[1] + effect[2]))
        (True, True)
    """

    composition: Tensor
    table: Tensor

    def __init__(
        self,
        levels: Sequence[int],
        perturbations: Sequence[str],
        *,
        position: int = 0,
        control: str = "control",
        separator: str | None = "+",
        effect_dim: int = 8,
        features: Mapping[str, Sequence[float]] | None = None,
        hidden_dims: Sequence[int] = (),
        continuous_dim: int = 0,
        dose: DoseCurve | None = None,
    ) -> None:
        super().__init__()
        self.levels, self.perturbations = tuple(levels), tuple(perturbations)
        self.position, self.control, self.separator = position, control, separator
        self.effect_dim, self.dose = effect_dim, dose
        self.others = [place for place in range(continuous_dim) if dose is None or place != dose.index]
        self._check(continuous_dim)
        self.singles = tuple(features) if features else _singles(self.perturbations, control, separator)
        self._check_known(self.perturbations)
        self.output_dim = sum(self.levels) - self.levels[position] + len(self.others) + effect_dim
        if features is None:
            self.vectors = nn.Parameter(torch.randn(len(self.singles), effect_dim) / math.sqrt(effect_dim))
        else:
            self.register_buffer("table", _table(features), persistent=False)
            self.map = _without_bias([self.table.shape[1], *hidden_dims, effect_dim])
        if dose is not None and dose.singles != len(self.singles):
            raise ValueError(
                f"expected a dose curve for each of {len(self.singles)} single perturbations, got {dose.singles}"
            )
        rows = [[float(self.parts(level).count(single)) for single in self.singles] for level in self.perturbations]
        self.register_buffer("composition", torch.tensor(rows), persistent=False)

    @classmethod
    def from_registration(
        cls,
        cells: Cells | Registration,
        perturbation: str,
        *,
        dose: str | None = None,
        dose_curve: str = "hill",
        control: str = "control",
        features: pd.DataFrame | None = None,
        seed: int = 0,
        **options: Any,
    ) -> Self:
        """Declare the encoding of registered cells.

        Args:
            cells: The cells, or their registration.
            perturbation: Name of the condition that is the perturbation.
            dose: Name of the continuous covariate that is its dose; None where doses do not differ.
            dose_curve: ``"hill"`` or ``"log"``.
            control: The level, or the part of one, that does nothing.
            features: One row per single perturbation, which is the index; those that no cell was given may be there.
            seed: Seed of the initial weights; the caller's random state is left as it was.
            options: ``separator``, ``effect_dim`` and ``hidden_dims``.

        Raises:
            ValueError: If a name is not registered, or for what the constructor refuses.

        Example:
            >>> import genailab_pyro as glp
            >>> adata = glp.data.simulate(90, 20, perturbations=glp.data.Perturbations(number=2)).adata
            >>> cells = glp.register(adata, conditions=["perturbation"])
            >>> PerturbationEncoding.from_registration(cells, "perturbation").singles
            ('perturbation1', 'perturbation2')
        """
        registration = cells.registration if isinstance(cells, Cells) else cells
        conditions = [condition.name for condition in registration.conditions]
        position = _position(perturbation, conditions, "condition")
        levels = registration.conditions[position].levels
        if features is not None:
            rows = features.to_numpy(dtype=float).tolist()
            options["features"] = dict(zip(map(str, features.index), rows, strict=True))
        if dose is not None:
            index = _position(dose, [covariate.name for covariate in registration.continuous], "continuous covariate")
            covariate = registration.continuous[index]
            singles = options.get("features") or _singles(levels, control, options.get("separator", "+"))
            curve = choose(DOSE_CURVES, dose_curve, "dose_curve")
            options["dose"] = curve(len(singles), index, covariate.loc, covariate.scale)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return cls(
                [len(condition.levels) for condition in registration.conditions],
                levels,
                position=position,
                control=control,
                continuous_dim=len(registration.continuous),
                **options,
            )

    def with_levels(self, names: Sequence[str]) -> "PerturbationEncoding":
        """The same encoding, which also knows other levels, coded after those that it was declared with.

        Args:
            names: Combinations of known single perturbations, or single ones whose features are known.

        Raises:
            ValueError: If a part of a level is not known.
        """
        self._check_known(names)
        levels = [*self.levels]
        levels[self.position] += len(names)
        declared = self.declaration()
        declared["arguments"] |= {"levels": levels, "perturbations": [*self.perturbations, *names]}
        with torch.random.fork_rng():
            opened = Declared.declare(declared)
        opened.load_state_dict(self.state_dict())
        return cast(PerturbationEncoding, opened.to(self.composition))

    def parts(self, level: str) -> list[str]:
        """The single perturbations that a level is composed of; none for the control."""
        return parts_of(level, self.control, self.separator)

    def forward(self, minibatch: Minibatch) -> Float[Tensor, "cells condition"]:
        """Contexts, covariates beside the dose, effect."""
        contexts = super().forward(minibatch._replace(continuous=minibatch.continuous[:, self.others]))
        return torch.cat([contexts, self.effect(minibatch)], dim=-1)

    def encode(self, minibatch: Minibatch) -> list[Float[Tensor, "cells width"]]:
        """Indicator vectors of the contexts."""
        places = [place for place in range(len(self.levels)) if place != self.position]
        codes, dtype = minibatch.conditions, minibatch.library.dtype
        return [nn.functional.one_hot(codes[:, place], self.levels[place]).to(dtype) for place in places]

    def effect(self, minibatch: Minibatch) -> Float[Tensor, "cells effect"]:
        """The effect vector of each cell's perturbation at its dose."""
        amounts = self.composition[minibatch.conditions[:, self.position]]
        if self.dose is not None:
            amounts = amounts * self.dose(minibatch)
        return amounts @ (self.map(self.table) if hasattr(self, "map") else self.vectors)

    def _check(self, continuous_dim: int) -> None:
        if not 0 <= self.position < len(self.levels) or self.levels[self.position] != len(self.perturbations):
            raise ValueError(
                f"expected the position of a condition with {len(self.perturbations)} levels, got "
                f"position={self.position} among conditions of {list(self.levels)} levels"
            )
        if self.control not in self.perturbations:
            raise ValueError(
                f"expected the control {self.control!r} among the levels {named(self.perturbations, 20)}; name the "
                f"level that does nothing as control=...{suggestion(self.control, self.perturbations)}"
            )
        if self.effect_dim < 1:
            raise ValueError(f"expected effect_dim to be at least one, got {self.effect_dim}")
        if self.dose is not None and self.dose.index >= continuous_dim:
            raise ValueError(
                f"expected the dose among {continuous_dim} continuous covariates, got index={self.dose.index}; give "
                "their number as continuous_dim"
            )

    def _check_known(self, levels: Sequence[str]) -> None:
        for level in levels:
            unknown = [part for part in self.parts(level) if part not in self.singles]
            if unknown:
                raise ValueError(
                    f"expected {level!r} to be composed of known perturbations, {named(self.singles, 20)}, got "
                    f"{named(unknown)}; train on cells that were given it, or declare the encoding with its features"
                    f"{suggestion(unknown[0], self.singles)}"
                )


def parts_of(level: str, control: str, separator: str | None) -> list[str]:
    """The single perturbations that a level is composed of; none for the control.

    Example:
        >>> parts_of("A+B", "control", "+"), parts_of("A+control", "control", "+"), parts_of("A+B", "control", None)
        (['A', 'B'], ['A'], ['A+B'])
    """
    parts = [level] if separator is None or level == control else level.split(separator)
    return [part.strip() for part in parts if part.strip() != control]


def _singles(levels: Sequence[str], control: str, separator: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part for level in levels for part in parts_of(level, control, separator)))


def _table(features: Mapping[str, Sequence[float]]) -> Float[Tensor, "singles features"]:
    rows = torch.tensor([[float(value) for value in row] for row in features.values()])
    if rows.ndim != 2 or not rows.isfinite().all():
        raise ValueError("expected a row of finite numbers for each perturbation in features; fill in what is missing")
    return rows


def _without_bias(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after, bias=False), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def _position(name: str, known: Sequence[str], kind: str) -> int:
    check_names({name: None}, known, kind)
    return known.index(name)
