"""Latents above z: a site whose value the prior and the guide of z depend on."""

from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from genailab_pyro.model.encoders import NormalEncoder, log_counts
from genailab_pyro.nn import ConditionEncoding, Declared, beside
from genailab_pyro.types import Minibatch

UNSEEN = -30.0  # log-probability of a label that no cell is known to have


class Upper(Declared):
    """Base of the latents above z, in the plate of the cells.

    Attributes:
        site: Name of the site.
        output_dim: Width of its value.
    """

    site: ClassVar[str]
    output_dim: int

    def prior(self, condition: Float[Tensor, "cells condition"]) -> Any:
        """Distribution of event shape ``[output]`` before a cell is seen."""
        raise NotImplementedError

    def posterior(self, minibatch: Minibatch) -> Any:
        """Approximate posterior of event shape ``[output]``."""
        raise NotImplementedError

    def initialise(self, minibatch: Minibatch) -> None:
        """Move the parameters near the data before training, from a sample of cells."""


class UpperNormal(Upper):
    """A standard normal site ``"z2"`` with a diagonal normal posterior.

    Args:
        input_dim: Number of genes.
        upper_dim: Number of upper latents.
        hidden_dims: Widths of the hidden layers of its encoder.
        condition: Encoding of the conditions, seen beside the counts; None to see the counts alone.
        dropout: Probability with which an activation is dropped in training.
        norm: ``"layer"``, ``"batch"`` or ``"none"``.
    """

    site = "z2"
    zero: Tensor

    def __init__(
        self,
        input_dim: int,
        upper_dim: int,
        hidden_dims: Sequence[int] = (128,),
        *,
        condition: ConditionEncoding | None = None,
        dropout: float = 0.1,
        norm: str = "layer",
    ) -> None:
        super().__init__()
        self.output_dim = upper_dim
        self.encoder = NormalEncoder(input_dim, upper_dim, hidden_dims, condition=condition, dropout=dropout, norm=norm)
        self.register_buffer("zero", torch.zeros(upper_dim), persistent=False)

    def prior(self, condition: Float[Tensor, "cells condition"]) -> Any:
        """The same distribution for every cell."""
        return dist.Normal(self.zero, torch.ones_like(self.zero)).to_event(1)

    def posterior(self, minibatch: Minibatch) -> Any:
        """Normal of event shape ``[upper]``."""
        return self.encoder(minibatch)


class UpperLabel(Upper):
    """A one-hot site ``"label"`` with learned prior probabilities and a posterior that is linear in log1p(counts).

    The posterior is ``softmax(W f + b)`` of few features f: log1p(counts) projected on fixed principal components, and
    the condition. (A deep encoder learns a few dozen labelled cells by heart.) `initialise` finds the components and
    starts W and b at a logistic regression of what is known of the labels, or of clusters of k-means, so that labels
    are told apart from the first step on. For clusters, what the library explains is taken out of log1p(counts) first.

    Labels that are named as unseen have a probability of about 1e-13 in prior and posterior, whatever the data say.

    Args:
        input_dim: Number of genes.
        num_labels: Number of labels.
        annotated: Whether some cells have a label, from which it starts; else k-means finds clusters.
        unseen: Codes of labels that no cell is known to have.
        num_components: Number of principal components; at most as many as genes.
        condition: Encoding of the conditions, seen beside the counts; None to see the counts alone.

    Raises:
        ValueError: If there are fewer than two labels, all are unseen, or there is no component.

    Example:
        >>> UpperLabel(5, num_labels=3, unseen=[2]).prior(torch.zeros(4, 0)).probs.detach().round(decimals=6)
        tensor([0.5000, 0.5000, 0.0000])

    References:
        Jiang, Zheng, Tan, Tang, Zhou (2017). Variational deep embedding. doi:10.24963/ijcai.2017/273
    """

    site = "label"
    seen: Tensor
    components: Tensor
    depth: Tensor
    offset: Tensor

    def __init__(
        self,
        input_dim: int,
        num_labels: int,
        *,
        annotated: bool = False,
        unseen: Sequence[int] = (),
        num_components: int = 30,
        condition: ConditionEncoding | None = None,
    ) -> None:
        super().__init__()
        if num_labels < 2 or num_components < 1:
            raise ValueError(
                f"expected at least two labels and one component, got num_labels={num_labels} and "
                f"num_components={num_components}"
            )
        if not set(unseen) < set(range(num_labels)):
            raise ValueError(
                f"expected codes of unseen labels from 0 to {num_labels - 1}, and at least one label that is seen, got "
                f"unseen={list(unseen)}"
            )
        self.output_dim = num_labels
        self.annotated = annotated
        self.condition = condition
        self.logits = nn.Parameter(torch.zeros(num_labels))
        width = min(num_components, input_dim)
        self.register_buffer("components", torch.randn(input_dim, width) / input_dim**0.5)
        self.register_buffer("depth", torch.zeros(width))
        self.register_buffer("offset", torch.zeros(width))
        self.register_buffer("seen", torch.tensor([k not in unseen for k in range(num_labels)]), persistent=False)
        self.head = nn.Linear(width + (0 if condition is None else condition.output_dim), num_labels)

    def prior(self, condition: Float[Tensor, "cells condition"]) -> Any:
        """The same distribution for every cell."""
        return dist.OneHotCategorical(logits=self._among_seen(self.logits))

    def posterior(self, minibatch: Minibatch) -> Any:
        """One-hot of event shape ``[labels]``."""
        depth = minibatch.library.log().unsqueeze(-1) * self.depth
        features = log_counts(minibatch) @ self.components - depth - self.offset
        if self.condition is not None:
            features = beside(features, self.condition(minibatch))
        return dist.OneHotCategorical(logits=self._among_seen(self.head(features)))

    def _among_seen(self, logits: Float[Tensor, "*cells labels"]) -> Float[Tensor, "*cells labels"]:
        # Minus infinity would make the KL, and the gradient of what is relaxed, NaN.
        log_probs = logits.masked_fill(~self.seen, -torch.inf).log_softmax(-1)
        return log_probs.masked_fill(~self.seen, UNSEEN)

    def initialise(self, minibatch: Minibatch) -> None:
        """Principal components of the cells, and a logistic regression of their labels or clusters."""
        if minibatch.counts is None:
            return
        with torch.no_grad():
            log_x, log_library = minibatch.counts.log1p(), minibatch.library.log()
            centred, deep = log_x - log_x.mean(0), (log_library - log_library.mean()).unsqueeze(-1)
            slope = deep.T @ centred / (deep**2).sum().clamp(min=1e-6)
            if self.annotated:
                slope.zero_()
            self.components.copy_(_principal_axes(centred - deep @ slope, self.offset.shape[0]))
            self.depth.copy_((slope @ self.components).squeeze(0))
            self.offset.copy_(log_x.mean(0) @ self.components - log_library.mean() * self.depth)
            scores = (centred - deep @ slope) @ self.components
            codes = minibatch.labels if self.annotated else _clusters(scores, self.output_dim)
            if codes is not None:
                # Clusters are surer of themselves: they dissolve again where cells start between them.
                variance = 0.1 if self.annotated else 1.0
                weight, bias = _regression(scores[codes >= 0], codes[codes >= 0], self.output_dim, variance)
                self.head.weight.zero_()[:, : weight.shape[1]].copy_(weight)
                self.head.bias.copy_(bias)


def _principal_axes(centred: Float[Tensor, "cells genes"], number: int) -> Float[Tensor, "genes axes"]:
    """Unit vectors of largest variance, zero where the cells have no more."""
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    values, vectors = values.flip(0)[:number], vectors.flip(1)[:, :number]
    lengths = values.clamp(min=0).sqrt()
    found = lengths > 1e-3 * lengths.max()
    axes = centred.new_zeros(centred.shape[1], number)
    axes[:, : len(lengths)] = centred.T @ (vectors * found / lengths.where(found, torch.ones_like(lengths)))
    return axes


def _clusters(scores: Float[Tensor, "cells axes"], number: int) -> Int[Tensor, " cells"]:
    """Codes of k-means clusters, by a seed from torch's random state."""
    from sklearn.cluster import KMeans  # takes a second to import, which only this needs

    seed = int(torch.randint(2**31, ()))
    found = KMeans(min(number, len(scores)), n_init=10, random_state=seed).fit_predict(scores.double().cpu().numpy())
    return torch.as_tensor(found, device=scores.device).long()


def _regression(
    scores: Float[Tensor, "cells axes"], codes: Int[Tensor, " cells"], number: int, variance: float
) -> tuple[Float[Tensor, "labels axes"], Float[Tensor, " labels"]]:
    """Weights and intercepts of a logistic regression with a normal prior of some variance on each weight."""
    from sklearn.linear_model import LogisticRegression  # takes a second to import, which only this needs

    weight, bias = scores.new_zeros(number, scores.shape[1]), scores.new_zeros(number)
    found = codes.unique()
    if len(found) < 2:
        return weight, bias
    fitted = LogisticRegression(C=variance, max_iter=3000).fit(scores.double().cpu().numpy(), codes.cpu().numpy())
    slopes, intercepts = torch.as_tensor(fitted.coef_), torch.as_tensor(fitted.intercept_)
    if len(found) == 2:  # it tells the second from the first
        slopes, intercepts = torch.cat([-slopes, slopes]) / 2, torch.cat([-intercepts, intercepts]) / 2
    weight[found] = slopes.to(weight)
    bias[found] = intercepts.to(bias)
    return weight, bias
