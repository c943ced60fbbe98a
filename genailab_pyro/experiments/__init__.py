"""Experiments on estimators: gradients at frozen parameters, and training runs side by side."""

from genailab_pyro.experiments.compare import compare_estimators
from genailab_pyro.experiments.comparison import EstimatorComparison
from genailab_pyro.experiments.gradients import GradientDraws, draw_gradients

__all__ = ["EstimatorComparison", "GradientDraws", "compare_estimators", "draw_gradients"]
