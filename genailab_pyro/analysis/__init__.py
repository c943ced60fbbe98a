"""Functions of a fit and its cells, from AnnData to AnnData."""

from genailab_pyro.analysis.annotate import annotate, umap
from genailab_pyro.analysis.classify import calibrate, label_probabilities, predict_labels
from genailab_pyro.analysis.differential import differential_expression, markers
from genailab_pyro.analysis.discover import ClusterStability, cluster_stability, discover, latent_sd, novelty

__all__ = [
    "ClusterStability",
    "annotate",
    "calibrate",
    "cluster_stability",
    "differential_expression",
    "discover",
    "label_probabilities",
    "latent_sd",
    "markers",
    "novelty",
    "predict_labels",
    "umap",
]
