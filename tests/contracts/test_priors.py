"""The laws that every prior obeys, those of the package and one that a user might write."""

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from genailab_pyro import MLP, VAE, Minibatch, NegativeBinomialLikelihood, NormalEncoder, OneHot, Prior, StandardNormal
from genailab_pyro.nn import Declared

CELLS, CONDITION = 5, 3


class ConditionalNormal(Prior):
    """Location linear in the condition."""

    def __init__(self, latent_dim, condition_dim):
        super().__init__()
        self.loc = nn.Linear(condition_dim, latent_dim)

    def forward(self, condition):
        loc = self.loc(condition)
        return dist.Normal(loc, torch.ones_like(loc)).to_event(1)


ROSTER = {
    "standard-normal": StandardNormal,
    "conditional-normal": lambda latent_dim: ConditionalNormal(latent_dim, CONDITION),
}
every_prior = pytest.mark.parametrize("build", list(ROSTER.values()), ids=list(ROSTER))


def condition(dtype=torch.float32):
    return nn.functional.one_hot(torch.arange(CELLS) % CONDITION, CONDITION).to(dtype)


@every_prior
@pytest.mark.parametrize("latent_dim", [1, 4])
def test_event_is_the_latent_and_batch_spreads_over_cells(build, latent_dim):
    distribution = build(latent_dim)(condition())
    assert distribution.event_shape == (latent_dim,)
    for leading in ((), (3,)):
        expanded = distribution.expand([*leading, CELLS])
        draws = expanded.sample()
        assert draws.shape == (*leading, CELLS, latent_dim)
        assert expanded.log_prob(draws).shape == (*leading, CELLS)


@every_prior
def test_the_density_integrates_to_one(build):
    prior = build(2).double()
    axis = torch.linspace(-9, 9, 361, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)[:, None]
    density = prior(condition(torch.float64)).expand([CELLS]).log_prob(grid).exp()
    integral = density.sum(0) * (axis[1] - axis[0]) ** 2
    torch.testing.assert_close(integral, torch.ones(CELLS, dtype=torch.float64), rtol=1e-6, atol=0)


@every_prior
def test_draws_carry_a_path_to_the_parameters(build):
    prior = build(2)
    draws = prior(condition()).rsample()
    parameters = list(prior.parameters())
    assert draws.requires_grad == bool(parameters)


@every_prior
def test_it_moves_to_double_precision_without_a_weight_to_save(build):
    prior = build(2).double()
    assert prior(condition(torch.float64)).sample().dtype == torch.float64
    assert set(prior.state_dict()) == {name for name, _ in prior.named_parameters()}


@every_prior
def test_a_declaration_gives_the_same_prior(build):
    prior = build(3)
    again = Declared.declare(prior.declaration())
    assert type(again) is type(prior)
    again.load_state_dict(prior.state_dict())
    value = torch.randn(CELLS, 3)
    torch.testing.assert_close(again(condition()).log_prob(value), prior(condition()).log_prob(value))


@every_prior
def test_it_is_scored_per_cell_inside_a_vae(build):
    encoding = OneHot([CONDITION])
    vae = VAE(
        build(2),
        MLP(2, [4], condition_dim=CONDITION),
        NegativeBinomialLikelihood(4, 6),
        NormalEncoder(6, 2, [4]),
        condition=encoding,
    )
    none = torch.zeros(CELLS, 0)
    levels = (torch.arange(CELLS) % CONDITION)[:, None]
    minibatch = Minibatch(None, levels, none, torch.full((CELLS,), 9.0), torch.arange(CELLS), CELLS)
    trace = poutine.trace(vae.model).get_trace(minibatch)
    trace.compute_log_prob()
    assert trace.nodes["z"]["log_prob"].shape == (CELLS,)
    expected = vae.prior(condition()).log_prob(trace.nodes["z"]["value"])
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], expected)
    assert trace.nodes["z"]["value"].unique(dim=0).shape[0] == CELLS


def test_the_condition_moves_a_conditional_prior_and_not_the_standard_one():
    conditional = ConditionalNormal(2, CONDITION)(condition()).mean
    assert not torch.equal(conditional[0], conditional[1])
    assert StandardNormal(2)(condition()).mean.abs().max() == 0


def test_a_latent_of_no_width_is_refused():
    with pytest.raises(ValueError, match="expected latent_dim to be at least one, got 0"):
        StandardNormal(0)
