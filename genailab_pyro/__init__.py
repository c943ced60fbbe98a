"""Variational autoencoders for gene-expression counts in Pyro: any model with any ELBO gradient estimator.

Example:
    >>> import genailab_pyro as glp
    >>> cells = glp.register(glp.data.pbmc68k(), labels="bulk_labels")
    >>> vae = glp.CVAE_NB.from_registration(cells, latent_dim=10)
    >>> fit = glp.fit(vae, cells, estimator="pathwise", max_epochs=2, progress=False)
    >>> fit.latent().shape
    (700, 10)
"""

from genailab_pyro import analysis, data, estimators, evaluation, experiments, plots, report
from genailab_pyro.__about__ import __version__
from genailab_pyro.data import Cells, Registration, preprocess, register
from genailab_pyro.estimators import Estimator, estimate
from genailab_pyro.evaluation import compare_models
from genailab_pyro.model import (
    CVAE,
    CVAE_NB,
    CVAE_ZINB,
    VAE,
    VAE_NB,
    VAE_ZINB,
    CellInverseDispersion,
    ConditionInverseDispersion,
    Encoder,
    FreeBits,
    GaussianLikelihood,
    GeneInverseDispersion,
    InverseDispersion,
    LatentLibrary,
    Likelihood,
    NegativeBinomialLikelihood,
    NormalEncoder,
    PairError,
    Prior,
    StandardNormal,
    VAE_Gaussian,
    ZeroInflatedNegativeBinomialLikelihood,
    check_pair,
)
from genailab_pyro.nn import MLP, Embedding, OneHot
from genailab_pyro.train import Diagnosis, Fit, Training, TrainingError, Warmup, fit, load, resume
from genailab_pyro.types import Minibatch

__all__ = [
    "CVAE",
    "CVAE_NB",
    "CVAE_ZINB",
    "MLP",
    "VAE",
    "VAE_NB",
    "VAE_ZINB",
    "CellInverseDispersion",
    "Cells",
    "ConditionInverseDispersion",
    "Diagnosis",
    "Embedding",
    "Encoder",
    "Estimator",
    "Fit",
    "FreeBits",
    "GaussianLikelihood",
    "GeneInverseDispersion",
    "InverseDispersion",
    "LatentLibrary",
    "Likelihood",
    "Minibatch",
    "NegativeBinomialLikelihood",
    "NormalEncoder",
    "OneHot",
    "PairError",
    "Prior",
    "Registration",
    "StandardNormal",
    "Training",
    "TrainingError",
    "VAE_Gaussian",
    "Warmup",
    "ZeroInflatedNegativeBinomialLikelihood",
    "__version__",
    "analysis",
    "check_pair",
    "compare_models",
    "data",
    "estimate",
    "estimators",
    "evaluation",
    "experiments",
    "fit",
    "load",
    "plots",
    "preprocess",
    "register",
    "report",
    "resume",
]
