"""The settings of a training run, frozen, readable and writable as plain JSON types."""

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from genailab_pyro.nn import choose
from genailab_pyro.train.optim import OPTIMIZERS
from genailab_pyro.train.schedules import LEARNING_RATES, Warmup


@dataclass(frozen=True)
class Training:
    """How a model is trained; every field has a value that works from a few hundred to a million cells.

    Args:
        max_epochs: Passes over the training cells; None takes as many as make about 2,000 steps, between 20 and 200
            (down to 5 for more than 200,000 cells).
        minibatch_size: Cells per step; sizes are evened out, so that no minibatch is a small remainder.
        optimizer: ``"adamw"`` or ``"adam"``, with fused steps.
        learning_rate: Highest learning rate of the schedule.
        learning_rate_schedule: ``"one-cycle"``, ``"cosine"``, ``"constant"``, or ``"plateau"``, which divides it by
            two when the validation ELBO has not risen for `plateau_patience` epochs.
        plateau_patience: In epochs.
        weight_decay: Of weight matrices; biases, norms and inverse dispersions are not decayed.
        gradient_clip: Largest norm of the gradient of the loss per cell; None for no clipping.
        warmup: Weight of the KL over the run.
        free_bits: Nats per latent below which its mean KL is not rewarded, normal latents above z included; 0 for none.
        validation_fraction: Share of the cells that early stopping and plateau look at; 0 for none.
        patience: Epochs without a better validation ELBO (its KL weighed by the final beta) after which training stops;
            None to go on to the end. The weights of the best epoch are restored in both cases.

    Raises:
        ValueError: If a value is out of range.
    """

    max_epochs: int | None = None
    minibatch_size: int = 128
    optimizer: str = "adamw"
    learning_rate: float = 4e-3
    learning_rate_schedule: str = "one-cycle"
    plateau_patience: int = 10
    weight_decay: float = 0.1
    gradient_clip: float | None = 1000.0
    warmup: Warmup = field(default_factory=Warmup)
    free_bits: float = 0.0
    validation_fraction: float = 0.1
    patience: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.warmup, Warmup):
            raise ValueError(f"expected warmup=glp.Warmup(...), such as Warmup(length=0.5), got {self.warmup!r}")
        choose(OPTIMIZERS, self.optimizer, "optimizer")
        choose(LEARNING_RATES, self.learning_rate_schedule, "learning_rate_schedule")
        self._check_numbers()
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"expected validation_fraction in [0, 1), got {self.validation_fraction!r}")
        if self.validation_fraction == 0 and self.patience is not None:
            raise ValueError("expected validation cells for early stopping; set validation_fraction or patience=None")
        if self.validation_fraction == 0 and self.learning_rate_schedule == "plateau":
            raise ValueError("expected validation cells for the schedule 'plateau'; set validation_fraction")

    def _check_numbers(self) -> None:
        whole = {
            "max_epochs": self.max_epochs,
            "minibatch_size": self.minibatch_size,
            "plateau_patience": self.plateau_patience,
            "patience": self.patience,
        }
        for name, value in whole.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"expected {name} to be a whole number of at least one, got {value!r}")
        for name in ("learning_rate", "gradient_clip"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"expected {name} to be finite and above 0, got {value!r}")
        for name in ("weight_decay", "free_bits"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"expected {name} to be finite and at least 0, got {value!r}")

    def steps_per_epoch(self, num_cells: int) -> int:
        """Number of minibatches in a pass over the training cells."""
        return math.ceil(num_cells / self.minibatch_size)

    def epochs(self, num_cells: int) -> int:
        """Number of passes over the training cells."""
        if self.max_epochs is not None:
            return self.max_epochs
        fewest = min(max(4_000_000 // num_cells, 5), 20)
        return min(max(round(2000 / self.steps_per_epoch(num_cells)), fewest), 200)

    def to_json(self) -> dict[str, Any]:
        """The settings as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, settings: dict[str, Any]) -> "Training":
        """Settings from plain JSON types; fields that are left out keep their defaults.

        Raises:
            ValueError: If a field is unknown or a value out of range.
        """
        known = {item.name for item in fields(cls)}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise ValueError(f"expected training settings among {sorted(known)}, got {unknown}")
        values = dict(settings)
        if isinstance(values.get("warmup"), dict):
            values["warmup"] = Warmup(**values["warmup"])
        return cls(**values)
