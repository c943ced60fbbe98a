"""The main job: what it holds out, what it says of the estimators, and what it leaves behind."""

import numpy as np
import pytest

import genailab_pyro as glp
from genailab_pyro import demo
from genailab_pyro.experiments import GradientDraws


@pytest.fixture
def draws():
    """Gradients of one mean; score scatters ten times as far as pathwise, the decoder's are the same for all."""
    rng = np.random.default_rng(0)
    noise, decoder = rng.normal(size=(400, 3)), GradientDraws(rng.normal(size=(400, 3)))
    return {
        name: {group: decoder if group == "decoder" else GradientDraws(2.0 + factor * noise) for group in demo.GROUPS}
        for name, factor in (("pathwise", 1.0), ("score", 10.0), ("score-graph", 10.0))
    }


def ratios(table, column="ratio_to_pathwise"):
    return table.set_index(["parameters", "estimator"])[column]


def test_every_tenth_cell_is_held_out():
    training, held_out = demo.split_every_tenth(glp.data.simulate(45, 10, seed=0).adata)
    assert (training.n_obs, held_out.n_obs) == (40, 5)
    assert not set(training.obs_names) & set(held_out.obs_names)


def test_the_table_gives_variances_in_units_of_pathwise(draws):
    found = ratios(demo.gradient_table(draws))
    assert found["latent location", "score"] == pytest.approx(100)
    assert found["latent scale", "score-graph"] == pytest.approx(100)
    assert (found["decoder"] == 1).all()


def test_the_table_tells_equal_means_from_unequal_ones(draws):
    apart = ratios(demo.gradient_table(draws), "distance_of_means")
    assert apart.max() < 5
    biased = GradientDraws(draws["score"]["latent location"].values + 5.0)
    draws["score"]["latent location"] = biased
    assert ratios(demo.gradient_table(draws), "distance_of_means")["latent location", "score"] > 5


@pytest.mark.slow
def test_the_demo_leaves_a_report_of_four_fits_that_agree_with_its_scores(tmp_path):
    result = demo.run_demo(tmp_path / "demo", max_epochs=3, progress=False)
    assert set(result.scores.index) == set(demo.FITS)
    assert (result.scores["log_likelihood"] > result.scores["elbo"]).all()
    found = ratios(result.gradients)
    assert found["latent location", "score"] > 100
    assert found["decoder"].to_numpy() == pytest.approx(1, rel=1e-3)
    assert result.gradients["distance_of_means"].max() < 5
    page = (tmp_path / "demo" / "report.html").read_text()
    assert page.count("<img") == 8
    assert all(name in page for name in demo.FITS)
    assert "expected to train poorly" in page
    loaded = glp.load(tmp_path / "demo" / "model")
    test = demo.split_every_tenth(glp.preprocess(glp.data.pbmc68k()))[1]
    assert loaded.elbo(test).mean() == pytest.approx(result.scores.loc[demo.MAIN, "elbo"], abs=1e-3)
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {
        *("config.yaml", "metrics.csv", "model", "cells.h5ad", "figures", "report.html", "MODEL_CARD.md")
    }
