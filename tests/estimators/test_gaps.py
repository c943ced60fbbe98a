"""A baseline through a training run, and what a bound gives beside its gradient."""

import numpy as np
import pyro
import pytest
import torch
from pyro.ops.provenance import detach_provenance
from torch import nn
from torch.distributions import kl_divergence

import genailab_pyro as glp
from genailab_pyro.estimators import baselines
from genailab_pyro.train.optim import ModuleOptim

LEARNED = ["score-graph-ema", "score-graph-nn"]
OPTIONS = {"max_epochs": 4, "minibatch_size": 32, "validation_fraction": 0.2, "progress": False}
STEPS = 3 * OPTIONS["max_epochs"]  # 96 training cells


@pytest.fixture(scope="module")
def simulated():
    adata, _ = glp.data.simulate(120, 12, num_types=3, seed=2)
    return glp.register(adata)


@pytest.fixture(scope="module")
def small(simulated):
    return glp.CVAE_NB.from_registration(simulated, latent_dim=2, hidden_dims=[8])


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=0)


@pytest.mark.parametrize("name", LEARNED)
def test_a_baseline_learns_at_each_step_of_a_run_and_at_no_other_time(name, small, simulated):
    learned = glp.fit(small, simulated, name, **OPTIONS).baseline
    assert learned["steps of z"].item() == STEPS
    assert learned["mean of z"].item() < 0


def test_the_network_of_a_baseline_is_trained_by_a_run(small, simulated, monkeypatch):
    made, make = [], baselines.NetworkBaseline.__init__

    def noted(baseline, *args, **options):
        make(baseline, *args, **options)
        made.append({name: value.clone() for name, value in baseline.named_parameters()})

    monkeypatch.setattr(baselines.NetworkBaseline, "__init__", noted)
    learned = glp.fit(small, simulated, "score-graph-nn", **OPTIONS).baseline
    (before,) = made
    assert [name for name, value in before.items() if torch.equal(value, learned[name])] == []


def test_a_module_beside_is_neither_decayed_nor_clipped_and_counts_in_no_norm():
    torch.manual_seed(0)
    alone, module, beside = (nn.Linear(3, 2) for _ in range(3))
    module.load_state_dict(alone.state_dict())
    before = beside.weight.detach().clone()
    options = {"learning_rate": 0.1, "weight_decay": 0.5, "clip": 1.0}
    steppers = ModuleOptim(alone, **options), ModuleOptim(module, beside=beside, **options)
    for linear in (alone, module, beside):
        linear.weight.grad, linear.bias.grad = torch.ones(2, 3), torch.ones(2)
    beside.weight.grad *= 1e6
    for stepper in steppers:
        stepper([])
    assert steppers[0].gradient_norm == pytest.approx(8**0.5)
    assert steppers[1].gradient_norm == steppers[0].gradient_norm
    assert_same(module.state_dict(), alone.state_dict())
    # A first step of Adam is the learning rate against the sign of the gradient; any decay would show beside it.
    torch.testing.assert_close(beside.weight, before - 0.1)


def test_the_baseline_of_vimco_lowers_the_variance(linear_gaussian, draws_of):
    plain, lowered = (
        draws_of(linear_gaussian(4000), glp.estimators.get("vimco", baseline=name)).var(0).sum()
        for name in (None, "leave-one-out")
    )
    assert lowered < plain / 3


@pytest.mark.parametrize("name", ["pathwise", "pathwise-kl", "score-loo", "score-graph-ema", "iwae", "dreg", "vimco"])
def test_a_loss_is_the_sum_over_the_cells_that_the_minibatch_stands_for(name, linear_gaussian):
    losses = []
    for number, factor in ((2000, 1), (2000, 3), (6000, 1)):
        world = linear_gaussian(number, factor=factor)
        model, guide, elbo = glp.estimators.get(name).bind(world.model, world)
        torch.manual_seed(0)
        with pyro.get_param_store().scope(), torch.no_grad():
            losses.append(elbo.loss(model, guide, world.rows))
            torch.manual_seed(0)
            assert elbo.differentiable_loss(model, guide, world.rows).item() == pytest.approx(losses[-1], rel=1e-9)
    one, thrice, larger = losses
    assert thrice == pytest.approx(3 * one, rel=1e-9)
    assert larger == pytest.approx(3 * one, rel=0.1)


CONTINUOUS = [name for name, latents in glp.estimators.table()["latents"].items() if latents != "discrete"]


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_gradient_of_a_sum_of_losses_is_the_sum_of_their_gradients(name, linear_gaussian):
    world = linear_gaussian(5, num_latents=2)
    model, guide, elbo = glp.estimators.get(name).bind(world.model, world)
    parameters = list(world.parameters())

    def loss(seed):
        torch.manual_seed(seed)
        return elbo.differentiable_loss(model, guide, world.rows)

    def gradient(value):
        found = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in found]).numpy()

    if elbo.baseline is not None:
        elbo.baseline.double().eval()
    with pyro.get_param_store().scope():
        apart = gradient(loss(0)) + gradient(loss(1))
        np.testing.assert_allclose(gradient(loss(0) + loss(1)), apart, rtol=1e-9, atol=1e-12)


class Noting(baselines.Baseline):
    """A baseline of nothing that notes the costs of each site."""

    def __init__(self):
        super().__init__()
        self.costs = {}

    def forward(self, site):
        self.costs[site.name] = site.cost.clone()
        return torch.zeros(())


@pytest.mark.parametrize("name", ["score", "score-graph", "score-kl"])
@pytest.mark.parametrize("options", [{}, {"beta": 0.3, "factor": 3}], ids=["plain", "beta, sub-sampling"])
def test_a_score_multiplies_the_costs_that_its_credit_names(name, options, linear_gaussian):
    # Costs upstream of a site leave the mean of its gradient as it is: only their sum tells that they are left out.
    world = linear_gaussian(4, num_latents=3, **options)
    model, guide, elbo = glp.estimators.get(name).bind(world.model, world)
    elbo.baseline, traces = Noting(), []
    elbo.watchers.append(lambda *pair: traces.append(pair))
    torch.manual_seed(0)
    with pyro.get_param_store().scope():
        elbo.differentiable_loss(model, guide, world.rows)
    ((drawn, guided),) = traces

    def term(site):
        if name == "score-kl":
            kl = kl_divergence(guided.nodes[site]["fn"].base, drawn.nodes[site]["fn"])
            return -options.get("beta", 1.0) * detach_provenance(kl).detach()
        terms = drawn.nodes[site]["log_prob"] - guided.nodes[site]["log_prob"]
        return detach_provenance(terms).detach() / options.get("factor", 1)

    likelihood = detach_provenance(drawn.nodes["x"]["log_prob"]).detach() / options.get("factor", 1)
    sites = ["z0", "z1", "z2"]
    first = {
        "score": lambda position: 0,
        "score-graph": lambda position: position,
        "score-kl": lambda position: position + 1,
    }
    for position, site in enumerate(sites):
        expected = likelihood + sum(term(other) for other in sites[first[name](position) :])
        torch.testing.assert_close(elbo.baseline.costs[site], expected, rtol=1e-9, atol=1e-9)


def test_disarm_gives_a_bit_that_is_alike_in_a_pair_no_gradient(bits, draws_of):
    # Such pairs add nothing to the mean: only the draws tell that they are left out.
    world = bits(6000)
    draws = draws_of(world, glp.estimators.get("disarm"))[:, :2]
    chance = (2 * world.logits[0].detach().sigmoid() - 1).abs()
    error = (chance * (1 - chance) / len(draws)).sqrt()
    assert (((draws == 0).double().mean(0) - chance).abs() < 5 * error).all()
