"""The optimizer behind Pyro's interface against plain torch."""

import copy

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import genailab_pyro as glp
from genailab_pyro.model.priors import MixtureOfNormals
from genailab_pyro.train.optim import ModuleOptim, NonFiniteGradientError

TARGETS = torch.linspace(-3, 3, 24, dtype=torch.float64).reshape(8, 3)


class Network(nn.Module):
    """A weight matrix, biases, and an inverse dispersion that is a matrix too."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3)
        self.norm = nn.LayerNorm(3)
        self.log_inverse_dispersion = nn.Parameter(torch.ones(2, 3))
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)

    def loss(self, step):
        inputs = torch.linspace(-1, 1, 40, dtype=torch.float64).reshape(8, 5) * (1 + step)
        outputs = self.norm(self.layer(inputs)) + self.log_inverse_dispersion.sum(0)
        return ((outputs - TARGETS) ** 2).sum()


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network().double()


def groups(module, weight_decay):
    """The split into decayed and kept parameters, written out."""
    return [
        {"params": [module.layer.weight], "weight_decay": weight_decay},
        {"params": [module.layer.bias, *module.norm.parameters(), module.log_inverse_dispersion], "weight_decay": 0},
    ]


def step_with(optim, module, step):
    module.loss(step).backward()
    optim(set(module.parameters()) - {module.frozen})


@pytest.mark.parametrize("name", ["adamw", "adam"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_it_steps_as_plain_torch_does(network, name, clip):
    twin = copy.deepcopy(network)
    optim = ModuleOptim(network, optimizer=name, learning_rate=0.02, weight_decay=0.3, clip=clip)
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[name]
    plain = kind(groups(twin, 0.3), lr=0.02, fused=False, foreach=False)
    for step in range(10):
        step_with(optim, network, step)
        plain.zero_grad()
        twin.loss(step).backward()
        norm = torch.stack([item.grad.norm() for item in twin.parameters() if item.grad is not None]).norm()
        if clip is not None and norm > clip:
            for parameter in twin.parameters():
                if parameter.grad is not None:
                    parameter.grad *= clip / norm
        plain.step()
        assert optim.gradient_norm == pytest.approx(norm.item(), rel=1e-6)
    for mine, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-8)


def test_a_clip_changes_the_path_and_none_does_not(network):
    paths = []
    for clip in (None, 1e9, 0.5):
        module = copy.deepcopy(network)
        optim = ModuleOptim(module, learning_rate=0.02, clip=clip)
        for step in range(5):
            step_with(optim, module, step)
        paths.append(module.layer.weight.detach())
    assert torch.equal(paths[0], paths[1])
    assert not torch.allclose(paths[0], paths[2])


def test_only_weight_matrices_decay(network):
    before = copy.deepcopy(network)
    optim = ModuleOptim(network, optimizer="adamw", learning_rate=0.1, weight_decay=0.5)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optim(())
    torch.testing.assert_close(network.layer.weight, before.layer.weight * (1 - 0.1 * 0.5))
    rest = [name for name, _ in network.named_parameters() if name != "layer.weight"]
    assert all(torch.equal(network.get_parameter(name), before.get_parameter(name)) for name in rest)
    assert len(rest) == 5


def test_a_parameter_that_a_step_does_not_see_stays(network):
    optim = ModuleOptim(network, optimizer="adamw", learning_rate=0.1, weight_decay=0.5)
    step_with(optim, network, 0)
    before = copy.deepcopy(network)
    (network.layer.bias**2).sum().backward()
    optim({network.layer.bias})
    pyro.infer.util.zero_grads({network.layer.bias})
    after = dict(network.named_parameters())
    moved = [name for name, value in before.named_parameters() if not torch.equal(value, after[name])]
    assert moved == ["layer.bias"]


def test_a_foreign_parameter_is_refused(network):
    optim = ModuleOptim(network)
    stranger = nn.Parameter(torch.zeros(7))
    with pytest.raises(ValueError, match=r"parameters of the module only, got 1 more \(shapes \[\(7,\)\]\)"):
        optim([network.layer.weight, stranger])


def test_an_unknown_optimizer_is_answered_with_the_known(network):
    with pytest.raises(ValueError, match="one of 'adamw', 'adam', got 'sgd'"):
        ModuleOptim(network, optimizer="sgd")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_step_is_taken_with_a_gradient_that_is_not_finite(network, value):
    optim = ModuleOptim(network, learning_rate=0.1)
    before = copy.deepcopy(network)
    network.loss(0).backward()
    network.layer.bias.grad[1] = value
    with pytest.raises(NonFiniteGradientError, match=f"the gradient's norm is {value}"):
        optim(())
    for mine, theirs in zip(network.parameters(), before.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_learning_rate_is_a_factor_of_the_highest(network):
    optim = ModuleOptim(network, optimizer="adamw", learning_rate=0.2, weight_decay=1.0)
    optim.set_learning_rate(0.25)
    before = network.layer.weight.detach().clone()
    network.layer.weight.grad = torch.zeros_like(before)
    optim(())
    torch.testing.assert_close(network.layer.weight.detach(), before * (1 - 0.25 * 0.2))
    optim.set_learning_rate(0.0)
    after = copy.deepcopy(network)
    step_with(optim, network, 0)
    assert torch.equal(network.layer.weight, after.layer.weight)


def test_state_goes_to_another_optimizer_and_the_path_goes_on(network):
    optim = ModuleOptim(network, learning_rate=0.02, weight_decay=0.1)
    for step in range(4):
        step_with(optim, network, step)
    twins = [copy.deepcopy(network) for _ in range(2)]
    taken, fresh = (ModuleOptim(twin, learning_rate=0.02, weight_decay=0.1) for twin in twins)
    taken.set_state({name: value.clone() for name, value in optim.get_state().items()})
    for step in range(4, 8):
        for other, module in ((optim, network), (taken, twins[0]), (fresh, twins[1])):
            step_with(other, module, step)
    assert torch.equal(network.layer.weight, twins[0].layer.weight)
    assert torch.equal(network.log_inverse_dispersion, twins[0].log_inverse_dispersion)
    assert not torch.equal(network.layer.weight, twins[1].layer.weight)


def test_it_works_in_plain_svi(cells):
    vae = glp.CVAE_NB.from_registration(cells, latent_dim=3, hidden_dims=[16])
    twin = copy.deepcopy(vae)
    minibatch = cells.take(range(40))
    bound = Trace_ELBO(max_plate_nesting=1)
    losses = []
    with pyro.get_param_store().scope():
        svi = SVI(vae.model, vae.guide, ModuleOptim(vae, learning_rate=0.01), loss=bound)
        torch.manual_seed(1)
        losses.append([svi.step(minibatch) for _ in range(5)])
    with pyro.get_param_store().scope():
        loss = bound(twin.model, twin.guide)
        plain = torch.optim.AdamW(twin.parameters(), lr=0.01, weight_decay=0.0)
        torch.manual_seed(1)
        losses.append([])
        for _ in range(5):
            plain.zero_grad()
            value = loss(minibatch)
            value.backward()
            plain.step()
            losses[1].append(value.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, value in vae.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name], rtol=1e-3, atol=1e-5)


def test_places_do_not_decay():
    prior = MixtureOfNormals(2, num_components=3)
    optim = ModuleOptim(prior, optimizer="adamw", weight_decay=0.5)
    assert [group["weight_decay"] for group in optim.optimizer.param_groups] == [0.0]
