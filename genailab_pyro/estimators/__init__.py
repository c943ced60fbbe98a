"""Gradient estimators: how a site is differentiated, what is bounded, which costs a score multiplies."""

from genailab_pyro.estimators.bounds import TraceELBO, TraceGraphELBO, TraceMeanFieldELBO, WatchedELBO
from genailab_pyro.estimators.registry import Estimator, get, name_of, register, table
from genailab_pyro.estimators.rules import Estimated, Handled, Rule, estimate

__all__ = [
    "Estimated",
    "Estimator",
    "Handled",
    "Rule",
    "TraceELBO",
    "TraceGraphELBO",
    "TraceMeanFieldELBO",
    "WatchedELBO",
    "estimate",
    "get",
    "name_of",
    "register",
    "table",
]
