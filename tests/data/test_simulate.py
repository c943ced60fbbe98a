import dataclasses

import anndata
import numpy as np
import pytest
from scipy import sparse

from genailab_pyro.data.simulate import (
    CellTypes,
    CountNoise,
    Doses,
    Hill,
    LibrarySizes,
    LogLinear,
    Perturbations,
    simulate,
)

LIMIT = 5.0
GIVEN_DOSES = Perturbations(2, 5, dose=Doses(levels=(0.5, 1.0, 4.0), response=Hill(half=1.0, slope=2.0)))


def draws(truth, number, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([truth.draw(rng).toarray() for _ in range(number)]).astype(np.float64)


def largest_score(values):
    """Largest distance of a gene's mean from zero, in standard errors; values [draws, cells, genes]."""
    flat = values.reshape(-1, values.shape[-1])
    return np.abs(flat.mean(axis=0) / (flat.std(axis=0) / np.sqrt(len(flat)))).max()


def probability_of_zero(truth, mean):
    theta, gate = truth.inverse_dispersion, truth.extra_zeros
    return gate + (1 - gate) * (theta / (theta + mean)) ** theta


def log_share(adata, truth, chosen):
    """Log of the mean share of each gene over some cells, and its standard error by the delta method."""
    shares = adata.X[np.flatnonzero(chosen)].toarray() / truth.library[chosen, None]
    mean = shares.mean(axis=0)
    return np.log(mean), shares.std(axis=0) / np.sqrt(chosen.sum()) / mean


def contrast_score(adata, truth, one, other, effect):
    """Distance of the observed log fold changes from a true effect, both centred, in standard errors."""
    (a, error_a), (b, error_b) = log_share(adata, truth, one), log_share(adata, truth, other)
    weight = 1 / (error_a**2 + error_b**2)
    gap = (a - b) - effect
    return np.abs((gap - np.average(gap, weights=weight)) * np.sqrt(weight)).max()


def test_the_same_seed_gives_the_same_counts_and_truth():
    options = {
        "num_batches": 2,
        "perturbations": GIVEN_DOSES,
        "noise": CountNoise(spread=0.5, gate_logits=-2.0),
    }
    first, again, other = (
        simulate(60, 30, seed=3, **options),
        simulate(60, 30, seed=3, **options),
        simulate(60, 30, seed=4, **options),
    )
    assert (first.adata.X != again.adata.X).nnz == 0
    assert first.adata.obs.equals(again.adata.obs)
    for field in dataclasses.fields(first.truth):
        np.testing.assert_equal(getattr(first.truth, field.name), getattr(again.truth, field.name))
    assert (first.adata.X != other.adata.X).nnz > 0


def test_the_global_random_state_is_left_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    simulate(10, 10)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_each_part_has_a_random_stream_of_its_own():
    plain = simulate(50, 20).truth
    other = simulate(
        50, 20, perturbations=Perturbations(), noise=CountNoise(9.0, spread=1.0), library=LibrarySizes(100)
    ).truth
    for name in ("types", "latent", "batches", "loadings", "log_baseline"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(other, name))


def test_what_the_anndata_says_is_what_the_truth_says():
    adata, truth = simulate(80, 25, 3, 2, perturbations=GIVEN_DOSES)
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.float32
    assert list(adata.obs.columns) == ["cell_type", "batch", "perturbation", "dose", "total_counts"]
    for column, codes, names in (
        ("cell_type", truth.types, truth.type_names),
        ("batch", truth.batches, truth.batch_names),
        ("perturbation", truth.perturbations, truth.perturbation_names),
    ):
        assert adata.obs[column].tolist() == [names[code] for code in codes]
    assert truth.perturbation_names == ("control", "perturbation1", "perturbation2")
    np.testing.assert_array_equal(adata.obs["dose"], truth.dose)
    np.testing.assert_array_equal(adata.obs["total_counts"], adata.X.toarray().sum(axis=1))
    shapes = {
        "latent": (80, 5),
        "loadings": (25, 5),
        "log_baseline": (25,),
        "type_latent": (3, 5),
        "batch_effects": (2, 25),
        "perturbation_effects": (3, 25),
        "type_responses": (3, 3),
        "library": (80,),
        "proportions": (80, 25),
        "mean": (80, 25),
        "inverse_dispersion": (25,),
        "gate_logits": (25,),
        "extra_zeros": (25,),
    }
    assert {name: getattr(truth, name).shape for name in shapes} == shapes


def test_columns_are_there_only_where_asked_for():
    assert list(simulate(10, 10).adata.obs.columns) == ["cell_type", "batch", "total_counts"]
    assert "dose" not in simulate(10, 10, perturbations=Perturbations()).adata.obs


def test_the_anndata_can_be_written_and_read(tmp_path):
    adata = simulate(20, 10, perturbations=GIVEN_DOSES).adata
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert (back.X != adata.X).nnz == 0
    assert back.obs.equals(adata.obs)


def test_proportions_are_the_softmax_of_the_declared_sum():
    _, truth = simulate(40, 15, 3, 2, perturbations=dataclasses.replace(GIVEN_DOSES, type_spread=0.5), seed=2)
    for n in range(40):
        logits = truth.log_baseline + truth.loadings @ truth.latent[n] + truth.batch_effects[truth.batches[n]]
        p, d = truth.perturbations[n], truth.dose[n]
        logits = logits + d**2 / (1 + d**2) * truth.type_responses[p, truth.types[n]] * truth.perturbation_effects[p]
        np.testing.assert_allclose(truth.proportions[n], np.exp(logits) / np.exp(logits).sum(), rtol=1e-9)
    np.testing.assert_allclose(truth.mean, truth.library[:, None] * truth.proportions, rtol=1e-12)


def test_counts_have_the_declared_mean_and_variance_and_zeros_and_no_others():
    gates = np.linspace(-4.0, 0.0, 20)
    noise = CountNoise(np.geomspace(0.5, 20, 20), gate_logits=gates)
    _, truth = simulate(40, 20, noise=noise, library=LibrarySizes(400.0), seed=1)
    x, mu, theta, gate = draws(truth, 400), truth.mean, truth.inverse_dispersion, truth.extra_zeros

    def scores(mu, theta, gate):
        mean = (1 - gate) * mu
        variance = (1 - gate) * (mu + mu**2 / theta) + gate * (1 - gate) * mu**2
        zero = gate + (1 - gate) * (theta / (theta + mu)) ** theta
        return (
            largest_score((x - mean) / np.sqrt(variance)),
            largest_score((x - mean) ** 2 / variance - 1),
            largest_score((x == 0) - zero),
        )

    assert max(scores(mu, theta, gate)) < LIMIT
    assert scores(1.05 * mu, theta, gate)[0] > LIMIT
    assert scores(mu, 1.3 * theta, gate)[1] > LIMIT
    assert scores(mu, theta, 1.2 * gate)[2] > LIMIT
    assert scores(mu, theta, 0 * gate)[2] > LIMIT


def test_without_extra_zeros_counts_are_negative_binomial():
    _, truth = simulate(40, 20, noise=CountNoise(2.0), library=LibrarySizes(300.0))
    x, mu = draws(truth, 300), truth.mean
    variance = mu + mu**2 / 2.0
    assert largest_score((x - mu) / np.sqrt(variance)) < LIMIT
    assert largest_score((x - mu) ** 2 / variance - 1) < LIMIT
    assert largest_score((x - mu) ** 2 / mu - 1) > LIMIT
    assert largest_score((x == 0) - probability_of_zero(truth, mu)) < LIMIT


def test_batch_effects_are_recovered_from_means():
    adata, truth = simulate(6000, 40, num_types=1, num_batches=3, types=CellTypes(spread=0.0), batch_scale=0.4, seed=5)
    np.testing.assert_allclose(truth.batch_effects.sum(axis=0), 0, atol=1e-12)
    one, other = truth.batches == 0, truth.batches == 2
    effect = truth.batch_effects[0] - truth.batch_effects[2]
    assert contrast_score(adata, truth, one, other, effect) < LIMIT
    assert contrast_score(adata, truth, one, other, -effect) > LIMIT
    assert contrast_score(adata, truth, one, other, 0.8 * effect) > LIMIT


def test_the_scale_of_batch_effects_is_as_declared():
    _, truth = simulate(10, 4000, num_batches=5, batch_scale=0.5)
    assert truth.batch_effects.std() == pytest.approx(0.5 * np.sqrt(4 / 5), rel=0.03)
    assert not simulate(10, 20, num_batches=1, batch_scale=0.5).truth.batch_effects.any()


def test_perturbation_effects_by_cell_type_are_recovered_from_means():
    adata, truth = simulate(
        12000,
        40,
        num_types=2,
        types=CellTypes(spread=0.0),
        perturbations=Perturbations(1, 8, type_spread=0.5),
        seed=1,
    )
    for k in range(2):
        one, other = (
            (truth.types == k) & (truth.perturbations == 1),
            (truth.types == k) & (truth.perturbations == 0),
        )
        effect = truth.type_responses[1, k] * truth.perturbation_effects[1]
        assert contrast_score(adata, truth, one, other, effect) < LIMIT
        assert (
            contrast_score(adata, truth, one, other, truth.type_responses[1, 1 - k] * truth.perturbation_effects[1])
            > LIMIT
        )


def test_the_dose_response_is_recovered_from_means():
    doses = Doses(levels=(0.3, 1.0, 3.0), response=Hill(half=1.0, slope=2.0))
    adata, truth = simulate(
        20000,
        40,
        num_types=1,
        types=CellTypes(spread=0.0),
        perturbations=Perturbations(1, 8, dose=doses),
        seed=1,
    )
    control = truth.perturbations == 0
    for dose, factor in ((0.3, 0.09 / 1.09), (1.0, 0.5), (3.0, 0.9)):
        effect = truth.perturbation_effects[1]
        assert contrast_score(adata, truth, truth.dose == dose, control, factor * effect) < LIMIT
        assert contrast_score(adata, truth, truth.dose == dose, control, (factor + 0.15) * effect) > LIMIT


def test_perturbations_change_as_many_genes_as_declared_by_the_declared_size():
    effects = simulate(10, 50, perturbations=Perturbations(4, 7, scale=2.0)).truth.perturbation_effects
    assert not effects[0].any()
    assert ((effects != 0).sum(axis=1) == [0, 7, 7, 7, 7]).all()
    sizes = np.abs(effects[effects != 0])
    assert sizes.min() >= 1.0
    assert sizes.max() <= 3.0
    assert (effects < 0).any()
    assert (effects > 0).any()


def test_controls_have_no_dose_and_others_one_in_the_declared_range():
    _, truth = simulate(500, 10, perturbations=Perturbations(1, 2, dose=Doses(0.2, 5.0)))
    given = truth.dose[truth.perturbations > 0]
    assert not truth.dose[truth.perturbations == 0].any()
    assert given.min() >= 0.2
    assert given.max() <= 5.0
    assert np.median(given) == pytest.approx(1.0, rel=0.3)


def test_hill_is_half_at_half_and_saturates():
    np.testing.assert_allclose(Hill(2.0, 3.0)(np.array([0.0, 2.0, 1e300])), [0.0, 0.5, 1.0])
    np.testing.assert_allclose(Hill(2.0, 3.0)(np.array([1.0])), [1 / 9])


def test_log_linear_is_one_at_the_reference():
    np.testing.assert_allclose(LogLinear(3.0)(np.array([0.0, 1.0, 3.0, 15.0])), [0.0, 0.5, 1.0, 2.0])


def test_the_same_cells_under_other_conditions():
    _, truth = simulate(60, 20, num_batches=2, perturbations=GIVEN_DOSES, seed=1)
    moved = truth.proportions_under(batch="batch1")
    np.testing.assert_allclose(moved[truth.batches == 1], truth.proportions[truth.batches == 1])
    assert not np.allclose(moved[truth.batches == 0], truth.proportions[truth.batches == 0])
    control = truth.proportions_under(perturbation="control")
    np.testing.assert_allclose(control[truth.perturbations == 0], truth.proportions[truth.perturbations == 0])
    np.testing.assert_allclose(truth.proportions_under(perturbation="perturbation2", dose=0.0), control)
    np.testing.assert_allclose(truth.proportions_under(dose=0.0), control)
    change = np.log(truth.proportions_under(perturbation="perturbation2", dose=1.0)) - np.log(control)
    effect = truth.perturbation_effects[2] / 2
    np.testing.assert_allclose(change - change[:, [0]], np.tile(effect - effect[0], (60, 1)), atol=1e-9)


def test_without_doses_a_perturbation_has_its_full_effect():
    _, truth = simulate(30, 20, perturbations=Perturbations(1, 5))
    change = np.log(
        truth.proportions_under(perturbation="perturbation1") / truth.proportions_under(perturbation="control")
    )
    effect = truth.perturbation_effects[1]
    np.testing.assert_allclose(change - change[:, [0]], np.tile(effect - effect[0], (30, 1)), atol=1e-9)
    with pytest.raises(ValueError, match="no doses were simulated"):
        truth.proportions_under(perturbation="perturbation1", dose=1.0)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"batch": "b"}, "unknown batch 'b'; simulated were: batch0"),
        ({"perturbation": "drug"}, "unknown perturbation 'drug'; simulated were: control, perturbation1"),
        ({"perturbation": "perturbation1"}, "name one, as in dose=1.0"),
        ({"dose": -1.0}, "dose should be zero or above"),
    ],
)
def test_an_unknown_condition_is_named(condition, message):
    with pytest.raises(ValueError, match=message):
        simulate(10, 10, perturbations=GIVEN_DOSES).truth.proportions_under(**condition)


def test_library_sizes_are_lognormal_in_each_batch():
    _, truth = simulate(20000, 4, num_batches=2, library=LibrarySizes(500.0, 0.4, batch_scale=1.0), seed=1)
    logs = [np.log(truth.library[truth.batches == b]) for b in range(2)]
    assert abs(logs[0].mean() - logs[1].mean()) > 0.1
    for values in logs:
        assert values.std() == pytest.approx(0.4, rel=0.03)
    even = np.log(simulate(20000, 4, num_batches=2, library=LibrarySizes(500.0, 0.4)).truth.library)
    assert abs(even.mean() - np.log(500.0)) < LIMIT * 0.4 / np.sqrt(20000)


def test_inverse_dispersions_are_as_given_or_lognormal():
    given = np.linspace(1, 3, 10)
    np.testing.assert_array_equal(simulate(5, 10, noise=CountNoise(given, spread=2.0)).truth.inverse_dispersion, given)
    logs = np.log(simulate(5, 5000, noise=CountNoise(3.0, spread=0.7)).truth.inverse_dispersion)
    assert abs(logs.mean() - np.log(3.0)) < LIMIT * 0.7 / np.sqrt(5000)
    assert logs.std() == pytest.approx(0.7, rel=0.05)


def test_types_have_the_declared_weights_in_each_batch():
    _, truth = simulate(4000, 5, 3, 2, types=CellTypes(weights=[[1, 1, 0], [1, 2, 1]]))
    shares = [np.bincount(truth.types[truth.batches == b], minlength=3) / (truth.batches == b).sum() for b in range(2)]
    np.testing.assert_allclose(shares, [[0.5, 0.5, 0.0], [0.25, 0.5, 0.25]], atol=LIMIT * 0.5 / np.sqrt(1900))
    assert shares[0][2] == 0


def test_latents_scatter_about_their_type_as_declared():
    _, truth = simulate(5000, 5, 3, types=CellTypes(latent_dim=4, spread=0.2))
    residual = truth.latent - truth.type_latent[truth.types]
    assert residual.std() == pytest.approx(0.2, rel=0.03)
    assert abs(residual.mean()) < LIMIT * 0.2 / np.sqrt(20000)


def test_no_cell_is_without_counts_and_the_rest_are_as_declared():
    adata, truth = simulate(20000, 3, library=LibrarySizes(0.5, 0.0), noise=CountNoise(1e6))
    totals = adata.obs["total_counts"].to_numpy()
    assert totals.min() == 1
    one = 0.5 * np.exp(-0.5) / -np.expm1(-0.5)
    assert abs((totals == 1).mean() - one) < LIMIT * np.sqrt(one * (1 - one) / 20000)
    np.testing.assert_allclose(truth.library, 0.5)


def test_cells_that_cannot_have_counts_are_refused():
    with pytest.raises(ValueError, match=r"no counts after 1000 draws.*raise LibrarySizes\(median="):
        simulate(5, 3, library=LibrarySizes(1e-9))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: simulate(0), "num_cells should be 1 or more, but is 0"),
        (lambda: simulate(num_genes=1), "num_genes should be 2 or more"),
        (lambda: simulate(num_types=0), "num_types"),
        (lambda: simulate(num_batches=0), "num_batches"),
        (lambda: simulate(batch_scale=-1.0), "batch_scale is a standard deviation"),
        (lambda: simulate(batch_scale=np.inf), "batch_scale"),
        (lambda: CellTypes(latent_dim=0), "latent_dim"),
        (lambda: CellTypes(spread=-1), "spread"),
        (lambda: LibrarySizes(0), "median should be above zero"),
        (lambda: LibrarySizes(scale=np.nan), "scale"),
        (lambda: CountNoise(0.0), "inverse_dispersion should be above zero"),
        (lambda: CountNoise(gate_logits=np.inf), "gate_logits"),
        (lambda: CountNoise(gate_logits=np.nan), "gate_logits"),
        (lambda: Hill(half=0), "half"),
        (lambda: LogLinear(0), "reference"),
        (lambda: Doses(2.0, 1.0), "from 2.0 to 1.0"),
        (lambda: Doses(levels=(1.0, 0.0)), "levels"),
        (lambda: Doses(levels=()), "levels"),
        (lambda: Perturbations(0), "number"),
        (lambda: Perturbations(scale=0.0), "scale"),
        (lambda: simulate(5, 5, perturbations=Perturbations(num_genes=6)), "cannot change 6 of 5 genes"),
        (lambda: simulate(5, 5, noise=CountNoise([1.0, 2.0])), r"of shape \(5,\), but is \(2,\)"),
        (lambda: simulate(5, 5, noise=CountNoise(gate_logits=[0.0])), "gate_logits should be one number"),
        (lambda: simulate(5, 5, 2, types=CellTypes(weights=[1, 2, 3])), "weights of the types"),
        (lambda: simulate(5, 5, 2, types=CellTypes(weights=[1, -1])), "zero or above"),
        (lambda: simulate(5, 5, 2, 2, types=CellTypes(weights=[[1, 1], [0, 0]])), "above zero in each batch"),
    ],
)
def test_a_value_out_of_range_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
