"""What cannot work says so at once and names what to use; nothing has a gradient that is silently zero."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from genailab_pyro import Estimator, estimate, estimators

CELLS, WIDTH = 3, 3
ROWS = estimators.table()


class Pair(nn.Module):
    """One latent of some kind for each cell; the guide's parameters are a matrix, the prior is the same with zeros."""

    max_plate_nesting = 1

    def __init__(self, kind, prior=None):
        super().__init__()
        self.kind, self.prior = kind, prior or kind
        start = 0.1 + 0.3 * torch.arange(CELLS * WIDTH, dtype=torch.float64) / 9
        self.values = nn.Parameter(start.reshape(CELLS, WIDTH))
        self.rows = torch.full((CELLS, 1), 1.7, dtype=torch.float64)

    def model(self, rows):
        with pyro.plate("cells", CELLS, dim=-1):
            z = pyro.sample("z", KINDS[self.prior](torch.zeros_like(self.values))).double()
            weights = torch.arange(1.0, WIDTH + 1, dtype=torch.float64)
            mean = (z * weights).sum(-1) if self.kind in VECTORS else z
            pyro.sample("x", dist.Normal(mean, 1.0), obs=rows[:, 0])

    model.max_plate_nesting = 1

    def forward(self, rows):
        pyro.module("pair", self)
        with pyro.plate("cells", CELLS, dim=-1):
            pyro.sample("z", KINDS[self.kind](self.values))


KINDS = {
    "Normal": lambda values: dist.Normal(values[:, 0], values[:, 1].exp()),
    "Normal vector": lambda values: dist.Normal(values, 1.0).to_event(1),
    "MultivariateNormal": lambda values: dist.MultivariateNormal(values, torch.eye(WIDTH, dtype=torch.float64)),
    "masked Normal": lambda values: dist.Normal(values[:, 0], values[:, 1].exp()).mask(True),
    "LogNormal": lambda values: dist.LogNormal(values[:, 0], values[:, 1].exp()),
    "Gamma": lambda values: dist.Gamma(values[:, 0].exp(), values[:, 1].exp()),
    "Dirichlet": lambda values: dist.Dirichlet(values.exp()),
    "VonMises": lambda values: dist.VonMises(values[:, 0], values[:, 1].exp()),
    "mixture": lambda values: dist.MixtureSameFamily(dist.Categorical(logits=values), dist.Normal(values, 1.0)),
    "Poisson": lambda values: dist.Poisson(values[:, 0].exp()),
    "Geometric": lambda values: dist.Geometric(logits=values[:, 0]),
    "Categorical": lambda values: dist.Categorical(logits=values),
    "OneHotCategorical": lambda values: dist.OneHotCategorical(logits=values),
    "Bernoulli": lambda values: dist.Bernoulli(logits=values[:, 0]),
    "Bernoulli vector": lambda values: dist.Bernoulli(logits=values).to_event(1),
}
VECTORS = ("Normal vector", "MultivariateNormal", "Dirichlet", "OneHotCategorical", "Bernoulli vector")


def gradient(pair, estimator, guide=None, seed=0):
    """The gradient in the parameters of the guide, all of it."""
    model, guide, elbo = estimators.get(estimator).bind(pair.model, guide or pair)
    torch.manual_seed(seed)
    with pyro.get_param_store().scope():
        loss = elbo.differentiable_loss(model, guide, pair.rows)
        return torch.autograd.grad(loss, pair.values)[0]


@pytest.mark.parametrize(
    ("estimator", "kind", "message"),
    [
        ("enum", "Normal", r"support that can be listed.*only 'z' \(Normal\); use the estimator 'pathwise'"),
        (
            "enum",
            "Bernoulli vector",
            "site 'z': .*got Bernoulli; use .*the estimator 'disarm', 'gumbel' or 'score-loo'",
        ),
        ("pathwise", "Categorical", "site 'z': .*reparameterised draws.*got Categorical; .*'enum'"),
        ("pathwise", "OneHotCategorical", "site 'z': .*got OneHotCategorical; .*'enum', 'gumbel' or 'score-loo'"),
        ("pathwise", "Bernoulli", "site 'z': .*got Bernoulli; .*'enum', 'gumbel' or 'score-loo'"),
        ("pathwise", "Poisson", "site 'z': .*got Poisson; use the rule 'score'"),
        ("pathwise-kl", "OneHotCategorical", "site 'z': .*'enum'"),
        ("stl", "Bernoulli", "site 'z': .*'enum'"),
        ("gumbel", "Categorical", r"one-hot vectors.*only 'z' \(Categorical\); use .*'enum' or 'score-loo'|'enum'"),
        ("gumbel", "Normal", r"one-hot vectors.*only 'z' \(Normal\); use the estimator 'pathwise'"),
        ("st-gumbel", "Normal", r"one-hot vectors.*only 'z' \(Normal\); use the estimator 'pathwise'"),
        ("disarm", "Normal", "site 'z': .*bits.*got Normal; use the estimator"),
        ("disarm", "OneHotCategorical", "site 'z': .*bits.*got OneHotCategorical; use the estimator 'score-loo'"),
        ("iwae", "Poisson", "site 'z': .*got Poisson; use the estimator 'vimco'"),
        ("dreg", "Poisson", "site 'z': .*got Poisson; use the estimator 'vimco'"),
        ("renyi", "Poisson", "site 'z': .*got Poisson; use the estimator 'vimco'"),
        (Estimator("score", baseline="delta"), "Poisson", "one normal latent site .*'z'.*Poisson.*use .*'score-loo'"),
        (Estimator("score", baseline="delta"), "Gamma", "one normal latent site .*'z'.*Gamma.*use .*'score-loo'"),
        (Estimator("score", baseline="delta"), "LogNormal", "one normal latent site .*LogNormal.*use .*'score-loo'"),
    ],
)
def test_a_site_that_a_rule_cannot_differentiate_is_refused(estimator, kind, message):
    with pytest.raises(ValueError, match=message):
        gradient(Pair(kind), estimator)


@pytest.mark.parametrize("parts", [{}, {"credit": "graph"}, {"bound": "elbo-kl"}, {"rule": "stl"}])
def test_a_baseline_without_a_score_is_refused(parts):
    with pytest.raises(estimators.EstimatorError, match=r"a score for the baseline 'cell-average', got .*'score-loo'"):
        gradient(Pair("Normal"), Estimator(baseline="cell-average", **parts))


def test_a_baseline_that_is_in_no_table_is_called_by_its_class():
    class Zero(estimators.Baseline):
        def forward(self, site):
            return torch.zeros(())

    pair = Pair("Normal")
    model, guide, elbo = Estimator().bind(pair.model, pair)
    elbo.baseline = Zero()
    with pytest.raises(estimators.EstimatorError, match="a score for the baseline Zero, got a guide"):
        elbo.differentiable_loss(model, guide, pair.rows)


class Shifted(dist.TorchDistribution):
    """A normal distribution of unit scale with draws along a path, which its class does not speak of."""

    arg_constraints: dict = {}  # noqa: RUF012
    support = dist.constraints.real

    def __init__(self, loc):
        self.loc = loc
        super().__init__(loc.shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return type(self)(self.loc.expand(batch_shape))

    def sample(self, sample_shape=()):
        with torch.no_grad():
            return Shifted.rsample(self, sample_shape)

    def rsample(self, sample_shape=()):
        return self.loc + torch.randn(self.shape(sample_shape), dtype=self.loc.dtype)

    def log_prob(self, value):
        return dist.Normal(self.loc, 1.0).log_prob(value)


class Spoken(Shifted):
    """The same, and its class says so."""

    has_rsample = True


@pytest.mark.parametrize("name", ["pathwise", "stl", "gumbel", "enum", "iwae"])
def test_a_path_that_a_distribution_does_not_speak_of_is_pointed_out(monkeypatch, name):
    monkeypatch.setitem(KINDS, "Shifted", lambda values: Shifted(values[:, 0]))
    with pytest.raises(estimators.EstimatorError, match=r"got Shifted; use .*, or set has_rsample = True in the class"):
        gradient(Pair("Shifted"), name)


def test_a_path_is_pointed_out_only_where_it_would_be_followed(monkeypatch):
    monkeypatch.setitem(KINDS, "Shifted", lambda values: Shifted(values[:, 0]))
    monkeypatch.setitem(KINDS, "Spoken", lambda values: Spoken(values[:, 0]))
    assert gradient(Pair("Spoken"), "pathwise")[:, 0].ne(0).all()
    for kind, name in (("Shifted", "disarm"), ("Poisson", "pathwise"), ("Categorical", "pathwise")):
        with pytest.raises(estimators.EstimatorError) as refused:
            gradient(Pair(kind), name)
        assert "has_rsample" not in str(refused.value)


@pytest.mark.parametrize("name", ["enum", "disarm", "dreg"])
def test_a_rule_that_belongs_to_a_whole_estimator_is_refused_for_a_site(name):
    rule = ROWS.loc[name, "rule"]
    with pytest.raises(ValueError, match=f"got '{rule}', which needs a bound of its own; use the estimator '{name}'"):
        estimate(z=rule)
    with pytest.raises(ValueError, match=f"use the estimator '{name}'"):
        estimate(rule)

    class AtTheSite(Pair):
        def forward(self, rows):
            with pyro.plate("cells", CELLS, dim=-1):
                pyro.sample("z", dist.Normal(self.values[:, 0], 1.0), infer={"estimator": rule})

    with pytest.raises(ValueError, match=f"rule of the site 'z' that a single site can have.*'{name}'"):
        gradient(AtTheSite("Normal"), "pathwise")


@pytest.mark.parametrize(
    ("name", "kind", "prior"),
    [
        ("pathwise-kl", "Normal", "mixture"),
        ("pathwise-kl", "Gamma", "LogNormal"),
        ("score-kl", "Normal", "mixture"),
        ("score-kl", "VonMises", "VonMises"),
    ],
)
def test_a_kl_without_a_closed_form_is_refused(name, kind, prior):
    with pytest.raises(ValueError, match=r"'z' whose KL has a closed form, got .*; use the estimator 'pathwise'"):
        gradient(Pair(kind, prior), name)


@pytest.mark.parametrize("bound", ["importance-weighted", "renyi"])
def test_stl_is_refused_beside_importance_weights(bound):
    better = "dreg" if bound == "importance-weighted" else "renyi"
    with pytest.raises(ValueError, match=f"biased under importance weights: use the estimator '{better}'"):
        Estimator("stl", bound=bound, num_particles=8)
    name = "iwae" if bound == "importance-weighted" else "renyi"
    pair = Pair("Normal")
    with pytest.raises(ValueError, match=r"got \{'z': 'stl'\}; use the estimator .*'dreg'"):
        gradient(pair, name, estimate("stl")(pair))


class TwoLatents(nn.Module):
    """z0 -> z1 -> x with a guide that can be turned over, depend on rules, or share its first latent."""

    max_plate_nesting = 1

    def __init__(self, *, bottom_up=False, shared=False, betas=(1.0, 1.0), at_sites=None):
        super().__init__()
        self.bottom_up, self.shared, self.betas, self.at_sites = bottom_up, shared, betas, at_sites or {}
        self.values = nn.Parameter(torch.tensor([0.3, 0.5], dtype=torch.float64))
        self.rows = torch.full((CELLS, 1), 1.7, dtype=torch.float64)

    def _cells(self):
        return pyro.plate("cells", CELLS, dim=-1)

    def _draw(self, site, mean, *, is_shared=False):
        infer = {"estimator": self.at_sites[site]} if site in self.at_sites else {}
        with poutine.scale(scale=self.betas[site == "z1"]):
            if is_shared:
                return pyro.sample(site, dist.Normal(mean, 1.0), infer=infer)
            with self.plate:
                return pyro.sample(site, dist.Normal(mean, 1.0), infer=infer)

    def model(self, rows):
        self.plate = self._cells()
        first = self._draw("z0", torch.zeros((), dtype=torch.float64), is_shared=self.shared)
        second = self._draw("z1", first)
        with self.plate:
            pyro.sample("x", dist.Normal(second, 1.0), obs=rows[:, 0])

    model.max_plate_nesting = 1

    def forward(self, rows):
        pyro.module("two", self)
        self.plate = self._cells()
        if self.bottom_up:
            self._draw("z0", 0.5 * self._draw("z1", self.values[1]) + self.values[0])
        else:
            self._draw("z1", 0.5 * self._draw("z0", self.values[0], is_shared=self.shared) + self.values[1])


@pytest.mark.parametrize("name", ["pathwise-kl", "score-kl"])
def test_a_guide_from_the_bottom_up_is_refused_for_a_kl_in_closed_form(name):
    message = r"model's order \['z0', 'z1'\].*got \['z1', 'z0'\].*use the estimator 'pathwise' \(or 'score'\)"
    with pytest.raises(ValueError, match=message):
        gradient(TwoLatents(bottom_up=True), name)
    for better in ("pathwise", "score"):
        assert gradient(TwoLatents(bottom_up=True), better).ne(0).all()


@pytest.mark.parametrize("name", ["iwae", "dreg", "vimco", "renyi"])
def test_importance_weights_refuse_rules_of_sites(name):
    other = "pathwise" if name == "vimco" else "score"
    for named in ({"z0": other}, {"z1": other}, {"z0": other, "z1": other}):
        at_sites, plain = TwoLatents(at_sites=named), TwoLatents()
        for pair, guide in ((at_sites, at_sites), (plain, estimate(**named)(plain))):
            with pytest.raises(ValueError, match=r"for all latents.*use the estimator 'pathwise' or 'score'"):
                gradient(pair, name, guide)


@pytest.mark.parametrize("name", ["iwae", "dreg", "vimco", "renyi"])
def test_importance_weights_refuse_a_latent_that_is_shared_by_the_cells(name):
    with pytest.raises(ValueError, match=r"latent in the plate of the data.*use the estimator 'pathwise', whose costs"):
        gradient(TwoLatents(shared=True), name)
    for better in ("pathwise", "score-loo"):
        assert gradient(TwoLatents(shared=True), better).ne(0).all()


@pytest.mark.parametrize("name", ["iwae", "dreg", "vimco", "renyi"])
def test_importance_weights_refuse_a_sub_sample_inside_the_plate_of_the_latents(name, linear_gaussian, draws_of):
    with pytest.raises(ValueError, match=r"expected all of the plate 'cells' inside.*use the estimator 'pathwise'"):
        draws_of(linear_gaussian(4, shared=1, factor=3), estimators.get(name))


def test_dreg_refuses_weights_of_the_kl_that_differ_between_latents_that_depend_on_each_other():
    with pytest.raises(ValueError, match=r"one weight of the KL.*'z1'.*'z0'; use the estimator 'iwae'"):
        gradient(TwoLatents(betas=(1.0, 0.3)), "dreg")
    assert gradient(TwoLatents(betas=(1.0, 0.3)), "iwae").ne(0).all()


class FirstOfTwo(TwoLatents):
    """The first latent of the guide is a point that depends on the second, or has no parameters."""

    def __init__(self, *, is_point):
        super().__init__()
        self.is_point = is_point

    def forward(self, rows):
        pyro.module("two", self)
        with self._cells():
            if self.is_point:
                second = pyro.sample("z1", dist.Normal(self.values[0], 1.0))
                pyro.sample("z0", dist.Delta(self.values[1] + second))
            else:
                first = pyro.sample("z0", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
                pyro.sample("z1", dist.Normal(self.values[0] * first, self.values[1]))


def test_dreg_refuses_a_point_that_depends_on_a_draw():
    with pytest.raises(ValueError, match=r"point 'z0' not to depend on a draw.*use the estimator 'iwae'"):
        gradient(FirstOfTwo(is_point=True), "dreg")
    assert gradient(FirstOfTwo(is_point=True), "iwae").ne(0).all()


def test_dreg_takes_a_latent_without_parameters():
    assert gradient(FirstOfTwo(is_point=False), "dreg").ne(0).all()


def test_disarm_refuses_a_hierarchy_of_bits(bits, draws_of):
    with pytest.raises(ValueError, match=r"one layer of bits.*'bits' depend on another.*use the estimator 'score-loo'"):
        draws_of(bits(50, above=True), estimators.get("disarm"))


@pytest.mark.parametrize("rule", ["score", "gumbel"])
@pytest.mark.parametrize("site", ["top", "bits"])
def test_disarm_refuses_rules_of_sites(rule, site, bits, draws_of):
    with pytest.raises(ValueError, match=f"no rule of its own .* got '{rule}' at '{site}'; use the estimator 'score-l"):
        draws_of(bits(50, shared=1, at_sites={site: rule}), estimators.get("disarm"))


@pytest.mark.parametrize("rule", [None, "pathwise", "stl", "score", "gumbel", "st-gumbel", "pathwise-or-score"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_is_silently_zero(kind, rule):
    for name in ROWS.index:
        pair = Pair(kind)
        guide = pair if rule is None else estimate(z=rule)(pair)
        # A pair of equal bits shows an antithetic estimator nothing: several draws are summed.
        seeds = range(12 if name == "disarm" else 1)
        try:
            found = sum(gradient(pair, name, guide, seed).abs() for seed in seeds)
        except ValueError as error:
            if "use the" in str(error):
                continue
            raise
        assert torch.isfinite(found).all(), name
        assert found.sum(1).ne(0).all(), name


def test_every_kind_of_latent_has_an_estimator():
    for kind in KINDS:
        assert gradient(Pair(kind), "score-loo").ne(0).any(1).all()
