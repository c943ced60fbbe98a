"""VAEs whose latents have structure: bits, two layers, a label above."""

from collections.abc import Sequence
from typing import Any

from genailab_pyro.model.encoders import BernoulliEncoder, NormalEncoder
from genailab_pyro.model.priors import Bits, DependentNormal
from genailab_pyro.model.upper import Upper, UpperLabel, UpperNormal
from genailab_pyro.model.vae import CVAE_NB


class BernoulliVAE(CVAE_NB):
    """Conditional VAE with negative binomial counts and one layer of latent bits.

    Its latents are discrete: train it by ``"disarm"``, ``"score-loo"``, ``"vimco"`` or ``"gumbel"``.

    Example:
        >>> BernoulliVAE(input_dim=2000, latent_dim=20, condition_dim=0, hidden_dims=[128]).prior.logits.shape
        torch.Size([20])
    """

    @staticmethod
    def latents(input_dim: int, latent_dim: int, hidden_dims: Sequence[int], shared: dict[str, Any]) -> dict[str, Any]:
        """Bits, and an encoder of their logits."""
        return {
            "prior": Bits(latent_dim),
            "encoder": BernoulliEncoder(input_dim, latent_dim, hidden_dims, **shared),
        }


class HierarchicalVAE(CVAE_NB):
    """Conditional VAE with negative binomial counts and two layers of normal latents, ``z2 -> z -> x``.

    It takes ``upper_dim``, the number of upper latents, beside what `CVAE_NB` takes. The guide draws the layers from
    above, ``q(z2 | x) q(z | z2, x)``.

    Example:
        >>> HierarchicalVAE(input_dim=2000, latent_dim=10, condition_dim=0, hidden_dims=[128], upper_dim=3).upper.site
        'z2'

    References:
        Sonderby, Raiko, Maaloe, Sonderby, Winther (2016). Ladder variational autoencoders.
        doi:10.48550/arXiv.1602.02282
    """

    @staticmethod
    def latents(
        input_dim: int, latent_dim: int, hidden_dims: Sequence[int], shared: dict[str, Any], *, upper_dim: int = 5
    ) -> dict[str, Any]:
        """Normal latents whose prior and guide depend on an upper normal site."""
        upper = UpperNormal(input_dim, upper_dim, hidden_dims, **shared)
        return _below(upper, input_dim, latent_dim, hidden_dims, shared)


class LabelVAE(CVAE_NB):
    """Conditional VAE with negative binomial counts and a discrete label above normal latents, ``label -> z -> x``.

    It takes ``num_labels`` beside what `CVAE_NB` takes: the latents are a mixture of as many normals, and the label
    says which one a cell is from. Train it by ``"enum"``, ``"gumbel"`` or a score function.

    Example:
        >>> LabelVAE(input_dim=2000, latent_dim=10, condition_dim=0, hidden_dims=[128], num_labels=8).upper.site
        'label'

    References:
        Kingma, Rezende, Mohamed, Welling (2014). Semi-supervised learning with deep generative models.
        doi:10.48550/arXiv.1406.5298
    """

    @staticmethod
    def latents(
        input_dim: int, latent_dim: int, hidden_dims: Sequence[int], shared: dict[str, Any], *, num_labels: int = 10
    ) -> dict[str, Any]:
        """Normal latents whose prior and guide depend on a label."""
        upper = UpperLabel(input_dim, num_labels, hidden_dims, **shared)
        return _below(upper, input_dim, latent_dim, hidden_dims, shared)


def _below(
    upper: Upper, input_dim: int, latent_dim: int, hidden_dims: Sequence[int], shared: dict[str, Any]
) -> dict[str, Any]:
    """Normal latents below an upper one."""
    return {
        "prior": DependentNormal(shared["condition"].output_dim + upper.output_dim, latent_dim),
        "encoder": NormalEncoder(input_dim, latent_dim, hidden_dims, upper_dim=upper.output_dim, **shared),
        "upper": upper,
    }
