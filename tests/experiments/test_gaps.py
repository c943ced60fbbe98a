"""What was asked for reaches the measurement, the folder is safe until then, and what is measured against what."""

import copy

import pytest
import torch

import genailab_pyro as glp
from genailab_pyro import comparing
from genailab_pyro.comparing import run_comparison, standard_estimators
from genailab_pyro.configuration import DataSettings, ModelSettings
from genailab_pyro.estimators import EstimatorError
from genailab_pyro.experiments import trajectory
from genailab_pyro.experiments.gradients import GradientSampler, frozen
from genailab_pyro.experiments.measure import Checkpoint
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
        assert [condition.name for condition in job["cells"].registration.conditions] == ["batch"]
        assert [covariate.name for covariate in job["cells"].registration.continuous] == ["dose"]
    assert asked["compare_estimators"]["training"].max_epochs == 5
    assert asked["race_estimators"]["max_epochs"] == 5
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


def checkpoint(vae, cells, guiding="pathwise", num_draws=6):
    minibatch = trajectory.sample(cells, 24, seed=0, device=torch.device("cpu"))
    return Checkpoint(copy.deepcopy(vae).eval(), cells, minibatch, guiding, num_draws, 0)


@pytest.mark.parametrize("guiding", ["pathwise", "score-loo"])
@pytest.mark.parametrize("number", [2, 8])
def test_importance_weights_are_held_against_as_many_draws(guiding, number, vaes, cells):
    at = checkpoint(vaes["plain"], cells, guiding)
    for name in ("vimco", "iwae", "dreg"):
        exact = at.reference_of(glp.estimators.get(name, num_particles=number))
        assert exact.objective == f"IW-K (K={number})"


def test_the_reference_of_the_bias_draws_numbers_of_its_own(vaes, cells, monkeypatch):
    seeds, drawn = [], GradientSampler.draws

    def noted(sampler, minibatch, num_draws, seed):
        seeds.append({seed * 1_000_003 + number for number in range(num_draws)})
        return drawn(sampler, minibatch, num_draws, seed)

    monkeypatch.setattr(GradientSampler, "draws", noted)
    with frozen():
        checkpoint(vaes["plain"], cells).measure({"pathwise": glp.Estimator()}, "pathwise")
    estimator, reference = seeds
    assert estimator.isdisjoint(reference)


def test_the_signal_to_noise_by_particles_is_that_of_a_baseline_that_has_learned(vaes, cells):
    at, named = checkpoint(vaes["plain"], cells, num_draws=240), {"ema": glp.estimators.get("score-graph-ema")}
    with frozen():
        found = at.signal_to_noise(named, (16,))["signal_to_noise_by_particles"].item()
    # One that has learned nothing has 0.3 to 0.7, and one that has 2.7 to 3.8, over seeds.
    assert found > 1.5
