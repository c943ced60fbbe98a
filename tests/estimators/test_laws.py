"""The law of every row of the table: its mean gradient is that of its stated objective, in every use that it offers."""

import functools
import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.score_parts import ScoreParts
from torch import nn

from genailab_pyro import Estimator, estimators
from genailab_pyro.estimators import bounds, rules, weighted
from genailab_pyro.estimators.baselines import BASELINES, DELTA, LeaveOneOut
from genailab_pyro.estimators.registry import CLASSES

ROWS, MATRIX, USES = estimators.table(), estimators.matrix(), estimators.USES
PLAIN, INSIDE = "plain", "plate inside"
COPIES, REFERENCE_COPIES = 6000, 60_000
OPTIONS = {
    PLAIN: {},
    "beta": {"beta": 0.3},
    "sub-sampling": {"factor": 3},
    "global latent": {"shared": 1, "factor": 3},
    INSIDE: {"shared": 1},
}


def applies(name, distribution):
    return rules.RULES[ROWS.loc[name, "rule"]].applies(distribution)


def takes_labels(name):
    return applies(name, dist.OneHotCategorical(torch.ones(2)))


def takes_bits(name):
    # A vector of bits has too many values to be listed.
    return applies(name, dist.Bernoulli(torch.ones(2) / 2).to_event(1))


def other_rule(name):
    """A rule for one site that differs from that of the row."""
    return "pathwise" if ROWS.loc[name, "rule"] == "score" else "score"


def numbers_of_particles(name):
    return sorted({int(ROWS.loc[name, "least_particles"]), 8})


@pytest.fixture(scope="module")
def discrete_worlds(label, bits):
    def of(name, options):
        found = {}
        if takes_labels(name) or ROWS.loc[name, "latents"] == "continuous":
            found["label"] = functools.partial(label, **options)
            if ROWS.loc[name, "objective"] == "ELBO" and not options:
                found["label above a normal latent"] = functools.partial(label, below=True)
        if takes_bits(name):
            found["bits"] = functools.partial(bits, **options)
        return found

    return of


@pytest.fixture(scope="module")
def discrete_hierarchies(label, bits):
    def of(name, use):
        is_mixed, found = use == "mixed rules", {}
        if takes_labels(name):
            below = functools.partial(label, below=True, at_sites={"z": "score"} if is_mixed else {})
            found = {"label": below, "label, beta": functools.partial(below, beta=0.3)}
        if takes_bits(name):
            found["bits"] = functools.partial(bits, above=True, at_sites={"top": "score"} if is_mixed else {})
        return found

    return of


@pytest.fixture(scope="module")
def normal_worlds(linear_gaussian):
    def of(name, use):
        if use == "mixed rules":
            pair, other = functools.partial(linear_gaussian, num_latents=2), other_rule(name)
            return {site: functools.partial(pair, at_sites={site: other}) for site in ("z0", "z1")}
        if use == "hierarchy":
            options = {
                "two levels": {"num_latents": 2},
                "three levels": {"num_latents": 3},
                "two levels of vectors": {"num_latents": 2, "width": 2},
                "three levels, beta, sub-sampling": {"num_latents": 3, "beta": 0.3, "factor": 3},
            }
            return {which: functools.partial(linear_gaussian, **chosen) for which, chosen in options.items()}
        number = 2 if use == "global latent" else 1
        return {use: functools.partial(linear_gaussian, num_latents=number, **OPTIONS[use])}

    return of


@pytest.fixture(scope="module")
def worlds(normal_worlds, discrete_worlds, discrete_hierarchies):
    """What a row is tried on in a use, by name: functions from a number of copies to a world."""

    def of(name, use):
        is_discrete = ROWS.loc[name, "latents"] == "discrete"
        if use == "discrete site" or (is_discrete and use in OPTIONS):
            return discrete_worlds(name, OPTIONS.get(use, {}))
        return discrete_hierarchies(name, use) if is_discrete else normal_worlds(name, use)

    return of


@pytest.fixture(scope="module")
def expected(derivatives_of):
    """The gradient of an estimator's objective in a world, and its standard error where it was drawn."""
    found = {}

    def of(build, estimator):
        key = (build.func, repr(build.keywords), estimator.objective, estimator.alpha, estimator.temperature)
        key = (*key, estimator.biased and estimator.rule)
        if key not in found:
            found[key] = gradient_of_objective(build, estimator, derivatives_of)
        return found[key]

    return of


def gradient_of_objective(build, estimator, derivatives_of):
    single, number = build(1), estimator.num_particles
    is_weighted = estimator.bound == "importance-weighted"
    if estimator.objective == "ELBO" or (is_weighted and number == 1):
        return derivatives_of(single.negative_elbo(), single)[0], 0.0
    if is_weighted and hasattr(single, "importance_weighted"):
        return derivatives_of(single.factor * single.importance_weighted(number), single)[0], 0.0
    many = build(REFERENCE_COPIES)
    torch.manual_seed(1)
    if estimator.biased:
        loss = many.relaxed(estimator.temperature or 0.5, estimator.rule == "st-gumbel")
    else:
        # The logarithm of the mean of the powers of the weights, taken apart by hand.
        power = 1.0 if is_weighted else 1 - (estimator.alpha or 0.5)
        powers = power * many.log_weights(number)
        largest = powers.detach().max(0).values
        loss = -many.factor * ((powers - largest).exp().mean(0).log() + largest) / power
    draws = derivatives_of(loss, many)
    return draws.mean(0), draws.std(0) / len(draws) ** 0.5


def is_offered(name, use):
    if use == INSIDE:
        return ROWS.loc[name, "latents"] != "discrete"
    return use == PLAIN or MATRIX.loc[name, use] == "yes"


OFFERED = [
    pytest.param(name, use, number, id=f"{name}-{use}-{number}")
    for name in ROWS.index
    for use in (PLAIN, INSIDE, *USES)
    for number in numbers_of_particles(name)
    if is_offered(name, use)
]
REFUSED = [(name, use) for name, use in itertools.product(ROWS.index, USES) if MATRIX.loc[name, use] != "yes"]


@pytest.mark.parametrize(("name", "use", "number"), OFFERED)
def test_the_mean_gradient_is_that_of_the_objective(name, use, number, worlds, expected, draws_of, check):
    estimator = estimators.get(name, num_particles=number)
    for build in worlds(name, use).values():
        check(draws_of(build(COPIES), estimator), *expected(build, estimator))


@pytest.mark.parametrize(("name", "use"), REFUSED)
def test_a_use_that_is_not_offered_names_an_estimator_that_offers_it(name, use, worlds, draws_of):
    working = [other for other in ROWS.index if MATRIX.loc[other, use] == "yes"]
    for build in worlds(name, use).values():
        with pytest.raises(ValueError, match="use the") as caught:
            draws_of(build(10), estimators.get(name))
        assert [other for other in working if repr(other) in str(caught.value)]


def combinations():
    """Whatever parts go together, apart from the rows of the table."""
    rows = {estimators.get(name, num_particles=8) for name in ROWS.index}
    for (bound, credit, rule), baseline in itertools.product(CLASSES, (None, *BASELINES, DELTA)):
        try:
            estimator = Estimator(rule, bound, credit, num_particles=8, baseline=baseline)
        except ValueError:
            continue
        if estimator not in rows:
            yield pytest.param(estimator, id=f"{rule}-{bound}-{credit}-{baseline}")


@pytest.mark.parametrize("estimator", combinations())
def test_other_combinations_of_parts_obey_the_law_too(estimator, linear_gaussian, label, expected, draws_of, check):
    number = 1 if estimator.baseline == DELTA else 2
    options = {"beta": 0.3, "factor": 3}
    if estimator.baseline is not None and rules.RULES[estimator.rule].reparameterised:
        options["at_sites"] = {"z1": "score"}  # a baseline is for sites with a score
    worlds = [functools.partial(linear_gaussian, num_latents=number, **options)]
    if estimator.rule == "pathwise-or-score":
        worlds.append(functools.partial(label, below=True, beta=0.3))
    for build in worlds:
        check(draws_of(build(COPIES), estimator), *expected(build, estimator))


def test_vimco_with_one_particle_is_the_elbo_by_the_score(worlds, expected, draws_of, check):
    estimator = estimators.get("vimco", num_particles=1, baseline=None)
    for build in (worlds("vimco", "hierarchy") | worlds("vimco", "discrete site")).values():
        check(draws_of(build(COPIES), estimator), *expected(build, estimator))


@pytest.mark.parametrize("name", ROWS.index[ROWS["latents"] != "discrete"])
def test_independent_latents_may_have_weights_of_the_kl_of_their_own(name, linear_gaussian, expected, draws_of, check):
    build = functools.partial(linear_gaussian, num_latents=2, independent=True, betas={"z0": 0.3})
    check(draws_of(build(COPIES), estimators.get(name)), *expected(build, estimators.get(name)))


class Point(nn.Module):
    """A point w of the guide, without a draw, above a normal latent: w ~ N(0, 1), z ~ N(w, 1), x ~ N(z, 1)."""

    max_plate_nesting = 1
    factor = 1

    def __init__(self, num_copies, *, below=False):
        super().__init__()
        self.num_copies, self.below = num_copies, below
        ones = torch.ones(num_copies, dtype=torch.float64)
        self.point, self.loc, self.log_scale = (nn.Parameter(value * ones) for value in (0.3, 0.4, -0.3))
        self.rows = 2 * ones[:, None]

    def model(self, rows):
        pyro.module("point", self)
        with pyro.plate("cells", self.num_copies, dim=-1):
            point = pyro.sample("w", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            z = pyro.sample("z", dist.Normal(point, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=rows[:, 0])

    model.max_plate_nesting = 1

    def forward(self, rows):
        pyro.module("point", self)
        with pyro.plate("cells", self.num_copies, dim=-1):
            point = pyro.sample("w", dist.Delta(self.point))
            pyro.sample("z", dist.Normal(self.loc + self.below * point, self.log_scale.exp()))

    def negative_elbo(self):
        spread = (2 * self.log_scale).exp()
        mean = self.loc + self.below * self.point
        kl = -self.log_scale - 0.5 + 0.5 * ((mean - self.point) ** 2 + spread)
        return 0.5 * self.point**2 + kl + 0.5 * ((2 - mean) ** 2 + spread)

    def log_weights(self, num_particles):
        noise = torch.randn(num_particles, self.num_copies, dtype=torch.float64)
        z = self.loc + self.below * self.point + self.log_scale.exp() * noise
        return 0.5 * (noise**2 - self.point**2 - (z - self.point) ** 2 - (2 - z) ** 2) + self.log_scale


@pytest.mark.parametrize("name", ROWS.index[ROWS["latents"] != "discrete"])
@pytest.mark.parametrize("below", [False, True], ids=["beside it", "below it"])
def test_a_point_among_the_latents_is_differentiated_along_its_path(name, below, draws_of, derivatives_of, check):
    build = functools.partial(Point, below=below)
    estimator = estimators.get(name, num_particles=8)
    check(draws_of(build(COPIES), estimator), *gradient_of_objective(build, estimator, derivatives_of))


@pytest.mark.parametrize("alpha", [-0.5, 0.2, 2.0])
def test_renyi_obeys_the_law_at_other_orders(alpha, worlds, expected, draws_of, check):
    estimator = estimators.get("renyi", alpha=alpha)
    (build,) = worlds("renyi", PLAIN).values()
    check(draws_of(build(COPIES), estimator), *expected(build, estimator))


@pytest.mark.parametrize("hard", [False, True], ids=["gumbel", "st-gumbel"])
@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_a_relaxed_label_of_two_values_agrees_with_quadrature(
    temperature, hard, label, draws_of, derivatives_of, check
):
    single = label(num_classes=2)
    levels = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    first = (single.logits[0, 0] - single.logits[0, 1] + levels.logit()) / temperature
    soft = torch.stack([first.sigmoid(), (-first).sigmoid()], -1)
    vertex = torch.nn.functional.one_hot(soft.argmax(-1), 2)
    exact = derivatives_of(-single.bound(vertex + soft - soft.detach() if hard else soft).mean(), single)[0]
    estimator = estimators.get("st-gumbel" if hard else "gumbel", temperature=temperature)
    check(draws_of(label(4 * COPIES, num_classes=2), estimator), exact)


# The norm of the bias, by that of the exact gradient in the logits of the guide.
@pytest.mark.parametrize("name", ["gumbel", "st-gumbel"])
@pytest.mark.parametrize("latents", ["label", "bits"])
def test_the_bias_of_a_relaxed_estimator_is_found(name, latents, worlds, draws_of, derivatives_of, check):
    build = worlds(name, PLAIN)[latents]
    single = build(1)
    exact = derivatives_of(single.negative_elbo(), single)[0]
    draws = draws_of(build(10 * COPIES), estimators.get(name))
    with pytest.raises(AssertionError):
        check(draws, exact)
    logits = slice(0, single.logits.shape[1])
    bias = (draws.mean(0) - exact)[logits].norm() / exact[logits].norm()
    assert 0.05 < bias < 0.5, bias


# From here on, bugs that are planted: the same check must find each.


@pytest.fixture
def must_reject(worlds, expected, draws_of, check):
    def of(name, use, *, which=None, estimator=None):
        builds = worlds(name, use)
        build = builds[which or next(iter(builds))]
        stated = estimators.get(name, num_particles=8)
        draws = draws_of(build(COPIES), estimator or stated)
        with pytest.raises(AssertionError):
            check(draws, *expected(build, stated))

    return of


@pytest.mark.parametrize("name", ROWS.index)
@pytest.mark.parametrize(("intended", "done"), [("beta", PLAIN), ("sub-sampling", PLAIN), (PLAIN, "beta")])
def test_a_weight_that_is_left_out_is_found_for_every_row(name, intended, done, worlds, expected, draws_of, check):
    estimator = estimators.get(name, num_particles=8)
    for right, wrong in zip(worlds(name, intended).values(), worlds(name, done).values(), strict=False):
        with pytest.raises(AssertionError):
            check(draws_of(wrong(COPIES), estimator), *expected(right, estimator))


@pytest.mark.parametrize("name", ROWS.index)
@pytest.mark.parametrize("factor", [-1.0, 2.0], ids=["sign", "twice"])
def test_a_wrong_factor_is_found_for_every_row(name, factor, worlds, expected, draws_of, check):
    estimator = estimators.get(name, num_particles=8)
    for build in worlds(name, PLAIN).values():
        with pytest.raises(AssertionError):
            check(factor * draws_of(build(COPIES), estimator), *expected(build, estimator))


@pytest.mark.parametrize("name", ROWS.index[ROWS["rule"] == "score"])
@pytest.mark.parametrize("factor", [-1.0, 2.0], ids=["sign", "twice"])
def test_a_wrong_score_is_found(name, factor, monkeypatch, must_reject):
    class Wrong(rules.Score):
        def score_parts(self, base, value):
            log_prob = base.log_prob(value)
            return ScoreParts(log_prob, factor * log_prob, 0.0)

    monkeypatch.setitem(rules.RULES, "score", Wrong())
    must_reject(name, PLAIN)


@pytest.mark.parametrize("name", ["pathwise", "stl"])
def test_an_entropy_term_that_is_left_out_is_found(name, monkeypatch, must_reject):
    class Wrong(rules.Pathwise):
        def score_parts(self, base, value):
            return ScoreParts(self.log_prob(base, value), 0.0, 0.0)

    monkeypatch.setitem(rules.RULES, name, Wrong())
    must_reject(name, PLAIN)


@pytest.mark.parametrize("name", ["pathwise-kl", "score-kl"])
def test_a_kl_that_is_left_out_is_found(name, monkeypatch, must_reject):
    right = bounds._kl
    monkeypatch.setattr(bounds, "_kl", lambda *site: 0 * right(*site))
    must_reject(name, PLAIN)


def test_a_score_that_multiplies_the_likelihood_alone_is_found(monkeypatch, must_reject):
    class OnlyTheFirstTerms(bounds.MultiFrameTensor):
        def add(self, *terms):
            if not self:
                super().add(*terms)

    monkeypatch.setattr(bounds, "MultiFrameTensor", OnlyTheFirstTerms)
    must_reject("score-kl", "hierarchy")


def test_a_mean_that_holds_the_draw_itself_is_found(monkeypatch, must_reject):
    monkeypatch.setattr(LeaveOneOut, "forward", lambda self, site: site.cost.mean(site.particle_dim, keepdim=True))
    must_reject("score-loo", PLAIN)


def test_a_baseline_of_vimco_that_holds_the_draw_itself_is_found(monkeypatch, must_reject):
    monkeypatch.setattr(weighted, "_without_each", lambda log_weights: log_weights)
    must_reject("vimco", PLAIN)


def test_squared_weights_alone_are_found_where_beta_is_not_one(monkeypatch, must_reject):
    right = weighted.DoublyReparameterisedELBO.surrogate

    def squared(self, log_weights, guide_trace):
        value = right(self, log_weights, guide_trace)
        self.factors.update(dict.fromkeys(self.factors, log_weights.detach().softmax(0)))
        return value

    monkeypatch.setattr(weighted.DoublyReparameterisedELBO, "surrogate", squared)
    must_reject("dreg", "beta")


@pytest.mark.parametrize("which", ["two levels", "three levels"])
def test_a_latent_above_that_dreg_forgets_is_found(which, monkeypatch, must_reject):
    forgetful = weighted.DoublyReparameterisedELBO
    monkeypatch.setattr(forgetful, "_upstream", lambda self, name, log_q, trace: torch.zeros_like(log_q))
    must_reject("dreg", "hierarchy", which=which)


def test_total_derivatives_in_place_of_partial_ones_are_found_in_dreg(monkeypatch, must_reject):
    def total(values, output):
        return torch.autograd.grad(output, values, retain_graph=True, allow_unused=True)

    monkeypatch.setattr(weighted, "_partial", total)
    must_reject("dreg", "hierarchy", which="three levels")


@pytest.mark.parametrize("name", ["iwae", "renyi"])
def test_a_mean_of_log_weights_is_found(name, monkeypatch, must_reject):
    monkeypatch.setattr(weighted.WeightedELBO, "bound", lambda self, log_weights: log_weights.mean(0))
    must_reject(name, PLAIN)


def test_another_order_of_renyi_is_found(must_reject):
    must_reject("renyi", PLAIN, estimator=estimators.get("renyi", alpha=0.2))


def test_probabilities_that_are_not_differentiated_are_found(monkeypatch, must_reject):
    class Wrong(rules.Enumerated):
        def score_parts(self, base, value):
            log_prob = base.log_prob(value).detach()
            return ScoreParts(log_prob, log_prob, 0.0)

    monkeypatch.setitem(rules.RULES, "enumerated", Wrong())
    must_reject("enum", PLAIN)


@pytest.mark.parametrize("name", ["gumbel", "st-gumbel"])
def test_another_temperature_is_found(name, must_reject):
    must_reject(name, PLAIN, estimator=estimators.get(name, num_particles=8, temperature=2.0))


def test_pairs_that_are_not_antithetic_are_found(monkeypatch, must_reject):
    monkeypatch.setattr(rules.Antithetic, "sample", rules.Score.sample)
    must_reject("disarm", PLAIN)
