"""Likelihoods: the distribution of a cell's counts given the decoder's features."""

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import log_softmax, softplus
from torch.special import ndtr

from genailab_pyro.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from genailab_pyro.nn import Declared, bounded
from genailab_pyro.types import Minibatch, PerGene

Features = Float[Tensor, "*particles cells features"]


class Likelihood(Declared):
    """Base of the likelihoods: ``likelihood(features, minibatch)`` is a distribution of event shape ``[genes]``.

    Only `forward` must be written; the other methods have answers that hold for any distribution over counts.

    Attributes:
        scale: What the distribution is over. Densities of models that are over different things do not compare.
    """

    scale: str = "counts"

    def forward(self, features: Features, minibatch: Minibatch) -> Any:
        """Pyro distribution of batch shape ``[*particles, cells]`` and event shape ``[genes]``."""
        raise NotImplementedError

    def observed(self, minibatch: Minibatch) -> Tensor | None:
        """What the site ``"x"`` is compared with; None where it is to be drawn."""
        return minibatch.counts

    def expression(self, features: Features, minibatch: Minibatch) -> PerGene:
        """Mean expression at a library of one: proportions, where counts scale with the library."""
        one = torch.ones_like(minibatch.library)
        return self(features, minibatch._replace(library=one)).mean

    def to_counts(self, values: PerGene, minibatch: Minibatch) -> PerGene:
        """Counts that stand for values drawn at the site ``"x"``."""
        return values

    def slopes(self) -> Float[Tensor, "genes features"] | None:
        """Change of each gene's location with each feature; None where that is not one number."""
        return None

    def initialise(self, minibatch: Minibatch) -> None:
        """Move the parameters near the data before training, from a sample of cells."""


class RateLikelihood(Likelihood):
    """Base of the likelihoods declared by a mean count of ``library * softmax(decoder)``.

    With a size factor in place of the library, the mean is ``size_factor * exp(decoder)``: proportions need not sum
    to one.

    Args:
        features: Width of the decoder's features.
        genes: Number of genes.
        size_factor: Whether the library of a minibatch is a size factor.
    """

    def __init__(self, features: int, genes: int, *, size_factor: bool = False) -> None:
        super().__init__()
        self.size_factor = size_factor
        self.log_expression = nn.Linear(features, genes)

    def log_mean(self, features: Features, minibatch: Minibatch) -> PerGene:
        """Logarithm of the mean count, shape ``[*particles, cells, genes]``."""
        values = self.log_expression(features)
        if not self.size_factor:
            values = log_softmax(values, dim=-1)
        return values + minibatch.library.log().unsqueeze(-1)

    def expression(self, features: Features, minibatch: Minibatch) -> PerGene:
        """Mean count at a library of one, before extra zeros: proportions, unless there is a size factor."""
        return self.log_mean(features, minibatch._replace(library=torch.ones_like(minibatch.library))).exp()

    def slopes(self) -> Float[Tensor, "genes features"]:
        """Change of each gene's log expression with each feature; centred over the genes where they are proportions.

        A number added to all genes leaves proportions as they are.
        """
        weight = self.log_expression.weight
        return weight if self.size_factor else weight - weight.mean(0)

    def initialise(self, minibatch: Minibatch) -> None:
        """Set the output bias to the logarithm of each gene's share of all counts."""
        if minibatch.counts is not None:
            # Half a count keeps a gene without counts in the sample finite.
            share = (minibatch.counts.sum(0) + 0.5) / minibatch.library.sum()
            with torch.no_grad():
                self.log_expression.bias.copy_(share.log())


class InverseDispersion(Declared):
    """Base of the forms of theta: returns its logarithm, broadcastable to ``[*particles, cells, genes]``.

    The variance of a count of mean mu is mu + mu^2 / theta.
    """

    def forward(self, features: Features, minibatch: Minibatch) -> Tensor:
        """Logarithm of the inverse dispersion."""
        raise NotImplementedError


class GeneInverseDispersion(InverseDispersion):
    """One inverse dispersion per gene."""

    def __init__(self, features: int, genes: int, levels: int = 0) -> None:
        super().__init__()
        self.log_value = nn.Parameter(torch.zeros(genes))

    def forward(self, features: Features, minibatch: Minibatch) -> Tensor:
        """Shape ``[genes]``."""
        return self.log_value


class ConditionInverseDispersion(InverseDispersion):
    """One inverse dispersion per gene and level of the first condition."""

    def __init__(self, features: int, genes: int, levels: int = 0) -> None:
        super().__init__()
        if levels < 1:
            raise ValueError(
                "expected a categorical condition for an inverse dispersion per gene and condition, got none; "
                "register the cells with conditions=[...] or use inverse_dispersion='gene'"
            )
        self.log_value = nn.Parameter(torch.zeros(levels, genes))

    def forward(self, features: Features, minibatch: Minibatch) -> Tensor:
        """Shape ``[cells, genes]``."""
        return self.log_value[minibatch.conditions[:, 0]]


class CellInverseDispersion(InverseDispersion):
    """One inverse dispersion per gene and cell, read from the decoder's features."""

    def __init__(self, features: int, genes: int, levels: int = 0) -> None:
        super().__init__()
        self.log_value = nn.Linear(features, genes)
        nn.init.zeros_(self.log_value.weight)
        nn.init.zeros_(self.log_value.bias)

    def forward(self, features: Features, minibatch: Minibatch) -> Tensor:
        """Shape ``[*particles, cells, genes]``."""
        return self.log_value(features)


INVERSE_DISPERSIONS: dict[str, type[InverseDispersion]] = {
    "gene": GeneInverseDispersion,
    "gene-condition": ConditionInverseDispersion,
    "gene-cell": CellInverseDispersion,
}


class NegativeBinomialLikelihood(RateLikelihood):
    """Negative binomial counts of mean ``library * softmax(decoder)``.

    With a size factor in place of the library, the mean is ``size_factor * exp(decoder)``: proportions need not sum
    to one.

    Args:
        features: Width of the decoder's features.
        genes: Number of genes.
        inverse_dispersion: Form of theta; None for one per gene.
        size_factor: Whether the library of a minibatch is a size factor.

    References:
        Lopez, Regier, Cole, Jordan, Yosef (2018). Deep generative modeling for single-cell transcriptomics.
        doi:10.1038/s41592-018-0229-2
    """

    def __init__(
        self,
        features: int,
        genes: int,
        *,
        inverse_dispersion: InverseDispersion | None = None,
        size_factor: bool = False,
    ) -> None:
        super().__init__(features, genes, size_factor=size_factor)
        self.log_inverse_dispersion = (
            GeneInverseDispersion(features, genes) if inverse_dispersion is None else inverse_dispersion
        )

    def forward(self, features: Features, minibatch: Minibatch) -> Any:
        """Negative binomial of event shape ``[genes]``."""
        log_mean = self.log_mean(features, minibatch)
        return NegativeBinomial(log_mean, self.log_inverse_dispersion(features, minibatch)).to_event(1)


class ZeroInflatedNegativeBinomialLikelihood(NegativeBinomialLikelihood):
    """Negative binomial counts with extra zeros, whose gate is read from the features.

    The gate is in logits, bounded to +-10, and begins at about 5 % of extra zeros. Expression is that of the counts
    before extra zeros, as the gate stands for molecules that were missed.

    Args:
        features: Width of the decoder's features.
        genes: Number of genes.
        inverse_dispersion: Form of theta; None for one per gene.
        size_factor: Whether the library of a minibatch is a size factor.

    References:
        Lopez, Regier, Cole, Jordan, Yosef (2018). doi:10.1038/s41592-018-0229-2
    """

    bound: ClassVar[float] = 10.0

    def __init__(
        self,
        features: int,
        genes: int,
        *,
        inverse_dispersion: InverseDispersion | None = None,
        size_factor: bool = False,
    ) -> None:
        super().__init__(features, genes, inverse_dispersion=inverse_dispersion, size_factor=size_factor)
        self.gate = nn.Linear(features, genes)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, math.log(0.05 / 0.95))

    def gate_logits(self, features: Features) -> PerGene:
        """Logits of the probability of an extra zero, shape ``[*particles, cells, genes]``."""
        return bounded(self.gate(features), self.bound)

    def forward(self, features: Features, minibatch: Minibatch) -> Any:
        """Zero-inflated negative binomial of event shape ``[genes]``."""
        return ZeroInflatedNegativeBinomial(
            self.log_mean(features, minibatch),
            self.log_inverse_dispersion(features, minibatch),
            gate_logits=self.gate_logits(features),
        ).to_event(1)


class GaussianLikelihood(Likelihood):
    """Normal log-normalised values ``y = log1p(target * counts / library)``, with a learned scale per gene.

    Args:
        features: Width of the decoder's features.
        genes: Number of genes.
        target: Library to which the counts are scaled before the logarithm, in counts.
        size_factor: Whether the library of a minibatch is a size factor; counts are then divided by it alone.
    """

    def __init__(self, features: int, genes: int, *, target: float = 1e4, size_factor: bool = False) -> None:
        super().__init__()
        self.target = 1.0 if size_factor else target
        self.scale = "log1p(counts / size factor)" if size_factor else f"log1p({target:g} * counts / library)"
        self.loc = nn.Linear(features, genes)
        self.spread = nn.Parameter(torch.zeros(genes))

    def forward(self, features: Features, minibatch: Minibatch) -> Any:
        """Normal of event shape ``[genes]``."""
        return dist.Normal(self.loc(features), self.scale_of_genes()).to_event(1)

    def observed(self, minibatch: Minibatch) -> Tensor | None:
        """Log-normalised values, shape ``[cells, genes]``."""
        if minibatch.counts is None:
            return None
        return torch.log1p(self.target * minibatch.counts / minibatch.library.unsqueeze(-1))

    def expression(self, features: Features, minibatch: Minibatch) -> PerGene:
        """Mean expression at a library of one: that of ``expm1(max(y, 0)) / target`` for a normal y, in closed form."""
        loc, scale = self.loc(features), self.scale_of_genes()
        mean = (loc + scale**2 / 2).exp() * ndtr(loc / scale + scale) - ndtr(loc / scale)
        return mean.clamp(min=0) / self.target

    def slopes(self) -> Float[Tensor, "genes features"]:
        """Change of each gene's mean value with each feature."""
        return self.loc.weight

    def scale_of_genes(self) -> Tensor:
        """Standard deviation of each gene's value, shape ``[genes]``; above .01, so that silent genes are finite."""
        return softplus(self.spread) + 0.01

    def to_counts(self, values: PerGene, minibatch: Minibatch) -> PerGene:
        """The nearest counts whose log-normalised values these are; negative values become zero."""
        return torch.expm1(values.clamp(min=0)).mul(minibatch.library.unsqueeze(-1) / self.target).round()

    def initialise(self, minibatch: Minibatch) -> None:
        """Set location and scale to each gene's mean and standard deviation."""
        values = self.observed(minibatch)
        if values is not None and len(values) > 1:
            with torch.no_grad():
                self.loc.bias.copy_(values.mean(0))
                self.spread.copy_(values.std(0).clamp(min=0.05).expm1().log())
