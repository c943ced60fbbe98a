"""Functions of a fit and its cells, from AnnData to AnnData."""

from genailab_pyro.analysis.annotate import annotate, umap
from genailab_pyro.analysis.classify import calibrate, label_probabilities, predict_labels

__all__ = ["annotate", "calibrate", "label_probabilities", "predict_labels", "umap"]
