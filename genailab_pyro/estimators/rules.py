"""How one latent site of a guide is differentiated.

The gradient of an expectation under a guide ``q(z)`` can reach the guide's parameters along the path of a
reparameterised draw, or through the score ``grad log q(z)``. Pyro asks a site's distribution for its `ScoreParts`
and builds the surrogate from them; a rule answers that question, whatever the distribution would have said.

References:
    Schulman, Heess, Weber, Abbeel (2015). Gradient estimation using stochastic computation graphs.
    doi:10.48550/arXiv.1506.05254
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.score_parts import ScoreParts
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence, register_kl

from genailab_pyro.nn import choose


@dataclass(frozen=True)
class Rule:
    """A way to differentiate one latent site.

    Args:
        name: Name in the table of rules.
        reparameterised: Whether draws carry a path to the guide's parameters.
        score_parts: Given the site's distribution and its value, the parts of Pyro's surrogate: the log-probability,
            what multiplies the downstream cost, and what enters the bound as the entropy term.
    """

    name: str
    reparameterised: bool
    score_parts: Callable[[Distribution, Tensor], ScoreParts]


def _pathwise(base: Distribution, value: Tensor) -> ScoreParts:
    log_prob = base.log_prob(value)
    return ScoreParts(log_prob, 0.0, log_prob)


def _score(base: Distribution, value: Tensor) -> ScoreParts:
    # The entropy term's own gradient has mean zero, since E[grad log q] = 0: left out, it adds no variance.
    log_prob = base.log_prob(value)
    return ScoreParts(log_prob, log_prob, 0.0)


RULES: dict[str, Rule] = {
    "pathwise": Rule("pathwise", True, _pathwise),
    "score": Rule("score", False, _score),
}


class Estimated(TorchDistribution):
    """A distribution together with the rule by which its draws are differentiated.

    It survives ``expand``, so that neither a plate nor the plate of particles undoes the rule (setting
    ``has_rsample_`` on a distribution does not survive it).

    Args:
        base: The distribution of the site.
        rule: How it is differentiated.

    Raises:
        ValueError: If the rule needs a reparameterised draw and the distribution has none.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  (torch reads it as a class attribute)

    def __init__(self, base: TorchDistribution, rule: Rule) -> None:
        if rule.reparameterised and not base.has_rsample:
            raise ValueError(
                f"expected a distribution with reparameterised draws for the rule {rule.name!r}, got "
                f"{_kind(base)}; use the rule 'score'"
            )
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

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008  (torch's own signature)
        """Draw without a path to the parameters."""
        with torch.no_grad():
            return self.base.sample(sample_shape)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw with a path to the parameters."""
        return self.base.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability under the base distribution."""
        return self.base.log_prob(value)

    def entropy(self) -> Tensor:
        """Entropy of the base distribution."""
        return self.base.entropy()

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Support of the base distribution, listed."""
        return self.base.enumerate_support(expand)

    def score_parts(self, x: Tensor, *args: Any, **kwargs: Any) -> ScoreParts:
        """Pyro's question to every guide site, answered by the rule."""
        return self.rule.score_parts(self.base, x)


@register_kl(Estimated, Distribution)
def _kl_of_base(q: Estimated, p: Distribution) -> Tensor:
    return kl_divergence(q.base, p)


def _kind(base: Distribution) -> str:
    inner = base
    while hasattr(inner, "base_dist"):
        inner = inner.base_dist
    return type(inner).__name__


class EstimateMessenger(Messenger):
    """Gives each latent site of a guide its rule: the one named at the site, else by its name, else the default.

    Args:
        default: Rule of the sites that are not named; None leaves them to what encloses the messenger, or to Pyro.
        sites: Rule of each named site.
    """

    def __init__(self, default: str | None, sites: Mapping[str, str]) -> None:
        super().__init__()
        self.default = default
        self.sites = dict(sites)

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["is_observed"] or site_is_subsample(msg) or isinstance(msg["fn"], Estimated):
            return
        name = msg["infer"].get("estimator", self.sites.get(msg["name"], self.default))
        if name is None:
            return
        rule = choose(RULES, name, f"the rule of the site {msg['name']!r}")
        try:
            msg["fn"] = Estimated(msg["fn"], rule)
        except ValueError as error:
            raise ValueError(f"site {msg['name']!r}: {error}") from None


class Handled(nn.Module):
    """A program that always runs under a messenger, and shows the program's parameters as its own.

    (`Messenger.__call__` makes a function, whose parameters torch cannot see.)

    Args:
        program: A Pyro model or guide, ideally an ``nn.Module``.
        messenger: What it runs under.
    """

    def __init__(self, program: Callable[..., Any], messenger: Messenger) -> None:
        super().__init__()
        self.program = program
        self.messenger = messenger

    @property
    def max_plate_nesting(self) -> float:
        """Number of nested plates that the program declares, infinite where it does not say."""
        return getattr(self.program, "max_plate_nesting", float("inf"))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program under the messenger."""
        with self.messenger:
            return self.program(*args, **kwargs)


def estimate(default: str | None = None, **sites: str) -> Callable[[Callable[..., Any]], Handled]:
    """Give the latent sites of a guide their rules: ``estimate(z="score", library="pathwise")(guide)``.

    A rule named at the site, ``pyro.sample("z", ..., infer={"estimator": "score"})``, comes before one given here.

    Args:
        default: Rule of the sites that are not named.
        sites: Name of the rule of each site.

    Returns:
        A function from a guide to an ``nn.Module`` that runs it under these rules.

    Raises:
        ValueError: If a rule is unknown.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> guide = estimate(z="score")(lambda: pyro.sample("z", dist.Normal(torch.ones(1, requires_grad=True), 1.0)))
        >>> guide().requires_grad
        False
    """
    for rule in (*sites.values(), *([] if default is None else [default])):
        choose(RULES, rule, "a rule")
    return lambda guide: Handled(guide, EstimateMessenger(default, sites))
