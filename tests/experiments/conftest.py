"""Small simulated cells, VAEs of each structure, and comparisons of their estimators that are made once."""

import pytest

import genailab_pyro as glp

SIZES = {"latent_dim": 3, "hidden_dims": [16]}


@pytest.fixture(scope="session")
def cells():
    types, noise = glp.data.CellTypes(separation=2.0), glp.data.CountNoise(inverse_dispersion=20.0)
    adata, _ = glp.data.simulate(120, 20, num_types=3, num_batches=2, types=types, noise=noise, seed=1)
    return glp.register(adata, conditions=["batch"], labels="cell_type")


@pytest.fixture
def plain(cells):
    """A VAE that a test may change."""
    return glp.CVAE_NB.from_registration(cells, **SIZES)


@pytest.fixture(scope="session")
def vaes(cells):
    """A VAE of each structure."""
    return {
        "plain": glp.CVAE_NB.from_registration(cells, **SIZES),
        "zero-inflated": glp.CVAE_ZINB.from_registration(cells, **SIZES),
        "embedded conditions": glp.CVAE_NB.from_registration(cells, embedding_dim=2, **SIZES),
        "latent library": glp.CVAE_NB.from_registration(cells, library="latent", **SIZES),
        "hierarchy": glp.HierarchicalVAE.from_registration(cells, upper_dim=2, **SIZES),
        "label": glp.LabelVAE.from_registration(cells, num_labels=3, **SIZES),
        "bits": glp.BernoulliVAE.from_registration(cells, **SIZES),
    }


@pytest.fixture(scope="session")
def compare(cells, vaes):
    """`glp.compare_estimators` at the initial weights, with few draws, unless told otherwise."""

    def compared(vae, estimators, **changes):
        options = {
            "num_draws": 60,
            "checkpoints": ("initial",),
            "particles": (),
            "minibatch_size": 32,
            "max_epochs": 10,
        }
        vae = vaes[vae] if isinstance(vae, str) else vae
        return glp.compare_estimators(vae, cells, estimators, **{**options, **changes})

    return compared
