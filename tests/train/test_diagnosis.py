"""A healthy fit, a collapsed one, and what is said of each."""

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import genailab_pyro as glp
from genailab_pyro.model.particles import paired_traces
from genailab_pyro.train.diagnosis import Diagnosis, LatentUse


def plain_fit(vae, cells):
    """A fit that was not trained."""
    return glp.Fit(
        vae=vae,
        registration=cells.registration,
        history=pd.DataFrame(),
        estimator=glp.Estimator(),
        training=glp.Training(),
        seed=0,
        cells=cells,
    )


@pytest.fixture
def collapsed(vae, cells):
    """A fit whose encoder says the prior, whatever it sees."""
    with torch.no_grad():
        for head in (vae.encoder.loc, vae.encoder.scale):
            head.weight.zero_()
            head.bias.zero_()
        vae.encoder.scale.bias.fill_(np.log(np.expm1(1 - 1e-4)))
    return plain_fit(vae.eval(), cells)


def test_a_collapsed_model_is_called_so(collapsed):
    diagnosis = collapsed.diagnose(num_particles=25)
    assert diagnosis.collapsed
    assert diagnosis.active_units == 0
    np.testing.assert_allclose(diagnosis.latents.kl, 0, atol=1e-5)
    np.testing.assert_allclose(diagnosis.latents.variance, 0, atol=1e-10)
    text = str(diagnosis)
    assert text.startswith("0 of 3 latents are active.\nThe posterior has collapsed onto the prior")
    assert "A longer warm-up, free bits or a smaller beta usually help" in text
    assert "KL per latent (nats): 0.00, 0.00, 0.00" in text
    assert "gradient norm nan" in text


def test_a_trained_model_is_active(fitted):
    diagnosis = fitted.diagnose()
    assert diagnosis.active_units >= 2
    assert not diagnosis.collapsed
    assert diagnosis.latents.kl.shape == diagnosis.latents.variance.shape == (3,)
    assert diagnosis.pareto_k.shape == (120,)
    assert diagnosis.gap > 0
    assert diagnosis.gradient_norm > 0
    text = str(diagnosis)
    assert text.startswith(f"{diagnosis.active_units} of 3 latents are active.")
    assert "collapsed" not in text
    assert f"minus ELBO: {diagnosis.gap:.2f} nats" in text


def test_kl_variance_gap_and_overfit_are_what_they_say(fitted):
    diagnosis = fitted.diagnose(num_particles=50, seed=3)
    assert diagnosis.latents.kl.sum() == pytest.approx(fitted.terms().kl, rel=1e-5)
    np.testing.assert_allclose(diagnosis.latents.variance, fitted.latent().var(0), rtol=1e-5)
    gap = fitted.log_likelihood(num_particles=50, seed=3) - fitted.elbo(num_particles=50, seed=3)
    assert diagnosis.gap == pytest.approx(gap.mean(), rel=1e-6)
    last = fitted.history.iloc[-1]
    assert diagnosis.overfit == pytest.approx(last["validation_elbo"] - last["train_elbo"])
    assert diagnosis.gradient_norm == pytest.approx(fitted.history["gradient_norm"].tail(5).mean())


def measured(kl=None, locs=None, **changes):
    rng = np.random.default_rng(0)
    history = pd.DataFrame({"train_elbo": [-100.0], "validation_elbo": [-101.0], "gradient_norm": [2.0]})
    use = LatentUse.of(np.full((60, 4), 1.0) if kl is None else kl, rng.normal(size=(60, 4)) if locs is None else locs)
    parts = {"latents": use, "log_weights": rng.normal(0, 0.1, (100, 60)), "history": history}
    return Diagnosis.of(**{**parts, **changes})


def test_a_latent_is_active_by_its_kl_and_its_variance():
    kl = np.tile([1.0, 1.0, 0.005, 0.005], (60, 1))
    locs = np.random.default_rng(0).normal(size=(60, 4)) * [1.0, 0.01, 1.0, 0.01]
    assert measured(kl=kl, locs=locs).latents.active.tolist() == [True, False, False, False]


def test_without_a_closed_form_the_variance_decides():
    locs = np.random.default_rng(0).normal(size=(60, 4)) * [1.0, 0.01, 1.0, 0.01]
    diagnosis = measured(kl=np.zeros((60, 0)), locs=locs)
    assert diagnosis.latents.active.tolist() == [True, False, True, False]
    assert "KL per latent (nats): no closed form" in str(diagnosis)


def test_a_posterior_that_is_the_same_for_all_cells_has_learned_nothing_yet_and_has_not_collapsed():
    diagnosis = measured(kl=np.full((60, 4), 0.8), locs=np.full((60, 4), 0.3))
    assert diagnosis.active_units == 0
    assert not diagnosis.collapsed
    assert "differs from the prior, by up to 0.80 nats, but hardly from cell to cell" in str(diagnosis)
    assert "collapsed" not in str(diagnosis)


@pytest.mark.parametrize("broken", [np.inf, np.nan])
def test_a_posterior_outside_of_the_prior_has_not_collapsed(broken):
    diagnosis = measured(kl=np.full((60, 4), broken), locs=np.zeros((60, 4)))
    assert not diagnosis.collapsed
    assert "Their KL is not finite" in str(diagnosis)


def test_each_layer_of_a_hierarchy_is_looked_at(cells):
    """The upper latents say the prior; those below follow them, and add something of their own in two of three."""
    vae = glp.HierarchicalVAE.from_registration(cells, latent_dim=3, hidden_dims=[8], upper_dim=2).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for head in (vae.upper.encoder.loc, vae.upper.encoder.scale):
            head.weight.zero_()
            head.bias.zero_()
        vae.upper.encoder.scale.bias.fill_(np.log(np.expm1(1 - 1e-4)))
    use = plain_fit(vae, cells).diagnose(num_particles=25)
    assert use.upper.collapsed
    minibatch = cells.take(range(len(cells)))
    with torch.no_grad():
        condition = vae.condition(minibatch)
        above = vae.upper.posterior(minibatch).mean
        prior = vae.prior(torch.cat([condition, above], -1)).mean
        expected = (vae.encoder(minibatch, above).mean - prior).numpy().var(0)
    np.testing.assert_allclose(use.latents.variance, expected, rtol=1e-4)
    text = str(use)
    assert "0 of 2 upper latents are active." in text
    assert "KL per upper latent (nats): 0.00, 0.00" in text


class Shifted(glp.NormalEncoder):
    """A posterior that does not know its mean."""

    def forward(self, minibatch, upper=None):
        normal = super().forward(minibatch).base_dist
        return dist.TransformedDistribution(normal, dist.transforms.SigmoidTransform()).to_event(1)


def test_a_posterior_without_a_mean_has_that_of_draws(cells):
    genes = len(cells.registration.genes)
    vae = glp.VAE(glp.StandardNormal(2), glp.MLP(2, [8]), glp.NegativeBinomialLikelihood(8, genes), Shifted(genes, 2))
    fit = plain_fit(vae.eval(), cells)
    found = fit.latent()
    np.testing.assert_array_equal(found, fit.latent())
    draws = fit.posterior_samples(num_samples=2000, seed=1)
    assert np.abs(found - draws.mean(0)).max() < 5 * draws.std(0).max() * (1 / 200 + 1 / 2000) ** 0.5


def test_half_unused_latents_are_spoken_of():
    locs = np.random.default_rng(0).normal(size=(60, 4)) * [1.0, 0.01, 1.0, 0.01]
    assert "Half or more of the latents are not used; fewer of them would do as well" in str(measured(locs=locs))
    assert "not used" not in str(measured())


def test_long_tails_of_the_weights_are_spoken_of():
    good = measured()
    assert (good.pareto_k < 0.7).all()
    assert "well behaved" in str(good)
    heavy = np.random.default_rng(0).pareto(0.5, (100, 60)) * 1.0
    bad = measured(log_weights=np.log1p(heavy))
    assert (bad.pareto_k > 0.7).mean() > 0.5
    assert f"weights of {(bad.pareto_k > 0.7).mean():.0%} of the cells have a Pareto k above 0.7" in str(bad)
    assert "well behaved" not in str(bad)


def test_a_gap_between_training_and_validation_is_spoken_of():
    history = pd.DataFrame({"train_elbo": [-100.0], "validation_elbo": [-180.0], "gradient_norm": [2.0]})
    diagnosis = measured(history=history)
    assert diagnosis.overfit == -80
    assert "Validation cells score 80 nats per cell below training cells: it overfits" in str(diagnosis)
    assert "overfits" not in str(measured())
    unknown = history.assign(validation_elbo=np.nan)
    assert "overfits" not in str(measured(history=unknown))


@pytest.mark.parametrize("number", [1, 24])
def test_too_few_draws_to_judge_by_are_refused(fitted, number):
    with pytest.raises(ValueError, match=f"num_particles of at least 25, got {number}"):
        fitted.diagnose(num_particles=number)


def test_a_kl_without_a_closed_form_has_no_columns(fitted, cells):
    with torch.no_grad():
        model_trace, guide_trace = paired_traces(fitted.vae.model, fitted.vae.guide, cells.take(range(7)), 1)
    assert Diagnosis.kl_of(guide_trace, model_trace).shape == (7, 3)
    mixture = poutine.Trace()
    weights, parts = torch.distributions.Categorical(torch.ones(2)), torch.distributions.Normal(torch.zeros(3, 2), 1.0)
    prior = torch.distributions.MixtureSameFamily(weights, parts)
    mixture.add_node("z", name="z", type="sample", fn=prior, value=torch.zeros(1, 7, 3))
    assert Diagnosis.kl_of(guide_trace, mixture).shape == (7, 0)
