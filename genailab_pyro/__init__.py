"""Variational autoencoders for gene-expression counts in Pyro: any model with any ELBO gradient estimator.

Example:
    >>> import genailab_pyro as glp
    >>> cells = glp.register(glp.data.pbmc68k(), labels="bulk_labels")
    >>> vae = glp.CVAE_NB.from_registration(cells, latent_dim=10)
    >>> fit = glp.fit(vae, cells, estimator="pathwise", max_epochs=2, progress=False)
    >>> fit.latent().shape
    (700, 10)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from genailab_pyro.__about__ import __version__

if TYPE_CHECKING:
    from genailab_pyro import analysis, data, estimators, evaluation, experiments, nn, plots, report
    from genailab_pyro.data import Cells, Registration, preprocess, register
    from genailab_pyro.estimators import Estimator, estimate
    from genailab_pyro.evaluation import (
        compare_models,
        to_inference_data,
    )
    from genailab_pyro.experiments import EstimatorComparison, compare_estimators
    from genailab_pyro.experiments.race import Race, race
    from genailab_pyro.model import (
        CVAE,
        CVAE_NB,
        CVAE_ZINB,
        VAE,
        VAE_NB,
        VAE_ZINB,
        AdversarialTotalCorrelation,
        AnnotationHead,
        BernoulliEncoder,
        BernoulliLikelihood,
        BernoulliVAE,
        Bits,
        CellInverseDispersion,
        CompositionError,
        ConditionAdversary,
        ConditionInverseDispersion,
        DependentNormal,
        Encoder,
        FlowEncoder,
        FlowPrior,
        FreeBits,
        FullRankEncoder,
        GaussianLikelihood,
        GeneInverseDispersion,
        GlobalLatents,
        Head,
        HierarchicalVAE,
        InverseDispersion,
        LabelHead,
        LabelVAE,
        LatentLibrary,
        Likelihood,
        LinearDecoder,
        LogNormalPoissonLikelihood,
        LowRankEncoder,
        MixtureLikelihood,
        MixtureOfNormals,
        NegativeBinomialLikelihood,
        NormalEncoder,
        PairError,
        PoissonLikelihood,
        Prior,
        SemiSupervisedVAE,
        StandardNormal,
        StudentT,
        TotalCorrelation,
        TrunkEncoder,
        Upper,
        UpperLabel,
        UpperNormal,
        VAE_Gaussian,
        ValueHead,
        VampPrior,
        ZeroInflatedNegativeBinomialLikelihood,
        check_composition,
        check_pair,
        loadings,
    )
    from genailab_pyro.nn import MLP, Embedding, OneHot
    from genailab_pyro.train import Diagnosis, Fit, Training, Warmup, load
    from genailab_pyro.train.fit import TrainingError, fit, resume
    from genailab_pyro.types import Minibatch

# Torch and scanpy take seconds to import: the names below are found when they are first asked for.
_HOMES = {
    "data": (
        "Cells",
        "Registration",
        "preprocess",
        "register",
    ),
    "estimators": (
        "Estimator",
        "estimate",
    ),
    "evaluation": (
        "compare_models",
        "to_inference_data",
    ),
    "experiments": ("EstimatorComparison", "compare_estimators"),
    "experiments.race": ("Race", "race"),
    "model": (
        "AdversarialTotalCorrelation",
        "AnnotationHead",
        "BernoulliEncoder",
        "BernoulliLikelihood",
        "BernoulliVAE",
        "Bits",
        "CVAE",
        "CVAE_NB",
        "CVAE_ZINB",
        "CellInverseDispersion",
        "CompositionError",
        "ConditionAdversary",
        "ConditionInverseDispersion",
        "DependentNormal",
        "Encoder",
        "FlowEncoder",
        "FlowPrior",
        "FreeBits",
        "FullRankEncoder",
        "GaussianLikelihood",
        "GeneInverseDispersion",
        "GlobalLatents",
        "Head",
        "HierarchicalVAE",
        "InverseDispersion",
        "LabelHead",
        "LabelVAE",
        "LatentLibrary",
        "Likelihood",
        "LinearDecoder",
        "LogNormalPoissonLikelihood",
        "LowRankEncoder",
        "MixtureLikelihood",
        "MixtureOfNormals",
        "NegativeBinomialLikelihood",
        "NormalEncoder",
        "PairError",
        "PoissonLikelihood",
        "Prior",
        "SemiSupervisedVAE",
        "StandardNormal",
        "StudentT",
        "TotalCorrelation",
        "TrunkEncoder",
        "Upper",
        "UpperLabel",
        "UpperNormal",
        "VAE",
        "VAE_Gaussian",
        "VAE_NB",
        "VAE_ZINB",
        "ValueHead",
        "VampPrior",
        "ZeroInflatedNegativeBinomialLikelihood",
        "check_composition",
        "check_pair",
        "loadings",
    ),
    "nn": (
        "MLP",
        "Embedding",
        "OneHot",
    ),
    "train": ("Diagnosis", "Fit", "Training", "Warmup", "load"),
    "train.fit": ("TrainingError", "fit", "resume"),
    "types": ("Minibatch",),
}
_PACKAGES = ("analysis", "data", "estimators", "evaluation", "experiments", "nn", "plots", "report")
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CVAE",
    "CVAE_NB",
    "CVAE_ZINB",
    "MLP",
    "VAE",
    "VAE_NB",
    "VAE_ZINB",
    "AdversarialTotalCorrelation",
    "AnnotationHead",
    "BernoulliEncoder",
    "BernoulliLikelihood",
    "BernoulliVAE",
    "Bits",
    "CellInverseDispersion",
    "Cells",
    "CompositionError",
    "ConditionAdversary",
    "ConditionInverseDispersion",
    "DependentNormal",
    "Diagnosis",
    "Embedding",
    "Encoder",
    "Estimator",
    "EstimatorComparison",
    "Fit",
    "FlowEncoder",
    "FlowPrior",
    "FreeBits",
    "FullRankEncoder",
    "GaussianLikelihood",
    "GeneInverseDispersion",
    "GlobalLatents",
    "Head",
    "HierarchicalVAE",
    "InverseDispersion",
    "LabelHead",
    "LabelVAE",
    "LatentLibrary",
    "Likelihood",
    "LinearDecoder",
    "LogNormalPoissonLikelihood",
    "LowRankEncoder",
    "Minibatch",
    "MixtureLikelihood",
    "MixtureOfNormals",
    "NegativeBinomialLikelihood",
    "NormalEncoder",
    "OneHot",
    "PairError",
    "PoissonLikelihood",
    "Prior",
    "Race",
    "Registration",
    "SemiSupervisedVAE",
    "StandardNormal",
    "StudentT",
    "TotalCorrelation",
    "Training",
    "TrainingError",
    "TrunkEncoder",
    "Upper",
    "UpperLabel",
    "UpperNormal",
    "VAE_Gaussian",
    "ValueHead",
    "VampPrior",
    "Warmup",
    "ZeroInflatedNegativeBinomialLikelihood",
    "__version__",
    "analysis",
    "check_composition",
    "check_pair",
    "compare_estimators",
    "compare_models",
    "data",
    "estimate",
    "estimators",
    "evaluation",
    "experiments",
    "fit",
    "load",
    "loadings",
    "nn",
    "plots",
    "preprocess",
    "race",
    "register",
    "report",
    "resume",
    "to_inference_data",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"genailab_pyro.{name}")
    if name in _HOME:
        return getattr(import_module(f"genailab_pyro.{_HOME[name]}"), name)
    raise AttributeError(f"module 'genailab_pyro' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
