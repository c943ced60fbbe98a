"""Heads: what is observed of a cell beside its counts, given its latents."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Self

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from genailab_pyro.nn import MLP, Declared
from genailab_pyro.types import Latent, Minibatch

Observed = tuple[Tensor, Tensor]


class Head(Declared):
    """Base of the heads: ``head(z, minibatch, upper)`` is a distribution of one observation per cell.

    A head is trained with the VAE: the expectation of ``weight * log p(y | z, upper)`` over the guide is added to the
    bound, for the cells whose observation is known. What is reported of a fit, its bounds and its terms, is of the
    counts alone.

    Attributes:
        site: Name of the observed site, set in the class or by its constructor.
        weight: What its log-probability is multiplied by in training.

    Raises:
        TypeError: If a head is declared without ``forward`` or ``observed``, or a VAE with one without a ``site``.
    """

    weight: float = 1.0

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuse a head that is not whole before anything is trained."""
        missing = [name for name in ("forward", "observed") if getattr(cls, name) is getattr(Head, name)]
        if missing:
            raise TypeError(
                f"expected the head {cls.__name__} to have forward(z, minibatch, upper) and observed(minibatch), got "
                f"none of its own for {' and '.join(missing)}; define it in the class"
            )
        return super().__new__(cls, *args, **kwargs)

    @cached_property
    def site(self) -> str:
        """Name of the observed site."""
        name = type(self).__name__
        raise TypeError(
            f'expected the head {name} to name its observed site, got no name; write site = "..." in the class, or set '
            "self.site in its constructor"
        )

    def forward(self, z: Latent, minibatch: Minibatch, upper: Tensor | None = None) -> Any:
        """Pyro distribution of batch shape ``[*particles, cells]``."""
        raise NotImplementedError

    def observed(self, minibatch: Minibatch) -> Observed | None:
        """The observation of each cell and where it is known, both ``[cells]``; None where there is none."""
        raise NotImplementedError

    def check_condition(self, condition: Callable[[Minibatch], Tensor], minibatch: Minibatch) -> None:
        """Refuse a condition that holds what the head is to learn from the latent; by default none is refused."""


def known_labels(minibatch: Minibatch) -> Observed | None:
    """The labels of a minibatch, zero where they are missing, and where they are not."""
    if minibatch.labels is None:
        return None
    return minibatch.labels.clamp(min=0), minibatch.labels >= 0


class AnnotationHead(Head):
    """What an annotator says of the label that is latent above z, at the site ``"annotation"``.

    With K labels and an error of eps, ``p(y | label) = 1 - eps`` for ``y = label``, and ``eps / (K - 1)`` for each of
    the others: a categorical distribution of probabilities ``label @ confusion``, which is one for relaxed labels, too.

    Args:
        num_labels: Number of labels.
        error: Probability eps that an annotation is wrong, above 0 and below 1.
        weight: What its log-probability is multiplied by in training.

    Raises:
        ValueError: If the error or the weight is out of range.

    Example:
        >>> head = AnnotationHead(3, error=0.1)
        >>> head(torch.zeros(1, 2), None, torch.eye(3)[:1]).probs
        tensor([[0.9000, 0.0500, 0.0500]])
    """

    site = "annotation"
    confusion: Tensor

    def __init__(self, num_labels: int, error: float = 0.01, weight: float = 1.0) -> None:
        super().__init__()
        if not 0 < error < 1:
            raise ValueError(f"expected the probability of a wrong annotation above 0 and below 1, got error={error!r}")
        if not weight > 0:
            raise ValueError(f"expected a weight above zero, got {weight!r}; leave the labels out of register(...)")
        self.weight = weight
        confusion = torch.full((num_labels, num_labels), error / (num_labels - 1)).fill_diagonal_(1 - error)
        self.register_buffer("confusion", confusion, persistent=False)

    def forward(self, z: Latent, minibatch: Minibatch, upper: Tensor | None = None) -> Any:
        """Categorical over the labels.

        Raises:
            ValueError: If there is no label above z.
        """
        if upper is None:
            raise ValueError("expected a label above z, which is annotated, got none; declare upper=UpperLabel(...)")
        return dist.Categorical(probs=upper @ self.confusion)

    def observed(self, minibatch: Minibatch) -> Observed | None:
        """The labels, where they are known."""
        return known_labels(minibatch)


class LabelHead(Head):
    """A classifier of the label, ``p(y | z)``, at the site ``"y"``.

    It is trained with the VAE on the cells whose label is known; the others are passed over.

    Args:
        latent_dim: Number of latents.
        num_labels: Number of labels.
        hidden_dims: Widths of hidden layers; none for a linear classifier.
        weight: What its log-probability is multiplied by in training.

    Raises:
        ValueError: If there are fewer than two labels.

    Example:
        >>> LabelHead(10, 3)(torch.zeros(5, 10), None).batch_shape
        torch.Size([5])
    """

    site = "y"

    def __init__(self, latent_dim: int, num_labels: int, hidden_dims: Sequence[int] = (), weight: float = 1.0) -> None:
        super().__init__()
        if num_labels < 2:
            raise ValueError(f"expected at least two labels, got {num_labels}")
        self.weight = weight
        self.trunk = MLP(latent_dim, hidden_dims)
        self.logits = nn.Linear(self.trunk.output_dim, num_labels)

    def forward(self, z: Latent, minibatch: Minibatch, upper: Tensor | None = None) -> Any:
        """Categorical over the labels."""
        return dist.Categorical(logits=self.logits(self.trunk(z)))

    def observed(self, minibatch: Minibatch) -> Observed | None:
        """The labels, where they are known."""
        return known_labels(minibatch)


class ValueHead(Head):
    """A regression of a continuous covariate on the latent, normal with a learned scale, at the site ``"value"``.

    The covariate is one that was registered as continuous; the VAE must not be conditioned on it, as `VAE_NB` is not.
    Cells that are bound later need its column, too. Where it is not known, any number does, such as the mean: latents,
    expression and scores of the counts do not look at it.

    Args:
        latent_dim: Number of latents.
        covariate: Position among the registered continuous covariates.
        hidden_dims: Widths of hidden layers; none for a linear regression.
        weight: What its log-probability is multiplied by in training.

    Example:
        >>> ValueHead(10)(torch.zeros(5, 10), None).batch_shape
        torch.Size([5])
    """

    site = "value"

    def __init__(
        self, latent_dim: int, covariate: int = 0, hidden_dims: Sequence[int] = (), weight: float = 1.0
    ) -> None:
        super().__init__()
        self.covariate = covariate
        self.weight = weight
        self.trunk = MLP(latent_dim, hidden_dims)
        self.loc = nn.Linear(self.trunk.output_dim, 1)
        self.spread = nn.Parameter(torch.zeros(()))

    def forward(self, z: Latent, minibatch: Minibatch, upper: Tensor | None = None) -> Any:
        """Normal over the standardised covariate; the scale is above 1e-3."""
        return dist.Normal(self.loc(self.trunk(z)).squeeze(-1), softplus(self.spread) + 1e-3)

    def observed(self, minibatch: Minibatch) -> Observed:
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

    def check_condition(self, condition: Callable[[Minibatch], Tensor], minibatch: Minibatch) -> None:
        """Refuse a condition that changes with the covariate.

        Args:
            condition: Encoding of the conditions.
            minibatch: Some cells.

        Raises:
            ValueError: If the VAE is told the covariate.
        """
        values, _ = self.observed(minibatch)
        other = minibatch.continuous.clone()
        other[:, self.covariate] = values + 1
        if not torch.equal(condition(minibatch), condition(minibatch._replace(continuous=other))):
            raise ValueError(
                f"expected a VAE that is not told the covariate {self.covariate} that its {type(self).__name__} "
                "predicts, got one conditioned on it; declare a VAE without conditions, such as VAE_NB, or a condition "
                "without continuous covariates"
            )
