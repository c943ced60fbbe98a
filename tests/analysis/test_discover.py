"""Clusters in the latent space, their stability, and cells that are new."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, roc_auc_score

import genailab_pyro as glp
from genailab_pyro.analysis.discover import ClusterStability, cluster_stability, discover, latent_sd, novelty
from genailab_pyro.data.simulate import CellTypes, LibrarySizes


def islands(cells=40, kinds=3, seed=0):
    rng = np.random.default_rng(seed)
    return np.repeat(12 * np.eye(kinds), cells, axis=0) + rng.normal(size=(cells * kinds, kinds))


@pytest.fixture(scope="module")
def adata():
    return glp.data.simulate(300, 60, 3, types=CellTypes(separation=1.5), seed=3).adata


@pytest.fixture(scope="module")
def fit(adata):
    cells = glp.register(adata)
    vae = glp.CVAE_NB.from_registration(cells, latent_dim=4, hidden_dims=[32])
    return glp.fit(vae, cells, max_epochs=20, progress=False)


class TestDiscover:
    @pytest.fixture(scope="class")
    def found(self, fit, adata):
        return discover(fit, adata, umap=False)

    def test_everything_is_in_scanpys_slots_of_a_copy(self, found, fit, adata):
        assert set(adata.obsm) == set() == set(adata.uns) - {"simulation"}
        np.testing.assert_array_equal(found.obsm["X_vae"], fit.latent(adata))
        assert found.uns["neighbors"]["params"]["use_rep"] == "X_vae"
        assert set(found.obsp) == {"distances", "connectivities"}
        assert isinstance(found.obs["leiden"].dtype, pd.CategoricalDtype)
        assert found.layers["expression"].shape == adata.shape

    def test_few_clusters_are_the_types(self, fit, adata):
        coarse = discover(fit, adata, umap=False, resolution=0.2)
        assert adjusted_rand_score(coarse.obs["cell_type"], coarse.obs["leiden"]) > 0.9

    def test_a_higher_resolution_gives_more_clusters(self, found, fit, adata):
        finer = discover(fit, adata, umap=False, resolution=4.0)
        assert finer.obs["leiden"].nunique() > found.obs["leiden"].nunique()

    def test_the_latent_goes_where_it_is_asked_to(self, fit, adata):
        few = discover(fit, adata[:60], key="X_new", num_neighbours=5, tsne=True)
        assert {"X_new", "X_new_sd", "X_umap", "X_tsne"} == set(few.obsm)
        assert few.obsm["X_umap"].shape == few.obsm["X_tsne"].shape == (60, 2)

    def test_the_same_seed_gives_the_same_and_the_callers_state_stays(self, found, fit, adata):
        torch.manual_seed(3)
        state = torch.random.get_rng_state()
        assert discover(fit, adata, umap=False).obs["leiden"].equals(found.obs["leiden"])
        assert torch.equal(torch.random.get_rng_state(), state)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"resolution": 0}, "expected resolution to be finite and above 0, got 0"),
            ({"num_neighbours": 300}, "expected num_neighbours to be a whole number from 2 to 299.*got 300"),
            ({"num_neighbours": 1}, "got 1"),
        ],
    )
    def test_numbers_out_of_range_are_refused(self, options, message, fit, adata):
        with pytest.raises(ValueError, match=message):
            discover(fit, adata, **options)


def test_the_latents_deviation_is_the_encoders(fit):
    cells = fit.cells.subset(range(30))
    with torch.no_grad():
        scale = fit.vae.encoder(cells.take(range(30))).base_dist.scale.numpy()
    found = latent_sd(fit, cells, num_samples=2000)
    # The deviation of n normal draws scatters by 1 / sqrt(2 n) of itself.
    errors = scale / np.sqrt(2 * 2000)
    assert (np.abs(found - scale) < 5 * errors).all()
    assert (np.abs(found - scale**2) > 5 * errors).any()
    with pytest.raises(ValueError, match="expected num_samples to be a whole number of at least 2, got 1"):
        latent_sd(fit, cells, num_samples=1)


class TestStability:
    def test_agreement_by_hand(self):
        runs = pd.DataFrame({"a": [*"xxxyyy"], "b": [*"ppqqqq"], "c": [*"uuuvvv"]}, index=[*"123456"])
        found = ClusterStability.of(runs)
        # Cell 3 is with {1, 2, 3} in a and c, and with {3, 4, 5, 6} in b: one in common, of at most four.
        shares = np.array([2 / 3, 2 / 3, 1 / 4, 3 / 4, 3 / 4, 3 / 4])
        np.testing.assert_allclose(found.uncertainty, 1 - (2 * shares + 1) / 3)
        assert [*found.uncertainty.index] == [*"123456"]
        assert found.ari.loc["a", "c"] == 1
        assert found.ari.loc["a", "b"] == adjusted_rand_score(runs["a"], runs["b"]) == found.ari.loc["b", "a"]
        assert found.mean_ari == pytest.approx((1 + 2 * found.ari.loc["a", "b"]) / 3)

    def test_the_names_of_clusters_do_not_matter(self):
        runs = pd.DataFrame({"a": [*"xxyyz"], "b": [*"zzxxy"]})
        found = ClusterStability.of(runs)
        assert found.mean_ari == 1
        assert not found.uncertainty.any()

    def test_a_cell_between_two_islands_is_uncertain(self):
        latents = [islands(seed=seed) for seed in range(3)]
        for run, latent in enumerate(latents):
            latent[0] = 12 * np.eye(3)[run]
        found = cluster_stability(latents, resolution=0.2)
        assert found.mean_ari > 0.9
        assert found.uncertainty.idxmax() == 0
        assert found.uncertainty[0] > 0.9
        assert found.uncertainty[1:].max() < 0.2

    def test_noise_has_no_stable_clusters(self):
        rng = np.random.default_rng(0)
        found = cluster_stability([rng.normal(size=(150, 3)) for _ in range(2)])
        assert abs(found.mean_ari) < 0.1
        assert found.uncertainty.mean() > 0.7

    def test_fits_are_asked_for_their_latents(self, fit, adata):
        found = cluster_stability({"first": fit, "again": fit.latent()}, adata)
        assert [*found.clusters.index] == [*adata.obs_names]
        assert [*found.ari.columns] == ["first", "again"]
        assert found.mean_ari == 1

    def test_one_run_and_other_cells_are_refused(self, fit, adata):
        with pytest.raises(ValueError, match="expected at least two runs to compare, got 1"):
            cluster_stability([fit])
        with pytest.raises(ValueError, match=r"expected runs over the same cells, got \{'run 1': 300, 'run 2': 120\}"):
            cluster_stability([fit, islands()])
        with pytest.raises(ValueError, match="expected at least two runs to compare, got 1"):
            ClusterStability.of(pd.DataFrame({"a": [0, 1]}))


class TestNovelty:
    """A fourth type that the model has not seen; libraries differ much."""

    @pytest.fixture(scope="class")
    def simulation(self):
        return glp.data.simulate(1100, 80, 4, library=LibrarySizes(median=1500, scale=0.6), seed=5)

    @pytest.fixture(scope="class")
    def parts(self, simulation):
        """Training, reference and test cells of three types, and the cells of the fourth."""
        adata = simulation.adata
        new = (adata.obs["cell_type"] == "type3").to_numpy()
        known = np.random.default_rng(0).permutation(np.flatnonzero(~new))
        return [adata[np.sort(rows)].copy() for rows in (*np.array_split(known, 3), np.flatnonzero(new))]

    @pytest.fixture(scope="class")
    def fit(self, parts):
        cells = glp.register(parts[0])
        vae = glp.CVAE_NB.from_registration(cells, latent_dim=4, hidden_dims=[32])
        return glp.fit(vae, cells, max_epochs=40, progress=False)

    @pytest.fixture(scope="class")
    def scores(self, fit, parts):
        return [novelty(fit, part, parts[1], num_particles=20) for part in parts[2:]]

    def area(self, known, new):
        return roc_auc_score(np.repeat([0, 1], [len(known), len(new)]), np.concatenate([known, new]))

    def test_an_unseen_type_is_new_and_not_by_its_depth(self, scores, parts):
        found = self.area(*(score["score"] for score in scores))
        depth = self.area(*(part.obs["total_counts"] for part in parts[2:]))
        raw = self.area(*(-score["log_likelihood"] for score in scores))
        assert found > 0.95
        assert found > max(depth, 1 - depth) + 0.2
        assert found > raw + 0.1
        assert (scores[1]["p_value"] < 0.05).mean() > 0.8

    def test_known_types_are_uniform_at_any_depth(self, scores, parts):
        p = scores[0]["p_value"]
        for level in (0.05, 0.2, 0.5, 0.8):
            # Both the cells and the reference are samples.
            error = np.sqrt(level * (1 - level) * (1 / len(p) + 1 / parts[1].n_obs))
            assert abs((p <= level).mean() - level) < 5 * error
        depth = parts[2].obs["total_counts"].to_numpy()
        correlations = [np.corrcoef(np.log(depth), value)[0, 1] for value in (scores[0]["score"], p)]
        assert np.abs(correlations).max() < 0.2
        assert abs(np.corrcoef(np.log(depth), scores[0]["log_likelihood"])[0, 1]) > 0.8

    def test_the_rank_is_counted_among_the_reference(self, fit, parts):
        found = novelty(fit, parts[1], parts[1], num_particles=5)
        # Each cell is here its own nearest neighbour, so that the surprise decides.
        assert (found["distance"] < found["surprise"]).all()
        assert found["p_value"].min() >= 1 / (1 + parts[1].n_obs)
        assert (found["score"] == found[["surprise", "distance"]].max(axis=1)).all()
        np.testing.assert_allclose(found["log_likelihood"], fit.log_likelihood(parts[1], num_particles=5), rtol=1e-6)

    def test_validation_cells_are_the_reference_where_none_is_given(self, fit, parts):
        found = novelty(fit, parts[3], num_particles=5)
        assert found["p_value"].min() == 1 / (1 + round(0.1 * parts[0].n_obs))
        assert [*found.index] == [*parts[3].obs_names]

    def test_the_same_seed_gives_the_same_and_the_callers_state_stays(self, fit, parts):
        torch.manual_seed(3)
        state = torch.random.get_rng_state()
        first, again = (novelty(fit, parts[3][:20], parts[1], num_particles=2, seed=7) for _ in range(2))
        pd.testing.assert_frame_equal(first, again)
        assert torch.equal(torch.random.get_rng_state(), state)

    def test_too_few_reference_cells_are_refused(self, fit, parts, tmp_path):
        with pytest.raises(ValueError, match="expected at least 20 reference cells, got 19; pass more cells"):
            novelty(fit, parts[3], parts[1][:19])
        loaded = glp.load(fit.save(tmp_path / "fit"))
        with pytest.raises(ValueError, match="no validation cells at hand; pass reference="):
            novelty(loaded, parts[3])
