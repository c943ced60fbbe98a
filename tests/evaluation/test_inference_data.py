"""What ArviZ is given is what the fit says, and its table is paired."""

import arviz as az
import numpy as np
import pytest
import torch

import genailab_pyro as glp
from genailab_pyro.evaluation.inference_data import compare_elpd, gene_checks, held_out_elpd, to_inference_data


@pytest.fixture(scope="module")
def halves():
    return glp.register(
        glp.data.simulate(160, 12, num_types=2, num_batches=2, seed=0).adata, conditions=["batch"]
    ).split(0.5)


@pytest.fixture(scope="module")
def fits(halves):
    train, _ = halves
    kinds = {"NB": glp.CVAE_NB, "ZINB": glp.CVAE_ZINB}
    return {
        name: glp.fit(
            kind.from_registration(train, latent_dim=2, hidden_dims=[16]), train, max_epochs=15, progress=False
        )
        for name, kind in kinds.items()
    }


def test_draws_counts_and_log_likelihoods_belong_together(fits, halves):
    fit, (_, test) = fits["NB"], halves
    data = to_inference_data(fit, test, num_samples=4, seed=3)
    assert set(data.groups()) == {
        "posterior",
        "posterior_predictive",
        "log_likelihood",
        "observed_data",
        "constant_data",
    }
    assert data.posterior["z"].dims == ("chain", "draw", "cell", "latent")
    assert data.posterior["z"].shape == (1, 4, 80, 2)
    assert data.posterior["cell"].to_numpy().tolist() == test.obs_names.tolist()
    assert data.posterior_predictive["gene"].to_numpy().tolist() == [*fit.registration.genes]
    np.testing.assert_array_equal(data.observed_data["x"], test.counts_matrix().toarray())
    minibatch = test.take(range(80))
    with torch.no_grad():
        z = torch.as_tensor(data.posterior["z"].to_numpy()[0])
        likelihood = fit.vae.likelihood(fit.vae.decode(z, minibatch), minibatch)
        expected = likelihood.log_prob(minibatch.counts).numpy()
    np.testing.assert_allclose(data.log_likelihood["x"].to_numpy()[0], expected, rtol=1e-4)
    counts = data.posterior_predictive["x"].to_numpy()
    assert (counts == np.rint(counts)).all()
    assert (counts >= 0).all()


def test_counts_are_drawn_given_the_draw_of_the_latent(fits, halves):
    """Their mean over draws is the mean of the likelihood, within five standard errors."""
    fit, (_, test) = fits["NB"], halves
    data = to_inference_data(fit, test, num_samples=300, seed=0)
    counts = data.posterior_predictive["x"].to_numpy()[0]
    minibatch = test.take(range(80))
    with torch.no_grad():
        z = torch.as_tensor(data.posterior["z"].to_numpy()[0])
        means = fit.vae.likelihood(fit.vae.decode(z, minibatch), minibatch).mean.numpy()
    errors = (counts - means).std(0, ddof=1) / 300**0.5
    scores = (counts.mean(0) - means.mean(0)) / np.maximum(errors, 1e-9)
    assert abs(scores.mean()) < 5 / scores.size**0.5
    shuffled = (counts.mean(0)[::-1] - means.mean(0)) / np.maximum(errors, 1e-9)  # of other cells
    assert scores.std() < 1.2 < shuffled.std()


def test_the_same_seed_gives_the_same_draws(fits, halves):
    state = torch.get_rng_state()
    one, other = (to_inference_data(fits["NB"], halves[1], num_samples=2, seed=5) for _ in range(2))
    assert one.posterior_predictive.equals(other.posterior_predictive)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", ["latent library", "two layers", "values"])
def test_every_latent_site_is_there(halves, kind):
    train, _ = halves
    kinds = {
        "latent library": (glp.CVAE_NB, {"library": "latent"}, {"z": 4, "library": 3}),
        "two layers": (glp.HierarchicalVAE, {"upper_dim": 1}, {"z": 4, "z2": 4}),
        "values": (glp.CVAE, {}, {"z": 4}),
    }
    build, options, expected = kinds[kind]
    vae = build.from_registration(train, latent_dim=2, hidden_dims=[8], **options)
    fit = glp.fit(vae, train, max_epochs=1, progress=False)
    data = to_inference_data(fit, num_samples=2)
    assert {name: values.ndim for name, values in data.posterior.data_vars.items()} == expected
    assert np.isfinite(data.log_likelihood["x"]).all()
    assert (data.posterior_predictive["x"] >= 0).all()


def test_it_goes_through_a_file_and_arvizs_summary(fits, halves, tmp_path):
    data = to_inference_data(fits["NB"], halves[1], num_samples=5)
    data.to_netcdf(tmp_path / "fit.nc")
    assert az.from_netcdf(tmp_path / "fit.nc").posterior.equals(data.posterior)
    assert len(az.summary(data, var_names=["z"], kind="stats")) == 160


def test_the_table_has_the_paired_errors_of_held_out_cells(fits, halves):
    _, test = halves
    table = compare_elpd(fits, test, num_particles=20)
    values = {name: fit.log_likelihood(test, num_particles=20).astype(float) for name, fit in fits.items()}
    best, other = table.index
    difference = values[best] - values[other]
    assert table.loc[best, "elpd_loo"] == pytest.approx(values[best].sum(), rel=1e-6)
    assert table.loc[other, "elpd_diff"] == pytest.approx(difference.sum(), rel=1e-4)
    assert table.loc[other, "dse"] == pytest.approx(len(difference) ** 0.5 * difference.std(), rel=0.02)
    unpaired = len(difference) ** 0.5 * np.hypot(*(values[name].std() for name in (best, other)))
    assert table.loc[other, "dse"] < unpaired / 2
    assert table["weight"].sum() == pytest.approx(1)
    assert held_out_elpd(fits[best], test, num_particles=20).loo_i.dims == ("cell",)


def test_what_does_not_compare_is_refused(fits, halves):
    with pytest.raises(ValueError, match="at least two fits"):
        compare_elpd({"one": fits["NB"]}, halves[1])
    values = glp.fit(glp.CVAE.from_registration(halves[0], latent_dim=2), halves[0], max_epochs=1, progress=False)
    with pytest.raises(ValueError, match="models over the same values"):
        compare_elpd({"counts": fits["NB"], "values": values}, halves[1])
    with pytest.raises(ValueError, match="num_samples"):
        to_inference_data(fits["NB"], num_samples=0)


class Doubled(glp.NegativeBinomialLikelihood):
    """Draws twice the counts that it should."""

    def to_counts(self, values, minibatch):
        return 2 * values


def test_checks_of_genes_find_a_model_that_draws_something_else(halves):
    train, _ = halves
    shares = {}
    for likelihood in (glp.NegativeBinomialLikelihood, Doubled):
        torch.manual_seed(0)
        parts = glp.StandardNormal(2), glp.MLP(2, [16]), likelihood(16, 12), glp.NormalEncoder(12, 2, [16])
        vae = glp.VAE(*parts)
        vae.initialise(train.take(range(80)))
        fit = glp.fit(vae, train, max_epochs=200, progress=False)
        checks = gene_checks(fit, num_replicates=60)
        assert checks.index.names == ["gene", "statistic"]
        assert len(checks) == 36
        inside = (checks["low"] <= checks["observed"]) & (checks["observed"] <= checks["high"])
        shares[likelihood] = inside.groupby("statistic").mean()
    assert shares[glp.NegativeBinomialLikelihood]["mean"] > 0.7
    assert shares[Doubled]["mean"] < 0.2
    with pytest.raises(ValueError, match="a level above 0"):
        gene_checks(fit, level=90)


def test_the_probability_of_a_check_by_hand(fits, halves):
    checks = gene_checks(fits["NB"], halves[1], num_replicates=30, seed=2)
    counts = to_inference_data(fits["NB"], halves[1], num_samples=30, seed=2).posterior_predictive["x"].to_numpy()[0]
    observed = halves[1].counts_matrix().toarray()
    gene = fits["NB"].registration.genes[4]
    replicated, seen = (counts[:, :, 4] == 0).mean(1), (observed[:, 4] == 0).mean()
    expected = (replicated > seen).mean() + 0.5 * (replicated == seen).mean()
    assert checks.loc[(gene, "zero_fraction"), "p_value"] == pytest.approx(expected)
