"""Small simulated cells, and settings that are all spelt out."""

import numpy as np
import pytest
import torch

import genailab_pyro as glp

SETTINGS = {
    "max_epochs": 3,
    "minibatch_size": 32,
    "optimizer": "adamw",
    "learning_rate": 3e-3,
    "learning_rate_schedule": "constant",
    "plateau_patience": 10,
    "weight_decay": 0.01,
    "gradient_clip": None,
    "warmup": glp.Warmup(shape="constant"),
    "free_bits": 0.0,
    "validation_fraction": 0.2,
    "patience": None,
}


@pytest.fixture(scope="session")
def adata():
    types, noise = glp.data.CellTypes(separation=2.0), glp.data.CountNoise(inverse_dispersion=20.0)
    drawn, _ = glp.data.simulate(120, 20, num_types=3, num_batches=2, types=types, noise=noise, seed=1)
    drawn.obs["dose"] = np.linspace(0.0, 2.0, drawn.n_obs)
    return drawn


@pytest.fixture(scope="session")
def cells(adata):
    return glp.register(adata, conditions=["batch"], labels="cell_type")


@pytest.fixture
def vae(cells):
    return glp.CVAE_NB.from_registration(cells, latent_dim=3, hidden_dims=[16])


@pytest.fixture(scope="session")
def settings():
    return glp.Training(**SETTINGS)


@pytest.fixture(scope="session")
def train():
    """`glp.fit` with few epochs and nothing left to a default."""

    def trained(vae, cells, estimator="pathwise", *, seed=0, **changes):
        options = {"progress": False, **SETTINGS, **changes}
        return glp.fit(vae, cells, estimator, seed=seed, **options)

    return trained


@pytest.fixture(scope="session")
def fitted(cells, train):
    """A fit that has learned the three types of cells."""
    vae = glp.CVAE_NB.from_registration(cells, latent_dim=3, hidden_dims=[16])
    warmup = glp.Warmup(shape="linear", length=0.5)
    return train(vae, cells, max_epochs=50, learning_rate=1e-2, warmup=warmup)


@pytest.fixture(scope="session")
def same_state():
    """Whether two modules hold the same tensors, bit for bit."""

    def same(first, second):
        mine, theirs = first.state_dict(), second.state_dict()
        return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)

    return same


@pytest.fixture(scope="session")
def columns_but_seconds():
    """A history without the one column that no two runs share."""
    return lambda fit: fit.history.drop(columns="seconds")
