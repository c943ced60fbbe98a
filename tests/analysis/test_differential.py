"""Log fold changes of group means, their prior over the genes, and the calls."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from scipy.stats import norm

import genailab_pyro as glp
from genailab_pyro.analysis.differential import (
    ScaleMixture,
    _widening,
    differential_expression,
    expected_fdr,
    markers,
)
from genailab_pyro.data.simulate import CountNoise, LibrarySizes, Perturbations

GENES = 60


def fitted(adata, epochs=2, **registered):
    cells = glp.register(adata, **registered)
    vae = glp.CVAE_NB.from_registration(cells, latent_dim=3, hidden_dims=[16])
    return glp.fit(vae, cells, max_epochs=epochs, progress=False)


@pytest.fixture(scope="module")
def adata():
    return glp.data.simulate(240, GENES, 3, perturbations=Perturbations(1, 10, scale=1.0), seed=1).adata


@pytest.fixture(scope="module")
def fit(adata):
    return fitted(adata)


class TestScaleMixture:
    """The prior that the genes share."""

    def test_the_posterior_is_that_of_a_mixture_of_normals(self):
        prior = ScaleMixture(0.1, 0.0, np.array([0.7, 0.3]), np.array([0.0, 2.0]))
        estimates, errors = np.array([1.5, -0.2]), np.array([0.5, 1.0])
        found = prior.posterior(estimates, errors)
        null = 0.7 * norm.pdf(estimates, 0.1, errors)
        other = 0.3 * norm.pdf(estimates, 0.1, np.hypot(errors, 2.0))
        share = other / (null + other)
        kept = 4 / (4 + errors**2)
        loc, scale = 0.1 + kept * (estimates - 0.1), errors * np.sqrt(kept)
        np.testing.assert_allclose(found.mean, share * loc + (1 - share) * 0.1)
        second = share * (loc**2 + scale**2) + (1 - share) * 0.1**2
        np.testing.assert_allclose(found.sd, np.sqrt(second - found.mean**2))
        sides = np.array([norm.cdf((-0.5 - loc) / scale), norm.sf((0.5 - loc) / scale)])
        np.testing.assert_allclose(found.beyond(0.5), share * sides)

    def test_quantiles_are_where_the_distribution_function_says(self):
        prior = ScaleMixture(0.0, 0.02, np.array([0.4, 0.3, 0.3]), np.array([0.0, 0.5, 2.0]))
        rng = np.random.default_rng(0)
        found = prior.posterior(rng.normal(0, 2, 50), rng.uniform(0.1, 1, 50))
        for level in (0.025, 0.5, 0.975):
            np.testing.assert_allclose(found.cdf(found.quantile(level)), level, atol=1e-8)

    def drawn(self, seed=0, genes=4000):
        """Three in four effects at -.05, the others normal; estimates with errors of several sizes."""
        rng = np.random.default_rng(seed)
        effects = np.where(rng.random(genes) < 0.75, -0.05, rng.normal(-0.05, 1.5, genes))
        errors = rng.uniform(0.2, 0.6, genes)
        return effects, rng.normal(effects, errors), errors

    def test_the_centre_and_the_weight_of_the_null_are_found(self):
        _, estimates, errors = self.drawn()
        prior = ScaleMixture.learned(estimates, errors)
        assert abs(prior.centre + 0.05) < 5 * prior.centre_error
        assert prior.centre_error < 0.02
        assert prior.weights[prior.scales < 0.15].sum() == pytest.approx(0.75, abs=0.05)
        assert prior.weights.sum() == pytest.approx(1)

    def false_calls(self, shrink):
        """Share of calls that are false, less the expected share, in standard errors of the former."""
        effects, estimates, errors = self.drawn()
        errors = errors * shrink
        local = 1 - ScaleMixture.learned(estimates, errors).posterior(estimates, errors).beyond(0.25).max(0)
        called = expected_fdr(local) <= 0.05
        false = (effects * np.sign(estimates) <= 0.25)[called]
        return (false.mean() - local[called].mean()) / (false.std() / np.sqrt(called.sum()))

    def test_the_share_of_false_calls_is_the_expected_one(self):
        assert abs(self.false_calls(1.0)) < 5
        # Errors that are half as large as they should be are not.
        assert self.false_calls(0.5) > 5

    def covered(self, shrink):
        effects, estimates, errors = self.drawn()
        errors = errors * shrink
        found = ScaleMixture.learned(estimates, errors).posterior(estimates, errors)
        return ((found.quantile(0.025) <= effects) & (effects <= found.quantile(0.975))).mean()

    def test_intervals_hold_the_effects(self):
        error = np.sqrt(0.95 * 0.05 / 4000)
        assert abs(self.covered(1.0) - 0.95) < 5 * error
        assert self.covered(0.5) < 0.95 - 5 * error


def test_the_expected_rate_is_the_running_mean_of_the_local_ones():
    np.testing.assert_allclose(expected_fdr(np.array([0.3, 0.01, 0.2, 0.05])), [0.14, 0.01, 0.26 / 3, 0.03])


class TestGroupMeans:
    """Of a model that knows nothing of the groups: all cells are decoded alike."""

    @pytest.fixture(scope="class")
    def flat(self, adata):
        cells = glp.register(adata)
        vae = glp.CVAE_NB.from_registration(cells, latent_dim=2, hidden_dims=[8])
        flat = glp.fit(vae, cells, max_epochs=1, progress=False)
        with torch.no_grad():
            flat.vae.likelihood.log_expression.weight.zero_()
            flat.vae.likelihood.log_expression.bias.zero_()
        return flat

    @pytest.fixture(scope="class")
    def counted(self, adata):
        """Genes with enough counts for the delta method."""
        return np.asarray(adata.X.sum(0)).ravel() > 1000

    def by_hand(self, adata):
        """Log2 ratio of the pooled shares of counts, and its error by the delta method."""
        counts, library = adata.X.toarray(), np.asarray(adata.X.sum(1))
        logs, squares = [], []
        for level in ("perturbation1", "control"):
            chosen = (adata.obs["perturbation"] == level).to_numpy()
            share = counts[chosen].sum(0) / library[chosen].sum()
            logs.append(np.log2(share))
            residual = counts[chosen] - library[chosen] * share
            squares.append((residual**2).sum(0) / counts[chosen].sum(0) ** 2)
        return logs[0] - logs[1], np.sqrt(np.sum(squares, axis=0)) / np.log(2)

    def test_a_wrong_decoder_is_corrected_by_the_counts(self, flat, adata, counted):
        found = differential_expression(flat, adata, "perturbation", "perturbation1", "control", num_samples=400).loc[
            adata.var_names
        ]
        estimate, error = self.by_hand(adata)
        scores = ((found["estimate"] - estimate) / (error / np.sqrt(400)))[counted]
        assert np.abs(scores).max() < 5
        # The decoder alone says that no gene differs at all.
        assert np.abs(estimate / (error / np.sqrt(400)))[counted].max() > 50
        np.testing.assert_allclose(found["standard_error"][counted], error[counted], rtol=5 / np.sqrt(800))

    def test_means_are_shares_of_the_counts(self, flat, adata):
        found = differential_expression(flat, adata, "perturbation", "perturbation1")
        chosen = adata[(adata.obs["perturbation"] == "perturbation1").to_numpy(), found.index].X
        share = np.asarray(chosen.sum(0)).ravel() / chosen.sum()
        kept = np.asarray(chosen.sum(0)).ravel() > 400
        np.testing.assert_allclose(found["mean_group"][kept], share[kept], rtol=0.1)
        np.testing.assert_allclose(found["detected_group"], np.asarray((chosen > 0).mean(0)).ravel())


def confounded(seed=3):
    """Two batches of one population, and groups of which nine cells in ten are of one batch."""
    adata, truth = glp.data.simulate(
        600, GENES, 1, 2, batch_scale=0.8, library=LibrarySizes(median=4000), noise=CountNoise(20.0), seed=seed
    )
    same = np.random.default_rng(seed).random(600) < 0.9
    adata.obs["group"] = np.where(same == (truth.batches == 0), "a", "b")
    return adata


@pytest.mark.slow
def test_under_one_condition_its_effect_is_gone():
    adata = confounded()
    fit = fitted(adata, epochs=100, conditions=["batch"])
    observed = differential_expression(fit, adata, "group", "a", "b")
    moved = differential_expression(fit, adata, "group", "a", "b", conditions={"batch": "batch1"})
    assert observed["is_de"].sum() > GENES / 2
    assert moved["is_de"].sum() <= 1
    assert moved["estimate"].abs().mean() < observed["estimate"].abs().mean() / 5


def test_conditions_move_the_decoded_factor_alone():
    adata = confounded()[:200].copy()
    fit = fitted(adata, epochs=1, conditions=["batch"])
    with torch.no_grad():  # a decoder that no condition changes
        fit.vae.likelihood.log_expression.weight.zero_()
    same = differential_expression(fit, adata, "group", "a", "b", conditions={"batch": "batch1"})
    pd.testing.assert_frame_equal(same, differential_expression(fit, adata, "group", "a", "b"))


def test_errors_that_genes_share_are_widened():
    rng = np.random.default_rng(0)
    alone = torch.from_numpy(rng.normal(size=(400, 300)))
    # The mean of 300 squares scatters by the root of 2 / 300; its 90 % quantile is 1.28 of that above one.
    assert _widening(alone) == pytest.approx(np.sqrt(1 + 1.28 * np.sqrt(2 / 300)), abs=0.02)
    shared = alone + 2 * torch.from_numpy(rng.normal(size=(400, 1)))
    assert _widening(shared) > 1.3
    assert _widening(torch.ones(50, 1) * torch.tensor([-1.0, 1.0]).repeat(25)[:, None]) == pytest.approx(1.0, abs=0.02)


def test_halves_of_one_population_do_not_differ(adata, fit):
    halves = adata.copy()
    halves.obs["half"] = np.random.default_rng(0).choice(["a", "b"], adata.n_obs)
    found = differential_expression(fit, halves, "half", "a", "b")
    assert not found["is_de"].any()
    assert found["local_fdr"].min() > 0.2


def test_each_column_is_what_it_says(adata, fit):
    found = differential_expression(fit, adata, "perturbation", "perturbation1", "control", delta=0.3, fdr=0.1)
    assert set(found.index) == set(adata.var_names)
    assert (np.diff(found["local_fdr"]) >= 0).all()
    assert (found["local_fdr"] >= 1 - found["probability"] - 1e-9).all()
    np.testing.assert_allclose(found["expected_fdr"], found["local_fdr"].expanding().mean())
    assert ((found["expected_fdr"] <= 0.1) == found["is_de"]).all()
    assert found["is_de"].any()
    assert ((found["lfc_low"] <= found["lfc_mean"]) & (found["lfc_mean"] <= found["lfc_high"])).all()
    swapped = differential_expression(fit, adata, "perturbation", "control", "perturbation1", delta=0.3)
    swapped = swapped.loc[found.index]
    errors = np.hypot(found["standard_error"], swapped["standard_error"]) / 10
    assert (np.abs(found["estimate"] + swapped["estimate"]) < 5 * errors).all()


def test_the_rest_is_all_that_have_a_value(adata, fit):
    some = adata.copy()
    some.obs["kind"] = some.obs["cell_type"].astype(object)
    some.obs.loc[some.obs["cell_type"] == "type2", "kind"] = None
    rest = differential_expression(fit, some, "kind", "type0")
    named = differential_expression(fit, some, "kind", "type0", "type1")
    pd.testing.assert_frame_equal(rest, named)
    assert not rest.equals(differential_expression(fit, adata, "cell_type", "type0").loc[rest.index])


def test_the_same_seed_gives_the_same_and_the_callers_state_stays(adata, fit):
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    asked = {"groupby": "cell_type", "group": "type0", "num_samples": 25}
    first = differential_expression(fit, adata, **asked)
    pd.testing.assert_frame_equal(first, differential_expression(fit, None, **asked))
    assert not first.equals(differential_expression(fit, adata, **asked, seed=1))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_genes_without_counts_stay_unsure(fit, adata):
    silent = adata.copy()
    counts = silent.X.tolil()
    counts[:, 0] = 0
    silent.X = sparse.csr_matrix(counts)
    found = differential_expression(fit, silent, "cell_type", "type0").loc[adata.var_names[0]]
    assert found["standard_error"] > 2
    assert not found["is_de"]
    assert found["detected_group"] == found["detected_reference"] == 0


def test_a_marker_is_a_called_gene_of_the_group(adata, fit):
    found = markers(fit, adata, "cell_type", 5)
    for level, table in found.groupby("group"):
        alone = differential_expression(fit, adata, "cell_type", level)
        genes = table.index.get_level_values("gene")
        assert len(genes) <= 5
        assert table["is_de"].all()
        assert (table["lfc_mean"] > 0).all()
        assert (np.diff(table["lfc_low"]) <= 0).all()
        up = alone[alone["is_de"] & (alone["lfc_mean"] > 0)]
        assert set(genes) == set(up.nlargest(5, "lfc_low").index)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"groupby": "tissue"}, r"expected groupby to be a column of adata.obs, got 'tissue'; there are: 'cell_type'"),
        ({"group": "type9"}, r"expected group to be a level of 'cell_type', one of \['type0'.*got 'type9'"),
        ({"reference": "type9"}, "expected reference to be a level"),
        ({"reference": "type0"}, "expected two groups to compare, got 'type0' twice"),
        ({"delta": 0}, "expected delta to be a log2 fold change above 0, got 0"),
        ({"fdr": 1}, "expected fdr above 0 and below 1, got 1"),
        ({"num_samples": 5}, "expected num_samples to be a whole number of at least 25, got 5"),
        ({"conditions": {"batch": "b"}}, "condition"),
    ],
)
def test_what_cannot_be_compared_is_refused(asked, message, adata, fit):
    with pytest.raises(ValueError, match=message):
        differential_expression(fit, adata, **{"groupby": "cell_type", "group": "type0", **asked})


def test_groups_without_cells_are_refused(adata, fit):
    few = adata.copy()
    few.obs["kind"] = np.where(np.arange(few.n_obs) < 3, "a", "b")
    few.obs["none"] = None
    with pytest.raises(ValueError, match="expected at least 5 cells in a group, got 3 in a of 'kind'"):
        markers(fit, few, "kind")
    with pytest.raises(ValueError, match=r"expected cells with a value in adata.obs\['none'\], got none"):
        differential_expression(fit, few, "none", "a")
    with pytest.raises(ValueError, match="expected n to be a whole number of at least one, got 0"):
        markers(fit, few, "kind", 0)
    tensors = glp.Cells.from_tensors(few.X.toarray(), genes=[*few.var_names])
    with pytest.raises(ValueError, match="got 'kind'; there are: no AnnData"):
        differential_expression(fit, tensors, "kind", "a")


@pytest.mark.slow
def test_false_calls_stay_below_the_level_and_true_ones_are_found():
    shares, null, found = [], 0, []
    for seed in range(12):
        simulated, truth = glp.data.simulate(
            400,
            200,
            3,
            library=LibrarySizes(median=600, scale=0.4),
            noise=CountNoise(3.0),
            perturbations=Perturbations(1, 25, scale=1.0),
            seed=300 + seed,
        )
        simulated.obs["half"] = np.random.default_rng(seed).choice(["a", "b"], 400)
        fit = fitted(simulated, epochs=5)
        control, treated = (truth.proportions_under(perturbation=name).mean(0) for name in truth.perturbation_names)
        table = differential_expression(fit, simulated, "perturbation", "perturbation1", "control")
        change = pd.Series(np.log2(treated / control), simulated.var_names)[table.index]
        right = change * np.sign(table["lfc_mean"]) > 0.25
        called = table["is_de"]
        shares.append((called & ~right).sum() / max(called.sum(), 1))
        found.append((called & right).sum() / (change.abs() > 0.25).sum())
        null += differential_expression(fit, simulated, "half", "a", "b")["is_de"].sum()
    assert np.mean(shares) < 0.05 + np.std(shares) / np.sqrt(12)
    assert np.mean(found) > 0.6
    assert null <= 1
