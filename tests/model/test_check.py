"""check_pair finds each mistake that Pyro passes over in silence, and nothing in pairs that are right."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoLowRankMultivariateNormal, AutoMultivariateNormal, AutoNormal
from torch import nn

from genailab_pyro import (
    CVAE,
    CVAE_NB,
    CVAE_ZINB,
    VAE_NB,
    VAE_ZINB,
    LatentLibrary,
    PairError,
    VAE_Gaussian,
    check_pair,
    estimate,
    estimators,
)

VALUES = torch.linspace(-1, 1, 10)
INDEX = torch.arange(10)


def global_model(values, *, size=100):
    """A mean that all cells share."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("cells", size, subsample=INDEX[: len(values)]):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=values)


def global_guide(values):
    loc = pyro.param("guide_loc", torch.tensor(0.1))
    scale = pyro.param("guide_scale", torch.tensor(0.5), constraint=dist.constraints.positive)
    pyro.sample("loc", dist.Normal(loc, scale))


def local_model(values, *, size=100, event=True):
    """A latent of two dimensions for each cell."""
    with pyro.plate("cells", size, subsample=INDEX[: len(values)]):
        prior = dist.Normal(torch.zeros(len(values), 2), 1.0)
        z = pyro.sample("z", prior.to_event(1) if event else prior)
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=values)


class LocalGuide(nn.Module):
    """An amortised guide, registered or not."""

    def __init__(self, *, registered=True, size=100, event=True):
        super().__init__()
        self.network = nn.Linear(1, 2)
        self.registered = registered
        self.size = size
        self.event = event

    def forward(self, values):
        if self.registered:
            pyro.module("network", self.network)
        with pyro.plate("cells", self.size, subsample=INDEX[: len(values)]):
            posterior = dist.Normal(self.network(values[:, None]), 1.0)
            pyro.sample("z", posterior.to_event(1) if self.event else posterior)


def findings(model, guide, arguments=(VALUES,), num_cells=100):
    """What check_pair says; nothing where it finds nothing."""
    try:
        check_pair(model, guide, arguments, num_cells=num_cells)
    except PairError as error:
        head, *lines = str(error).split("\n  - ")
        assert head == "the model and the guide do not fit together:"
        return lines
    return []


class TestSites:
    def test_a_misspelt_site_is_named_with_the_spelling_that_was_meant(self):
        def guide(values):
            pyro.sample("lco", dist.Normal(0.0, 1.0))

        missing, strange = findings(global_model, guide)
        assert missing.startswith("the model's latent site 'loc' is not in the guide; did you mean it by 'lco'?")
        assert strange.startswith("the guide's site 'lco' is not in the model")
        assert "rename it" in strange

    def test_a_missing_site_is_named_without_a_guess(self):
        (finding,) = findings(global_model, lambda values: None)
        assert finding == "the model's latent site 'loc' is not in the guide (it has [])"

    def test_a_guide_site_that_the_model_lacks_is_named(self):
        def guide(values):
            global_guide(values)
            pyro.sample("temperature", dist.Normal(0.0, 1.0))

        (finding,) = findings(global_model, guide)
        assert finding.startswith("the guide's site 'temperature' is not in the model (it has ['loc', 'x'])")
        assert "infer={'is_auxiliary': True}" in finding

    def test_a_guide_that_draws_what_the_model_observes_is_named(self):
        def guide(values):
            global_guide(values)
            with pyro.plate("cells", 100, subsample=INDEX):
                pyro.sample("x", dist.Normal(torch.zeros(10), 1.0))

        assert "the guide draws 'x', which the model observes; leave it out of the guide" in findings(
            global_model, guide
        )


class TestRegistration:
    def test_a_network_that_is_not_registered_in_the_guide_is_named(self):
        (finding,) = findings(local_model, LocalGuide(registered=False))
        assert finding.startswith("the guide's site 'z' depends on 2 tensor(s) (shapes (2, 1), (2,))")
        assert finding.endswith("so they will not train; add pyro.module('name', network)")

    def test_it_does_not_train_and_the_registered_one_does(self):
        for registered in (False, True):
            guide = LocalGuide(registered=registered)
            before = guide.network.weight.detach().clone()
            SVI(local_model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(VALUES)
            assert torch.equal(before, guide.network.weight) != registered

    def test_a_network_that_is_not_registered_in_the_model_is_named(self):
        network = nn.Linear(2, 1)

        def model(values):
            with pyro.plate("cells", 100, subsample=INDEX):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(network(z).squeeze(-1), 1.0), obs=values)

        (finding,) = findings(model, LocalGuide())
        assert finding.startswith("the model's site 'x' depends on 2 tensor(s)")

    def test_a_frozen_network_need_not_be_registered(self):
        guide = LocalGuide(registered=False)
        guide.requires_grad_(False)
        assert findings(local_model, guide) == []

    def test_a_bare_tensor_is_named_too(self):
        scale = torch.tensor(1.0, requires_grad=True)

        def guide(values):
            pyro.sample("loc", dist.Normal(pyro.param("l", torch.tensor(0.0)), scale))

        (finding,) = findings(global_model, guide)
        assert "depends on 1 tensor(s) (shapes ())" in finding


class TestPlates:
    def test_a_plate_as_large_as_the_minibatch_is_named(self):
        (finding,) = findings(lambda values: global_model(values, size=10), global_guide)
        assert "site 'x' must be in a plate of the data set's 100 cells, but plate 'cells' has size 10" in finding
        assert "pyro.plate('cells', size=<cells in the data set>, subsample=<the minibatch's indices>)" in finding
        assert "the posterior of a global latent is too wide" in finding

    def test_it_makes_the_posterior_of_a_global_latent_wider_by_the_root_of_the_ratio(self):
        torch.manual_seed(0)
        values = torch.randn(1000)

        def model(index, size):
            loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
            with pyro.plate("cells", size, subsample=index % size):
                pyro.sample("x", dist.Normal(loc, 1.0), obs=values[index])

        def posterior_scale(size):
            torch.manual_seed(1)
            guide = AutoNormal(model, init_loc_fn=pyro.infer.autoguide.init_to_median)
            elbo = Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
            optimizer = pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.99})
            svi = SVI(model, guide, optimizer, elbo)
            for step in range(300):
                svi.step(torch.arange(100) + 100 * (step % 10), size)
            return guide.scales.loc.item()

        with pyro.validation_enabled(False):
            right, wrong = (posterior_scale(size) for size in (1000, 100))
        assert right == pytest.approx(1 / math.sqrt(1001), rel=0.15)
        assert wrong / right == pytest.approx(math.sqrt(10), rel=0.15)

    def test_no_plate_at_all_is_named(self, make_minibatch):
        def model(minibatch):
            loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Poisson(loc.exp().expand(minibatch.counts.shape)).to_event(2), obs=minibatch.counts)

        minibatch = make_minibatch(num_data=60)
        (finding,) = findings(model, global_guide, minibatch, None)
        assert "must be in a plate of the data set's 60 cells, but it is in no plate" in finding
        assert findings(model, global_guide, minibatch._replace(num_cells=6), None) == []

    def test_the_size_of_the_data_set_is_read_from_a_minibatch(self, make_minibatch):
        vae = CVAE_NB(5, 2, 3, [8])
        minibatch = make_minibatch(num_data=60)
        check_pair(vae.model, vae.guide, minibatch)
        with pytest.raises(PairError, match="data set's 600 cells, but plate 'cells' has size 60"):
            check_pair(vae.model, vae.guide, minibatch, num_cells=600)

    def test_without_the_size_of_the_data_set_plates_are_not_judged(self):
        assert findings(lambda values: global_model(values, size=10), global_guide, num_cells=None) == []


class TestShapes:
    def test_where_pyro_raises_the_fix_is_named(self):
        for model, guide, who in (
            (local_model, LocalGuide(event=False), "guide"),
            (lambda values: local_model(values, event=False), lambda values: None, "model"),
        ):
            message = rf"the {who} has a batch dimension that is not its plate's \(Shape .* 10 vs 2\).*\.to_event\(1\)"
            with pytest.raises(PairError, match=message):
                check_pair(model, guide, (VALUES,), num_cells=100)

    def test_where_the_shapes_coincide_it_is_named_though_pyro_is_silent(self):
        # As many cells as latents: the dimension of the latents passes for the plate of the cells.
        two = VALUES[:2]
        model, guide = (lambda values: local_model(values, event=False)), LocalGuide(event=False)
        with pyro.validation_enabled(False):
            SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(two)
        lines = findings(model, guide, (two,))
        assert len(lines) == 2
        for line, who in zip(lines, ("model", "guide"), strict=True):
            assert line.startswith(f"the {who}'s site 'z' has batch shape (2, 2), of which dimension -2 (size 2)")
            assert "is in no plate; add .to_event(1)" in line
        assert findings(local_model, LocalGuide(), (two,)) == []

    def test_another_error_of_a_program_comes_through(self):
        def model(values):
            raise ValueError("the weights of this model are missing")

        with pytest.raises(ValueError, match="the weights of this model are missing") as caught:
            check_pair(model, lambda values: None, (VALUES,))
        assert not isinstance(caught.value, PairError)


class TestScales:
    def test_a_plate_of_another_size_in_the_guide_is_named(self):
        (finding,) = findings(local_model, LocalGuide(size=10))
        assert finding.startswith("the site 'z' is scaled by 10 in the model and by 1 in the guide")
        assert "put the same plates and poutine.scale around both" in finding

    def test_annealing_of_the_model_alone_is_named(self):
        (finding,) = findings(poutine.scale(local_model, scale=0.5), LocalGuide())
        assert finding.startswith("the site 'z' is scaled by 5 in the model and by 10 in the guide")

    def test_annealing_of_both_is_right(self):
        assert findings(poutine.scale(local_model, scale=0.5), poutine.scale(LocalGuide(), scale=0.5)) == []


class TestRightPairs:
    @pytest.mark.parametrize("cls", [CVAE, CVAE_NB, CVAE_ZINB])
    @pytest.mark.parametrize("training", [False, True])
    def test_conditional_declarations(self, cls, training, make_minibatch):
        vae = cls(5, 2, 3, [8]).train(training)
        check_pair(vae.model, vae.guide, make_minibatch(num_data=60))

    @pytest.mark.parametrize("cls", [VAE_Gaussian, VAE_NB, VAE_ZINB])
    def test_blind_declarations(self, cls, make_minibatch):
        vae = cls(5, 2, [8])
        check_pair(vae.model, vae.guide, make_minibatch(num_data=60))

    @pytest.mark.parametrize("form", ["gene", "gene-condition", "gene-cell"])
    def test_latent_libraries_and_inverse_dispersions(self, form, make_minibatch):
        library = LatentLibrary(5, [3.0, 3.0, 3.0], [1.0, 1.0, 1.0])
        vae = CVAE_NB(5, 2, 3, [8], library=library, inverse_dispersion=form, norm="batch")
        check_pair(vae.model, vae.guide, make_minibatch(num_data=60))

    @pytest.mark.parametrize("name", estimators.table().query("latents != 'discrete'").index)
    def test_pairs_bound_to_an_estimator(self, name, make_minibatch):
        vae = CVAE_NB(5, 2, 3, [8])
        model, guide, _ = estimators.get(name).bind(vae.model, vae.guide)
        check_pair(model, guide, make_minibatch(num_data=60))
        check_pair(vae.model, estimate(z="score")(vae.guide), make_minibatch(num_data=60))

    def test_functions_with_parameters(self):
        assert findings(global_model, global_guide) == []
        assert findings(local_model, LocalGuide()) == []

    @pytest.mark.parametrize("kind", [AutoNormal, AutoDelta, AutoMultivariateNormal, AutoLowRankMultivariateNormal])
    def test_automatic_guides_which_train_afterwards(self, kind):
        guide = kind(global_model)
        assert findings(global_model, guide) == []
        before = [parameter.clone() for parameter in guide.parameters()]
        SVI(global_model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(VALUES)
        assert any(not torch.equal(old, new) for old, new in zip(before, guide.parameters(), strict=True))

    def test_a_plate_of_genes_beside_the_plate_of_cells(self):
        def model(values):
            with pyro.plate("genes", 3):
                effects = pyro.sample("effects", dist.Normal(0.0, 1.0))
            with pyro.plate("cells", 100, subsample=INDEX):
                pyro.sample("x", dist.Normal(effects.sum(), 1.0), obs=values)

        assert findings(model, AutoNormal(model)) == []

    def test_a_plate_of_genes_inside_the_plate_of_cells(self):
        def model(values):
            loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
            with pyro.plate("cells", 100, subsample=INDEX, dim=-2), pyro.plate("genes", 3, dim=-1):
                pyro.sample("x", dist.Normal(loc, 1.0), obs=values[:, None].expand(-1, 3))

        assert findings(model, global_guide) == []

    def test_an_enumerated_and_an_auxiliary_site_and_a_factor(self):
        def model(values):
            loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
            with pyro.plate("genes", 3):
                pyro.factor("ridge", -(loc**2) * torch.ones(3))
            with pyro.plate("cells", 100, subsample=INDEX):
                kind = pyro.sample("kind", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
                pyro.sample("x", dist.Normal(loc + kind, 1.0), obs=values)

        def guide(values):
            extra = pyro.sample("extra", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            pyro.sample("loc", dist.Delta(extra))

        assert findings(model, guide) == []


def test_the_random_state_the_store_and_the_parameters_are_left_as_they_were(make_minibatch):
    pyro.param("guide_loc", torch.tensor(7.0))
    vae, minibatch = CVAE_NB(5, 2, 3, [8]), make_minibatch()
    weights = {name: value.clone() for name, value in vae.state_dict().items()}
    state = torch.get_rng_state()
    assert findings(global_model, global_guide) == []
    check_pair(vae.model, vae.guide, minibatch)
    assert findings(global_model, lambda values: None)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(pyro.get_param_store().keys()) == ["guide_loc"]
    assert pyro.param("guide_loc").item() == 7
    assert all(torch.equal(value, weights[name]) for name, value in vae.state_dict().items())
    assert all(parameter.grad is None for parameter in vae.parameters())


def test_one_argument_or_a_tuple_of_them():
    check_pair(global_model, global_guide, VALUES, num_cells=100)
    check_pair(lambda first, second: global_model(first + second), lambda *both: global_guide(None), (VALUES, VALUES))
