"""Count distributions declared by their log mean and log inverse dispersion."""

from genailab_pyro.distributions.negative_binomial import NegativeBinomial
from genailab_pyro.distributions.zero_inflated import ZeroInflatedNegativeBinomial

__all__ = ["NegativeBinomial", "ZeroInflatedNegativeBinomial"]
