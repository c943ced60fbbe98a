"""Penalties of a configuration are those that Python would build, and a run on the command line goes through."""

import pytest
from typer.testing import CliRunner

import genailab_pyro as glp
from genailab_pyro import cli
from genailab_pyro.configuration import Configuration
from genailab_pyro.penalty_settings import PenaltySettings


@pytest.fixture(scope="module")
def adata():
    perturbations = glp.data.Perturbations(number=1)
    return glp.data.simulate(90, 20, num_types=2, num_batches=2, perturbations=perturbations, seed=0).adata


@pytest.fixture(scope="module")
def cells(adata):
    return glp.register(adata, conditions=["batch", "perturbation"], labels="cell_type")


def test_weights_become_penalties(cells):
    assert PenaltySettings().build(cells, 4) == []
    alignment, adversary = PenaltySettings(3.0, 2.0, condition="perturbation").build(cells, 4)
    assert alignment == glp.LatentAlignment(3.0, condition=1)
    assert (adversary.weight, adversary.condition) == (2.0, 1)
    (first,) = PenaltySettings(alignment=1.0).build(cells, 4)
    assert first.condition == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"alignment": -1.0}, "expected alignment to be finite and at least 0, got -1.0"),
        ({"adversary": float("nan")}, "expected adversary to be finite"),
        ({"condition": "batch"}, "expected a weight of a penalty beside condition='batch'"),
    ],
)
def test_what_is_no_penalty_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        PenaltySettings(**content)


def test_a_condition_must_be_there(adata, cells):
    with pytest.raises(ValueError, match="drug"):
        PenaltySettings(alignment=1.0, condition="drug").build(cells, 4)
    with pytest.raises(ValueError, match="expected a condition for a penalty"):
        PenaltySettings(alignment=1.0).build(glp.register(adata), 4)


def test_a_perturbation_is_fitted_on_the_command_line(adata, tmp_path):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    settings = ["model.perturbation=perturbation", "penalties.alignment=10", "penalties.condition=perturbation"]
    small = ["model.latent_dim=3", "model.hidden_dims=[8]", "held_out.fraction=0"]
    arguments = ["fit", tmp_path / "cells.h5ad", "--folder", tmp_path / "run", "--model", "PerturbationVAE", "--quiet"]
    arguments += ["--condition", "batch", "--condition", "perturbation", "--labels", "cell_type", "--max-epochs", 2]
    arguments += [part for item in (*settings, *small) for part in ("--set", item)]
    result = CliRunner().invoke(cli.app, [str(item) for item in arguments])
    assert result.exit_code == 0, result.output
    fit = glp.load(tmp_path / "run" / "model")
    assert type(fit.vae) is glp.PerturbationVAE
    assert fit.vae.condition.position == 1
    written = Configuration.from_file(tmp_path / "run" / "config.yaml")
    assert written.penalties == PenaltySettings(10.0, condition="perturbation")
    predicted = glp.predict(fit, adata, do={"perturbation": "perturbation1"})
    assert set(predicted.obs["perturbation"]) == {"perturbation1"}
