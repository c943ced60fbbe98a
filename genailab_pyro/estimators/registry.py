"""Estimators: a rule, a bound, credit and a baseline, as one frozen specification, and the table of their names."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from torch import nn

from genailab_pyro.estimators.bounds import BOUNDS, WatchedELBO
from genailab_pyro.estimators.rules import RULES, EstimateMessenger, Handled
from genailab_pyro.nn import choose


@dataclass(frozen=True)
class Estimator:
    """How the gradient of a bound is estimated.

    Args:
        rule: How a latent site is differentiated: ``"pathwise"`` or ``"score"``.
        bound: What is bounded: ``"elbo"``, or ``"elbo-kl"`` with the KL in closed form.
        credit: Which costs a site's score multiplies: ``"plates"``, those in its plates, or ``"graph"``, those
            downstream of it.
        num_particles: Number of vectorised draws per cell, at least one.
        baseline: What is subtracted from a score's costs; None for nothing.

    Raises:
        ValueError: If a part is unknown, or the parts do not go together.

    Example:
        >>> Estimator(rule="score", num_particles=8)
        Estimator(rule='score', bound='elbo', credit='plates', num_particles=8, baseline=None)
    """

    rule: str = "pathwise"
    bound: str = "elbo"
    credit: str = "plates"
    num_particles: int = 1
    baseline: str | None = None

    def __post_init__(self) -> None:
        rule = choose(RULES, self.rule, "rule")
        if (self.bound, self.credit) not in BOUNDS:
            known = ", ".join(f"bound={bound!r} with credit={credit!r}" for bound, credit in BOUNDS)
            raise ValueError(f"expected {known}; got bound={self.bound!r} with credit={self.credit!r}")
        if self.bound == "elbo-kl" and not rule.reparameterised:
            raise ValueError(
                f"expected a pathwise rule for the bound 'elbo-kl', got {self.rule!r}: Pyro's TraceMeanField_ELBO "
                "gives such a site no gradient; use the estimator 'score'"
            )
        if isinstance(self.num_particles, bool) or not isinstance(self.num_particles, int) or self.num_particles < 1:
            raise ValueError(f"expected num_particles to be a whole number of at least one, got {self.num_particles!r}")
        if self.baseline is not None:
            raise ValueError(f"expected baseline=None, the only one there is, got {self.baseline!r}")

    @property
    def reparameterised(self) -> bool:
        """Whether draws carry a path to the guide's parameters, as a penalty on the latents needs."""
        return RULES[self.rule].reparameterised

    def bind(self, model: Callable[..., Any], guide: Callable[..., Any]) -> tuple[nn.Module, nn.Module, WatchedELBO]:
        """Tie the estimator to a pair of programs.

        The three results go to ``pyro.infer.SVI(model, guide, optim, loss=elbo)``, or to ``elbo(model, guide)``,
        a module whose call is a loss to differentiate and whose parameters are the programs'.

        Args:
            model: The generative program.
            guide: The variational program. Rules given at a site, or by `estimate`, come before this estimator's.

        Returns:
            The model and the guide as modules, and the bound.
        """
        nesting = max(_nesting(model), _nesting(guide))
        elbo = BOUNDS[self.bound, self.credit](
            num_particles=self.num_particles,
            vectorize_particles=self.num_particles > 1,
            max_plate_nesting=nesting,
        )
        # A model is scored as it is; the messenger without rules only makes a module of it.
        bound_model = model if isinstance(model, nn.Module) else Handled(model, EstimateMessenger(None, {}))
        return bound_model, Handled(guide, EstimateMessenger(self.rule, {})), elbo


def _nesting(program: Callable[..., Any]) -> float:
    return getattr(program, "max_plate_nesting", float("inf"))


@dataclass(frozen=True)
class Row:
    """One row of the table of estimators.

    Args:
        estimator: The specification.
        objective: The objective whose gradient is estimated.
        needs: What the latent sites must offer.
        reference: Whose estimator it is.
    """

    estimator: Estimator
    objective: str
    needs: str
    reference: str


_ROWS: dict[str, Row] = {
    "pathwise": Row(
        Estimator("pathwise"),
        "ELBO",
        "reparameterised draws",
        "Kingma & Welling 2014, doi:10.48550/arXiv.1312.6114",
    ),
    "pathwise-kl": Row(
        Estimator("pathwise", bound="elbo-kl"),
        "ELBO",
        "reparameterised draws, closed-form KL, top-down guide",
        "Kingma & Welling 2014, doi:10.48550/arXiv.1312.6114",
    ),
    "score": Row(
        Estimator("score"),
        "ELBO",
        "a log-probability",
        "Ranganath, Gerrish & Blei 2014, doi:10.48550/arXiv.1401.0118",
    ),
    "score-graph": Row(
        Estimator("score", credit="graph"),
        "ELBO",
        "a log-probability",
        "Schulman et al. 2015, doi:10.48550/arXiv.1506.05254",
    ),
}


def get(name: str | Estimator, **changes: Any) -> Estimator:
    """The estimator of a name, with some of its parts changed: ``get("score", num_particles=8)``.

    Args:
        name: A name in `table`, or an `Estimator`, which is passed through.
        changes: Fields of `Estimator` to change.

    Raises:
        ValueError: If the name is unknown, or the parts do not go together.
    """
    estimator = name if isinstance(name, Estimator) else choose(_ROWS, name, "estimator").estimator
    return replace(estimator, **changes)


def register(
    name: str, estimator: Estimator, *, objective: str = "ELBO", needs: str = "", reference: str = ""
) -> Estimator:
    """Add a row to the table of names.

    Args:
        name: The new name.
        estimator: What it stands for.
        objective: The objective whose gradient is estimated.
        needs: What the latent sites must offer.
        reference: Whose estimator it is.

    Returns:
        The estimator.

    Raises:
        ValueError: If the name is taken by another estimator.
    """
    if name in _ROWS and _ROWS[name].estimator != estimator:
        raise ValueError(f"expected a new name, {name!r} is {_ROWS[name].estimator}; choose another name")
    _ROWS[name] = Row(estimator, objective, needs, reference)
    return estimator


def name_of(estimator: Estimator) -> str:
    """The table's name of an estimator; for one that has none, its parts."""
    for name, row in _ROWS.items():
        usual = row.estimator.num_particles
        if row.estimator == replace(estimator, num_particles=usual):
            return name if estimator.num_particles == usual else f"{name}-{estimator.num_particles}"
    return str(estimator)


def table() -> pd.DataFrame:
    """All named estimators: their parts, the objective of each, what it needs, and its reference.

    Example:
        >>> table().loc["score-graph", "credit"]
        'graph'
    """
    rows = {
        name: {
            "rule": row.estimator.rule,
            "bound": row.estimator.bound,
            "credit": row.estimator.credit,
            "baseline": row.estimator.baseline or "none",
            "num_particles": row.estimator.num_particles,
            "objective": row.objective,
            "needs": row.needs,
            "reference": row.reference,
        }
        for name, row in _ROWS.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")
