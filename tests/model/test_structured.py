"""VAEs whose latents have structure: bits, a hierarchy, a label above."""

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from sklearn.metrics import adjusted_rand_score

import genailab_pyro as glp
from genailab_pyro.analysis.classify import label_probabilities
from genailab_pyro.estimators import EstimatorError
from genailab_pyro.model.particles import draw_particles, paired_traces
from genailab_pyro.model.penalties import kl_per_latent
from genailab_pyro.nn import Declared
from genailab_pyro.train.objective import Terms

GENES, LATENT, LEVELS = 5, 3, 3
DECLARATIONS = {
    "bits": lambda **options: glp.BernoulliVAE(GENES, LATENT, LEVELS, [8], **options),
    "hierarchy": lambda **options: glp.HierarchicalVAE(GENES, LATENT, LEVELS, [8], upper_dim=2, **options),
    "label": lambda **options: glp.LabelVAE(GENES, LATENT, LEVELS, [8], num_labels=4, **options),
}
UPPER = {"bits": [], "hierarchy": ["z2"], "label": ["label"]}
every_structure = pytest.mark.parametrize("name", list(DECLARATIONS))
FITS = [
    ("bits", "disarm"),
    ("bits", "st-gumbel"),
    ("bits", "score-kl"),
    ("hierarchy", "pathwise-kl"),
    ("hierarchy", "dreg"),
    ("hierarchy", "score-graph-ema"),
    ("label", "enum"),
    ("label", "gumbel"),
    ("label", glp.Estimator("pathwise-or-score", credit="graph", baseline="cell-average")),
]


def declare(name, **options):
    torch.manual_seed(0)
    return DECLARATIONS[name](**options).eval()


@every_structure
def test_the_sites_are_in_one_order_in_model_and_guide(name, make_minibatch):
    vae = declare(name)
    guide_trace = poutine.trace(vae.guide).get_trace(make_minibatch())
    model_trace = poutine.trace(poutine.replay(vae.model, trace=guide_trace)).get_trace(make_minibatch())
    drawn = [site for site in guide_trace.stochastic_nodes if site != "cells"]
    assert drawn == [*UPPER[name], "z"]
    assert [site for site in model_trace.stochastic_nodes if site != "cells"] == drawn


@every_structure
def test_the_pair_fits_together(name, make_minibatch):
    vae = declare(name)
    glp.check_pair(vae.model, vae.guide, make_minibatch(num_data=60))


@every_structure
def test_a_declaration_gives_the_same_model(name, make_minibatch):
    vae = declare(name)
    again = Declared.declare(vae.declaration())
    again.load_state_dict(vae.state_dict())
    torch.testing.assert_close(again.eval().posterior_mean(make_minibatch()), vae.posterior_mean(make_minibatch()))


@every_structure
@pytest.mark.parametrize("num_particles", [1, 7])
def test_weights_have_a_value_for_each_particle_and_cell(name, num_particles, make_minibatch):
    vae = declare(name)
    torch.manual_seed(1)
    assert draw_particles(vae.model, vae.guide, make_minibatch(), num_particles).log_weights.shape == (num_particles, 6)


@every_structure
def test_the_posterior_mean_is_the_mean_of_draws(name, make_minibatch):
    vae, minibatch = declare(name), make_minibatch()
    torch.manual_seed(2)
    with torch.no_grad():
        draws = vae.posterior_draws(minibatch, 4000)
        mean = vae.posterior_mean(minibatch)
    assert draws.shape == (4000, 6, LATENT)
    error = draws.std(0) / 4000**0.5
    assert ((draws.mean(0) - mean).abs() / error).max() < 5
    if name != "bits":
        # The scale depends on the upper latent, the location does so linearly: another location is found.
        assert ((draws.mean(0) - mean - 0.2).abs() / error).min() > 5


@every_structure
def test_draws_of_the_posterior_are_those_of_the_guide(name, make_minibatch):
    vae, minibatch = declare(name), make_minibatch()
    torch.manual_seed(3)
    with torch.no_grad(), pyro.plate("particles", 4000, dim=-2):
        guided = poutine.trace(vae.guide).get_trace(minibatch).nodes["z"]["value"]
    with torch.no_grad():
        drawn = vae.posterior_draws(minibatch, 4000)
    error = (guided.var(0) + drawn.var(0)).sqrt() / 4000**0.5
    assert ((guided.mean(0) - drawn.mean(0)).abs() / error).max() < 5


def test_enumeration_gives_the_bound_that_draws_of_the_label_have_on_average(make_minibatch):
    vae, minibatch = declare("label"), make_minibatch(num_data=18)
    losses = []
    for estimator in ("enum", glp.Estimator("pathwise-or-score")):
        model, guide, elbo = glp.estimators.get(estimator, num_particles=3000).bind(vae.model, vae.guide)
        torch.manual_seed(4)
        with torch.no_grad():
            losses.append(elbo.loss(model, guide, minibatch))
    torch.manual_seed(5)
    with torch.no_grad():
        weights = 3 * draw_particles(vae.model, vae.guide, minibatch, 3000).log_weights.sum(1)
    error = weights.std().item() * (2 / 3000) ** 0.5
    assert abs(losses[0] - losses[1]) < 5 * error
    assert abs(losses[0] + weights.mean().item()) < 5 * error


def test_an_upper_latent_that_the_encoder_does_not_read_is_refused():
    parts = {"prior": glp.StandardNormal(2), "decoder": glp.MLP(2, [8])}
    parts["likelihood"] = glp.NegativeBinomialLikelihood(8, GENES)
    upper = glp.UpperNormal(GENES, 4)
    with pytest.raises(ValueError, match=r"expected an encoder that reads an upper latent.*upper_dim=4"):
        glp.VAE(**parts, encoder=glp.NormalEncoder(GENES, 2, [8]), upper=upper)
    with pytest.raises(ValueError, match="got BernoulliEncoder"):
        glp.VAE(**parts, encoder=glp.BernoulliEncoder(GENES, 2, [8]), upper=upper)
    with pytest.raises(ValueError, match=r"does not read an upper latent.*without upper_dim"):
        glp.VAE(**parts, encoder=glp.NormalEncoder(GENES, 2, [8], upper_dim=4))


@pytest.fixture(scope="module")
def simulated():
    adata, _ = glp.data.simulate(90, 12, num_types=3, seed=2)
    return glp.register(adata)


@pytest.mark.parametrize(("name", "estimator"), FITS)
def test_it_trains_answers_and_is_loaded(name, estimator, simulated, tmp_path):
    classes = {"bits": glp.BernoulliVAE, "hierarchy": glp.HierarchicalVAE, "label": glp.LabelVAE}
    vae = classes[name].from_registration(simulated, latent_dim=LATENT, hidden_dims=[8])
    fit = glp.fit(vae, simulated, estimator, max_epochs=4, minibatch_size=32, progress=False)
    assert np.isfinite(fit.history.drop(columns="beta").to_numpy()).all()
    loaded = glp.load(fit.save(tmp_path / "fit"))
    adata = simulated.adata
    np.testing.assert_array_equal(loaded.latent(adata), fit.latent())
    assert fit.expression(num_samples=3).shape == (90, 12)
    assert fit.generate(7).shape == (7, 12)
    assert len(fit.diagnose(num_particles=25).latents.variance) == LATENT
    for site in UPPER[name]:
        assert fit.posterior_samples(site=site, num_samples=2).shape[:2] == (2, 90)


def test_the_reported_terms_of_an_enumerated_pair_are_those_of_its_bound(make_minibatch):
    vae, minibatch = declare("label"), make_minibatch(num_data=18)
    model, guide, elbo = glp.estimators.get("enum", num_particles=3000).bind(vae.model, vae.guide)
    terms = []
    elbo.watchers.append(lambda model_trace, guide_trace: terms.append(Terms.of(model_trace, guide_trace, 18, 3000)))
    torch.manual_seed(6)
    with torch.no_grad():
        loss = elbo.loss(model, guide, minibatch) / 18
        weights = 3 * draw_particles(vae.model, vae.guide, minibatch, 3000).log_weights.sum(1) / 18
    assert abs(loss + terms[0].elbo) < 5 * weights.std().item() / 3000**0.5
    # Summed over the labels instead of weighed by their probabilities, it would be four times as large.
    assert terms[0].reconstruction < 1.5 * loss


@pytest.mark.parametrize(
    ("name", "estimator", "instead"),
    [
        ("bits", "pathwise", "score-loo"),
        ("bits", "enum", "score-loo"),
        ("bits", "iwae", "vimco"),
        ("hierarchy", "enum", "pathwise"),
        ("hierarchy", "disarm", "score-loo"),
        ("label", "pathwise", "enum"),
        ("label", "dreg", "vimco"),
    ],
)
def test_what_cannot_train_it_is_refused_before_anything_is_written(name, estimator, instead, simulated, tmp_path):
    classes = {"bits": glp.BernoulliVAE, "hierarchy": glp.HierarchicalVAE, "label": glp.LabelVAE}
    vae = classes[name].from_registration(simulated, latent_dim=LATENT, hidden_dims=[8])
    with pytest.raises(EstimatorError, match=f"use .*'{instead}'") as refused:
        glp.fit(vae, simulated, estimator, run_folder=tmp_path / "run", progress=False)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


class TestClusters:
    @pytest.fixture(scope="class")
    def simulation(self):
        return glp.data.simulate(600, 60, num_types=5, seed=1)

    def declare(self, simulation, **options):
        cells = glp.register(simulation.adata)
        return glp.LabelVAE.from_registration(cells, num_labels=5, latent_dim=5, hidden_dims=[32], **options), cells

    def test_they_are_apart_at_the_start(self, simulation):
        vae, cells = self.declare(simulation)
        with torch.no_grad():
            codes = vae.eval().upper.posterior(cells.take(range(600))).probs.argmax(-1)
        assert adjusted_rand_score(simulation.truth.types, codes) > 0.8

    def test_they_do_not_depend_on_depth(self, simulation):
        vae, cells = self.declare(simulation)
        minibatch = cells.take(range(600))
        deeper = minibatch._replace(counts=2 * minibatch.counts, library=2 * minibatch.library)
        with torch.no_grad():
            same, other, deep_only = (
                vae.eval().upper.posterior(given).probs.argmax(-1)
                for given in (minibatch, deeper, deeper._replace(library=minibatch.library))
            )
        assert (same == other).double().mean() > 0.95
        assert (same == deep_only).double().mean() < 0.95

    def test_registered_labels_are_not_looked_at(self, simulation):
        blind, _ = self.declare(simulation)
        labelled = glp.register(simulation.adata, labels="cell_type")
        seeing = glp.LabelVAE.from_registration(labelled, num_labels=5, latent_dim=5, hidden_dims=[32])
        torch.testing.assert_close(dict(seeing.state_dict()), dict(blind.state_dict()))

    def test_the_start_depends_on_the_seed_alone(self, simulation):
        torch.manual_seed(1)
        first, _ = self.declare(simulation, seed=3)
        torch.manual_seed(2)
        again, _ = self.declare(simulation, seed=3)
        torch.testing.assert_close(dict(first.state_dict()), dict(again.state_dict()))

    @pytest.mark.parametrize("num_cells", [2, 4])
    def test_fewer_cells_than_clusters_start_finite(self, num_cells, simulation):
        vae = glp.LabelVAE(60, 2, 0, [8], num_labels=5)
        vae.initialise(glp.register(simulation.adata).take(range(num_cells)))
        assert all(torch.isfinite(value).all() for value in vae.state_dict().values())

    @pytest.mark.slow
    @pytest.mark.parametrize("estimator", ["enum", "gumbel"])
    def test_they_agree_with_the_types(self, estimator, simulation):
        vae, cells = self.declare(simulation)
        fit = glp.fit(vae, cells, estimator, max_epochs=30, progress=False)
        found = label_probabilities(fit).to_numpy()
        assert adjusted_rand_score(simulation.truth.types, found.argmax(1)) > 0.8
        assert found.mean(0).min() > 0.05


def two_level(num_cells, num_genes, *, seed):
    """Counts of five latents that two latents above them move."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(num_cells, 2)) @ rng.normal(size=(2, 5)) + 0.7 * rng.normal(size=(num_cells, 5))
    rates = np.exp(rng.normal(size=num_genes) + 0.7 * z @ rng.normal(size=(5, num_genes)) / 5**0.5)
    mean = 2000 * rates / rates.sum(1, keepdims=True)
    return torch.as_tensor(rng.poisson(mean * rng.gamma(5, size=mean.shape) / 5))


def active_units(vae, cells):
    """Whether each unit's KL, and the variance over cells of its distance from the prior mean, are above .01."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        model_trace, guide_trace = paired_traces(vae.model, vae.guide, cells.take(range(len(cells))), 20)
    found = []
    for site in ("z2", "z"):
        kl = kl_per_latent(guide_trace, model_trace, site).flatten(0, -2).mean(0)
        distance = guide_trace.nodes[site]["fn"].mean - model_trace.nodes[site]["fn"].mean
        found.append((kl > 0.01) & (distance.mean(0).var(0) > 0.01))
    return found


@pytest.mark.slow
def test_both_layers_of_a_hierarchy_stay_active():
    cells = glp.Cells.from_tensors(two_level(1000, 60, seed=0))
    sizes = {"upper_dim": 2, "latent_dim": 5, "hidden_dims": [32]}
    vae = glp.HierarchicalVAE.from_registration(cells, dropout=0.0, norm="none", **sizes)
    fit = glp.fit(vae, cells, warmup=glp.Warmup(length=0.5), progress=False)
    for layer in active_units(fit.vae, cells):
        assert layer.double().mean() >= 0.8
