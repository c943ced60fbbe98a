"""Augmented data: real cells first, and generated ones that look like the level they stand for."""

import numpy as np
import pytest

import genailab_pyro as glp
from genailab_pyro.analysis.augment import augment
from genailab_pyro.evaluation.generation import classifier, transfer_accuracy
from genailab_pyro.evaluation.perturbation import log_normalise

LABEL = "cell_type"


def imbalanced(seed, rare="type3", number=30):
    """Half of the cells to train on, with few of one type, and the other half."""
    types, library = glp.data.CellTypes(latent_dim=10, separation=1.0, spread=1.5), glp.data.LibrarySizes(median=1000.0)
    adata = glp.data.simulate(2400, 150, num_types=4, types=types, library=library, seed=seed).adata
    order = np.random.default_rng(seed).permutation(2400)
    train, test = np.sort(order[:1200]), np.sort(order[1200:])
    of_rare = np.flatnonzero((adata.obs[LABEL] == rare).to_numpy()[train])
    return adata[np.delete(train, of_rare[number:])].copy(), adata[test].copy()


@pytest.fixture(scope="module")
def sets():
    return imbalanced(0)


@pytest.fixture(scope="module")
def fit(sets):
    cells = glp.register(sets[0], conditions=[LABEL])
    return glp.fit(glp.CVAE_NB.from_registration(cells, hidden_dims=[32]), cells, max_epochs=20, progress=False)


@pytest.mark.parametrize("source", ["posterior", "prior"])
def test_every_level_gets_as_many_cells_as_asked_for(sets, fit, source, tmp_path):
    train = sets[0]
    joined = augment(fit, train, LABEL, source=source, seed=1)
    numbers = joined.obs[LABEL].value_counts()
    assert set(numbers) == {train.obs[LABEL].value_counts().max()}
    real = joined[~joined.obs["generated"].to_numpy(dtype=bool)]
    assert real.obs_names.tolist() == train.obs_names.tolist()
    assert (real.X != train.X).nnz == 0
    drawn = joined[joined.obs["generated"].to_numpy(dtype=bool)]
    assert (drawn.X.data == np.rint(drawn.X.data)).all()
    assert not drawn.obs_names.isin(train.obs_names).any()
    train = train.copy()
    train.obs["doublet"] = False
    again = augment(fit, train, LABEL, source=source, seed=1)
    again.write_h5ad(tmp_path / "cells.h5ad")  # what is unknown of generated cells can be written
    assert again.obs["doublet"].isna().sum() == drawn.n_obs
    assert (again.X != joined.X).nnz == 0


def test_libraries_are_those_of_the_level(sets, fit):
    """Their logarithms have the mean of the level's, within five standard errors."""
    train = sets[0]
    drawn = augment(fit, train, LABEL, levels=["type3"], target=1000)
    drawn = drawn[drawn.obs["generated"].to_numpy(dtype=bool)]
    assert set(drawn.obs[LABEL]) == {"type3"}
    real = np.log(np.asarray(train.X.sum(1)).ravel()[(train.obs[LABEL] == "type3").to_numpy()])
    logs = np.log(drawn.obs["library"].to_numpy())
    assert abs(logs.mean() - real.mean()) < 5 * real.std() / len(logs) ** 0.5
    assert abs(logs.std() / real.std() - 1) < 5 / (2 * len(logs)) ** 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"condition": "batch"}, "a condition of the fit, among 'cell_type', got 'batch'; train a CVAE"),
        ({"levels": ["type9"]}, "has no level 'type9'"),
        ({"source": "thin air"}, "source to be one of"),
        ({"target": 3}, "levels of 'cell_type' with fewer than 3 cells, got none"),
    ],
)
def test_what_cannot_be_augmented_is_refused(sets, fit, options, message):
    with pytest.raises(ValueError, match=message):
        augment(fit, sets[0], **{"condition": LABEL, **options})


def test_a_level_without_cells_has_no_posterior(sets, fit):
    train = sets[0]
    without = train[(train.obs[LABEL] != "type3").to_numpy()].copy()
    with pytest.raises(ValueError, match=r"real cells of every level .*use source='prior'"):
        augment(fit, without, LABEL, levels=["type3"])
    assert augment(fit, without, LABEL, levels=["type3"], source="prior", target=5).n_obs == without.n_obs + 5


@pytest.mark.slow
def test_a_rare_type_gains_over_nothing_and_over_oversampling():
    """Mean over seeds of the balanced accuracy of a classifier on real cells that nobody has seen."""
    gains = []
    for seed in range(20, 24):
        train, test = imbalanced(seed)
        cells = glp.register(train, conditions=[LABEL])
        vae = glp.CVAE_NB.from_registration(cells, dropout=0.1)
        joined = augment(glp.fit(vae, cells, max_epochs=100, seed=seed, progress=False), train, LABEL, seed=seed)
        values, labels = log_normalise(train.X), train.obs[LABEL].astype(str).to_numpy()
        rng = np.random.default_rng(seed)
        most = max(np.unique(labels, return_counts=True)[1])
        repeated = np.concatenate([rng.choice(np.flatnonzero(labels == level), most) for level in np.unique(labels)])
        asked = log_normalise(test.X), test.obs[LABEL].astype(str).to_numpy()
        nothing = transfer_accuracy(values, labels, *asked)
        oversampled = transfer_accuracy(values[repeated], labels[repeated], *asked)
        augmented = transfer_accuracy(log_normalise(joined.X), joined.obs[LABEL].astype(str).to_numpy(), *asked)
        gains.append([augmented - nothing, augmented - oversampled])
    assert (np.mean(gains, axis=0) > 0.003).all(), gains
    assert classifier().steps[-1][1].class_weight == "balanced"  # what is beaten knows of the imbalance
