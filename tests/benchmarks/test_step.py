"""The steps that are compared compute the same."""

import copy

import pytest
import torch

import genailab_pyro as glp
from genailab_pyro.train.run import Run, own_state
from tests.benchmarks import step as benchmark
from tests.benchmarks.timing import alternate


@pytest.fixture(scope="module")
def cells():
    return glp.register(glp.data.simulate(256, 20, num_types=3, seed=1)[0])


@pytest.fixture
def vae(cells):
    return glp.CVAE_NB.from_registration(cells, latent_dim=3, hidden_dims=[16])


@pytest.fixture
def minibatch(cells):
    """A part of the cells, so that the plate's factor is not one."""
    return cells.take(range(128), dtype=torch.float64)


def gradients(vae):
    found = {name: value.grad.clone() for name, value in vae.named_parameters()}
    vae.zero_grad()
    return found


@pytest.mark.parametrize("loss_of", [benchmark.loss_by_hand, benchmark.inlined_loss])
def test_the_loss_by_hand_and_its_gradient_are_ours(cells, vae, minibatch, loss_of):
    with own_state(0):
        run = Run(vae.double(), cells, glp.estimators.get("pathwise"), benchmark.TRAINING)
        run.vae.train()
        torch.manual_seed(3)
        ours = run.objective.loss_and_grads(run.model, run.guide, minibatch), gradients(run.vae)
        torch.manual_seed(3)
        loss = loss_of(run.vae, minibatch)
        loss.backward()
    assert loss.item() == pytest.approx(ours[0], rel=1e-12)
    for name, gradient in gradients(run.vae).items():
        torch.testing.assert_close(gradient, ours[1][name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("clip", [1000.0, 0.5])
def test_steps_by_hand_lead_to_our_weights(cells, vae, minibatch, clip, monkeypatch):
    training = glp.Training.from_json({**benchmark.TRAINING.to_json(), "gradient_clip": clip})
    monkeypatch.setattr(benchmark, "TRAINING", training)
    ours, by_hand = copy.deepcopy(vae.double()), copy.deepcopy(vae)
    for make, trained in ((benchmark.our_step, ours), (benchmark.step_by_hand, by_hand)):
        with own_state(0):
            step = make(trained, cells)
            torch.manual_seed(3)
            for _ in range(3):
                step(minibatch)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, by_hand.state_dict()[name], rtol=1e-6, atol=1e-9)
    assert not torch.equal(ours.decoder.layers[0].weight, vae.decoder.layers[0].weight)


def test_every_contender_is_timed_in_every_round():
    calls = []
    contenders = {name: lambda name=name: calls.append(name) for name in "abc"}
    timings = alternate(contenders, rounds=3, repeats=1, warmup=0)
    turns = [calls[start : start + 6] for start in (0, 6, 12)]
    assert [sorted(turn) for turn in turns] == [[*"aabbcc"]] * 3
    assert len({*map(tuple, turns)}) > 1
    assert {name: len(times) for name, times in timings.seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert timings.ratio("a", "a").median == 1
