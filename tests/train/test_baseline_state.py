"""What a baseline has learned belongs to the run: it is saved with it, and a run that goes on has it again."""

import pytest
import torch
from pandas.testing import assert_frame_equal

import genailab_pyro as glp
from genailab_pyro.train.storage import read_tensors

LEARNING = ["score-graph-ema", "score-graph-nn"]
every_learning = pytest.mark.parametrize("estimator", LEARNING)


def interrupted_after(number):
    """Ctrl-C after some epochs."""

    def callback(epoch, row):
        if epoch == number:
            raise KeyboardInterrupt

    return callback


@every_learning
def test_a_run_that_was_interrupted_ends_with_the_same_bits(estimator, vae, cells, train, same_state, tmp_path):
    whole = train(vae, cells, estimator, max_epochs=6)
    with pytest.warns(UserWarning, match="interrupted after epoch 3"):
        train(vae, cells, estimator, max_epochs=6, run_folder=tmp_path / "run", callback=interrupted_after(3))
    resumed = glp.resume(tmp_path / "run", cells, progress=False)
    assert same_state(whole.vae, resumed.vae)
    assert_frame_equal(whole.history.drop(columns="seconds"), resumed.history.drop(columns="seconds"))
    assert whole.baseline.keys() == resumed.baseline.keys()
    assert all(torch.equal(value, resumed.baseline[name]) for name, value in whole.baseline.items())


@every_learning
def test_it_is_saved_and_loaded_with_the_fit(estimator, vae, cells, train, tmp_path):
    fit = train(vae, cells, estimator, max_epochs=2)
    loaded = glp.load(fit.save(tmp_path / "fit"))
    assert fit.baseline.keys() == loaded.baseline.keys()
    assert all(torch.equal(value, loaded.baseline[name]) for name, value in fit.baseline.items())
    _, _, elbo = glp.estimators.get(estimator).bind(loaded.vae.model, loaded.vae.guide)
    elbo.baseline.load_state_dict(loaded.baseline)
    assert all(torch.equal(value, fit.baseline[name]) for name, value in elbo.baseline.state_dict().items())


def test_a_fit_without_a_baseline_leaves_no_file(vae, cells, train, tmp_path):
    fit = train(vae, cells, "pathwise", max_epochs=1)
    assert fit.baseline is None
    assert not (fit.save(tmp_path / "fit") / "baseline.safetensors").exists()


def test_its_cells_are_those_of_the_training_set(vae, cells, train):
    fit = train(vae, cells, "score-graph-ema", max_epochs=2, validation_fraction=0.25)
    visits = fit.baseline["visits of z"]
    assert len(visits) == 90
    assert (visits == 2).all()


def test_the_optimizer_keeps_nothing_for_what_has_no_parameters(vae, cells, train, tmp_path):
    train(vae, cells, "score-graph-ema", max_epochs=2, run_folder=tmp_path / "run")
    tensors, _ = read_tensors(tmp_path / "run" / "checkpoint.safetensors")
    stepped = {name.split("/")[1].split(".")[0] for name in tensors if name.startswith("optimizer/")}
    assert len(stepped) == len([*vae.parameters()])


def test_the_loss_of_a_network_does_not_take_part_in_the_clip_of_the_model(vae, cells, train, same_state):
    # Clipped together, a large loss of the baseline would shorten the model's steps.
    plain = train(vae, cells, "score-graph", max_epochs=1, gradient_clip=1e-3, minibatch_size=120)
    beside = train(vae, cells, "score-graph-nn", max_epochs=1, gradient_clip=1e-3, minibatch_size=120)
    assert plain.history["gradient_norm"].iloc[0] == pytest.approx(beside.history["gradient_norm"].iloc[0], rel=1e-5)


@pytest.mark.slow
def test_a_baseline_per_cell_comes_within_thirty_times_of_pathwise_on_real_counts():
    cells = glp.register(glp.preprocess(glp.data.pbmc68k()))
    vae = glp.CVAE_NB.from_registration(cells)
    estimators = ["pathwise", "score-graph-ema", "score-graph-nn", glp.Estimator("score", baseline="constant")]
    compared = glp.compare_estimators(vae, cells, estimators, checkpoints=("trained",), particles=())
    ratios = compared.at(group="latent location")["ratio"]
    assert ratios.sel(estimator="score-graph-ema") < 30
    assert ratios.sel(estimator="score-graph-nn") < 300
    assert ratios.sel(estimator="score-constant") > 1000
