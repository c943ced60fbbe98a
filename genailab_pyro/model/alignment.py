"""The penalty that keeps a perturbation out of the latent, so that a counterfactual has the whole of its effect."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from pyro.poutine import Trace
from torch import Tensor

from genailab_pyro.types import Minibatch


@dataclass(frozen=True)
class LatentAlignment:
    r"""A penalty that makes the latent of a cell tell nothing of its perturbation within its context.

    A counterfactual decodes the latent of a control cell beside a perturbation. Where perturbed cells of the same
    context have other latents, part of the perturbation's effect is in z, and the counterfactual lacks it. The penalty
    is ``weight`` times the squared maximum mean discrepancy between the draws of each level and those of the other
    cells of its context,

    .. math:: \mathrm{MMD}^2 = E\,k(z, z') + E\,k(y, y') - 2 E\,k(z, y),

    without bias, in the mean over contexts and levels by their number of cells. The kernel is the mean of Gaussian ones
    whose length scales are 1/2, 1, 2 and 4 times the square root of the number of latents: the distance of draws from a
    standard normal prior is of that order. Raise the weight until
    `genailab_pyro.analysis.perturb.latent_invariance` is at chance.

    The encoder must see the perturbation, as it does by default, to take it out of z. The contexts should be what else
    the cells differ by, such as their type: without them, a perturbation given to other types would be taken for its
    effect.

    Args:
        weight: What it is multiplied by, in nats per cell, at least 0.
        condition: Which of the conditions is the perturbation, by its index.
        context: Which of the conditions is the context, by its index; None for the labels where there are some (cells
            without a label count as one context).

    Raises:
        ValueError: If the weight is negative or not finite.

    References:
        Gretton, Borgwardt, Rasch, Schoelkopf, Smola (2012). A kernel two-sample test. Journal of Machine Learning
        Research 13, 723-773.
        Louizos, Swersky, Li, Welling, Zemel (2016). The variational fair autoencoder. doi:10.48550/arXiv.1511.00830
        (without contexts)
        Lotfollahi, Naghipourfar, Theis, Wolf (2020). Conditional out-of-distribution generation for unpaired data using
        transfer VAE. doi:10.1093/bioinformatics/btaa800 (of the decoder's first layer)

    Example:
        >>> import genailab_pyro as glp
        >>> adata = glp.data.simulate(90, 20, perturbations=glp.data.Perturbations(number=1)).adata
        >>> cells = glp.register(adata, conditions=["perturbation"], labels="cell_type")
        >>> vae = glp.CVAE_NB.from_registration(cells, hidden_dims=[16])
        >>> fit = glp.fit(vae, cells, penalties=[LatentAlignment(100.0)], max_epochs=1, progress=False)
    """

    weight: float = 100.0
    condition: int = 0
    context: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"expected weight to be finite and at least 0, got {self.weight!r}")

    def __call__(self, minibatch: Minibatch, guide_trace: Trace, model_trace: Trace) -> Float[Tensor, ""]:
        """The penalty of a minibatch, in nats per cell; zero where no context has two cells of two levels.

        Raises:
            ValueError: If the cells have no such condition.
        """
        number = minibatch.conditions.shape[1]
        if max(self.condition, self.context or 0) >= number:
            raise ValueError(
                f"expected cells with the conditions {self.condition} and {self.context}, got {number} conditions, "
                "counted from 0; register the cells with them"
            )
        z = guide_trace.nodes["z"]["value"]
        levels = minibatch.conditions[:, self.condition]
        if self.context is not None:
            contexts = minibatch.conditions[:, self.context]
        else:
            contexts = torch.zeros_like(levels) if minibatch.labels is None else minibatch.labels
        kernel = _kernel(z.reshape(-1, *z.shape[-2:])).mean(0)
        terms, cells = [kernel.new_zeros(())], 0
        for context in contexts.unique():
            for level in levels[contexts == context].unique():
                inside, outside = (contexts == context) & (levels == level), (contexts == context) & (levels != level)
                if min(inside.sum(), outside.sum()) > 1:
                    terms.append(inside.sum() * _discrepancy(kernel, inside, outside))
                    cells += int(inside.sum())
        return self.weight * torch.stack(terms).sum() / max(cells, 1)


def _kernel(z: Float[Tensor, "particles cells latent"]) -> Float[Tensor, "particles cells cells"]:
    """The mean of Gaussian kernels between the draws of cells."""
    distance = (z.unsqueeze(-2) - z.unsqueeze(-3)).square().mean(-1)
    return torch.stack([(-distance / (2 * scale**2)).exp() for scale in (0.5, 1.0, 2.0, 4.0)]).mean(0)


def _discrepancy(
    kernel: Float[Tensor, "cells cells"], first: Bool[Tensor, " cells"], second: Bool[Tensor, " cells"]
) -> Float[Tensor, ""]:
    """Squared maximum mean discrepancy between two groups of at least two cells each, without bias."""

    def within(group: Bool[Tensor, " cells"]) -> Tensor:
        block, size = kernel[group][:, group], group.sum()
        return (block.sum() - block.diagonal().sum()) / (size * (size - 1))

    return within(first) + within(second) - 2 * kernel[first][:, second].mean()
