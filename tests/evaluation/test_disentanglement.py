"""Disentanglement scores on latents whose relation to the factors is known."""

import numpy as np
import pandas as pd
import pytest

from genailab_pyro.evaluation.disentanglement import (
    dci,
    disentanglement,
    mutual_information_gap,
    separated_attribute_predictability,
)

NUM_CELLS = 600


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(params=["discrete", "continuous"])
def factors(request, rng):
    """Two independent factors."""
    if request.param == "discrete":
        return rng.integers(3, size=(NUM_CELLS, 2))
    return rng.uniform(-1, 1, size=(NUM_CELLS, 2))


@pytest.fixture
def aligned(factors, rng):
    """One latent for each factor, with little noise."""
    return factors + 0.005 * rng.normal(size=factors.shape)


def turned(latents, angle=np.pi / 4):
    return latents @ [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]


def is_discrete(factors):
    return factors.dtype.kind == "i"


def test_one_latent_for_each_factor_scores_near_one(aligned, factors):
    scores = disentanglement(aligned, factors)
    assert scores["mig"] > (0.98 if is_discrete(factors) else 0.8)  # noise moves cells over the edges of bins
    assert scores[["dci_disentanglement", "dci_completeness", "dci_informativeness"]].min() > 0.95
    best = 2 / 3 if is_discrete(factors) else 1.0
    assert best - 0.06 < scores["sap"] < best + 0.06


def test_names_order_units_and_unused_latents_do_not_matter(aligned, factors):
    scores = disentanglement(aligned, factors)
    other = np.column_stack([np.full(NUM_CELLS, 7.0), -1e3 * aligned[:, 1] + 5, 1e-3 * aligned[:, 0]])
    np.testing.assert_allclose(disentanglement(other, factors[:, ::-1]), scores, atol=0.02)


def test_mixed_latents_tell_everything_and_are_not_disentangled(aligned, factors):
    mixed = turned(aligned)
    scores = disentanglement(mixed, factors)
    assert scores["dci_informativeness"] > 0.9
    assert scores[["mig", "dci_disentanglement", "dci_completeness", "sap"]].max() < 0.12
    assert disentanglement(turned(mixed, -np.pi / 4), factors)["dci_disentanglement"] > 0.95


@pytest.mark.parametrize("what", ["noise", "shuffled"])
def test_latents_that_tell_nothing_score_near_zero(aligned, factors, what, rng):
    latents = rng.normal(size=aligned.shape) if what == "noise" else aligned[rng.permutation(NUM_CELLS)]
    scores = disentanglement(latents, factors)
    assert scores[["mig", "dci_disentanglement", "dci_completeness", "sap"]].max() < 0.08
    chance = 1 / 3 if is_discrete(factors) else 0.0
    assert scores["dci_informativeness"] == pytest.approx(chance, abs=0.08)


def test_a_latent_given_twice_closes_the_gaps_and_costs_completeness_alone(aligned, factors, rng):
    twice = np.column_stack([aligned, aligned + 0.01 * rng.normal(size=aligned.shape)])
    scores = disentanglement(twice, factors)
    assert scores[["mig", "sap"]].max() < 0.05
    assert scores["dci_disentanglement"] > 0.95
    assert scores["dci_completeness"] < 0.85


def test_a_latent_of_little_importance_weighs_little(aligned, factors, rng):
    beside = np.column_stack([aligned, rng.normal(size=(NUM_CELLS, 2))])
    assert dci(beside, factors).disentanglement > 0.9


def test_one_latent_for_two_factors_is_complete_and_not_disentangled(factors):
    both = 3 * factors[:, :1] + factors[:, 1:] if is_discrete(factors) else factors.sum(1, keepdims=True)
    scores = dci(np.column_stack([both, np.zeros(NUM_CELLS)]), factors)
    assert scores.completeness == pytest.approx(1)
    assert scores.disentanglement < 0.3


def test_information_is_that_of_the_table_of_counts():
    # Two bits: the first latent holds one of them, the second holds it in three of four cells.
    first = np.repeat([0, 1], 400)
    second = np.where(np.arange(800) % 4 == 0, 1 - first, first)
    entropy = np.log(2)
    shared = entropy + 0.25 * np.log(0.25) + 0.75 * np.log(0.75)
    found = mutual_information_gap(np.column_stack([first, second]).astype(float), first)
    assert found == pytest.approx((entropy - shared) / entropy)


def test_predictability_of_a_continuous_factor_is_a_difference_of_squared_correlations(rng):
    latents, factor = rng.normal(size=(50, 3)), rng.normal(size=50)
    squares = np.sort([np.corrcoef(column, factor)[0, 1] ** 2 for column in latents.T])
    assert separated_attribute_predictability(latents, factor) == pytest.approx(squares[-1] - squares[-2])


def test_the_commonest_level_is_not_predictability(rng):
    rare = (np.arange(NUM_CELLS) % 10 == 0).astype(int)
    latents = np.column_stack([rng.normal(size=NUM_CELLS), np.zeros(NUM_CELLS)])
    assert separated_attribute_predictability(latents, rare) < 0.2
    assert separated_attribute_predictability(rare[:, None].astype(float), rare) == 1.0  # none beside it


def test_factors_of_several_kinds_are_columns_of_one_table(rng):
    dose = rng.uniform(size=NUM_CELLS)
    kind = pd.Categorical.from_codes(rng.integers(3, size=NUM_CELLS), ["a", "b", "c", "unused"])
    treated = rng.random(NUM_CELLS) < 0.5
    factors = pd.DataFrame({"dose": dose, "kind": kind, "treated": treated})
    latents = np.column_stack([dose, kind.codes == 0, kind.codes == 1, treated]).astype(float)
    scores = disentanglement(latents, factors)
    assert scores["dci_disentanglement"] > 0.95
    assert scores["dci_informativeness"] > 0.99
    alone = [mutual_information_gap(latents, factors[name]) for name in factors]
    assert scores["mig"] == pytest.approx(np.mean(alone))


def test_whole_numbers_are_levels_and_floating_point_numbers_are_not(rng):
    levels = rng.permutation(8)[rng.integers(8, size=NUM_CELLS)]
    latents = np.column_stack([levels, rng.normal(size=NUM_CELLS)]).astype(float)
    as_levels, as_numbers = (separated_attribute_predictability(latents, levels.astype(kind)) for kind in (int, float))
    assert as_numbers > 0.95
    assert as_levels < as_numbers - 0.1  # one straight cut between the levels does not tell eight of them


def test_scores_are_those_of_the_seed(aligned, factors):
    noisy = aligned + np.random.default_rng(1).normal(size=aligned.shape)
    assert dci(noisy, factors, seed=1) == dci(noisy, factors, seed=1)
    assert dci(noisy, factors, seed=1) != dci(noisy, factors, seed=2)


ONES = np.ones((12, 2))
BITS = np.arange(12) % 2


@pytest.mark.parametrize("score", [mutual_information_gap, dci, separated_attribute_predictability, disentanglement])
@pytest.mark.parametrize(
    ("latents", "factors", "message"),
    [
        (np.ones(12), BITS, r"finite latents of shape \[cells, latent\], got shape \[12\]"),
        (np.full((12, 2), np.nan), BITS, "24 values NaN or infinite"),
        (ONES, BITS[:5], r"factors of shape \[12, factors\], .* got \[5, 1\]"),
        (ONES, np.ones((12, 0)), r"factors of shape \[12, factors\], .* got \[12, 0\]"),
        (ONES, np.where(BITS, 1.0, np.nan), "value of the factor '0' in every cell, got 6 missing or infinite"),
        (ONES, pd.DataFrame({"type": [None, *"abababababa"]}), "of the factor 'type' in every cell, got 1 missing"),
        (ONES, pd.DataFrame({"type": ["a"] * 12}), "at least two values of the factor 'type', got 1; leave it out"),
    ],
)
def test_input_that_does_not_fit_is_named(score, latents, factors, message):
    with pytest.raises(ValueError, match=message):
        score(latents, factors)


@pytest.mark.parametrize("score", [dci, separated_attribute_predictability, disentanglement])
def test_a_level_of_too_few_cells_is_named(score):
    rare = pd.Series(["b", *"aaaaaaaaaaa"], name="type")
    with pytest.raises(ValueError, match=r"at least 4 cells at each level of the factor 'type', .* got 1 at 'b'"):
        score(ONES, rare)
    assert mutual_information_gap(ONES, rare) == 0
