"""The job of the command `compare`: what was asked for reaches the measurement, and the folder is safe until then."""

import pytest
import torch

import genailab_pyro as glp
from genailab_pyro import comparing
from genailab_pyro.comparing import run_comparison, standard_estimators
from genailab_pyro.configuration import DataSettings, ModelSettings
from genailab_pyro.estimators import EstimatorError
from genailab_pyro.experiments import trajectory
from genailab_pyro.experiments.race import race


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A file of few cells, with a categorical and a continuous column."""
    adata = glp.data.simulate(60, 12, num_types=3, num_batches=2, seed=0).adata
    adata.obs["dose"] = torch.linspace(0, 1, adata.n_obs).numpy()
    file = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    adata.write_h5ad(file)
    return str(file)


@pytest.fixture(scope="module")
def small():
    """A comparison and a race of two estimators, made once."""
    cells = glp.register(glp.data.simulate(60, 12, seed=0).adata)
    vae = glp.CVAE_NB.from_registration(cells, hidden_dims=[8], latent_dim=2)
    names = ["pathwise", "score"]
    compared = glp.compare_estimators(vae, cells, names, num_draws=4, checkpoints=("given",), particles=())
    options = {"num_seeds": 2, "learning_rates": [1e-2], "num_particles": 2, "num_points": 1, "max_epochs": 1}
    return compared, race(vae, cells, names, **options)


@pytest.fixture
def asked(small, monkeypatch):
    """What the measurements were asked for, in place of doing them."""
    found = {}
    for name, result in zip(("compare_estimators", "race_estimators"), small, strict=True):

        def noted(vae, cells, estimators, *, name=name, result=result, **options):
            found[name] = {"vae": vae, "cells": cells, "estimators": [*estimators], **options}
            return result

        monkeypatch.setattr(comparing, name, noted)
    return found


def test_what_was_asked_for_reaches_the_comparison_and_the_race(path, asked, tmp_path):
    settings = DataSettings(path=path, conditions=("batch",), continuous=("dose",))
    names = ["pathwise", "stl"]
    options = {"estimators": names, "num_draws": 7, "num_seeds": 3, "max_epochs": 5, "seed": 11}
    run_comparison(tmp_path / "out", settings, ModelSettings(name="CVAE_ZINB"), **options)
    for job in asked.values():
        assert type(job["vae"]) is glp.CVAE_ZINB
        assert job["estimators"] == names
        assert job["training"].max_epochs == 5
        assert [condition.name for condition in job["cells"].registration.conditions] == ["batch"]
        assert [covariate.name for covariate in job["cells"].registration.continuous] == ["dose"]
    assert asked["compare_estimators"]["num_draws"] == 7
    assert asked["compare_estimators"]["seed"] == 11
    assert asked["race_estimators"]["num_seeds"] == 3


@pytest.mark.parametrize(("num_seeds", "raced"), [(0, False), (1, True)])
def test_it_is_raced_where_that_is_asked_for(num_seeds, raced, path, asked, tmp_path):
    settings = DataSettings(path=path)
    result = run_comparison(tmp_path / "out", settings, estimators=["pathwise"], num_seeds=num_seeds)
    assert ("race_estimators" in asked) == raced == (result.race is not None)
    assert (tmp_path / "out" / "race.nc").exists() == raced


def test_the_seed_decides_the_weights(path, asked, tmp_path):
    weights = []
    for number, seed in enumerate((1, 1, 2)):
        run_comparison(tmp_path / f"out{number}", DataSettings(path=path), estimators=["pathwise"], seed=seed)
        weights.append(asked["compare_estimators"]["vae"].encoder.loc.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_an_earlier_run_stays_where_the_comparison_cannot_begin(path, asked, tmp_path):
    folder, settings = tmp_path / "out", DataSettings(path=path)
    run_comparison(folder, settings, estimators=["pathwise"])
    before = sorted(folder.rglob("*"))
    for refused, options in (
        (EstimatorError, {"settings": settings, "estimators": ["enum"]}),
        (FileNotFoundError, {"settings": DataSettings(path=f"{path}.none"), "estimators": ["pathwise"]}),
    ):
        with pytest.raises(refused):
            run_comparison(folder, overwrite=True, **options)
        assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("name", ["plain", "latent library", "hierarchy", "label", "bits"])
def test_the_standard_estimators_can_all_be_used_and_part_credit_from_baseline(name, vaes, cells):
    vae = vaes[name]
    named = comparing.named_estimators(standard_estimators(vae, cells))
    few = trajectory.sample(cells, 8, seed=0, device=torch.device("cpu"))
    assert all(trajectory.usable(vae, estimator, few) is None for estimator in named.values())
    assert {"score", "score-graph"} <= named.keys()
    if name in ("hierarchy", "label", "bits"):
        assert {"score-cell-average", "score-graph-ema"} <= named.keys()
