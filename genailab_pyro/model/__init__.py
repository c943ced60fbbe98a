"""Models: priors, likelihoods, encoders, and the VAE that joins them into one Pyro model/guide pair."""

from genailab_pyro.model.adversary import ConditionAdversary
from genailab_pyro.model.alignment import LatentAlignment
from genailab_pyro.model.answers import CompositionError
from genailab_pyro.model.check import PairError, check_pair
from genailab_pyro.model.composition import check_composition
from genailab_pyro.model.count_likelihoods import (
    BernoulliLikelihood,
    LogNormalPoissonLikelihood,
    MixtureLikelihood,
    PoissonLikelihood,
)
from genailab_pyro.model.decoders import LinearDecoder, loadings
from genailab_pyro.model.encoders import (
    BernoulliEncoder,
    Encoder,
    FullRankEncoder,
    LatentLibrary,
    LowRankEncoder,
    NormalEncoder,
    TrunkEncoder,
)
from genailab_pyro.model.flows import FlowEncoder, FlowPrior
from genailab_pyro.model.globals import GlobalLatents
from genailab_pyro.model.heads import AnnotationHead, Head, LabelHead, ValueHead
from genailab_pyro.model.likelihoods import (
    CellInverseDispersion,
    ConditionInverseDispersion,
    GaussianLikelihood,
    GeneInverseDispersion,
    InverseDispersion,
    Likelihood,
    NegativeBinomialLikelihood,
    ZeroInflatedNegativeBinomialLikelihood,
)
from genailab_pyro.model.penalties import AdversarialTotalCorrelation, FreeBits, Penalty, TotalCorrelation
from genailab_pyro.model.perturbation_vae import EffectDecoder, PerturbationVAE
from genailab_pyro.model.perturbations import HillCurve, LogCurve, PerturbationEncoding
from genailab_pyro.model.priors import (
    Bits,
    DependentNormal,
    MixtureOfNormals,
    Prior,
    StandardNormal,
    StudentT,
    VampPrior,
)
from genailab_pyro.model.structured import BernoulliVAE, HierarchicalVAE, LabelVAE, SemiSupervisedVAE
from genailab_pyro.model.upper import Upper, UpperLabel, UpperNormal
from genailab_pyro.model.vae import CVAE, CVAE_NB, CVAE_ZINB, VAE, VAE_NB, VAE_ZINB, VAE_Gaussian

__all__ = [
    "CVAE",
    "CVAE_NB",
    "CVAE_ZINB",
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
    "CompositionError",
    "ConditionAdversary",
    "ConditionInverseDispersion",
    "DependentNormal",
    "EffectDecoder",
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
    "HillCurve",
    "InverseDispersion",
    "LabelHead",
    "LabelVAE",
    "LatentAlignment",
    "LatentLibrary",
    "Likelihood",
    "LinearDecoder",
    "LogCurve",
    "LogNormalPoissonLikelihood",
    "LowRankEncoder",
    "MixtureLikelihood",
    "MixtureOfNormals",
    "NegativeBinomialLikelihood",
    "NormalEncoder",
    "PairError",
    "Penalty",
    "PerturbationEncoding",
    "PerturbationVAE",
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
    "VAE_Gaussian",
    "ValueHead",
    "VampPrior",
    "ZeroInflatedNegativeBinomialLikelihood",
    "check_composition",
    "check_pair",
    "loadings",
]
