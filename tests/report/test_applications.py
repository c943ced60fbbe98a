"""Sections on applications say what was found, also where the model loses, and what the figures do not say."""

import re

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from genailab_pyro.evaluation.perturbation import PerturbationScores
from genailab_pyro.report import Report
from genailab_pyro.report import applications as sections
from genailab_pyro.report import applications_counts as counts
from genailab_pyro.report.run import Map


@pytest.fixture
def report():
    return Report("Of an application")


def words(report):
    return " ".join(re.sub(r"<[^>]+>", " ", report.html()).split())


def mixing(labels):
    scores = pd.DataFrame({"batch_excess": [0.42, 0.05], "pcr": [np.nan, 0.9]}, index=["PCA", "latent"])
    return scores.assign(purity=[0.8, 0.6], chance=0.3) if labels else scores


def integrated(report, *, labels="type", told=("batch",)):
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"batch": ["a", "b"] * 10, "type": ["x"] * 10 + ["y"] * 9 + [None]})
    drawn = {name: Map(np.arange(20), rng.normal(size=(20, 2))) for name in ("PCA", "latent")}
    return sections.integration_section(report, mixing(labels), drawn, obs, batch="batch", labels=labels, told=told)


def test_integration_tells_both_sides_and_that_mixing_is_no_merit_alone(report):
    told = integrated(report)
    assert "42.0% in principal components, 5.0% in the latent" in told.findings[0]
    assert "80.0% before, 60.0% after, 30.0% by chance" in told.findings[1]
    assert set(told.figures) == {"umap_pca_batch", "umap_latent_batch", "umap_pca_label", "umap_latent_label"}
    assert "a latent of pure noise mixes perfectly" in words(report)
    assert "The model is" not in words(report)


@pytest.mark.parametrize(
    ("labels", "told", "expected"),
    [
        ("type", (), "The model is not told batch"),
        ("type", ("batch", "type"), "The model is told type: its latent has no reason to hold it"),
        (None, ("batch",), "Without labels nothing here tells"),
    ],
)
def test_what_spoils_the_scores_is_called_out(report, labels, told, expected):
    integrated(report, labels=labels, told=told)
    assert expected in words(report)


def test_agreement_is_over_the_cells_that_have_a_label():
    clusters = pd.DataFrame({"latent": ["0", "0", "1", "1", "1"], "PCA": ["0", "1", "0", "1", "0"]})
    table = sections.label_agreement_of(clusters, pd.Series(["x", "x", "y", "y", None]))
    assert table.loc["latent", "adjusted_rand_index"] == 1
    assert table.loc["PCA", "adjusted_rand_index"] == pytest.approx(-0.5)  # (0 - 2 * 2 / 6) / (2 - 2 * 2 / 6) pairs
    assert table["clusters"].tolist() == [2, 2]


def test_clusters_are_drawn_in_their_order_and_named(report):
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"leiden": pd.Categorical([str(i % 11) for i in range(44)]), "latent_sd": rng.random(44)})
    found = AnnData(obs=obs.set_index(obs.index.astype(str)), shape=(44, 0))
    clusters = pd.DataFrame({"cells": [4] * 11, "markers": "CD79A"}, index=pd.Index(range(11), name="cluster"))
    told = sections.discovery_section(
        report, found, Map(np.arange(44), rng.normal(size=(44, 2))), clusters, None, labels=None, told=[]
    )
    legend = [
        text.get_text() for text in told.figures["umap_cluster"].findobj(match=lambda item: hasattr(item, "get_text"))
    ]
    assert any("leiden 10" in text for text in legend)
    assert told.findings == ["11 clusters, of 4 to 4 cells."]


def test_novelty_tells_the_share_of_cells_below_the_level(report):
    clusters = pd.Series(["0"] * 50 + ["1"] * 50)
    table = pd.DataFrame({"score": np.linspace(0, 1, 100), "p_value": [0.01] * 20 + [0.5] * 80})
    told = sections.novelty_section(report, table, clusters, 199)
    assert told.findings[0].startswith("20.0% of the cells")
    assert "No p-value is below 0.005" in words(report)


@pytest.mark.parametrize("called", [True, False])
def test_differential_expression_stands_beside_the_rank_sum_test(report, called):
    table = pd.DataFrame(
        {
            "lfc_mean": [2.0, -0.1, 0.3],
            "lfc_low": [1.5, -0.4, -0.2],
            "lfc_high": [2.5, 0.2, 0.8],
            "probability": [0.99, 0.1, 0.5],
            "local_fdr": [0.01, 0.9, 0.6],
            "is_de": [called, False, False],
            "detected_group": 0.5,
            "detected_reference": 0.2,
            "rank_sum_fdr": [1e-5, 0.01, 0.5],
        },
        index=["CD79A", "ACTB", "GNLY"],
    )
    told = sections.differential_section(report, table, group="B", reference="rest", delta=0.25, fdr=0.05)
    assert f"{int(called)} of 3 genes are called" in told.findings[0]
    assert f"finds 2 genes that differ at all, {int(called)} of them called" in told.findings[1]
    assert ("No gene is called" in words(report)) != called


@pytest.mark.parametrize(("population", "alone"), [("all", "20.0%"), ("treated", "40.0%")])
def test_a_contrast_without_overlap_is_called_out(report, population, alone):
    columns = {"log2_fold_change": [1.0, 0.5], "standard_error": 0.1, "low": [0.8, 0.3], "high": [1.2, 0.7]}
    naive = pd.DataFrame(columns, index=["A", "B"])
    adjusted = naive.assign(log2_fold_change=[1.0, 0.1], low=[0.8, -0.1], high=[1.2, 0.3])
    table = pd.concat([naive.add_prefix("naive_"), adjusted.add_prefix("adjusted_")], axis=1)
    arms = pd.DataFrame({"treated": [True] * 5 + [False] * 5, "propensity": 0.5, "alone": [True] * 2 + [False] * 8})
    told = sections.contrast_section(report, table, arms, level="drug", reference="control", population=population)
    assert "2 of 2 genes have a naive interval without zero, 1 an adjusted one; 1 only the naive." in told.findings
    assert f"by {np.sqrt(0.08):.2f}" in told.findings[1]
    assert told.findings[2].startswith(alone)
    assert "extrapolates what it never saw" in words(report)


def test_a_model_that_recovers_worse_than_neighbours_says_so(report):
    scores = pd.DataFrame(
        {"log_likelihood": [-100.0, -103.0], "difference": [0.0, -3.0], "standard_error": [0.0, 0.5]},
        index=pd.Index(["k-NN average", "CVAE_NB"], name="method"),
    )
    told = counts.recovery_section(report, scores, name="CVAE_NB", fraction=0.5)
    assert told.findings[0] == (
        "k-NN average predicts the held-back molecules best; CVAE_NB is behind by 3.00 ± 0.50 nats per cell."
    )
    assert "CVAE_NB against k-NN average: -3.00 nats per cell." in told.findings


def test_a_prediction_that_a_reference_beats_says_so(report):
    names = [*PerturbationScores.__dataclass_fields__]
    methods = {"half against half": 0.9, "no change": 0.0, "mean shift": 0.8, "model": 0.5}
    rows = {
        (group, method): dict.fromkeys(names, score) for group in ("T", "mean") for method, score in methods.items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(["group", "method"])
    real = np.array([1.0, -1.0, 0.5])
    told = counts.target_section(
        report, table, {"T": (real, {"model": 0.5 * real})}, {"additive": "it is no combination"}, ["A", "B", "C"]
    )
    assert "model 0.50, the best reference (mean shift) 0.80; half of the real cells explain 0.90" in told.findings[0]
    assert set(told.figures) == {"r2_shift_split", "energy_distance", "shift_1"}
    text = words(report)
    assert "additive does not apply: it is no combination." in text
    assert "Whether the model did is not in its file" in text


def test_the_gene_that_moves_most_is_named(report):
    curves = pd.DataFrame(
        {
            "gene": ["A", "A", "B", "B"],
            "dose": [0.0, 2.0] * 2,
            "mean": [1.0, 4.0, 2.0, 1.9],
            "low": [0.5, 2.0, 1.0, 1.0],
            "high": [2.0, 6.0, 3.0, 3.0],
            "log2_fold_change": [0.0, 2.0, 0.0, -0.1],
        }
    )
    told = counts.dose_section(report, curves, covariate="dose", what="drug TCE")
    assert told.findings == ["Of the genes shown, A moves most: a log2 fold change of +2.00 at dose 2."]
    assert "beyond the measured ones it extrapolates" in words(report)


def test_fidelity_names_the_level_that_is_easiest_to_tell(report):
    index = pd.MultiIndex.from_product([["B", "T"], ["generated", "real"]], names=["group", "source"])
    table = pd.DataFrame({"mean_rank": 0.9, "auc": [0.9, 0.5, 0.6, 0.52], "real_cells": 10}, index=index)
    told = counts.fidelity_section(report, table, held_out=False)
    assert "up to 0.90 (B; real from other real cells: 0.50" in told.findings[0]
    assert "--test" in words(report)


def test_a_classifier_is_told_with_its_errors_and_its_rarest_level(report):
    table = pd.DataFrame({"none": [0.8, 0.8], "oversampled": [0.8, 0.83], "augmented": [0.7, 0.74]})
    told = counts.classifier_section(report, table, condition="type", num_test=1000, rarest=25)
    assert told.findings == [
        "Balanced accuracy on 1,000 real test cells: none 0.8000, oversampled 0.815 ± 0.015, augmented 0.720 ± 0.020."
    ]
    assert "the rarest level has 25: a difference within about 0.10" in words(report)
