"""A treatment that was given at random comes to depend on a covariate, by the odds asked for, and on nothing else."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.special import logit

import genailab_pyro as glp
from genailab_pyro.data.confounding import confound


def randomised(covariate, share=0.5):
    """Cells of one count each, whose treatment is given at random."""
    treated = np.random.default_rng(1).random(len(covariate)) < share
    obs = pd.DataFrame(
        {"arm": np.where(treated, "treated", "control"), "covariate": covariate},
        index=[f"cell{place}" for place in range(len(covariate))],
    )
    return AnnData(np.ones((len(obs), 1), dtype=np.float32), obs=obs)


def log_odds(obs):
    """Log odds of being treated by covariate, and their standard errors."""
    table = pd.crosstab(obs["covariate"], obs["arm"])
    return np.log(table["treated"] / table["control"]), np.sqrt((1 / table).sum(axis=1))


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_the_odds_of_being_treated_differ_between_the_ends_by_the_factor_asked_for(share):
    adata = randomised(np.tile(["a", "b", "c"], 20_000), share)
    kept = confound(adata, "arm", "treated", "covariate", odds=9.0)
    found, error = log_odds(kept.obs)
    expected = logit(share) + np.log(9.0) * np.array([-0.5, 0.0, 0.5])
    assert (abs(found - expected) < 5 * error).all()
    assert not (abs(log_odds(adata.obs)[0] - expected) < 5 * error).all()
    assert not (abs(found - expected[::-1]) < 5 * error).all()


def test_half_of_the_cells_are_kept_and_the_mix_stays_where_half_were_treated():
    adata = randomised(np.repeat(["a", "b"], [30_000, 10_000]))
    kept = confound(adata, "arm", "treated", "covariate", odds=100.0)
    share, mix = kept.n_obs / adata.n_obs, (kept.obs["covariate"] == "a").mean()
    assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(adata.n_obs)
    assert abs(mix - 0.75) < 5 * np.sqrt(0.75 * 0.25 / kept.n_obs)


def test_a_number_confounds_by_its_ranks():
    values = np.exp(5 * np.random.default_rng(0).normal(size=40_000))
    kept = confound(randomised(values), "arm", "treated", "covariate", odds=16.0).obs
    ends = np.quantile(values, [0.05, 0.95])
    low, high = kept[kept["covariate"] < ends[0]], kept[kept["covariate"] > ends[1]]
    ratio = [np.log((part["arm"] == "treated").sum() / (part["arm"] == "control").sum()) for part in (low, high)]
    # The means of the scores of the two ends are -0.95 and 0.95.
    assert ratio[1] - ratio[0] == pytest.approx(0.95 * np.log(16.0), abs=5 * np.sqrt(2 / 180 + 2 / 820))


def test_the_cells_kept_find_their_truth_and_a_seed_repeats_them():
    adata, truth = glp.data.simulate(400, 20, perturbations=glp.data.Perturbations(number=2), seed=3)
    before = adata.obs.copy()
    kept, again, other = (
        confound(adata, "perturbation", "perturbation1", "cell_type", seed=seed) for seed in (0, 0, 1)
    )
    rows = adata.obs_names.get_indexer(kept.obs_names)
    assert np.array(truth.type_names)[truth.types[rows]].tolist() == kept.obs["cell_type"].tolist()
    assert kept.obs_names.equals(again.obs_names)
    assert not kept.obs_names.equals(other.obs_names)
    pd.testing.assert_frame_equal(adata.obs, before)
    assert not kept.is_view


@pytest.mark.parametrize(
    ("arguments", "odds", "message"),
    [
        (("drug", "treated", "covariate"), 4.0, "'drug' is no registered column of adata.obs"),
        (("arm", "treated", "type"), 4.0, "'type' is no registered column of adata.obs"),
        (("arm", "stimulated", "covariate"), 4.0, "'stimulated' is no registered level of 'arm'"),
        (("arm", "treated", "covariate"), 0.0, "expected odds above zero and finite, got 0.0"),
        (("arm", "treated", "constant"), 4.0, "expected 'constant' to differ between cells, got one value"),
        (("arm", "treated", "missing"), 4.0, "expected a value in every cell of 'missing', got 1 missing"),
    ],
)
def test_what_can_not_confound_is_refused(arguments, odds, message):
    adata = randomised(["a", "b"] * 10)
    adata.obs["constant"], adata.obs["missing"] = "a", [np.nan, *range(19)]
    with pytest.raises(ValueError, match=message):
        confound(adata, *arguments, odds=odds)
    with pytest.raises(TypeError, match="expected an AnnData, got DataFrame"):
        confound(adata.obs, *arguments, odds=odds)
