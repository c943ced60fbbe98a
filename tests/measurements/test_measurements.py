"""The measurements run from their commands, and print what they say."""

import pytest

import genailab_pyro as glp
from tests.benchmarks import scvi_tools
from tests.measurements.__main__ import main

SHORT = ["--seeds", "1", "--epochs", "2"]


@pytest.fixture
def file(tmp_path):
    perturbed = glp.data.Perturbations(number=1, num_genes=5)
    adata = glp.data.simulate(120, 40, num_types=2, num_batches=2, perturbations=perturbed, seed=0).adata
    adata.write_h5ad(tmp_path / "cells.h5ad")
    return str(tmp_path / "cells.h5ad")


def test_integration_has_a_row_for_each_latent_and_seed(file, capsys):
    main(["integration", file, *SHORT, "--weights", "3", "10"])
    printed = capsys.readouterr().out
    for name in ("principal components", "VAE", "CVAE, weight 0", "CVAE, weight 3", "CVAE, weight 10"):
        assert name in printed
    assert "batch_excess" in printed


def test_denoising_stands_beside_what_needs_no_model(file, capsys, monkeypatch):
    monkeypatch.setattr(scvi_tools, "available", lambda: False)
    main(["denoising", file, *SHORT])
    printed = capsys.readouterr().out
    for name in ("CVAE_NB", "k-NN average", "no denoising", "mean of all cells"):
        assert name in printed


def test_perturbation_scores_all_types_and_each(file, capsys):
    asked = ["--condition", "perturbation", "--perturbed", "perturbation1"]
    main(["perturbation", file, *SHORT, *asked])
    printed = capsys.readouterr().out
    for name in ("all", "type0", "type1", "PerturbationVAE", "mean shift", "half against half"):
        assert name in printed


def test_no_cell_that_is_predicted_is_trained_on(file, monkeypatch):
    trained, register = [], glp.register
    monkeypatch.setattr(
        glp, "register", lambda adata, **options: trained.append(adata.obs) or register(adata, **options)
    )
    main(["perturbation", file, *SHORT, "--condition", "perturbation", "--perturbed", "perturbation1"])
    for kind, cells in zip(("type0", "type1"), trained, strict=True):
        perturbed = cells[cells["perturbation"] == "perturbation1"]
        assert set(perturbed["cell_type"]) == {"type0", "type1"} - {kind}
        assert set(cells[cells["perturbation"] == "control"]["cell_type"]) == {"type0", "type1"}


def test_only_a_cvae_is_told_the_batch(file, monkeypatch):
    told, register = [], glp.register
    monkeypatch.setattr(
        glp, "register", lambda adata, conditions: told.append(conditions) or register(adata, conditions=conditions)
    )
    main(["integration", file, *SHORT, "--weights", "3"])
    assert told == [[], ["batch"], ["batch"]]


def test_molecules_that_are_scored_are_not_trained_on(file, monkeypatch):
    monkeypatch.setattr(scvi_tools, "available", lambda: False)
    halves, trained, thin, register = [], [], glp.data.thin, glp.register
    monkeypatch.setattr(
        glp.data, "thin", lambda *given, **options: halves.append(thin(*given, **options)) or halves[-1]
    )
    monkeypatch.setattr(glp, "register", lambda adata: trained.append(adata) or register(adata))
    main(["denoising", file, *SHORT])
    assert [cells is kept for cells, (kept, _) in zip(trained, halves, strict=True)] == [True]


def test_an_unknown_measurement_is_answered_with_those_there_are(capsys):
    with pytest.raises(SystemExit):
        main(["nothing"])
    assert "integration" in capsys.readouterr().err
