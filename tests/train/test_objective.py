"""The loss of a step against Pyro's own bounds, and its parts against closed forms."""

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

import genailab_pyro as glp
from genailab_pyro import estimators
from genailab_pyro.train.objective import NonFiniteLossError, Objective, Terms, explain
from genailab_pyro.train.run import Run
from genailab_pyro.train.schedules import Annealed

STOCK = {
    "pathwise": Trace_ELBO(max_plate_nesting=1),
    "pathwise-kl": TraceMeanField_ELBO(max_plate_nesting=1),
}


@pytest.fixture(autouse=True)
def own_state():
    with pyro.get_param_store().scope(), torch.random.fork_rng(), pyro.validation_enabled(False):
        yield


@pytest.fixture
def double(cells):
    vae = glp.CVAE_NB.from_registration(cells, latent_dim=3, hidden_dims=[16])
    return vae.double().eval()


@pytest.fixture
def minibatch(cells):
    """A third of the cells, so that the plate's factor is not one."""
    return cells.take(range(40), dtype=torch.float64)


def gradients(vae):
    found = {name: value.grad.clone() for name, value in vae.named_parameters() if value.grad is not None}
    vae.zero_grad()
    return found


def bound_by(estimator, vae, penalties=()):
    model, guide, elbo = estimators.get(estimator).bind(vae.model, vae.guide)
    return Objective(elbo, penalties), model, guide


@pytest.mark.parametrize("estimator", ["pathwise", "pathwise-kl"])
@pytest.mark.parametrize("training", [True, False])
def test_the_loss_and_its_gradient_are_pyros_own(double, minibatch, estimator, training):
    double.train(training)
    objective, model, guide = bound_by(estimator, double)
    torch.manual_seed(3)
    mine = objective.loss_and_grads(model, guide, minibatch), gradients(double)
    torch.manual_seed(3)
    theirs = STOCK[estimator].loss_and_grads(double.model, double.guide, minibatch), gradients(double)
    assert mine[0] == pytest.approx(theirs[0], rel=1e-12)
    assert mine[1].keys() == theirs[1].keys()
    for name, gradient in mine[1].items():
        torch.testing.assert_close(gradient, theirs[1][name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("estimator", ["score", "score-graph"])
def test_a_score_estimator_has_the_value_of_pyros_elbo(double, minibatch, estimator):
    objective, model, guide = bound_by(estimator, double)
    torch.manual_seed(3)
    loss = objective.loss_and_grads(model, guide, minibatch)
    torch.manual_seed(3)
    assert loss == pytest.approx(STOCK["pathwise"].loss(double.model, double.guide, minibatch), rel=1e-12)
    gradients(double)


def by_hand(vae, minibatch):
    """Reconstruction and KL per latent of each cell, from the encoder's moments and a draw."""
    posterior = vae.encoder(minibatch)
    loc, scale = posterior.base_dist.loc, posterior.base_dist.scale
    kl = 0.5 * (loc**2 + scale**2 - 1) - scale.log()
    z = posterior.rsample()
    return -vae.likelihood(vae.decode(z, minibatch), minibatch).log_prob(minibatch.counts), kl


@pytest.mark.parametrize("estimator", ["pathwise", "pathwise-kl", "score", "score-graph"])
def test_terms_are_means_over_cells_with_the_kl_in_closed_form(double, minibatch, estimator):
    objective, model, guide = bound_by(estimator, double)
    torch.manual_seed(3)
    objective.loss(model, guide, minibatch)
    torch.manual_seed(3)
    with torch.no_grad():
        reconstruction, kl = by_hand(double, minibatch)
    (terms,) = objective.steps
    assert terms.reconstruction == pytest.approx(reconstruction.mean().item(), rel=1e-9)
    assert terms.kl == pytest.approx(kl.sum(-1).mean().item(), rel=1e-9)
    assert terms.elbo == -(terms.reconstruction + terms.kl)


@pytest.mark.parametrize("num_particles", [1, 5])
def test_terms_add_up_to_the_loss_where_the_kl_has_a_closed_form(double, minibatch, num_particles):
    objective, model, guide = bound_by(estimators.get("pathwise-kl", num_particles=num_particles), double)
    loss = objective.loss(model, guide, minibatch)
    assert loss == pytest.approx(-minibatch.num_cells * objective.steps[0].elbo, rel=1e-9)


def test_terms_of_a_latent_library_hold_its_kl(cells, minibatch):
    vae = glp.CVAE_NB.from_registration(cells, latent_dim=3, hidden_dims=[16], library="latent").double().eval()
    objective, model, guide = bound_by("pathwise-kl", vae)
    torch.manual_seed(3)
    objective.loss(model, guide, minibatch)
    torch.manual_seed(3)
    guide_trace = poutine.trace(vae.guide).get_trace(minibatch)
    library, prior = guide_trace.nodes["library"]["fn"], vae.library.prior(minibatch)
    mine, theirs = library.base_dist, prior.base_dist
    ratio = (mine.scale / theirs.scale) ** 2
    of_library = 0.5 * (ratio + ((mine.loc - theirs.loc) / theirs.scale) ** 2 - 1 - ratio.log())
    _, of_z = by_hand(vae, minibatch)
    assert of_library.mean() > 0.01
    total = of_library.mean() + of_z.sum(-1).mean()
    assert objective.steps[0].kl == pytest.approx(total.item(), rel=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.3, 4.0])
@pytest.mark.parametrize("estimator", ["pathwise", "pathwise-kl", "score", "score-graph"])
def test_beta_weighs_the_kl_in_model_and_guide_alike(cells, double, minibatch, settings, estimator, beta):
    run = Run(double, cells, estimators.get(estimator), settings)
    run.vae.eval()
    losses = {}
    for weight in (beta, 1.0, 0.0):
        run.annealed.beta = weight
        torch.manual_seed(3)
        losses[weight] = run.objective.loss(run.model, run.guide, minibatch)
    # The draw is the same, so that the loss is linear in beta: reconstruction + beta * (log q - log p).
    expected = losses[0.0] + beta * (losses[1.0] - losses[0.0])
    assert losses[beta] == pytest.approx(expected, rel=1e-9)
    terms = run.objective.steps[0]
    assert losses[0.0] == pytest.approx(minibatch.num_cells * terms.reconstruction, rel=1e-9)
    if estimator == "pathwise-kl":
        kl = minibatch.num_cells * terms.kl
        assert losses[beta] == pytest.approx(losses[0.0] + beta * kl, rel=1e-9)
    assert terms == run.objective.steps[1]  # what is reported does not know beta


def test_scaling_the_model_alone_would_be_found(double, minibatch):
    annealed = Annealed()
    annealed.beta = 0.3
    losses = []
    for model, guide in ((annealed(double.model), annealed(double.guide)), (annealed(double.model), double.guide)):
        torch.manual_seed(3)
        losses.append(STOCK["pathwise"].loss(model, guide, minibatch))
    assert losses[0] != pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("beta", [1.0, 0.3, 2.0])
@pytest.mark.parametrize("num_particles", [1, 3])
def test_free_bits_are_the_larger_of_floor_and_kl_for_each_latent(
    cells, double, minibatch, settings, beta, num_particles
):
    _, kl = by_hand(double, minibatch)
    each = kl.mean(0).detach()
    floor = each.sort().values[1].item() * 1.01  # above two of the three latents
    training = glp.Training.from_json({**settings.to_json(), "free_bits": floor})
    run = Run(double, cells, estimators.get("pathwise-kl", num_particles=num_particles), training)
    run.vae.eval()
    run.annealed.beta = beta
    loss = run.objective.loss(run.model, run.guide, minibatch)
    expected = run.objective.steps[0].reconstruction + beta * each.clamp(min=floor).sum().item()
    assert loss == pytest.approx(minibatch.num_cells * expected, rel=1e-9)
    assert run.objective.steps[0].kl == pytest.approx(each.sum().item(), rel=1e-9)


def test_free_bits_leave_latents_below_the_floor_alone(cells, double, minibatch, settings):
    training = glp.Training.from_json({**settings.to_json(), "free_bits": 1e6})
    run = Run(double, cells, estimators.get("pathwise-kl"), training)
    run.vae.eval()
    run.annealed.beta = 0.3
    torch.manual_seed(3)
    run.objective.loss_and_grads(run.model, run.guide, minibatch)
    with_floor = gradients(double)
    run.annealed.beta = 0.0
    torch.manual_seed(3)
    run.objective.loss_and_grads(run.model, run.guide, minibatch)
    for name, gradient in gradients(double).items():
        torch.testing.assert_close(with_floor[name], gradient, rtol=1e-7, atol=1e-7)


def test_a_penalty_counts_in_nats_per_cell_and_reaches_the_gradient(double, minibatch):
    def spread(minibatch, guide_trace, model_trace):
        return guide_trace.nodes["z"]["value"].square().sum(-1).mean()

    losses, grads = [], []
    for penalties in ([], [spread, spread]):
        objective, model, guide = bound_by("pathwise", double, penalties)
        torch.manual_seed(3)
        losses.append(objective.loss_and_grads(model, guide, minibatch))
        grads.append(gradients(double)["encoder.loc.bias"])
    torch.manual_seed(3)
    term = 2 * minibatch.num_cells * spread(minibatch, poutine.trace(double.guide).get_trace(minibatch), None)
    term.backward()
    assert losses[1] - losses[0] == pytest.approx(term.item(), rel=1e-6)
    torch.testing.assert_close(grads[1] - grads[0], gradients(double)["encoder.loc.bias"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_leaves_no_gradient(double, minibatch, value):
    objective, model, guide = bound_by("pathwise", double, [lambda *traces: torch.tensor(value)])
    with pytest.raises(NonFiniteLossError, match="the loss is not finite"):
        objective.loss_and_grads(model, guide, minibatch)
    assert gradients(double) == {}


def test_explain_names_values_before_gradients(double, minibatch):
    assert explain(double.model, double.guide, minibatch, double) == (
        "the weights and the log-probabilities of another draw are finite"
    )
    double.decoder.layers[0].bias.grad = torch.full((16,), torch.inf, dtype=torch.float64)
    assert explain(double.model, double.guide, minibatch, double) == (
        "the gradient of 'decoder.layers.0.bias' is not finite at 16 places"
    )
    with torch.no_grad():
        double.encoder.loc.bias[:2] = torch.nan
    first, second, *_ = explain(double.model, double.guide, minibatch, double).split("; ")
    assert first == "the parameter 'encoder.loc.bias' holds 2 values that are not finite"
    assert second == "the value of the guide's site 'z' is not finite at 80 places"


def test_terms_weigh_a_cell_by_its_plate():
    # Half the cells of a plate, each with log p = log N(0; 0, 1), stand for all of them.
    with pyro.plate("cells", 10, subsample=torch.arange(5)):
        site = pyro.distributions.Normal(torch.zeros(5), 1.0)
        trace = poutine.trace(lambda: pyro.sample("x", site, obs=torch.zeros(5))).get_trace()
    trace.compute_log_prob()
    terms = Terms.of(trace, poutine.Trace(), num_cells=10, num_particles=1)
    assert terms.reconstruction == pytest.approx(0.9189385)
    assert terms.kl == 0
