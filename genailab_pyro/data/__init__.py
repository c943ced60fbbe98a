"""Counts: where they come from, what they mean, and how they reach a model."""

from genailab_pyro.data.cells import Cells
from genailab_pyro.data.confounding import confound
from genailab_pyro.data.datasets import pbmc3k, pbmc68k
from genailab_pyro.data.download import DownloadError, cache_folder, download
from genailab_pyro.data.preprocess import preprocess
from genailab_pyro.data.registration import Registration, register
from genailab_pyro.data.simulate import (
    CellTypes,
    CountNoise,
    Doses,
    Hill,
    LibrarySizes,
    LogLinear,
    Perturbations,
    Simulation,
    simulate,
)
from genailab_pyro.data.thinning import thin
from genailab_pyro.data.truth import Truth

__all__ = [
    "CellTypes",
    "Cells",
    "CountNoise",
    "Doses",
    "DownloadError",
    "Hill",
    "LibrarySizes",
    "LogLinear",
    "Perturbations",
    "Registration",
    "Simulation",
    "Truth",
    "cache_folder",
    "confound",
    "download",
    "pbmc3k",
    "pbmc68k",
    "preprocess",
    "register",
    "simulate",
    "thin",
]
