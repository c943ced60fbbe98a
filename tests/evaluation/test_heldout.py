"""Estimates over cells, and paired comparisons of fits."""

import numpy as np
import pytest
import torch

from genailab_pyro import CVAE, CVAE_NB, CVAE_ZINB, VAE_NB, compare_models, data, fit, register
from genailab_pyro.evaluation import Estimate


@pytest.fixture(scope="module")
def adata():
    return data.simulate(240, 20, num_batches=2, seed=0).adata


@pytest.fixture(scope="module")
def split(adata):
    return register(adata, conditions=["batch"]).split(0.3, seed=0)


def trained(cls, cells, **options):
    vae = cls.from_registration(cells, latent_dim=2, hidden_dims=[16], **options)
    return fit(vae, cells, max_epochs=8, minibatch_size=32, learning_rate=0.01, progress=False)


@pytest.fixture(scope="module")
def fits(split):
    train, _ = split
    return {"nb": trained(CVAE_NB, train), "zinb": trained(CVAE_ZINB, train), "other": trained(CVAE_NB, train, seed=1)}


@pytest.fixture(scope="module")
def table(fits, split):
    return compare_models(fits, split[1], num_particles=20)


class TestEstimate:
    def test_mean_and_standard_error(self):
        estimate = Estimate.of(np.array([1.0, 2.0, 3.0, 6.0]))
        assert estimate.mean == 3
        assert estimate.standard_error == pytest.approx(np.sqrt((4 + 1 + 0 + 9) / 3 / 4))
        assert str(estimate) == "3.00 ± 1.08"

    def test_one_cell_has_no_standard_error(self):
        estimate = Estimate.of(np.array([4.0]))
        assert estimate.mean == 4
        assert np.isnan(estimate.standard_error)

    def test_the_interval_of_two_errors_covers_the_mean_of_the_cells(self):
        rng = np.random.default_rng(0)
        covered = []
        for _ in range(400):
            estimate = Estimate.of(rng.normal(5, 3, 50))
            covered.append(abs(estimate.mean - 5) < 1.96 * estimate.standard_error)
        assert 0.9 < np.mean(covered) < 0.98


class TestCompareModels:
    def test_a_row_is_the_fits_own_score(self, table, fits, split):
        bound, elbo = (
            fits["zinb"].log_likelihood(split[1], num_particles=20, seed=0),
            fits["zinb"].elbo(split[1], seed=0),
        )
        row = table.loc["zinb"]
        assert row["log_likelihood"] == pytest.approx(bound.mean())
        assert row["log_likelihood_standard_error"] == pytest.approx(bound.std(ddof=1) / np.sqrt(len(bound)))
        assert row["elbo"] == pytest.approx(elbo.mean())
        assert row["elbo_standard_error"] == pytest.approx(elbo.std(ddof=1) / np.sqrt(len(elbo)))

    def test_the_best_comes_first_and_differs_from_itself_by_nothing(self, table):
        assert list(table["log_likelihood"]) == sorted(table["log_likelihood"], reverse=True)
        assert table["difference"].iloc[0] == table["difference_standard_error"].iloc[0] == 0
        differences = table["log_likelihood"] - table["log_likelihood"].iloc[0]
        np.testing.assert_allclose(table["difference"], differences, atol=1e-9)

    def test_the_paired_error_is_far_below_the_unpaired(self, table):
        worse = table.iloc[1:]
        unpaired = np.hypot(worse["log_likelihood_standard_error"], table["log_likelihood_standard_error"].iloc[0])
        assert (worse["difference_standard_error"] < unpaired / 3).all()
        assert (worse["difference_standard_error"] > 0).all()

    def test_the_bound_is_above_the_elbo(self, table):
        assert (table["log_likelihood"] > table["elbo"]).all()

    def test_an_anndata_is_bound_and_a_list_of_fits_numbered(self, fits, adata):
        held = adata[:30]
        table = compare_models([fits["nb"], fits["zinb"]], held, num_particles=5)
        assert set(table.index) == {"model 1", "model 2"}
        genes = np.random.default_rng(0).permutation(adata.n_vars)
        again = compare_models([fits["nb"], fits["zinb"]], held[:, genes].copy(), num_particles=5)
        np.testing.assert_allclose(again["log_likelihood"], table["log_likelihood"])

    def test_the_random_state_is_left_as_it_was(self, fits, split):
        state = torch.get_rng_state()
        compare_models([fits["nb"], fits["zinb"]], split[1], num_particles=2)
        assert torch.equal(torch.get_rng_state(), state)

    def test_one_fit_is_nothing_to_compare(self, fits, split):
        with pytest.raises(ValueError, match="expected at least two fits to compare, got 1"):
            compare_models({"nb": fits["nb"]}, split[1])

    def test_counts_and_log_normalised_values_are_refused(self, fits, split):
        normal = trained(CVAE, split[0])
        with pytest.raises(
            ValueError,
            match=r"same values, got \{'nb': 'counts given the library', 'normal': 'log1p.*leave one kind out",
        ):
            compare_models({"nb": fits["nb"], "normal": normal}, split[1])

    def test_log_values_normalised_in_two_ways_are_refused(self, split, adata):
        factors = adata.copy()
        factors.obs["factor"] = np.linspace(0.5, 2, adata.n_obs)
        cells = register(factors, conditions=["batch"], size_factor="factor")
        with pytest.raises(ValueError, match="expected models over the same values"):
            compare_models([trained(CVAE, split[0]), trained(CVAE, cells)], factors)

    def test_other_genes_are_refused(self, fits, adata):
        fewer = trained(CVAE_NB, register(adata[:, :15].copy(), conditions=["batch"]))
        with pytest.raises(ValueError, match="expected models over the same genes, got different ones"):
            compare_models([fits["nb"], fewer], adata)


def test_a_latent_library_is_not_compared_with_an_observed_one():
    adata = data.simulate(60, 20, seed=1).adata
    cells = register(adata)
    fits = {
        library: fit(
            VAE_NB.from_registration(cells, hidden_dims=[8], library=library), cells, max_epochs=1, progress=False
        )
        for library in ("observed", "latent")
    }
    with pytest.raises(ValueError, match=r"'observed': 'counts given the library', 'latent': 'counts'.*leave"):
        compare_models(fits, adata, num_particles=2)
