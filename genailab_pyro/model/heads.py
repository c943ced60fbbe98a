"""Heads: what is observed of a cell beside its counts, given its latents."""

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from genailab_pyro.nn import MLP, Declared
from genailab_pyro.types import Latent, Minibatch

Observed = tuple[Tensor, Tensor]


class Head(Declared):
    """Base of the heads: ``head(z, minibatch, upper)`` is a distribution of one observation per cell.

    Attributes:
        site: Name of the observed site.
    """

    site: ClassVar[str]

    def forward(self, z: Latent, minibatch: Minibatch, upper: Latent | None = None) -> Any:
        """Pyro distribution of batch shape ``[*particles, cells]``."""
        raise NotImplementedError

    def observed(self, minibatch: Minibatch) -> Observed | None:
        """The observation of each cell and where it is known, both ``[cells]``; None where there is none."""
        raise NotImplementedError


def known_labels(minibatch: Minibatch) -> Observed | None:
    """The labels of a minibatch, zero where they are missing, and where they are not."""
    if minibatch.labels is None:
        return None
    return minibatch.labels.clamp(min=0), minibatch.labels >= 0


class LabelHead(Head):
    """A classifier of the label, ``p(y | z)``, at the site ``"y"``.

    It is trained with the VAE on the cells whose label is known; the others are passed over.

    Args:
        latent_dim: Number of latents.
        num_labels: Number of labels.
        hidden_dims: Widths of hidden layers; none for a linear classifier.

    Raises:
        ValueError: If there are fewer than two labels.

    Example:
        >>> LabelHead(10, 3)(torch.zeros(5, 10), None).batch_shape
        torch.Size([5])

    References:
        Kingma, Rezende, Mohamed, Welling (2014). Semi-supervised learning with deep generative models.
        doi:10.48550/arXiv.1406.5298
    """

    site = "y"
    temperature: Tensor

    def __init__(self, latent_dim: int, num_labels: int, hidden_dims: tuple[int, ...] = ()) -> None:
        super().__init__()
        if num_labels < 2:
            raise ValueError(f"expected at least two labels, got {num_labels}")
        self.trunk = MLP(latent_dim, hidden_dims)
        self.logits = nn.Linear(hidden_dims[-1] if hidden_dims else latent_dim, num_labels)
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, z: Latent, minibatch: Minibatch, upper: Latent | None = None) -> Any:
        """Categorical over the labels."""
        return dist.Categorical(logits=self.logits(self.trunk(z)) / self.temperature)

    def observed(self, minibatch: Minibatch) -> Observed | None:
        """The labels, where they are known."""
        return known_labels(minibatch)


class ValueHead(Head):
    """A regression of a continuous covariate on the latent, ``p(y | z)`` normal, at the site ``"y"``.

    The covariate is one that was registered as continuous; the VAE must not be conditioned on it.

    Args:
        latent_dim: Number of latents.
        covariate: Position among the registered continuous covariates.
        hidden_dims: Widths of hidden layers; none for a linear regression.
    """

    site = "y"

    def __init__(self, latent_dim: int, covariate: int = 0, hidden_dims: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.covariate = covariate
        self.trunk = MLP(latent_dim, hidden_dims)
        self.loc = nn.Linear(hidden_dims[-1] if hidden_dims else latent_dim, 1)
        self.spread = nn.Parameter(torch.zeros(()))

    def forward(self, z: Latent, minibatch: Minibatch, upper: Latent | None = None) -> Any:
        """Normal over the standardised covariate."""
        return dist.Normal(self.loc(self.trunk(z)).squeeze(-1), softplus(self.spread) + 1e-3)

    def observed(self, minibatch: Minibatch) -> Observed | None:
        """The covariate of every cell.

        Raises:
            ValueError: If the cells have no such covariate.
        """
        count = minibatch.continuous.shape[-1]
        if self.covariate >= count:
            raise ValueError(
                f"expected cells with at least {self.covariate + 1} continuous covariate(s) for the head, got {count}; "
                "register them: register(adata, continuous=[...])"
            )
        values = minibatch.continuous[:, self.covariate]
        return values, torch.ones_like(values, dtype=torch.bool)
