"""Mean, variance and share of zeros of each gene, for predictive checks."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import sparse


class GeneStatistics(NamedTuple):
    """Statistics of each gene over cells.

    Attributes:
        mean: Mean count, shape ``[genes]``.
        variance: Variance of the count, shape ``[genes]``.
        zero_fraction: Share of cells without a count, shape ``[genes]``.
    """

    mean: Float[np.ndarray, " genes"]
    variance: Float[np.ndarray, " genes"]
    zero_fraction: Float[np.ndarray, " genes"]

    @classmethod
    def of(cls, counts: sparse.csr_matrix) -> "GeneStatistics":
        """Statistics of sparse counts ``[cells, genes]``, which stay sparse."""
        # The variance is a difference of large numbers, which single precision would not hold.
        counts = counts.astype(np.float64)
        num_cells = counts.shape[0]
        mean = np.asarray(counts.mean(axis=0)).ravel()
        square = np.asarray(counts.multiply(counts).mean(axis=0)).ravel()
        seen = np.asarray((counts > 0).sum(axis=0), dtype=float).ravel()
        return cls(mean, square - mean**2, 1 - seen / num_cells)
