"""Models refitted to counts drawn from a known process recover what the counts were drawn from."""

import numpy as np
import pytest
from scipy import stats

from genailab_pyro import CVAE_NB, CVAE_ZINB, Training, Warmup, data, fit, register

pytestmark = pytest.mark.slow

TRAINING = Training(
    max_epochs=90,
    minibatch_size=128,
    learning_rate=1e-2,
    learning_rate_schedule="one-cycle",
    weight_decay=1e-3,
    warmup=Warmup(length=0.3),
    validation_fraction=0.1,
)


@pytest.fixture(scope="module")
def simulation():
    return data.simulate(
        3000,
        100,
        num_types=4,
        num_batches=2,
        types=data.CellTypes(latent_dim=3),
        library=data.LibrarySizes(median=1500.0, scale=0.4, batch_scale=0.3),
        batch_scale=0.4,
        noise=data.CountNoise(inverse_dispersion=3.0, spread=0.7),
        seed=0,
    )


def fitted(cls, adata, **options):
    cells = register(adata, conditions=["batch"] if adata.obs["batch"].nunique() > 1 else [])
    vae = cls.from_registration(cells, latent_dim=3, hidden_dims=[64], dropout=0.0, **options)
    return fit(vae, cells, training=TRAINING, progress=False)


@pytest.fixture(scope="module")
def observed(simulation):
    return fitted(CVAE_NB, simulation.adata)


@pytest.fixture(scope="module")
def latent(simulation):
    return fitted(CVAE_NB, simulation.adata, library="latent")


@pytest.mark.parametrize("which", ["observed", "latent"])
def test_inverse_dispersions_in_rank_and_scale(which, simulation, request):
    likelihood = request.getfixturevalue(which).vae.likelihood
    found = likelihood.log_inverse_dispersion.log_value.detach().numpy()
    truth = np.log(simulation.truth.inverse_dispersion)
    # A gene with few counts says little of its inverse dispersion.
    rich = np.asarray(simulation.adata.X.mean(0)).ravel() > 1
    assert rich.sum() > 50
    assert stats.spearmanr(found[rich], truth[rich]).statistic > 0.95
    assert np.median(found[rich] - truth[rich]) == pytest.approx(0, abs=0.15)
    assert np.polyfit(truth[rich], found[rich], 1)[0] == pytest.approx(1, abs=0.15)


def test_proportions_are_nearer_to_the_truth_than_the_counts_are(observed, simulation):
    truth = simulation.truth.proportions
    counts = simulation.adata.X.toarray()
    raw = counts / counts.sum(1, keepdims=True)
    expression = observed.expression(num_samples=10)
    error, raw_error = (np.sqrt(((values - truth) ** 2).mean()) for values in (expression, raw))
    assert error < raw_error / 2


def test_the_latent_follows_the_types(observed, simulation):
    latent, types = observed.latent(), simulation.truth.types
    centres = np.stack([latent[types == kind].mean(0) for kind in range(4)])
    nearest = ((latent[:, None] - centres) ** 2).sum(-1).argmin(1)
    assert (nearest == types).mean() > 0.9


@pytest.mark.parametrize("which", ["observed", "latent"])
def test_the_effect_of_a_condition(which, simulation, request):
    """The log fold change between batches, each cell as it would be in both."""
    fitted, truth = request.getfixturevalue(which), simulation.truth
    found, expected = (
        np.log(first.mean(0)) - np.log(second.mean(0))
        for first, second in (
            [fitted.expression(conditions={"batch": name}, num_samples=5) for name in truth.batch_names],
            [truth.proportions_under(batch=name) for name in truth.batch_names],
        )
    )
    assert stats.pearsonr(found, expected).statistic > 0.97
    assert np.polyfit(expected, found, 1)[0] == pytest.approx(1, abs=0.1)


def test_the_latent_library_is_nearer_to_the_truth_than_the_total(latent, simulation):
    truth = np.log(simulation.truth.library)
    total = np.log(np.asarray(simulation.adata.X.sum(1)).ravel())
    draws = np.log(latent.posterior_samples(num_samples=200, site="library"))
    error, total_error = (np.sqrt(((values - truth) ** 2).mean()) for values in (draws.mean(0), total))
    assert error < 0.9 * total_error
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    # A guide that takes library and latent to be independent is somewhat too sure of each.
    assert 0.6 < ((low < truth) & (truth < high)).mean() < 0.95


def test_extra_zeros_are_told_from_those_of_the_counts(simulation):
    gates = np.repeat([-np.inf, 0.0], 50)
    inflated = data.simulate(
        3000,
        100,
        library=data.LibrarySizes(median=3000.0),
        noise=data.CountNoise(inverse_dispersion=5.0, gate_logits=gates),
        seed=1,
    )
    model = fitted(CVAE_ZINB, inflated.adata)
    minibatch = model.cells.take(range(500))
    features = model.vae.decode(model.vae.encoder(minibatch).mean, minibatch)
    gate = model.vae.likelihood.gate_logits(features).sigmoid().mean(0).detach().numpy()
    rich = inflated.truth.mean.mean(0) > 10
    inflated_genes, others = rich & (gates == 0), rich & (gates < 0)
    assert np.median(gate[inflated_genes]) == pytest.approx(0.5, abs=0.1)
    assert np.median(gate[others]) < 0.1
