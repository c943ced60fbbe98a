"""VAEs whose latents have structure: bits, two layers, a label above."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from genailab_pyro.data.cells import Cells
from genailab_pyro.model.encoders import BernoulliEncoder, NormalEncoder
from genailab_pyro.model.heads import AnnotationHead
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

    Two layers collapse more easily than one: what dropout and layer norm blur in the decoder, the latents of both do
    not carry. To keep them, declare it without both and let the KL rise over half of the run::

        vae = HierarchicalVAE.from_registration(cells, upper_dim=5, dropout=0.0, norm="none")
        fit = glp.fit(vae, cells, warmup=glp.Warmup(length=0.5))

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

    The latents are a mixture of normals, and the label says which one a cell is from: it finds clusters. It takes
    ``num_labels``, their number, beside what `CVAE_NB` takes. `from_registration` starts it from clusters of k-means,
    so that they do not fall onto one; `genailab_pyro.analysis.label_probabilities` tells where a cell belongs. Labels
    that are registered are not looked at; `SemiSupervisedVAE` learns from them.

    Train it by ``"enum"``, ``"gumbel"`` or a score function.

    Example:
        >>> LabelVAE(input_dim=2000, latent_dim=10, condition_dim=0, hidden_dims=[128], num_labels=8).upper.site
        'label'

    References:
        Jiang, Zheng, Tan, Tang, Zhou (2017). Variational deep embedding. doi:10.24963/ijcai.2017/273
    """

    @staticmethod
    def latents(
        input_dim: int, latent_dim: int, hidden_dims: Sequence[int], shared: dict[str, Any], *, num_labels: int = 10
    ) -> dict[str, Any]:
        """Normal latents whose prior and guide depend on a label."""
        upper = UpperLabel(input_dim, num_labels, condition=shared["condition"])
        return _below(upper, input_dim, latent_dim, hidden_dims, shared)


class SemiSupervisedVAE(CVAE_NB):
    r"""Conditional VAE with negative binomial counts and a label above the latents that is known of some cells.

    The label is latent in every cell, ``label -> z -> x``, and what is known of it is an annotation y, which is wrong
    with a small probability (see `AnnotationHead`):

    .. math::
        \log p(x, y) \ge E_q [\log p(x | z) + w \log p(y | \mathrm{label}) + \log p(z, \mathrm{label})
        - \log q(z, \mathrm{label} | x)],

    without the second term where there is no annotation. So it is an ordinary pair of programs, which is trained by
    ``"enum"``, ``"gumbel"`` or a score function, and ``q(label | x)`` is the classifier that learns from the
    annotations. Labels that no cell is known to have never win.

    It takes ``num_labels``, ``unseen`` (codes of labels that no cell has), ``error`` (probability of a wrong
    annotation) and ``weight`` (w) beside what `CVAE_NB` takes; `from_registration` knows the first two. The larger the
    weight, the less do unlabelled cells change where the labels are.

    Example:
        >>> import genailab_pyro as glp
        >>> cells = glp.register(glp.data.pbmc68k(), labels="bulk_labels")
        >>> SemiSupervisedVAE.from_registration(cells, latent_dim=5).upper.output_dim
        10

    References:
        Kingma, Rezende, Mohamed, Welling (2014). Semi-supervised learning with deep generative models.
        doi:10.48550/arXiv.1406.5298
    """

    @staticmethod
    def latents(
        input_dim: int,
        latent_dim: int,
        hidden_dims: Sequence[int],
        shared: dict[str, Any],
        *,
        num_labels: int = 10,
        unseen: Sequence[int] = (),
        error: float = 0.01,
        weight: float = 100.0,
    ) -> dict[str, Any]:
        """Normal latents below a label, and the annotation of the label."""
        upper = UpperLabel(input_dim, num_labels, annotated=True, unseen=unseen, condition=shared["condition"])
        heads = [AnnotationHead(num_labels, error, weight)]
        return _below(upper, input_dim, latent_dim, hidden_dims, shared) | {"heads": heads}

    @classmethod
    def from_registration(cls, cells: Cells, **options: Any) -> Self:
        """Declare the VAE for registered cells, with their labels; see `CVAE_NB.from_registration`.

        Args:
            cells: The cells to be fitted, of which some have a label.
            options: What `CVAE_NB.from_registration` takes, ``error`` and ``weight``.

        Raises:
            TypeError: If something other than `Cells` is given.
            ValueError: If no labels are registered, or none of these cells has one.
        """
        if isinstance(cells, Cells):
            labels = cells.registration.labels
            if labels is None or cells.labels is None or not (cells.labels >= 0).any():
                raise ValueError(
                    f"expected cells of which some have a label, got {'no registered' if labels is None else 'no'} "
                    "labels; register them: register(adata, labels=...), with NaN where a label is not known"
                )
            seen = {*cells.labels.tolist()}
            options["num_labels"] = len(labels.levels)
            options["unseen"] = [code for code in range(len(labels.levels)) if code not in seen]
        return super().from_registration(cells, **options)

    @classmethod
    def _sample(cls, cells: Cells, order: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        assert cells.labels is not None
        known = cells.labels[order] >= 0
        return np.concatenate([order[known][:512], order[~known], order[known][512:]])[:1024]


def _below(
    upper: Upper, input_dim: int, latent_dim: int, hidden_dims: Sequence[int], shared: dict[str, Any]
) -> dict[str, Any]:
    """Normal latents below an upper one."""
    return {
        "prior": DependentNormal(shared["condition"].output_dim + upper.output_dim, latent_dim),
        "encoder": NormalEncoder(input_dim, latent_dim, hidden_dims, upper_dim=upper.output_dim, **shared),
        "upper": upper,
    }
