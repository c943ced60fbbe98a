"""What depends on what where there is a latent above z, and that every latent is annealed."""

import pyro
import pytest
import torch
from pyro import poutine

import genailab_pyro as glp
from genailab_pyro import estimators
from genailab_pyro.model.particles import paired_traces
from genailab_pyro.model.penalties import kl_per_latent
from genailab_pyro.train.run import Run, own_state

GENES, LATENT, LEVELS = 5, 3, 3
DECLARATIONS = {
    "bits": lambda: glp.BernoulliVAE(GENES, LATENT, LEVELS, [8]),
    "hierarchy": lambda: glp.HierarchicalVAE(GENES, LATENT, LEVELS, [8], upper_dim=2),
    "label": lambda: glp.LabelVAE(GENES, LATENT, LEVELS, [8], num_labels=4),
}
UPPER = {"hierarchy": "z2", "label": "label"}
with_upper = pytest.mark.parametrize("name", list(UPPER))


def declare(name):
    """A VAE whose weights are all away from zero, also those that begin there."""
    torch.manual_seed(0)
    vae = DECLARATIONS[name]().eval()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return vae


def values_above(name):
    """Two values of the upper latent of six cells."""
    first, second = torch.eye(4 if name == "label" else 2)[:2]
    return first.expand(6, -1), second.expand(6, -1)


@with_upper
@pytest.mark.parametrize("program", ["model", "guide"])
def test_location_and_scale_of_z_depend_on_the_drawn_upper_latent(name, program, make_minibatch):
    vae, found = declare(name), []
    for value in values_above(name):
        fixed = poutine.condition(getattr(vae, program), data={UPPER[name]: value})
        found.append(poutine.trace(fixed).get_trace(make_minibatch()).nodes["z"]["fn"])
    first, second = found
    assert ((first.mean - second.mean).abs() > 1e-3).all()
    assert ((first.stddev - second.stddev).abs() > 1e-3).all()


@with_upper
def test_the_likelihood_sees_the_upper_latent_through_z_only(name, make_minibatch):
    vae, found = declare(name), []
    for value in values_above(name):
        fixed = poutine.condition(vae.model, data={UPPER[name]: value, "z": torch.ones(6, LATENT)})
        found.append(poutine.trace(fixed).get_trace(make_minibatch()).nodes["x"]["fn"].mean)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", list(DECLARATIONS))
def test_each_posterior_sees_counts_and_conditions(name, make_minibatch):
    vae, minibatch = declare(name), make_minibatch()
    others = {
        "conditions": minibatch._replace(conditions=(minibatch.conditions + 1) % LEVELS),
        "counts": minibatch._replace(counts=minibatch.counts + 3),
    }

    def means(cells):
        drawn = {} if name == "bits" else {UPPER[name]: values_above(name)[0]}
        nodes = poutine.trace(poutine.condition(vae.guide, data=drawn)).get_trace(cells).nodes
        return [nodes[site]["fn"].mean for site in (*drawn, "z")]

    for other in others.values():
        for before, after in zip(means(minibatch), means(other), strict=True):
            assert ((before - after).abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize(("name", "estimator"), [("hierarchy", "pathwise"), ("label", "enum"), ("bits", "score-loo")])
def test_every_parameter_has_a_gradient(name, estimator, make_minibatch):
    vae = declare(name)
    model, guide, elbo = estimators.get(estimator).bind(vae.model, vae.guide)
    torch.manual_seed(1)
    elbo.differentiable_loss(model, guide, make_minibatch()).backward()
    still = [key for key, value in vae.named_parameters() if value.grad is None or not value.grad.abs().max() > 0]
    assert still == []


@pytest.mark.parametrize(("name", "estimator"), [("hierarchy", "pathwise"), ("label", "enum"), ("bits", "disarm")])
def test_every_latent_is_annealed_in_model_and_guide(name, estimator):
    adata, _ = glp.data.simulate(60, GENES, num_types=3, seed=2)
    cells = glp.register(adata)
    sizes = {"latent_dim": LATENT, "hidden_dims": [8]}
    classes = {"hierarchy": glp.HierarchicalVAE, "label": glp.LabelVAE, "bits": glp.BernoulliVAE}
    training = glp.Training(warmup=glp.Warmup(beta=0.25, shape="constant"), max_epochs=1, validation_fraction=0.0)
    traces = []
    with own_state(0):
        vae = classes[name].from_registration(cells, **sizes)
        run = Run(vae, cells, estimators.get(estimator), training)
        run.objective.elbo.watchers.append(lambda *pair: traces.append(pair))
        run.step(cells.take(range(20)))
    ((model_trace, guide_trace),) = traces
    for site in [UPPER[name], "z"] if name in UPPER else ["z"]:
        for trace in (model_trace, guide_trace):
            assert trace.nodes[site]["scale"] == pytest.approx(0.25 * 3), site
    assert model_trace.nodes["x"]["scale"] == pytest.approx(3)


def test_the_prior_of_the_lower_latents_begins_with_a_scale_of_one():
    with pyro.get_param_store().scope():
        prior = glp.HierarchicalVAE(GENES, LATENT, LEVELS, [8], upper_dim=2).prior(torch.randn(4, LEVELS + 2))
    torch.testing.assert_close(prior.stddev, torch.ones(4, LATENT), atol=1e-3, rtol=0)


@with_upper
def test_draws_of_the_posterior_scatter_as_those_of_the_guide(name, make_minibatch):
    # The mean of z is that at the mean of the upper latent; what the upper latent scatters shows in the spread alone.
    vae, minibatch = declare(name), make_minibatch()
    torch.manual_seed(3)
    with torch.no_grad(), pyro.plate("particles", 8000, dim=-2):
        guided = poutine.trace(vae.guide).get_trace(minibatch).nodes["z"]["value"]
    with torch.no_grad():
        drawn = vae.posterior_draws(minibatch, 8000)
        alone = vae.encoder(minibatch, vae.upper.posterior(minibatch).mean)(torch.Size([8000]))
    squares = [(values - values.mean(0)) ** 2 for values in (guided, drawn, alone)]

    def distance(first, second):
        error = ((first.var(0) + second.var(0)) / len(first)).sqrt()
        return ((first.mean(0) - second.mean(0)).abs() / error).max()

    assert distance(squares[0], squares[1]) < 5
    assert distance(squares[0], squares[2]) > 5


def test_free_bits_hold_up_both_layers_of_a_hierarchy():
    adata, _ = glp.data.simulate(60, GENES, num_types=3, seed=2)
    cells = glp.register(adata)
    training = glp.Training(free_bits=50.0, warmup=glp.Warmup(shape="constant"), max_epochs=1, validation_fraction=0.0)
    with own_state(0):
        vae = glp.HierarchicalVAE.from_registration(cells, latent_dim=LATENT, hidden_dims=[8], upper_dim=2)
        run = Run(vae, cells, estimators.get("pathwise"), training)
        traces = paired_traces(vae.model, vae.guide, cells.take(range(20)), 1)
        (penalty,) = run.objective.penalties
        found = penalty(cells.take(range(20)), *traces[::-1])
        kl = sum(kl_per_latent(*traces[::-1], site).mean((0, 1)).sum() for site in ("z2", "z"))
    torch.testing.assert_close(found, 50.0 * (LATENT + 2) - kl)


def test_a_label_above_has_no_free_bits():
    adata, _ = glp.data.simulate(60, GENES, num_types=3, seed=2)
    vae = glp.LabelVAE.from_registration(glp.register(adata), latent_dim=LATENT, hidden_dims=[8], num_labels=3)
    fit = glp.fit(vae, glp.register(adata), "gumbel", free_bits=0.1, max_epochs=1, progress=False)
    assert fit.history["train_elbo"].notna().all()
