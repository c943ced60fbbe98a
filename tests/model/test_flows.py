"""Flows are exact: their densities are the change of variables, they begin as normals, and they score any value."""

import math
import sys

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import nn
from torch.distributions import Distribution

from genailab_pyro import (
    MLP,
    VAE,
    Cells,
    NegativeBinomialLikelihood,
    NormalEncoder,
    OneHot,
    StandardNormal,
    check_pair,
    estimators,
    fit,
    load,
)
from genailab_pyro.model.flows import FlowEncoder, FlowPrior
from genailab_pyro.nn import Declared

GENES, LEVELS = 5, 3
ESTIMATORS = ["pathwise", "stl", "score", "score-loo", "iwae", "dreg", "vimco"]


def moved(module, spread=0.2):
    """A module whose flow is not the identity."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.flow.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return module.eval()


def encoder(latent_dim, **options):
    torch.manual_seed(1)
    return FlowEncoder(GENES, latent_dim, [8], flow_dims=(8,), **options)


def prior(latent_dim, condition_dim=0):
    return FlowPrior(latent_dim, condition_dim, hidden_dims=(8,))


@pytest.fixture
def minibatch(make_minibatch):
    return make_minibatch(dtype=torch.float64)


@pytest.fixture(params=["prior", "conditional-prior", "encoder"])
def build(request, minibatch):
    """A function from a number of latents to a flow distribution of six cells, in double precision."""
    condition = nn.functional.one_hot(minibatch.conditions[:, 0], LEVELS).double()
    return {
        "prior": lambda latent_dim: moved(prior(latent_dim)).double()(condition).expand([6]),
        "conditional-prior": lambda latent_dim: moved(prior(latent_dim, LEVELS)).double()(condition),
        "encoder": lambda latent_dim: moved(encoder(latent_dim)).double()(minibatch),
    }[request.param]


@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_the_density_is_the_change_of_variables(build, latent_dim):
    distribution = build(latent_dim)
    values = distribution.sample().detach()
    normal = distribution.transform(values)
    jacobian = torch.autograd.functional.jacobian(lambda z: distribution.transform(z).sum(0), values)
    log_det = torch.linalg.slogdet(jacobian.transpose(0, 1)).logabsdet
    log_normal = -0.5 * (normal**2 + math.log(2 * math.pi)).sum(-1)
    log_prob = distribution.log_prob(values)
    torch.testing.assert_close(log_prob, log_normal + log_det, rtol=1e-6, atol=1e-9)
    assert (log_det.abs() > 1e-3).all()


@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_a_draw_is_the_image_of_a_normal_one(build, latent_dim):
    distribution = build(latent_dim)
    torch.manual_seed(3)
    draws = distribution.rsample((4,))
    torch.manual_seed(3)
    normal = distribution.base.sample((4,))
    torch.testing.assert_close(distribution.transform(draws), normal, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(draws, normal, atol=1e-2)


@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_the_mean_is_that_of_draws(build, latent_dim):
    distribution = build(latent_dim)
    torch.manual_seed(0)
    draws = distribution.sample((4000,))
    spread = draws.std(0)
    state = torch.get_rng_state()
    mean = distribution.mean
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(distribution.mean, mean)
    tolerance = 5 * spread / len(draws) ** 0.5 + spread / 20
    assert ((draws.mean(0) - mean).abs() < tolerance).all()
    assert ((draws.mean(0) - (mean + spread / 4)).abs() > tolerance).all()


def test_a_larger_batch_has_the_same_densities(build):
    distribution = build(2)
    larger = distribution.expand([4, 6])
    assert larger.batch_shape == (4, 6)
    assert larger.event_shape == (2,)
    draws = larger.rsample((3,))
    assert draws.shape == (3, 4, 6, 2)
    torch.testing.assert_close(larger.log_prob(draws), distribution.log_prob(draws))
    assert larger.mean.shape == (4, 6, 2)
    torch.testing.assert_close(larger.mean[2], distribution.mean)


def test_a_prior_begins_as_the_standard_normal():
    values, none = 3 * torch.randn(20, 3), torch.zeros(20, 0)
    log_prob = prior(3)(none).log_prob(values)
    torch.testing.assert_close(log_prob, StandardNormal(3)(none).log_prob(values), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(moved(prior(3))(none).log_prob(values), log_prob, atol=1e-2)


def test_an_encoder_begins_as_a_normal_one(minibatch):
    flow = encoder(3).double().eval()
    normal = NormalEncoder(GENES, 3, [8]).double().eval()
    normal.load_state_dict({name: value for name, value in flow.state_dict().items() if not name.startswith("flow")})
    values = normal(minibatch).sample((7,))
    log_prob = flow(minibatch).log_prob(values)
    torch.testing.assert_close(log_prob, normal(minibatch).log_prob(values), rtol=1e-6, atol=0)
    torch.testing.assert_close(flow(minibatch).mean, normal(minibatch).mean, rtol=1e-6, atol=1e-9)
    assert not torch.allclose(moved(flow)(minibatch).log_prob(values), log_prob, atol=1e-2)


def test_a_prior_depends_on_the_condition_only_where_it_has_one():
    values, levels = torch.randn(1, 2).expand(LEVELS, 2), torch.eye(LEVELS)
    of_each = moved(prior(2, LEVELS))(levels).log_prob(values)
    assert len(of_each.unique()) == LEVELS
    assert len(moved(prior(2))(levels).log_prob(values).unique()) == 1


def test_a_latent_above_is_a_condition():
    conditional, above = moved(prior(2, LEVELS)), torch.randn(4, 6, LEVELS)
    distribution = conditional(above)
    assert distribution.batch_shape == (4, 6)
    values = distribution.sample()
    alone = conditional(above[1]).log_prob(values[1])
    torch.testing.assert_close(distribution.log_prob(values)[1], alone)


@pytest.mark.parametrize("size", [0.0, 5.0, 60.0, -60.0])
def test_gradients_are_finite_far_out(build, size):
    distribution = build(2)
    values = (size + torch.zeros(6, 2, dtype=torch.float64)).requires_grad_()
    (gradient,) = torch.autograd.grad(distribution.log_prob(values).sum(), values)
    assert torch.isfinite(gradient).all()
    path = distribution.transform.inv(values)
    (gradient,) = torch.autograd.grad(path.sum(), values)
    assert torch.isfinite(gradient).all()


def runs_of(module, answer):
    """How often the network of a module's first layer runs for an answer."""
    calls = []
    handle = module.flow.transforms[0].hyper.register_forward_hook(lambda *_: calls.append(1))
    answer()
    handle.remove()
    return len(calls)


def test_a_density_takes_one_pass_and_a_draw_of_a_coupling_two(minibatch):
    flow = moved(encoder(6)).double()
    distribution = flow(minibatch)
    assert runs_of(flow, lambda: distribution.log_prob(torch.zeros(6, 6, dtype=torch.float64))) == 1
    assert runs_of(flow, distribution.rsample) == 2
    autoregressive = moved(prior(6))
    distribution = autoregressive(torch.zeros(1, 0))
    assert runs_of(autoregressive, lambda: distribution.log_prob(torch.zeros(3, 6))) == 1
    assert runs_of(autoregressive, distribution.sample) == 6


def test_only_parameters_are_saved():
    for module in (prior(3), prior(1), encoder(3)):
        assert set(module.state_dict()) == {name for name, _ in module.named_parameters()}
        assert all(value.is_floating_point() for value in module.state_dict().values())


def test_an_encoder_is_declared_again_with_its_weights(minibatch):
    flow = moved(encoder(3, condition=OneHot([LEVELS]), transforms=2)).double()
    again = Declared.declare(flow.declaration()).double().eval()
    again.load_state_dict(flow.state_dict())
    values = torch.randn(6, 3, dtype=torch.float64)
    torch.testing.assert_close(again(minibatch).log_prob(values), flow(minibatch).log_prob(values))
    other = minibatch._replace(conditions=(minibatch.conditions + 1) % LEVELS)
    assert not torch.allclose(flow(other).log_prob(values), flow(minibatch).log_prob(values))


def vae_of(posterior):
    return VAE(StandardNormal(2), MLP(2, [8]), NegativeBinomialLikelihood(8, GENES), posterior)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_an_encoder_trains_with_each_estimator(estimator, make_minibatch):
    minibatch = make_minibatch(60)
    vae = vae_of(encoder(2))
    check_pair(vae.model, vae.guide, minibatch)
    before = {name: value.clone() for name, value in vae.encoder.named_parameters()}
    model, guide, elbo = estimators.get(estimator, num_particles=3).bind(vae.model, vae.guide)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    assert torch.isfinite(torch.tensor([svi.step(minibatch) for _ in range(4)])).all()
    for name, value in vae.encoder.named_parameters():
        assert torch.isfinite(value).all(), name
        assert not torch.equal(value, before[name]), name


def test_a_kl_of_a_flow_guide_is_drawn(make_minibatch):
    vae = vae_of(encoder(2))
    model, guide, elbo = estimators.get("pathwise-kl").bind(vae.model, vae.guide)
    with pytest.raises(estimators.EstimatorError, match=r"closed form, got FlowDistribution and Normal; .*'pathwise'"):
        elbo.differentiable_loss(model, guide, make_minibatch())


def test_a_flow_guide_scores_values_drawn_elsewhere(make_minibatch):
    minibatch = make_minibatch()
    vae = vae_of(moved(encoder(2)))
    model_trace = poutine.trace(vae.model).get_trace(minibatch)
    guide_trace = poutine.trace(poutine.replay(vae.guide, trace=model_trace)).get_trace(minibatch)
    value = model_trace.nodes["z"]["value"]
    assert guide_trace.nodes["z"]["value"] is value
    torch.testing.assert_close(guide_trace.nodes["z"]["fn"].log_prob(value), vae.encoder(minibatch).log_prob(value))


def test_a_fit_of_flows_is_saved_and_loaded(tmp_path, make_minibatch):
    cells = Cells.from_tensors(make_minibatch(40).counts)
    vae = VAE(prior(2), MLP(2, [8]), NegativeBinomialLikelihood(8, GENES), encoder(2))
    trained = fit(vae, cells, max_epochs=1, progress=False)
    loaded = load(trained.save(tmp_path / "fit"))
    assert (loaded.latent(cells) == trained.latent()).all()
    assert (loaded.log_likelihood(cells, num_particles=5) == trained.log_likelihood(num_particles=5)).all()


@pytest.mark.parametrize("build", [lambda: prior(2), lambda: encoder(2)], ids=["prior", "encoder"])
def test_without_zuko_the_command_is_named(build, monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(ImportError, match=r"pip install 'genailab-pyro\[flows\]'") as caught:
        build()
    assert "\n" not in str(caught.value)


def test_importing_zuko_leaves_validation_as_it_was(monkeypatch):
    validated = Distribution._validate_args
    for name in [name for name in sys.modules if name.partition(".")[0] == "zuko"]:
        monkeypatch.delitem(sys.modules, name)
    prior(2)
    assert "zuko" in sys.modules
    assert Distribution._validate_args == validated


def test_widths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"expected a condition of width 3 .* got one of width 2; .*condition_dim=2"):
        prior(2, LEVELS)(torch.zeros(4, 2))
    for options in ({"transforms": 0}, {"hidden_dims": (8, 0)}):
        with pytest.raises(ValueError, match="expected a flow with widths and a number of transforms of at least one"):
            FlowPrior(2, **options)
    with pytest.raises(ValueError, match="got latent_dim=0, a context of width -1"):
        FlowPrior(0, -1)


class Parabola(Declared):
    """A decoder that sees two latents only through one coordinate, which is the same along a parabola."""

    def forward(self, z, condition):
        return z[..., :1] + z[..., 1:] ** 2


@pytest.fixture
def bent():
    """Counts under a fixed likelihood, of which the posteriors lie along parabolas, and their mean log p(x)."""
    generator = torch.Generator().manual_seed(0)
    likelihood = NegativeBinomialLikelihood(1, 10)
    with torch.no_grad():
        likelihood.log_expression.weight.copy_(torch.randn(10, 1, generator=generator))
        likelihood.log_expression.bias.zero_()
        likelihood.log_inverse_dispersion.log_value.fill_(3.0)
    for parameter in likelihood.parameters():
        parameter.requires_grad_(False)
    decoder = Parabola()
    shares = likelihood.log_expression(decoder(torch.randn(600, 2, generator=generator), None)).softmax(-1)
    cells = Cells.from_tensors(torch.poisson(100 * shares, generator=generator))
    axis = torch.linspace(-4.5, 4.5, 91)
    grid = torch.cartesian_prod(axis, axis)[:, None]
    log_prior = StandardNormal(2)(torch.zeros(1, 0)).log_prob(grid)
    exact = []
    for minibatch in cells.minibatches(60):
        log_likelihood = likelihood(decoder(grid, None), minibatch).log_prob(minibatch.counts)
        exact.append((log_prior + log_likelihood).logsumexp(0) + 2 * (axis[1] - axis[0]).log())
    return likelihood, cells, torch.cat(exact).mean().item()


@pytest.mark.slow
def test_a_flow_guide_bends_where_a_normal_one_cannot(bent):
    """Of what a normal guide's ELBO misses of log p(x), a flow finds more than half."""
    likelihood, cells, exact = bent
    gaps = {}
    for kind in (NormalEncoder, FlowEncoder):
        torch.manual_seed(0)
        vae = VAE(StandardNormal(2), Parabola(), likelihood, kind(10, 2, [32], dropout=0.0))
        trained = fit(vae, cells, max_epochs=80, learning_rate=1e-2, weight_decay=0.0, progress=False)
        gaps[kind] = exact - trained.terms(num_particles=20).elbo
    assert 0 < gaps[FlowEncoder] < gaps[NormalEncoder] / 2
