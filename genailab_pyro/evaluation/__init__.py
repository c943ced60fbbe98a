"""Scores: held-out likelihood, agreement with labels, mixing of batches, predictive checks of genes."""

from genailab_pyro.evaluation.clusters import LabelAgreement, batch_excess, label_agreement
from genailab_pyro.evaluation.genes import GeneStatistics
from genailab_pyro.evaluation.heldout import Estimate, compare_models

__all__ = ["Estimate", "GeneStatistics", "LabelAgreement", "batch_excess", "compare_models", "label_agreement"]
