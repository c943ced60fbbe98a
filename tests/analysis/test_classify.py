"""Probabilities of labels and clusters, and their calibration."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import genailab_pyro as glp
from genailab_pyro.analysis.classify import calibrate, label_probabilities, predict_labels
from genailab_pyro.data.simulate import CellTypes
from genailab_pyro.model.structured import SemiSupervisedVAE

TYPES = 3


def simulated(num_cells=160, separation=1.0, seed=2):
    return glp.data.simulate(num_cells, 20, num_types=TYPES, types=CellTypes(separation=separation), seed=seed).adata


def declare(name, cells, **options):
    torch.manual_seed(0)  # of the head, which is declared before the VAE
    sizes = {"latent_dim": 3, "hidden_dims": [8], **options}
    if name == "label above":
        return SemiSupervisedVAE.from_registration(cells, **sizes)
    if name == "head":
        return glp.CVAE_NB.from_registration(cells, heads=[glp.LabelHead(3, TYPES, weight=10.0)], **sizes)
    return glp.LabelVAE.from_registration(cells, num_labels=4, **sizes)


@pytest.fixture(scope="module")
def cells():
    return glp.register(simulated(), labels="cell_type")


@pytest.fixture(scope="module")
def fits(cells):
    estimators = {"label above": "enum", "head": "pathwise", "clusters": "enum"}
    return {
        name: glp.fit(declare(name, cells), cells, estimator, max_epochs=4, progress=False)
        for name, estimator in estimators.items()
    }


every_classifier = pytest.mark.parametrize("name", ["label above", "head", "clusters"])


@every_classifier
def test_there_is_a_probability_for_each_cell_and_label(name, fits, cells):
    found = label_probabilities(fits[name])
    assert [*found.index] == [*cells.adata.obs_names]
    assert [*found.columns] == (
        [f"cluster_{code}" for code in range(4)] if name == "clusters" else [*cells.registration.labels.levels]
    )
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


@every_classifier
def test_the_prediction_is_the_most_probable(name, fits):
    found = predict_labels(fits[name])
    assert (found.astype(str) == label_probabilities(fits[name]).idxmax(axis=1)).all()
    assert isinstance(found.dtype, pd.CategoricalDtype)


@every_classifier
def test_a_loaded_fit_says_the_same_of_an_anndata(name, fits, cells, tmp_path):
    loaded = glp.load(fits[name].save(tmp_path / "fit"))
    pd.testing.assert_frame_equal(label_probabilities(loaded, cells.adata), label_probabilities(fits[name]), rtol=1e-5)


@every_classifier
def test_the_labels_of_the_cells_are_not_looked_at(name, fits, cells):
    # Nor are they needed.
    others = cells.adata.copy()
    others.obs["cell_type"] = others.obs["cell_type"].to_numpy()[::-1].copy()
    before = label_probabilities(fits[name])
    pd.testing.assert_frame_equal(label_probabilities(fits[name], others), before)
    del others.obs["cell_type"]
    pd.testing.assert_frame_equal(label_probabilities(fits[name], others), before)


def test_the_probabilities_of_a_head_are_means_over_the_posterior(fits, cells):
    fit, few = fits["head"], cells.subset(range(40))
    minibatch = few.take(range(40))
    torch.manual_seed(1)
    with torch.no_grad():
        probs = fit.vae.heads[0](fit.vae.posterior_draws(minibatch, 4000), minibatch).probs
    found = label_probabilities(fit, few).to_numpy()
    # The mean of 25 draws scatters by a fifth of their standard deviation.
    error = probs.std(0).numpy() / 25**0.5
    assert (np.abs(found - probs.mean(0).numpy()) / error).max() < 5
    assert (np.abs(found[:, ::-1] - probs.mean(0).numpy()) / error).max() > 5


def test_the_same_seed_gives_the_same_and_the_callers_state_stays(fits):
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    first, again = label_probabilities(fits["head"], seed=5), label_probabilities(fits["head"], seed=5)
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(label_probabilities(fits["head"], seed=6))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_fit_without_labels_is_refused(cells):
    vae = glp.CVAE_NB.from_registration(cells, latent_dim=3, hidden_dims=[8])
    fit = glp.fit(vae, cells, max_epochs=1, progress=False)
    for ask in (label_probabilities, predict_labels):
        with pytest.raises(
            ValueError, match=r"expected a fit that tells labels, got one of CVAE_NB.*SemiSupervisedVAE"
        ):
            ask(fit)
    with pytest.raises(ValueError, match="expected a fit that tells labels"):
        calibrate(fit, cells)


def test_a_head_of_other_labels_than_registered_is_refused(fits, cells):
    unlabelled = glp.register(cells.adata)
    fit = replace(fits["head"], registration=unlabelled.registration, cells=unlabelled)
    with pytest.raises(ValueError, match=r"expected a fit whose registration has the 3 labels.*got none"):
        label_probabilities(fit)


class TestCalibration:
    """A classifier whose logits are five times too large."""

    def calibration_error(self, fit, cells):
        """Expected calibration error over ten bins of the probability of the predicted label."""
        probs = label_probabilities(fit, cells).to_numpy()
        sure, right = probs.max(1), probs.argmax(1) == cells.labels
        bins = np.minimum((sure * 10).astype(int), 9)
        return sum(abs((sure - right)[bins == k].sum()) for k in range(10)) / len(sure)

    @pytest.fixture(scope="class")
    def parts(self):
        # Types so close to each other that nobody could always be right.
        return glp.register(simulated(1200, separation=0.2, seed=5), labels="cell_type").split(0.7)

    @pytest.fixture(scope="class", params=["head", "label above"])
    def overconfident(self, request, parts):
        estimator = "pathwise" if request.param == "head" else "enum"
        vae = declare(request.param, parts[0], hidden_dims=[32], dropout=0.0)
        trained = glp.fit(vae, parts[0], estimator, max_epochs=60, progress=False)
        if request.param == "head":  # draws of z that scatter make the mean of sure answers unsure
            with torch.no_grad():
                trained.vae.encoder.scale.weight.zero_()
                trained.vae.encoder.scale.bias.fill_(-10)
        fit = calibrate(trained, parts[1])
        layer = fit.vae.heads[0].logits if request.param == "head" else fit.vae.upper.head
        with torch.no_grad():
            layer.weight.mul_(5)
            layer.bias.mul_(5)
        return fit, layer

    def test_the_calibration_error_falls_on_other_cells(self, overconfident, parts):
        fit, _ = overconfident
        tuned, judged = parts[1].split(0.5)
        assert self.calibration_error(fit, judged) > 0.15
        assert self.calibration_error(calibrate(fit, tuned), judged) < 0.5 * self.calibration_error(fit, judged)

    def test_the_given_fit_stays_as_it_is(self, overconfident, parts):
        fit, layer = overconfident
        before = layer.weight.detach().clone()
        calibrated = calibrate(fit, parts[1])
        assert torch.equal(layer.weight, before)
        assert calibrated.vae is not fit.vae
        found = label_probabilities(calibrated, parts[1]).to_numpy()
        assert found.max(1).mean() < label_probabilities(fit, parts[1]).to_numpy().max(1).mean()

    def test_the_temperature_is_found(self, overconfident, parts):
        fit, layer = overconfident
        again = calibrate(fit, parts[1]).vae
        found = again.heads[0].logits if fit.vae.upper is None else again.upper.head
        torch.testing.assert_close(5 * found.weight, layer.weight, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(5 * found.bias, layer.bias, rtol=1e-3, atol=1e-5)

    def test_a_calibrated_fit_is_loaded_as_it_was(self, overconfident, parts, tmp_path):
        calibrated = calibrate(overconfident[0], parts[1])
        loaded = glp.load(calibrated.save(tmp_path / "fit"))
        pd.testing.assert_frame_equal(label_probabilities(loaded, parts[1]), label_probabilities(calibrated, parts[1]))

    def test_cells_without_labels_are_refused(self, overconfident, parts):
        unlabelled = glp.register(parts[1].adata)
        with pytest.raises(ValueError, match=r"expected cells of which some have a label, got none; calibrate on"):
            calibrate(overconfident[0], unlabelled)

    def test_clusters_are_refused(self, fits, cells):
        with pytest.raises(ValueError, match="got one that finds clusters"):
            calibrate(fits["clusters"], cells)
