"""Experiments on estimators: gradients at frozen parameters."""

from genailab_pyro.experiments.gradients import GradientDraws, draw_gradients

__all__ = ["GradientDraws", "draw_gradients"]
