"""How one latent site of a guide is differentiated.

The gradient of an expectation under a guide ``q(z)`` can reach the guide's parameters along the path of a
reparameterised draw, or through the score ``grad log q(z)``; a discrete site can also be summed over, relaxed, or
drawn in antithetic pairs. Pyro asks a site's distribution for its `ScoreParts` and builds the surrogate from them; a
rule answers that question, whatever the distribution would have said.

References:
    Schulman, Heess, Weber, Abbeel (2015). Gradient estimation using stochastic computation graphs.
    doi:10.48550/arXiv.1506.05254
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from pyro.distributions import Delta, TorchDistribution
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence, register_kl
from torch.nn.functional import softplus

NOTHING = torch.Size()


class EstimatorError(ValueError):
    """An estimator that cannot be used with a model and a guide; the message names one that can."""

    def __init__(self, message: str) -> None:
        # Pyro raises what a program has raised once more, with the shapes of its sites behind it.
        super().__init__(message.split("\n")[0])


@dataclass(frozen=True)
class Rule:
    """A way to differentiate one latent site.

    Attributes:
        name: Name in the table of rules.
        reparameterised: Whether draws carry a path to the guide's parameters.
        needs: What a distribution must have so that it applies.
        advice: What to use where it does not apply; empty for what the distribution offers.
        otherwise: Name of the rule of the other sites of the guide; None if there must be no others.
        required: Whether at least one site of the guide must be one that it applies to.
        infer: What Pyro is told at the site.
        whole: Name of the estimator that the rule belongs to, as it needs a bound of its own; None for a rule that
            can be given to a single site.
        least_particles: The least number of particles that it works with; a single one has no dimension of its own.
        even_particles: Whether it needs an even number of them.
    """

    name: ClassVar[str]
    reparameterised: ClassVar[bool]
    needs: ClassVar[str] = "a log-probability"
    advice: ClassVar[str] = ""
    otherwise: ClassVar[str | None] = None
    required: ClassVar[bool] = False
    infer: ClassVar[Mapping[str, str]] = MappingProxyType({})
    whole: ClassVar[str | None] = None
    least_particles: ClassVar[int] = 1
    even_particles: ClassVar[bool] = False

    def applies(self, base: Distribution) -> bool:
        """Whether draws of this distribution can be differentiated by it."""
        return True

    def refusal(self, base: Distribution, advice: str | None = None) -> EstimatorError:
        """What is said where it does not apply, with what to use instead."""
        instead = advice or self.advice or advice_for(base)
        if hides_path(base) and (isinstance(self, Pathwise) or self.otherwise == "pathwise"):
            instead += f", or set has_rsample = True in the class {kind(base)}, whose rsample is passed over without it"
        return EstimatorError(
            f"expected a distribution with {self.needs} for the rule {self.name!r}, got {kind(base)}; use {instead}"
        )

    def score_parts(self, base: Distribution, value: Tensor) -> ScoreParts:
        """The log-probability, what multiplies the costs, and what enters the bound as the entropy term."""
        raise NotImplementedError

    def sample(self, base: TorchDistribution, shape: torch.Size) -> Tensor:
        """A draw without a path."""
        return base.sample(shape)

    def rsample(self, base: TorchDistribution, shape: torch.Size) -> Tensor:
        """A draw with a path."""
        return base.rsample(shape)

    def log_prob(self, base: Distribution, value: Tensor) -> Tensor:
        """The log-probability of a draw."""
        return base.log_prob(value)


class Pathwise(Rule):
    """Along the path of a reparameterised draw."""

    name = "pathwise"
    reparameterised = True
    needs = "reparameterised draws"

    def applies(self, base: Distribution) -> bool:
        """Whether it has reparameterised draws; those of a discrete site that says so are biased."""
        return base.has_rsample and not base.has_enumerate_support

    def score_parts(self, base: Distribution, value: Tensor) -> ScoreParts:
        """No score; the entropy term is log q."""
        log_prob = self.log_prob(base, value)
        return ScoreParts(log_prob, 0.0, log_prob)


class StickingTheLanding(Pathwise):
    """Pathwise, less the score of log q, whose mean is zero: no variance where the guide is the posterior.

    References:
        Roeder, Wu, Duvenaud (2017). Sticking the landing. doi:10.48550/arXiv.1703.09194
    """

    name = "stl"

    def score_parts(self, base: Distribution, value: Tensor) -> ScoreParts:
        """The entropy term is log q with its parameters held fixed; only its derivative counts."""
        log_prob = base.log_prob(value)
        return ScoreParts(log_prob, 0.0, log_prob - base.log_prob(value.detach()))


class DoublyReparameterised(Pathwise):
    """Pathwise, where the bound turns the score that its importance weights would need into a path once more.

    References:
        Tucker, Lawson, Gu, Maddison (2019). Doubly reparameterized gradient estimators for Monte Carlo objectives.
        doi:10.48550/arXiv.1810.04152
    """

    name = "dreg"
    whole = "dreg"


class Score(Rule):
    """By the score of log q.

    References:
        Williams (1992). Simple statistical gradient-following algorithms. doi:10.1007/BF00992696
    """

    name = "score"
    reparameterised = False

    def score_parts(self, base: Distribution, value: Tensor) -> ScoreParts:
        """The score is that of log q.

        The entropy term's own gradient has mean zero, since E[grad log q] = 0: left out, it adds no variance.
        """
        log_prob = base.log_prob(value)
        return ScoreParts(log_prob, log_prob, 0.0)


class PathwiseOrScore(Pathwise):
    """Pathwise where a site has reparameterised draws, by the score elsewhere."""

    name = "pathwise-or-score"
    otherwise = "score"


class Enumerated(Score):
    """A discrete site is summed over, in the guide; other sites are pathwise."""

    name = "enumerated"
    whole = "enum"
    needs = "a support that can be listed"
    otherwise = "pathwise"
    required = True
    infer = MappingProxyType({"enumerate": "parallel"})

    def applies(self, base: Distribution) -> bool:
        """Whether its values can be listed."""
        return base.has_enumerate_support


@dataclass(frozen=True)
class Gumbel(Pathwise):
    """A discrete site is relaxed: one-hot vectors to the simplex, bits to the unit interval; others are pathwise.

    The log-probability of a relaxed value ``y`` is ``sum_k y_k log p_k``, in the model and in the guide, which is the
    exact one where ``y`` is a vertex.

    Args:
        temperature: Of the relaxation, above zero; lower is closer to discrete and scatters more.
        hard: Whether the forward value is the nearest vertex, and only the path is that of the relaxed one.

    References:
        Jang, Gu, Poole (2017). Categorical reparameterization with Gumbel-softmax. doi:10.48550/arXiv.1611.01144
        Maddison, Mnih, Teh (2017). The concrete distribution. doi:10.48550/arXiv.1611.00712
    """

    temperature: float = 0.5
    hard: bool = False
    name: ClassVar[str] = "gumbel"
    needs: ClassVar[str] = "one-hot vectors (OneHotCategorical) or bits (Bernoulli)"
    otherwise: ClassVar[str | None] = "pathwise"
    required: ClassVar[bool] = True

    def applies(self, base: Distribution) -> bool:
        """Whether it is over one-hot vectors or bits."""
        return isinstance(innermost(base), (torch.distributions.OneHotCategorical, torch.distributions.Bernoulli))

    def rsample(self, base: TorchDistribution, shape: torch.Size) -> Tensor:
        """A relaxed draw, of the shape of a draw."""
        inner = innermost(base)
        logits = inner.logits.expand(base.shape(shape))
        noise = -torch.empty_like(logits).exponential_().log()
        if isinstance(inner, torch.distributions.Bernoulli):
            other = -torch.empty_like(logits).exponential_().log()
            soft = ((logits + noise - other) / self.temperature).sigmoid()
            vertex = soft.round()
        else:
            soft = ((logits + noise) / self.temperature).softmax(-1)
            vertex = torch.zeros_like(soft).scatter(-1, soft.argmax(-1, keepdim=True), 1.0)
        return vertex.detach() + (soft - soft.detach()) if self.hard else soft

    def log_prob(self, base: Distribution, value: Tensor) -> Tensor:
        """Linear in the value."""
        inner = innermost(base)
        if isinstance(inner, torch.distributions.Bernoulli):
            log_prob = value * inner.logits - softplus(inner.logits)
        else:
            log_prob = (value * inner.logits.log_softmax(-1)).sum(-1)
        return sum_rightmost(log_prob, len(base.event_shape) - len(inner.event_shape))


class StraightThrough(Gumbel):
    """Relaxed for the gradient only: the model sees one-hot vectors or bits."""

    name = "st-gumbel"


class Antithetic(Score):
    """Bits are drawn in antithetic pairs of particles: by u in the first half of them, by 1 - u in the second.

    References:
        Dong, Mnih, Tucker (2020). DisARM: an antithetic gradient estimator for binary latent variables.
        doi:10.48550/arXiv.2006.10680
    """

    name = "antithetic"
    whole = "disarm"
    needs = "bits (Bernoulli)"
    advice = "the estimator 'score-loo'"
    least_particles = 2
    even_particles = True

    def applies(self, base: Distribution) -> bool:
        """Whether it is over bits."""
        return isinstance(innermost(base), torch.distributions.Bernoulli)

    def sample(self, base: TorchDistribution, shape: torch.Size) -> Tensor:
        """Pairs along the leftmost dimension, that of the particles; without particles, draws as they come."""
        probs = innermost(base).probs.expand(base.shape(shape))
        if not probs.dim() or len(probs) % 2:
            return base.sample(shape)
        half = torch.rand_like(probs[: len(probs) // 2])
        return (torch.cat([half, 1 - half]) < probs).to(probs.dtype)


RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Pathwise(),
        StickingTheLanding(),
        DoublyReparameterised(),
        Score(),
        PathwiseOrScore(),
        Enumerated(),
        Gumbel(),
        StraightThrough(hard=True),
        Antithetic(),
    )
}


class Estimated(TorchDistribution):
    """A distribution together with the rule by which its draws are differentiated.

    It survives ``expand``, so that neither a plate nor the plate of particles undoes the rule (setting
    ``has_rsample_`` on a distribution does not survive it).

    Args:
        base: The distribution of the site.
        rule: How it is differentiated.

    Raises:
        EstimatorError: If the rule does not apply to the distribution.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  (torch reads it as a class attribute)

    def __init__(self, base: TorchDistribution, rule: Rule) -> None:
        if not rule.applies(base):
            raise rule.refusal(base)
        self.base = base
        self.rule = rule
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:
        """Whether draws carry a path to the parameters."""
        return self.rule.reparameterised

    @property
    def has_enumerate_support(self) -> bool:
        """Whether the support can be listed."""
        return self.base.has_enumerate_support

    @property
    def support(self) -> Any:
        """Support of the base distribution."""
        return self.base.support

    @property
    def mean(self) -> Tensor:
        """Mean of the base distribution."""
        return self.base.mean

    @property
    def variance(self) -> Tensor:
        """Variance of the base distribution."""
        return self.base.variance

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "Estimated":
        """The same rule over a larger batch shape."""
        return Estimated(self.base.expand(batch_shape), self.rule)

    def sample(self, sample_shape: torch.Size = NOTHING) -> Tensor:
        """Draw without a path to the parameters."""
        with torch.no_grad():
            return self.rule.sample(self.base, sample_shape)

    def rsample(self, sample_shape: torch.Size = NOTHING) -> Tensor:
        """Draw with a path to the parameters."""
        return self.rule.rsample(self.base, sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability under the base distribution, as the rule sees it."""
        return self.rule.log_prob(self.base, value)

    def entropy(self) -> Tensor:
        """Entropy of the base distribution."""
        return self.base.entropy()

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Support of the base distribution, listed."""
        return self.base.enumerate_support(expand)

    def score_parts(self, x: Tensor, *args: Any, **kwargs: Any) -> ScoreParts:
        """Pyro's question to every guide site, answered by the rule.

        Raises:
            EstimatorError: If the rule answers with something else.
        """
        parts = self.rule.score_parts(self.base, x)
        if not isinstance(parts, ScoreParts):
            got = "a tensor" if torch.is_tensor(parts) else type(parts).__name__
            raise EstimatorError(
                f"expected score_parts of the rule {self.rule.name!r} to return ScoreParts, got {got}; return "
                "ScoreParts(log_prob, score, entropy_term) of pyro.distributions.score_parts"
            )
        return parts


def closed_form_kl(q: Any, p: Any) -> Tensor:
    """KL from q to p of two sites, whatever their rules, of their common batch shape.

    Raises:
        NotImplementedError: If the pair has none.
    """
    q, p = unwrapped(q), unwrapped(p)
    if q.batch_shape != p.batch_shape:
        # Some of torch's formulas do not broadcast.
        shape = torch.broadcast_shapes(q.batch_shape, p.batch_shape)
        q, p = q.expand(shape), p.expand(shape)
    return kl_divergence(q, p)


@register_kl(Estimated, Distribution)
def _kl_of_base(q: Estimated, p: Distribution) -> Tensor:
    return closed_form_kl(q, p)


def unwrapped(distribution: Distribution) -> Any:
    """The distribution of a site, without its rule."""
    return distribution.base if isinstance(distribution, Estimated) else distribution


def innermost(distribution: Distribution) -> Any:
    """The distribution of a site, without its rule and its event dimensions."""
    inner = unwrapped(distribution)
    while isinstance(inner, (Independent, ExpandedDistribution)):
        inner = inner.base_dist
    return inner


def kind(distribution: Distribution) -> str:
    """The name of a site's kind of distribution."""
    return type(innermost(distribution)).__name__


def advice_for(distribution: Distribution) -> str:
    """Estimators by which draws of a distribution can be differentiated."""
    inner, base = innermost(distribution), unwrapped(distribution)
    if Pathwise().applies(base):
        return "the estimator 'pathwise' or 'score-loo'"
    if isinstance(inner, torch.distributions.OneHotCategorical):
        found = "'enum', 'gumbel'"
    elif isinstance(inner, torch.distributions.Categorical):
        return "the rule 'score', or the estimator 'enum' or 'score-loo' ('gumbel' needs a OneHotCategorical)"
    elif isinstance(inner, torch.distributions.Bernoulli):
        found = "'enum', 'gumbel'" if base.has_enumerate_support else "'disarm', 'gumbel'"
    else:
        found = "'enum'" if base.has_enumerate_support else "'score-graph'"
    return f"the rule 'score', or the estimator {found} or 'score-loo'"


def hides_path(distribution: Distribution) -> bool:
    """Whether the class of a distribution has an ``rsample`` that it does not speak of by ``has_rsample``."""
    cls = type(innermost(distribution))
    return cls.has_rsample is False and cls.rsample is not Distribution.rsample


def is_normal(distribution: Distribution) -> bool:
    """Whether a site has independent normal latents."""
    return isinstance(innermost(distribution), torch.distributions.Normal)


def is_deterministic(distribution: Distribution) -> bool:
    """Whether a site is a point, whose draws have nothing to be differentiated by a rule."""
    return isinstance(innermost(distribution), Delta)
