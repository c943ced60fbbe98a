"""A VAE in which a perturbation moves the log expression of a cell by an effect that composes."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from genailab_pyro.data.cells import Cells
from genailab_pyro.model.encoders import NormalEncoder
from genailab_pyro.model.likelihoods import NegativeBinomialLikelihood
from genailab_pyro.model.perturbations import PerturbationEncoding
from genailab_pyro.model.priors import StandardNormal
from genailab_pyro.model.vae import VAE
from genailab_pyro.nn import MLP, Declared, beside, choose


class EffectDecoder(Declared):
    r"""Features of a cell's state beside those of its perturbation, which reach the counts linearly.

    With the effect e as the last columns of the condition and the context c as the others, the features are

    .. math:: f(z, c, e) = [\mathrm{MLP}(z, c),\; e \odot (1 + G z)],

    so that under a likelihood with a linear head on them the log expression is
    :math:`W\,\mathrm{MLP}(z, c) + V (e \odot (1 + G z))`: the log fold change of a combination is the sum of those of
    its parts, each of which depends linearly on where the cell is in the latent space. The control changes nothing. G
    starts at zero: at first a perturbation does the same to every cell.

    Args:
        latent_dim: Number of latents.
        hidden_dims: Widths of the layers that read latent and context.
        condition_dim: Width of the condition, the effect included.
        effect_dim: Width of the effect.
        dropout: Probability with which an activation is dropped in training.
        norm: ``"layer"``, ``"batch"`` or ``"none"``.

    Raises:
        ValueError: If the effect is wider than the condition, or a width below one.

    Example:
        >>> decoder = EffectDecoder(10, [128], condition_dim=11, effect_dim=8)
        >>> decoder(torch.zeros(3, 10), torch.zeros(3, 11)).shape
        torch.Size([3, 136])
    """

    def __init__(
        self,
        latent_dim: int,
        hidden_dims: Sequence[int],
        *,
        condition_dim: int,
        effect_dim: int,
        dropout: float = 0.1,
        norm: str = "layer",
    ) -> None:
        super().__init__()
        if not 1 <= effect_dim <= condition_dim:
            raise ValueError(f"expected an effect of width 1 to {condition_dim}, the condition's, got {effect_dim}")
        self.condition_dim, self.effect_dim = condition_dim, effect_dim
        self.trunk = MLP(latent_dim, hidden_dims, condition_dim=condition_dim - effect_dim, dropout=dropout, norm=norm)
        self.gate = nn.Linear(latent_dim, effect_dim, bias=False)
        nn.init.zeros_(self.gate.weight)
        self.output_dim = self.trunk.output_dim + effect_dim

    def forward(
        self, z: Float[Tensor, "*rows latent"], condition: Float[Tensor, "*#rows condition"]
    ) -> Float[Tensor, "*rows features"]:
        """Features of the state, then those of the perturbation."""
        context, effect = condition.split([self.condition_dim - self.effect_dim, self.effect_dim], dim=-1)
        return beside(self.trunk(z, context), effect * (1 + self.gate(z)))


class PerturbationVAE(VAE):
    r"""A VAE with negative binomial counts whose perturbations add up in the log expression.

    With the effect e of a `PerturbationEncoding`, the context c (its other columns) and the latent z of a cell,

    .. math::
        x \sim \mathrm{NB}(l \, \mathrm{softmax}(W\,\mathrm{MLP}(z, c) + V (e \odot (1 + G z)) + b), \theta),

    as said by `EffectDecoder`; the encoder sees the counts and the conditions. A perturbation so does what it does to
    all cells, plus what depends on the latent of each. For counterfactuals train it with a `LatentAlignment`, which
    keeps the effect out of z, and name the cell types as labels, not as conditions: z then tells them apart, and what
    is known of a perturbation's effect on some types is carried over to others::

        cells = glp.register(adata, conditions=["condition"], labels="cell_type")
        vae = PerturbationVAE.from_registration(cells, "condition")
        fit = glp.fit(vae, cells, penalties=[LatentAlignment(100.0)])
        predict(fit, controls, do={"condition": "stimulated"})

    Args:
        input_dim: Number of genes.
        latent_dim: Number of latents.
        condition: Encoding of the conditions.
        hidden_dims: Widths of the encoder's hidden layers; the decoder has them in reverse.
        dropout: Probability with which an activation is dropped in training.
        norm: ``"layer"``, ``"batch"`` or ``"none"``.
        size_factor: Whether the library of a minibatch is a size factor.

    Example:
        >>> condition = PerturbationEncoding([3], ["control", "A", "B"], effect_dim=4)
        >>> PerturbationVAE(input_dim=2000, latent_dim=10, condition=condition).decoder.output_dim
        132
    """

    def __init__(
        self,
        input_dim: int,
        latent_dim: int,
        condition: PerturbationEncoding,
        hidden_dims: Sequence[int] = (128,),
        *,
        dropout: float = 0.1,
        norm: str = "layer",
        size_factor: bool = False,
    ) -> None:
        shared: dict[str, Any] = {"dropout": dropout, "norm": norm}
        widths: dict[str, Any] = {"condition_dim": condition.output_dim, "effect_dim": condition.effect_dim}
        decoder = EffectDecoder(latent_dim, [*hidden_dims][::-1], **widths, **shared)
        super().__init__(
            prior=StandardNormal(latent_dim),
            decoder=decoder,
            likelihood=NegativeBinomialLikelihood(decoder.output_dim, input_dim, size_factor=size_factor),
            encoder=NormalEncoder(input_dim, latent_dim, hidden_dims, condition=condition, **shared),
            condition=condition,
        )
        self.input_dim, self.latent_dim = input_dim, latent_dim

    @classmethod
    def from_registration(
        cls,
        cells: Cells,
        perturbation: PerturbationEncoding | str | None = None,
        *,
        control: str = "control",
        dose: str | None = None,
        latent_dim: int = 10,
        hidden_dims: Sequence[int] = (128,),
        library: str = "observed",
        seed: int = 0,
        **options: Any,
    ) -> Self:
        """Declare the VAE with the dimensions of registered cells, and move its output near their mean.

        Args:
            cells: The cells to be fitted. A sample of at most 1,024 sets the output's starting point.
            perturbation: Name of the condition that is the perturbation (None for the first), or an encoding of the
                conditions of these cells.
            control: The level that does nothing.
            dose: Name of the continuous covariate that is the dose; None where doses do not differ.
            latent_dim: Number of latents.
            hidden_dims: Widths of the encoder's hidden layers; the decoder has them in reverse.
            library: ``"observed"``; there is no other.
            seed: Seed of the initial weights; the caller's random state is left as it was.
            options: ``dropout`` (0.3 below 5,000 cells, 0.1 above, unless given) and ``norm``.

        Raises:
            TypeError: If something other than `Cells` is given.
            ValueError: If the perturbation is not registered, or a latent library is asked for.

        Example:
            >>> import genailab_pyro as glp
            >>> adata = glp.data.simulate(90, 20, perturbations=glp.data.Perturbations(number=2)).adata
            >>> cells = glp.register(adata, conditions=["perturbation"], labels="cell_type")
            >>> PerturbationVAE.from_registration(cells, "perturbation").condition.singles
            ('perturbation1', 'perturbation2')
        """
        if not isinstance(cells, Cells):
            raise TypeError(f"expected cells from glp.register(adata), got {type(cells).__name__}")
        choose({"observed": None}, library, "library")
        if isinstance(perturbation, PerturbationEncoding):
            condition = perturbation
        else:
            names = [item.name for item in cells.registration.conditions]
            if perturbation is None and not names:
                raise ValueError("expected cells with a perturbation, got none; register(adata, conditions=[...])")
            condition = PerturbationEncoding.from_registration(
                cells, perturbation or names[0], control=control, dose=dose, effect_dim=16, seed=seed
            )
        options.setdefault("dropout", 0.3 if len(cells) < 5000 else 0.1)
        size_factor = cells.registration.size_factor is not None
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            genes = len(cells.registration.genes)
            vae = cls(genes, latent_dim, condition, hidden_dims, size_factor=size_factor, **options)
        vae.initialise(cells.take(np.random.default_rng(seed).permutation(len(cells))[:1024]))
        return vae
