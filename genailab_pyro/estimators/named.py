"""The table of named estimators, and what each can be used with."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pandas as pd

from genailab_pyro.estimators.programs import registered
from genailab_pyro.estimators.registry import Estimator
from genailab_pyro.estimators.rules import RULES
from genailab_pyro.nn import choose

USES = ("beta", "sub-sampling", "mixed rules", "hierarchy", "global latent", "discrete site")
"""What an estimator may be used with: a weight of the KL, sub-sampled plates, a rule of its own for a site, latents
that depend on latents, a latent outside the plate of the data, a discrete latent."""
_PATHS = {"discrete site": "enum"}
_WEIGHTED = {"mixed rules": "pathwise", "global latent": "pathwise"}


@dataclass(frozen=True)
class Row:
    """One row of the table of estimators.

    Args:
        estimator: The specification.
        needs: What the latent sites must offer.
        reference: Whose estimator it is.
        instead: For each use that it does not offer, the name of the estimator that does.
        stated: The objective whose gradient is estimated, where the specification does not tell.
    """

    estimator: Estimator
    needs: str
    reference: str
    instead: Mapping[str, str] = field(default_factory=dict)
    stated: str | None = None

    @property
    def objective(self) -> str:
        """The objective whose gradient is estimated."""
        if self.stated is not None:
            return self.stated
        name = self.estimator.objective.split(" (")[0]
        return f"{name} (biased)" if self.estimator.biased else name

    @property
    def latents(self) -> str:
        """What it is for: ``"continuous"`` latents, ``"discrete"`` ones (others beside them allowed), or ``"any"``."""
        rule = RULES[self.estimator.rule]
        if rule.required or rule.whole == "disarm":
            return "discrete"
        return "continuous" if "discrete site" in self.instead else "any"


_ROWS: dict[str, Row] = {
    "pathwise": Row(
        Estimator("pathwise"),
        "reparameterised draws",
        "Kingma & Welling 2014, doi:10.48550/arXiv.1312.6114",
        _PATHS,
    ),
    "pathwise-kl": Row(
        Estimator("pathwise", bound="elbo-kl"),
        "reparameterised draws, closed-form KL, top-down guide",
        "Kingma & Welling 2014, doi:10.48550/arXiv.1312.6114",
        _PATHS,
    ),
    "stl": Row(
        Estimator("stl"),
        "reparameterised draws",
        "Roeder, Wu & Duvenaud 2017, doi:10.48550/arXiv.1703.09194",
        _PATHS,
    ),
    "score": Row(
        Estimator("score"),
        "a log-probability",
        "Ranganath, Gerrish & Blei 2014, doi:10.48550/arXiv.1401.0118",
    ),
    "score-graph": Row(
        Estimator("score", credit="graph"),
        "a log-probability",
        "Schulman et al. 2015, doi:10.48550/arXiv.1506.05254",
    ),
    "score-graph-ema": Row(
        Estimator("score", credit="graph", baseline="cell-average"),
        "a log-probability",
        "Mnih & Gregor 2014, doi:10.48550/arXiv.1402.0030",
    ),
    "score-graph-nn": Row(
        Estimator("score", credit="graph", baseline="network"),
        "a log-probability, rows of data",
        "Mnih & Gregor 2014, doi:10.48550/arXiv.1402.0030",
    ),
    "score-loo": Row(
        Estimator("score", num_particles=8, baseline="leave-one-out"),
        "a log-probability",
        "Kool, van Hoof & Welling 2019; Mnih & Rezende 2016, doi:10.48550/arXiv.1602.06725",
    ),
    "score-kl": Row(
        Estimator("score", bound="elbo-kl"),
        "a log-probability, closed-form KL, top-down guide",
        "Ranganath, Gerrish & Blei 2014, doi:10.48550/arXiv.1401.0118",
    ),
    "iwae": Row(
        Estimator("pathwise", bound="importance-weighted", num_particles=8),
        "reparameterised draws",
        "Burda, Grosse & Salakhutdinov 2016, doi:10.48550/arXiv.1509.00519",
        {**_WEIGHTED, "discrete site": "vimco"},
    ),
    "dreg": Row(
        Estimator("dreg", bound="importance-weighted", num_particles=8),
        "reparameterised draws",
        "Tucker et al. 2019, doi:10.48550/arXiv.1810.04152",
        {**_WEIGHTED, "discrete site": "vimco"},
    ),
    "vimco": Row(
        Estimator("score", bound="importance-weighted", num_particles=8, baseline="leave-one-out"),
        "a log-probability",
        "Mnih & Rezende 2016, doi:10.48550/arXiv.1602.06725",
        {"mixed rules": "score-loo", "global latent": "score-loo"},
    ),
    "renyi": Row(
        Estimator("pathwise", bound="renyi", num_particles=8),
        "reparameterised draws",
        "Li & Turner 2016, doi:10.48550/arXiv.1602.02311",
        {**_WEIGHTED, "discrete site": "vimco"},
    ),
    "enum": Row(
        Estimator("enumerated", credit="graph"),
        "a discrete site whose values can be listed",
        "Titsias & Lazaro-Gredilla 2015, doi:10.48550/arXiv.1503.01494",
    ),
    "gumbel": Row(
        Estimator("gumbel"),
        "one-hot vectors or bits",
        "Maddison, Mnih & Teh 2017, doi:10.48550/arXiv.1611.00712",
    ),
    "st-gumbel": Row(
        Estimator("st-gumbel"),
        "one-hot vectors or bits",
        "Jang, Gu & Poole 2017, doi:10.48550/arXiv.1611.01144",
    ),
    "disarm": Row(
        Estimator("antithetic", num_particles=2),
        "one layer of bits",
        "Dong, Mnih & Tucker 2020, doi:10.48550/arXiv.2006.10680",
        {"mixed rules": "score-loo", "hierarchy": "score-loo"},
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
    estimator = name if isinstance(name, Estimator) else registered(_ROWS, name, "estimator").estimator
    return replace(estimator, **changes)


def register(
    name: str,
    estimator: Estimator,
    *,
    objective: str | None = None,
    needs: str = "",
    reference: str = "",
    instead: Mapping[str, str] | None = None,
) -> Estimator:
    """Add a row to the table of names.

    Args:
        name: The new name.
        estimator: What it stands for.
        objective: The objective whose gradient is estimated; None for that of its bound.
        needs: What the latent sites must offer; empty for what its rule needs.
        reference: Whose estimator it is.
        instead: For each of `USES` that it does not offer, the name of an estimator that does; a rule that needs a
            path offers no discrete site.

    Returns:
        The estimator.

    Raises:
        TypeError: If it is not an `Estimator`.
        ValueError: If the name is taken by another estimator.
    """
    if not isinstance(estimator, Estimator):
        raise TypeError(f"expected an Estimator, got {type(estimator).__name__}; such as glp.Estimator(rule='score')")
    rule = RULES[estimator.rule]
    offered = {**(_PATHS if rule.reparameterised and rule.otherwise is None else {}), **(instead or {})}
    row = Row(estimator, needs or rule.needs, reference, offered, objective)
    if name in _ROWS and _ROWS[name] != row:
        raise ValueError(f"expected a new name, {name!r} is {_ROWS[name].estimator}; choose another name")
    for use in row.instead:
        choose(dict.fromkeys(USES), use, "a use in instead")
    _ROWS[name] = row
    return estimator


def _parts(estimator: Estimator) -> dict[str, Any]:
    """All but the number of particles."""
    return {**asdict(estimator), "num_particles": None}


def name_of(estimator: Estimator) -> str:
    """The table's name of an estimator, with its particles where they are not the table's; else its parts.

    Example:
        >>> name_of(Estimator("score", baseline="constant"))
        'score-constant'
    """
    number = estimator.num_particles
    for name, row in _ROWS.items():
        if row.estimator == estimator:
            return name
    for name, row in _ROWS.items():
        if _parts(row.estimator) == _parts(estimator):
            return f"{name}-{number}"
    parts = [
        estimator.rule,
        estimator.bound if estimator.bound != "elbo" else None,
        estimator.credit if estimator.credit != "plates" else None,
        estimator.baseline,
        estimator.temperature,
        estimator.alpha,
        number if number > 1 else None,
    ]
    return "-".join(str(part) for part in parts if part is not None)


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
            "least_particles": row.estimator.least_particles,
            "objective": row.objective,
            "latents": row.latents,
            "needs": row.needs,
            "reference": row.reference,
        }
        for name, row in _ROWS.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")


def markdown(frame: pd.DataFrame) -> str:
    """A table of estimators in Markdown, its names as code."""
    head = ["name", *(str(column).replace("_", " ") for column in frame)]
    lines = [head, ["---"] * len(head)]
    lines += [
        [f"`{name}`", *(str(value) for value in row)] for name, row in zip(frame.index, frame.values, strict=True)
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def matrix() -> pd.DataFrame:
    """What each named estimator can be used with: ``"yes"``, or the estimator to use in its place.

    A use that is not offered is refused with an error that names the other estimator.

    Example:
        >>> matrix().loc["iwae", "global latent"]
        'no: pathwise'
    """
    rows = {
        name: {use: f"no: {row.instead[use]}" if use in row.instead else "yes" for use in USES}
        for name, row in _ROWS.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")
