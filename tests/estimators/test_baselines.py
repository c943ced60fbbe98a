"""Baselines leave the mean of the gradient as it is, and learn by the cell, whatever minibatches come in what order."""

import io

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import nn

from genailab_pyro import Estimator
from genailab_pyro.estimators import Baseline, ScoreSite
from genailab_pyro.estimators.baselines import (
    BASELINES,
    DELTA,
    CellBaseline,
    ConstantBaseline,
    LeaveOneOut,
    NetworkBaseline,
)

LEARNED = ["constant", "cell-average", "network"]


class Cells(nn.Module):
    """p(z) = N(0, 1), x ~ N(z, 1) for each cell of a data set; a guide with parameters for each cell.

    The values of x, in the first column of the rows, reach from 0 to 8, so that the costs of the cells differ.
    """

    max_plate_nesting = 1

    def __init__(self, num_cells):
        super().__init__()
        self.num_cells = num_cells
        self.loc = nn.Parameter(torch.full((num_cells,), 0.3, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.full((num_cells,), -0.2, dtype=torch.float64))
        levels = torch.linspace(0, 8, num_cells, dtype=torch.float64)
        order = torch.randperm(num_cells, generator=torch.Generator().manual_seed(0))
        self.rows = torch.stack([levels, levels**2, 8 - levels], 1)[order]

    def _plate(self, index):
        return pyro.plate("cells", self.num_cells, subsample=index, dim=-1)

    def model(self, rows, index):
        with self._plate(index):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=rows[:, 0])

    model.max_plate_nesting = 1

    def forward(self, rows, index):
        pyro.module("cells", self)
        with self._plate(index):
            pyro.sample("z", dist.Normal(self.loc[index], self.log_scale[index].exp()))

    def minibatches(self, size, seed=0):
        """All cells once, shuffled; the last minibatch is smaller where the size does not divide their number."""
        order = torch.randperm(self.num_cells, generator=torch.Generator().manual_seed(seed))
        return [(self.rows[index], index) for index in order.split(size)]

    def exact(self, index):
        """Gradient of the loss of the cells alone, in location and log scale."""
        loc, scale = self.loc[index].detach(), self.log_scale[index].detach().exp()
        return torch.stack([2 * loc - self.rows[index, 0], 2 * scale**2 - 1], 1)


@pytest.fixture(autouse=True)
def own_store():
    with pyro.get_param_store().scope():
        yield


def estimator_with(baseline, number=4, **parts):
    return Estimator("score", num_particles=number, baseline=baseline, **parts)


def errors_of_epochs(cells, estimator, num_epochs, baseline=None, size=64):
    """Gradient less the exact one, for each cell each time it is seen, while the baseline learns."""
    model, guide, elbo = estimator.bind(cells.model, cells)
    if baseline is not None:
        elbo.baseline = baseline
    loss = elbo(model, guide)
    learned = [] if elbo.baseline is None else list(elbo.baseline.parameters())
    optimizer = torch.optim.Adam(learned, lr=0.01) if learned else None
    torch.manual_seed(0)
    found = []
    for epoch in range(num_epochs):
        for rows, index in cells.minibatches(size, epoch):
            loss.zero_grad()
            loss(rows, index).backward()
            gradient = torch.stack([cells.loc.grad, cells.log_scale.grad], 1)
            found.append(gradient[index] * len(index) / cells.num_cells - cells.exact(index))
            if optimizer is not None:
                optimizer.step()
    return torch.cat(found), elbo.baseline


def every_combination():
    for baseline in (*BASELINES, DELTA):
        for bound, credit in (("elbo", "plates"), ("elbo", "graph"), ("elbo-kl", "plates")):
            try:
                yield estimator_with(baseline, bound=bound, credit=credit)
                if baseline != "leave-one-out":
                    yield estimator_with(baseline, number=1, bound=bound, credit=credit)
            except ValueError:
                continue


@pytest.mark.parametrize("estimator", every_combination(), ids=str)
def test_the_gradient_stays_unbiased_with_shuffled_and_ragged_minibatches(estimator, check):
    cells = Cells(1000)
    errors, _ = errors_of_epochs(cells, estimator, 5)
    assert len(errors) == 5000
    check(errors, torch.zeros(2, dtype=torch.float64))


class Peeking(ConstantBaseline):
    """A planted bug: half of it is the cost of the draw itself."""

    def forward(self, site):
        return 0.5 * (super().forward(site) + site.cost)


def test_a_baseline_that_sees_the_draw_is_found(check):
    errors, _ = errors_of_epochs(Cells(1000), estimator_with("constant"), 5, Peeking())
    with pytest.raises(AssertionError):
        check(errors, torch.zeros(2, dtype=torch.float64))


class OneStepLate(ConstantBaseline):
    """A planted bug: it is updated before it is used."""

    def forward(self, site):
        self.update(site)
        return super().forward(site)


def test_a_baseline_that_learns_before_it_is_used_is_found(check):
    # With a single cell in the minibatch, what was just learned is the cost itself.
    errors, _ = errors_of_epochs(Cells(500), estimator_with("constant", 1), 3, OneStepLate(decay=0.5), size=1)
    with pytest.raises(AssertionError):
        check(errors, torch.zeros(2, dtype=torch.float64))


def variance_on_all_cells(baseline, num_epochs=0, **options):
    """Summed variance in the locations, given what a baseline has learned on shuffled minibatches."""
    cells = Cells(300)
    estimator = estimator_with(baseline, 1)
    learned = None if baseline is None else BASELINES[baseline](**options)
    if learned is not None:
        errors_of_epochs(cells, estimator, num_epochs, learned)
    model, guide, elbo = estimator.bind(cells.model, cells)
    elbo.baseline = learned
    loss = elbo(model, guide).eval()
    draws = []
    for _ in range(200):
        value = loss(cells.rows, torch.arange(300))
        draws.append(torch.autograd.grad(value, cells.loc)[0])
    return torch.stack(draws).var(0).sum().item()


def test_what_differs_between_cells_is_removed_by_a_baseline_for_each_of_them():
    none = variance_on_all_cells(None)
    constant = variance_on_all_cells("constant", 25)
    per_cell = variance_on_all_cells("cell-average", 25, decay=0.95)
    network = variance_on_all_cells("network", 60)
    assert constant < none / 1.5
    assert per_cell < constant / 3
    assert network < constant / 3


def site(cost, index, num_cells=10, inputs=None):
    """A site of a minibatch, with two particles."""
    cost = torch.as_tensor(cost, dtype=torch.float64).expand(2, len(index))
    return ScoreSite("z", cost, 1.0, -2, -1, torch.as_tensor(index), num_cells, inputs)


def test_a_cell_that_was_not_seen_has_the_average_of_the_site():
    constant, per_cell = ConstantBaseline(), CellBaseline()
    for baseline in (constant, per_cell):
        baseline.update(site([1.0, 5.0], [2, 7]))
    assert constant(site([0.0, 0.0], [2, 7])).item() == pytest.approx(3.0)
    assert per_cell(site([0.0] * 3, [7, 0, 2])).tolist() == pytest.approx([5.0, 3.0, 1.0])


def test_the_averages_of_cells_follow_that_of_the_site():
    baseline = CellBaseline(decay=0.5)
    baseline.update(site([1.0, 5.0], [2, 7]))
    baseline.update(site([11.0], [4]))
    average = baseline(site([0.0], [0])).item()
    assert average == pytest.approx((3 + 11) / 2)
    assert baseline(site([0.0, 0.0], [2, 7])).tolist() == pytest.approx([average - 2, average + 2])


def test_a_site_in_no_plate_of_data_has_one_average():
    alone = ScoreSite("z", torch.tensor([4.0, 2.0]), 1.0, -1, None, None, 1, None)
    for kind in (ConstantBaseline, CellBaseline, NetworkBaseline):
        baseline = kind()
        baseline.update(alone)
        assert baseline(alone).item() == pytest.approx(3.0)


def test_a_table_grows_with_the_data_set():
    baseline = CellBaseline()
    baseline.update(site([1.0, 5.0], [2, 7], num_cells=8))
    assert baseline(site([0.0] * 3, [2, 7, 11], num_cells=12)).tolist() == pytest.approx([1.0, 5.0, 3.0])


def test_sites_are_kept_apart():
    baseline = CellBaseline()
    baseline.update(site([1.0, 5.0], [2, 7]))
    assert baseline(ScoreSite("y", torch.zeros(1), 1.0, None, -1, torch.tensor([2]), 10, None)).tolist() == [0.0]


def trained(baseline, num_epochs=2):
    cells = Cells(100)
    errors_of_epochs(cells, estimator_with(baseline), num_epochs, learned := BASELINES[baseline]())
    return cells, learned


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same(first, second):
    assert set(first) == set(second)
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=0)


@pytest.mark.parametrize("baseline", LEARNED)
def test_it_learns_in_training_and_is_frozen_in_evaluation(baseline):
    cells, learned = trained(baseline)
    model, guide, elbo = estimator_with(baseline).bind(cells.model, cells)
    elbo.baseline = learned.double()  # as bind makes it, beside a guide in double precision
    loss, before = elbo(model, guide), state(learned)
    loss.eval()
    for minibatch in cells.minibatches(64):
        loss(*minibatch).backward()
        elbo.loss_and_grads(model, guide, *minibatch)
    assert_same(before, state(learned))
    loss.train()
    elbo.loss(model, guide, *cells.minibatches(64)[0])
    assert_same(before, state(learned))
    loss(*cells.minibatches(64)[0])
    assert any(not torch.equal(value, before[name]) for name, value in state(learned).items())


def test_in_evaluation_a_network_has_no_loss():
    cells, learned = trained("network")
    model, guide, elbo = estimator_with("network").bind(cells.model, cells)
    elbo.baseline = learned
    loss = elbo(model, guide)
    for is_training in (True, False):
        loss.train(is_training).zero_grad()
        loss(*cells.minibatches(64)[0]).backward()
        assert all((parameter.grad is not None) == is_training for parameter in learned.parameters())


@pytest.mark.parametrize("baseline", LEARNED)
def test_what_it_learned_is_saved_and_loaded(baseline):
    cells, learned = trained(baseline)
    file = io.BytesIO()
    torch.save(learned.state_dict(), file)
    file.seek(0)
    fresh = BASELINES[baseline]()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert_same(state(learned), state(fresh))
    index = torch.arange(100)
    known = ScoreSite("z", torch.zeros(100, dtype=torch.float64), 1.0, None, -1, index, 100, cells.rows)
    assert learned(known).abs().min() > 0
    torch.testing.assert_close(learned(known), fresh(known), rtol=0, atol=0)


@pytest.mark.parametrize("baseline", LEARNED)
def test_it_is_saved_and_loaded_with_the_bound_of_a_pair(baseline):
    cells, learned = trained(baseline)
    model, guide, elbo = estimator_with(baseline).bind(cells.model, cells)
    elbo.baseline = learned.double()  # as bind makes it, beside a guide in double precision
    saved = elbo(model, guide).state_dict()
    model, guide, elbo = estimator_with(baseline).bind(cells.model, other := Cells(100))
    elbo(model, guide).load_state_dict(saved)
    assert_same(state(learned), state(elbo.baseline))
    assert_same(state(cells), state(other))


class Learned(Baseline):
    """A baseline of a user, with a parameter and without a loss of its own."""

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, site):
        return self.level


class Tilted(Learned):
    """A baseline of a user with a loss of its own."""

    def loss(self, site):
        return self.level


def test_without_a_loss_of_its_own_a_baseline_minimises_its_mean_squared_error():
    baseline, costs = Learned(), site([1.0, 5.0], [2, 7])
    loss = baseline.loss(costs)
    assert loss.item() == pytest.approx((1 + 25) / 2)
    assert torch.autograd.grad(loss, baseline.level)[0].item() == pytest.approx(-(1 + 5))
    assert LeaveOneOut().loss(costs) == 0.0


@pytest.mark.parametrize("credit", ["plates", "graph"])
def test_every_step_of_a_bound_reaches_the_parameters_of_a_baseline(credit):
    cells = Cells(20)
    model, guide, elbo = estimator_with("constant", credit=credit).bind(cells.model, cells)
    for elbo.baseline in (Learned(), Tilted()):
        loss = elbo.differentiable_loss(model, guide, cells.rows, torch.arange(20))
        assert torch.autograd.grad(loss, elbo.baseline.level)[0] > 0


@pytest.mark.parametrize("kind", [Learned, Tilted])
def test_a_baseline_of_a_user_learns_is_unbiased_and_is_saved(check, kind):
    cells, baseline = Cells(500), kind()
    errors, _ = errors_of_epochs(cells, estimator_with("constant"), 5, baseline)
    check(errors, torch.zeros(2, dtype=torch.float64))
    assert baseline.level < -0.1
    fresh = kind()
    fresh.load_state_dict(baseline.state_dict())
    assert torch.equal(fresh.level, baseline.level)


class Says(Baseline):
    """A baseline of a user that says something."""

    def __init__(self, said):
        super().__init__()
        self.said = said

    def forward(self, site):
        return self.said


def loss_with(said):
    cells = Cells(4)
    model, guide, elbo = estimator_with("constant", number=3).bind(cells.model, cells)
    elbo.baseline = Says(said)
    pyro.set_rng_seed(0)
    return elbo.differentiable_loss(model, guide, cells.rows, torch.arange(4))


def test_a_number_is_a_baseline():
    assert loss_with(2.0) == loss_with(torch.full((4,), 2.0))


@pytest.mark.parametrize(
    ("said", "got"),
    [
        (None, "got None"),
        (torch.zeros(3, 4, 1), r"got the shape \[3, 4, 1\]"),
        (torch.zeros(3), r"got the shape \[3\]"),
    ],
)
def test_what_does_not_fit_the_costs_is_refused(said, got):
    with pytest.raises(ValueError, match=r"broadcasts to the costs of 'z', of shape \[3, 4\], " + got):
        loss_with(said)


@pytest.mark.parametrize("baseline", [*LEARNED, "leave-one-out"])
@pytest.mark.parametrize("credit", ["plates", "graph"])
def test_pyros_svi_has_optimizer_entries_for_parameters_only(baseline, credit):
    cells = Cells(100)
    model, guide, elbo = estimator_with(baseline, credit=credit).bind(cells.model, cells)
    optimizer = pyro.optim.Adam({"lr": 0.01})
    svi = SVI(model, guide, optimizer, elbo)
    parts = list(elbo.baseline.parameters())
    before, sizes = [parameter.clone() for parameter in parts], []
    for epoch in range(3):
        for minibatch in cells.minibatches(64, epoch):
            svi.step(*minibatch)
            sizes.append(len(optimizer.optim_objs))
    expected = {id(parameter) for parameter in (*cells.parameters(), *parts)}
    assert {id(parameter) for parameter in optimizer.optim_objs} == expected
    assert set(sizes) == {len(expected)}
    assert set(optimizer.get_state()) == {pyro.get_param_store().param_name(p) for p in optimizer.optim_objs}
    assert all(not torch.equal(first, second) for first, second in zip(before, parts, strict=True))
    assert bool(parts) == (baseline == "network")


def test_a_torch_optimizer_trains_the_network_beside_the_pair():
    cells = Cells(300)
    model, guide, elbo = estimator_with("network").bind(cells.model, cells)
    loss = elbo(model, guide)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.01)
    before = {name: value.clone() for name, value in loss.named_parameters()}
    torch.manual_seed(0)
    for epoch in range(3):
        for minibatch in cells.minibatches(64, epoch):
            optimizer.zero_grad()
            loss(*minibatch).backward()
            optimizer.step()
    assert [name for name, value in loss.named_parameters() if torch.equal(value, before[name])] == []
    assert any(name.startswith("baseline.") for name in before)


def test_what_a_baseline_minimises_has_the_same_weight_whatever_the_number_of_particles():
    cells, found = Cells(300), []
    for number in (1, 50):
        model, guide, elbo = estimator_with("constant", number).bind(cells.model, cells)
        elbo.baseline = Learned()
        torch.manual_seed(0)
        elbo(model, guide)(cells.rows, torch.arange(300)).backward()
        found.append(elbo.baseline.level.grad.item())
    assert found[0] == pytest.approx(found[1], rel=0.2)
