"""Figures from arrays and tables; nothing here knows of models or of data classes."""

from genailab_pyro.plots.comparison import gradient_histograms, race_curves, signal_to_noise, variance_against_cost
from genailab_pyro.plots.contrasts import contrasts
from genailab_pyro.plots.counts import mean_variance, zero_fraction
from genailab_pyro.plots.differential import lfc_against_truth, lfc_intervals, volcano
from genailab_pyro.plots.discover import novelty_histogram, stability_heatmap
from genailab_pyro.plots.dose_response import dose_response
from genailab_pyro.plots.embedding import embedding
from genailab_pyro.plots.estimates import estimates
from genailab_pyro.plots.gradients import gradient_scatter, gradient_variances
from genailab_pyro.plots.integration import mixing_against_purity
from genailab_pyro.plots.labels import calibration_curve, confusion_matrix
from genailab_pyro.plots.latents import kl_per_latent
from genailab_pyro.plots.perturbation import method_scores, shift_scatter
from genailab_pyro.plots.training import compare_curves, training_curves
from genailab_pyro.plots.traversals import traversals

__all__ = [
    "calibration_curve",
    "compare_curves",
    "confusion_matrix",
    "contrasts",
    "dose_response",
    "embedding",
    "estimates",
    "gradient_histograms",
    "gradient_scatter",
    "gradient_variances",
    "kl_per_latent",
    "lfc_against_truth",
    "lfc_intervals",
    "mean_variance",
    "method_scores",
    "mixing_against_purity",
    "novelty_histogram",
    "race_curves",
    "shift_scatter",
    "signal_to_noise",
    "stability_heatmap",
    "training_curves",
    "traversals",
    "variance_against_cost",
    "volcano",
    "zero_fraction",
]
