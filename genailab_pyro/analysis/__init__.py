"""Functions of a fit and its cells, from AnnData to AnnData."""

from genailab_pyro.analysis.annotate import annotate, umap

__all__ = ["annotate", "umap"]
