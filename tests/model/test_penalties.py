"""Free bits against the closed-form KL, total correlations against integrals and closed forms."""

import copy
import math
from itertools import combinations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import genailab_pyro as glp
from genailab_pyro import CVAE_NB, FreeBits, LatentLibrary, estimators
from genailab_pyro.model import penalties
from genailab_pyro.model.flows import FlowEncoder
from genailab_pyro.model.particles import paired_traces
from genailab_pyro.model.penalties import (
    AdversarialTotalCorrelation,
    TotalCorrelation,
    aggregate_log_density,
    kl_per_latent,
    total_correlation,
)
from genailab_pyro.model.priors import MixtureOfNormals
from genailab_pyro.train.schedules import Annealed


@pytest.fixture
def vae():
    torch.manual_seed(0)
    vae = CVAE_NB(5, 3, 3, [8]).double().eval()
    with torch.no_grad():
        vae.encoder.scale.bias.copy_(torch.tensor([0.5, -2.0, 0.5]))
        vae.encoder.loc.bias.copy_(torch.tensor([0.0, 2.0, 0.3]))
    return vae


@pytest.fixture
def minibatch(make_minibatch):
    return make_minibatch(dtype=torch.float64)


def exact_kl(vae, minibatch):
    """KL from N(loc, scale) to N(0, 1), shape [cells, latent]."""
    posterior = vae.encoder(minibatch)
    loc, variance = posterior.mean, posterior.variance
    return (variance + loc**2 - 1 - variance.log()) / 2


def penalty_of(vae, minibatch, floor, estimator="pathwise-kl", num_particles=1):
    model, guide, _ = estimators.get(estimator).bind(vae.model, vae.guide)
    model_trace, guide_trace = paired_traces(model, guide, minibatch, num_particles)
    return FreeBits(floor)(minibatch, guide_trace, model_trace)


def test_kl_per_latent_is_the_closed_form(vae, minibatch):
    model_trace, guide_trace = paired_traces(vae.model, vae.guide, minibatch, 1)
    torch.testing.assert_close(kl_per_latent(guide_trace, model_trace).squeeze(0), exact_kl(vae, minibatch))


@pytest.mark.parametrize("floor", [0.0, 0.3, 1.0, 50.0])
@pytest.mark.parametrize("num_particles", [1, 4])
def test_kl_and_free_bits_are_the_larger_of_kl_and_floor_for_each_latent(vae, minibatch, floor, num_particles):
    kl = exact_kl(vae, minibatch).mean(0)
    penalty = penalty_of(vae, minibatch, floor, num_particles=num_particles)
    torch.testing.assert_close(kl.sum() + penalty, kl.clamp(min=floor).sum())


def test_the_floors_lie_on_both_sides(vae, minibatch):
    kl = exact_kl(vae, minibatch).mean(0)
    assert (kl < 1).any()
    assert (kl > 1).any()


def test_a_latent_below_the_floor_gets_no_gradient_of_its_kl(vae, minibatch):
    kl = exact_kl(vae, minibatch).mean(0)
    floor = 1.0
    total = kl.sum() + penalty_of(vae, minibatch, floor)
    (gradient,) = torch.autograd.grad(total, vae.encoder.scale.bias)
    below = kl < floor
    torch.testing.assert_close(gradient[below], torch.zeros_like(gradient[below]))
    assert (gradient[~below].abs() > 1e-3).all()


def test_the_kl_is_averaged_over_the_minibatch_before_the_floor(vae, minibatch):
    # One cell far from the prior lifts the mean over the floor, so that the others may stay at theirs.
    kl = exact_kl(vae, minibatch)[:, 1]
    floor = kl.mean().item() * 0.99
    assert (kl < floor).any()
    others = exact_kl(vae, minibatch).mean(0)[[0, 2]]
    expected = (floor - others).clamp(min=0).sum()
    torch.testing.assert_close(penalty_of(vae, minibatch, floor), expected)


def test_annealing_does_not_change_the_floor(vae, minibatch):
    annealed = Annealed()
    annealed.beta = 0.1
    with annealed:
        penalty = penalty_of(vae, minibatch, 1.0)
    torch.testing.assert_close(penalty, penalty_of(vae, minibatch, 1.0))


def test_a_site_whose_latents_are_not_independent_is_refused(minibatch):
    vae = CVAE_NB(5, 2, 3, [8], library=LatentLibrary(5, [3.0], [1.0])).double()
    guide_trace = poutine.trace(vae.guide).get_trace(minibatch)
    model_trace = poutine.trace(poutine.replay(vae.model, trace=guide_trace)).get_trace(minibatch)
    with pytest.raises(ValueError, match="got LogNormal and LogNormal; leave the free bits out"):
        FreeBits(1.0, site="library")(minibatch, guide_trace, model_trace)


class TestTotalCorrelation:
    """Of a handful of posteriors in two dimensions, whose mixture can be integrated."""

    LOC = torch.tensor([[-1.5, -1.0], [1.2, 1.4], [0.3, 0.1], [2.0, 1.0], [-0.8, -1.9]], dtype=torch.float64)
    SCALE = torch.tensor([[0.5, 0.9], [0.7, 0.4], [1.0, 0.6], [0.5, 0.5], [0.8, 0.7]], dtype=torch.float64)

    def draws(self, number):
        torch.manual_seed(0)
        return self.LOC + self.SCALE * torch.randn(number, *self.LOC.shape, dtype=torch.float64)

    def integrated(self):
        """The total correlation of the mixture by the trapezoidal rule."""
        grid = np.linspace(-7, 7, 701)
        loc, scale = self.LOC.numpy(), self.SCALE.numpy()
        density = np.exp(-(((grid[:, None, None] - loc) / scale) ** 2) / 2) / (scale * math.sqrt(2 * math.pi))
        joint = np.einsum("xn,yn->xy", density[..., 0], density[..., 1]) / len(loc)
        first, second = density.mean(1).T
        ratio = np.log(joint) - np.log(first)[:, None] - np.log(second)
        return np.trapezoid(np.trapezoid(joint * ratio, grid), grid)

    def test_of_the_whole_data_set_it_is_the_integral(self):
        estimates = total_correlation(self.draws(4000), self.LOC, self.SCALE, num_cells=5).mean(-1)
        error = estimates.std() / len(estimates) ** 0.5
        exact = self.integrated()
        assert exact > 0.3
        assert abs(estimates.mean() - exact) < 5 * error
        alone = total_correlation(self.draws(4000), self.LOC, self.SCALE, num_cells=500).mean(-1)
        assert abs(alone.mean() - exact) > 5 * error  # a wrong number of cells is found

    def test_of_many_normal_posteriors_it_is_that_of_the_normal_that_they_add_up_to(self):
        torch.manual_seed(0)
        num_cells, scale = 1500, 0.5
        covariance = torch.tensor([[1.0, 0.7], [0.7, 1.0]], dtype=torch.float64)
        spread = torch.linalg.cholesky(covariance - scale**2 * torch.eye(2))
        loc = torch.randn(num_cells, 2, dtype=torch.float64) @ spread.T
        z = loc + scale * torch.randn_like(loc)
        estimates = total_correlation(z, loc, torch.full_like(loc, scale), num_cells)
        error = estimates.std() / num_cells**0.5
        exact = -math.log(1 - 0.7**2) / 2
        assert exact > 10 * error
        assert abs(estimates.mean() - exact) < 5 * error

    @pytest.mark.parametrize("size", [2, 3, 4])
    def test_densities_of_a_minibatch_are_unbiased_over_the_minibatches_of_a_cell(self, size):
        z = self.draws(1)[0]
        exact = [part[0].exp() for part in aggregate_log_density(z, self.LOC, self.SCALE, 5)]
        found = [[], []]
        for others in combinations(range(1, 5), size - 1):
            rows = [0, *others]
            parts = aggregate_log_density(z[rows], self.LOC[rows], self.SCALE[rows], 5)
            for values, part in zip(found, parts, strict=True):
                values.append(part[0].exp())
        for values, density in zip(found, exact, strict=True):
            torch.testing.assert_close(torch.stack(values).mean(0), density)

    @pytest.mark.parametrize(("latent_dim", "scale", "sign"), [(2, 0.7, -1), (8, 0.3, 1)])
    def test_the_bias_of_a_minibatch_falls_with_its_size(self, latent_dim, scale, sign):
        # Posteriors of many cells that overlap, so that it is too low, or that lie apart, so that it is too high.
        torch.manual_seed(0)
        loc = torch.randn(240, latent_dim, dtype=torch.float64)
        z, scales = loc + scale * torch.randn(20, *loc.shape, dtype=torch.float64), torch.full_like(loc, scale)
        means = []
        for size in (8, 24, 80, 240):
            order = torch.randperm(240).reshape(-1, size)
            each = [total_correlation(z[:, some], loc[some], scales[some], 240).mean() for some in order]
            means.append(torch.stack(each).mean())
        bias = sign * (torch.stack(means) - means[-1])
        assert (bias.diff() < 0).all()

    def test_one_latent_has_none_and_the_order_of_latents_does_not_matter(self):
        z = self.draws(3)
        one = total_correlation(z[..., :1], self.LOC[:, :1], self.SCALE[:, :1], 50)
        torch.testing.assert_close(one, torch.zeros_like(one))
        swapped = total_correlation(z.flip(-1), self.LOC.flip(-1), self.SCALE.flip(-1), 50)
        torch.testing.assert_close(swapped, total_correlation(z, self.LOC, self.SCALE, 50))

    @pytest.mark.parametrize("num_particles", [1, 3])
    @pytest.mark.parametrize("estimator", ["pathwise", "pathwise-kl", "stl"])
    def test_the_penalty_reads_the_guide_and_the_size_of_the_data_set(
        self, vae, make_minibatch, estimator, num_particles
    ):
        minibatch = make_minibatch(num_data=40, dtype=torch.float64)
        model, guide, _ = estimators.get(estimator).bind(vae.model, vae.guide)
        model_trace, guide_trace = paired_traces(model, guide, minibatch, num_particles)
        z, posterior = guide_trace.nodes["z"]["value"], vae.encoder(minibatch)
        each = [total_correlation(draw, posterior.mean, posterior.variance.sqrt(), 40).mean() for draw in z]
        found = TotalCorrelation(3.0)(minibatch, guide_trace, model_trace)
        torch.testing.assert_close(found, 3 * torch.stack(each).mean())

    def test_steps_along_its_gradient_make_latents_independent(self):
        torch.manual_seed(0)
        loc = self.LOC.clone().requires_grad_()
        noise = torch.randn(100, *loc.shape, dtype=torch.float64)
        values = []
        for _ in range(60):
            value = total_correlation(loc + self.SCALE * noise, loc, self.SCALE, 5).mean()
            values.append(value.item())
            (gradient,) = torch.autograd.grad(value, loc)
            loc = (loc - gradient).detach().requires_grad_()
        assert values[-1] < values[0] / 3


def correlated(rho, number):
    """A trace of a guide whose draws have a known correlation."""
    factor = torch.linalg.cholesky(torch.tensor([[1.0, rho], [rho, 1.0]]))
    z = torch.randn(number, 2) @ factor.T
    return poutine.trace(lambda: pyro.sample("z", dist.Normal(z, 1e-4).to_event(1))).get_trace()


class TestAdversarialTotalCorrelation:
    def learned(self, rho, num_steps=600):
        torch.manual_seed(0)
        penalty = AdversarialTotalCorrelation(1.0, latent_dim=2)
        for _ in range(num_steps):
            penalty(None, correlated(rho, 128), None)
        with torch.no_grad():
            return torch.stack([penalty(None, correlated(rho, 128), None) for _ in range(200)])

    def test_it_learns_the_total_correlation(self, monkeypatch):
        exact = -math.log(1 - 0.8**2) / 2
        found = self.learned(0.8).mean()
        # The classifier is not perfect: a twentieth of a nat is allowed for what it has not learned.
        assert abs(found - exact) < 0.05
        assert abs(self.learned(0.0, 200).mean()) < 0.05
        monkeypatch.setattr(penalties, "shuffled", lambda z: z)
        assert abs(self.learned(0.8, 200).mean()) < 0.05  # without the shuffle there is nothing to tell apart

    def test_each_latent_is_shuffled_by_itself(self):
        torch.manual_seed(0)
        z = torch.arange(200.0)[:, None].expand(200, 3)
        found = penalties.shuffled(z)
        for column in found.T:
            torch.testing.assert_close(column.sort().values, z[:, 0])
        assert (np.abs(np.corrcoef(found.T.numpy()) - np.eye(3)) < 0.35).all()

    def test_its_gradient_reaches_the_guide_and_not_the_classifier(self):
        penalty = AdversarialTotalCorrelation(2.0, latent_dim=2)
        loc = torch.randn(8, 2, requires_grad=True)
        for _ in range(2):
            trace = poutine.trace(lambda: pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))).get_trace()
            first, second = penalty(None, trace, None), penalty(None, trace, None)
            learned = [parameter.grad.clone() for parameter in penalty.parameters()]
            (first + second).backward()
            assert loc.grad.abs().max() > 0
            assert all(torch.equal(grad, own.grad) for grad, own in zip(learned, penalty.parameters(), strict=True))

    def test_without_gradients_it_only_answers(self):
        penalty = AdversarialTotalCorrelation(2.0, latent_dim=2)
        before = copy.deepcopy(penalty.state_dict())
        trace = correlated(0.5, 16)
        with torch.no_grad():
            value = penalty(None, trace, None)
        assert all(torch.equal(value, penalty.state_dict()[name]) for name, value in before.items())
        assert value == penalty(None, trace, None)  # it answers before it learns
        assert any(not torch.equal(value, penalty.state_dict()[name]) for name, value in before.items())

    def test_a_copy_learns_on_its_own(self):
        penalty = AdversarialTotalCorrelation(1.0, latent_dim=2)
        penalty(None, correlated(0.5, 16), None)
        twin = copy.deepcopy(penalty)
        before = copy.deepcopy(penalty.state_dict())
        twin(None, correlated(0.5, 16), None)
        assert all(torch.equal(value, penalty.state_dict()[name]) for name, value in before.items())
        assert any(not torch.equal(value, twin.state_dict()[name]) for name, value in before.items())

    @pytest.mark.parametrize("nested", [False, True])
    def test_what_it_has_learned_is_all_in_its_state(self, nested):
        penalty, restored, fresh = (AdversarialTotalCorrelation(1.0, latent_dim=2, seed=seed) for seed in (0, 1, 2))
        holders = [torch.nn.ModuleList([each]) if nested else each for each in (penalty, restored)]
        for _ in range(20):
            penalty(None, correlated(0.5, 16), None)
        kept = {name: value.clone() for name, value in holders[0].state_dict().items()}
        holders[1].load_state_dict(kept)
        fresh.discriminator.network.load_state_dict(penalty.discriminator.network.state_dict())
        trace = correlated(0.5, 16)
        after = []
        for each in (penalty, restored, fresh):
            torch.manual_seed(0)
            for _ in range(3):
                each(None, trace, None)
            after.append(each.discriminator.network.state_dict())
        assert all(torch.equal(value, after[1][name]) for name, value in after[0].items())
        assert any(not torch.equal(value, after[2][name]) for name, value in after[0].items())  # without the optimizer
        AdversarialTotalCorrelation(1.0, 2).load_state_dict(AdversarialTotalCorrelation(1.0, 2).state_dict())

    def test_a_run_goes_on_bit_for_bit(self, cells, tmp_path):
        vae = CVAE_NB.from_registration(cells, latent_dim=3, hidden_dims=[8])
        settings = {"max_epochs": 4, "learning_rate_schedule": "constant", "progress": False, "minibatch_size": 8}
        penalty = AdversarialTotalCorrelation(50.0, 3)
        before = copy.deepcopy(penalty.state_dict())
        whole = glp.fit(vae, cells, penalties=[penalty], **settings)
        assert all(torch.equal(value, penalty.state_dict()[name]) for name, value in before.items())  # a run's own

        def stop(epoch, row):
            if epoch == 2:
                raise KeyboardInterrupt

        with pytest.warns(UserWarning, match="interrupted after epoch 2"):
            glp.fit(vae, cells, penalties=[penalty], run_folder=tmp_path, callback=stop, **settings)
        ended = glp.resume(tmp_path, cells, penalties=[penalty], progress=False).vae.state_dict()
        assert all(torch.equal(value, ended[name]) for name, value in whole.vae.state_dict().items())
        with pytest.raises(ValueError, match="expected the penalties"):
            glp.resume(tmp_path, cells, penalties=[AdversarialTotalCorrelation(9.0, 3)], progress=False)

    def test_its_weights_are_of_its_own_seed(self):
        state = torch.get_rng_state()
        one, same, other = (AdversarialTotalCorrelation(1.0, 2, seed=seed).state_dict() for seed in (0, 0, 1))
        assert torch.equal(state, torch.get_rng_state())
        assert all(torch.equal(value, same[name]) for name, value in one.items())
        assert any(not torch.equal(value, other[name]) for name, value in one.items())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_fit_is_the_same_for_the_same_seed_and_a_new_penalty(self, cells, dtype):
        vae = CVAE_NB.from_registration(cells, latent_dim=3, hidden_dims=[8]).to(dtype)
        fits = [
            glp.fit(vae, cells, penalties=penalties, max_epochs=2, progress=False)
            for penalties in ([AdversarialTotalCorrelation(5.0, 3)], [AdversarialTotalCorrelation(5.0, 3)], [])
        ]
        one, same, without = (fit.vae.state_dict() for fit in fits)
        assert all(torch.equal(value, same[name]) for name, value in one.items())
        assert any(not torch.equal(value, without[name]) for name, value in one.items())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TotalCorrelation(-1.0), "expected weight to be finite and at least 0, got -1.0"),
        (lambda: TotalCorrelation(math.inf), "expected weight to be finite and at least 0, got inf"),
        (lambda: AdversarialTotalCorrelation(-1.0, 2), "expected weight to be finite"),
        (lambda: AdversarialTotalCorrelation(1.0, 0), "expected widths of at least one"),
        (lambda: AdversarialTotalCorrelation(1.0, 2, learning_rate=0.0), "expected learning_rate .* above 0, got 0.0"),
    ],
)
def test_penalties_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_penalties_on_what_they_cannot_read_are_refused(make_minibatch):
    vae = CVAE_NB(5, 2, 3, [8], library=LatentLibrary(5, [3.0], [1.0])).double()
    minibatch = make_minibatch(dtype=torch.float64)
    trace = poutine.trace(vae.guide).get_trace(minibatch)
    with pytest.raises(NotImplementedError, match=r"normal guide .* 'library', .* got LogNormal of event shape \[\]"):
        TotalCorrelation(1.0, site="library")(minibatch, trace, None)
    for penalty in (TotalCorrelation(1.0, site="w"), AdversarialTotalCorrelation(1.0, 2, site="w")):
        with pytest.raises(ValueError, match=r"latent site of the guide among \['cells', 'library', 'z'\], got 'w'"):
            penalty(minibatch, trace, None)
    with pytest.raises(ValueError, match=r"expected 3 latents at the site 'z', got shape \[6, 2\]"):
        AdversarialTotalCorrelation(1.0, 3)(minibatch, trace, None)
    one = make_minibatch(1, num_data=9, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"at least two cells in a minibatch, .* got 1 of 9; raise minibatch_size"):
        TotalCorrelation(1.0)(one, poutine.trace(vae.guide).get_trace(one), None)


def test_the_kl_of_a_flow_is_not_that_of_its_base(minibatch):
    pytest.importorskip("zuko")
    guide_fn = FlowEncoder(5, 3, [8]).double()(minibatch)
    node = poutine.trace(lambda fn: pyro.sample("z", fn))
    guide_trace, model_trace = node.get_trace(guide_fn), node.get_trace(dist.Normal(torch.zeros(6, 3), 1).to_event(1))
    with pytest.raises(NotImplementedError, match="FlowDistribution does not split into latents"):
        kl_per_latent(guide_trace, model_trace)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_penalty_lowers_the_total_correlation_of_a_fit(seed):
    types = glp.data.CellTypes(latent_dim=3, separation=0.0, spread=1.0)
    cells = glp.register(glp.data.simulate(600, 60, num_types=1, types=types, seed=0).adata)
    vae = CVAE_NB.from_registration(cells, latent_dim=3, hidden_dims=[32], dropout=0.0, seed=seed)
    settings = {"max_epochs": 60, "validation_fraction": 0.0, "progress": False, "seed": seed}
    measured = []
    for added in ([], [TotalCorrelation(10.0)]):
        # A low weight of the KL leaves the latents correlated.
        fit = glp.fit(vae, cells, penalties=added, warmup=glp.Warmup(beta=0.05), **settings)
        z = fit.posterior_samples(num_samples=20).reshape(-1, 3)
        # Of normal latents it is a function of their correlations, whatever the penalty estimates it by.
        measured.append(-np.linalg.slogdet(np.corrcoef(z.T))[1] / 2)
        assert fit.diagnose().latents.kl.min() > 0.5  # not by giving the latents up
    assert measured[0] > 0.01
    assert measured[1] < measured[0] / 4


def test_free_bits_need_a_kl_for_each_latent(cells):
    vae = CVAE_NB.from_registration(cells, latent_dim=2, hidden_dims=[8])
    vae.prior = MixtureOfNormals(2)
    message = "KL has a closed form for each latent, got Normal and MixtureSameFamily; leave the free bits out"
    with pytest.raises(ValueError, match=message):
        glp.fit(vae, cells, max_epochs=1, free_bits=0.1, progress=False)
