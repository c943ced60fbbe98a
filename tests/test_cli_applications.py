"""The commands that use a fit, on a few simulated cells."""

import re

import anndata
import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

import genailab_pyro as glp
from genailab_pyro import applications, cli
from genailab_pyro import applications_counts as jobs
from genailab_pyro.report import applications_counts, html
from genailab_pyro.report.folder import RunFolder
from genailab_pyro.report.run import Map
from genailab_pyro.train.run import Run


def command(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def passed(*arguments):
    result = command(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def refused(*arguments, code=1):
    result = command(*arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return " ".join(re.sub("[│╭╮╰╯─]", " ", result.stderr).split())


def words(folder):
    """The text of a report that needs nothing beside itself."""
    page = (folder / "report.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def settings(folder):
    return yaml.safe_load((folder / "config.yaml").read_text())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Cells to train on, cells of the same process that are held out, and the folder of a model."""
    folder = tmp_path_factory.mktemp("files")
    perturbations = glp.data.Perturbations(number=2, scale=2.0, dose=glp.data.Doses(levels=(1.0, 10.0)))
    adata, _ = glp.data.simulate(480, 30, num_types=3, num_batches=2, perturbations=perturbations, seed=0)
    adata.obs["told"] = np.arange(480) % 2 == 0
    adata[:400].write_h5ad(folder / "cells.h5ad")
    adata[400:].write_h5ad(folder / "held.h5ad")
    cells = glp.register(
        adata[:400].copy(), conditions=["perturbation", "batch", "cell_type"], continuous=["dose"], labels="cell_type"
    )
    vae = glp.CVAE_NB.from_registration(cells, hidden_dims=[16], latent_dim=3)
    glp.fit(vae, cells, max_epochs=8, progress=False).save(folder / "model")
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Maps and pictures in the page that cost nothing; the figures in the folder are drawn."""

    def places(annotated, *, seed):
        xy = np.random.default_rng(seed).normal(size=(annotated.n_obs, 2))
        return Map(np.arange(annotated.n_obs), xy)

    monkeypatch.setattr(applications, "map_cells", places)
    monkeypatch.setattr(applications, "umap", lambda space, *, seed: space[:, :2])
    monkeypatch.setattr(html, "_png", lambda figure: "")
    monkeypatch.setattr(applications_counts, "SHOWN_TARGETS", 1)


def test_denoised_expression_lies_in_its_interval(files, tmp_path):
    shown = passed("denoise", files / "model", files / "cells.h5ad", "-o", tmp_path / "out.h5ad", "--intervals")
    layers = anndata.read_h5ad(tmp_path / "out.h5ad").layers
    low, middle, high = (layers[name] for name in ("expression_low", "expression", "expression_high"))
    assert (low <= high).all()
    assert ((low <= middle) & (middle <= high)).mean() > 0.95
    assert "layers['expression_high']" in shown
    passed("denoise", files / "model", files / "cells.h5ad", "-o", tmp_path / "plain.h5ad")
    plain = anndata.read_h5ad(tmp_path / "plain.h5ad").layers
    assert set(plain) == {"expression"}
    np.testing.assert_allclose(plain["expression"], middle, rtol=1e-6)


def test_recovery_stands_beside_references(files, tmp_path):
    folder = tmp_path / "recover"
    shown = passed(
        "recover", files / "cells.h5ad", "--max-epochs", 3, "--condition", "batch", "--folder", folder, "--quiet"
    )
    scores = pd.read_csv(folder / "scores.csv", index_col="method")
    assert set(scores.index) == {"CVAE_NB", "no denoising", "k-NN average", "mean of all cells"}
    assert "held-back molecules best" in shown
    assert "Molecules that were held back" in words(folder)
    cells = anndata.read_h5ad(folder / "cells.h5ad")
    whole = anndata.read_h5ad(files / "cells.h5ad")
    assert ((cells.X + cells.layers["held_back"]) != whole[cells.obs_names].X).nnz == 0
    assert glp.load(folder / "model").registration.conditions[0].name == "batch"
    assert (folder / "figures" / "recovery.png").exists()


def test_an_interrupted_recovery_is_not_scored_and_goes_on_with_the_same_command(files, tmp_path, monkeypatch):
    epoch, epochs = Run.epoch, []

    def counted(self):
        if len(epochs) == 2:
            raise KeyboardInterrupt
        epochs.append(self)
        return epoch(self)

    def stop(*arguments):
        raise KeyboardInterrupt

    folder = tmp_path / "recover"
    options = ("recover", files / "cells.h5ad", "--max-epochs", 3, "--folder", folder, "--quiet")
    with monkeypatch.context() as patched:
        patched.setattr(Run, "epoch", counted)
        message = refused(*options, code=cli.INTERRUPTED)
    assert "go on with the same command" in message
    assert "this is the fit so far" not in message
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "state"}
    other = ("integrate", files / "model", files / "cells.h5ad", "--batch", "batch", "--folder", folder)
    assert "holds files" in refused(*other)
    assert "holds one that differs in seed; give it what it was begun with" in refused(*options, "--seed", 1)
    assert "expected a run in" in refused("resume", folder)
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "cells", stop)
        refused(*options, code=cli.INTERRUPTED)
    assert (folder / "model").exists()
    passed(*options)
    assert list(pd.read_csv(folder / "metrics.csv")["epoch"]) == [1, 2, 3]
    whole = tmp_path / "whole"
    passed(*(whole if option is folder else option for option in options))
    assert (folder / "scores.csv").read_text() == (whole / "scores.csv").read_text()
    assert "holds files" in refused(*options)
    with monkeypatch.context() as patched:
        patched.setattr(jobs, "read_cells", stop)
        assert "go on" not in refused(*options, "--overwrite", code=cli.INTERRUPTED)
    assert (folder / "report.html").exists()
    passed(*options, "--overwrite")
    assert (folder / "scores.csv").read_text() == (whole / "scores.csv").read_text()


def test_a_prediction_is_scored_beside_references(files, tmp_path):
    folder = tmp_path / "predict"
    options = ("--do", "perturbation=perturbation1", "--context", "cell_type", "--dose", "dose=10", "--doses", "0,1,10")
    shown = passed("predict", files / "model", files / "cells.h5ad", *options, "--folder", folder)
    cells = anndata.read_h5ad(folder / "cells.h5ad")
    assert set(cells.obs["perturbation"]) == {"perturbation1"}
    assert set(cells.obs["dose"].round(4)) == {10.0}
    scores = pd.read_csv(folder / "scores.csv", index_col=["group", "method"])
    assert {"model", "no change", "mean shift", "half against half"} <= set(scores.loc["mean"].index)
    explained = scores.loc["mean", "r2_shift_split"]
    assert f"model {explained['model']:.2f}" in shown
    assert f"half of the real cells explain {explained['half against half']:.2f}" in shown
    curves = pd.read_csv(folder / "dose_response.csv")
    assert set(curves["dose"]) == {0, 1, 10}
    figures = {path.name for path in (folder / "figures").iterdir()}
    assert {"r2_shift_split.png", "energy_distance.png", "shift_1.png", "dose_response.png"} <= figures
    text = words(folder)
    for heading in ("The prediction", "Beside real cells", "Response to the dose", "What the latent tells"):
        assert heading in text


def test_a_prediction_without_real_cells_says_so(files, tmp_path):
    adata = anndata.read_h5ad(files / "cells.h5ad")
    adata[adata.obs["perturbation"] == "control"].write_h5ad(tmp_path / "controls.h5ad")
    options = ("--do", "perturbation=perturbation1", "--context", "cell_type", "--target", "type0", "--doses", "1,10")
    target = adata.obs["cell_type"].cat.categories[0]
    options = [target if option == "type0" else option for option in options]
    options += ["--noise", "kept"]
    shown = passed("predict", files / "model", tmp_path / "controls.h5ad", *options, "--folder", tmp_path / "new")
    assert anndata.read_h5ad(tmp_path / "new" / "cells.h5ad").uns["noise"] == "kept"
    assert "No real cells under perturbation perturbation1, dose 10" in shown
    assert "nothing to score" in words(tmp_path / "new")
    assert not (tmp_path / "new" / "scores.csv").exists()
    assert set(anndata.read_h5ad(tmp_path / "new" / "cells.h5ad").obs["cell_type"]) == {target}


def test_augmented_cells_are_told_apart_and_scored_on_real_ones(files, tmp_path):
    folder = tmp_path / "augment"
    options = ("--condition", "cell_type", "--target", 200, "--test", files / "held.h5ad")
    shown = passed("augment", files / "model", files / "cells.h5ad", *options, "--folder", folder)
    cells = anndata.read_h5ad(folder / "cells.h5ad")
    assert (cells.obs["cell_type"].value_counts() == 200).all()
    assert cells.obs["generated"].sum() == 200
    assert cells.obs["told"].isna().sum() == 200
    assert set(pd.read_csv(folder / "fidelity.csv")["source"]) == {"generated", "real"}
    assert [*pd.read_csv(folder / "classifier.csv", index_col=0)] == ["none", "oversampled", "augmented"]
    assert "Balanced accuracy on 80 real test cells" in shown
    assert "--test" not in words(folder)


def test_too_few_generated_cells_are_not_scored(files, tmp_path):
    sizes = anndata.read_h5ad(files / "cells.h5ad").obs["cell_type"].value_counts()
    options = ("--condition", "cell_type", "--target", sizes.iloc[-1] + 3, "--level", sizes.index[-1])
    passed("augment", files / "model", files / "cells.h5ad", *options, "--folder", tmp_path / "augment")
    assert "No level could be scored: expected a group of at least ten cells" in words(tmp_path / "augment")
    assert not (tmp_path / "augment" / "fidelity.csv").exists()


def test_augmentation_without_test_cells_says_what_the_figures_are_of(files, tmp_path):
    folder = tmp_path / "augment"
    passed(
        *("augment", files / "model", files / "cells.h5ad", "--condition", "cell_type", "--source", "prior"),
        *("--folder", folder),
    )
    assert not (folder / "classifier.csv").exists()
    text = words(folder)
    assert "real cells that the model was given" in text


@pytest.mark.parametrize("labels", [True, False])
def test_integration_is_scored_before_and_after(files, tmp_path, labels):
    folder = tmp_path / "integrate"
    options = ("--labels", "cell_type") if labels else ()
    shown = passed("integrate", files / "model", files / "cells.h5ad", "--batch", "batch", *options, "--folder", folder)
    scores = pd.read_csv(folder / "scores.csv", index_col="space")
    assert [*scores.index] == ["PCA", "latent"]
    assert ("ilisi" in scores) == labels
    assert np.isnan(scores.loc["PCA", "pcr"])
    assert f"{scores.loc['latent', 'batch_excess']:.1%} in the latent" in shown
    cells = anndata.read_h5ad(folder / "cells.h5ad")
    assert cells.obsm["X_vae"].shape == (400, 3)
    assert len([*(folder / "figures").iterdir()]) == (4 if labels else 2)
    assert ("pass --labels" in words(folder)) != labels


def test_a_model_that_is_not_told_the_batch_is_called_out(files, tmp_path):
    folder = tmp_path / "integrate"
    adata = anndata.read_h5ad(files / "cells.h5ad")
    adata.obs["plate"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")
    adata.write_h5ad(tmp_path / "plates.h5ad")
    passed("integrate", files / "model", tmp_path / "plates.h5ad", "--batch", "plate", "--folder", folder)
    assert "The model is not told plate" in words(folder)


def test_clusters_markers_stability_and_novelty_are_told(files, tmp_path):
    folder = tmp_path / "discover"
    options = ("--labels", "cell_type", "--reference", files / "held.h5ad", "--refit", files / "model")
    shown = passed(
        *("discover", files / "model", files / "cells.h5ad", "--resolution", 0.5, *options, "--folder", folder)
    )
    cells = anndata.read_h5ad(folder / "cells.h5ad")
    clusters = pd.read_csv(folder / "clusters.csv", index_col="cluster")
    assert clusters["cells"].sum() == cells.n_obs == 400
    assert set(cells.obs["leiden"].astype(int)) == set(clusters.index)
    assert (cells.obs["cluster_uncertainty"] == 0).all()  # the refit is the same model
    assert "agree by an adjusted Rand index of 1.00" in shown
    assert cells.obs["novelty_p_value"].between(1 / 81, 1).all()
    assert [*pd.read_csv(folder / "agreement.csv", index_col=0).index] == ["latent", "PCA"]
    figures = {path.name for path in (folder / "figures").iterdir()}
    assert figures == {"umap_cluster.png", "umap_latent_sd.png", "stability.png", "novelty.png"}
    assert "clusters are found in noise, too" in words(folder)


def test_reference_cells_must_not_be_among_the_others(files, tmp_path):
    message = refused(
        *("discover", files / "model", files / "cells.h5ad", "--reference", files / "cells.h5ad"),
        *("--folder", tmp_path / "new"),
    )
    assert "got 400 of 400 with the same name and counts" in message
    assert not (tmp_path / "new").exists()


def test_groups_are_compared_beside_the_rank_sum_test(files, tmp_path):
    folder = tmp_path / "differential"
    options = ("--groupby", "perturbation", "--group", "perturbation1", "--reference", "control")
    shown = passed("differential", files / "model", files / "cells.h5ad", *options, "--folder", folder)
    table = pd.read_csv(folder / "genes.csv", index_col="gene")
    assert {"lfc_mean", "is_de", "rank_sum_fdr"} <= set(table)
    assert np.corrcoef(table["lfc_mean"], table["rank_sum_log2_fold_change"])[0, 1] > 0.8
    assert f"{table['is_de'].sum()} of 30 genes are called" in shown
    assert {path.name for path in (folder / "figures").iterdir()} == {"volcano.png", "intervals.png"}
    assert settings(folder)["reference"] == "control"


def test_a_contrast_stands_beside_the_naive_one(files, tmp_path):
    folder = tmp_path / "contrast"
    options = ("--treatment", "perturbation", "--level", "perturbation1", "--reference", "control")
    shown = passed("contrast", files / "model", files / "cells.h5ad", *options, "--folder", folder)
    table = pd.read_csv(folder / "genes.csv", index_col="gene")
    assert {"naive_log2_fold_change", "adjusted_standard_error"} <= set(table)
    overlap = pd.read_csv(folder / "overlap.csv")
    assert f"{overlap['alone'].mean():.1%} of the cells averaged over" in shown
    assert "nothing here can notice" in words(folder)
    assert (folder / "figures" / "contrast.png").exists()


CALLS = {
    "predict": ("--do", "perturbation=perturbation1"),
    "augment": ("--condition", "cell_type"),
    "integrate": ("--batch", "batch"),
    "discover": (),
    "differential": ("--groupby", "cell_type", "--group", "B"),
    "contrast": ("--treatment", "perturbation", "--level", "perturbation1", "--reference", "control"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_folder_with_files_and_a_missing_file_are_refused_before_any_work(files, tmp_path, name):
    (tmp_path / "notes.txt").write_text("mine")
    call = (name, files / "model", files / "cells.h5ad", *CALLS[name])
    assert "expected a new or empty folder" in refused(*call, "--folder", tmp_path)
    assert "notes.txt, which no run has written" in refused(*call, "--folder", tmp_path, "--overwrite")
    assert "is in" in refused(*call, "--folder", files, "--overwrite")
    missing = (name, files / "model", files / "cell.h5ad", *CALLS[name], "--folder", tmp_path / "new")
    assert "did you mean 'cells.h5ad'" in refused(*missing)
    unfitted = (name, tmp_path, files / "cells.h5ad", *CALLS[name], "--folder", tmp_path / "new")
    assert "expected a saved fit" in refused(*unfitted)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("predict", "--do", "perturbatio=x"), "'perturbatio' is no registered condition"),
        (("predict", "--do", "perturbation=x"), "'x'"),
        (("predict", "--do", "perturbation=perturbation1", "--control", "none"), "got 'none'"),
        (("predict", "--do", "perturbation=control"), "expected a level other than that of the cells"),
        (("predict", "--do", "perturbation=perturbation1", "--context", "tissue"), 'adata.obs["tissue"]'),
        (("predict", "--do", "perturbation=perturbation1", "--dose", "time=1"), "'time' is no registered"),
        (("predict", "--do", "perturbation=perturbation1", "--noise", "lost"), "noise"),
        (("augment", "--condition", "tissue"), "expected a condition of the fit"),
        (("augment", "--condition", "cell_type", "--source", "thin air"), "source"),
        (("augment", "--condition", "cell_type", "--level", "Z"), "'Z'"),
        (("integrate", "--batch", "bach"), "did you mean 'batch'"),
        (("integrate", "--batch", "batch", "--labels", "type"), 'adata.obs["type"]'),
        (("discover", "--labels", "type"), 'adata.obs["type"]'),
        (("discover", "--resolution", "-1"), "expected resolution to be finite and above 0"),
        (("differential", "--groupby", "tissue", "--group", "B"), 'adata.obs["tissue"]'),
        (("differential", "--groupby", "cell_type", "--group", "Z"), "expected group to be a level"),
        (("contrast", "--treatment", "drug", "--level", "a", "--reference", "b"), "'drug' is no registered condition"),
        (
            ("contrast", "--treatment", "perturbation", "--level", "a", "--reference", "control"),
            "'a' is no registered level",
        ),
    ],
)
def test_unknown_names_are_one_message(files, tmp_path, arguments, message):
    name, *options = arguments
    shown = refused(name, files / "model", files / "cells.h5ad", *options, "--folder", tmp_path / "new")
    assert message in shown
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--do", "perturbation"), "expected NAME=VALUE after --do"),
        (("--do", "perturbation=a", "--dose", "dose=much"), "expected a number for dose"),
        (("--do", "perturbation=a", "--doses", "10,1"), "expected increasing doses"),
        (("--do", "perturbation=a", "--target", "B"), "name it by --context"),
    ],
)
def test_options_are_checked_before_files_are_read(tmp_path, options, message):
    assert message in refused("predict", "none", "none.h5ad", *options, "--folder", tmp_path / "new", code=2)


def test_an_earlier_folder_is_replaced_as_a_whole(files, tmp_path):
    folder = tmp_path / "out"
    passed(
        *("differential", files / "model", files / "cells.h5ad", *CALLS["differential"][:2], "--group"),
        *(anndata.read_h5ad(files / "cells.h5ad").obs["cell_type"].cat.categories[0], "--folder", folder),
    )
    call = ("integrate", files / "model", files / "cells.h5ad", "--batch", "batch", "--folder", folder)
    assert "--overwrite" in refused(*call)
    passed(*call, "--overwrite")
    assert not (folder / "genes.csv").exists()
    assert settings(folder)["application"] == "integrate"


def test_copies_are_real_cells_of_the_level_in_the_number_of_the_generated_ones():
    labels, made = np.array(["a", "a", "b", "b", "b", "c"]), np.array([False, False, False, True, True, True])
    sets = jobs._training_sets(labels, made, seed=0)
    assert sets["none"].tolist() == [0, 1, 2]
    assert sets["oversampled"].tolist() == [0, 1, 2, 2, 2]  # there is no real c to copy
    assert sets["augmented"].tolist() == [0, 1, 2, 3, 4, 5]
