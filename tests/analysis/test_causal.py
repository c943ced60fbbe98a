"""Intervening averages both arms over the same cells, and says what it can: the rest is wrong without a warning."""

import warnings

import numpy as np
import pytest
import torch

import genailab_pyro as glp
from genailab_pyro.analysis.causal import contrast, overlap
from genailab_pyro.data.confounding import confound

ARMS = ("drug", "treated", "control")
# Counts of three genes in cells of ten, by type and arm (control, treated), and how many cells there are of each.
COUNTS = np.array([[[2, 4, 4], [4, 2, 4]], [[6, 2, 2], [8, 1, 1]]])
SIZES = np.array([[6, 18], [18, 6]])


def by_hand(third=0, factor=1):
    """Cells whose counts are what is expected of them, those of type B times a factor, and some of a third arm."""
    codes = np.repeat([[0, 0], [0, 1], [1, 0], [1, 1]], SIZES.ravel(), axis=0)
    counts = COUNTS[tuple(codes.T)] * np.where(codes[:, :1] == 1, factor, 1)
    counts = np.concatenate([counts, np.full((third, 3), 5)])
    drugs = [*np.array(["control", "treated"])[codes[:, 1]], *["other"] * third]
    types = [*np.array(["A", "B"])[codes[:, 0]], *["A"] * third]
    return glp.Cells.from_tensors(counts, conditions={"drug": drugs, "type": types})


def fitted(cells):
    vae = glp.CVAE_NB.from_registration(cells, latent_dim=2, hidden_dims=[4])
    return glp.fit(vae, cells, max_epochs=1, progress=False)


def decoding(fit, rates, monkeypatch):
    """The fit with a decoder that gives each type and arm its rates, shape ``[types, arms, genes]``."""
    table = torch.as_tensor(rates, dtype=torch.float32)

    def decode(z, minibatch):
        drug, kind = minibatch.conditions.T
        return table[kind, drug].expand(*z.shape[:-1], 3)

    monkeypatch.setattr(fit.vae, "decode", decode)
    monkeypatch.setattr(fit.vae.likelihood, "expression", lambda features, _: features)
    return fit


@pytest.fixture(scope="module")
def plain():
    return fitted(by_hand())


@pytest.fixture
def right(plain, monkeypatch):
    return decoding(plain, COUNTS / 10, monkeypatch)


def test_the_contrasts_are_those_worked_out_by_hand(right):
    adjusted, among_treated, naive = (
        contrast(right, None, *ARMS, **options) for options in ({}, {"population": "treated"}, {"adjusted": False})
    )
    # The same 24 + 24 cells: 0.6 against 0.4; the 18 + 6 treated: 0.5 against 0.3; the arms: 0.5 against 0.5.
    np.testing.assert_allclose(adjusted["mean_level"], [0.6, 0.15, 0.25], rtol=1e-5)
    np.testing.assert_allclose(adjusted["mean_reference"], [0.4, 0.3, 0.3], rtol=1e-5)
    np.testing.assert_allclose(adjusted["log2_fold_change"], np.log2([1.5, 0.5, 0.25 / 0.3]), rtol=1e-5)
    assert among_treated["log2_fold_change"].iloc[0] == pytest.approx(np.log2(5 / 3), rel=1e-5)
    assert naive["log2_fold_change"].iloc[0] == pytest.approx(0, abs=1e-6)
    assert adjusted.index.tolist() == ["gene_0", "gene_1", "gene_2"]


@pytest.mark.parametrize("adjusted", [True, False])
def test_what_the_decoder_gets_wrong_of_a_gene_is_corrected_by_its_counts(plain, adjusted, monkeypatch):
    wrong = COUNTS / 10 * np.array([[[1.0], [2.0]]]) * [1.5, 1.0, 0.7]
    table = contrast(decoding(plain, wrong, monkeypatch), None, *ARMS, adjusted=adjusted)
    expected = np.log2([1.5, 0.5, 0.25 / 0.3] if adjusted else [1.0, 0.7, 1.3])
    # Half a count beside some fifty moves a logarithm by 0.015.
    np.testing.assert_allclose(table["log2_fold_change"], expected, atol=0.02)
    assert abs(np.log2(wrong[:, 1].mean(0) / wrong[:, 0].mean(0)) - expected).min() > 0.3


@pytest.mark.parametrize("factor", [1, 3])
def test_a_decoder_that_knows_nothing_leaves_weighted_counts_whatever_the_libraries(factor, monkeypatch):
    fit = decoding(fitted(by_hand(factor=factor)), np.full((2, 2, 3), 1 / 3), monkeypatch)
    table = contrast(fit, None, *ARMS)
    # One over the share of its arm in its type makes each type stand for its 24 cells, as where the decoder is right.
    np.testing.assert_allclose(table["log2_fold_change"], np.log2([1.5, 0.5, 0.25 / 0.3]), atol=0.03)
    among_treated = contrast(fit, None, *ARMS, population="treated")
    assert among_treated["log2_fold_change"].iloc[0] == pytest.approx(np.log2(5 / 3), abs=0.03)
    unweighted = (SIZES[..., None] * COUNTS).sum(0)
    assert abs(table["log2_fold_change"] - np.log2(unweighted[1] / unweighted[0])).max() > 0.5


@pytest.mark.parametrize("adjusted", [True, False])
def test_the_standard_error_is_that_of_paired_cells_or_of_two_arms(right, adjusted):
    number = 2000
    found = contrast(right, None, *ARMS, adjusted=adjusted, num_samples=number)["standard_error"].iloc[0]
    control, treated = (np.repeat(COUNTS[:, arm, 0] / 10, 24) for arm in (0, 1))
    paired = (treated / treated.mean() - control / control.mean()).var() / 49
    alone = treated.var() / treated.mean() ** 2 / 49 + control.var() / control.mean() ** 2 / 49
    # Of the naive arms of 24 cells, 18 are of one type.
    arms = sum(np.repeat(COUNTS[:, arm, 0] / 5, SIZES[:, arm]).var() / 25 for arm in (0, 1))
    # Jeffreys' prior counts a variance of a half in either sum of counts.
    prior = sum(0.5 / (24 * 10 * mean) ** 2 for mean in ((0.4, 0.6) if adjusted else (0.5, 0.5)))
    tolerance = 5 / np.sqrt(2 * number)
    assert found == pytest.approx(np.sqrt((paired if adjusted else arms) + prior) / np.log(2), rel=tolerance)
    assert found != pytest.approx(np.sqrt(alone + prior) / np.log(2), rel=tolerance)


def test_the_interval_is_normal(right):
    table = contrast(right, None, *ARMS)
    np.testing.assert_allclose(table["high"] - table["low"], 2 * 1.96 * table["standard_error"])
    np.testing.assert_allclose((table["high"] + table["low"]) / 2, table["log2_fold_change"], atol=1e-12)


def test_cells_of_a_third_arm_are_left_out(monkeypatch):
    cells = by_hand(third=10)
    rates = np.stack([COUNTS[:, 0], np.full((2, 3), 9), COUNTS[:, 1]], axis=1) / 10
    table = contrast(decoding(fitted(cells), rates, monkeypatch), cells, *ARMS)
    np.testing.assert_allclose(table["log2_fold_change"], np.log2([1.5, 0.5, 0.25 / 0.3]), rtol=1e-5)


def test_the_naive_contrast_is_that_of_normalised_counts(plain):
    table = contrast(plain, None, *ARMS, adjusted=False)
    treated = plain.cells.conditions[:, 0] == 1
    shares = plain.cells.counts_matrix().toarray() / plain.cells.library[:, None]
    np.testing.assert_allclose(table["mean_level"], shares[treated].mean(0), rtol=0.02)
    np.testing.assert_allclose(table["mean_reference"], shares[~treated].mean(0), rtol=0.02)
    decoded = plain.expression()[treated].mean(0)
    assert abs(decoded / shares[treated].mean(0) - 1).max() > 0.05


def test_a_seed_repeats_the_draws_and_leaves_the_callers_random_state(plain):
    before = torch.get_rng_state()
    first, again, other = (contrast(plain, None, *ARMS, seed=seed)["standard_error"] for seed in (1, 1, 2))
    assert (torch.get_rng_state() == before).all()
    assert (first == again).all()
    assert (first != other).all()


def test_the_propensity_is_the_share_of_the_treated_among_the_others_of_the_same_conditions(plain):
    table = overlap(plain, None, *ARMS)
    kinds = plain.cells.conditions[:, 1]
    for kind in (0, 1):
        for arm in (0, 1):
            own = table[(kinds == kind) & (table["treated"] == bool(arm))]
            np.testing.assert_allclose(own["propensity"], (SIZES[kind, 1] - arm) / 23)
    assert not table["alone"].any()


def test_cells_are_alone_where_the_latent_tells_the_treatment(plain, monkeypatch):
    told = np.stack([plain.cells.conditions[:, 0], np.random.default_rng(0).normal(size=48) / 10], axis=1)
    monkeypatch.setattr(type(plain), "posterior_samples", lambda *_, **__: told[None])
    assert overlap(plain, None, *ARMS, neighbours=3)["alone"].all()
    told[:, 0] = 0
    assert overlap(plain, None, *ARMS, neighbours=3)["alone"].mean() < 0.75


def test_a_type_that_was_never_treated_is_warned_of_where_it_is_averaged_over(plain):
    never = plain.cells.subset(np.flatnonzero((plain.cells.conditions != [1, 1]).any(1)))
    with pytest.warns(UserWarning, match="43% of the cells have no cell of the other arm near by"):
        contrast(plain, never, *ARMS)
    contrast(plain, never, *ARMS, population="treated")
    contrast(plain, never, *ARMS, adjusted=False)
    assert overlap(plain, never, *ARMS)["alone"].sum() == 18


def test_where_no_cell_has_its_like_the_decoder_alone_is_left(right):
    rows = np.flatnonzero(right.cells.conditions[:, 0] == right.cells.conditions[:, 1])
    with pytest.warns(UserWarning, match="100% of the cells"):
        table = contrast(right, right.cells.subset(rows), *ARMS, population="treated")
    assert table["log2_fold_change"].iloc[0] == pytest.approx(np.log2(0.8 / 0.6), rel=1e-5)


@pytest.mark.parametrize(
    ("arms", "options", "message"),
    [
        (("dose", "treated", "control"), {}, "'dose' is no registered condition: expected one of 'drug', 'type'"),
        (("drug", "stimulated", "control"), {}, "'stimulated' is no registered level of 'drug'"),
        (("drug", "control", "control"), {}, "expected two levels of 'drug' to compare, got 'control' twice"),
        (ARMS, {"population": "control"}, "expected population to be one of 'all', 'treated', got 'control'"),
        (ARMS, {"num_samples": 24}, "expected num_samples to be a whole number of at least 25, got 24"),
    ],
)
def test_what_can_not_be_contrasted_is_refused(plain, arms, options, message):
    with pytest.raises(ValueError, match=message):
        contrast(plain, None, *arms, **options)


def test_few_cells_or_no_neighbours_are_refused(plain):
    few = plain.cells.subset([*range(6), *range(24, 28)])
    with pytest.raises(ValueError, match="expected at least 5 cells of 'treated', got 0; pass more cells"):
        contrast(plain, few, *ARMS)
    with pytest.raises(ValueError, match="expected neighbours to be a whole number of at least one, got 0"):
        overlap(plain, None, *ARMS, neighbours=0)


SIMULATED = ("perturbation", "perturbation1", "control")


def rmse(table, truth):
    return np.sqrt(((table["log2_fold_change"] - truth) ** 2).mean())


def effects(truth, rows):
    """Log2 fold changes of the mean expression of cells, had all of them been treated or none."""
    treated, control = (truth.proportions_under(perturbation=arm)[rows].mean(0) for arm in SIMULATED[1:])
    return np.log2(treated / control)


def simulated(seed, **options):
    perturbations = glp.data.Perturbations(number=1, num_genes=15)
    return glp.data.simulate(
        2400, 60, types=glp.data.CellTypes(separation=1.5), perturbations=perturbations, seed=seed, **options
    )


def mixture(cells):
    """A VAE with a mixture prior, which is blind to the types but may find them."""
    condition = glp.OneHot([len(item.levels) for item in cells.registration.conditions])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = glp.VAE(
            prior=glp.MixtureOfNormals(5),
            decoder=glp.MLP(5, [64], condition_dim=condition.output_dim),
            likelihood=glp.NegativeBinomialLikelihood(64, 60),
            encoder=glp.NormalEncoder(60, 5, [64], condition=condition),
            condition=condition,
        )
    vae.initialise(cells.take(range(1000)))
    return vae


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False], ids=["type registered", "type hidden"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_effect_of_a_confounded_treatment_is_recovered_by_intervening_alone(seed, known):
    adata, truth = simulated(seed)
    kept = confound(adata, "perturbation", "perturbation1", "cell_type", odds=16, seed=seed)
    expected = effects(truth, adata.obs_names.get_indexer(kept.obs_names))
    cells = glp.register(kept, conditions=["perturbation", "cell_type"] if known else ["perturbation"])
    vae = glp.CVAE_NB.from_registration(cells, latent_dim=5, hidden_dims=[64], dropout=0.1) if known else mixture(cells)
    fit = glp.fit(vae, cells, max_epochs=80, progress=False)
    adjusted, naive = (contrast(fit, None, *SIMULATED, adjusted=adjusted) for adjusted in (True, False))
    assert rmse(adjusted, expected) < 0.2
    assert rmse(naive, expected) > max(0.4, 3 * rmse(adjusted, expected))
    held = [((table["low"] < expected) & (expected < table["high"])).mean() for table in (adjusted, naive)]
    assert held[0] > 0.65 > 0.4 > held[1]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_confounder_that_goes_with_the_treatment_makes_both_wrong_and_nothing_warns(seed):
    adata, truth = simulated(seed, num_batches=2, batch_scale=0.6)
    rows = np.flatnonzero((adata.obs["perturbation"] == "perturbation1") == (adata.obs["batch"] == "batch1"))
    expected, kept = effects(truth, rows), adata[rows].copy()
    hidden = glp.register(kept, conditions=["perturbation", "cell_type"])
    options = {"latent_dim": 5, "hidden_dims": [64], "dropout": 0.1}
    fit = glp.fit(glp.CVAE_NB.from_registration(hidden, **options), hidden, max_epochs=40, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adjusted, naive = (contrast(fit, None, *SIMULATED, adjusted=adjusted) for adjusted in (True, False))
    assert min(rmse(adjusted, expected), rmse(naive, expected)) > 0.4
    assert overlap(fit, None, *SIMULATED)["alone"].mean() < 0.05
    # Where it is registered, no cell has its like in the other arm.
    known = glp.register(kept, conditions=["perturbation", "batch"])
    fit = glp.fit(glp.CVAE_NB.from_registration(known, **options), known, max_epochs=1, progress=False)
    with pytest.warns(UserWarning, match="100% of the cells have no cell of the other arm near by"):
        contrast(fit, None, *SIMULATED)
