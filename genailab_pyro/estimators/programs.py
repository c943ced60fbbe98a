"""Programs under a messenger: a guide with the rules of its sites, and the model of a relaxed guide."""

from collections.abc import Callable, Mapping
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import nn

from genailab_pyro.estimators.rules import (
    RULES,
    Estimated,
    EstimatorError,
    Rule,
    advice_for,
    is_deterministic,
    kind,
)
from genailab_pyro.nn import choose


def registered(table: Mapping[str, Any], name: str, what: str) -> Any:
    """The entry under a name of a table that users add to.

    Raises:
        ValueError: If the table has no such entry.
    """
    try:
        return choose({**table}, name, what)
    except ValueError as error:
        raise ValueError(f"{error}; if it is your own, import the file that registers it first") from None


def site_rule(name: str, what: str = "a rule") -> Rule:
    """The rule of a name, for a single site.

    Raises:
        ValueError: If it is unknown, or belongs to a whole estimator.
    """
    rule: Rule = registered(RULES, name, what)
    if rule.whole is not None:
        raise ValueError(
            f"expected {what} that a single site can have, got {name!r}, which needs a bound of its own; use the "
            f"estimator {rule.whole!r} for the guide"
        )
    return rule


class EstimateMessenger(Messenger):
    """Gives each latent site of a guide its rule: the one named at the site, else by its name, else the default.

    Args:
        default: Rule of the sites that are not named; None leaves them to what encloses the messenger, or to Pyro.
        sites: Name of the rule of each named site.
        advice: What to use where the rule of a site does not apply; None for what the rule says itself.
    """

    def __init__(self, default: Rule | None, sites: Mapping[str, str], advice: str | None = None) -> None:
        super().__init__()
        self.advice = advice
        self.default = default
        self.sites = dict(sites)
        self.passed: dict[str, Any] = {}
        self.applied = False

    def __enter__(self) -> Any:
        self.passed, self.applied = {}, False
        return super().__enter__()

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> Any:
        result = super().__exit__(exc_type, exc_value, traceback)
        rule = self.default
        if exc_type is None and rule is not None and rule.required and not self.applied:
            found = ", ".join(f"{name!r} ({kind(base)})" for name, base in self.passed.items())
            advice = advice_for(next(iter(self.passed.values()))) if found else "the estimator 'pathwise' or 'score'"
            raise EstimatorError(
                f"expected a latent site of the guide with {rule.needs} for the rule {rule.name!r}, got only "
                f"{found or 'none, or sites with rules of their own'}; use {advice}"
            )
        return result

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        base = msg["fn"]
        if msg["is_observed"] or site_is_subsample(msg) or isinstance(base, Estimated) or is_deterministic(base):
            return
        named = msg["infer"].get("estimator", self.sites.get(msg["name"]))
        rule = self.default if named is None else site_rule(named, f"the rule of the site {msg['name']!r}")
        if rule is None:
            return
        self.applied |= named is None and rule.applies(base)
        if rule.otherwise is not None and not rule.applies(base) and RULES[rule.otherwise].applies(base):
            self.passed[msg["name"]] = base
            rule = RULES[rule.otherwise]
        if not rule.applies(base):
            raise EstimatorError(f"site {msg['name']!r}: {rule.refusal(base, self.advice)}")
        msg["fn"] = Estimated(base, rule)
        msg["infer"] = {**msg["infer"], **rule.infer}


class RelaxedMessenger(Messenger):
    """Lets the discrete sites of a model score what a relaxed guide draws between their values.

    At their values nothing changes; a one-hot distribution would take the nearest one, without an error and without a
    gradient.
    """

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg) and RULES["gumbel"].applies(msg["fn"]):
            msg["fn"] = Estimated(msg["fn"], RULES["gumbel"])


class Handled(nn.Module):
    """A program that always runs under some messengers, and shows the program's parameters as its own.

    (`Messenger.__call__` makes a function, whose parameters torch cannot see.)

    Args:
        program: A Pyro model or guide, ideally an ``nn.Module``.
        messenger: What it runs under; None for nothing, which makes a module of a function.
    """

    def __init__(self, program: Callable[..., Any], messenger: Messenger | None = None) -> None:
        super().__init__()
        self.program = program
        self.messenger = messenger

    @property
    def max_plate_nesting(self) -> float:
        """Number of nested plates that the program declares, infinite where it does not say."""
        return getattr(self.program, "max_plate_nesting", float("inf"))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program under the messenger."""
        if self.messenger is None:
            return self.program(*args, **kwargs)
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
        >>> import torch, pyro, pyro.distributions as dist
        >>> guide = estimate(z="score")(lambda: pyro.sample("z", dist.Normal(torch.ones(1, requires_grad=True), 1.0)))
        >>> guide().requires_grad
        False
    """
    for rule in sites.values():
        site_rule(rule)
    messenger = EstimateMessenger(None if default is None else site_rule(default), sites)
    return lambda guide: Handled(guide, messenger)
