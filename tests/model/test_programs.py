"""Model and guide under Pyro's own tools: Predictive, condition, do, render_model."""

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive

from genailab_pyro import CVAE, CVAE_NB, CVAE_ZINB, VAE_NB, VAE_ZINB, Cells, VAE_Gaussian

DECLARATIONS = [
    *((cls, {}) for cls in (CVAE, CVAE_NB, CVAE_ZINB, VAE_Gaussian, VAE_NB, VAE_ZINB)),
    *((cls, {"library": "latent"}) for cls in (CVAE_NB, CVAE_ZINB, VAE_NB)),
]
IDS = [cls.__name__ + "".join(f"-{value}" for value in options.values()) for cls, options in DECLARATIONS]
every_declaration = pytest.mark.parametrize(("cls", "options"), DECLARATIONS, ids=IDS)


@pytest.fixture(scope="module")
def cells():
    generator = torch.Generator().manual_seed(1)
    counts = torch.poisson(torch.full((40, 7), 5.0), generator=generator)
    return Cells.from_tensors(counts, conditions={"batch": ["b1", "b2"] * 20})


def declare(cls, cells, **options):
    return cls.from_registration(cells, latent_dim=2, hidden_dims=[8], **options).eval()


def latents(vae):
    return ["z"] if vae.library is None else ["library", "z"]


@every_declaration
@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_draws_prior_posterior_and_new_counts(cls, options, parallel, cells):
    vae, minibatch = declare(cls, cells, **options), cells.take(range(4))
    empty = minibatch._replace(counts=None)
    shapes = {"library": (5, 4), "z": (5, 4, 2), "x": (5, 4, 7)}
    prior = Predictive(vae.model, num_samples=5, parallel=parallel)(empty)
    posterior = Predictive(vae.guide, num_samples=5, parallel=parallel)(minibatch)
    predicted = Predictive(vae.model, posterior, parallel=parallel)(empty)
    assert {name: tuple(draws.shape) for name, draws in prior.items()} == {
        name: shapes[name] for name in [*latents(vae), "x"]
    }
    assert {name: tuple(draws.shape) for name, draws in posterior.items()} == {
        name: shapes[name] for name in latents(vae)
    }
    assert predicted["x"].shape == shapes["x"]
    assert (predicted["x"].std(0) > 0).any()


def test_predictive_in_parallel_and_in_turn_draw_from_the_same_distribution(cells):
    vae, empty = declare(CVAE_NB, cells), cells.take(range(4))._replace(counts=None)
    means = []
    for parallel, number in ((True, 4000), (False, 400)):
        torch.manual_seed(number)
        draws = Predictive(vae.model, num_samples=number, parallel=parallel)(empty)["x"].sum((1, 2))
        means.append((draws.mean(), draws.var() / number))
    (first, error), (second, other_error) = means
    assert (first - second).abs() < 5 * (error + other_error).sqrt()


def test_a_condition_fixes_a_site_and_scores_it(cells):
    vae, minibatch = declare(CVAE_NB, cells), cells.take(range(4))
    z = torch.randn(4, 2)
    trace = poutine.trace(poutine.condition(vae.model, data={"z": z})).get_trace(minibatch)
    assert trace.nodes["z"]["is_observed"]
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum()
    features = vae.decode(z, minibatch)
    likelihood = vae.likelihood(features, minibatch).log_prob(minibatch.counts).sum()
    torch.testing.assert_close(trace.log_prob_sum(), (prior + likelihood) * 10)  # 4 of 40 cells


def test_conditioning_on_counts_is_the_same_as_handing_them_in(cells):
    vae, minibatch = declare(CVAE_NB, cells), cells.take(range(4))
    z = {"z": torch.randn(4, 2)}
    handed = poutine.trace(poutine.condition(vae.model, data=z)).get_trace(minibatch)
    conditioned = poutine.condition(vae.model, data={**z, "x": minibatch.counts})
    again = poutine.trace(conditioned).get_trace(minibatch._replace(counts=None))
    torch.testing.assert_close(handed.log_prob_sum(), again.log_prob_sum())


@pytest.mark.parametrize("cls", [CVAE_NB, CVAE_ZINB])
def test_do_on_z_changes_x_and_not_the_conditions(cls, cells):
    vae = declare(cls, cells)
    minibatch = cells.take(range(4))._replace(counts=None)

    def means(model, conditions=minibatch.conditions):
        trace = poutine.trace(model).get_trace(minibatch._replace(conditions=conditions))
        return trace.nodes["x"]["fn"].mean

    far, near = (pyro.do(vae.model, data={"z": torch.full((4, 2), value)}) for value in (3.0, 0.0))
    assert not torch.allclose(means(far), means(near))
    swapped = 1 - minibatch.conditions
    features = vae.decode(torch.full((4, 2), 3.0), minibatch._replace(conditions=swapped))
    torch.testing.assert_close(means(far, swapped), vae.likelihood(features, minibatch).mean)
    assert not torch.allclose(means(far, swapped), means(far))


def test_do_on_the_library_scales_the_mean_and_leaves_the_latent_free(cells):
    vae = declare(CVAE_NB, cells, library="latent")
    minibatch = cells.take(range(4))._replace(counts=None)
    model = pyro.do(vae.model, data={"library": torch.full((4,), 1000.0)})
    trace = poutine.trace(model).get_trace(minibatch)
    torch.testing.assert_close(trace.nodes["x"]["fn"].mean.sum(-1), torch.full((4,), 1000.0))
    assert not trace.nodes["z"]["is_observed"]


@every_declaration
def test_render_model_draws_the_sites_of_both_programs(cls, options, cells):
    pytest.importorskip("graphviz")
    vae, minibatch = declare(cls, cells, **options), cells.take(range(4))
    model = pyro.render_model(vae.model, model_args=(minibatch,)).source
    guide = pyro.render_model(vae.guide, model_args=(minibatch,)).source
    assert "label=cells" in model
    assert "label=cells" in guide
    assert "x [label=x fillcolor=gray" in model
    assert "x [" not in guide
    for site in ("library", "z"):
        assert (f"{site} [label={site} fillcolor=white" in model) == (site in latents(vae))
        assert (f"{site} -> x" in model) == (site in latents(vae))
        assert (f"{site} [label={site} fillcolor=white" in guide) == (site in latents(vae))


@every_declaration
@pytest.mark.parametrize("num_particles", [1, 3])
def test_a_minibatch_counts_for_the_whole_data_set(cls, options, num_particles, cells):
    vae, minibatch = declare(cls, cells, **options), cells.take(range(4))
    with pyro.plate("particles", num_particles, dim=-2):
        guide_trace = poutine.trace(vae.guide).get_trace(minibatch)
        trace = poutine.trace(poutine.replay(vae.model, trace=guide_trace)).get_trace(minibatch)
    assert set(trace.stochastic_nodes) | set(trace.observation_nodes) >= {*latents(vae), "x"}
    for site in (trace.nodes["x"], trace.nodes["z"], guide_trace.nodes["z"]):
        assert site["scale"] == 10
        assert site["fn"].log_prob(site["value"]).shape == (num_particles, 4)
