"""Count distributions declared by the logarithm of their mean."""

from genailab_pyro.distributions.log_normal_poisson import LogNormalPoisson
from genailab_pyro.distributions.negative_binomial import NegativeBinomial
from genailab_pyro.distributions.zero_inflated import ZeroInflatedNegativeBinomial

__all__ = ["LogNormalPoisson", "NegativeBinomial", "ZeroInflatedNegativeBinomial"]
