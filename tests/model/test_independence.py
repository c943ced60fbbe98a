"""What one VAE learns does not depend on which others are trained beside it."""

import copy

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from genailab_pyro import CVAE_NB, Embedding, fit, load
from genailab_pyro.nn import Declared

NUM_STEPS = 4


def declare(seed=0):
    torch.manual_seed(seed)
    condition = Embedding([3], 2)
    return CVAE_NB(5, 2, condition, [8], inverse_dispersion="gene-condition")


def copied(vae):
    return copy.deepcopy(vae)


def declared_again(vae):
    again = Declared.declare(vae.declaration())
    again.load_state_dict(vae.state_dict())
    return again


def other(vae):
    return declare(seed=1)


class Trainer:
    """Plain SVI with Pyro's Adam, whose draws at each step are its own."""

    def __init__(self, vae, minibatch):
        self.vae = vae
        self.minibatch = minibatch
        self.svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())

    def step(self, number):
        torch.manual_seed(number)
        self.svi.step(self.minibatch)


def weights(vae):
    return {name: value.clone() for name, value in vae.state_dict().items()}


def alone(vae, minibatch):
    with pyro.get_param_store().scope():
        trainer = Trainer(vae, minibatch)
        for number in range(NUM_STEPS):
            trainer.step(number)
    return weights(vae)


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def minibatch(make_minibatch):
    return make_minibatch()


@pytest.mark.parametrize("make", [other, copied, declared_again])
@pytest.mark.parametrize("interleaved", [False, True], ids=["in turn", "interleaved"])
def test_two_vaes_get_the_weights_that_each_gets_alone(make, interleaved, minibatch):
    first = declare()
    second = make(first)
    expected = [alone(copy.deepcopy(vae), minibatch) for vae in (first, second)]
    trainers = [Trainer(vae, minibatch) for vae in (first, second)]
    if interleaved:
        order = [(trainer, number) for number in range(NUM_STEPS) for trainer in trainers]
    else:
        order = [(trainer, number) for trainer in trainers for number in range(NUM_STEPS)]
    before = weights(second)
    for trainer, number in order:
        trainer.step(number)
    assert same(weights(first), expected[0])
    assert same(weights(second), expected[1])
    assert not same(before, weights(second))


@pytest.mark.parametrize("make", [copied, declared_again])
def test_a_copy_of_a_trained_vae_goes_on_from_its_weights_and_leaves_it_alone(make, minibatch):
    first = declare()
    Trainer(first, minibatch).step(0)
    before = weights(first)
    second = make(first)
    expected = alone(copy.deepcopy(second), minibatch)
    trainer = Trainer(second, minibatch)
    for number in range(NUM_STEPS):
        trainer.step(number)
    assert same(weights(second), expected)
    assert same(weights(first), before)


def test_two_vaes_under_one_name_are_found(minibatch):
    first, second = declare(), declare(seed=1)
    second.name = first.name
    expected = alone(copy.deepcopy(second), minibatch)
    Trainer(first, minibatch).step(0)
    trainer = Trainer(second, minibatch)
    for number in range(NUM_STEPS):
        trainer.step(number)
    assert not same(weights(second), expected)


def test_a_loaded_fit_trains_beside_the_one_that_was_saved(cells, minibatch, tmp_path):
    vae = CVAE_NB.from_registration(cells, latent_dim=2, hidden_dims=[8])
    fitted = fit(vae, cells, max_epochs=1, progress=False)
    loaded = load(fitted.save(tmp_path / "fit"))
    assert loaded.vae.name != fitted.vae.name
    assert same(weights(loaded.vae), weights(fitted.vae))
    data = cells.take(range(8))
    expected = alone(copy.deepcopy(loaded.vae), data)
    trainers = [Trainer(fitted.vae, data), Trainer(loaded.vae, data)]
    for number in range(NUM_STEPS):
        for trainer in trainers:
            trainer.step(number)
    assert same(weights(loaded.vae), expected)
    assert same(weights(fitted.vae), expected)


def test_training_leaves_the_callers_store_and_randomness_alone(cells):
    pyro.param("mine", torch.ones(2))
    vae = CVAE_NB.from_registration(cells, latent_dim=2, hidden_dims=[8])
    state, before = torch.get_rng_state(), weights(vae)
    fit(vae, cells, max_epochs=1, progress=False)
    assert list(pyro.get_param_store().keys()) == ["mine"]
    assert torch.equal(torch.get_rng_state(), state)
    assert same(weights(vae), before)
