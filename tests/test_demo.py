"""The main job: what it holds out, what it says of the estimators, and what it leaves behind."""

import pytest
import torch
from typer.testing import CliRunner

import genailab_pyro as glp
from genailab_pyro import cli, demo
from genailab_pyro.train.run import Run


def test_every_tenth_cell_is_held_out():
    training, held_out = demo.split_every_tenth(glp.data.simulate(45, 10, seed=0).adata)
    assert (training.n_obs, held_out.n_obs) == (40, 5)
    assert not set(training.obs_names) & set(held_out.obs_names)


@pytest.mark.slow
def test_the_demo_leaves_a_report_of_four_fits_that_agree_with_its_scores(tmp_path):
    result = demo.run_demo(tmp_path / "demo", max_epochs=3, progress=False)
    assert set(result.scores.index) == set(demo.FITS)
    assert (result.scores["log_likelihood"] > result.scores["elbo"]).all()
    found = result.comparison.to_dataframe().loc["given"]
    assert found.loc[("latent location", "score"), "ratio"] > 100
    assert found.loc["decoder", "ratio"].to_numpy() == pytest.approx(1, rel=1e-3)
    assert found["bias_errors"].max() < 5
    page = (tmp_path / "demo" / "report.html").read_text()
    assert page.count("<img") == 9
    assert all(name in page for name in demo.FITS)
    assert "expected to train poorly" in page
    loaded = glp.load(tmp_path / "demo" / "model")
    test = demo.split_every_tenth(glp.preprocess(glp.data.pbmc68k()))[1]
    assert loaded.elbo(test).mean() == pytest.approx(result.scores.loc[demo.MAIN, "elbo"], abs=1e-3)
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {
        *("config.yaml", "metrics.csv", "model", "cells.h5ad", "figures", "report.html", "MODEL_CARD.md", "state")
    }


class FitsAreDoneError(Exception):
    """In place of what follows the fits."""


def test_an_interrupted_demo_goes_on_with_the_same_command(tmp_path, monkeypatch):
    fits, epochs, epoch = [], [], Run.epoch

    def score(found, test, *, seed):
        fits.append(found)
        raise FitsAreDoneError

    def until(last):
        epochs.clear()

        def counted(self):
            if len(epochs) == last:
                raise KeyboardInterrupt
            epochs.append(self)
            return epoch(self)

        return counted

    monkeypatch.setattr(demo, "score", score)
    with pytest.raises(FitsAreDoneError):
        demo.run_demo(tmp_path / "whole", max_epochs=2, progress=False)
    command = ["demo", "--folder", str(tmp_path / "cut"), "--max-epochs", "2", "--quiet"]
    monkeypatch.setattr(Run, "epoch", until(3))
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == cli.INTERRUPTED
    assert "go on with the same command" in result.stderr
    monkeypatch.setattr(Run, "epoch", until(None))
    other = CliRunner().invoke(cli.app, [*command, "--seed", "1"])
    assert "holds one that differs in seed" in " ".join(other.stderr.split())
    assert isinstance(CliRunner().invoke(cli.app, command).exception, FitsAreDoneError)
    assert len(epochs) == 5
    whole, cut = fits
    for name in demo.FITS:
        assert not cut[name].interrupted
        for one, two in zip(whole[name].vae.parameters(), cut[name].vae.parameters(), strict=True):
            assert torch.equal(one, two)
