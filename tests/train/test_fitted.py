"""The questions that a fit answers."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

import genailab_pyro as glp
from genailab_pyro.train import fitted as fitted_module

NUM_GENES = 20


def standard_errors(draws):
    return draws.std(0, ddof=1) / np.sqrt(len(draws))


@pytest.fixture(scope="module")
def with_library(cells, train):
    vae = glp.CVAE_NB.from_registration(cells, latent_dim=3, hidden_dims=[16], library="latent")
    return train(vae, cells, max_epochs=20, learning_rate=2e-2)


@pytest.fixture(scope="module")
def normal(cells, train):
    return train(glp.CVAE.from_registration(cells, latent_dim=3, hidden_dims=[16]), cells, max_epochs=10)


def test_latent_is_one_row_per_cell_and_always_the_same(fitted, adata):
    latent = fitted.latent()
    assert latent.shape == (120, 3)
    assert np.array_equal(latent, fitted.latent())
    assert np.array_equal(latent, fitted.latent(adata))
    np.testing.assert_allclose(fitted.latent(adata[40:50]), latent[40:50], rtol=1e-4, atol=1e-5)


def test_latent_is_the_encoders_mean(fitted, cells):
    with torch.no_grad():
        expected = fitted.vae.encoder(cells.take(range(120))).base_dist.loc
    np.testing.assert_allclose(fitted.latent(), expected, rtol=1e-6)


def test_genes_may_come_in_any_order_with_others_among_them(fitted, adata):
    order = np.random.default_rng(0).permutation(NUM_GENES)
    np.testing.assert_allclose(fitted.latent(adata[:, order].copy()), fitted.latent(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("site", ["z", "library"])
def test_posterior_samples_scatter_about_the_posterior_mean(with_library, cells, site):
    samples = with_library.posterior_samples(num_samples=400, site=site, seed=1).astype(np.float64)
    posterior = {
        "z": lambda minibatch: with_library.vae.encoder(minibatch),
        "library": lambda minibatch: with_library.vae.library.posterior(minibatch),
    }[site]
    with torch.no_grad():
        expected = posterior(cells.take(range(120)))
        mean, spread = expected.mean.numpy(), expected.variance.sqrt().numpy()
    assert samples.shape == (400, *mean.shape)
    assert (np.abs(samples.mean(0) - mean) < 5 * standard_errors(samples)).all()
    assert np.abs(samples.std(0) / spread - 1).mean() < 0.1
    if site == "z":
        np.testing.assert_allclose(mean, with_library.latent(), rtol=1e-5)


def test_a_seed_decides_every_draw(fitted):
    questions = {
        "posterior_samples": lambda seed: fitted.posterior_samples(num_samples=3, seed=seed),
        "expression": lambda seed: fitted.expression(num_samples=3, seed=seed),
        "generate": lambda seed: fitted.generate(30, seed=seed).X.toarray(),
        "elbo": lambda seed: fitted.elbo(num_particles=3, seed=seed),
        "log_likelihood": lambda seed: fitted.log_likelihood(num_particles=3, seed=seed),
        "terms": lambda seed: np.array(fitted.terms(num_particles=3, seed=seed).reconstruction),
        "diagnose": lambda seed: fitted.diagnose(num_particles=25, seed=seed).pareto_k,
    }
    for name, question in questions.items():
        first = question(1)
        torch.manual_seed(0)
        assert np.array_equal(first, question(1)), name
        assert not np.array_equal(first, question(2)), name


@pytest.mark.parametrize("which", ["fitted", "with_library", "normal"])
def test_expression_is_a_proportion_that_sums_to_one(request, which):
    expression = request.getfixturevalue(which).expression(num_samples=5)
    assert expression.shape == (120, NUM_GENES)
    assert (expression >= 0).all()
    if which != "normal":
        np.testing.assert_allclose(expression.sum(1), 1, rtol=1e-5)


def test_expression_is_averaged_over_the_posterior(fitted, cells):
    draws = np.stack([fitted.expression(num_samples=1, seed=seed) for seed in range(200)]).astype(np.float64)
    minibatch = cells.take(range(120))
    with torch.no_grad():
        features = fitted.vae.decode(fitted.vae.encoder(minibatch).mean, minibatch)
        of_the_mean = fitted.vae.likelihood.expression(features, minibatch).numpy()

    def errors_apart(expression):
        return np.sqrt((((expression - draws.mean(0)) / standard_errors(draws)) ** 2).mean())

    assert errors_apart(fitted.expression(num_samples=2000, seed=999)) < 1.5
    assert errors_apart(of_the_mean) > 2


def test_expression_follows_the_observed_proportions(fitted, cells):
    counts = cells.counts_matrix().toarray()
    observed = counts / counts.sum(1, keepdims=True)
    assert np.corrcoef(fitted.expression().ravel(), observed.ravel())[0, 1] > 0.7


def test_another_condition_changes_the_expression_of_its_cells_alone(fitted, cells):
    before = fitted.latent()
    plain = fitted.expression(num_samples=4, seed=3)
    swapped = fitted.expression(num_samples=4, seed=3, conditions={"batch": "batch1"})
    already = cells.conditions[:, 0] == 1
    assert 10 < already.sum() < 110
    np.testing.assert_allclose(swapped[already], plain[already], rtol=1e-6)
    assert (np.abs(swapped[~already] - plain[~already]).max(1) > 1e-4).all()
    np.testing.assert_allclose(swapped.sum(1), 1, rtol=1e-5)
    assert np.array_equal(fitted.latent(), before)


def test_cells_are_encoded_as_observed_and_decoded_as_asked(fitted, cells):
    observed, asked = (each.take(range(120)) for each in (cells, cells.with_conditions({"batch": "batch1"})))
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(3)
        z = fitted.vae.encoder(observed)(torch.Size([4]))
        expected = fitted.vae.likelihood.expression(fitted.vae.decode(z, asked), asked).mean(0)
    swapped = fitted.expression(num_samples=4, seed=3, conditions={"batch": "batch1"})
    np.testing.assert_allclose(swapped, expected, rtol=1e-5)


def test_another_covariate_changes_the_expression(adata, train):
    cells = glp.register(adata, conditions=["batch"], continuous=["dose"])
    vae = glp.CVAE_NB.from_registration(cells, latent_dim=3, hidden_dims=[16])
    fit = train(vae, cells)
    low, high = (fit.expression(continuous={"dose": dose}, num_samples=2) for dose in (0.0, 2.0))
    assert np.abs(low - high).max() > 1e-3
    assert np.array_equal(low, fit.expression(continuous={"dose": 0.0}, num_samples=2))
    generated = fit.generate(6, continuous={"dose": [0.0, 0.5, 1.0, 1.5, 2.0, 9.0]})
    assert generated.obs["dose"].tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 9.0]


def test_an_unknown_condition_is_answered_with_the_known(fitted):
    with pytest.raises(ValueError, match="'batch' has no level 'batch7': expected one of 'batch0', 'batch1'"):
        fitted.expression(conditions={"batch": "batch7"})
    with pytest.raises(ValueError, match="batsch"):
        fitted.expression(conditions={"batsch": "batch1"})
    with pytest.raises(ValueError, match="'batch7'"):
        fitted.generate(3, conditions={"batch": "batch7"})


@pytest.mark.parametrize("which", ["fitted", "with_library", "normal"])
def test_generated_cells_are_counts_of_the_registered_genes(request, which):
    fit = request.getfixturevalue(which)
    drawn = fit.generate(50, seed=2)
    counts = drawn.X.toarray()
    assert drawn.shape == (50, NUM_GENES)
    assert tuple(drawn.var_names) == fit.registration.genes
    assert (counts >= 0).all()
    assert np.array_equal(counts, np.round(counts))
    assert drawn.obs["batch"].cat.categories.tolist() == ["batch0", "batch1"]
    assert not np.array_equal(counts, fit.generate(50, seed=3).X.toarray())
    if which != "normal":
        library = drawn.obs["library"].to_numpy()
        ratio = counts.sum(1) / library
        assert abs(ratio.mean() - 1) < 5 * standard_errors(ratio)
        assert np.corrcoef(counts.sum(1), library)[0, 1] > 0.5  # it is the library that the counts were drawn with


def test_conditions_of_generated_cells_are_as_asked_or_as_frequent(fitted):
    levels = ["batch1", "batch0", "batch0"]
    assert fitted.generate(3, conditions={"batch": levels}).obs["batch"].tolist() == levels
    assert set(fitted.generate(5, conditions={"batch": "batch1"}).obs["batch"]) == {"batch1"}
    share = fitted.registration.conditions[0].frequencies[1]
    drawn = (fitted.generate(2000).obs["batch"] == "batch1").to_numpy(dtype=float)
    assert 0 < share < 1
    assert abs(drawn.mean() - share) < 5 * np.sqrt(share * (1 - share) / 2000)


@pytest.mark.parametrize("library", ["observed", "latent"])
def test_libraries_of_generated_cells_follow_their_level(train, library):
    sizes = glp.data.LibrarySizes(median=400.0, scale=0.2, batch_scale=1.0)
    drawn, _ = glp.data.simulate(80, NUM_GENES, num_batches=2, library=sizes, seed=3)
    cells = glp.register(drawn, conditions=["batch"])
    vae = glp.CVAE_NB.from_registration(cells, latent_dim=2, hidden_dims=[8], library=library)
    fit = train(vae, cells, max_epochs=1)
    moments = cells.registration.library.levels
    assert abs(moments[0][0] - moments[1][0]) > 0.5
    for level, (loc, scale) in zip(("batch0", "batch1"), moments, strict=True):
        logs = np.log(fit.generate(2000, conditions={"batch": level}, seed=4).obs["library"].to_numpy())
        assert abs(logs.mean() - loc) < 5 * scale / np.sqrt(2000)
        assert abs(logs.std() - scale) < 5 * scale / np.sqrt(2 * 2000)


def test_generated_counts_follow_the_model(fitted):
    """The mean proportions of generated cells are those of the prior's decoded means."""
    drawn = fitted.generate(3000, conditions={"batch": "batch0"}, seed=5)
    shares = drawn.X.toarray() / drawn.obs["library"].to_numpy()[:, None]
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        index = torch.arange(20_000)
        codes, covariates = torch.zeros(20_000, 1).long(), torch.zeros(20_000, 0)
        minibatch = glp.Minibatch(None, codes, covariates, torch.ones(20_000), index, 20_000)
        z = torch.randn(20_000, 3)
        expected = fitted.vae.likelihood.expression(fitted.vae.decode(z, minibatch), minibatch).numpy()
    error = np.sqrt(standard_errors(shares) ** 2 + standard_errors(expected.astype(np.float64)) ** 2)
    assert (np.abs(shares.mean(0) - expected.mean(0)) < 5 * error).all()


@pytest.mark.parametrize("which", ["fitted", "with_library", "normal"])
def test_the_likelihood_bound_is_above_the_elbo_of_the_same_draws(request, which):
    fit = request.getfixturevalue(which)
    elbo, bound = fit.elbo(num_particles=20, seed=1), fit.log_likelihood(num_particles=20, seed=1)
    assert elbo.shape == bound.shape == (120,)
    assert (bound > elbo).all()
    np.testing.assert_allclose(
        fit.elbo(num_particles=1, seed=1), fit.log_likelihood(num_particles=1, seed=1), rtol=1e-12
    )


def test_the_likelihood_bound_rises_with_particles(with_library):
    means = [
        np.array([with_library.log_likelihood(num_particles=number, seed=seed).mean() for seed in range(10)])
        for number in (1, 8, 64)
    ]
    for fewer, more in itertools.pairwise(means):
        error = np.hypot(standard_errors(fewer), standard_errors(more))
        assert more.mean() - fewer.mean() > 5 * error


@pytest.mark.parametrize("chunk", [fitted_module.CHUNK, NUM_GENES * 2])
def test_the_bounds_are_the_likelihood_where_the_guide_is_the_posterior(cells, monkeypatch, chunk):
    monkeypatch.setattr(fitted_module, "CHUNK", chunk)
    # A decoder that ignores the latent, and an encoder that says the prior: each weight is the evidence.
    vae = glp.VAE_NB.from_registration(cells, latent_dim=3, hidden_dims=[16])
    silence(vae)
    torch.nn.init.zeros_(vae.likelihood.log_expression.weight)
    fit = untrained(vae, cells)
    minibatch = cells.take(range(120))
    with torch.no_grad():
        exact = vae.likelihood(torch.zeros(120, 16), minibatch).log_prob(minibatch.counts).numpy()
    np.testing.assert_allclose(fit.log_likelihood(num_particles=5), exact, rtol=1e-5)
    np.testing.assert_allclose(fit.elbo(num_particles=5), exact, rtol=1e-5)
    assert fit.terms().reconstruction == pytest.approx(-exact.mean(), rel=1e-5)
    assert fit.terms().kl == pytest.approx(0, abs=1e-5)


def silence(vae):
    """Make the encoder say the prior, whatever it sees."""
    with torch.no_grad():
        for head in (vae.encoder.loc, vae.encoder.scale):
            head.weight.zero_()
            head.bias.zero_()
        vae.encoder.scale.bias.fill_(np.log(np.expm1(1 - 1e-4)))


def untrained(vae, cells):
    return glp.Fit(
        vae=vae.eval(),
        registration=cells.registration,
        history=pd.DataFrame(),
        estimator=glp.Estimator(),
        training=glp.Training(),
        seed=0,
        cells=cells,
    )


@pytest.mark.parametrize("chunk", [NUM_GENES * 50, NUM_GENES * 4])
def test_the_size_of_a_chunk_changes_nothing_but_the_draws(with_library, cells, monkeypatch, chunk):
    fit, some = with_library, cells.subset(range(8))
    questions = {
        "elbo": lambda seed: fit.elbo(some, num_particles=10, seed=seed),
        "bound": lambda seed: fit.log_likelihood(some, num_particles=10, seed=seed),
        "expression": lambda seed: fit.expression(some, num_samples=10, seed=seed),
        "samples": lambda seed: fit.posterior_samples(some, num_samples=10, seed=seed).mean(0),
        "reconstruction": lambda seed: np.array([fit.terms(some, seed=seed).reconstruction]),
    }

    def answers():
        return {name: np.stack([ask(seed) for seed in range(8)]) for name, ask in questions.items()}

    latent, large, kl = fit.latent(), answers(), fit.terms(some).kl
    monkeypatch.setattr(fitted_module, "CHUNK", chunk)
    small, again = answers(), answers()
    np.testing.assert_allclose(fit.latent(), latent, rtol=1e-4, atol=1e-5)
    assert fit.terms(some).kl == pytest.approx(kl, rel=1e-5)
    for name, values in large.items():
        assert np.array_equal(small[name], again[name]), name
        assert values.shape == small[name].shape
        error = np.hypot(standard_errors(values), standard_errors(small[name]))
        # A t of seven degrees of freedom has long tails: five errors for the mean, twelve for the largest.
        apart = np.abs(values.mean(0) - small[name].mean(0)) / error
        assert apart.max() < 12, name
        assert np.sqrt((apart**2).mean()) < 5, name


def test_terms_agree_with_the_elbo(fitted, with_library, normal):
    for fit in (fitted, with_library, normal):
        by_terms = np.array([fit.terms(num_particles=20, seed=seed).elbo for seed in range(10)])
        by_cell = np.array([fit.elbo(num_particles=20, seed=100 + seed).mean() for seed in range(10)])
        error = np.hypot(standard_errors(by_terms), standard_errors(by_cell))
        assert abs(by_terms.mean() - by_cell.mean()) < 5 * error


def test_terms_are_the_validation_terms_of_training(cells, vae, train):
    fit = train(vae, cells, max_epochs=1)
    _, validation = cells.split(0.2, seed=0)
    row = fit.history.iloc[0]
    terms = fit.terms(validation, num_particles=200)
    assert terms.kl == pytest.approx(row["validation_kl"], rel=1e-5)
    assert terms.reconstruction == pytest.approx(row["validation_reconstruction"], rel=0.02)


NUMBERS = {
    "posterior_samples": ("num_samples", lambda fit, number: fit.posterior_samples(num_samples=number)),
    "expression": ("num_samples", lambda fit, number: fit.expression(num_samples=number)),
    "elbo": ("num_particles", lambda fit, number: fit.elbo(num_particles=number)),
    "log_likelihood": ("num_particles", lambda fit, number: fit.log_likelihood(num_particles=number)),
    "terms": ("num_particles", lambda fit, number: fit.terms(num_particles=number)),
    "generate": ("of cells", lambda fit, number: fit.generate(number)),
}


@pytest.mark.parametrize("number", [0, -3, 2.5, True])
@pytest.mark.parametrize("question", NUMBERS)
def test_a_number_of_draws_is_a_whole_one(fitted, question, number):
    name, ask = NUMBERS[question]
    with pytest.raises(ValueError, match=f"{name}.*of at least one, got {number}"):
        ask(fitted, number)


@pytest.mark.parametrize("site", ["x", "cells", "particles", "library"])
def test_a_site_that_is_not_latent_is_answered_with_those_that_are(fitted, site):
    with pytest.raises(ValueError, match=rf"a latent site of the guide among \['z'\], got '{site}'"):
        fitted.posterior_samples(site=site, num_samples=2)


def test_other_data_than_cells_are_refused(fitted, adata, cells):
    with pytest.raises(TypeError, match="AnnData"):
        fitted.latent(adata.to_df())
    with pytest.raises(ValueError, match=r"registered with the genes and conditions of this fit.*registration\.bind"):
        fitted.latent(glp.register(adata))
    with pytest.raises(ValueError, match="gene3"):
        fitted.latent(adata[:, adata.var_names != "gene3"].copy())
    unseen = adata.copy()
    unseen.obs["batch"] = unseen.obs["batch"].cat.rename_categories({"batch1": "another"})
    with pytest.raises(ValueError, match="another"):
        fitted.latent(unseen)
    assert fitted.latent(cells.subset([3, 5])).shape == (2, 3)


def test_a_loaded_fit_without_data_says_so_in_one_line(fitted, tmp_path):
    loaded = glp.load(fitted.save(tmp_path / "fit"))
    for question in (loaded.latent, loaded.elbo, loaded.terms, loaded.diagnose, loaded.expression):
        with pytest.raises(ValueError, match=r"^expected cells, a loaded Fit holds none; pass an AnnData: .*\)$"):
            question()
    assert loaded.generate(2).n_obs == 2


def test_a_fit_cannot_be_changed_and_is_its_own(fitted):
    with pytest.raises(AttributeError):
        fitted.seed = 3
    assert fitted == fitted
    assert {fitted: 1}[fitted] == 1
    assert fitted != untrained(fitted.vae, fitted.cells)


def test_the_curves_are_drawn(fitted):
    assert len(fitted.plot().axes) >= 3


def test_quantiles_of_expression_are_those_of_its_draws(fitted):
    low, median, high = fitted.expression_quantiles(quantiles=[0.05, 0.5, 0.95], num_samples=400, seed=1)
    assert low.shape == (120, NUM_GENES)
    draws = np.stack([fitted.expression(num_samples=1, seed=seed) for seed in range(400)])
    assert ((low <= median) & (median <= high)).all()
    covered = ((low <= draws) & (draws <= high)).mean((0, 2))  # over draws and genes, of each cell
    assert abs(covered.mean() - 0.9) < 0.02
    assert np.corrcoef(np.log(median.ravel()), np.log(np.median(draws, 0).ravel()))[0, 1] > 0.99
    with pytest.raises(ValueError, match="quantiles from 0 to 1"):
        fitted.expression_quantiles(quantiles=[5, 95])
    with pytest.raises(ValueError, match="num_samples"):
        fitted.expression_quantiles(quantiles=[0.5], num_samples=0)
