"""The adversary against information in closed form, its gradients, its state, and a fit whose batches it mixes."""

import copy
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.nn.functional import one_hot

import genailab_pyro as glp
from genailab_pyro import CVAE_NB
from genailab_pyro.evaluation import batch_excess
from genailab_pyro.model import adversary
from genailab_pyro.model.adversary import ConditionAdversary, conviction, information
from genailab_pyro.model.opponent import Opponent
from genailab_pyro.types import Minibatch

GAMES = pytest.mark.parametrize("mode", ["reversal", "alternating"])


def cells_of(codes):
    """A minibatch of cells at the levels of one condition."""
    size = len(codes)
    return Minibatch(None, codes[:, None], torch.zeros(size, 0), torch.ones(size), torch.arange(size), size)


def drawn(z):
    """A trace of a guide that draws z."""
    return poutine.trace(lambda: pyro.sample("z", dist.Normal(z, 1e-4).to_event(1))).get_trace()


def shifted(distance, size=256):
    """Cells at two levels whose latents lie apart by a distance, and a trace of them."""
    codes = torch.arange(size) % 2
    return cells_of(codes), drawn(torch.randn(size, 2) + distance * codes[:, None] * torch.tensor([1.0, 0.0]))


def exact_information(distance):
    """Mutual information of two equal normals, ``distance`` apart, and which of them it is, by the trapezoidal rule."""
    grid = np.linspace(-10, 10 + distance, 20_001)
    densities = [np.exp(-((grid - centre) ** 2) / 2) / math.sqrt(2 * math.pi) for centre in (0.0, distance)]
    mixture = sum(densities) / 2
    terms = [density * (np.log(density + 1e-300) - np.log(mixture + 1e-300)) for density in densities]
    return np.trapezoid(sum(terms) / 2, grid)


def scores_of(probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log()


class TestPayoffs:
    CODES = torch.tensor([0, 0, 0, 1])
    SHARES = torch.tensor([0.75, 0.25], dtype=torch.float64)

    def test_three_answers_by_hand(self):
        scores = scores_of([[0.9, 0.1], [0.6, 0.4], [0.75, 0.25], [0.5, 0.5]])
        expected = (math.log(0.9 / 0.75) + math.log(0.6 / 0.75) + math.log(0.5 / 0.25)) / 4
        assert information(scores, self.CODES, self.SHARES).item() == pytest.approx(expected)
        terms = [0.75 * math.log(0.75 / p) + 0.25 * math.log(0.25 / (1 - p)) for p in (0.9, 0.6, 0.75, 0.5)]
        assert conviction(scores, self.CODES, self.SHARES).item() == pytest.approx(sum(terms) / 4)

    def test_a_classifier_that_knows_nothing_pays_nothing(self):
        scores = scores_of([[0.75, 0.25]] * 4)
        for payoff in (information, conviction):
            assert payoff(scores, self.CODES, self.SHARES).item() == pytest.approx(0, abs=1e-12)
        equal = scores_of([[0.5, 0.5]] * 4)  # equal answers are no answer where the shares are not equal
        assert conviction(equal, self.CODES, self.SHARES).item() > 0.1

    def test_a_classifier_that_knows_all_pays_the_entropy(self):
        scores = (one_hot(self.CODES, 2).double() + 1e-12).log()
        entropy = -(self.SHARES * self.SHARES.log()).sum()
        torch.testing.assert_close(information(scores, self.CODES, self.SHARES), entropy)

    def test_a_level_without_cells_is_passed_over(self):
        shares = torch.tensor([0.75, 0.25, 0.0], dtype=torch.float64)
        scores = scores_of([[0.7, 0.2, 0.1]] * 4)
        for payoff in (information, conviction):
            assert torch.isfinite(payoff(scores, self.CODES, shares))


class TestConditionAdversary:
    def learned(self, distance, num_steps=200, **options):
        torch.manual_seed(0)
        penalty = ConditionAdversary(1.0, 2, 2, rise=0, learning_rate=5e-3, hidden_dims=(32,), **options)
        for _ in range(num_steps):
            penalty(*shifted(distance), None)
        with torch.no_grad():
            return torch.stack([penalty(*shifted(distance), None) for _ in range(100)])

    def test_it_learns_the_information_that_z_has_about_the_condition(self, monkeypatch):
        found, exact = self.learned(2.0), exact_information(2.0)
        assert exact > 0.3
        # The classifier is not perfect: two hundredths of a nat are allowed for what it has not learned.
        assert abs(found.mean() - exact) < 5 * found.std() / len(found) ** 0.5 + 0.02
        assert abs(self.learned(0.0, 100).mean()) < 0.02
        monkeypatch.setattr(adversary, "cross_entropy", lambda scores, codes: scores.square().mean())
        assert abs(self.learned(2.0, 100).mean() - exact) > 0.1  # a classifier that learns something else is found

    def test_it_is_convinced_of_levels_that_lie_apart_alone(self):
        assert self.learned(3.0, 100, mode="alternating").mean() > 1
        assert self.learned(0.0, 100, mode="alternating").mean() < 0.05

    @GAMES
    def test_steps_along_its_gradient_mix_the_levels(self, mode):
        torch.manual_seed(0)
        penalty = ConditionAdversary(1.0, 2, 2, mode=mode, rise=0, learning_rate=1e-2)
        codes = torch.arange(256) % 2
        shift = torch.tensor([2.0, -1.0], requires_grad=True)
        optimizer = torch.optim.Adam([shift], lr=0.02)
        for _ in range(250):
            z = torch.randn(256, 2) + shift * codes[:, None]
            optimizer.zero_grad()
            penalty(cells_of(codes), drawn(z), None).backward()
            optimizer.step()
        assert shift.abs().max() < 0.5

    @GAMES
    def test_its_gradient_reaches_the_guide_and_not_the_classifier(self, mode):
        penalty = ConditionAdversary(2.0, 2, 2, mode=mode, rise=0)
        loc = torch.randn(8, 2, requires_grad=True)
        minibatch = cells_of(torch.arange(8) % 2)
        terms = [penalty(minibatch, drawn(loc), None) for _ in range(2)]
        learned = [parameter.grad.clone() for parameter in penalty.parameters()]
        sum(terms).backward()
        assert loc.grad.abs().max() > 0
        assert all(torch.equal(grad, own.grad) for grad, own in zip(learned, penalty.parameters(), strict=True))

    def test_the_reversed_gradient_is_that_of_the_classifier_at_the_same_weights(self):
        penalty = ConditionAdversary(3.0, 2, 2, rise=0)
        twin = copy.deepcopy(penalty.opponent)
        z, codes = torch.randn(8, 2, requires_grad=True), torch.arange(8) % 2
        trace = poutine.trace(lambda: pyro.sample("z", dist.Delta(z).to_event(1))).get_trace()
        (found,) = torch.autograd.grad(penalty(cells_of(codes), trace, None), z)
        (own,) = torch.autograd.grad(torch.nn.functional.cross_entropy(twin.network(z), codes), z)
        torch.testing.assert_close(found, -3 * own)

    def test_the_two_games_differ_in_who_moves_first(self):
        minibatch, trace = shifted(2.0)
        for mode, payoff in (("reversal", information), ("alternating", conviction)):
            penalty = ConditionAdversary(1.0, 2, 2, mode=mode, rise=0)
            before = copy.deepcopy(penalty.opponent)
            found = penalty(minibatch, trace, None)
            after = penalty.opponent
            z, codes, shares = trace.nodes["z"]["value"], minibatch.conditions[:, 0], torch.tensor([0.5, 0.5])
            answers = [payoff(judge(z), codes, shares) for judge in (before, after)]
            assert answers[0] != answers[1]
            assert found == answers[mode == "alternating"]

    def test_the_weight_rises_over_its_own_calls_in_training(self):
        penalty = ConditionAdversary(6.0, 2, 2, rise=3)
        reference = ConditionAdversary(1.0, 2, 2, rise=0)
        minibatch, trace = shifted(2.0)
        ratios = []
        for _ in range(5):
            with torch.no_grad():
                penalty(minibatch, trace, None)  # an answer without gradients is no call in training
            ratios.append((penalty(minibatch, trace, None) / reference(minibatch, trace, None)).item())
        assert ratios == pytest.approx([0, 2, 4, 6, 6])
        assert penalty.calls == 5

    def test_without_gradients_it_only_answers(self):
        penalty = ConditionAdversary(2.0, 2, 2, rise=0)
        before = copy.deepcopy(penalty.state_dict())
        minibatch, trace = shifted(1.0)
        with torch.no_grad():
            value = penalty(minibatch, trace, None)
        assert all(torch.equal(value, penalty.state_dict()[name]) for name, value in before.items())
        assert value == penalty(minibatch, trace, None)  # reversal answers before it learns
        assert any(not torch.equal(value, penalty.state_dict()[name]) for name, value in before.items())

    def test_more_steps_are_steps_on_the_same_draws(self):
        minibatch, trace = shifted(1.0)
        one, three = (ConditionAdversary(1.0, 2, 2, rise=0, steps=steps) for steps in (1, 3))
        for _ in range(3):
            one(minibatch, trace, None)
        three(minibatch, trace, None)
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), three.parameters(), strict=True))

    def test_particles_count_as_draws_of_the_same_cells(self):
        minibatch, _ = shifted(1.0, size=6)
        z = torch.randn(4, 6, 2)
        whole = ConditionAdversary(1.0, 2, 2, rise=0)(minibatch, drawn(z), None)
        each = [ConditionAdversary(1.0, 2, 2, rise=0)(minibatch, drawn(draw), None) for draw in z]
        torch.testing.assert_close(whole, torch.stack(each).mean(), rtol=1e-3, atol=1e-4)

    def test_the_condition_is_the_one_at_its_position(self):
        minibatch, trace = shifted(2.0, size=8)
        both = minibatch._replace(conditions=torch.cat([torch.zeros(8, 1, dtype=torch.long), minibatch.conditions], 1))
        expected = ConditionAdversary(1.0, 2, 2, rise=0)(minibatch, trace, None)
        assert ConditionAdversary(1.0, 2, 2, condition=1, rise=0)(both, trace, None) == expected

    def test_what_it_has_learned_is_all_in_its_state(self):
        penalty, restored, fresh = (ConditionAdversary(1.0, 2, 2, seed=seed, rise=30) for seed in (0, 1, 2))
        for _ in range(20):
            penalty(*shifted(1.0), None)
        restored.load_state_dict({name: value.clone() for name, value in penalty.state_dict().items()})
        assert restored.calls == 20
        fresh.opponent.network.load_state_dict(penalty.opponent.network.state_dict())
        minibatch, trace = shifted(1.0)
        values = [[each(minibatch, trace, None).item() for _ in range(3)] for each in (penalty, restored, fresh)]
        assert values[0] == values[1]
        assert values[0] != values[2]  # without the optimizer and the calls

    def test_a_copy_learns_on_its_own(self):
        penalty = ConditionAdversary(1.0, 2, 2)
        penalty(*shifted(1.0), None)
        before = copy.deepcopy(penalty.state_dict())
        copy.deepcopy(penalty)(*shifted(1.0), None)
        assert all(torch.equal(value, penalty.state_dict()[name]) for name, value in before.items())

    def test_its_weights_are_of_its_own_seed(self):
        state = torch.get_rng_state()
        one, same, other = ([*ConditionAdversary(1.0, 2, 2, seed=seed).parameters()] for seed in (0, 0, 1))
        assert torch.equal(state, torch.get_rng_state())
        assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
        assert any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))

    @pytest.mark.parametrize(
        ("build", "message"),
        [
            (lambda: ConditionAdversary(-1.0, 2, 2), "expected weight to be finite and at least 0, got -1.0"),
            (lambda: ConditionAdversary(math.nan, 2, 2), "expected weight to be finite and at least 0, got nan"),
            (lambda: ConditionAdversary(1.0, 2, 1), "expected at least two levels of the condition, got 1"),
            (lambda: ConditionAdversary(1.0, 2, 2, mode="minimax"), "expected mode to be one of 'reversal', 'alter"),
            (lambda: ConditionAdversary(1.0, 2, 2, rise=-1), "expected rise to be a whole number of at least 0"),
            (lambda: ConditionAdversary(1.0, 2, 2, steps=0), "expected steps to be a whole number of at least 1"),
            (lambda: ConditionAdversary(1.0, 2, 2, condition=-1), "expected condition to be a whole number of at le"),
            (lambda: ConditionAdversary(1.0, 0, 2), "expected widths of at least one"),
            (lambda: Opponent(2, 2, [8], learning_rate=0.0, seed=0), "expected learning_rate .* above 0, got 0.0"),
        ],
    )
    def test_numbers_out_of_range_are_refused(self, build, message):
        with pytest.raises(ValueError, match=message):
            build()

    def test_a_guide_or_cells_of_another_kind_are_refused(self):
        minibatch, trace = shifted(1.0, size=8)
        with pytest.raises(ValueError, match=r"expected 3 latents at the site 'z', got shape \[8, 2\]; declare the"):
            ConditionAdversary(1.0, 3, 2)(minibatch, trace, None)
        with pytest.raises(ValueError, match="expected cells with at least 2 categorical conditions, got 1; register"):
            ConditionAdversary(1.0, 2, 2, condition=1)(minibatch, trace, None)
        with pytest.raises(ValueError, match="expected codes of the condition below 2, got 4; declare the adversary"):
            ConditionAdversary(1.0, 2, 2)(minibatch._replace(conditions=minibatch.conditions * 4), trace, None)


@pytest.fixture(scope="module")
def batches():
    return glp.register(glp.data.simulate(120, 30, num_batches=2, seed=0).adata, conditions=["batch"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fit_is_the_same_for_the_same_seed(batches, dtype):
    vae = CVAE_NB.from_registration(batches, latent_dim=3, hidden_dims=[8]).to(dtype)
    fits = [
        glp.fit(vae, batches, penalties=penalties, max_epochs=2, progress=False)
        for penalties in ([ConditionAdversary(50.0, 3, 2, rise=1)], [ConditionAdversary(50.0, 3, 2, rise=1)], [])
    ]
    one, same, without = (fit.vae.state_dict() for fit in fits)
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert any(not torch.equal(value, without[name]) for name, value in one.items())


@GAMES
def test_a_run_goes_on_bit_for_bit(batches, tmp_path, mode):
    vae = CVAE_NB.from_registration(batches, latent_dim=3, hidden_dims=[8])
    settings = {"max_epochs": 4, "learning_rate_schedule": "constant", "progress": False, "minibatch_size": 32}
    penalty = ConditionAdversary(50.0, 3, 2, mode=mode, rise=10)
    whole = glp.fit(vae, batches, penalties=[penalty], **settings)
    assert penalty.calls == 0  # what it learns in a run is the run's own

    def stop(epoch, row):
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="interrupted after epoch 2"):
        glp.fit(vae, batches, penalties=[penalty], run_folder=tmp_path, callback=stop, **settings)
    ended = glp.resume(tmp_path, batches, penalties=[penalty], progress=False).vae.state_dict()
    assert all(torch.equal(value, ended[name]) for name, value in whole.vae.state_dict().items())
    with pytest.raises(ValueError, match="expected the penalties"):
        glp.resume(tmp_path, batches, penalties=[ConditionAdversary(9.0, 3, 2)], progress=False)


def test_an_estimator_without_a_path_is_refused(batches):
    vae = CVAE_NB.from_registration(batches, latent_dim=3, hidden_dims=[8])
    with pytest.raises(ValueError, match="expected a pathwise estimator beside a penalty"):
        glp.fit(vae, batches, "score", penalties=[ConditionAdversary(1.0, 3, 2)], max_epochs=1, progress=False)


@pytest.mark.slow
def test_a_fit_against_an_adversary_mixes_its_batches():
    # A model that is not told the batches has them in its latents.
    adata = glp.data.simulate(600, 60, num_batches=2, batch_scale=1.0, seed=0).adata
    cells = glp.register(adata, conditions=["batch"])
    vae = glp.VAE_NB.from_registration(cells, latent_dim=4, hidden_dims=[32])
    codes, types = (adata.obs[name].astype("category").cat.codes.to_numpy() for name in ("batch", "cell_type"))
    settings = {"max_epochs": 40, "validation_fraction": 0.0, "progress": False}
    plain, *others = (
        batch_excess(glp.fit(vae, cells, penalties=penalties, **settings).latent(), codes, types)
        for penalties in ([], *([ConditionAdversary(20.0, 4, 2, mode=mode, rise=100)] for mode in adversary.MODES))
    )
    assert plain > 0.1
    assert max(others) < plain - 0.1
