"""Binomial thinning: counts split into two independent halves, one to learn from and one to score on."""

import numpy as np
from anndata import AnnData
from scipy import sparse

from genailab_pyro.data.matrix import open_counts
from genailab_pyro.data.validation import check_anndata, check_layer


def thin(adata: AnnData, fraction: float = 0.5, *, counts: str | None = None, seed: int = 0) -> tuple[AnnData, AnnData]:
    """Split the molecules of each cell at random.

    Each of the counts x becomes ``kept ~ Binomial(x, fraction)`` and ``x - kept``. Of Poisson counts of rate mu the two
    are independent, of rates ``fraction * mu`` and ``(1 - fraction) * mu``: what predicts the second from the first has
    learned mu, and noise that is learned by heart is of no use. Overdispersed counts are Poisson given a rate of their
    own, which both halves share: where counts are large, that rate is what predicts best, and not its mean.

    Args:
        adata: Cells with raw counts; it is not modified.
        fraction: Share of the molecules that go to the first half, above 0 and below 1.
        counts: Layer of the counts; None for ``adata.X``.
        seed: Seed of the draws.

    Returns:
        Two copies with counts in ``.X`` (CSR), and what else is known of cells and genes.

    Raises:
        TypeError: If ``adata`` is no AnnData.
        ValueError: If the fraction is out of range, the layer is missing, or the values are no whole numbers.

    Example:
        >>> import numpy as np
        >>> one, other = thin(AnnData(np.array([[4.0, 0.0], [1.0, 10.0]])), seed=1)
        >>> (one.X + other.X).toarray().tolist()
        [[4.0, 0.0], [1.0, 10.0]]

    References:
        Batson, Royer, Webber (2019). Molecular cross-validation for single-cell RNA-seq. doi:10.1101/786269
        Neufeld, Gao, Popp, Battle, Witten (2024). Inference after latent variable estimation for single-cell RNA
        sequencing data. doi:10.1093/biostatistics/kxac047
    """
    check_anndata(adata)
    if not 0 < fraction < 1:
        raise ValueError(f"expected a fraction of the molecules above 0 and below 1, got {fraction!r}")
    check_layer(adata, counts)
    matrix = sparse.csr_matrix(open_counts(adata, counts).rows(np.arange(adata.n_obs)))
    values = matrix.data
    if (values < 0).any() or (values != np.rint(values)).any():
        raise ValueError("expected raw counts, whole numbers of at least 0, to split; name their layer by counts=...")
    kept = np.random.default_rng(seed).binomial(values.astype(np.int64), fraction).astype(np.float32)
    halves = []
    for data in (kept, values.astype(np.float32) - kept):
        half = sparse.csr_matrix((data, matrix.indices.copy(), matrix.indptr.copy()), shape=matrix.shape)
        half.eliminate_zeros()
        halves.append(AnnData(half, obs=adata.obs.copy(), var=adata.var.copy()))
    return halves[0], halves[1]
