"""Gradient estimators: how a site is differentiated, what is bounded, which costs a score multiplies."""

from genailab_pyro.estimators.baselines import Baseline
from genailab_pyro.estimators.bounds import (
    TraceELBO,
    TraceEnumELBO,
    TraceGraphELBO,
    TraceMeanFieldELBO,
    WatchedELBO,
)
from genailab_pyro.estimators.credit import ScoreSite
from genailab_pyro.estimators.named import USES, get, markdown, matrix, name_of, register, table
from genailab_pyro.estimators.programs import Handled, estimate
from genailab_pyro.estimators.registry import Estimator, register_baseline, register_rule
from genailab_pyro.estimators.rules import Estimated, EstimatorError, Pathwise, Rule, Score, closed_form_kl
from genailab_pyro.estimators.weighted import WeightedELBO

__all__ = [
    "USES",
    "Baseline",
    "Estimated",
    "Estimator",
    "EstimatorError",
    "Handled",
    "Pathwise",
    "Rule",
    "Score",
    "ScoreSite",
    "TraceELBO",
    "TraceEnumELBO",
    "TraceGraphELBO",
    "TraceMeanFieldELBO",
    "WatchedELBO",
    "WeightedELBO",
    "closed_form_kl",
    "estimate",
    "get",
    "markdown",
    "matrix",
    "name_of",
    "register",
    "register_baseline",
    "register_rule",
    "table",
]
