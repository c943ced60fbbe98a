"""What a penalty plays against: a network that learns by itself beside the VAE."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from genailab_pyro.nn import MLP, Declared

Scores = Float[Tensor, "draws levels"]


class Opponent(Declared):
    """A classifier that learns by itself beside the model that it judges: a network, its Adam, and both their states.

    Args:
        input_dim: Width of what it sees.
        output_dim: Number of its logits.
        hidden_dims: Widths of its hidden layers.
        learning_rate: Of its Adam steps.
        seed: Seed of its initial weights.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self, input_dim: int, output_dim: int, hidden_dims: Sequence[int], *, learning_rate: float, seed: int
    ) -> None:
        super().__init__()
        if not (math.isfinite(learning_rate) and learning_rate > 0):
            raise ValueError(f"expected learning_rate to be finite and above 0, got {learning_rate!r}")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            trunk = MLP(input_dim, hidden_dims, dropout=0.0, norm="none", activation="gelu")
            self.network = nn.Sequential(trunk, nn.Linear(trunk.output_dim, output_dim))
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=learning_rate, betas=(0.5, 0.9))

    def forward(self, z: Float[Tensor, "draws latent"]) -> Scores:
        """Logits as it is now; their gradient reaches z alone."""
        # Copies: its own next step changes the weights in place before the gradient of z is taken.
        weights = {name: value.detach().clone() for name, value in self.network.named_parameters()}
        return functional_call(self.network, weights, (z,))

    def learn(self, z: Float[Tensor, "draws latent"], loss: Callable[[Scores], Tensor]) -> None:
        """Take one step on a loss of its logits, without a path to z."""
        self.optimizer.zero_grad()
        loss(self.network(z.detach())).backward()
        self.optimizer.step()

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for index, slots in self.optimizer.state_dict()["state"].items():
            for name, value in slots.items():
                destination[f"{prefix}optimizer.{index}.{name}"] = value

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for key in [key for key in state_dict if key.startswith(f"{prefix}optimizer.")]:
            index, name = key.split(".")[-2:]
            state.setdefault(int(index), {})[name] = state_dict.pop(key).clone()
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        super()._load_from_state_dict(state_dict, prefix, *args)
