"""Decoders that can be read: the loadings of a linear one."""

from collections.abc import Sequence

import pandas as pd
import torch

from genailab_pyro.model.vae import VAE
from genailab_pyro.nn import MLP


class LinearDecoder(MLP):
    """The identity on latent and condition, on which the likelihood's linear head is the whole decoder.

    With ``softmax(W z + V c + b)`` as proportions it is the linearly decoded VAE, whose W are the `loadings`.

    Args:
        latent_dim: Number of latents.
        condition_dim: Width of the condition.

    References:
        Svensson, Gayoso, Yosef, Pachter (2020). Interpretable factor models of single-cell RNA-seq via variational
        autoencoders. doi:10.1093/bioinformatics/btaa169

    Example:
        >>> LinearDecoder(10, condition_dim=3).output_dim
        13
    """

    def __init__(self, latent_dim: int, *, condition_dim: int = 0) -> None:
        super().__init__(latent_dim, [], condition_dim=condition_dim)


def loadings(vae: VAE, genes: Sequence[str]) -> pd.DataFrame:
    """What one unit of each latent adds to each gene, where the decoder is linear.

    Of a likelihood by proportions it is added to the log expression (log-counts) and centred over the genes, as
    proportions do not change where all genes rise alike; with a size factor it is not centred. Of the Gaussian one it
    is added to the mean log-normalised value. Latents have no order, and a standard normal prior leaves them free to
    rotate: what the data say is the space that the loadings span.

    Args:
        vae: A VAE with a `LinearDecoder`, or an `MLP` without hidden layers.
        genes: Names of the genes, in the order of the counts: ``fit.registration.genes``.

    Returns:
        Loadings ``[genes, latents]``, with the genes as index and ``z0``, ``z1`` and so on as columns.

    Raises:
        TypeError: If the decoder is not linear, or the likelihood does not read one number of a gene linearly.
        ValueError: If the number of names is not that of the genes.

    References:
        Svensson, Gayoso, Yosef, Pachter (2020). Interpretable factor models of single-cell RNA-seq via variational
        autoencoders. doi:10.1093/bioinformatics/btaa169

    Example:
        >>> import genailab_pyro as glp
        >>> likelihood, encoder = glp.NegativeBinomialLikelihood(2, 3), glp.NormalEncoder(3, 2, [8])
        >>> vae = VAE(glp.StandardNormal(2), LinearDecoder(2), likelihood, encoder)
        >>> loadings(vae, ["CD3D", "MS4A1", "LYZ"]).shape
        (3, 2)
    """
    decoder = vae.decoder
    if not isinstance(decoder, MLP) or decoder.layers:
        hidden = f" with {len(decoder.layers) // 4} hidden layer(s)" if isinstance(decoder, MLP) else ""
        raise TypeError(
            f"expected a linear decoder, got {type(decoder).__name__}{hidden}, whose effect on a gene depends on where "
            "in the latent space a cell is; declare the VAE with decoder=LinearDecoder(...)"
        )
    slopes = vae.likelihood.slopes()
    if slopes is None:
        raise TypeError(
            f"expected a likelihood with one linear output for each gene, got {type(vae.likelihood).__name__}, which "
            "has none that stands for a gene's expression"
        )
    if len(genes) != len(slopes):
        raise ValueError(f"expected the names of {len(slopes)} genes, got {len(genes)}; pass fit.registration.genes")
    with torch.no_grad():
        # The columns of the condition come after those of the latent.
        of_latents = slopes[:, : decoder.output_dim - decoder.condition_dim].cpu().numpy()
    return pd.DataFrame(of_latents, index=list(genes), columns=[f"z{i}" for i in range(of_latents.shape[1])])
