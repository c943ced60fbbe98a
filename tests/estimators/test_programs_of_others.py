"""Programs as Pyro's users write them: automatic guides, plates that draw their own, factors, loops, scales."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from torch import nn

from genailab_pyro import Estimator, estimators
from genailab_pyro.estimators import EstimatorError

X = torch.tensor([1.2, 0.4, 2.0], dtype=torch.float64)
ROWS = torch.linspace(-1, 2, 12, dtype=torch.float64)


@pytest.fixture(autouse=True)
def own_store():
    with pyro.get_param_store().scope():
        yield


def one(value):
    return torch.tensor(value, dtype=torch.float64)


def conjugate():
    z = pyro.sample("z", dist.Normal(one(0.0), one(1.0)))
    with pyro.plate("rows", 3):
        pyro.sample("x", dist.Normal(z, 0.7), obs=X)


@pytest.mark.parametrize(
    "estimator",
    [
        *("pathwise", "stl", "score", "score-graph", "score-loo", "score-graph-ema", "score-kl", "pathwise-kl"),
        Estimator("pathwise-or-score"),
        Estimator("score", bound="elbo-kl", baseline="leave-one-out", num_particles=8),
    ],
    ids=str,
)
def test_an_automatic_guide_finds_the_posterior(estimator):
    variance = 1 / (1 + 3 / 0.49)
    guide = AutoNormal(conjugate, init_scale=0.3)
    torch.manual_seed(0)
    number = 256
    model, bound, elbo = estimators.get(estimator, num_particles=number).bind(conjugate, guide.double())
    svi = SVI(model, bound, pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.994}), elbo)
    for _ in range(400):
        svi.step()
    assert guide.locs.z.item() == pytest.approx(variance * X.sum().item() / 0.49, abs=0.03)
    assert guide.scales.z.item() == pytest.approx(variance**0.5, rel=0.05)


class OwnSubsample(nn.Module):
    """A plate that draws its elements itself, in the guide and, by replay, the same ones in the model."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(one(0.3))
        self.slope = nn.Parameter(one(0.5))
        self.log_scale = nn.Parameter(one(-0.2))

    def model(self):
        with pyro.plate("rows", 12, subsample_size=4) as index:
            z = pyro.sample("z", dist.Normal(one(0.0), 1.0))
            pyro.sample("x", dist.Normal(z + self.theta, 0.7), obs=ROWS[index])

    def forward(self):
        with pyro.plate("rows", 12, subsample_size=4) as index:
            pyro.sample("z", dist.Normal(self.slope * ROWS[index], self.log_scale.exp()))


def gradients(estimator, num_draws, seed=0):
    programs = OwnSubsample()
    model, guide, elbo = estimator.bind(programs.model, programs)
    torch.manual_seed(seed)
    parameters = [*programs.parameters()]
    return torch.stack(
        [torch.stack(torch.autograd.grad(elbo.differentiable_loss(model, guide), parameters)) for _ in range(num_draws)]
    )


@pytest.mark.parametrize("name", ["dreg", "vimco", "iwae"])
def test_importance_weights_see_the_elements_that_the_plate_has_drawn(name):
    mine = gradients(estimators.get(name, num_particles=3), 2500)
    other = gradients(estimators.get("iwae", num_particles=3), 2500, seed=1)
    error = (mine.var(0) / len(mine) + other.var(0) / len(other)).sqrt()
    assert ((mine.mean(0) - other.mean(0)).abs() / error).max() < 5


def test_the_delta_baseline_sees_the_elements_that_the_plate_has_drawn():
    plain, lowered = (
        gradients(estimator, 1500)
        for estimator in (Estimator("pathwise", num_particles=4), Estimator("score", baseline="delta", num_particles=4))
    )
    error = (plain.var(0) / len(plain) + lowered.var(0) / len(lowered)).sqrt()
    assert ((plain.mean(0) - lowered.mean(0)).abs() / error).max() < 5
    # With other elements than those of the draws it would scatter several times as much.
    assert (lowered.std(0) < 1.5 * plain.std(0))[1]


@pytest.mark.parametrize("name", ["score-loo", "score-graph-ema", "iwae", "vimco", "dreg", "score-kl", "pathwise-kl"])
def test_a_factor_in_a_guide_is_refused_where_it_would_be_left_out(name):
    loc = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def guide():
        pyro.sample("z", dist.Normal(loc, one(0.5)))
        pyro.factor("f", 3 * loc, has_rsample=True)

    model, bound, elbo = estimators.get(name).bind(conjugate_without_plate, guide)
    with pytest.raises(
        EstimatorError, match=r"without factors and observed sites, got 'f'; use .*'pathwise' or 'score'"
    ):
        elbo.differentiable_loss(model, bound)


def conjugate_without_plate():
    z = pyro.sample("z", dist.Normal(one(0.0), one(1.0)))
    pyro.sample("x", dist.Normal(z, 0.7), obs=X[0])


@pytest.mark.parametrize("name", ["iwae", "dreg", "vimco", "renyi"])
def test_loops_over_plates_and_scaled_observations_are_refused_beside_importance_weights(name):
    loc = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def looped(is_guide):
        for i in pyro.plate("rows", 3):
            z = pyro.sample(f"z{i}", dist.Normal(loc if is_guide else one(0.0), one(1.0)))
            if not is_guide:
                pyro.sample(f"x{i}", dist.Normal(z, 0.7), obs=X[i])

    model, guide, elbo = estimators.get(name).bind(lambda: looped(False), lambda: looped(True))
    with pytest.raises(EstimatorError, match="a loop over one"):
        elbo.differentiable_loss(model, guide)
    scaled = poutine.scale(conjugate_without_plate, 0.5)
    model, guide, elbo = estimators.get(name).bind(
        scaled, poutine.scale(lambda: pyro.sample("z", dist.Normal(loc, one(1.0))), 0.5)
    )
    with pytest.raises(EstimatorError, match="to have no scale"):
        elbo.differentiable_loss(model, guide)


@pytest.mark.parametrize("name", ["score-graph", "score-graph-ema"])
def test_a_draw_that_is_written_in_place_is_told_to_be_lost(name):
    loc = torch.zeros(4, dtype=torch.float64, requires_grad=True)

    def model():
        with pyro.plate("rows", 4):
            z = pyro.sample("z", dist.Normal(one(0.0), one(1.0)))
            out = torch.zeros(4, 2, dtype=torch.float64)
            out[:, 0] = z
            pyro.sample("x", dist.Normal(out.sum(-1), 0.5), obs=ROWS[:4])

    def guide():
        with pyro.plate("rows", 4):
            pyro.sample("z", dist.Normal(loc, one(1.0)))

    bound_model, bound_guide, elbo = estimators.get(name).bind(model, guide)
    with pytest.warns(UserWarning, match="no observation depends on 'z' as far as Pyro can track it"):
        elbo.differentiable_loss(bound_model, bound_guide)


@pytest.mark.parametrize("size", [3, 4])
def test_pairs_are_formed_whatever_the_size_of_the_plate(size):
    logits = torch.zeros(size, dtype=torch.float64, requires_grad=True)

    def model():
        with pyro.plate("rows", size):
            z = pyro.sample("z", dist.Bernoulli(one(0.5)))
            pyro.sample("x", dist.Normal(z, 0.7), obs=ROWS[:size])

    def guide():
        with pyro.plate("rows", size):
            pyro.sample("z", dist.Bernoulli(logits=logits))

    bound_model, bound_guide, elbo = estimators.get("disarm", num_particles=4).bind(model, guide)
    assert torch.isfinite(elbo.differentiable_loss(bound_model, bound_guide))
    bound_guide()
