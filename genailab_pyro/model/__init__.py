"""Models: priors, likelihoods, encoders, and the VAE that joins them into one Pyro model/guide pair."""

from genailab_pyro.model.check import PairError, check_pair
from genailab_pyro.model.encoders import Encoder, LatentLibrary, NormalEncoder
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
from genailab_pyro.model.penalties import FreeBits, Penalty
from genailab_pyro.model.priors import Prior, StandardNormal
from genailab_pyro.model.vae import CVAE, CVAE_NB, CVAE_ZINB, VAE, VAE_NB, VAE_ZINB, VAE_Gaussian

__all__ = [
    "CVAE",
    "CVAE_NB",
    "CVAE_ZINB",
    "VAE",
    "VAE_NB",
    "VAE_ZINB",
    "CellInverseDispersion",
    "ConditionInverseDispersion",
    "Encoder",
    "FreeBits",
    "GaussianLikelihood",
    "GeneInverseDispersion",
    "InverseDispersion",
    "LatentLibrary",
    "Likelihood",
    "NegativeBinomialLikelihood",
    "NormalEncoder",
    "PairError",
    "Penalty",
    "Prior",
    "StandardNormal",
    "VAE_Gaussian",
    "ZeroInflatedNegativeBinomialLikelihood",
    "check_pair",
]
