"""Small minibatches and registered cells."""

import pyro
import pytest
import torch

from genailab_pyro import Cells, Minibatch


def draw_minibatch(num_cells=6, num_genes=5, num_levels=3, *, num_data=None, dtype=torch.float32, seed=0):
    """Counts of mean about four, with one condition and no covariate."""
    generator = torch.Generator().manual_seed(seed)
    rates = 8 * torch.rand(num_cells, num_genes, generator=generator, dtype=dtype)
    counts = torch.poisson(rates, generator=generator)
    counts[:, 0] += 1
    return Minibatch(
        counts,
        (torch.arange(num_cells) % num_levels)[:, None],
        torch.zeros(num_cells, 0, dtype=dtype),
        counts.sum(1),
        torch.arange(num_cells),
        num_data or num_cells,
    )


@pytest.fixture(autouse=True)
def own_store():
    """A parameter store for each test, whatever the others leave behind."""
    with pyro.get_param_store().scope():
        yield


@pytest.fixture
def make_minibatch():
    return draw_minibatch


@pytest.fixture
def cells():
    """Two categorical conditions and one covariate."""
    generator = torch.Generator().manual_seed(1)
    counts = torch.poisson(torch.full((40, 7), 5.0), generator=generator)
    return Cells.from_tensors(
        counts,
        conditions={"batch": ["b1", "b2"] * 20, "sex": ["f", "m", "m", "f"] * 10},
        continuous={"dose": torch.linspace(0, 3, 40)},
    )
