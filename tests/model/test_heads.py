"""Heads: what is observed beside the counts, where it is known, and what is learned of it."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import genailab_pyro as glp
from genailab_pyro.model.heads import AnnotationHead
from genailab_pyro.model.particles import draw_particles, paired_traces
from genailab_pyro.nn import Declared
from genailab_pyro.train.objective import Terms

GENES, LATENT, LABELS = 5, 3, 4
HEADS = {
    "label": lambda **options: glp.LabelHead(LATENT, LABELS, **options),
    "deep label": lambda **options: glp.LabelHead(LATENT, LABELS, (8,), **options),
    "value": lambda **options: glp.ValueHead(LATENT, **options),
}
every_head = pytest.mark.parametrize("name", list(HEADS))


class Nameless(glp.Head):
    """A head that forgot its site."""

    def forward(self, z, minibatch, upper=None):
        return dist.Normal(z[..., 0], 1.0)

    def observed(self, minibatch):
        return None


class Named(Nameless):
    """A head whose site is an argument."""

    def __init__(self, site):
        super().__init__()
        self.site = site


def declare(*heads):
    torch.manual_seed(0)
    return glp.VAE_NB(GENES, LATENT, [8], heads=heads).eval()


@pytest.fixture
def minibatch(make_minibatch):
    """Six cells, two of them without a label, and a covariate."""
    labels = torch.tensor([0, 1, -1, 3, -1, 2])
    return make_minibatch()._replace(labels=labels, continuous=torch.linspace(-1, 1, 6)[:, None])


def bound(vae, minibatch, seed=1):
    model, guide, elbo = glp.estimators.get("pathwise").bind(vae.model, vae.guide)
    torch.manual_seed(seed)
    return elbo.differentiable_loss(model, guide, minibatch)


@every_head
@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_a_head_adds_the_weighed_log_probability_of_what_is_known(name, weight, minibatch):
    head = HEADS[name](weight=weight)
    vae = declare(head.eval())
    plain = glp.VAE(vae.prior, vae.decoder, vae.likelihood, vae.encoder, condition=vae.condition).eval()
    torch.manual_seed(1)
    z = poutine.trace(vae.guide).get_trace(minibatch).nodes["z"]["value"]
    value, known = head.observed(minibatch)
    expected = weight * head(z, minibatch).log_prob(value)[known].sum()
    difference = bound(plain, minibatch) - bound(vae, minibatch)
    torch.testing.assert_close(difference, expected, rtol=1e-3, atol=1e-3)
    assert (difference - weight * head(z, minibatch).log_prob(value).sum()).abs() > 0.1 or known.all()


def test_a_label_that_is_not_known_has_no_gradient(minibatch):
    vae = declare(glp.LabelHead(LATENT, LABELS))
    bound(vae, minibatch._replace(labels=torch.full((6,), -1))).backward()
    assert vae.heads[0].logits.weight.grad is None
    bound(vae, minibatch).backward()
    assert vae.heads[0].logits.weight.grad.any()


def test_cells_without_labels_have_no_site(minibatch):
    vae = declare(glp.LabelHead(LATENT, LABELS))
    assert "y" in poutine.trace(vae.model).get_trace(minibatch).nodes
    assert "y" not in poutine.trace(vae.model).get_trace(minibatch._replace(labels=None)).nodes


def test_what_is_reported_is_of_the_counts_alone(minibatch):
    vae = declare(glp.LabelHead(LATENT, LABELS), glp.ValueHead(LATENT))
    terms = []
    for labels in (minibatch.labels, (minibatch.labels + 1) % LABELS):
        torch.manual_seed(2)
        model_trace, guide_trace = paired_traces(vae.model, vae.guide, minibatch._replace(labels=labels), 1)
        for trace in (guide_trace, model_trace):
            trace.compute_log_prob()
        terms.append(Terms.of(model_trace, guide_trace, 6, 1))
        scored = model_trace.nodes["x"]["unscaled_log_prob"].sum().item()
        assert terms[-1].reconstruction == pytest.approx(-scored / 6)
    assert terms[0] == terms[1]


def test_a_vae_with_heads_is_declared_again_with_its_heads(minibatch):
    vae = declare(glp.LabelHead(LATENT, LABELS, (8,), weight=3.0), glp.ValueHead(LATENT))
    again = Declared.declare(vae.declaration())
    again.load_state_dict(vae.state_dict())
    assert [head.weight for head in again.heads] == [3.0, 1.0]
    torch.testing.assert_close(bound(again.eval(), minibatch), bound(vae, minibatch))


def test_two_heads_at_one_site_are_refused():
    with pytest.raises(ValueError, match="at sites of their own, got 'y' twice"):
        declare(glp.LabelHead(LATENT, LABELS), glp.LabelHead(LATENT, 2))


def test_a_head_of_one_label_is_refused():
    with pytest.raises(ValueError, match="expected at least two labels, got 1"):
        glp.LabelHead(LATENT, 1)


def test_a_covariate_that_is_not_registered_is_refused(minibatch):
    with pytest.raises(ValueError, match=r"expected cells with at least 2 continuous covariate.*got 1; register them"):
        glp.ValueHead(LATENT, covariate=1).observed(minibatch)


class TestDeclaration:
    """A head that is not whole is refused when it, or the VAE with it, is declared."""

    @pytest.mark.parametrize("missing", [("forward",), ("observed",), ("forward", "observed")])
    def test_a_head_without_a_method_is_refused(self, missing):
        methods = {name: lambda self, *_: None for name in ("forward", "observed") if name not in missing}
        with pytest.raises(
            TypeError, match=f"expected the head Partial to have .* for {' and '.join(missing)}; define"
        ):
            type("Partial", (glp.Head,), {"site": "y", **methods})()

    def test_a_head_without_a_site_is_refused(self):
        with pytest.raises(TypeError, match=r"expected the head Nameless to name its observed site.*write site = "):
            declare(Nameless())

    def test_a_site_may_depend_on_the_arguments(self):
        assert [head.site for head in declare(Named("a"), Named("b")).heads] == ["a", "b"]


class TestCovariate:
    def test_latents_do_not_look_at_it(self, minibatch):
        vae = declare(glp.ValueHead(LATENT))
        other = minibatch._replace(continuous=minibatch.continuous + 1)
        assert torch.equal(vae.posterior_mean(minibatch), vae.posterior_mean(other))

    @pytest.mark.parametrize("encoding", [glp.OneHot([3], 2), glp.Embedding([3], 2, 2)])
    def test_a_vae_that_is_told_it_is_refused(self, encoding, minibatch):
        two = minibatch._replace(continuous=torch.randn(6, 2))
        with pytest.raises(ValueError, match=r"not told the covariate 1 that its ValueHead predicts.*such as VAE_NB"):
            glp.ValueHead(LATENT, covariate=1).check_condition(encoding, two)

    def test_other_conditions_may_be_told(self, minibatch):
        for vae in (declare(glp.ValueHead(LATENT)), declare(glp.LabelHead(LATENT, LABELS))):
            vae.heads[0].check_condition(vae.condition, minibatch)
        two = minibatch._replace(continuous=torch.randn(6, 2))
        glp.ValueHead(LATENT, covariate=1).check_condition(lambda told: told.continuous[:, :1], two)


class TestAnnotation:
    def test_an_annotation_is_right_but_for_its_error(self):
        label = torch.eye(LABELS)
        probs = AnnotationHead(LABELS, error=0.3)(torch.zeros(LABELS, LATENT), None, label).probs
        torch.testing.assert_close(probs, 0.7 * label + 0.1 * (1 - label))

    def test_a_relaxed_label_gives_the_mixture(self):
        head, label = AnnotationHead(LABELS, error=0.1), torch.tensor([0.5, 0.5, 0.0, 0.0])
        whole = head(None, None, torch.eye(LABELS)).probs
        torch.testing.assert_close(head(None, None, label).probs, (whole[0] + whole[1]) / 2)

    def test_without_a_label_above_it_is_refused(self):
        with pytest.raises(ValueError, match=r"expected a label above z.*declare upper=UpperLabel"):
            AnnotationHead(LABELS)(torch.zeros(1, LATENT), None)

    @pytest.mark.parametrize(("options", "message"), [({"error": 0.0}, "error=0.0"), ({"weight": 0.0}, "got 0.0")])
    def test_numbers_out_of_range_are_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            AnnotationHead(LABELS, **options)


@pytest.mark.slow
def test_the_intervals_of_a_regression_cover_as_often_as_they_say():
    simulation = glp.data.simulate(900, 30, num_types=1, seed=3)
    noise = np.random.default_rng(0).normal(0, 0.5, 900)
    simulation.adata.obs["value"] = simulation.truth.latent[:, 0] * 3 + noise
    train, held = glp.register(simulation.adata, continuous=["value"]).split(1 / 3)
    torch.manual_seed(0)
    vae = glp.VAE_NB.from_registration(train, latent_dim=5, hidden_dims=[32], heads=[glp.ValueHead(5, weight=5.0)])
    fit = glp.fit(vae, train, max_epochs=60, progress=False)
    minibatch, (head,) = held.take(range(len(held))), fit.vae.heads
    torch.manual_seed(0)
    with torch.no_grad():
        predicted = head(fit.vae.posterior_draws(minibatch, 200), minibatch)
        loc, scale = predicted.mean.mean(0), (predicted.variance.mean(0) + predicted.mean.var(0)).sqrt()
    value, _ = head.observed(minibatch)
    assert np.corrcoef(loc, value)[0, 1] > 0.5
    for share, width in ((0.5, 0.6745), (0.9, 1.6449)):
        error = (share * (1 - share) / len(held)) ** 0.5
        covered = ((value - loc).abs() < width * scale).double().mean().item()
        assert abs(covered - share) < 5 * error
        # Intervals of half the width do not.
        assert abs(((value - loc).abs() < width * scale / 2).double().mean().item() - share) > 5 * error


def test_importance_weights_are_of_the_counts_alone(minibatch):
    vae = declare(glp.LabelHead(LATENT, LABELS)).eval()
    plain = glp.VAE(vae.prior, vae.decoder, vae.likelihood, vae.encoder, condition=vae.condition).eval()
    weights = []
    for each in (vae, plain):
        torch.manual_seed(1)
        weights.append(draw_particles(each.model, each.guide, minibatch, 3).log_weights)
    torch.testing.assert_close(*weights)
