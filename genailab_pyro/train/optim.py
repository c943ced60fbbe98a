"""One torch optimizer over all parameters of a model/guide pair, behind Pyro's optimizer interface."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn

from genailab_pyro.nn import choose

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}


class NonFiniteGradientError(ArithmeticError):
    """A gradient that is NaN or infinite; the step was not taken."""


class ModuleOptim(PyroOptim):
    """Steps all parameters of a module by a single fused torch optimizer, with a clip on the global norm.

    Pyro's own optimizers keep one torch optimizer per parameter; this one steps and clips them together.

    Args:
        module: Whose parameters are trained. Those that do not require a gradient are left alone.
        optimizer: ``"adamw"`` or ``"adam"``.
        learning_rate: Highest learning rate.
        weight_decay: Of parameters with two or more dimensions, inverse dispersions excepted.
        clip: Largest norm of the whole gradient; None for no clipping.
        beside: A module that is stepped beside it, whose gradient is of another loss: neither decayed nor clipped.

    Attributes:
        gradient_norm: Norm of the last gradient of the module, before clipping.

    Raises:
        NonFiniteGradientError: On a step whose gradient is not finite.
        ValueError: If the optimizer is unknown; on a step with a parameter that is not the module's.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        optimizer: str = "adamw",
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        clip: float | None = None,
        beside: nn.Module | None = None,
    ) -> None:
        kind = choose(OPTIMIZERS, optimizer, "optimizer")
        super().__init__(kind, {"lr": learning_rate})
        named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
        decayed = [parameter for name, parameter in named if _is_decayed(name, parameter)]
        kept = [parameter for name, parameter in named if not _is_decayed(name, parameter)]
        self.parameters = [*decayed, *kept]
        others = [] if beside is None else [*beside.parameters()]
        self._known = {id(parameter) for parameter in (*self.parameters, *others)}
        self.learning_rate = learning_rate
        self.clip = clip
        self.gradient_norm = 0.0
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": [*kept, *others], "weight_decay": 0.0}]
        self.optimizer = kind([group for group in groups if group["params"]], lr=learning_rate, fused=True)

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        """Clip and step; parameters that Pyro did not see in this step have no gradient and stay."""
        strangers = [parameter for parameter in params if id(parameter) not in self._known]
        if strangers:
            raise ValueError(
                f"expected parameters of the module only, got {len(strangers)} more (shapes "
                f"{[tuple(parameter.shape) for parameter in strangers[:3]]}); keep them in an nn.Module of the VAE"
            )
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        self.gradient_norm = norm.item()
        if not math.isfinite(self.gradient_norm):
            raise NonFiniteGradientError(f"the gradient's norm is {self.gradient_norm}")
        if self.clip is not None and self.gradient_norm > self.clip:
            nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)
        self.optimizer.step()
        # Pyro would leave zeros, by which a parameter that the next step does not see would still decay and drift.
        self.optimizer.zero_grad()

    def set_learning_rate(self, factor: float) -> None:
        """Set the learning rate to a factor of the highest one."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * factor

    def get_state(self) -> dict[str, Tensor]:
        """The optimizer's tensors, by parameter and name."""
        state = self.optimizer.state_dict()["state"]
        return {f"{index}.{name}": value for index, slots in state.items() for name, value in slots.items()}

    def set_state(self, state_dict: dict[str, Tensor]) -> None:
        """Take back what `get_state` gave."""
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in state_dict.items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = value
        current = self.optimizer.state_dict()
        self.optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"]})


def _is_decayed(name: str, parameter: Tensor) -> bool:
    # Weights of layers; what else has rows and columns, such as the locations of a mixture, has a place of its own.
    return parameter.ndim >= 2 and name.endswith("weight") and "inverse_dispersion" not in name
