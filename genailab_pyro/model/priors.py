"""Priors of the latent: a distribution of event shape ``[latent]`` given the condition."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from genailab_pyro.model.encoders import Encoder
from genailab_pyro.nn import Declared
from genailab_pyro.types import Counts, Minibatch

UNIT_SCALE = 0.54  # what softplus turns into one


class Prior(Declared):
    """Base of the priors: ``prior(condition)`` is a Pyro distribution of event shape ``[latent]``."""

    def forward(self, condition: Float[Tensor, "cells condition"]) -> Any:
        """The distribution of the latent of each cell."""
        raise NotImplementedError

    def initialise(self, minibatch: Minibatch) -> None:
        """Move the parameters near the data before training, from a sample of cells."""


class StandardNormal(Prior):
    """Independent standard normal latents, whatever the condition.

    Args:
        latent_dim: Number of latents.

    Example:
        >>> StandardNormal(10)(torch.zeros(3, 0)).event_shape
        torch.Size([10])
    """

    zero: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"expected latent_dim to be at least one, got {latent_dim}")
        self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)

    def forward(self, condition: Float[Tensor, "cells condition"]) -> Any:
        """The same distribution for every cell; the plate expands it."""
        return dist.Normal(self.zero, torch.ones_like(self.zero)).to_event(1)


class DependentNormal(Prior):
    """Normal latents whose location and scale depend on what is above them: conditions, an upper latent, or both.

    Args:
        context_dim: Width of what they depend on.
        latent_dim: Number of latents.

    Example:
        >>> DependentNormal(3, 10)(torch.eye(3)).event_shape
        torch.Size([10])
    """

    def __init__(self, context_dim: int, latent_dim: int) -> None:
        super().__init__()
        if context_dim < 1 or latent_dim < 1:
            raise ValueError(f"expected widths of at least one, got {context_dim} and {latent_dim}")
        self.loc = nn.Linear(context_dim, latent_dim)
        self.scale = nn.Linear(context_dim, latent_dim)
        nn.init.zeros_(self.scale.weight)
        nn.init.constant_(self.scale.bias, UNIT_SCALE)

    def forward(self, condition: Float[Tensor, "*cells condition"]) -> Any:
        """One distribution per cell; the scale is above 1e-3."""
        return dist.Normal(self.loc(condition), softplus(self.scale(condition)) + 1e-3).to_event(1)


class Bits(Prior):
    """Independent latent bits with learned probabilities, whatever the condition.

    Args:
        latent_dim: Number of bits.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(latent_dim))

    def forward(self, condition: Float[Tensor, "cells condition"]) -> Any:
        """The same distribution for every cell; the plate expands it."""
        return dist.Bernoulli(logits=self.logits).to_event(1)


class StudentT(Prior):
    """Independent latents with heavier tails than the normal's: Student's t of location zero and scale one.

    Its density falls like ``|z|^-(degrees + 1)``, so that a few cells far from all others cost little. The degrees of
    freedom are fixed: what they would learn of a few far cells is soon learned by heart.

    Args:
        latent_dim: Number of latents.
        degrees: Degrees of freedom, above zero; the mean exists above one, the variance above two.

    Raises:
        ValueError: If there is no latent, or the degrees are not above zero.

    Example:
        >>> StudentT(10)(torch.zeros(3, 0)).event_shape
        torch.Size([10])
    """

    zero: Tensor

    def __init__(self, latent_dim: int, degrees: float = 5.0) -> None:
        super().__init__()
        _check_widths(latent_dim=latent_dim)
        if not degrees > 0:
            raise ValueError(f"expected degrees of freedom above zero, got {degrees!r}; 5 has somewhat heavy tails")
        self.degrees = degrees
        self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)

    def forward(self, condition: Float[Tensor, "cells condition"]) -> Any:
        """The same distribution for every cell; the plate expands it."""
        one = torch.ones_like(self.zero)
        return dist.StudentT(self.degrees * one, self.zero, one).to_event(1)


class MixtureOfNormals(Prior):
    """A mixture of diagonal normals with learned weights, locations and scales, whatever the condition.

    The density is ``sum_k w_k prod_d N(z_d | loc_kd, scale_kd)``. The locations start as standard normal draws from the
    caller's random state, the scales at one and the weights equal.

    Args:
        latent_dim: Number of latents.
        num_components: Number of normals.

    Raises:
        ValueError: If there is no latent or no component.

    Example:
        >>> MixtureOfNormals(10, num_components=4)(torch.zeros(3, 0)).component_distribution.batch_shape
        torch.Size([4])
    """

    def __init__(self, latent_dim: int, num_components: int = 10) -> None:
        super().__init__()
        _check_widths(latent_dim=latent_dim, num_components=num_components)
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.loc = nn.Parameter(torch.randn(num_components, latent_dim))
        self.scale = nn.Parameter(torch.full((num_components, latent_dim), UNIT_SCALE))

    def forward(self, condition: Float[Tensor, "cells condition"]) -> Any:
        """The same distribution for every cell, without reparameterised draws; scales are above 1e-2."""
        components = dist.Normal(self.loc, softplus(self.scale) + 1e-2).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), components)


class VampPrior(Prior):
    """The mean of the encoder's posteriors at learned pseudo-inputs, whatever the condition.

    The density is ``1/K sum_k q(z | u_k)``, in which ``u_k`` are pseudo-inputs: positive counts whose ``log1p``, which
    is what an encoder reads, is the softplus of a parameter. The encoder learns through the prior, too.

    At the pseudo-inputs the encoder is always in evaluation mode, in training as well: without dropout, which would
    make the density another one at each call, and with the running statistics of a batch norm, which pseudo-inputs
    must not change.

    Args:
        encoder: The encoder of the VAE that the prior is of: the same module, so that its weights are shared.
        genes: Number of genes.
        num_components: Number of pseudo-inputs.
        total: Total count of a pseudo-input at the start, spread over the genes by draws from the caller's random
            state. `initialise` puts cells in their place.

    Raises:
        ValueError: If a width is below one, the total is not above zero, or the encoder reads a condition or an upper
            latent, of which pseudo-inputs have none.

    References:
        Tomczak, Welling (2018). VAE with a VampPrior. doi:10.48550/arXiv.1705.07120

    Example:
        >>> from genailab_pyro.model.encoders import NormalEncoder
        >>> VampPrior(NormalEncoder(5, 2, [8]), genes=5, num_components=4)(torch.zeros(3, 0)).event_shape
        torch.Size([2])
    """

    def __init__(self, encoder: Encoder, genes: int, num_components: int = 20, *, total: float = 1000.0) -> None:
        super().__init__()
        _check_widths(genes=genes, num_components=num_components)
        if not total > 0:
            raise ValueError(f"expected a total count above zero for the pseudo-inputs, got {total!r}")
        upper = getattr(encoder, "reads_upper", False)
        if upper or getattr(getattr(encoder, "condition", None), "output_dim", 0):
            raise ValueError(
                f"expected an encoder that reads counts alone for a VampPrior, got {type(encoder).__name__} that reads "
                f"{'an upper latent' if upper else 'a condition'}, of which pseudo-inputs have none; declare it "
                "without, or use MixtureOfNormals"
            )
        self.encoder = encoder
        spread = torch.randn(num_components, genes).exp()
        self.pseudo_inputs = nn.Parameter(_unconstrained(total * spread / spread.sum(-1, keepdim=True)))

    def counts(self) -> Float[Tensor, "components genes"]:
        """The pseudo-inputs, in counts."""
        return torch.expm1(softplus(self.pseudo_inputs))

    def initialise(self, minibatch: Minibatch) -> None:
        """Put randomly chosen cells in the place of the pseudo-inputs, repeated where there are too few of them."""
        if minibatch.counts is None:
            return
        rows = torch.randperm(minibatch.size)[torch.arange(len(self.pseudo_inputs)) % minibatch.size]
        with torch.no_grad():
            self.pseudo_inputs.copy_(_unconstrained(minibatch.counts[rows.to(minibatch.counts.device)]))

    def forward(self, condition: Float[Tensor, "cells condition"]) -> Any:
        """The same distribution for every cell, without reparameterised draws."""
        counts = self.counts()
        none, number = counts.new_zeros(len(counts), 0), len(counts)
        cells = Minibatch(counts, none.long(), none, counts.sum(-1), torch.arange(number, device=counts.device), number)
        with _evaluated(self.encoder):
            posteriors = self.encoder(cells)
        return dist.MixtureSameFamily(dist.Categorical(logits=counts.new_zeros(number)), posteriors)


def _unconstrained(counts: Counts) -> Counts:
    """The parameter of pseudo-inputs near some counts; a count of zero becomes one of a tenth, which can still move."""
    log_counts = counts.clamp(min=0.1).log1p()
    return log_counts + (-torch.expm1(-log_counts)).log()


@contextlib.contextmanager
def _evaluated(module: nn.Module) -> Iterator[None]:
    """A module in evaluation mode, and each of its parts in its own mode again afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _check_widths(**widths: int) -> None:
    if min(widths.values()) < 1:
        found = ", ".join(f"{name}={width}" for name, width in widths.items())
        raise ValueError(f"expected widths of at least one, got {found}")
