"""A parameter with a prior: its posterior against the conjugate one, beside the amortised posterior of z."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import nn

from genailab_pyro import MLP, VAE, VAE_NB, Cells, Likelihood, NormalEncoder, StandardNormal, check_pair, estimators
from genailab_pyro.estimators import EstimatorError
from genailab_pyro.model.globals import GlobalLatents
from genailab_pyro.nn import Declared

GENES, CELLS, SPREAD = 3, 40, 0.5
THETA = "likelihood.log_inverse_dispersion.log_value"
OFFERED = estimators.matrix().index[estimators.matrix()["global latent"] == "yes"]
OFFERED = [name for name in OFFERED if estimators.table().loc[name, "latents"] != "discrete"]


class Levels(Likelihood):
    """Normal values about one level for each gene, whatever the latent."""

    def __init__(self, genes):
        super().__init__()
        self.level = nn.Parameter(torch.zeros(genes))

    def forward(self, features, minibatch):
        return dist.Normal(self.level + 0 * features[..., :1], 2.0).to_event(1)


@pytest.fixture(autouse=True)
def own_store():
    with pyro.get_param_store().scope():
        yield


@pytest.fixture
def cells():
    generator = torch.Generator().manual_seed(0)
    return Cells.from_tensors(torch.poisson(torch.full((CELLS, GENES), 4.0), generator=generator) + 1)


def levels():
    torch.manual_seed(0)
    return VAE(StandardNormal(2), MLP(2, []), Levels(GENES), NormalEncoder(GENES, 2, [4], dropout=0.0))


def counts():
    torch.manual_seed(0)
    return VAE_NB(GENES, 2, [8])


def conjugate(cells, *, prior_loc=1.0):
    """Mean and standard deviation of each level given all cells."""
    values = cells.take(range(CELLS)).counts
    precision = CELLS / 2.0**2 + 1 / SPREAD**2
    return (values.sum(0) / 2.0**2 + prior_loc / SPREAD**2) / precision, precision**-0.5


def trained(latents, cells, *, size=10, num_steps=600, num_particles=16):
    model, guide, elbo = estimators.get("pathwise", num_particles=num_particles).bind(latents.model, latents.guide)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.993}), elbo)
    torch.manual_seed(0)
    step = 0
    while step < num_steps:
        for minibatch in cells.minibatches(size, seed=step):
            svi.step(minibatch)
            step += 1
    return latents


@pytest.mark.parametrize("size", [CELLS, CELLS // 4])
def test_the_posterior_of_a_level_is_the_conjugate_one_whatever_the_minibatch(cells, size):
    latents = trained(GlobalLatents(levels(), {"likelihood.level": (1.0, SPREAD)}), cells, size=size)
    ((loc, scale),) = latents.posterior().values()
    exact_loc, exact_scale = conjugate(cells)
    torch.testing.assert_close(loc, exact_loc, rtol=0, atol=0.05)
    torch.testing.assert_close(scale, torch.full_like(scale, exact_scale), rtol=0.1, atol=0)
    # Without the prior, or with a quarter of the cells, it would be elsewhere.
    means = cells.take(range(CELLS)).counts.mean(0)
    assert ((loc - means).abs() > 0.2).all()
    assert exact_scale < 0.8 * (CELLS / 4 / 2.0**2 + 1 / SPREAD**2) ** -0.5


@pytest.mark.parametrize("estimator", OFFERED)
@pytest.mark.parametrize("num_particles", [1, 3])
def test_it_trains_with_each_estimator_that_offers_global_latents(estimator, num_particles, cells):
    latents = GlobalLatents(counts(), {THETA: (1.0, 1.0)})
    minibatch = cells.take(range(10))
    check_pair(latents.model, latents.guide, minibatch)
    before = {name: value.clone() for name, value in latents.named_parameters()}
    particles = max(num_particles, estimators.get(estimator).least_particles)
    model, guide, elbo = estimators.get(estimator, num_particles=particles).bind(latents.model, latents.guide)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    torch.manual_seed(0)
    assert torch.isfinite(torch.tensor([svi.step(minibatch) for _ in range(3)])).all()
    for name, value in latents.named_parameters():
        still = name == f"vae.{THETA}"  # a draw stands in its place
        assert torch.equal(value, before[name]) == still or "bias" in name, name


@pytest.mark.parametrize("estimator", ["iwae", "dreg", "renyi", "vimco"])
def test_importance_weights_of_cells_are_refused(estimator, cells):
    latents = GlobalLatents(counts(), {THETA: (1.0, 1.0)})
    model, guide, elbo = estimators.get(estimator).bind(latents.model, latents.guide)
    refused = r"every latent in the plate of the data.*use the|the point '.*' not to depend on a draw.*; use the"
    with pytest.raises(EstimatorError, match=refused):
        elbo.differentiable_loss(model, guide, cells.take(range(10)))


def test_it_starts_at_the_parameter_and_settles_at_the_mean(cells):
    vae = counts()
    with torch.no_grad():
        vae.likelihood.log_inverse_dispersion.log_value.copy_(torch.tensor([0.5, 1.0, 1.5]))
    state = torch.get_rng_state()
    latents = GlobalLatents(vae, {THETA: (1.0, 1.0)}, initial_scale=0.3)
    assert torch.equal(torch.get_rng_state(), state)
    assert not pyro.get_param_store().keys()
    ((loc, scale),) = latents.posterior().values()
    torch.testing.assert_close(loc, torch.tensor([0.5, 1.0, 1.5]))
    torch.testing.assert_close(scale, torch.full((3,), 0.3))
    trained(latents, cells, num_steps=20)
    settled = latents.settle()
    assert settled is vae
    torch.testing.assert_close(vae.likelihood.log_inverse_dispersion.log_value, latents.posterior()[THETA][0])
    assert not torch.allclose(vae.likelihood.log_inverse_dispersion.log_value, torch.tensor([0.5, 1.0, 1.5]))


def test_two_of_them_train_as_each_does_alone(cells):
    alone = []
    for _ in range(2):
        with pyro.get_param_store().scope():
            alone.append(trained(GlobalLatents(counts(), {THETA: (1.0, 1.0)}), cells, num_steps=8).posterior()[THETA])
    first, second = (GlobalLatents(counts(), {THETA: (1.0, 1.0)}) for _ in range(2))
    for latents, expected in zip((first, second), alone, strict=True):
        trained(latents, cells, num_steps=8)
        torch.testing.assert_close(latents.posterior()[THETA], expected)


def test_a_declaration_and_its_weights_give_the_same_posterior(cells):
    latents = trained(GlobalLatents(counts(), {THETA: (1.0, 2.0)}), cells, num_steps=4)
    again = Declared.declare(latents.declaration())
    again.load_state_dict(latents.state_dict())
    torch.testing.assert_close(again.posterior()[THETA], latents.posterior()[THETA])
    assert again.priors == latents.priors


@pytest.mark.parametrize(
    ("priors", "message"),
    [
        ({}, r"expected priors of vector parameters of the VAE, among .*'likelihood.log_inv.*, got none"),
        ({"likelihood.theta": (0.0, 1.0)}, r"got 'likelihood.theta'"),
        ({"likelihood.log_expression.weight": (0.0, 1.0)}, r"got 'likelihood.log_expression.weight'"),
        ({THETA: (0.0, 0.0)}, r"expected a standard deviation above 0 for likelihood.log_inv.*, got 0.0"),
    ],
)
def test_what_has_no_prior_is_refused(priors, message):
    with pytest.raises(ValueError, match=message):
        GlobalLatents(counts(), priors)


def test_a_guide_without_spread_is_refused():
    with pytest.raises(ValueError, match="expected a standard deviation above 0 for the guide, got -1"):
        GlobalLatents(counts(), {THETA: (0.0, 1.0)}, initial_scale=-1)
