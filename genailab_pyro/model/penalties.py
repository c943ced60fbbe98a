"""Terms that are added to the bound in training: ``penalty(minibatch, guide_trace, model_trace)``, in nats per cell."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Independent

from genailab_pyro.estimators import closed_form_kl
from genailab_pyro.types import Minibatch


class Penalty(Protocol):
    """A term added to the negative bound; it needs draws that carry a path to the guide's parameters."""

    def __call__(self, minibatch: Minibatch, guide_trace: Trace, model_trace: Trace) -> Float[Tensor, ""]:
        """The penalty of a minibatch, in nats per cell."""


def kl_per_latent(guide_trace: Trace, model_trace: Trace, site: str = "z") -> Float[Tensor, "*particles cells latent"]:
    """Closed-form KL between guide and prior for each latent of a site with independent latents, in nats.

    Raises:
        NotImplementedError: If this pair of distributions has no closed form, or its latents are not independent.
    """
    guide_fn, model_fn = (_latents(trace.nodes[site]["fn"]) for trace in (guide_trace, model_trace))
    return closed_form_kl(guide_fn, model_fn)


def _latents(fn: Any) -> torch.distributions.Distribution:
    fn = getattr(fn, "base", fn)
    if not isinstance(fn, Independent):
        raise NotImplementedError(f"the KL of a {type(fn).__name__} does not split into latents")
    return fn.base_dist


@dataclass(frozen=True)
class FreeBits:
    """No reward for a latent whose mean KL falls below a floor: the sum over latents of max(0, floor - KL).

    Added to the KL itself it gives max(floor, KL) for each latent, with the KL averaged over the minibatch. While a
    warm-up holds the weight of the KL below one, the sum pulls latents below the floor up to it.

    Args:
        floor: In nats per latent.
        site: The latent site.

    References:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling (2016). Improved variational inference with inverse
        autoregressive flow. doi:10.48550/arXiv.1606.04934
    """

    floor: float
    site: str = "z"

    def __call__(self, minibatch: Minibatch, guide_trace: Trace, model_trace: Trace) -> Float[Tensor, ""]:
        """The penalty of a minibatch, in nats per cell."""
        kl = kl_per_latent(guide_trace, model_trace, self.site)
        return (self.floor - kl.flatten(0, -2).mean(0)).clamp(min=0).sum()
