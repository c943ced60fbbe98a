"""Functions of a fit and its cells, from AnnData to AnnData."""

from genailab_pyro.analysis.annotate import annotate, umap
from genailab_pyro.analysis.augment import augment
from genailab_pyro.analysis.causal import contrast, overlap
from genailab_pyro.analysis.classify import calibrate, label_probabilities, predict_labels
from genailab_pyro.analysis.differential import differential_expression, markers
from genailab_pyro.analysis.discover import ClusterStability, cluster_stability, discover, latent_sd, novelty
from genailab_pyro.analysis.integrate import integrate, map_batch
from genailab_pyro.analysis.perturb import dose_response, latent_invariance, library_response, predict

__all__ = [
    "ClusterStability",
    "annotate",
    "augment",
    "calibrate",
    "cluster_stability",
    "contrast",
    "differential_expression",
    "discover",
    "dose_response",
    "integrate",
    "label_probabilities",
    "latent_invariance",
    "latent_sd",
    "library_response",
    "map_batch",
    "markers",
    "novelty",
    "overlap",
    "predict",
    "predict_labels",
    "umap",
]
