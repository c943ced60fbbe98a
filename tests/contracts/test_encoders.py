"""The laws that every encoder obeys, the posterior of a latent library among them."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import nn

from genailab_pyro import (
    MLP,
    VAE,
    Cells,
    DependentNormal,
    Embedding,
    Encoder,
    FreeBits,
    LatentLibrary,
    Minibatch,
    NegativeBinomialLikelihood,
    NormalEncoder,
    OneHot,
    StandardNormal,
    Upper,
    UpperNormal,
    check_pair,
    estimators,
    fit,
)
from genailab_pyro.estimators import closed_form_kl
from genailab_pyro.model.encoders import FullRankEncoder, LowRankEncoder
from genailab_pyro.model.penalties import AdversarialTotalCorrelation, TotalCorrelation
from genailab_pyro.nn import Declared

GENES, LATENT, LEVELS, CELLS = 6, 3, 2, 5


class MeanField(Encoder):
    """One location and scale for all cells, as a user might begin."""

    def __init__(self, latent_dim):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(latent_dim))

    def forward(self, minibatch):
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(1).expand([minibatch.size])


class Label(Upper):
    """A label of four kinds, the same for all cells before and after they are seen."""

    site, output_dim = "label", 4

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(4))

    def prior(self, condition):
        return dist.OneHotCategorical(logits=torch.zeros(4))

    def posterior(self, minibatch):
        return dist.OneHotCategorical(logits=self.logits.expand(minibatch.size, 4))


ROSTER = {
    "normal": lambda: NormalEncoder(GENES, LATENT, [8]),
    "normal-linear": lambda: NormalEncoder(GENES, LATENT, []),
    "normal-one-hot": lambda: NormalEncoder(GENES, LATENT, [8], condition=OneHot([LEVELS])),
    "normal-embedding": lambda: NormalEncoder(GENES, LATENT, [8, 8], condition=Embedding([LEVELS], 4), norm="batch"),
    "mean-field": lambda: MeanField(LATENT),
    "full-rank": lambda: FullRankEncoder(GENES, LATENT, [8]),
    "full-rank-one-hot": lambda: FullRankEncoder(GENES, LATENT, [8], condition=OneHot([LEVELS])),
    "low-rank": lambda: LowRankEncoder(GENES, LATENT, [8]),
    "low-rank-linear": lambda: LowRankEncoder(GENES, LATENT, [], rank=1, condition=Embedding([LEVELS], 4)),
}
CORRELATED = [name for name in ROSTER if "rank" in name]
READING = [name for name in ROSTER if name != "mean-field"]
every_encoder = pytest.mark.parametrize("build", list(ROSTER.values()), ids=list(ROSTER))


def cells(dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    counts = torch.poisson(torch.full((CELLS, GENES), 4.0, dtype=dtype), generator=generator) * scale
    counts[:, 0] += 1
    levels = (torch.arange(CELLS) % LEVELS)[:, None]
    none = torch.zeros(CELLS, 0, dtype=dtype)
    return Minibatch(counts, levels, none, counts.sum(1), torch.arange(CELLS), CELLS)


def built(build):
    """An encoder whose weights have moved from where it starts."""
    torch.manual_seed(0)
    encoder = build().eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return encoder


def grid_of(posterior):
    """Points on a grid about each cell's posterior, of eight deviations each way, and their log volume."""
    draws = posterior.sample((1000,))
    centred = draws - draws.mean(0)
    factor = torch.linalg.cholesky(torch.einsum("scd,sce->cde", centred, centred) / len(draws))
    axis = torch.arange(-8, 8.1, 0.5, dtype=torch.float64)
    points = torch.cartesian_prod(*[axis] * LATENT)
    log_volume = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) + LATENT * math.log(0.5)
    return draws.mean(0) + torch.einsum("cde,pe->pcd", factor, points), log_volume


def moments(values, weights):
    """Means, variances and covariances of each cell, one beside the other."""
    mean = (weights.unsqueeze(-1) * values).sum(0)
    products = torch.einsum("pcd,pce->pcde", values - mean, values - mean)
    return torch.cat([mean, (weights[..., None, None] * products).sum(0).flatten(1)], dim=1)


@every_encoder
def test_event_is_the_latent_and_batch_the_cells(build):
    posterior = built(build)(cells())
    assert posterior.event_shape == (LATENT,)
    assert posterior.batch_shape == (CELLS,)
    assert posterior.expand([4, CELLS]).rsample().shape == (4, CELLS, LATENT)
    assert posterior.log_prob(posterior.sample()).shape == (CELLS,)
    assert posterior.mean.shape == (CELLS, LATENT)


@every_encoder
def test_the_density_integrates_to_one(build):
    posterior = built(build).double()(cells(torch.float64))
    points, log_volume = grid_of(posterior)
    integral = (posterior.log_prob(points) + log_volume).exp().sum(0)
    torch.testing.assert_close(integral, torch.ones_like(integral), rtol=1e-6, atol=0)


@every_encoder
def test_draws_have_the_moments_of_the_density(build):
    posterior = built(build).double()(cells(torch.float64))
    points, log_volume = grid_of(posterior)
    exact = moments(points, (posterior.log_prob(points) + log_volume).exp())
    torch.testing.assert_close(posterior.mean, exact[:, :LATENT])
    groups = torch.stack([moments(posterior.sample((500,)), torch.full((500, 1), 1 / 499)) for _ in range(40)])
    error = groups.std(0) / len(groups) ** 0.5
    groups[..., :LATENT] *= 499 / 500  # a mean divides by all draws, a covariance by one fewer
    assert ((groups.mean(0) - exact).abs() < 5 * error + 0.01 * error.mean()).all()
    doubled = moments(2 * points, (posterior.log_prob(points) + log_volume).exp())
    assert ((groups.mean(0) - doubled).abs() > 5 * error).any(1).all()


@every_encoder
def test_draws_carry_a_path_to_every_parameter(build):
    encoder = built(build).train()
    drawn = encoder(cells()).rsample().square().sum()
    gradients = torch.autograd.grad(drawn, list(encoder.parameters()), allow_unused=True)
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)


@every_encoder
@pytest.mark.parametrize("scale", [0.0, 1e6])
def test_gradients_are_finite_for_empty_and_for_rich_cells(build, scale):
    encoder = built(build)
    posterior = encoder(cells(scale=scale))
    drawn = posterior.rsample()
    entropy = posterior.log_prob(drawn).sum() + drawn.square().sum()
    assert torch.isfinite(entropy)
    for gradient in torch.autograd.grad(entropy, list(encoder.parameters()), allow_unused=True):
        assert gradient is None or torch.isfinite(gradient).all()


@every_encoder
def test_a_declaration_gives_the_same_encoder(build):
    encoder = built(build)
    again = Declared.declare(encoder.declaration()).eval()
    again.load_state_dict(encoder.state_dict())
    value = torch.randn(CELLS, LATENT)
    torch.testing.assert_close(again(cells()).log_prob(value), encoder(cells()).log_prob(value))


@every_encoder
def test_it_moves_to_double_precision(build):
    assert built(build).double()(cells(torch.float64)).sample().dtype == torch.float64


@every_encoder
def test_a_cell_is_encoded_by_itself(build):
    encoder, minibatch = built(build), cells()
    moved = minibatch._replace(counts=minibatch.counts + torch.tensor([0.0, 0, 0, 0, 9.0])[:, None])
    torch.testing.assert_close(encoder(moved).mean[:4], encoder(minibatch).mean[:4])


@pytest.mark.parametrize("name", READING)
def test_counts_and_the_declared_condition_move_the_posterior(name):
    encoder, minibatch = built(ROSTER[name]), cells()
    richer = minibatch._replace(counts=minibatch.counts + 3)
    swapped = minibatch._replace(conditions=1 - minibatch.conditions)
    mean = encoder(minibatch).mean
    assert not torch.allclose(encoder(richer).mean, mean)
    assert torch.allclose(encoder(swapped).mean, mean) == (encoder.condition is None)


@pytest.mark.parametrize("name", READING)
def test_counts_are_seen_through_log1p(name):
    encoder, minibatch = built(ROSTER[name]), cells()
    seen = []
    encoder.trunk.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    encoder(minibatch)
    torch.testing.assert_close(seen[0], minibatch.counts.log1p())


@pytest.mark.parametrize("build", [ROSTER["normal"], lambda: LatentLibrary(GENES, [1.0], [1.0])])
def test_without_counts_there_is_nothing_to_encode(build):
    encoder = build()
    ask = encoder.posterior if isinstance(encoder, LatentLibrary) else encoder
    with pytest.raises(ValueError, match="expected a minibatch with counts to encode"):
        ask(cells()._replace(counts=None))


def vae_of(encoder, **options):
    return VAE(StandardNormal(LATENT), MLP(LATENT, [8]), NegativeBinomialLikelihood(8, GENES), encoder, **options)


@every_encoder
@pytest.mark.parametrize("estimator", estimators.table().query("latents != 'discrete'").index)
@pytest.mark.parametrize("num_particles", [1, 3])
def test_it_trains_with_each_estimator(build, estimator, num_particles):
    torch.manual_seed(0)
    vae = vae_of(build())
    before = {name: value.clone() for name, value in vae.encoder.named_parameters()}
    particles = max(num_particles, estimators.get(estimator).least_particles)
    model, guide, elbo = estimators.get(estimator, num_particles=particles).bind(vae.model, vae.guide)
    with pyro.get_param_store().scope():
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
        losses = torch.tensor([svi.step(cells()) for _ in range(3)])
    assert torch.isfinite(losses).all()
    for name, value in vae.encoder.named_parameters():
        assert torch.isfinite(value).all(), name
        assert "bias" in name or not torch.equal(value, before[name]), name


@every_encoder
def test_a_fit_answers_with_it(build):
    registered = Cells.from_tensors(cells().counts, conditions={"batch": ["b1", "b2", "b1", "b2", "b1"]})
    vae = vae_of(build())
    check_pair(vae.model, vae.guide, cells())
    fitted = fit(vae, registered, max_epochs=1, progress=False)
    assert fitted.latent().shape == (CELLS, LATENT)
    assert fitted.posterior_samples(num_samples=4).shape == (4, CELLS, LATENT)
    diagnosis = fitted.diagnose(num_particles=25)
    assert len(diagnosis.latents.kl) in (0, LATENT)
    assert diagnosis.gap >= 0


def tilted(name):
    """Posteriors of strongly correlated latents, in double precision."""
    encoder = built(ROSTER[name]).double()
    with torch.no_grad():
        (encoder.below if isinstance(encoder, FullRankEncoder) else encoder.directions).bias.fill_(1.0)
    return encoder(cells(torch.float64))


def kl_by_draws(posterior, prior, number=20_000):
    """Estimate of the KL of each cell and its standard error."""
    draws = posterior.sample((number,))
    differences = posterior.log_prob(draws) - prior.log_prob(draws)
    return differences.mean(0), differences.std(0) / number**0.5


@pytest.mark.parametrize("name", CORRELATED)
class TestCorrelatedPosteriors:
    def test_latents_are_correlated_and_as_wide_as_the_covariance_says(self, name):
        posterior = tilted(name)
        variance = posterior.covariance_matrix.diagonal(dim1=-2, dim2=-1)
        torch.testing.assert_close(posterior.variance, variance)
        off_diagonal = posterior.covariance_matrix.tril(-1).abs().amax((-2, -1))
        assert (off_diagonal > 0.1 * variance.mean(-1)).all()

    def test_the_kl_to_independent_normals_is_that_of_draws_and_of_a_full_covariance(self, name):
        posterior = tilted(name)
        torch.manual_seed(0)
        loc, scale = 0.3 * torch.randn(2, CELLS, LATENT, dtype=torch.float64)
        prior = dist.Normal(loc, scale.exp()).to_event(1)
        kl = closed_form_kl(posterior, prior)
        same = dist.MultivariateNormal(loc, scale_tril=scale.exp().diag_embed())
        torch.testing.assert_close(kl, torch.distributions.kl_divergence(posterior, same))
        estimate, error = kl_by_draws(posterior, prior)
        assert ((kl - estimate).abs() < 5 * error).all()
        marginals = dist.Normal(posterior.mean, posterior.stddev).to_event(1)
        assert ((closed_form_kl(marginals, prior) - estimate).abs() > 5 * error).any()

    def test_the_kl_of_cells_is_broadcast_over_particles_and_a_shared_prior(self, name):
        posterior, prior = built(ROSTER[name])(cells()), StandardNormal(LATENT)(torch.zeros(CELLS, 0))
        kl = closed_form_kl(posterior, prior)
        assert kl.shape == (CELLS,)
        torch.testing.assert_close(closed_form_kl(posterior.expand([4, CELLS]), prior), kl.expand(4, CELLS))

    def test_a_kl_without_a_closed_form_is_refused(self, name):
        posterior = built(ROSTER[name])(cells())
        for prior in (dist.StudentT(3.0, torch.zeros(LATENT), 1.0), dist.Normal(torch.zeros(2, LATENT), 1.0)):
            with pytest.raises(NotImplementedError, match=r"to independent .* latents has no closed form"):
                closed_form_kl(posterior, prior.to_event(prior.batch_shape.numel() // LATENT).expand([CELLS]))

    def test_the_density_of_a_narrow_posterior_is_accurate_in_single_precision(self, name):
        encoder = built(ROSTER[name])
        with torch.no_grad():
            encoder.scale.bias.fill_(-20.0)
            encoder.scale.weight.zero_()
        exact = encoder.double()(cells(torch.float64))
        offset = torch.linspace(-3e-4, 3e-4, LATENT, dtype=torch.float64)
        names = ["scale_tril"] if isinstance(exact, dist.MultivariateNormal) else ["cov_factor", "cov_diag"]
        parts = {part: getattr(exact, part).float() for part in names}
        single = type(exact)(torch.zeros(CELLS, LATENT), **parts)
        log_prob = single.log_prob(offset.float()).double()
        torch.testing.assert_close(log_prob, exact.log_prob(exact.mean + offset), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("estimator", ["pathwise", "pathwise-kl", "score-graph", "score-loo", "dreg"])
    def test_it_stands_below_an_upper_latent(self, name, estimator):
        torch.manual_seed(0)
        kind, upper = type(ROSTER[name]()), UpperNormal(GENES, 2, [8])
        vae = VAE(
            DependentNormal(2, LATENT),
            MLP(LATENT, [8]),
            NegativeBinomialLikelihood(8, GENES),
            kind(GENES, LATENT, [8], upper_dim=2),
            upper=upper,
        )
        check_pair(vae.model, vae.guide, cells())
        model, guide, elbo = estimators.get(estimator, num_particles=3).bind(vae.model, vae.guide)
        loss = elbo.differentiable_loss(model, guide, cells())
        gradients = torch.autograd.grad(loss, list(vae.encoder.parameters()))
        assert all(torch.isfinite(gradient).all() and gradient.any() for gradient in gradients)

    def test_an_upper_label_is_summed_over(self, name):
        kind, upper = type(ROSTER[name]()), Label()
        vae = VAE(
            DependentNormal(4, LATENT),
            MLP(LATENT, [8]),
            NegativeBinomialLikelihood(8, GENES),
            kind(GENES, LATENT, [8], upper_dim=4),
            upper=upper,
        )
        model, guide, elbo = estimators.get("enum", num_particles=3).bind(vae.model, vae.guide)
        elbo.differentiable_loss(model, guide, cells()).backward()
        assert vae.encoder.upper.weight.grad.any()

    def test_a_penalty_that_splits_the_latents_is_refused_and_one_of_draws_is_not(self, name):
        registered = Cells.from_tensors(cells().counts, conditions={"batch": ["b1", "b2", "b1", "b2", "b1"]})

        def train(penalty):
            return fit(vae_of(ROSTER[name]()), registered, penalties=[penalty], max_epochs=1, progress=False)

        with pytest.raises(
            ValueError, match=r"closed form for each latent, got .*MultivariateNormal and Normal; leave the"
        ):
            train(FreeBits(0.1))
        with pytest.raises(NotImplementedError, match=r"independent latents .* got .*MultivariateNormal"):
            train(TotalCorrelation(1.0))
        assert train(AdversarialTotalCorrelation(1.0, LATENT)).history["train_elbo"].notna().all()


def test_a_full_rank_encoder_starts_as_a_normal_one_of_the_same_seed():
    started = []
    for kind in (NormalEncoder, FullRankEncoder):
        torch.manual_seed(0)
        started.append(kind(GENES, LATENT, [8]).eval())
    normal, full = (encoder(cells()) for encoder in started)
    values = normal.sample((3,))
    torch.testing.assert_close(full.log_prob(values), normal.log_prob(values))
    assert not torch.allclose(built(ROSTER["full-rank"])(cells()).log_prob(values), full.log_prob(values))


def test_one_latent_has_nothing_to_be_correlated_with():
    with pytest.raises(ValueError, match="expected at least two latents to be correlated, got 1; use a NormalEncoder"):
        FullRankEncoder(GENES, 1)


def test_a_low_rank_encoder_starts_near_a_diagonal_one_and_leaves_it():
    torch.manual_seed(0)
    posterior = LowRankEncoder(GENES, LATENT, [8]).eval()(cells())
    correlation = posterior.covariance_matrix / posterior.stddev.unsqueeze(-1) / posterior.stddev.unsqueeze(-2)
    assert 0 < correlation.tril(-1).abs().max() < 0.1


@pytest.mark.parametrize("rank", [0, LATENT + 1])
def test_a_rank_out_of_range_is_refused(rank):
    with pytest.raises(ValueError, match=rf"expected a rank from 1 to latent_dim=3, got {rank}"):
        LowRankEncoder(GENES, LATENT, rank=rank)


class TestLatentLibrary:
    @pytest.mark.parametrize(("loc", "scale"), [([3.0], [0.5]), ([3.0, 4.0], [0.5, 0.2])])
    def test_prior_and_posterior_are_over_one_positive_number_per_cell(self, loc, scale):
        library, minibatch = LatentLibrary(GENES, loc, scale, [8]), cells()
        for distribution in (library.prior(minibatch), library.posterior(minibatch)):
            assert distribution.event_shape == ()
            draws = distribution.expand([4, CELLS]).sample()
            assert (draws > 0).all()

    def test_the_prior_is_that_of_the_level(self):
        library, minibatch = LatentLibrary(GENES, [3.0, 4.0], [0.5, 0.2], [8]), cells()
        prior = library.prior(minibatch)
        torch.testing.assert_close(prior.loc, torch.tensor([3.0, 4.0, 3.0, 4.0, 3.0]))
        torch.testing.assert_close(prior.scale, torch.tensor([0.5, 0.2, 0.5, 0.2, 0.5]))

    def test_the_density_integrates_to_one(self):
        library = LatentLibrary(GENES, [3.0], [0.5], [8]).double()
        logs = torch.linspace(-3, 9, 6001, dtype=torch.float64)[:, None]
        for distribution in (library.prior(cells(torch.float64)), library.posterior(cells(torch.float64))):
            density = distribution.log_prob(logs.exp()) + logs  # of the logarithm
            integral = density.exp().sum(0) * 0.002
            torch.testing.assert_close(integral, torch.ones_like(integral), rtol=1e-5, atol=0)

    def test_a_declaration_gives_the_same_library(self):
        library = LatentLibrary(GENES, [3.0, 4.0], [0.5, 0.2], [8], norm="batch").eval()
        again = Declared.declare(library.declaration()).eval()
        again.load_state_dict(library.state_dict())
        minibatch = cells()
        torch.testing.assert_close(again.prior(minibatch).loc, library.prior(minibatch).loc)
        torch.testing.assert_close(again.posterior(minibatch).loc, library.posterior(minibatch).loc)
