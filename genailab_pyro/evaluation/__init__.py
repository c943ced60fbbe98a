"""Scores: held-out likelihood, agreement with labels, mixing of batches, checks of genes, disentanglement."""

from genailab_pyro.evaluation.amortisation import amortisation_gap
from genailab_pyro.evaluation.clusters import LabelAgreement, batch_excess, label_agreement
from genailab_pyro.evaluation.denoising import (
    denoising_scores,
    interval_coverage,
    poisson_log_likelihood,
    reference_shares,
)
from genailab_pyro.evaluation.disentanglement import (
    DCI,
    dci,
    disentanglement,
    mutual_information_gap,
    separated_attribute_predictability,
)
from genailab_pyro.evaluation.genes import GeneStatistics
from genailab_pyro.evaluation.heldout import Estimate, compare_models
from genailab_pyro.evaluation.inference_data import compare_elpd, gene_checks, held_out_elpd, to_inference_data
from genailab_pyro.evaluation.traversals import traverse

__all__ = [
    "DCI",
    "Estimate",
    "GeneStatistics",
    "LabelAgreement",
    "amortisation_gap",
    "batch_excess",
    "compare_elpd",
    "compare_models",
    "dci",
    "denoising_scores",
    "disentanglement",
    "gene_checks",
    "held_out_elpd",
    "interval_coverage",
    "label_agreement",
    "mutual_information_gap",
    "poisson_log_likelihood",
    "reference_shares",
    "separated_attribute_predictability",
    "to_inference_data",
    "traverse",
]
