"""The scores of labels, and what a run tells of a model that learns them."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn.metrics import balanced_accuracy_score, log_loss

import genailab_pyro as glp
from genailab_pyro.report import run
from genailab_pyro.report.sections import label_scores


@pytest.fixture(scope="module")
def drawn():
    """Calibrated probabilities of four labels, and labels drawn by them."""
    rng = np.random.default_rng(1)
    logits = rng.normal(scale=2.0, size=(2000, 4))
    labels = (softmax(logits, axis=1).cumsum(1) > rng.random((2000, 1))).argmax(1)
    return logits, labels


def findings(train, test, heads=()):
    """What a run of one epoch gives."""
    vae = glp.VAE_NB.from_registration(train, latent_dim=3, hidden_dims=[8], heads=heads)
    fit = glp.fit(vae, train, max_epochs=1, progress=False)
    annotated = glp.analysis.annotate(fit, test.adata)
    return run.Findings("VAE_NB", "cells", fit, train, test, annotated, None, 10, fit.diagnose(num_particles=25))


@pytest.fixture(scope="module")
def cells():
    adata = glp.data.simulate(200, 20, num_types=3, seed=0).adata
    adata.obs["known"] = adata.obs["cell_type"].astype(object).where(np.arange(200) % 4 > 0)
    return glp.register(adata, labels="known").split(0.4)


class TestScores:
    def test_scores_are_those_of_scikit_learn(self, drawn):
        logits, labels = drawn
        probabilities = softmax(logits, axis=1)
        scores, told = label_scores(probabilities, labels), probabilities.argmax(1)
        assert scores["accuracy"].startswith(f"{(told == labels).mean():.3f} ± ")
        assert scores["balanced accuracy"] == pytest.approx(balanced_accuracy_score(labels, told))
        assert scores["log score"] == pytest.approx(-log_loss(labels, probabilities))

    def test_a_calibration_error_by_hand(self):
        # Three cells of .75 of which two are right, one of .95 that is wrong.
        sure = np.array([0.75, 0.75, 0.75, 0.95])
        scores = label_scores(np.stack([sure, 1 - sure], 1), np.array([0, 0, 1, 1]))
        assert scores["calibration error"] == pytest.approx(0.75 * (0.75 - 2 / 3) + 0.25 * 0.95)

    def test_calibrated_probabilities_have_the_error_that_is_expected_and_sharpened_ones_a_larger_one(self, drawn):
        logits, labels = drawn
        true, sharp = (label_scores(softmax(factor * logits, axis=1), labels) for factor in (1.0, 2.0))
        assert true["calibration error"] < 2 * true["expected if calibrated"]
        assert sharp["calibration error"] > 4 * sharp["expected if calibrated"]

    def test_a_label_that_was_held_impossible_has_a_finite_score(self):
        assert np.isfinite(label_scores(np.array([[1.0, 0.0]]), np.array([1]))["log score"])


class TestRun:
    def test_a_model_that_learns_labels_has_a_section_of_them(self, cells):
        found = findings(*cells, heads=[glp.LabelHead(3, 3)])
        report, figures = run.run_report(
            found, run.Map(np.arange(80), np.random.default_rng(0).random((80, 2))), seed=0
        )
        assert {"confusion_matrix", "label_calibration"} <= set(figures)
        text = report.html()
        known = int((cells[1].labels >= 0).sum())
        assert f"the {known} held-out cells whose known is known" in text
        assert "from which the model has learned" in text
        assert "Held-out labels told right" in text
        assert "with a temperature" in text
        assert "which the model never saw" not in text
        assert "It is not told known" not in text

    def test_a_model_that_learns_none_has_no_such_section(self, cells):
        found = findings(*cells)
        assert (found.learned, found.labelled, found.accuracy) == (None, None, None)
        report, figures = run.run_report(
            found, run.Map(np.arange(80), np.random.default_rng(0).random((80, 2))), seed=0
        )
        assert not {"confusion_matrix", "label_calibration"} & set(figures)
        assert "It is not told known" in report.html()

    def test_without_known_labels_among_held_out_cells_it_says_so(self, cells):
        train, test = cells
        found = findings(train, test.subset(test.labels < 0), heads=[glp.LabelHead(3, 3)])
        report = glp.report.Report("labels")
        assert run._labels(report, found, seed=0) == {}
        assert "No held-out cell has a known known" in report.html()

    def test_a_temperature_is_never_fitted_to_the_cells_it_is_shown_on(self, cells, monkeypatch):
        train, test = cells
        found = findings(train, test, heads=[glp.LabelHead(3, 3)])
        fitted, asked = [], []

        def calibrate(fit, cells, *, seed):
            fitted.append(set(cells.obs_names))
            return fit

        def probabilities(fit, cells, *, seed):
            asked.append(set(cells.obs_names))
            return pd.DataFrame(np.asarray([cells.obs_names.astype("U20")] * 2).T)

        monkeypatch.setattr(run, "calibrate", calibrate)
        monkeypatch.setattr(run, "label_probabilities", probabilities)
        shown = run._calibrated(found.fit, test, seed=0)
        assert [*shown[:, 0]] == [*test.obs_names]
        assert not any(first & second for first, second in zip(fitted, asked, strict=True))
        assert set.union(*asked) == set(test.obs_names)
