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
from genailab_pyro.evaluation.generation import (
    correlation_preservation,
    fidelity,
    gene_agreement,
    pathway_concordance,
    transfer_accuracy,
    two_sample_auc,
)
from genailab_pyro.evaluation.genes import GeneStatistics
from genailab_pyro.evaluation.heldout import Estimate, compare_models
from genailab_pyro.evaluation.inference_data import compare_elpd, gene_checks, held_out_elpd, to_inference_data
from genailab_pyro.evaluation.integration import (
    IntegrationScores,
    batch_silhouette,
    batch_variance_removed,
    graph_connectivity,
    integration_scores,
    lisi,
    scib_scores,
)
from genailab_pyro.evaluation.perturbation import (
    PerturbationScores,
    discrimination,
    log_normalise,
    pearson_of_shift,
    perturbation_table,
    r2_of_shift,
    score_perturbation,
)
from genailab_pyro.evaluation.references import (
    REFERENCES,
    PerturbationTask,
    predict_references,
    score_references,
)
from genailab_pyro.evaluation.traversals import traverse
from genailab_pyro.evaluation.two_samples import (
    de_direction_match,
    de_overlap,
    de_spearman,
    energy_distance,
    maximum_mean_discrepancy,
    r2_of_means,
    rank_sum_test,
    rmse_of_means,
)

__all__ = [
    "DCI",
    "REFERENCES",
    "Estimate",
    "GeneStatistics",
    "IntegrationScores",
    "LabelAgreement",
    "PerturbationScores",
    "PerturbationTask",
    "amortisation_gap",
    "batch_excess",
    "batch_silhouette",
    "batch_variance_removed",
    "compare_elpd",
    "compare_models",
    "correlation_preservation",
    "dci",
    "de_direction_match",
    "de_overlap",
    "de_spearman",
    "denoising_scores",
    "discrimination",
    "disentanglement",
    "energy_distance",
    "fidelity",
    "gene_agreement",
    "gene_checks",
    "graph_connectivity",
    "held_out_elpd",
    "integration_scores",
    "interval_coverage",
    "label_agreement",
    "lisi",
    "log_normalise",
    "maximum_mean_discrepancy",
    "mutual_information_gap",
    "pathway_concordance",
    "pearson_of_shift",
    "perturbation_table",
    "poisson_log_likelihood",
    "predict_references",
    "r2_of_means",
    "r2_of_shift",
    "rank_sum_test",
    "reference_shares",
    "rmse_of_means",
    "scib_scores",
    "score_perturbation",
    "score_references",
    "separated_attribute_predictability",
    "to_inference_data",
    "transfer_accuracy",
    "traverse",
    "two_sample_auc",
]
