"""The table of names, and combinations that are refused."""

import copy

import pytest
import torch
from pyro.distributions.score_parts import ScoreParts

from genailab_pyro import Estimator, estimators
from genailab_pyro.estimators import Baseline, Rule, baselines, named, registry, rules


def test_a_name_gives_its_specification():
    assert estimators.get("score-graph") == Estimator(rule="score", credit="graph")
    assert estimators.get("score", num_particles=8).num_particles == 8
    assert estimators.get(Estimator("score")) == Estimator("score")


def test_the_table_lists_objective_needs_and_reference():
    table = estimators.table()
    assert {"pathwise", "pathwise-kl", "score", "score-graph"} <= set(table.index)
    assert set(table.loc[["pathwise", "score"], "objective"]) == {"ELBO"}
    assert table["reference"].str.contains("doi:").all()


@pytest.fixture
def own_table(monkeypatch):
    """A table whose new rows the other tests do not see."""
    monkeypatch.setattr(named, "_ROWS", dict(named._ROWS))


def test_a_user_adds_a_row(own_table):
    estimators.register("pathwise-16", Estimator(num_particles=16), objective="ELBO of ours", reference="ours")
    assert estimators.table().loc["pathwise-16", "objective"] == "ELBO of ours"
    assert estimators.get("pathwise-16").num_particles == 16
    with pytest.raises(ValueError, match="choose another name"):
        estimators.register("pathwise", Estimator("score"))


def test_what_a_row_does_not_offer_is_in_the_matrix_with_another_that_does():
    matrix = estimators.matrix()
    assert [*matrix.columns] == [*estimators.USES]
    assert [*matrix.index] == [*estimators.table().index]
    for use in matrix:
        for answer in matrix[use][matrix[use] != "yes"]:
            assert matrix.loc[answer.removeprefix("no: "), use] == "yes"


def test_a_number_of_particles_below_the_least_is_refused():
    for name, row in estimators.table().iterrows():
        assert estimators.get(name, num_particles=row["least_particles"]).num_particles == row["least_particles"]
        if row["least_particles"] > 1:
            with pytest.raises(ValueError, match="expected num_particles of at least 2"):
                estimators.get(name, num_particles=1)


def test_an_estimator_shows_its_parts():
    assert str(Estimator("gumbel", temperature=0.3)).endswith("baseline=None, temperature=0.3)")
    assert "temperature" not in str(Estimator("gumbel"))


def test_an_estimator_has_a_name_to_be_shown():
    assert estimators.name_of(Estimator("score", credit="graph")) == "score-graph"
    assert estimators.name_of(Estimator("score", num_particles=4)) == "score-4"
    assert estimators.name_of(estimators.get("score-loo")) == "score-loo"
    assert estimators.name_of(Estimator("pathwise-or-score", num_particles=3)) == "pathwise-or-score-3"
    assert estimators.name_of(estimators.get("iwae", num_particles=4)) == "iwae-4"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "reinforce"}, "rule to be one of 'pathwise', 'stl'.*got 'reinforce'"),
        ({"bound": "reny"}, "bound to be one of 'elbo', 'elbo-kl', 'importance-weighted', 'renyi', got 'reny'"),
        ({"credit": "tree"}, "credit to be one of 'plates', 'graph', got 'tree'"),
        ({"bound": "renyi"}, "Renyi's bound, which is the ELBO with one, got 1; use num_particles=8"),
        ({"bound": "renyi", "num_particles": 4, "alpha": 1}, "expected alpha, other than 1"),
        ({"alpha": 0.5}, "for bound='renyi' only"),
        ({"temperature": 0.5}, "for a Gumbel rule only"),
        ({"rule": "gumbel", "temperature": 0.0}, "above zero"),
        ({"rule": "stl", "bound": "importance-weighted"}, "biased under importance weights: use the estimator 'dreg'"),
        ({"rule": "stl", "bound": "elbo-kl"}, "use the estimator 'pathwise-kl'"),
        ({"rule": "dreg"}, "use the estimator 'stl'"),
        ({"rule": "score", "bound": "renyi", "num_particles": 4}, "use the estimator 'vimco'"),
        ({"rule": "enumerated"}, "use the estimator 'enum'"),
        ({"rule": "gumbel", "bound": "elbo-kl"}, "use the estimator 'gumbel'"),
        ({"rule": "dreg", "bound": "importance-weighted", "credit": "graph"}, "use credit='plates'"),
        ({"rule": "pathwise-or-score", "bound": "elbo-kl", "credit": "graph"}, "use credit='plates'"),
        ({"rule": "antithetic", "num_particles": 1}, "at least 2 for antithetic pairs"),
        ({"rule": "antithetic", "num_particles": 3}, "an even num_particles"),
        ({"rule": "score", "baseline": "leave-one-out"}, "at least 2 for the baseline 'leave-one-out', got 1"),
        ({"rule": "gumbel", "baseline": "constant"}, "has no score, got 'constant'; leave it out"),
        ({"rule": "pathwise", "bound": "importance-weighted", "baseline": "constant"}, "has no score"),
        ({"rule": "score", "bound": "importance-weighted", "baseline": "constant"}, "use the estimator 'vimco'"),
        ({"rule": "score", "credit": "graph", "baseline": "delta"}, "use the baseline 'leave-one-out'"),
        ({"num_particles": 0}, "at least one, got 0"),
        ({"num_particles": True}, "at least one, got True"),
        ({"baseline": "average"}, "got 'average'"),
    ],
)
def test_what_cannot_work_is_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        Estimator(**arguments)


def test_an_unknown_name_is_answered_with_the_known():
    with pytest.raises(ValueError, match=r"'pathwise', 'pathwise-kl', 'stl', 'score'.*got 'pathwize'"):
        estimators.get("pathwize")


class HalfScore(Rule):
    """A score that is half of what it should be."""

    name = "half-score"
    reparameterised = False

    def score_parts(self, base, value):
        log_prob = base.log_prob(value)
        return ScoreParts(log_prob, log_prob / 2, 0.0)


class Five(Baseline):
    """The number five."""

    def forward(self, site):
        return torch.full_like(site.cost, 5.0)


@pytest.fixture
def own_parts():
    """Tables whose new entries the other tests do not see."""
    tables = (rules.RULES, baselines.BASELINES, registry.CLASSES)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


def test_a_user_adds_a_rule_and_a_baseline(own_parts, conjugate):
    estimators.register_rule(HalfScore())
    estimators.register_baseline("five", Five)
    pair = conjugate(0.0, 1.0, 20_000)
    gradients = []
    for estimator in (Estimator("half-score"), Estimator("half-score", credit="graph"), Estimator("score")):
        model, guide, elbo = estimator.bind(pair.model, pair)
        torch.manual_seed(0)
        gradients.append(torch.autograd.grad(elbo(model, guide)(), pair.loc)[0])
    torch.testing.assert_close(gradients[0], gradients[2] / 2)
    torch.testing.assert_close(gradients[1], gradients[0])
    model, guide, elbo = Estimator("score", baseline="five").bind(pair.model, pair)
    torch.manual_seed(0)
    lowered = torch.autograd.grad(elbo(model, guide)(), pair.loc)[0]
    # The loss is minus the bound: five times the score of loc, (z - loc) / scale^2, is added to its gradient.
    torch.manual_seed(0)
    z = pair()
    torch.testing.assert_close(lowered, gradients[2] + 5 * (z - pair.loc).detach())


class Nameless(estimators.Score):
    """A rule that has the name of the one it is derived from."""


class Bare(Rule):
    """A rule that says nothing."""


class Sized(Five):
    """A baseline that needs an argument."""

    def __init__(self, size):
        super().__init__()
        self.size = size


class Unmade(Five):
    """A baseline with a parameter, without the constructor of its base."""

    def __init__(self):
        self.level = torch.nn.Parameter(torch.zeros(()))


class Plain(Five):
    """A baseline with a number, without the constructor of its base."""

    def __init__(self):
        self.level = 5.0


class Mute(Baseline):
    """A baseline that answers nothing."""


@pytest.mark.parametrize(
    ("add", "error", "message"),
    [
        (lambda: estimators.register_rule(HalfScore), TypeError, "an instance of a Rule"),
        (lambda: estimators.register_rule(rules.RULES["score"]), ValueError, "'score' is taken; choose another one"),
        (lambda: estimators.register_rule(Nameless()), ValueError, "'score' is taken; set name = .* class Nameless"),
        (
            lambda: estimators.register_rule(Bare()),
            TypeError,
            "Bare to have .* for name and reparameterised and",
        ),
        (lambda: estimators.register_baseline("mine", HalfScore), TypeError, "a subclass of Baseline"),
        (lambda: estimators.register_baseline("delta", Five), ValueError, "'delta' is taken"),
        (lambda: estimators.register_baseline("network", baselines.NetworkBaseline), ValueError, "'network' is taken"),
        (lambda: estimators.register_baseline("mine", Sized), TypeError, "Sized .*argument: 'size'; give .* a default"),
        (
            lambda: estimators.register_baseline("mine", Unmade),
            TypeError,
            r"Unmade .*call super\(\).__init__\(\)",
        ),
        (lambda: estimators.register_baseline("mine", Plain), TypeError, r"Plain .*call super\(\).__init__\(\)"),
        (lambda: estimators.register_baseline("mine", Mute), TypeError, r"Mute to have forward\(site\), got none"),
        (lambda: estimators.register("mine", "score"), TypeError, "expected an Estimator, got str"),
    ],
)
def test_a_part_that_cannot_be_added_is_refused(own_parts, add, error, message):
    before = [*rules.RULES, *baselines.BASELINES]
    with pytest.raises(error, match=message):
        add()
    assert [*rules.RULES, *baselines.BASELINES] == before


def defined_again(cls):
    """The class as a notebook's cell makes it when it is run once more."""
    return type(cls.__name__, cls.__bases__, {**vars(cls)})


def test_a_part_that_is_defined_again_takes_the_place_of_the_former(own_parts):
    rule, baseline = defined_again(HalfScore), defined_again(Five)
    for added in (HalfScore(), rule()):
        estimators.register_rule(added)
        assert rules.RULES["half-score"] is added
    for kind in (Five, baseline):
        estimators.register_baseline("five", kind)
        assert baselines.BASELINES["five"] is kind
    assert Estimator("half-score", baseline="five").rule == "half-score"


def test_another_class_does_not_take_the_place_of_a_part(own_parts):
    class Other(HalfScore):
        name = "half-score"

    estimators.register_rule(HalfScore())
    with pytest.raises(ValueError, match="'half-score' is taken; choose another one"):
        estimators.register_rule(Other())
    estimators.register_baseline("five", Five)
    with pytest.raises(ValueError, match="'five' is taken"):
        estimators.register_baseline("five", baselines.ConstantBaseline)


def test_a_baseline_is_made_without_moving_the_random_state(own_parts):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    estimators.register_baseline("mine", baselines.NetworkBaseline)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("bound", ["elbo-kl", "importance-weighted", "renyi"])
def test_a_rule_of_ones_own_under_another_bound_is_told_which_it_goes_with(own_parts, bound):
    estimators.register_rule(HalfScore())
    with pytest.raises(ValueError, match=r"a rule of your own goes with .*: use bound='elbo'"):
        Estimator("half-score", bound=bound, num_particles=8)


@pytest.mark.parametrize(
    "ask",
    [
        lambda: Estimator("mine"),
        lambda: Estimator("score", baseline="mine"),
        lambda: estimators.get("mine"),
        lambda: estimators.estimate(z="mine"),
    ],
)
def test_a_name_that_is_not_registered_may_be_of_a_file_that_is_not_imported(ask):
    with pytest.raises(ValueError, match="got 'mine'; if it is your own, import the file that registers it first"):
        ask()


class Loose(HalfScore):
    """A rule that answers with a log-probability alone."""

    name = "loose"

    def score_parts(self, base, value):
        return base.log_prob(value)


@pytest.mark.parametrize("credit", ["plates", "graph"])
def test_score_parts_that_are_none_are_refused(own_parts, conjugate, credit):
    estimators.register_rule(Loose())
    pair = conjugate(0.0, 1.0)
    model, guide, elbo = Estimator("loose", credit=credit).bind(pair.model, pair)
    message = r"^expected score_parts of the rule 'loose' .* got a tensor; return ScoreParts\(log_prob, score, entropy_"
    with pytest.raises(estimators.EstimatorError, match=message):
        elbo(model, guide)()


def test_a_copy_of_a_baseline_trains_under_a_name_of_its_own():
    baseline = baselines.NetworkBaseline()
    assert copy.deepcopy(baseline).name != baseline.name


class Paired(estimators.Pathwise):
    name = "paired"
    least_particles = 2
    even_particles = True


def test_a_rule_says_which_numbers_of_particles_it_works_with(monkeypatch):
    monkeypatch.setitem(registry.RULES, "paired", Paired())
    monkeypatch.setitem(registry.CLASSES, ("elbo", "plates", "paired"), estimators.TraceELBO)
    assert Estimator("paired", num_particles=4).least_particles == 2
    with pytest.raises(ValueError, match="num_particles of at least 2 for the rule 'paired', got 1; use num_part"):
        Estimator("paired")
    with pytest.raises(ValueError, match="an even num_particles for the rule 'paired', got 3"):
        Estimator("paired", num_particles=3)
