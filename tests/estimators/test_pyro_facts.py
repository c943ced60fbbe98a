"""Traps in Pyro 1.9 around gradient estimators, each shown where it costs little, and that none is ours."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn

from genailab_pyro import Estimator, estimate, estimators
from genailab_pyro.estimators import WeightedELBO

START, POSTERIOR = (0.0, 1.0), (1.0, math.sqrt(0.5))
ZERO = torch.zeros((), dtype=torch.float64)


@pytest.fixture(autouse=True)
def own_store():
    with pyro.get_param_store().scope():
        yield


class Cells(nn.Module):
    """p(z) = N(0, 1), x ~ N(z, 1) for the cells of a minibatch, with one guide N(loc, scale) of all cells."""

    max_plate_nesting = 1

    def __init__(self, values, *, loc=0.3, infer=None, scales=(1.0, 1.0)):
        super().__init__()
        self.values = torch.as_tensor(values, dtype=torch.float64)
        self.loc = nn.Parameter(torch.tensor(loc, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.tensor(-0.2, dtype=torch.float64))
        self.infer, self.scales = infer or {}, scales
        self.index = torch.arange(len(self.values))

    def plate(self, index):
        return pyro.plate("cells", len(self.values), subsample=index, dim=-1)

    def model(self, index):
        with self.plate(index):
            with poutine.scale(scale=self.scales[0]):
                z = pyro.sample("z", dist.Normal(ZERO, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=self.values[index])

    model.max_plate_nesting = 1

    def forward(self, index):
        pyro.module("cells", self)
        with self.plate(index), poutine.scale(scale=self.scales[1]):
            return pyro.sample("z", dist.Normal(self.loc, self.log_scale.exp()), infer=self.infer)

    def gradient(self):
        return [parameter.grad for parameter in self.parameters()]


class WithoutPath(Cells):
    """The same guide, as one without reparameterised draws is declared in Pyro."""

    def forward(self, index):
        pyro.module("cells", self)
        with self.plate(index):
            guide = dist.Normal(self.loc.expand(len(index)), self.log_scale.exp()).has_rsample_(False)
            return pyro.sample("z", guide, infer=self.infer)


# 1. `has_rsample_` is lost on expansion, and cannot be set again on what has event dimensions.


def test_pyro_forgets_that_a_distribution_is_not_reparameterised():
    flagged = dist.Normal(torch.zeros(2), 1.0).has_rsample_(False)
    assert flagged.expand([3, 2]).has_rsample
    with (
        pytest.raises(AttributeError, match="property 'has_rsample' of 'Independent' object has no setter"),
        pyro.plate("cells", 3),
    ):
        pyro.sample("z", flagged.to_event(1))


def test_our_rule_survives_plates_particles_and_event_dimensions():
    loc = torch.zeros(2, requires_grad=True)

    def guide():
        with pyro.plate("particles", 4, dim=-2), pyro.plate("cells", 3, dim=-1):
            return pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    for rule in ("score", "pathwise"):
        trace = poutine.trace(estimate(rule)(guide)).get_trace()
        assert trace.nodes["z"]["fn"].batch_shape == (4, 3)
        assert trace.nodes["z"]["fn"].has_rsample == trace.nodes["z"]["value"].requires_grad == (rule == "pathwise")


# 2. With one latent the two credits give the same gradient; with a hierarchy, or a baseline, they do not.


def gradients(program, estimator, *args, seed=0):
    model, guide, elbo = estimators.get(estimator).bind(program.model, program)
    torch.manual_seed(seed)
    loss = elbo.differentiable_loss(model, guide, *args)
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(program.parameters()))])


def test_credit_makes_no_difference_with_one_latent_and_no_baseline():
    cells = Cells([1.0, 2.0, 4.0])
    first, second = (gradients(cells, name, cells.index) for name in ("score", "score-graph"))
    torch.testing.assert_close(first, second)


def test_credit_lowers_the_variance_in_a_hierarchy(linear_gaussian, draws_of):
    world = linear_gaussian(20_000, num_latents=3)
    plates, graph = (draws_of(world, estimators.get(name)) for name in ("score", "score-graph"))
    torch.testing.assert_close(plates[:, 0], graph[:, 0])  # all costs are downstream of the latent at the top
    assert not torch.allclose(plates[:, 2], graph[:, 2])
    bottom = ("score-loo", Estimator("score", credit="graph", num_particles=8, baseline="leave-one-out"))
    plates, graph = (draws_of(world, estimators.get(name))[:, 2].var() for name in bottom)
    assert graph < 0.95 * plates


def test_stock_pyro_ignores_a_baseline_unless_credit_is_by_the_graph():
    options = {"baseline": {"baseline_value": torch.tensor([-3.0, -3.0, -3.0], dtype=torch.float64)}}
    found = {}
    for bound in (Trace_ELBO, TraceGraph_ELBO):
        for infer in ({}, options):
            cells = WithoutPath([1.0, 2.0, 4.0], infer=infer)
            torch.manual_seed(0)
            with pyro.get_param_store().scope():
                bound(max_plate_nesting=1).loss_and_grads(cells.model, cells, cells.index)
            found[bound, bool(infer)] = cells.loc.grad.item()
    assert found[Trace_ELBO, True] == pytest.approx(found[Trace_ELBO, False])
    assert found[TraceGraph_ELBO, True] != pytest.approx(found[TraceGraph_ELBO, False])


@pytest.mark.parametrize("credit", ["plates", "graph"])
def test_ours_takes_a_baseline_with_either_credit(credit):
    cells, found = Cells([1.0, 2.0, 4.0]), []
    for baseline in (None, "constant"):
        model, guide, elbo = Estimator("score", credit=credit, baseline=baseline).bind(cells.model, cells)
        for seed in (1, 0):
            torch.manual_seed(seed)
            loss = elbo.differentiable_loss(model, guide, cells.index)
        found.append(torch.autograd.grad(loss, cells.loc)[0].item())
    assert found[0] != pytest.approx(found[1])


# 3. Pyro's weighted bound gives a guide without a path no gradient.


def test_stock_renyi_gives_no_gradient_to_a_guide_without_a_path():
    class Poisson(Cells):
        def model(self, index):
            with self.plate(index):
                z = pyro.sample("z", dist.Poisson(torch.ones(len(index), dtype=torch.float64)))
                pyro.sample("x", dist.Normal(z, 1.0), obs=self.values[index])

        def forward(self, index):
            pyro.module("cells", self)
            with self.plate(index):
                pyro.sample("z", dist.Poisson(self.loc.exp().expand(len(index))))

    cells = Poisson([1.0, 2.0, 4.0])
    RenyiELBO(alpha=0, num_particles=8, vectorize_particles=True, max_plate_nesting=1).loss_and_grads(
        cells.model, cells, cells.index
    )
    assert cells.loc.grad.item() == 0
    for estimator in ("iwae", "dreg", "renyi"):
        with pytest.raises(ValueError, match="got Poisson; use the estimator 'vimco'"):
            gradients(cells, estimator, cells.index)
    bare = WeightedELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    with pytest.raises(ValueError, match="'z' has none; use the estimator 'vimco'"):
        bare.loss_and_grads(cells.model, cells, cells.index)
    model, guide, elbo = estimators.get("vimco").bind(cells.model, cells)
    torch.manual_seed(0)
    (gradient,) = torch.autograd.grad(elbo.differentiable_loss(model, guide, cells.index), cells.loc)
    assert gradient.abs() > 1e-6


# 4. Pyro's average baseline goes by the place in a minibatch.


def test_stock_baseline_fails_on_a_smaller_minibatch_and_leaves_entries_in_the_optimizer():
    cells = WithoutPath(torch.arange(10.0), infer={"baseline": {"use_decaying_avg_baseline": True}})
    optimizer = pyro.optim.Adam({"lr": 0.0})
    svi = SVI(cells.model, cells, optimizer, TraceGraph_ELBO(max_plate_nesting=1))
    sizes = []
    for _ in range(3):
        svi.step(torch.arange(4))
        sizes.append(len(optimizer.optim_objs))
    assert sizes[0] < sizes[1] < sizes[2]
    with pytest.raises(RuntimeError, match="must match the size"):
        svi.step(torch.arange(3))


@pytest.mark.parametrize("baseline", ["constant", "cell-average", "network"])
def test_ours_takes_any_minibatch_and_leaves_no_entries(baseline):
    cells = Cells(torch.arange(10.0))
    estimator = Estimator("score", credit="graph", baseline=baseline)
    model, guide, elbo = estimator.bind(cells.model, cells)
    optimizer = pyro.optim.Adam({"lr": 0.0})
    svi = SVI(model, guide, optimizer, elbo)
    sizes = []
    for index in torch.randperm(10, generator=torch.Generator().manual_seed(0)).split(4):
        svi.step(index)
        sizes.append(len(optimizer.optim_objs))
    assert len(set(sizes)) == 1


def test_ours_goes_by_the_cell_where_stock_goes_by_the_place(check):
    # Two kinds of cells, far apart: what was learned at a place says nothing of the cell that stands there next.
    values = torch.tensor([0.0, 9.0]).repeat(50)
    found = {}
    for is_ours in (False, True):
        infer = {} if is_ours else {"baseline": {"use_decaying_avg_baseline": True}}
        cells = (Cells if is_ours else WithoutPath)(values, infer=infer)
        model, guide, elbo = cells.model, cells, TraceGraph_ELBO(max_plate_nesting=1)
        if is_ours:
            model, guide, elbo = Estimator("score", credit="graph", baseline="cell-average").bind(model, guide)
        draws = []
        torch.manual_seed(0)
        with pyro.get_param_store().scope():
            for step in range(300):
                cells.zero_grad()
                order = torch.randperm(100, generator=torch.Generator().manual_seed(step))
                elbo.loss_and_grads(model, guide, order)
                if step >= 60:
                    draws.append(cells.loc.grad.clone())
        found[is_ours] = torch.stack(draws)
        check(found[is_ours][:, None], (2 * cells.loc - cells.values).sum()[None].detach())
    assert found[True].var() < found[False].var() / 2


# 5. Stock `loss_and_grads` needs a parameter in Pyro's store.


def test_a_gradient_is_left_where_no_parameter_is_in_the_store():
    class Plain(Cells):
        def forward(self, index):
            with self.plate(index):
                pyro.sample("z", dist.Normal(self.loc, self.log_scale.exp()))

    stock = Plain([1.0, 2.0])
    torch.manual_seed(0)
    Trace_ELBO(max_plate_nesting=1).loss_and_grads(stock.model, stock, stock.index)
    assert stock.loc.grad is None
    for name, row in estimators.table().iterrows():
        if row["latents"] != "discrete":
            ours = Plain([1.0, 2.0])
            model, guide, elbo = estimators.get(name).bind(ours.model, ours)
            elbo.loss_and_grads(model, guide, ours.index)
            assert ours.loc.grad.abs() > 1e-6, name


# 6. Stock mean field and a guide without a path.


def test_stock_mean_field_leaves_out_the_likelihood_of_a_guide_without_a_path():
    cells = WithoutPath([5.0, 6.0], loc=0.0)
    stock = TraceMeanField_ELBO(max_plate_nesting=1)
    with pyro.validation_enabled(True), pytest.raises(NotImplementedError, match="must be fully reparameterized"):
        stock.loss_and_grads(cells.model, cells, cells.index)
    with pyro.validation_enabled(False):
        stock.loss_and_grads(cells.model, cells, cells.index)
    assert cells.loc.grad.item() == 0  # that of the KL alone


def test_our_score_with_the_kl_in_closed_form_follows_the_likelihood_too(check):
    cells = Cells([5.0, 6.0], loc=0.0)
    model, guide, elbo = estimators.get("score-kl").bind(cells.model, cells)
    torch.manual_seed(0)
    draws = []
    for is_validated in (True, False):
        with pyro.validation_enabled(is_validated):
            for _ in range(500):
                cells.zero_grad()
                elbo.loss_and_grads(model, guide, cells.index)
                draws.append(cells.loc.grad.clone())
    check(torch.stack(draws)[:, None], torch.tensor([-11.0], dtype=torch.float64))


# 7. A weight of the KL on the model alone is another objective for each bound.


def test_a_weight_of_the_kl_belongs_to_the_model_and_the_guide():
    def loss(estimator, scales):
        cells = Cells([1.0, 2.0, 4.0], scales=scales)
        model, guide, elbo = estimators.get(estimator, num_particles=20_000).bind(cells.model, cells)
        torch.manual_seed(0)
        return elbo.loss(model, guide, cells.index)

    scale = math.exp(-0.2)
    kl = 3 * (0.2 - 0.5 + 0.5 * (scale**2 + 0.3**2))
    likelihood = sum(0.5 * math.log(2 * math.pi) + 0.5 * ((x - 0.3) ** 2 + scale**2) for x in (1, 2, 4))
    for estimator in ("pathwise", "pathwise-kl", "score", "score-kl"):
        assert loss(estimator, (0.3, 0.3)) == pytest.approx(likelihood + 0.3 * kl, rel=0.01)
    # On the model alone the one weighs the prior and not the entropy, the other nothing: they part.
    assert abs(loss("pathwise", (0.3, 1.0)) - loss("pathwise-kl", (0.3, 1.0))) > 1


# 8. The guess of the nesting of plates.


@pytest.mark.parametrize("name", ["pathwise", "score-loo", "iwae", "dreg", "vimco"])
def test_the_guess_of_the_nesting_of_plates_does_not_shift_random_numbers(name):
    cells = Cells([1.0, 2.0, 4.0])
    estimator = estimators.get(name, num_particles=4)

    def losses(model, guide, elbo):
        torch.manual_seed(0)
        return [elbo.loss(model, guide, cells.index) for _ in range(2)]

    told = losses(*estimator.bind(cells.model, cells))
    # Functions say nothing of their plates.
    model, guide, elbo = estimator.bind(lambda index: cells.model(index), lambda index: cells(index))
    assert math.isinf(elbo.max_plate_nesting)
    assert losses(model, guide, elbo) == told


def test_the_guess_shifts_random_numbers_in_stock_pyro():
    cells = Cells([1.0, 2.0, 4.0])
    found = []
    for nesting in (1, math.inf):
        elbo = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=nesting)
        torch.manual_seed(0)
        found.append([elbo.loss(cells.model, cells, cells.index) for _ in range(2)])
    assert found[0][0] != found[1][0]


# 9. Pyro's pathwise is not sticking the landing.


def test_stock_pathwise_scatters_at_the_posterior_and_stl_does_not(conjugate):
    found = {}
    for name in ("stock", "pathwise", "stl"):
        pair = conjugate(*POSTERIOR, 20_000)
        torch.manual_seed(0)
        if name == "stock":
            loss = Trace_ELBO(max_plate_nesting=1).differentiable_loss(pair.model, pair)
        else:
            model, guide, elbo = estimators.get(name).bind(pair.model, pair)
            loss = elbo.differentiable_loss(model, guide)
        found[name] = [g.var().item() for g in torch.autograd.grad(loss, [pair.loc, pair.log_scale])]
    assert found["stock"] == pytest.approx(found["pathwise"])
    assert min(found["stock"]) > 0.5
    assert max(found["stl"]) < 1e-10
