"""Self-contained reports, and the cards of trained models."""

from genailab_pyro.plots.numbers import plus_minus, readable
from genailab_pyro.report.card import model_card
from genailab_pyro.report.html import Report

__all__ = ["Report", "model_card", "plus_minus", "readable"]
