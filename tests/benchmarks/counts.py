"""Counts of a chosen size and density to measure on."""

import warnings

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

import genailab_pyro as glp
from genailab_pyro.data.cells import Cells

LIBRARY = {0.02: 0.0205, 0.08: 0.1, 0.25: 0.495, 0.50: 1.94}
"""Median library per gene that leaves about such a share of the simulated counts above zero."""
AT_ONCE = 20_000_000


def simulated(num_cells: int, num_genes: int, density: float = 0.08) -> Cells:
    """Simulated cells, without conditions; large data repeat those that can be simulated at once."""
    library = glp.data.LibrarySizes(median=LIBRARY[density] * num_genes)
    distinct = min(num_cells, AT_ONCE // num_genes)
    drawn = glp.data.simulate(distinct, num_genes, library=library, seed=0).adata.X
    whole = sp.vstack([drawn] * -(-num_cells // distinct), format="csr")[:num_cells]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* genes have no counts in any cell")
        return glp.register(AnnData(whole))


def density_of(cells: Cells) -> float:
    """Share of the counts that are above zero."""
    counts = cells.counts_matrix()
    return counts.nnz / int(np.prod(counts.shape))
