"""Likelihoods of counts beside the negative binomial: Poisson, log-normal Poisson, detection, and mixtures."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import log_softmax

from genailab_pyro.distributions import LogNormalPoisson, NegativeBinomial
from genailab_pyro.model.likelihoods import Features, Likelihood, RateLikelihood
from genailab_pyro.types import Minibatch, PerGene


class PoissonLikelihood(RateLikelihood):
    """Poisson counts of mean ``library * softmax(decoder)``: no variation beyond that of the mean.

    With a size factor in place of the library, the mean is ``size_factor * exp(decoder)``.

    Args:
        features: Width of the decoder's features.
        genes: Number of genes.
        size_factor: Whether the library of a minibatch is a size factor.

    References:
        Townes, Hicks, Aryee, Irizarry (2019). Feature selection and dimension reduction for single-cell RNA-Seq based
        on a multinomial model. doi:10.1186/s13059-019-1861-6

    Example:
        >>> from genailab_pyro.data import Cells
        >>> minibatch = Cells.from_tensors(torch.full((2, 3), 4.0)).take([0, 1])
        >>> counts = PoissonLikelihood(8, 3)(torch.zeros(2, 8), minibatch)
        >>> counts.batch_shape, counts.event_shape
        (torch.Size([2]), torch.Size([3]))
    """

    def forward(self, features: Features, minibatch: Minibatch) -> Any:
        """Poisson of event shape ``[genes]``."""
        log_mean = self.log_mean(features, minibatch)
        # The limit of the negative binomial, which scores mostly zero counts by the others alone.
        return NegativeBinomial(log_mean, log_mean.new_full((1,), math.inf)).to_event(1)


class LogNormalPoissonLikelihood(RateLikelihood):
    """Poisson counts whose rate is log-normal, of mean ``library * softmax(decoder)``, with a learned scale per gene.

    The log rate has the standard deviation ``scale`` of its gene and the mean ``log(mean count) - scale^2 / 2``. With a
    size factor in place of the library, the mean count is ``size_factor * exp(decoder)``.

    The tail is heavier than that of the negative binomial, and knows nothing of the total of a cell: where a few genes
    make up most of the total that is taken as library, and so cannot exceed it, the negative binomial fits better even
    if the rates are log-normal. The density costs several times as much.

    Args:
        features: Width of the decoder's features.
        genes: Number of genes.
        size_factor: Whether the library of a minibatch is a size factor.

    References:
        Chiquet, Mariadassou, Robin (2021). The Poisson-lognormal model as a versatile framework for the joint analysis
        of species abundances. doi:10.3389/fevo.2021.588292
    """

    least: ClassVar[float] = 0.01
    bound: ClassVar[float] = 2.0

    def __init__(self, features: int, genes: int, *, size_factor: bool = False) -> None:
        super().__init__(features, genes, size_factor=size_factor)
        self.spread = nn.Parameter(torch.zeros(genes))

    def scale_of_genes(self) -> Tensor:
        """Standard deviation of each gene's log rate, shape ``[genes]``; from .01 to 2, where the density is accurate.

        At 2 the rate has 7.3 times its mean as standard deviation.
        """
        return self.least + (self.bound - self.least) * self.spread.sigmoid()

    def forward(self, features: Features, minibatch: Minibatch) -> Any:
        """Log-normal Poisson of event shape ``[genes]``."""
        return LogNormalPoisson(self.log_mean(features, minibatch), self.scale_of_genes()).to_event(1)


class BernoulliLikelihood(RateLikelihood):
    """Whether each gene was detected, ``x > 0``, with the probability ``1 - exp(-library * softmax(decoder))``.

    It is that of Poisson counts of which no more than the presence is observed (the link is the complementary log-log,
    with the log library as offset), so that a gene is detected more often in a richer cell. `expression` is that of
    these Poisson counts: proportions of the molecules, not probabilities. A draw stands for the least counts that are
    detected so: one for a gene that was detected, none for another. Counts that vary more than Poisson counts are
    detected less often, for which the proportions make up in part only.

    Args:
        features: Width of the decoder's features.
        genes: Number of genes.
        size_factor: Whether the library of a minibatch is a size factor; the rate is then
            ``size_factor * exp(decoder)``.

    References:
        Qiu (2020). Embracing the dropouts in single-cell RNA-seq analysis. doi:10.1038/s41467-020-14976-9
    """

    scale = "detected"

    def forward(self, features: Features, minibatch: Minibatch) -> Any:
        """Bernoulli of event shape ``[genes]``."""
        log_rate = self.log_mean(features, minibatch)
        rate = log_rate.exp()
        # log(exp(rate) - 1); below 1e-9 the rate itself may round to zero, but its logarithm is known.
        logits = torch.where(log_rate < -20, log_rate, rate + torch.log(-torch.expm1(-rate.clamp(min=1e-9))))
        return dist.Bernoulli(logits=logits).to_event(1)

    def observed(self, minibatch: Minibatch) -> Tensor | None:
        """One where a gene has counts and zero elsewhere, shape ``[cells, genes]``."""
        return None if minibatch.counts is None else (minibatch.counts > 0).to(minibatch.counts.dtype)


class Mixture(TorchDistribution):
    """A mixture of distributions over the same values, which need not be of one family.

        p(x) = sum_k softmax(logits)_k p_k(x)

    Args:
        components: Distributions of single values, of batch shapes that broadcast.
        logits: Log-weights of the components but for a constant, which are the last dimension.
        validate_args: Whether to check arguments and values; None follows Pyro's global setting.

    Raises:
        ValueError: If the number of logits is not that of the components, or the shapes do not broadcast.

    Example:
        >>> coin = Mixture([dist.Delta(torch.tensor(0.0)), dist.Poisson(torch.tensor(4.0))], torch.zeros(2))
        >>> coin.mean, coin.variance
        (tensor(2.), tensor(6.))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"logits": constraints.real_vector}

    def __init__(
        self,
        components: Sequence[Any],
        logits: Float[Tensor, "*#batch components"],
        *,
        validate_args: bool | None = None,
    ) -> None:
        if logits.shape[-1:] != (len(components),):
            raise ValueError(f"expected a logit for each of {len(components)} components, got {list(logits.shape)}")
        shape = torch.broadcast_shapes(logits.shape[:-1], *(component.batch_shape for component in components))
        self.components = [component.expand(shape) for component in components]
        self.logits = logits.expand(*shape, -1)
        super().__init__(shape, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size | tuple[int, ...], _instance: "Mixture | None" = None) -> "Mixture":
        """The same distribution with a larger batch shape; nothing is copied."""
        new = self._get_checked_instance(Mixture, _instance)
        components = [component.expand(torch.Size(batch_shape)) for component in self.components]
        Mixture.__init__(new, components, self.logits.expand(*batch_shape, -1), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def support(self) -> constraints.Constraint:
        """That of the components."""
        return self.components[0].support

    @property
    def weights(self) -> Float[Tensor, "*batch components"]:
        """Probabilities of the components."""
        return self.logits.softmax(-1)

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        """The weighted mean of the components' means."""
        return self._weighted([component.mean for component in self.components])

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        """The weighted mean of the components' variances, and the variance of their means."""
        mean = self.mean
        return self._weighted([component.variance + (component.mean - mean) ** 2 for component in self.components])

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of values in nats, of the broadcast of the batch shape and the value's shape."""
        if self._validate_args:
            self._validate_sample(value)
        log_probs = torch.stack([component.log_prob(value) for component in self.components], dim=-1)
        return (log_softmax(self.logits, dim=-1) + log_probs).logsumexp(-1)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Values of components that are drawn first."""
        with torch.no_grad():
            chosen = dist.Categorical(logits=self.logits).sample(torch.Size(sample_shape))
            draws = torch.stack([component.sample(torch.Size(sample_shape)) for component in self.components], dim=-1)
            return draws.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)

    def _weighted(self, values: Sequence[Tensor]) -> Tensor:
        return (self.weights * torch.stack([*values], dim=-1)).sum(-1)


class MixtureLikelihood(Likelihood):
    """A mixture of likelihoods over the same values, with learned weights for each gene.

        p(x_g | features) = sum_k softmax(logits_g)_k p_k(x_g | features)

    independently over genes: each gene of each cell is of a component of its own. What all genes of a cell share is
    for the latent to say. Each component has a mean of its own, so that those of all genes need not sum to the library.

    Args:
        likelihoods: Two or more; they begin at different random weights, which is what tells equal ones apart.
        genes: Number of genes.

    Raises:
        ValueError: If there are fewer than two likelihoods, or they are over different values.
        TypeError: When called, if one does not give distributions that are independent over genes.

    References:
        McLachlan, Peel (2000). Finite mixture models. doi:10.1002/0471721182

    Example:
        >>> likelihood = MixtureLikelihood([PoissonLikelihood(8, 3), LogNormalPoissonLikelihood(8, 3)], genes=3)
        >>> likelihood.logits.shape
        torch.Size([3, 2])
    """

    likelihoods: Sequence[Likelihood]

    def __init__(self, likelihoods: Sequence[Likelihood], genes: int) -> None:
        super().__init__()
        if len(likelihoods) < 2:
            raise ValueError(f"expected at least two likelihoods to mix, got {len(likelihoods)}; use it by itself")
        scales = [likelihood.scale for likelihood in likelihoods]
        if len(set(scales)) > 1:
            raise ValueError(
                f"expected likelihoods over the same values, got {scales}; densities of different values do not mix: "
                "leave one kind out"
            )
        self.scale = scales[0]
        self.likelihoods = nn.ModuleList(likelihoods)  # type: ignore[assignment]  # it is a sequence of them
        self.logits = nn.Parameter(torch.zeros(genes, len(likelihoods)))

    def forward(self, features: Features, minibatch: Minibatch) -> Any:
        """Mixture of event shape ``[genes]``."""
        components = [_of_single_genes(likelihood, features, minibatch) for likelihood in self.likelihoods]
        return Mixture(components, self.logits).to_event(1)

    def observed(self, minibatch: Minibatch) -> Tensor | None:
        """What the first of the likelihoods observes; the others observe the same."""
        return self.likelihoods[0].observed(minibatch)

    def expression(self, features: Features, minibatch: Minibatch) -> PerGene:
        """The weighted mean of the components' expression."""
        each = torch.stack([likelihood.expression(features, minibatch) for likelihood in self.likelihoods], dim=-1)
        return (self.logits.softmax(-1) * each).sum(-1)

    def to_counts(self, values: PerGene, minibatch: Minibatch) -> PerGene:
        """Counts that stand for values, as the first of the likelihoods says."""
        return self.likelihoods[0].to_counts(values, minibatch)

    def initialise(self, minibatch: Minibatch) -> None:
        """Move each component near the data."""
        for likelihood in self.likelihoods:
            likelihood.initialise(minibatch)


def _of_single_genes(likelihood: Likelihood, features: Features, minibatch: Minibatch) -> Any:
    """The distributions of single genes that a likelihood declares as one event."""
    joint = likelihood(features, minibatch)
    alone = getattr(joint, "base_dist", None)
    if getattr(joint, "reinterpreted_batch_ndims", None) != 1 or alone is None or alone.event_shape:
        raise TypeError(
            f"expected distributions that are independent over genes, .to_event(1), got {type(joint).__name__} from "
            f"{type(likelihood).__name__}, whose genes are drawn together; a mixture for each gene needs them alone"
        )
    return alone
