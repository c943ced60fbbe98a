"""Free bits against the closed-form KL."""

import pytest
import torch
from pyro import poutine

from genailab_pyro import CVAE_NB, FreeBits, LatentLibrary, estimators
from genailab_pyro.model.particles import paired_traces
from genailab_pyro.model.penalties import kl_per_latent
from genailab_pyro.train.schedules import Annealed


@pytest.fixture
def vae():
    torch.manual_seed(0)
    vae = CVAE_NB(5, 3, 3, [8]).double().eval()
    with torch.no_grad():
        vae.encoder.scale.bias.copy_(torch.tensor([0.5, -2.0, 0.5]))
        vae.encoder.loc.bias.copy_(torch.tensor([0.0, 2.0, 0.3]))
    return vae


@pytest.fixture
def minibatch(make_minibatch):
    return make_minibatch(dtype=torch.float64)


def exact_kl(vae, minibatch):
    """KL from N(loc, scale) to N(0, 1), shape [cells, latent]."""
    posterior = vae.encoder(minibatch)
    loc, variance = posterior.mean, posterior.variance
    return (variance + loc**2 - 1 - variance.log()) / 2


def penalty_of(vae, minibatch, floor, estimator="pathwise-kl", num_particles=1):
    model, guide, _ = estimators.get(estimator).bind(vae.model, vae.guide)
    model_trace, guide_trace = paired_traces(model, guide, minibatch, num_particles)
    return FreeBits(floor)(minibatch, guide_trace, model_trace)


def test_kl_per_latent_is_the_closed_form(vae, minibatch):
    model_trace, guide_trace = paired_traces(vae.model, vae.guide, minibatch, 1)
    torch.testing.assert_close(kl_per_latent(guide_trace, model_trace).squeeze(0), exact_kl(vae, minibatch))


@pytest.mark.parametrize("floor", [0.0, 0.3, 1.0, 50.0])
@pytest.mark.parametrize("num_particles", [1, 4])
def test_kl_and_free_bits_are_the_larger_of_kl_and_floor_for_each_latent(vae, minibatch, floor, num_particles):
    kl = exact_kl(vae, minibatch).mean(0)
    penalty = penalty_of(vae, minibatch, floor, num_particles=num_particles)
    torch.testing.assert_close(kl.sum() + penalty, kl.clamp(min=floor).sum())


def test_the_floors_lie_on_both_sides(vae, minibatch):
    kl = exact_kl(vae, minibatch).mean(0)
    assert (kl < 1).any()
    assert (kl > 1).any()


def test_a_latent_below_the_floor_gets_no_gradient_of_its_kl(vae, minibatch):
    kl = exact_kl(vae, minibatch).mean(0)
    floor = 1.0
    total = kl.sum() + penalty_of(vae, minibatch, floor)
    (gradient,) = torch.autograd.grad(total, vae.encoder.scale.bias)
    below = kl < floor
    torch.testing.assert_close(gradient[below], torch.zeros_like(gradient[below]))
    assert (gradient[~below].abs() > 1e-3).all()


def test_the_kl_is_averaged_over_the_minibatch_before_the_floor(vae, minibatch):
    # One cell far from the prior lifts the mean over the floor, so that the others may stay at theirs.
    kl = exact_kl(vae, minibatch)[:, 1]
    floor = kl.mean().item() * 0.99
    assert (kl < floor).any()
    others = exact_kl(vae, minibatch).mean(0)[[0, 2]]
    expected = (floor - others).clamp(min=0).sum()
    torch.testing.assert_close(penalty_of(vae, minibatch, floor), expected)


def test_annealing_does_not_change_the_floor(vae, minibatch):
    annealed = Annealed()
    annealed.beta = 0.1
    with annealed:
        penalty = penalty_of(vae, minibatch, 1.0)
    torch.testing.assert_close(penalty, penalty_of(vae, minibatch, 1.0))


def test_a_site_whose_latents_are_not_independent_is_refused(minibatch):
    vae = CVAE_NB(5, 2, 3, [8], library=LatentLibrary(5, [3.0], [1.0])).double()
    guide_trace = poutine.trace(vae.guide).get_trace(minibatch)
    model_trace = poutine.trace(poutine.replay(vae.model, trace=guide_trace)).get_trace(minibatch)
    with pytest.raises(NotImplementedError, match="does not split into latents"):
        FreeBits(1.0, site="library")(minibatch, guide_trace, model_trace)
