import json
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
import typer
import yaml
from scipy import sparse
from typer.testing import CliRunner

import genailab_pyro as glp
from genailab_pyro import cli, comparing, estimators, runs
from genailab_pyro.configuration import Configuration
from genailab_pyro.report import run
from genailab_pyro.train.checkpoint import fingerprint

PACKAGE = Path(cli.__file__).parent
COMMANDS = (
    *("demo", "fit", "resume", "evaluate", "generate", "check", "denoise", "recover", "predict", "augment"),
    *("integrate", "discover", "differential", "contrast", "compare", "estimators", "lab"),
)
SMALL = ("--set", "model.hidden_dims=[8]", "--set", "model.latent_dim=3", "--quiet")
SEEDED = ("--max-epochs", 3, "--seed", 3, *SMALL)


def command(*arguments, **environment):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], env=environment)


def passed(*arguments):
    result = command(*arguments)
    assert result.exit_code == 0, result.stderr
    return result


def refused(*arguments, code=1):
    result = command(*arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())


def put_places(annotated, *, seed):
    """A map that costs nothing."""
    xy = np.random.default_rng(seed).normal(size=(annotated.n_obs, 2))
    return run.Map(np.arange(annotated.n_obs), xy)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    adata, _ = glp.data.simulate(120, 40, num_types=3, num_batches=2, seed=0)
    adata.obs["dose"] = np.linspace(0, 3, 120)
    adata.obs["test"] = np.arange(120) % 5 == 0
    path = tmp_path_factory.mktemp("data") / "cells.h5ad"
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run with everything, its map included."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    result = passed("fit", data, "--condition", "batch", "--labels", "cell_type", "--folder", folder, *SEEDED)
    return folder, result


@pytest.fixture
def run_folder(whole):
    return whole[0]


@pytest.fixture
def plain(monkeypatch):
    """Runs without a map and figures, which are not what is tested."""
    monkeypatch.setattr(runs, "map_cells", put_places)
    monkeypatch.setattr(runs, "run_report", lambda findings, drawn, *, seed: (glp.report.Report("A run"), {}))


def weights(folder):
    return glp.load(folder / "model").vae.state_dict()


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_leaves_everything_in_its_folder(run_folder, data):
    names = {
        "config.yaml",
        "metrics.csv",
        "scores.csv",
        "model",
        "cells.h5ad",
        "figures",
        "report.html",
        "MODEL_CARD.md",
    }
    assert {path.name for path in run_folder.iterdir()} == names | {"state"}
    history = pd.read_csv(run_folder / "metrics.csv")
    assert list(history["epoch"]) == [1, 2, 3]
    scores = pd.read_csv(run_folder / "scores.csv", index_col="model").loc["CVAE_NB"]
    assert scores["log_likelihood"] >= scores["elbo"]
    assert (scores[["elbo_standard_error", "log_likelihood_standard_error"]] > 0).all()
    assert {"training.png", "umap.png", "umap_batch.png"} <= {path.name for path in (run_folder / "figures").iterdir()}
    assert len(glp.load(run_folder / "model").registration.genes) == 40


def test_the_annotated_cells_are_all_of_the_file(run_folder, data):
    before, after = anndata.read_h5ad(data), anndata.read_h5ad(run_folder / "cells.h5ad")
    assert list(after.obs_names) == list(before.obs_names)
    assert (after.X != before.X).nnz == 0
    assert after.obsm["X_vae"].shape == (120, 3)
    assert after.obsm["X_umap"].shape == (120, 2)
    assert after.layers["expression"].shape == (120, 40)
    assert after.obs["split"].value_counts().to_dict() == {"train": 108, "held-out": 12}


def test_the_configuration_of_a_run_makes_it_again(run_folder, data, tmp_path, plain):
    content = yaml.safe_load((run_folder / "config.yaml").read_text())
    assert content["data"]["path"] == str(data)
    assert content["training"]["max_epochs"] == 3
    assert content["training"]["minibatch_size"] == glp.Training().minibatch_size
    passed("fit", "--config", run_folder / "config.yaml", "--folder", tmp_path / "again", "--quiet")
    assert same(weights(run_folder), weights(tmp_path / "again"))
    for name in ("scores.csv", "config.yaml"):
        assert (tmp_path / "again" / name).read_text() == (run_folder / name).read_text()


def test_held_out_cells_never_reach_the_training(run_folder, data, tmp_path):
    configuration = Configuration.from_file(run_folder / "config.yaml")
    prepared = runs.prepare(configuration)
    annotated = anndata.read_h5ad(run_folder / "cells.h5ad")
    train = set(annotated.obs_names[annotated.obs["split"] == "train"])
    assert set(prepared.training.obs_names) == train
    assert not train & set(prepared.test.obs_names)
    assert json.loads((run_folder / "state" / "run.json").read_text())["cells"] == fingerprint(prepared.training)

    changed = anndata.read_h5ad(data)
    values = changed.X.toarray()
    values[prepared.held_out] = 50
    changed.X = sparse.csr_matrix(values)
    changed.write_h5ad(tmp_path / "changed.h5ad")
    content = configuration.to_mapping()
    content["data"]["path"] = str(tmp_path / "changed.h5ad")
    other = runs.prepare(Configuration.from_mapping(content))
    assert other.training.registration == prepared.training.registration
    assert fingerprint(other.training) == fingerprint(prepared.training)
    assert other.test.totals.tolist() != prepared.test.totals.tolist()


def test_the_report_needs_nothing_beside_itself_and_says_what_was_done(run_folder):
    page = (run_folder / "report.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    for words in ("108 cells", "12 cells that it never saw", "told batch", "not told cell_type", "Held-out likelihood"):
        assert words in text
    assert f"genailab-pyro {glp.__version__}" in text
    score = pd.read_csv(run_folder / "scores.csv")["log_likelihood"].iloc[0]
    assert f"{score:.0f}" in text


def test_the_card_holds_the_figures_of_the_run(run_folder, data):
    card = (run_folder / "MODEL_CARD.md").read_text().replace("\\", "")
    scores = pd.read_csv(run_folder / "scores.csv").iloc[0]
    expected = glp.report.plus_minus(scores["elbo"], scores["elbo_standard_error"])
    assert f"| ELBO (nats per cell) | {expected} |" in card
    for line in (
        "| training cells | 108 |",
        "| cells | 12 |",
        "| seed | 3 |",
        "| name | pathwise |",
        "| rule | pathwise |",
    ):
        assert line in card
    assert f"| torch | {torch.__version__} |" in card
    assert f"| dropout | {glp.load(run_folder / 'model').vae.declaration()['arguments']['dropout']} |" in card
    assert str(data.parent) not in card


def test_a_map_of_very_many_cells_shows_some_of_them(monkeypatch):
    monkeypatch.setattr(run, "umap", lambda latent, *, seed: latent)
    monkeypatch.setattr(run, "MOST_MAPPED", 5)
    annotated = anndata.AnnData(np.zeros((9, 1)), obsm={"X_vae": np.arange(18.0).reshape(9, 2)})
    cells, xy = run.map_cells(annotated, seed=0)
    assert len(set(cells)) == 5
    assert (xy == annotated.obsm["X_vae"][cells]).all()
    assert "X_umap" not in annotated.obsm


def test_what_was_found_is_shown_and_how_to_see_more(whole):
    folder, result = whole
    assert "latents are active" in result.stdout
    assert str(folder / "report.html") in result.stdout
    scores = pd.read_csv(folder / "scores.csv").iloc[0]
    assert glp.report.plus_minus(scores["elbo"], scores["elbo_standard_error"]) in result.stdout
    assert "\x1b" not in result.output


def test_scores_of_a_run_are_those_of_evaluate(run_folder, tmp_path):
    table = tmp_path / "s.csv"
    passed(
        *("evaluate", run_folder, run_folder / "cells.h5ad", "--only", "split=held-out"), "--seed", 3, "--csv", table
    )
    ours = pd.read_csv(table).iloc[0, 1:].astype(float)
    theirs = pd.read_csv(run_folder / "scores.csv").iloc[0, 1:].astype(float)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_an_interrupted_run_goes_on_as_if_it_had_not_stopped(run_folder, data, tmp_path, monkeypatch, plain):
    def stop(epoch, row):
        if epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(runs, "fit", lambda *arguments, **options: glp.fit(*arguments, callback=stop, **options))
    folder = tmp_path / "cut"
    message = refused(
        *("fit", data, "--condition", "batch", "--labels", "cell_type", "--folder", folder, *SEEDED),
        code=cli.INTERRUPTED,
    )
    assert f"go on with: genailab-pyro resume {folder}" in message
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "state"}
    again = refused("fit", data, "--folder", folder)
    assert f"--overwrite, or go on with the run in it by 'genailab-pyro resume {folder}'" in again
    passed("resume", folder, "--quiet")
    assert same(weights(folder), weights(run_folder))
    assert (folder / "scores.csv").read_text() == (run_folder / "scores.csv").read_text()
    assert list(pd.read_csv(folder / "metrics.csv")["epoch"]) == [1, 2, 3]
    passed("resume", folder, "--overwrite", "--quiet")
    assert same(weights(folder), weights(run_folder))


def test_resume_says_when_there_is_nothing_to_go_on_with(run_folder, tmp_path):
    before = (run_folder / "report.html").stat().st_mtime_ns
    assert "is complete" in refused("resume", run_folder)
    assert (run_folder / "report.html").stat().st_mtime_ns == before
    assert "expected a run in" in refused("resume", tmp_path)


def test_a_folder_with_files_is_not_written_to(run_folder, data, tmp_path):
    before = (run_folder / "config.yaml").read_bytes()
    message = refused("fit", data, "--folder", run_folder)
    assert "name another one with --folder" in message
    assert "go on" not in message
    assert (run_folder / "config.yaml").read_bytes() == before
    (tmp_path / "notes.txt").write_text("mine")
    inside = refused("fit", run_folder / "cells.h5ad", "--folder", run_folder, "--overwrite")
    assert "expected another folder than that of the cells" in inside
    assert (run_folder / "cells.h5ad").exists()
    message = refused("fit", data, "--folder", tmp_path, "--overwrite")
    assert "notes.txt, which no run has written; nothing was removed" in message
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_overwriting_replaces_a_run_as_a_whole_or_not_at_all(data, tmp_path, plain):
    folder = tmp_path / "run"
    passed("fit", data, "--max-epochs", 1, "--folder", folder, *SMALL)
    (folder / "figures").mkdir(exist_ok=True)
    (folder / "figures" / "old.png").write_text("old")
    before = weights(folder)
    refused("fit", data, "--condition", "nothing", "--folder", folder, "--overwrite")
    (folder / "notes.txt").write_text("mine")
    refused("fit", data, "--max-epochs", 1, "--folder", folder, "--overwrite", *SMALL)
    assert same(weights(folder), before)
    (folder / "notes.txt").unlink()
    passed("fit", data, "--max-epochs", 1, "--held-out", 0, "--seed", 1, "--folder", folder, "--overwrite", *SMALL)
    assert not same(weights(folder), before)
    assert not (folder / "scores.csv").exists()
    assert not (folder / "figures" / "old.png").exists()


def test_a_run_without_conditions_labels_and_held_out_cells_is_told_as_such(data, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "map_cells", put_places)
    folder = tmp_path / "run"
    passed("fit", data, "--model", "VAE_Gaussian", "--max-epochs", 1, "--held-out", "0", "--folder", folder, *SMALL)
    text = " ".join(re.sub(r"<[^>]+>", " ", (folder / "report.html").read_text()).split())
    assert "No cell was held out" in text
    assert "The model sees the counts alone" in text
    assert "total counts" in text
    assert "no unbiased figure" in (folder / "MODEL_CARD.md").read_text()
    assert set(anndata.read_h5ad(folder / "cells.h5ad").obs["split"]) == {"train"}


def test_a_column_can_name_the_held_out_cells_and_genes_can_be_chosen(data, tmp_path, plain):
    folder = tmp_path / "run"
    passed(
        *("fit", data, "--continuous", "dose", "--held-out", "test", "--max-epochs", 1, "--folder", folder, *SMALL),
        *("--set", "data.preprocess={max_genes: 25, batch: batch}"),
    )
    annotated = anndata.read_h5ad(folder / "cells.h5ad")
    assert annotated.n_vars == 25
    assert ((annotated.obs["split"] == "held-out") == annotated.obs["test"]).all()
    assert [item.name for item in glp.load(folder / "model").registration.continuous] == ["dose"]


def test_settings_come_from_the_file_then_the_options_then_set(tmp_path, data):
    file = tmp_path / "config.yaml"
    file.write_text("seed: 1\ndata: {path: other.h5ad, conditions: [donor]}\ntraining: {max_epochs: 5, patience: 4}\n")
    shown = passed(
        *("fit", data, "--config", file, "--condition", "batch", "--max-epochs", 6),
        *("--set", "training.max_epochs=7", "--print-config"),
    )
    configuration = Configuration.from_mapping(yaml.safe_load(shown.stdout))
    assert configuration.seed == 1
    assert configuration.data.path == str(data)
    assert configuration.data.conditions == ("batch",)
    assert (configuration.training.max_epochs, configuration.training.patience) == (7, 4)
    assert configuration.to_yaml() == shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "{data}x"], "error: expected an h5ad file at .*; did you mean 'cells.h5ad'"),
        (["check", "{folder}"], "error: expected an h5ad file, .* is a folder"),
        (["check", "{text}"], "error: expected an AnnData in .*text.h5ad"),
        (["check", "{data}", "--condition", "bach"], "expected adata.obs.*did you mean 'batch'"),
        (["fit", "{data}", "--set", "training.max_epoch=1", "--folder", "x"], "did you mean 'max_epochs'"),
        (["fit", "--folder", "x"], "expected an h5ad file: name it"),
        (["fit", "{data}", "--model", "VEA", "--folder", "x"], "model: expected name to be one of"),
        (["fit", "{data}", "--device", "abacus", "--folder", "x"], "expected a device that torch has here"),
        (["fit", "{data}", "--config", "none.yaml", "--folder", "x"], "expected a configuration at none.yaml"),
        (["evaluate", "{folder}", "{data}"], "expected a saved fit"),
        (["generate", "{folder}", "5", "-o", "x.h5ad"], "expected a saved fit"),
    ],
)
def test_what_the_library_refuses_is_one_message(arguments, message, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.h5ad").write_text("no")
    places = {"data": data, "folder": tmp_path, "text": tmp_path / "text.h5ad"}
    result = command(*(argument.format(**places) for argument in arguments))
    assert result.exit_code == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert re.search(message, result.stderr)
    assert not (tmp_path / "x").exists()


def test_a_traceback_is_shown_where_it_is_asked_for(tmp_path):
    assert isinstance(command("check", tmp_path / "none.h5ad").exception, SystemExit)
    assert isinstance(command("--traceback", "check", tmp_path / "none.h5ad").exception, FileNotFoundError)
    shown = command("check", tmp_path / "none.h5ad", GENAILAB_PYRO_TRACEBACK="1")
    assert isinstance(shown.exception, FileNotFoundError)


@pytest.mark.parametrize(
    "arguments",
    [
        ["fit", "cells.h5ad"],
        ["fit", "cells.h5ad", "--set", "training.max_epochs", "--folder", "x"],
        ["fit", "cells.h5ad", "--epochs", "5", "--folder", "x"],
        ["generate", "model", "10"],
        ["generate", "model", "0", "-o", "x.h5ad"],
        ["generate", "model", "10", "-o", "x.h5ad", "--condition", "b1"],
        ["generate", "model", "10", "-o", "x.h5ad", "--condition", "batch=a", "--condition", "batch=b"],
        ["generate", "model", "10", "-o", "x.h5ad", "--continuous", "dose=high"],
        ["evaluate", "model", "cells.h5ad", "--particles", "0"],
        ["check", "cells.h5ad", "--model", "model", "--condition", "batch"],
        ["forget"],
    ],
)
def test_options_that_make_no_sense_exit_with_two(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(*arguments, code=2)
    assert not list(tmp_path.iterdir())


def test_warnings_are_one_line_each(tmp_path):
    adata = glp.data.pbmc68k()[:60, :30].copy()
    counts = adata.X.toarray()
    counts[:, 3] = 0
    counts[:, 4] += 1
    adata.X = sparse.csr_matrix(counts)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    lines = passed("check", tmp_path / "cells.h5ad").stderr.splitlines()
    assert len(lines) == 1
    assert re.match(r"warning: \d+ of 30 genes have no counts in any cell", lines[0])


def test_several_models_are_compared_cell_by_cell(run_folder, data, tmp_path, plain):
    other = tmp_path / "other"
    passed("fit", data, "--condition", "batch", "--model", "CVAE_ZINB", "--max-epochs", 1, "--folder", other, *SMALL)
    table = tmp_path / "scores.csv"
    asked = ("evaluate", run_folder, other / "model", data, "--particles", 20, "--csv", table)
    shown = passed(*asked).stdout
    scores = pd.read_csv(table, index_col="model")
    assert set(scores.index) == {"first", "other"}
    assert scores["difference"].iloc[0] == 0
    assert scores["difference"].iloc[1] < 0
    difference = scores["log_likelihood"].iloc[1] - scores["log_likelihood"].iloc[0]
    assert scores["difference"].iloc[1] == pytest.approx(difference)
    assert 0 < scores["difference_standard_error"].iloc[1] < scores["log_likelihood_standard_error"].iloc[1]
    assert "difference" in shown
    assert shown.index(scores.index[0]) < shown.index(scores.index[1])
    assert "there already" in refused(*asked)
    passed(*asked, "--overwrite")
    assert "each model once" in refused("evaluate", run_folder, run_folder / "model", data)


def test_training_cells_among_the_scored_ones_are_told(run_folder):
    asked = ("evaluate", run_folder, run_folder / "cells.h5ad", "--particles", 2)
    assert "leave them out: --only split=held-out" in passed(*asked).stderr
    assert passed(*asked, "--only", "split=held-out").stderr == ""
    assert "among" in refused(*asked, "--only", "split=heldout")


def test_new_cells_are_drawn_under_the_conditions_asked_for(run_folder, tmp_path):
    out = tmp_path / "new.h5ad"
    passed("generate", run_folder, 30, "-o", out, "--condition", "batch=batch1", "--seed", 1)
    first = anndata.read_h5ad(out)
    assert first.shape == (30, 40)
    assert set(first.obs["batch"]) == {"batch1"}
    assert (first.X.data == np.rint(first.X.data)).all()
    assert "there already" in refused("generate", run_folder, 30, "-o", out)
    passed("generate", run_folder, 30, "-o", out, "--condition", "batch=batch1", "--seed", 1, "--overwrite")
    assert (anndata.read_h5ad(out).X != first.X).nnz == 0
    passed("generate", run_folder, 30, "-o", out, "--condition", "batch=batch1", "--seed", 2, "--overwrite")
    assert (anndata.read_h5ad(out).X != first.X).nnz > 0
    passed("generate", run_folder / "model", 30, "-o", out, "--overwrite")
    assert set(anndata.read_h5ad(out).obs["batch"]) == {"batch0", "batch1"}
    assert "has no level 'b9'" in refused("generate", run_folder, 5, "-o", tmp_path / "x", "--condition", "batch=b9")
    assert [path.name for path in tmp_path.iterdir()] == ["new.h5ad"]


def test_denoised_cells_keep_their_latent_under_another_condition(run_folder, data, tmp_path):
    passed("denoise", run_folder, data, "-o", tmp_path / "as_is.h5ad")
    passed("denoise", run_folder, data, "-o", tmp_path / "one.h5ad", "--condition", "batch=batch1")
    as_is, one = (anndata.read_h5ad(tmp_path / f"{name}.h5ad") for name in ("as_is", "one"))
    np.testing.assert_array_equal(as_is.obsm["X_vae"], one.obsm["X_vae"])
    np.testing.assert_allclose(as_is.layers["expression"].sum(1), as_is.uns["expression_library"], rtol=1e-4)
    apart = np.abs(as_is.layers["expression"] - one.layers["expression"]).max(1)
    inside = (as_is.obs["batch"] == "batch1").to_numpy()
    assert apart[inside].max() < 1e-6 < apart[~inside].min()
    assert "there already" in refused("denoise", run_folder, data, "-o", tmp_path / "one.h5ad")


def test_check_tells_what_it_found(data, run_folder):
    shown = passed("check", data, "--condition", "batch", "--labels", "cell_type").stdout
    assert re.search(r"cells +120 *\n", shown)
    sizes = anndata.read_h5ad(data).obs["batch"].value_counts()
    assert f"batch0 ({sizes['batch0']}), batch1 ({sizes['batch1']})" in shown
    assert f"genailab-pyro fit {data} --condition batch --labels cell_type" in shown
    assert "Columns of obs" not in shown
    columns = passed("check", data).stdout
    assert re.search(r"dose +120 +0 +0 to 3 *\n", columns)
    assert f"fit the model in {run_folder}" in passed("check", data, "--model", run_folder).stdout


def test_check_fails_where_the_cells_do_not_fit(data, run_folder, tmp_path):
    adata = anndata.read_h5ad(data)
    adata[:, 2:].copy().write_h5ad(tmp_path / "few.h5ad")
    message = refused("check", tmp_path / "few.h5ad", "--model", run_folder)
    assert "expected the 40 registered genes in adata.var_names, 2 are missing" in message
    adata.obs["batch"] = "batch7"
    adata.write_h5ad(tmp_path / "unseen.h5ad")
    assert "unseen: 'batch7'" in refused("check", tmp_path / "unseen.h5ad", "--model", run_folder)
    adata.X = adata.X.log1p()
    adata.write_h5ad(tmp_path / "logs.h5ad")
    assert "log1p" in refused("check", tmp_path / "logs.h5ad")


@pytest.fixture(scope="module")
def comparison():
    """Of two estimators, on a few simulated cells."""
    cells = glp.register(glp.data.simulate(60, 12, seed=0).adata)
    vae = glp.CVAE_NB.from_registration(cells, hidden_dims=[8], latent_dim=2)
    return glp.compare_estimators(vae, cells, ["pathwise", "score"], num_draws=20, checkpoints=("given",), particles=())


def test_the_estimators_are_listed():
    shown = command("estimators", COLUMNS="200").stdout
    assert all(name in shown for name in estimators.table().index)
    uses = command("estimators", "--uses", COLUMNS="200").stdout
    assert "no: vimco" in uses
    assert passed("estimators", "--markdown").stdout == estimators.markdown(estimators.table())
    assert passed("estimators", "--uses", "--markdown").stdout == estimators.markdown(estimators.matrix())


def test_the_readme_holds_the_tables_of_estimators():
    text = (PACKAGE.parent / "README.md").read_text()
    assert estimators.markdown(estimators.table()) in text
    assert estimators.markdown(estimators.matrix()) in text


def test_estimators_are_compared_and_raced_on_a_file(data, tmp_path):
    options = ["--estimator", "pathwise", "--estimator", "score", "--draws", 8, "--max-epochs", 2, "--race", 2]
    folder = tmp_path / "compared"
    shown = passed("compare", data, "--condition", "batch", *options, "--folder", folder, "--quiet").stdout
    assert {path.name for path in folder.iterdir()} == {
        *("config.yaml", "comparison.nc", "comparison.csv", "race.nc", "race.csv", "figures", "report.html", "state")
    }
    loaded = glp.EstimatorComparison.load(folder / "comparison.nc")
    assert [*loaded.dataset["estimator"].values] == ["pathwise", "score"]
    assert [*loaded.dataset["checkpoint"].values] == ["initial", "mid", "trained"]
    assert "most precise gradient" in shown
    page = (folder / "report.html").read_text()
    assert "How far the gradients scatter" in page
    assert "Training by each estimator" in page
    assert "expected a new or empty folder" in refused("compare", data, *options, "--folder", folder)
    again = passed("compare", data, *options[:6], "--max-epochs", 1, "--folder", folder, "--quiet", "--overwrite")
    assert not (folder / "race.nc").exists()
    assert str(folder / "report.html") in again.stdout


def test_an_interrupted_comparison_goes_on_with_the_same_command(data, tmp_path, monkeypatch):
    folder, race, file = tmp_path / "compared", comparing.race_estimators, tmp_path / "cells.h5ad"
    options = ["compare", file, "--estimator", "pathwise", "--draws", 8, "--max-epochs", 2, "--folder", folder]
    shutil.copy(data, file)

    def never(*arguments, **changes):
        raise AssertionError

    def stop(line):
        if "seed 1" in line:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(comparing, "race_estimators", lambda *a, callback, **o: race(*a, callback=stop, **o))
        message = refused(*options, "--race", 2, code=cli.INTERRUPTED)
    assert "go on with the same command" in message
    measured = folder / "state" / "runs.json"
    before = json.loads(measured.read_text())["measured"]
    assert "one that differs in race; give it" in refused(*options, "--race", 3, "--quiet")
    anndata.read_h5ad(data)[:-1].write_h5ad(file)
    assert "one that differs in cells; give it" in refused(*options, "--race", 2, "--quiet")
    shutil.copy(data, file)
    (folder / "comparison.csv").unlink()
    with monkeypatch.context() as patched:
        patched.setattr(comparing, "compare_estimators", never)
        passed(*options, "--race", 2)
    after = json.loads(measured.read_text())["measured"]
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 1
    assert (folder / "report.html").exists()
    assert len(pd.read_csv(folder / "comparison.csv"))


def test_an_estimator_that_a_model_cannot_have_is_refused_before_the_folder_is_made(data, tmp_path):
    message = refused("compare", data, "--model", "LabelVAE", "--estimator", "pathwise", "--folder", tmp_path / "new")
    assert "pathwise: site 'label'" in message
    assert "'enum'" in message
    assert not (tmp_path / "new").exists()


def test_the_demo_is_run_as_asked(run_folder, comparison, tmp_path, monkeypatch):
    from genailab_pyro import demo

    asked = {}

    def run_demo(folder, **options):
        asked.update(options, folder=folder)
        scores = pd.read_csv(run_folder / "scores.csv", index_col="model")
        return demo.DemoResult({}, scores, comparison, folder)

    monkeypatch.setattr(demo, "run_demo", run_demo)
    shown = passed("demo", "--folder", tmp_path, "--max-epochs", 2, "--seed", 4, "--quiet")
    assert asked == {"folder": tmp_path, "max_epochs": 2, "seed": 4, "progress": False}
    assert str(tmp_path / "report.html") in shown.stdout
    assert "pathwise gives the most precise gradient of the latent location" in shown.stdout


def test_the_version_is_shown():
    assert passed("--version").stdout == f"genailab-pyro {glp.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_whose_options_exist(name):
    shown = command(name, "--help", COLUMNS="160")
    assert shown.exit_code == 0
    commands = typer.main.get_command(cli.app).commands
    assert set(commands) == set(COMMANDS)
    examples = [line for line in commands[name].epilog.split("\n\n") if line.startswith("genailab-pyro")]
    assert examples
    for example in examples:
        assert example in " ".join(shown.stdout.split())
        _, verb, *rest = shlex.split(example)
        assert verb == name
        known = {option for parameter in commands[verb].params for option in parameter.opts}
        assert {word for word in rest if word.startswith("-")} <= known


def test_help_loads_nothing_heavy():
    # The package's own __init__ is left out, which loads what it shows.
    code = (
        "import sys, types; package = types.ModuleType('genailab_pyro'); "
        f"package.__path__ = [{str(PACKAGE)!r}]; sys.modules['genailab_pyro'] = package; import genailab_pyro.cli; "
        "print(sorted({'torch', 'pyro', 'anndata', 'scanpy', 'pandas', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_installed_command_checks_a_file(data):
    program = Path(sysconfig.get_path("scripts")) / "genailab-pyro"
    done = subprocess.run([program, "check", data, "--condition", "bach"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith('error: expected adata.obs["bach"]')
    assert len(done.stderr.splitlines()) == 1


class TestLabels:
    """A model that learns labels, from the command line."""

    def test_it_tells_the_labels_of_all_cells_and_is_scored_on_those_that_it_never_saw(
        self, data, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(runs, "map_cells", put_places)
        model = ("--model", "SemiSupervisedVAE", "--labels", "cell_type", "--estimator", "enum")
        options = ("--held-out", "test", "--set", "model.weight=5", "--folder", tmp_path / "run")
        passed("fit", data, *model, *options, *SEEDED)
        assert glp.load(tmp_path / "run" / "model").vae.heads[0].weight == 5
        told = anndata.read_h5ad(tmp_path / "run" / "cells.h5ad").obs
        assert (told["cell_type_told"].astype(str) == told["cell_type"].astype(str)).mean() > 0.8
        assert told["cell_type_probability"].between(1 / 3, 1).all()
        figures = {path.name for path in (tmp_path / "run" / "figures").iterdir()}
        assert {"confusion_matrix.png", "label_calibration.png"} <= figures
        report, card = ((tmp_path / "run" / name).read_text() for name in ("report.html", "MODEL_CARD.md"))
        assert "the 24 held-out cells whose cell_type is known" in report
        assert re.search(r"labels \(from which the model learns\) \| cell\\_type", card)
        assert "share told right of 24" in card
        assert "| weight | 5 |" in card
        assert "upper" not in card

    def test_without_labels_it_is_refused_before_the_folder_is_made(self, data, tmp_path):
        message = refused("fit", data, "--model", "SemiSupervisedVAE", "--folder", tmp_path / "new")
        assert "expected a column of obs with labels, from which SemiSupervisedVAE learns" in message
        assert "--labels" in message
        assert not (tmp_path / "new").exists()
