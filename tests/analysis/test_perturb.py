"""Counterfactuals answer to the condition set, compose, and are distributed as what was observed."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse

import genailab_pyro as glp
from genailab_pyro.analysis.perturb import _kept, dose_response, latent_invariance, library_response, predict
from genailab_pyro.distributions import NegativeBinomial
from genailab_pyro.model.alignment import LatentAlignment
from genailab_pyro.model.perturbation_vae import PerturbationVAE
from genailab_pyro.model.perturbations import PerturbationEncoding


@pytest.fixture(scope="module")
def adata():
    doses = glp.data.Perturbations(number=2, num_genes=10, scale=1.5, dose=glp.data.Doses())
    return glp.data.simulate(300, 40, num_types=2, perturbations=doses, seed=1).adata


@pytest.fixture(scope="module")
def fitted(adata):
    cells = glp.register(adata, conditions=["perturbation"], continuous=["dose"], labels="cell_type")
    torch.manual_seed(0)
    condition = PerturbationEncoding.from_registration(cells, "perturbation", dose="dose")
    vae = glp.CVAE_NB(40, 3, condition, [16])
    return glp.fit(vae, cells, max_epochs=15, progress=False)


def controls(adata):
    return adata[adata.obs["perturbation"] == "control"].copy()


def test_every_cell_keeps_its_place_and_carries_what_was_set(fitted, adata):
    cells = controls(adata)
    out = predict(fitted, cells, {"perturbation": "perturbation1"}, continuous={"dose": 2.0}, num_samples=3)
    assert [*out.obs_names] == [*cells.obs_names]
    assert [*out.var_names] == [*fitted.registration.genes]
    assert (out.obs["perturbation"] == "perturbation1").all()
    np.testing.assert_allclose(out.obs["dose"], 2.0, rtol=1e-5)
    assert (out.obs["cell_type"] == cells.obs["cell_type"]).all()
    assert (cells.obs["perturbation"] == "control").all()
    assert out.uns["do"] == {"perturbation": "perturbation1", "dose": 2.0}
    assert sparse.issparse(out.X)
    assert (out.X.data == np.rint(out.X.data)).all()


def test_expected_counts_are_at_each_cells_own_library(fitted, adata):
    cells = controls(adata)
    out = predict(fitted, cells, {"perturbation": "perturbation2"}, num_samples=3)
    np.testing.assert_allclose(out.layers["mean"].sum(1), cells.obs["total_counts"], rtol=1e-4)


def test_mean_and_deviation_are_those_over_posterior_draws(fitted, adata):
    cells = fitted.bind(controls(adata)).subset(range(5))
    do = {"perturbation": "perturbation1"}
    out = predict(fitted, cells, do, num_samples=400, seed=1)
    z = torch.as_tensor(fitted.posterior_samples(cells, num_samples=400, seed=2))
    other = cells.with_conditions(do).take(range(5))
    with torch.no_grad():
        draws = fitted.vae.likelihood.expression(fitted.vae.decode(z, other), other) * other.library[:, None]
    error = draws.std(0) / np.sqrt(200)  # of the difference of two means of 400 draws
    assert (np.abs(out.layers["mean"] - draws.mean(0).numpy()) < 5 * error.numpy()).all()
    assert not (np.abs(1.1 * out.layers["mean"] - draws.mean(0).numpy()) < 5 * error.numpy()).all()
    assert np.median(out.layers["sd"] / draws.std(0).numpy()) == pytest.approx(1, abs=0.05)


def test_to_set_the_observed_level_gives_the_posterior_predictive(fitted, adata):
    cells = controls(adata)
    out = predict(fitted, cells, {"perturbation": "control"}, num_samples=25)
    expected = fitted.expression(cells, num_samples=25) * cells.obs["total_counts"].to_numpy()[:, None]
    np.testing.assert_allclose(out.layers["mean"], expected, rtol=1e-4)
    assert same_mean(out.X.toarray(), expected)
    assert not same_mean(out.X.toarray(), expected[:, ::-1])


def same_mean(counts, expected):
    """Whether the mean over cells of each gene's counts is the one expected, within 5 standard errors and 2 %."""
    error = counts.std(0) / np.sqrt(len(counts))
    return (np.abs(counts.mean(0) - expected.mean(0)) < 5 * error + 0.02 * expected.mean(0)).all()


def test_with_its_noise_kept_a_cell_under_the_observed_level_is_the_one_observed(fitted, adata):
    cells = controls(adata)
    out = predict(fitted, cells, {"perturbation": "control"}, noise="kept")
    assert out.uns["noise"] == "kept"
    assert (out.X != cells.X).nnz == 0
    np.testing.assert_allclose(out.layers["mean"], cells.X.toarray(), rtol=1e-5)
    assert out.layers["sd"].max() < 1e-3


@pytest.mark.parametrize("theta", [0.7, np.inf])
@pytest.mark.parametrize("other", [0.5, 3.0, 8.0])
def test_counts_with_their_noise_kept_are_distributed_as_the_model_says(theta, other):
    number, log_theta = 40_000, torch.full((1,), float(theta), dtype=torch.float64).log()
    factual, twin = (
        NegativeBinomial(torch.full((1, number, 1), mean, dtype=torch.float64).log(), log_theta)
        for mean in (3.0, other)
    )
    torch.manual_seed(0)
    observed = factual.sample()[0]
    counts, expected = _kept(observed, factual, twin)
    variance = other + other**2 / theta
    assert moments_agree(counts, other, variance)
    assert not moments_agree(counts, 1.05 * other, variance)
    assert not moments_agree(observed if other != 3 else 2 * observed, other, variance)
    error = (counts - expected[0]).std() / np.sqrt(number)
    assert abs((counts - expected[0]).mean()) <= 5 * error
    # A molecule that is seen stays, unless the mean falls.
    assert (counts >= observed).all() if other >= 3 else (counts <= observed).all()


def moments_agree(counts, mean, variance):
    """Whether mean and variance are those given, within 5 standard errors."""
    counts = counts.numpy().ravel()
    centred = (counts - counts.mean()) ** 2
    size = np.sqrt(len(counts))
    near = abs(counts.mean() - mean) < 5 * counts.std() / size
    return near and abs(centred.mean() - variance) < 5 * centred.std() / size


@pytest.mark.parametrize("kind", [glp.CVAE_ZINB, glp.CVAE])
def test_a_likelihood_that_can_not_keep_its_noise_is_refused_and_draws_it(fitted, kind):
    fit = replace(fitted, vae=kind(40, 3, fitted.vae.condition, [16]).eval())
    out = predict(fit, fitted.cells, {"perturbation": "control"}, num_samples=2)
    assert (out.X.data == np.rint(out.X.data)).all()
    with pytest.raises(ValueError, match=r"to keep a cell's noise, got .*; pass noise='drawn'"):
        predict(fit, fitted.cells, {"perturbation": "control"}, noise="kept")


def test_the_dose_of_the_control_does_nothing(fitted, adata):
    cells = controls(adata)
    low, high = (predict(fitted, cells, {"perturbation": "control"}, continuous={"dose": dose}) for dose in (0.0, 9.0))
    np.testing.assert_array_equal(low.layers["mean"], high.layers["mean"])
    none = predict(fitted, cells, {"perturbation": "perturbation1"}, continuous={"dose": 0.0})
    np.testing.assert_array_equal(low.layers["mean"], none.layers["mean"])


def test_a_seed_repeats_the_draws_and_leaves_the_callers_random_state(fitted, adata):
    before = torch.get_rng_state()
    first, again, other = (predict(fitted, adata, {"perturbation": "control"}, seed=seed) for seed in (1, 1, 2))
    assert (torch.get_rng_state() == before).all()
    assert (first.X != again.X).nnz == 0
    assert (first.X != other.X).nnz > 0


def test_a_combination_that_no_cell_was_given_is_the_same_in_either_order(fitted, adata):
    cells = controls(adata)
    outs = [
        predict(fitted, cells, {"perturbation": level}, continuous={"dose": 5.0})
        for level in ("perturbation1+perturbation2", "perturbation2+perturbation1")
    ]
    np.testing.assert_allclose(outs[0].layers["mean"], outs[1].layers["mean"], rtol=1e-4)
    assert (outs[0].obs["perturbation"] == "perturbation1+perturbation2").all()
    assert fitted.registration.conditions[0].levels == ("control", "perturbation1", "perturbation2")


def test_a_saved_fit_predicts_the_same(fitted, adata, tmp_path):
    loaded = glp.load(fitted.save(tmp_path / "fit"))
    do = {"perturbation": "perturbation1+perturbation2"}
    one, other = (predict(fit, controls(adata), do, num_samples=2) for fit in (fitted, loaded))
    np.testing.assert_array_equal(one.layers["mean"], other.layers["mean"])


@pytest.mark.parametrize(
    ("do", "options", "message"),
    [
        ({}, {}, "expected something to be set, got nothing"),
        (None, {"continuous": {}}, "expected something to be set, got nothing"),
        ({"drug": "perturbation1"}, {}, "drug"),
        ({"perturbation": "perturbation9"}, {}, "to be composed of known perturbations, 'perturbation1', .*9"),
        ({"perturbation": "perturbation1+other"}, {}, "to be composed of known perturbations, .* got 'other'"),
        ({"perturbation": "control"}, {"continuous": {"mg": 1.0}}, "mg"),
        ({"perturbation": "control"}, {"num_samples": 1}, "expected at least two posterior draws"),
        ({"perturbation": "control"}, {"noise": "none"}, "expected noise to be one of 'drawn', 'kept', got 'none'"),
        ({"perturbation": "control"}, {"library_factor": 0.0}, "expected library_factor to be finite and above zero"),
    ],
)
def test_what_can_not_be_set_is_refused(fitted, adata, do, options, message):
    with pytest.raises(ValueError, match=message):
        predict(fitted, adata, do, **options)


def test_levels_are_those_registered_where_the_encoding_does_not_compose(adata):
    cells = glp.register(adata, conditions=["perturbation"])
    fit = glp.fit(glp.CVAE_NB.from_registration(cells, hidden_dims=[8]), cells, max_epochs=1, progress=False)
    with pytest.raises(ValueError, match="'perturbation' has no level 'perturbation1\\+perturbation2'"):
        predict(fit, adata, {"perturbation": "perturbation1+perturbation2"})


def test_a_level_without_an_inverse_dispersion_is_refused(fitted, adata):
    vae = glp.CVAE_NB(40, 3, fitted.vae.condition, [16], inverse_dispersion="gene-condition")
    with pytest.raises(ValueError, match="expected a level with an inverse dispersion of its own"):
        predict(replace(fitted, vae=vae), adata, {"perturbation": "perturbation1+perturbation2"})


@pytest.mark.parametrize("noise", ["kept", "drawn"])
def test_a_larger_library_is_shared_by_all_genes(fitted, adata, noise):
    cells, do = controls(adata), {"perturbation": "control"}
    out = predict(fitted, cells, do, noise=noise, library_factor=1.5, num_samples=400)
    plain = predict(fitted, cells, do, noise=noise, num_samples=400)
    ratio = out.layers["mean"].sum(0) / plain.layers["mean"].sum(0)
    np.testing.assert_allclose(ratio, 1.5, rtol=0.15 if noise == "kept" else 1e-4)
    assert (out.layers["mean"].sum() / plain.layers["mean"].sum()) == pytest.approx(1.5, rel=0.02)


def test_the_library_response_is_a_mean_over_contexts_that_have_both():
    counts = np.array([1, 2, 6, 100, 400, 7])[:, None] * np.array([1, 1])
    drugs, types = ["control", "control", "A", "control", "A", "A"], ["t", "t", "t", "u", "u", "v"]
    cells = glp.Cells.from_tensors(counts, conditions={"drug": drugs}, labels=types)
    expected = np.sqrt(6 / np.sqrt(2) * 4)
    assert library_response(cells, "drug", "A", context="label") == pytest.approx(expected, rel=1e-5)
    pooled = (6 * 400 * 7) ** (1 / 3) / (1 * 2 * 100) ** (1 / 3)
    assert library_response(cells, "drug", "A") == pytest.approx(pooled, rel=1e-5)
    with pytest.raises(ValueError, match="expected a context with cells of both 'A' and 'control'"):
        library_response(cells.subset([0, 1, 5]), "drug", "A", context="label")
    with pytest.raises(ValueError, match="B"):
        library_response(cells, "drug", "B")


def test_a_dose_response_is_that_of_the_counterfactuals(fitted, adata):
    cells, doses = controls(adata), [0.0, 1.0, 10.0]
    table = dose_response(fitted, cells, {"perturbation": "perturbation1"}, doses, num_samples=25)
    assert len(table) == 40 * 3
    assert (table["low"] <= table["high"]).all()
    library = np.exp(fitted.registration.library.loc)
    for dose, rows in table.groupby("dose"):
        expected = fitted.expression(
            cells, conditions={"perturbation": "perturbation1"}, continuous={"dose": dose}, num_samples=25
        )
        np.testing.assert_allclose(rows["mean"], library * expected.mean(0), rtol=1e-4)
    np.testing.assert_array_equal(table.loc[table["dose"] == 0, "log2_fold_change"], 0)
    one = dose_response(fitted, cells, {"perturbation": "perturbation1"}, doses, genes=["gene7"], num_samples=25)
    np.testing.assert_allclose(one["mean"], table.loc[table["gene"] == "gene7", "mean"], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"doses": []}, "expected at least one dose and one draw"),
        ({"interval": 1.0}, "expected an interval above 0 and below 1"),
        ({"genes": ["TP53"]}, "TP53"),
        ({"covariate": "mg"}, "mg"),
        ({"do": {"perturbation": "none"}}, "none"),
    ],
)
def test_a_dose_response_that_can_not_be_asked_is_refused(fitted, adata, options, message):
    arguments = {"do": {"perturbation": "perturbation1"}, "doses": [1.0]} | options
    with pytest.raises(ValueError, match=message):
        dose_response(fitted, adata, arguments.pop("do"), arguments.pop("doses"), **arguments)


def test_a_latent_is_invariant_where_it_tells_nothing_and_told_apart_where_it_does(fitted, monkeypatch):
    codes, types = fitted.cells.conditions[:, 0], fitted.cells.labels
    noise = np.random.default_rng(0).normal(size=(1, len(codes), 3))
    monkeypatch.setattr(type(fitted), "posterior_samples", lambda *_, **__: noise)
    free = latent_invariance(fitted, condition="perturbation", context="cell_type")
    np.testing.assert_allclose(free["chance"], 1 / 3)
    assert free["cells"].tolist() == np.bincount(types).tolist()
    # Each of some 150 cells is right by chance: a standard error of about 0.04.
    assert (free["balanced_accuracy"] - 1 / 3).abs().max() < 0.2
    told = noise + 4 * codes[:, None] * (types == 0)[:, None]
    monkeypatch.setattr(type(fitted), "posterior_samples", lambda *_, **__: told)
    found = latent_invariance(fitted, condition="perturbation", context="cell_type")["balanced_accuracy"]
    assert found.iloc[0] > 0.9
    assert found.iloc[1] < 0.55


def test_a_context_with_too_few_cells_has_no_accuracy(fitted):
    alone = fitted.cells.subset(np.flatnonzero(fitted.cells.conditions[:, 0] == 0))
    assert latent_invariance(fitted, alone, condition="perturbation")["balanced_accuracy"].isna().all()


@pytest.mark.parametrize("options", [{"condition": "drug"}, {"condition": "perturbation", "context": "type"}])
def test_invariance_to_what_is_not_registered_is_refused(fitted, options):
    with pytest.raises(ValueError, match=r"drug|type"):
        latent_invariance(fitted, **options)
    with pytest.raises(ValueError, match="expected at least two folds"):
        latent_invariance(fitted, condition="perturbation", folds=1)


@pytest.fixture(scope="module")
def truth():
    """Cells under the control, one of two perturbations or both: counts, and the effects that they were drawn from."""
    rng = np.random.default_rng(0)
    number, genes = 1600, 60
    latent, loadings = rng.normal(size=(number, 2)), rng.normal(size=(2, genes)) / 2
    effects = np.zeros((2, genes))
    effects[0, :12], effects[1, 8:20] = rng.choice([-1.5, 1.5], 12), rng.choice([-1.5, 1.5], 12)
    given = np.array([[0, 0], [1, 0], [0, 1], [1, 1]])[rng.integers(4, size=number)]
    weights = np.exp(rng.normal(size=genes) / 2 + latent @ loadings + given @ effects)
    mean = 2000 * weights / weights.sum(1, keepdims=True)
    counts = rng.poisson(mean * rng.gamma(5.0, 1 / 5.0, mean.shape))
    names = np.array(["control", "A", "B", "A+B"])[given @ [1, 2]]
    return AnnData(sparse.csr_matrix(counts, dtype=np.float32), obs=pd.DataFrame({"drug": names}, index=_names(number)))


def _names(number):
    return pd.Index([f"cell{place}" for place in range(number)])


@pytest.mark.slow
def test_a_combination_that_no_cell_was_given_is_predicted_better_than_by_the_mean_of_its_parts(truth):
    seen = truth[truth.obs["drug"] != "A+B"].copy()
    cells = glp.register(seen, conditions=["drug"])
    condition = PerturbationEncoding.from_registration(cells, "drug")
    vae = PerturbationVAE.from_registration(cells, condition, latent_dim=4, hidden_dims=[64], dropout=0.1)
    fit = glp.fit(vae, cells, penalties=[LatentAlignment(100.0)], max_epochs=60, progress=False)

    def normalised(adata):
        counts = adata.X.toarray()
        return np.log1p(1e4 * counts / counts.sum(1, keepdims=True)).mean(0)

    control, first, second, both = (
        normalised(truth[truth.obs["drug"] == level]) for level in ("control", "A", "B", "A+B")
    )
    out = predict(fit, truth[truth.obs["drug"] == "control"].copy(), {"drug": "A+B"})
    error = np.sqrt(((normalised(out) - both) ** 2).mean())
    mean_of_parts = np.sqrt((((first + second) / 2 - both) ** 2).mean())
    unchanged = np.sqrt(((control - both) ** 2).mean())
    assert error < 0.5 * mean_of_parts < 0.5 * unchanged


def test_cells_of_tensors_are_predicted_too():
    counts = np.random.default_rng(0).poisson(5.0, (30, 6))
    cells = glp.Cells.from_tensors(counts, conditions={"drug": ["control", "A", "B"] * 10})
    vae = PerturbationVAE.from_registration(cells, "drug", latent_dim=2, hidden_dims=[8])
    fit = glp.fit(vae, cells, max_epochs=1, progress=False)
    out = predict(fit, do={"drug": "A+B"}, num_samples=2)
    assert out.obs["drug"].tolist() == ["A+B"] * 30
    assert [*out.obs_names] == [str(place) for place in range(30)]
