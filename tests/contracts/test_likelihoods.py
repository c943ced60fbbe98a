"""The laws that every likelihood obeys, those of the package and one that a user might write."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import nn

from genailab_pyro import (
    MLP,
    VAE,
    GaussianLikelihood,
    LatentLibrary,
    Likelihood,
    Minibatch,
    NegativeBinomialLikelihood,
    NormalEncoder,
    StandardNormal,
    ZeroInflatedNegativeBinomialLikelihood,
    estimators,
)
from genailab_pyro.model.count_likelihoods import (
    BernoulliLikelihood,
    LogNormalPoissonLikelihood,
    Mixture,
    MixtureLikelihood,
    PoissonLikelihood,
)
from genailab_pyro.model.likelihoods import INVERSE_DISPERSIONS
from genailab_pyro.nn import Declared

FEATURES, GENES, CELLS, LEVELS = 4, 6, 5, 3


class PoissonCounts(Likelihood):
    """Poisson counts, as in the documents' example of an extension."""

    def __init__(self, features, genes):
        super().__init__()
        self.log_expression = nn.Linear(features, genes)

    def forward(self, features, minibatch):
        log_rate = self.log_expression(features).log_softmax(-1) + minibatch.library.log().unsqueeze(-1)
        return dist.Poisson(log_rate.exp()).to_event(1)


class CountsTogether(PoissonCounts):
    """Counts of which all genes of a cell are drawn together, given their total."""

    def forward(self, features, minibatch):
        return dist.Multinomial(7, logits=self.log_expression(features))


def plain(cls, size_factor=False):
    return lambda genes: cls(FEATURES, genes, size_factor=size_factor)


def mixture(*classes):
    return lambda genes: MixtureLikelihood([cls(FEATURES, genes) for cls in classes], genes)


gaussian = plain(GaussianLikelihood)


def binomial(cls, form, size_factor=False):
    def build(genes):
        inverse_dispersion = INVERSE_DISPERSIONS[form](FEATURES, genes, LEVELS)
        return cls(FEATURES, genes, inverse_dispersion=inverse_dispersion, size_factor=size_factor)

    return build


COUNTS = {
    f"{name}-{form}": binomial(cls, form)
    for (name, cls), form in itertools.product(
        {"nb": NegativeBinomialLikelihood, "zinb": ZeroInflatedNegativeBinomialLikelihood}.items(), INVERSE_DISPERSIONS
    )
}
RATES = {"poisson": PoissonLikelihood, "log-normal-poisson": LogNormalPoissonLikelihood}
SIZE_FACTORS = {
    "nb-size-factor": binomial(NegativeBinomialLikelihood, "gene", size_factor=True),
    "zinb-size-factor": binomial(ZeroInflatedNegativeBinomialLikelihood, "gene", size_factor=True),
    **{f"{name}-size-factor": plain(cls, size_factor=True) for name, cls in RATES.items()},
}
VALUES = {
    "gaussian": gaussian,
    "gaussian-size-factor": plain(GaussianLikelihood, size_factor=True),
    "mixture-of-values": mixture(GaussianLikelihood, GaussianLikelihood),
}
SHARES = {**COUNTS, **{name: plain(cls) for name, cls in RATES.items()}}
PROPORTIONS = {**SHARES, "own": lambda genes: PoissonCounts(FEATURES, genes)}
MIXTURES = {
    "mixture": mixture(NegativeBinomialLikelihood, NegativeBinomialLikelihood),
    "mixture-of-families": mixture(PoissonLikelihood, LogNormalPoissonLikelihood, NegativeBinomialLikelihood),
}
DETECTED = {
    "bernoulli": plain(BernoulliLikelihood),
    "bernoulli-size-factor": plain(BernoulliLikelihood, size_factor=True),
}
OVER_COUNTS = {**PROPORTIONS, **SIZE_FACTORS, **MIXTURES}
ROSTER = {**OVER_COUNTS, **VALUES, **DETECTED}


def over(table):
    return pytest.mark.parametrize("build", list(table.values()), ids=list(table))


def make(build, genes=GENES, *, spread=1.0):
    """A likelihood with weights of some size, so that every parameter matters."""
    torch.manual_seed(0)
    likelihood = build(genes)
    with torch.no_grad():
        for parameter in likelihood.parameters():
            parameter.add_(spread * torch.randn_like(parameter) / 2)
    return likelihood


def cells(counts, library=None, dtype=torch.float32):
    counts = torch.as_tensor(counts, dtype=dtype)
    number = len(counts)
    return Minibatch(
        counts,
        (torch.arange(number) % LEVELS)[:, None],
        torch.zeros(number, 0, dtype=dtype),
        counts.sum(-1) if library is None else torch.as_tensor(library, dtype=dtype),
        torch.arange(number),
        number,
    )


@pytest.fixture
def minibatch():
    generator = torch.Generator().manual_seed(1)
    counts = torch.poisson(torch.full((CELLS, GENES), 4.0), generator=generator)
    counts[:, 0] += 1
    return cells(counts)


@over(ROSTER)
@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_batch_is_particles_and_cells_and_event_is_genes(build, leading, minibatch):
    likelihood = make(build)
    distribution = likelihood(torch.randn(*leading, CELLS, FEATURES), minibatch)
    assert distribution.batch_shape == (*leading, CELLS)
    assert distribution.event_shape == (GENES,)
    assert distribution.log_prob(likelihood.observed(minibatch)).shape == (*leading, CELLS)
    assert distribution.sample().shape == (*leading, CELLS, GENES)
    assert distribution.mean.shape == (*leading, CELLS, GENES)


@over(ROSTER)
def test_particles_are_scored_as_if_alone(build, minibatch):
    likelihood, features = make(build), torch.randn(3, CELLS, FEATURES)
    together = likelihood(features, minibatch).log_prob(likelihood.observed(minibatch))
    for particle in range(3):
        alone = likelihood(features[particle], minibatch).log_prob(likelihood.observed(minibatch))
        torch.testing.assert_close(together[particle], alone)


@over(OVER_COUNTS)
def test_a_library_for_each_particle_is_broadcast(build, minibatch):
    likelihood, features = make(build), torch.randn(3, CELLS, FEATURES)
    library = minibatch.library * torch.tensor([[1.0], [2.0], [3.0]])
    mean = likelihood(features, minibatch._replace(library=library)).mean
    expected = likelihood(features, minibatch).mean * torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    torch.testing.assert_close(mean, expected)


@over(ROSTER)
def test_probabilities_of_all_values_sum_to_one(build):
    likelihood = make(build, genes=1).double()
    features = torch.randn(3, FEATURES, dtype=torch.float64)
    minibatch = cells([[1.0], [4.0], [9.0]], dtype=torch.float64)
    start, stop, step = 0.0, 3001.0, 1.0
    if build in VALUES.values():
        start, stop, step = -100.0, 31.0, 0.01
    if build in DETECTED.values():
        stop = 2.0
    values = torch.arange(start, stop, step, dtype=torch.float64)[:, None, None]
    total = likelihood(features, minibatch).log_prob(values).logsumexp(0).exp() * step
    torch.testing.assert_close(total, torch.ones(3, dtype=torch.float64), rtol=1e-4, atol=0)


@over(ROSTER)
@pytest.mark.parametrize("library", [1.0, 1e6])
@pytest.mark.parametrize("size", [0.0, 50.0, -50.0])
def test_the_gradient_is_finite_at_extremes(build, library, size):
    likelihood = make(build)
    counts = torch.zeros(CELLS, GENES)
    counts[:, 0] = library
    minibatch = cells(counts)
    features = (size * torch.ones(2, CELLS, FEATURES) + torch.randn(2, CELLS, FEATURES)).requires_grad_()
    log_prob = likelihood(features, minibatch).log_prob(likelihood.observed(minibatch))
    assert torch.isfinite(log_prob).all()
    for gradient in torch.autograd.grad(log_prob.sum(), [features, *likelihood.parameters()]):
        assert torch.isfinite(gradient).all()


@over(ROSTER)
def test_every_parameter_gets_a_gradient(build, minibatch):
    likelihood = make(build)
    features = torch.randn(CELLS, FEATURES)
    log_prob = likelihood(features, minibatch).log_prob(likelihood.observed(minibatch)).sum()
    parameters = dict(likelihood.named_parameters())
    for name, gradient in zip(parameters, torch.autograd.grad(log_prob, [*parameters.values()]), strict=True):
        assert gradient.abs().max() > 0, name


@over({**PROPORTIONS, "bernoulli": DETECTED["bernoulli"]})
def test_expression_sums_to_one_and_does_not_depend_on_the_library(build, minibatch):
    likelihood, features = make(build), torch.randn(3, CELLS, FEATURES)
    expression = likelihood.expression(features, minibatch)
    torch.testing.assert_close(expression.sum(-1), torch.ones(3, CELLS))
    richer = minibatch._replace(library=7 * minibatch.library)
    torch.testing.assert_close(likelihood.expression(features, richer), expression)


@over({name: build for name, build in OVER_COUNTS.items() if not name.startswith("zinb")})
def test_expression_times_the_library_is_the_mean_count(build, minibatch):
    likelihood, features = make(build), torch.randn(3, CELLS, FEATURES)
    expression = likelihood.expression(features, minibatch)
    torch.testing.assert_close(
        expression * minibatch.library[:, None], likelihood(features, minibatch).mean, rtol=1e-4, atol=1e-6
    )


@over({name: build for name, build in ROSTER.items() if name.startswith("zinb")})
def test_expression_of_zero_inflated_counts_is_before_the_extra_zeros(build, minibatch):
    likelihood, features = make(build), torch.randn(3, CELLS, FEATURES)
    gate = torch.sigmoid(likelihood.gate_logits(features))
    before = likelihood.expression(features, minibatch) * minibatch.library[:, None]
    torch.testing.assert_close((1 - gate) * before, likelihood(features, minibatch).mean, rtol=1e-4, atol=1e-6)


@over(ROSTER)
def test_the_mean_of_draws_is_the_mean(build, minibatch):
    likelihood = make(build)
    distribution = likelihood(torch.randn(CELLS, FEATURES), minibatch)
    draws = distribution.sample((4000,)).double()
    error = draws.std(0) / len(draws) ** 0.5
    distance = (draws.mean(0) - distribution.mean).abs() / error.clamp(min=1e-9)
    # Where the normal approximation holds.
    often = ((draws > 0).sum(0) > 100) & ((draws != 1).sum(0) > 100)
    assert often.any()
    assert distance[often].max() < 5
    assert ((draws.mean(0) - 2 * distribution.mean).abs() / error)[often].max() > 5


@over(ROSTER)
def test_draws_stand_for_non_negative_whole_counts(build, minibatch):
    likelihood = make(build)
    values = likelihood(torch.randn(3, CELLS, FEATURES), minibatch).sample()
    counts = likelihood.to_counts(values, minibatch)
    assert counts.shape == values.shape
    assert (counts >= 0).all()
    assert torch.equal(counts, counts.round())


@over(ROSTER)
def test_the_counts_that_stand_for_an_observation_are_observed_as_it(build, minibatch):
    likelihood = make(build)
    observed = likelihood.observed(minibatch)
    counts = likelihood.to_counts(observed, minibatch)
    torch.testing.assert_close(likelihood.observed(minibatch._replace(counts=counts)), observed)


@over({**OVER_COUNTS, **VALUES})
def test_the_counts_of_what_is_observed_are_the_counts(build, minibatch):
    likelihood = make(build)
    again = likelihood.to_counts(likelihood.observed(minibatch), minibatch)
    torch.testing.assert_close(again, minibatch.counts)


@over(ROSTER)
def test_nothing_is_observed_where_counts_are_to_be_drawn(build, minibatch):
    assert make(build).observed(minibatch._replace(counts=None)) is None


@over(OVER_COUNTS)
def test_counts_are_observed_as_they_are(build, minibatch):
    likelihood = make(build)
    assert likelihood.observed(minibatch) is minibatch.counts
    assert likelihood.scale == "counts"


@pytest.mark.parametrize(("size_factor", "target"), [(False, 1e4), (True, 1.0)])
def test_log_normalised_values_are_observed_by_the_gaussian(size_factor, target, minibatch):
    likelihood = GaussianLikelihood(FEATURES, GENES, size_factor=size_factor)
    expected = torch.log1p(target * minibatch.counts / minibatch.library[:, None])
    torch.testing.assert_close(likelihood.observed(minibatch), expected)


def test_gaussians_over_other_values_have_another_scale():
    scales = {
        GaussianLikelihood(FEATURES, GENES).scale,
        GaussianLikelihood(FEATURES, GENES, target=1e6).scale,
        GaussianLikelihood(FEATURES, GENES, size_factor=True).scale,
        PoissonCounts(FEATURES, GENES).scale,
    }
    assert len(scales) == 4
    assert "log1p(10000 * counts / library)" in scales


def test_expression_of_the_gaussian_is_the_mean_of_what_its_values_stand_for(minibatch):
    likelihood = make(gaussian)
    features = torch.randn(CELLS, FEATURES)
    draws = torch.expm1(likelihood(features, minibatch).sample((20_000,)).clamp(min=0)) / 1e4
    error = draws.std(0) / len(draws) ** 0.5
    expected = likelihood.expression(features, minibatch)
    often = (draws > 0).float().mean(0) > 0.05  # where draws are seldom above zero, their error is not normal
    assert ((draws.mean(0) - expected).abs() < 5 * error)[often].all()
    median = torch.expm1(likelihood.loc(features).clamp(min=0)) / 1e4
    assert ((draws.mean(0) - median).abs() > 5 * error).any()


@over({**SHARES, **SIZE_FACTORS, **DETECTED})
def test_slopes_are_the_changes_of_the_log_expression(build, minibatch):
    likelihood = make(build).double()
    minibatch = minibatch.to(dtype=torch.float64)
    features = torch.randn(CELLS, FEATURES, dtype=torch.float64)
    steps = torch.eye(FEATURES, dtype=torch.float64)[:, None]
    change = likelihood.expression(features + steps, minibatch).log() - likelihood.expression(features, minibatch).log()
    if not likelihood.size_factor:
        change = change - change.mean(-1, keepdim=True)
    torch.testing.assert_close(change, likelihood.slopes().t()[:, None].expand_as(change))


@over(MIXTURES | {"mixture-of-values": VALUES["mixture-of-values"], "own": PROPORTIONS["own"]})
def test_a_likelihood_without_one_linear_output_has_no_slopes(build):
    assert make(build).slopes() is None


@over({**SHARES, **SIZE_FACTORS, **DETECTED})
def test_initialise_moves_the_bias_to_the_shares_of_the_genes(build, minibatch):
    likelihood = make(build)
    silent = minibatch._replace(counts=minibatch.counts * (torch.arange(GENES) > 0))
    likelihood.initialise(silent)
    shares = likelihood.log_expression.bias.exp() * silent.library.sum()
    torch.testing.assert_close(shares, silent.counts.sum(0) + 0.5)
    mean = likelihood(torch.zeros(CELLS, FEATURES), silent).mean
    assert torch.isfinite(mean).all()


def test_initialise_moves_location_and_scale_of_the_gaussian(minibatch):
    likelihood = make(gaussian)
    likelihood.initialise(minibatch)
    values = likelihood.observed(minibatch)
    distribution = likelihood(torch.zeros(CELLS, FEATURES), minibatch)
    torch.testing.assert_close(likelihood.slopes(), likelihood.loc.weight)
    torch.testing.assert_close(distribution.mean[0], values.mean(0))
    torch.testing.assert_close(distribution.base_dist.scale[0], values.std(0).clamp(min=0.05) + 0.01)


@over(ROSTER)
def test_initialise_without_counts_leaves_everything(build, minibatch):
    likelihood = make(build)
    before = {name: value.clone() for name, value in likelihood.state_dict().items()}
    likelihood.initialise(minibatch._replace(counts=None))
    assert all(torch.equal(value, before[name]) for name, value in likelihood.state_dict().items())


@pytest.mark.parametrize("build", [build for name, build in COUNTS.items() if name.startswith("zinb")])
def test_the_gate_begins_at_one_in_twenty_and_stays_bounded(build):
    likelihood = build(GENES)
    start = torch.sigmoid(likelihood.gate_logits(torch.randn(CELLS, FEATURES)))
    assert ((start > 0.04) & (start < 0.06)).all()
    with torch.no_grad():
        likelihood.gate.weight.fill_(100.0)
    far = likelihood.gate_logits(torch.full((CELLS, FEATURES), 50.0))
    torch.testing.assert_close(far, torch.full_like(far, 10.0))


@over(ROSTER)
def test_double_precision_moves_the_whole_distribution(build, minibatch):
    likelihood = make(build)
    features = torch.randn(CELLS, FEATURES)
    single = likelihood(features, minibatch).log_prob(likelihood.observed(minibatch))
    likelihood.double()
    exact = minibatch.to(dtype=torch.float64)
    double = likelihood(features.double(), exact).log_prob(likelihood.observed(exact))
    assert double.dtype == torch.float64
    assert likelihood(features.double(), exact).sample().dtype == torch.float64
    assert likelihood.expression(features.double(), exact).dtype == torch.float64
    torch.testing.assert_close(double, single.double(), rtol=1e-4, atol=1e-4)


@over(ROSTER)
def test_a_declaration_gives_the_same_likelihood(build, minibatch):
    likelihood = make(build)
    again = Declared.declare(likelihood.declaration())
    assert type(again) is type(likelihood)
    again.load_state_dict(likelihood.state_dict())
    features = torch.randn(CELLS, FEATURES)
    first, second = (each(features, minibatch) for each in (likelihood, again))
    observed = likelihood.observed(minibatch)
    torch.testing.assert_close(again.observed(minibatch), observed)
    torch.testing.assert_close(second.log_prob(observed), first.log_prob(observed))


@over(ROSTER)
@pytest.mark.parametrize("estimator", estimators.table().query("latents != 'discrete'").index)
@pytest.mark.parametrize("num_particles", [1, 3])
def test_it_trains_with_each_estimator(build, estimator, num_particles, minibatch):
    torch.manual_seed(0)
    vae = VAE(StandardNormal(2), MLP(2, [FEATURES]), build(GENES), NormalEncoder(GENES, 2, [8]))
    vae.initialise(minibatch)
    before = {name: value.clone() for name, value in vae.named_parameters()}
    particles = max(num_particles, estimators.get(estimator).least_particles)
    model, guide, elbo = estimators.get(estimator, num_particles=particles).bind(vae.model, vae.guide)
    with pyro.get_param_store().scope():
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
        losses = torch.tensor([svi.step(minibatch) for _ in range(3)])
    assert torch.isfinite(losses).all()
    for name, value in vae.named_parameters():
        assert torch.isfinite(value).all(), name
        # The bias of the last layer may be without effect; nothing else may stand still.
        assert "bias" in name or not torch.equal(value, before[name]), name


def test_a_condition_has_an_inverse_dispersion_of_its_own(minibatch):
    likelihood = make(COUNTS["nb-gene-condition"])
    features = torch.randn(CELLS, FEATURES)
    theta = likelihood.log_inverse_dispersion(features, minibatch)
    torch.testing.assert_close(theta, likelihood.log_inverse_dispersion.log_value[minibatch.conditions[:, 0]])
    assert not torch.equal(theta[0], theta[1])


def test_the_variance_is_the_mean_plus_its_square_over_the_inverse_dispersion(minibatch):
    for form in INVERSE_DISPERSIONS:
        likelihood, features = make(COUNTS[f"nb-{form}"]), torch.randn(CELLS, FEATURES)
        distribution = likelihood(features, minibatch)
        theta = likelihood.log_inverse_dispersion(features, minibatch).exp()
        mean = distribution.mean
        torch.testing.assert_close(distribution.variance, mean + mean**2 / theta)


@pytest.mark.parametrize("size_factor", [False, True])
def test_poisson_counts_vary_as_their_mean_and_log_normal_ones_as_its_square_too(size_factor, minibatch):
    features = torch.randn(CELLS, FEATURES)
    counts = make(plain(PoissonLikelihood, size_factor))(features, minibatch)
    torch.testing.assert_close(counts.variance, counts.mean)
    torch.testing.assert_close(
        counts.log_prob(minibatch.counts), dist.Poisson(counts.mean).log_prob(minibatch.counts).sum(-1)
    )
    likelihood = make(plain(LogNormalPoissonLikelihood, size_factor))
    counts = likelihood(features, minibatch)
    inflation = torch.expm1(likelihood.scale_of_genes() ** 2)
    torch.testing.assert_close(counts.variance, counts.mean + inflation * counts.mean**2)


def test_the_scale_of_the_log_rate_begins_at_one_and_stays_where_its_density_is_accurate():
    likelihood = LogNormalPoissonLikelihood(FEATURES, GENES)
    assert ((likelihood.scale_of_genes() > 0.9) & (likelihood.scale_of_genes() < 1.1)).all()
    with torch.no_grad():
        likelihood.spread.copy_(torch.tensor([-1e4, -100.0, -1.0, 1.0, 100.0, 1e4]))
    assert ((likelihood.scale_of_genes() >= 0.01) & (likelihood.scale_of_genes() <= 2)).all()


@pytest.mark.parametrize("library", [1e-12, 1.0, 50.0, 1e6])
def test_a_gene_is_detected_where_its_poisson_count_is_above_zero(library, minibatch):
    likelihood = make(DETECTED["bernoulli"]).double()
    minibatch = minibatch.to(dtype=torch.float64)._replace(library=torch.full((CELLS,), library, dtype=torch.float64))
    features = torch.randn(CELLS, FEATURES, dtype=torch.float64)
    rate = library * likelihood.expression(features, minibatch)
    detected = likelihood(features, minibatch)
    torch.testing.assert_close(detected.mean, -torch.expm1(-rate))
    none, all_of_them = torch.zeros_like(minibatch.counts), torch.ones_like(minibatch.counts)
    torch.testing.assert_close(detected.log_prob(none), -rate.sum(-1))
    torch.testing.assert_close(detected.log_prob(all_of_them), (-torch.expm1(-rate)).log().sum(-1))


def test_what_is_observed_of_a_detected_gene_is_that_it_is_above_zero(minibatch):
    counts = minibatch.counts * (torch.arange(GENES) % 2)
    observed = make(DETECTED["bernoulli"]).observed(minibatch._replace(counts=counts))
    assert torch.equal(observed, (counts > 0).float())
    assert BernoulliLikelihood.scale == "detected"


def test_a_latent_library_is_refused_beside_detected_genes():
    with pytest.raises(ValueError, match="expected a likelihood over counts beside a latent library, got Bernoulli"):
        VAE(
            StandardNormal(2),
            MLP(2, [FEATURES]),
            BernoulliLikelihood(FEATURES, GENES),
            NormalEncoder(GENES, 2, [8]),
            library=LatentLibrary(GENES, [3.0], [1.0], [8]),
        )


@over(MIXTURES)
def test_a_mixture_weighs_the_probabilities_of_each_gene(build, minibatch):
    likelihood, features = make(build), torch.randn(3, CELLS, FEATURES)
    weights = likelihood.logits.softmax(-1)
    parts = [part(features, minibatch) for part in likelihood.likelihoods]
    probabilities = torch.stack([part.base_dist.log_prob(minibatch.counts).exp() for part in parts], dim=-1)
    whole = likelihood(features, minibatch)
    torch.testing.assert_close(whole.log_prob(minibatch.counts), (weights * probabilities).sum(-1).log().sum(-1))
    means = torch.stack([part.mean for part in parts], dim=-1)
    squares = torch.stack([part.variance + part.mean**2 for part in parts], dim=-1)
    torch.testing.assert_close(whole.mean, (weights * means).sum(-1))
    variance = (weights * squares).sum(-1) - whole.mean**2
    torch.testing.assert_close(whole.variance, variance, rtol=1e-4, atol=1e-4)


def test_a_mixture_of_one_likelihood_with_itself_is_that_likelihood(minibatch):
    likelihood, features = make(COUNTS["nb-gene"]), torch.randn(CELLS, FEATURES)
    twice = MixtureLikelihood([likelihood, likelihood], GENES)
    for whole, part in zip(
        twice(features, minibatch).log_prob(minibatch.counts),
        likelihood(features, minibatch).log_prob(minibatch.counts),
        strict=True,
    ):
        torch.testing.assert_close(whole, part)
    again = Declared.declare(twice.declaration())
    assert again.likelihoods[0] is again.likelihoods[1]


def test_a_mixture_refuses_what_does_not_mix(minibatch):
    with pytest.raises(ValueError, match="at least two likelihoods to mix, got 1"):
        MixtureLikelihood([PoissonLikelihood(FEATURES, GENES)], GENES)
    with pytest.raises(ValueError, match=r"over the same values, got \['counts', 'detected'\]"):
        MixtureLikelihood([PoissonLikelihood(FEATURES, GENES), BernoulliLikelihood(FEATURES, GENES)], GENES)
    together = MixtureLikelihood([PoissonLikelihood(FEATURES, GENES), CountsTogether(FEATURES, GENES)], GENES)
    with pytest.raises(TypeError, match=r"independent over genes.*got Multinomial from CountsTogether"):
        together(torch.randn(CELLS, FEATURES), minibatch)
    nested = MixtureLikelihood([make(MIXTURES["mixture"]), PoissonLikelihood(FEATURES, GENES)], GENES)
    assert nested(torch.randn(CELLS, FEATURES), minibatch).event_shape == (GENES,)


def test_a_mixture_asks_for_a_logit_of_each_component():
    with pytest.raises(ValueError, match=r"a logit for each of 2 components, got \[3\]"):
        Mixture([dist.Poisson(torch.tensor(1.0)), dist.Poisson(torch.tensor(2.0))], torch.zeros(3))


def test_a_mixture_checks_its_values_and_expands():
    counts = Mixture(
        [dist.Poisson(torch.tensor(1.0)), dist.Geometric(torch.tensor(0.5))], torch.zeros(2), validate_args=True
    )
    assert counts.expand((3, 2)).sample((4,)).shape == (4, 3, 2)
    with pytest.raises(ValueError, match="within the support"):
        counts.expand((3,)).log_prob(torch.tensor([0.5, 1.0, 2.0]))
