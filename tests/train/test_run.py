"""A run epoch by epoch: minibatches, schedules, validation, and which weights are kept."""

import itertools

import numpy as np
import pyro
import pytest
import torch

import genailab_pyro as glp
from genailab_pyro import Training, Warmup, estimators
from genailab_pyro.train.objective import Terms
from genailab_pyro.train.run import Run


@pytest.fixture(autouse=True)
def own_state():
    with pyro.get_param_store().scope(), torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def begin(vae, cells, settings):
    """A run under changed settings."""

    def begun(*, seed=0, on=cells, **changes):
        training = Training.from_json({**settings.to_json(), **changes})
        return Run(vae, on, estimators.get("pathwise"), training, seed=seed)

    return begun


def recorded(run, monkeypatch):
    """The indices of every minibatch, and the weight and rate at every step."""
    taken, steps = [], []
    step = run.svi.step

    def watched_step(minibatch):
        taken.append(minibatch.index.tolist())
        steps.append((run.annealed.beta, run.optim.optimizer.param_groups[0]["lr"]))
        return step(minibatch)

    monkeypatch.setattr(run.svi, "step", watched_step)
    return taken, steps


@pytest.mark.parametrize(("num_cells", "size"), [(111, 10), (120, 32), (97, 96), (5, 1), (20, 64)])
def test_minibatches_hold_every_cell_once_in_almost_equal_parts(begin, cells, monkeypatch, num_cells, size):
    run = begin(on=cells.subset(range(num_cells)), minibatch_size=size, validation_fraction=0.0)
    taken, _ = recorded(run, monkeypatch)
    run.epoch()
    sizes = {len(index) for index in taken}
    assert sorted(itertools.chain(*taken)) == list(range(num_cells))
    assert len(taken) == run.training.steps_per_epoch(num_cells) == run.record.step
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1


def test_the_order_changes_with_the_epoch_and_the_seed_alone(begin, monkeypatch):
    orders = {}
    for seed, epochs in ((0, 2), (0, 1), (1, 1)):
        run = begin(seed=seed, validation_fraction=0.0)
        taken, _ = recorded(run, monkeypatch)
        torch.manual_seed(len(orders))
        for _ in range(epochs):
            run.epoch()
        orders[seed, epochs] = list(itertools.chain(*taken))
    assert orders[0, 2][:120] == orders[0, 1]
    assert orders[0, 2][120:] != orders[0, 1]
    assert orders[1, 1] != orders[0, 1]


def test_batch_norm_trains_on_any_number_of_cells(cells, train):
    some = cells.subset(range(111))
    vae = glp.CVAE_NB.from_registration(some, latent_dim=3, hidden_dims=[16], norm="batch")
    assert train(vae, some, minibatch_size=10, validation_fraction=0.0, max_epochs=1).latent().shape == (111, 3)


def test_validation_cells_are_a_share_that_is_never_trained_on(begin, cells):
    run = begin(validation_fraction=0.25, seed=3)
    training, validation = set(run.train_cells.obs_names), set(run.validation_cells.obs_names)
    assert len(validation) == 30
    assert training | validation == set(cells.obs_names)
    assert not training & validation
    assert set(begin(validation_fraction=0.25, seed=4).validation_cells.obs_names) != validation
    assert begin(validation_fraction=0.0).validation_cells is None


def test_validation_repeats_its_draws_at_beta_one_and_moves_no_state(begin):
    run = begin()
    before = torch.get_rng_state()
    first = run.validate()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    run.annealed.beta = 0.1
    assert run.validate() == first
    assert first.elbo < 0


def test_validation_is_a_mean_over_cells_without_dropout(begin, vae):
    run = begin()
    run.vae.train()
    terms = run.validate()
    vae.eval()
    minibatch = run.validation_cells.take(range(len(run.validation_cells)))
    posterior = vae.encoder(minibatch).base_dist
    kl = 0.5 * (posterior.loc**2 + posterior.scale**2 - 1) - posterior.scale.log()
    assert terms.kl == pytest.approx(kl.sum(-1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle"])
def test_each_step_has_its_weight_and_learning_rate(begin, monkeypatch, schedule):
    warmup = Warmup(beta=0.8, shape="cosine", length=0.5)
    run = begin(warmup=warmup, learning_rate_schedule=schedule, learning_rate=0.01, minibatch_size=16)
    _, steps = recorded(run, monkeypatch)
    rows = [run.epoch() for _ in range(3)]
    factor = glp.train.schedules.LEARNING_RATES[schedule]
    assert run.num_steps == 18
    assert [beta for beta, _ in steps] == [warmup.at(step, 18) for step in range(18)]
    assert [rate for _, rate in steps] == pytest.approx([0.01 * factor(step / 18) for step in range(18)])
    assert [(row["beta"], row["learning_rate"]) for row in rows] == steps[5::6]


def test_the_gradient_is_clipped_per_cell_and_its_norm_reported_before(begin):
    free, clipped = begin(validation_fraction=0.0), begin(validation_fraction=0.0, gradient_clip=0.01)
    assert clipped.optim.clip == pytest.approx(0.01 * 120)
    assert clipped.epoch()["gradient_norm"] > 0.02
    assert free.optim.clip is None


def test_the_gradient_norm_is_a_mean_over_steps_in_nats_per_cell(begin, monkeypatch):
    run, norms = begin(validation_fraction=0.0), []
    step = run.svi.step
    monkeypatch.setattr(run.svi, "step", lambda minibatch: (step(minibatch), norms.append(run.optim.gradient_norm)))
    row = run.epoch()
    assert len(set(norms)) == 4
    assert row["gradient_norm"] == pytest.approx(np.mean(norms) / 120)


def play(run, monkeypatch, elbos):
    """Let validation answer with these ELBOs, one per epoch."""
    answers = iter(elbos)
    monkeypatch.setattr(run, "validate", lambda: Terms(-next(answers), 0.0))
    states = []
    while not run.finished:
        run.epoch()
        states.append({name: value.clone() for name, value in run.vae.state_dict().items()})
    return states


def test_early_stopping_waits_for_its_patience_and_restores_the_best(begin, monkeypatch):
    run = begin(max_epochs=50, patience=3)
    states = play(run, monkeypatch, [1.0, 2.0, 1.5, 4.0, 3.0, 4.0, 3.9, 9.0])
    assert run.record.epoch == 7
    run.finish()
    kept = run.vae.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in states[3].items())
    assert not all(torch.equal(kept[name], value) for name, value in states[6].items())
    assert not run.vae.training


def test_without_patience_the_run_goes_on_but_the_best_is_restored(begin, monkeypatch):
    run = begin(max_epochs=4, patience=None)
    states = play(run, monkeypatch, [5.0, 1.0, 1.0, 1.0])
    assert run.record.epoch == 4
    run.finish()
    assert all(torch.equal(run.vae.state_dict()[name], value) for name, value in states[0].items())


def test_the_best_weights_are_judged_under_the_final_beta(begin, monkeypatch):
    # The first epoch has the better ELBO at beta = 1, and the second at the beta that the run is for.
    run = begin(max_epochs=3, warmup=Warmup(beta=4.0, length=0.5))
    answers = iter([Terms(100.0, 5.0), Terms(104.0, 2.0), Terms(104.0, 3.0)])
    monkeypatch.setattr(run, "validate", lambda: next(answers))
    elbos = []
    while not run.finished:
        elbos.append(run.epoch()["validation_elbo"])
    assert elbos == [-105.0, -106.0, -107.0]
    assert run.record.best == -112.0
    assert run.record.stale == 1


def test_without_validation_cells_the_last_weights_are_kept(begin):
    run = begin(validation_fraction=0.0)
    while not run.finished:
        run.epoch()
    last = {name: value.clone() for name, value in run.vae.state_dict().items()}
    run.finish()
    assert all(torch.equal(run.vae.state_dict()[name], value) for name, value in last.items())


def test_an_elbo_that_is_not_a_number_is_never_the_best(begin, monkeypatch):
    run = begin(max_epochs=3)
    states = play(run, monkeypatch, [np.nan, 1.0, np.nan])
    run.finish()
    assert all(torch.equal(run.vae.state_dict()[name], value) for name, value in states[1].items())


def test_a_plateau_halves_the_learning_rate_after_its_patience(begin, monkeypatch):
    run = begin(max_epochs=9, learning_rate=0.01, learning_rate_schedule="plateau", plateau_patience=2)
    play(run, monkeypatch, [1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0])
    rates = [row["learning_rate"] / 0.01 for row in run.record.history]
    assert rates == pytest.approx([1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125])


def test_other_schedules_know_no_plateau(begin, monkeypatch):
    run = begin(max_epochs=6, learning_rate=0.01, plateau_patience=1)
    play(run, monkeypatch, [1.0] * 6)
    assert {row["learning_rate"] for row in run.record.history} == {0.01}


def test_the_train_columns_are_means_over_steps(begin):
    run = begin(validation_fraction=0.0)
    row = run.epoch()
    steps = run.objective.steps
    assert len(steps) == 4
    assert row["train_kl"] == pytest.approx(np.mean([terms.kl for terms in steps]))
    assert row["train_reconstruction"] == pytest.approx(np.mean([terms.reconstruction for terms in steps]))
