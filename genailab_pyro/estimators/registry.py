"""Estimators: a rule, a bound, credit and a baseline as one frozen specification that is tied to a pair of programs."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn

from genailab_pyro.estimators.baselines import BASELINES, DELTA, Baseline
from genailab_pyro.estimators.bounds import (
    AntitheticELBO,
    DeltaELBO,
    TraceELBO,
    TraceEnumELBO,
    TraceGraphELBO,
    TraceMeanFieldELBO,
    WatchedELBO,
)
from genailab_pyro.estimators.programs import EstimateMessenger, Handled, RelaxedMessenger, registered
from genailab_pyro.estimators.rules import RULES, Gumbel, Rule
from genailab_pyro.estimators.weighted import DoublyReparameterisedELBO, VimcoELBO, WeightedELBO
from genailab_pyro.nn import choose

BOUNDS = {
    "elbo": "ELBO",
    "elbo-kl": "ELBO",
    "importance-weighted": "IW-K",
    "renyi": "Renyi",
}
"""What is bounded, and the objective whose gradient is estimated."""
# Bounds and rules that have classes of their own; a score or a path goes with either credit.
CLASSES: dict[tuple[str, str, str], type[WatchedELBO]] = {
    **{("elbo", "plates", rule): TraceELBO for rule in ("pathwise", "stl", "score", "pathwise-or-score")},
    **{("elbo", "graph", rule): TraceGraphELBO for rule in ("pathwise", "stl", "score", "pathwise-or-score")},
    **{("elbo-kl", "plates", rule): TraceMeanFieldELBO for rule in ("pathwise", "score", "pathwise-or-score")},
    **{("elbo", "plates", rule): TraceELBO for rule in ("gumbel", "st-gumbel")},
    ("elbo", "graph", "enumerated"): TraceEnumELBO,
    ("elbo", "plates", "antithetic"): AntitheticELBO,
    ("importance-weighted", "plates", "pathwise"): WeightedELBO,
    ("importance-weighted", "plates", "dreg"): DoublyReparameterisedELBO,
    ("importance-weighted", "plates", "score"): VimcoELBO,
    ("renyi", "plates", "pathwise"): WeightedELBO,
}
# What to use in place of a combination that does not exist, and why; None stands for any.
REFUSALS: dict[tuple[str | None, str], str] = {
    ("elbo-kl", "stl"): "a KL in closed form has no score to leave out: use the estimator 'pathwise-kl'",
    ("elbo", "dreg"): "one importance weight has no score to turn into a path: use the estimator 'stl'",
    ("elbo-kl", "dreg"): "there are no importance weights: use the estimator 'pathwise-kl'",
    ("importance-weighted", "stl"): "leaving the score of log q out is biased under importance weights: use the "
    "estimator 'dreg'",
    ("renyi", "stl"): "leaving the score of log q out is biased under importance weights: use the estimator 'renyi'",
    ("renyi", "dreg"): "it is derived for the importance-weighted bound: use the estimator 'renyi' or 'dreg'",
    ("renyi", "score"): "there is no such estimator: use the estimator 'vimco'",
    (None, "enumerated"): "a sum over values has neither weights nor scores: use the estimator 'enum'",
    (None, "gumbel"): "the relaxed bound is an ELBO with the costs of the plates: use the estimator 'gumbel'",
    (None, "st-gumbel"): "the relaxed bound is an ELBO with the costs of the plates: use the estimator 'st-gumbel'",
    (None, "antithetic"): "pairs are formed for the ELBO: use the estimator 'disarm' (or 'vimco')",
    (None, "pathwise-or-score"): "its draws must all have one rule: use the estimator 'iwae' or 'vimco'",
    (None, "score"): "which costs are downstream is asked of the ELBO only: use credit='plates'",
    (None, "pathwise"): "a path needs no credit: use credit='plates'",
}

OWN = "a rule of your own goes with an ELBO that is drawn: use bound='elbo'"
# What the package has itself, which no other class replaces.
BUILT_IN = frozenset({*RULES, *BASELINES, DELTA})
# Bounds under which a site may have a score, the sites of its own rule included.
SCORED = (TraceELBO, TraceGraphELBO, TraceMeanFieldELBO, VimcoELBO)


def register_rule(rule: Rule) -> Rule:
    """Add a rule for a single site to the table of rules; it goes with the bound ``"elbo"`` and either credit.

    One of a class that is defined again, as by a cell of a notebook that is run again, takes the place of the former.

    Args:
        rule: The rule, an instance of a subclass of `Rule` with a ``name`` of its own.

    Returns:
        The rule.

    Raises:
        TypeError: If it is not a `Rule`, or not a whole one.
        ValueError: If the name is taken by another class.
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"expected an instance of a Rule, got {rule!r}; derive a class from glp.estimators.Rule")
    cls = type(rule)
    missing = [what for what in ("name", "reparameterised") if not hasattr(cls, what)]
    missing += ["score_parts"] if cls.score_parts is Rule.score_parts else []
    if missing:
        raise TypeError(
            f"expected the rule {cls.__name__} to have a name, reparameterised and score_parts(base, value), got none "
            f"for {' and '.join(missing)}; define it in the class, or derive it from Pathwise or Score"
        )
    fix = "choose another one" if "name" in vars(cls) else f'set name = "..." in the class {cls.__name__}'
    _check_new(RULES, rule.name, cls, "rule", fix)
    RULES[rule.name] = rule
    CLASSES["elbo", "plates", rule.name] = TraceELBO
    CLASSES["elbo", "graph", rule.name] = TraceGraphELBO
    return rule


def register_baseline(name: str, baseline: type[Baseline]) -> type[Baseline]:
    """Add a baseline to the table, for ``Estimator(rule="score", baseline=name)``.

    One is made, to see that it can be. A class that is defined again takes the place of the former.

    Args:
        name: The new name.
        baseline: A subclass of `Baseline` that is made without arguments.

    Returns:
        The class.

    Raises:
        TypeError: If it is not a subclass of `Baseline`, has no ``forward``, or cannot be made without arguments.
        ValueError: If the name is taken by another class.
    """
    if not (isinstance(baseline, type) and issubclass(baseline, Baseline)):
        raise TypeError(f"expected a subclass of Baseline, got {baseline!r}; derive it from glp.estimators.Baseline")
    _check_new(BASELINES, name, baseline, "baseline", "choose another one")
    _check_made(baseline)
    BASELINES[name] = baseline
    return baseline


def _check_new(table: Mapping[str, Any], name: str, cls: type, what: str, fix: str) -> None:
    """Refuse a name that another class has; a class that was defined again is the same."""
    former = table.get(name)
    same = former is not None and _path(former if isinstance(former, type) else type(former)) == _path(cls)
    if name in BUILT_IN or (former is not None and not same):
        raise ValueError(f"expected a new name for a {what}, {name!r} is taken; {fix}")


def _path(cls: type) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__


def _check_made(baseline: type[Baseline]) -> None:
    """Refuse a baseline that would fail when it is first used."""
    name = baseline.__name__
    if baseline.forward is Baseline.forward:
        raise TypeError(f"expected the baseline {name} to have forward(site), got none; define it in the class")
    try:
        inspect.signature(baseline).bind()
    except TypeError as error:
        raise TypeError(
            f"expected the baseline {name} to be made without arguments, got: {error}; give each of them a default"
        ) from None
    reason = "an __init__ that leaves out that of Baseline"
    try:
        with torch.random.fork_rng():
            made = "name" in vars(baseline())
    except AttributeError as error:
        made, reason = False, str(error)
    if not made:
        raise TypeError(
            f"expected the baseline {name} to be made as a module, got: {reason}; call super().__init__() first in its "
            "__init__"
        )


@dataclass(frozen=True, repr=False)
class Estimator:
    """How the gradient of a bound is estimated.

    Args:
        rule: How a latent site is differentiated: ``"pathwise"``, ``"stl"``, ``"dreg"``, ``"score"``,
            ``"pathwise-or-score"`` (by what a site offers), ``"enumerated"``, ``"gumbel"``, ``"st-gumbel"`` or
            ``"antithetic"``.
        bound: What is bounded: ``"elbo"``, ``"elbo-kl"`` with the KL in closed form, ``"importance-weighted"`` or
            ``"renyi"``.
        credit: Which costs a site's score multiplies: ``"plates"``, those in its plates, or ``"graph"``, those
            downstream of it.
        num_particles: Number of vectorised draws per cell, at least one.
        baseline: What is subtracted from a score's costs: None for nothing, ``"leave-one-out"``, ``"constant"``,
            ``"cell-average"``, ``"network"``, or ``"delta"`` (an expansion of the costs, for one normal site).
        temperature: Of a Gumbel rule, above zero; None for its default of 0.5.
        alpha: Order of Renyi's divergence, not one; None for its default of 0.5.

    Raises:
        ValueError: If a part is unknown, or the parts do not go together; the message names what to use instead.

    Example:
        >>> Estimator(rule="score", num_particles=8)
        Estimator(rule='score', bound='elbo', credit='plates', num_particles=8, baseline=None)
    """

    rule: str = "pathwise"
    bound: str = "elbo"
    credit: str = "plates"
    num_particles: int = 1
    baseline: str | None = None
    temperature: float | None = None
    alpha: float | None = None

    def __post_init__(self) -> None:
        rule: Rule = registered(RULES, self.rule, "rule")
        choose(BOUNDS, self.bound, "bound")
        choose({"plates": None, "graph": None}, self.credit, "credit")
        if isinstance(self.num_particles, bool) or not isinstance(self.num_particles, int) or self.num_particles < 1:
            raise ValueError(f"expected num_particles to be a whole number of at least one, got {self.num_particles!r}")
        if (self.bound, self.credit, self.rule) not in CLASSES:
            reason = REFUSALS.get((self.bound, self.rule)) or REFUSALS.get((None, self.rule), OWN)
            if self.credit == "graph" and (self.bound, "plates", self.rule) in CLASSES:
                reason = "which costs are downstream is asked of a drawn ELBO only: use credit='plates'"
            raise ValueError(
                f"expected a combination that exists, got rule={self.rule!r} with bound={self.bound!r} and credit="
                f"{self.credit!r}; {reason}"
            )
        self._check_baseline(rule)
        self._check_particles()
        self._check_options()

    def _check_baseline(self, rule: Rule) -> None:
        if self.baseline is None:
            return
        registered({**BASELINES, DELTA: None}, self.baseline, "baseline")
        elbo_class = CLASSES[self.bound, self.credit, self.rule]
        if not issubclass(elbo_class, SCORED) or isinstance(rule, Gumbel) or elbo_class is AntitheticELBO:
            raise ValueError(
                f"expected no baseline for the rule {self.rule!r} under the bound {self.bound!r}, which has no score, "
                f"got {self.baseline!r}; leave it out, or use the estimator 'score-loo'"
            )
        if self.bound == "importance-weighted" and self.baseline != "leave-one-out":
            raise ValueError(
                f"expected the baseline 'leave-one-out' beside importance weights, got {self.baseline!r}; use the "
                "estimator 'vimco'"
            )
        if self.baseline == DELTA and (self.bound, self.credit, self.rule) != ("elbo", "plates", "score"):
            raise ValueError(
                "expected rule='score', bound='elbo' and credit='plates' for the baseline 'delta', got "
                f"{self.rule!r}, {self.bound!r} and {self.credit!r}; use the baseline 'leave-one-out'"
            )

    def _check_particles(self) -> None:
        least = self.least_particles
        if self.num_particles < least:
            raise ValueError(
                f"expected num_particles of at least {least} for {self._why_more}, got {self.num_particles}; use "
                f"num_particles={max(least, 8)}"
            )
        if RULES[self.rule].even_particles and self.num_particles % 2:
            raise ValueError(f"expected an even num_particles for {self._why_more}, got {self.num_particles}")

    def _check_options(self) -> None:
        if self.temperature is not None and not isinstance(RULES[self.rule], Gumbel):
            raise ValueError(f"expected a temperature for a Gumbel rule only, got one for the rule {self.rule!r}")
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"expected a temperature above zero, got {self.temperature!r}")
        if self.alpha is not None and (self.bound != "renyi" or self.alpha == 1):
            raise ValueError(f"expected alpha, other than 1, for bound='renyi' only, got {self.alpha!r}")

    def __repr__(self) -> str:
        shown = [item.name for item in fields(self) if item.name not in ("temperature", "alpha")]
        shown += [name for name in ("temperature", "alpha") if getattr(self, name) is not None]
        return f"Estimator({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    @property
    def least_particles(self) -> int:
        """The least number of particles that the parts work with."""
        least = BASELINES[self.baseline].least_particles if self.baseline in BASELINES else 1
        return max(least, RULES[self.rule].least_particles, 2 if self.bound == "renyi" else 1)

    @property
    def _why_more(self) -> str:
        if self.rule == "antithetic":
            return "antithetic pairs"
        if self.bound == "renyi":
            return "Renyi's bound, which is the ELBO with one"
        if RULES[self.rule].least_particles > 1:
            return f"the rule {self.rule!r}"
        return f"the baseline {self.baseline!r}"

    @property
    def reparameterised(self) -> bool:
        """Whether every draw carries a path to the guide's parameters, as a penalty on the latents needs."""
        rule = RULES[self.rule]
        return rule.reparameterised and rule.otherwise != "score"

    @property
    def biased(self) -> bool:
        """Whether it estimates the gradient of a relaxed model."""
        return isinstance(RULES[self.rule], Gumbel)

    @property
    def objective(self) -> str:
        """The objective whose gradient is estimated, with the number of draws where it is a part of it."""
        if self.biased:
            return "relaxed ELBO"
        return BOUNDS[self.bound] + (f" (K={self.num_particles})" if BOUNDS[self.bound] != "ELBO" else "")

    def bind(self, model: Callable[..., Any], guide: Callable[..., Any]) -> tuple[nn.Module, nn.Module, WatchedELBO]:
        """Tie the estimator to a pair of programs.

        The three results go to ``pyro.infer.SVI(model, guide, optim, loss=elbo)``, or to ``elbo(model, guide)``,
        a module whose call is a loss to differentiate and whose parameters are the programs' and the baseline's.

        Args:
            model: The generative program.
            guide: The variational program. Rules given at a site, or by `estimate`, come before this estimator's.

        Returns:
            The model and the guide as modules, and the bound.
        """
        rule: Rule = RULES[self.rule]
        if self.temperature is not None:
            rule = replace(rule, temperature=self.temperature)  # type: ignore[call-arg]  # a Gumbel rule
        options: dict[str, Any] = {
            "num_particles": self.num_particles,
            "vectorize_particles": self.num_particles > 1,
            "max_plate_nesting": max(_nesting(model), _nesting(guide)),
        }
        if self.bound == "renyi":
            options["alpha"] = 0.5 if self.alpha is None else self.alpha
        if self.baseline in BASELINES:
            parameter = next(iter(guide.parameters()), None) if isinstance(guide, nn.Module) else None
            options["baseline"] = BASELINES[self.baseline]().to(parameter)
        elbo_class = DeltaELBO if self.baseline == DELTA else CLASSES[self.bound, self.credit, self.rule]
        bound_model = Handled(model, RelaxedMessenger())
        advice = None if BOUNDS[self.bound] == "ELBO" else "the estimator 'vimco'"
        return bound_model, Handled(guide, EstimateMessenger(rule, {}, advice)), elbo_class(**options)


def _nesting(program: Callable[..., Any]) -> float:
    return getattr(program, "max_plate_nesting", float("inf"))
