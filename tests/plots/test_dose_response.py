"""Dose responses are drawn gene by gene, with their intervals and what was observed."""

import numpy as np
import pytest

from genailab_pyro.plots.dose_response import dose_response

DOSES = [0.0, 0.5, 2.0, 8.0]
GENES = ["still", "rises", "falls"]
MEAN = np.array([[4.0] * 4, [1.0, 2.0, 4.0, 8.0], [9.0, 8.0, 7.0, 6.0]])


def drawn(figure):
    """The panels by the name of their gene, in order."""
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def test_each_curve_is_that_of_the_gene_above_it():
    shown = drawn(dose_response(DOSES, MEAN, genes=GENES))
    for row, gene in enumerate(GENES):
        np.testing.assert_array_equal(shown[gene].lines[0].get_xydata(), np.column_stack([DOSES, MEAN[row]]))


def test_genes_are_in_order_of_their_change_or_as_asked_for():
    figure = dose_response(DOSES, MEAN, genes=GENES)
    assert list(drawn(figure)) == ["rises", "falls", "still"]
    assert figure.get_suptitle() == "Response to the dose; of 3 genes rises moves most"
    assert list(drawn(dose_response(DOSES, MEAN, genes=GENES, shown=["still", "falls"]))) == ["still", "falls"]


def test_the_interval_is_between_low_and_high():
    axes = drawn(dose_response(DOSES, MEAN, MEAN - 1, MEAN + 2, genes=GENES))["falls"]
    edge = axes.collections[0].get_paths()[0].vertices
    assert (edge[:, 1].min(), edge[:, 1].max()) == (5, 11)


def test_what_was_observed_lies_over_the_curve_of_its_gene():
    figure = dose_response(DOSES, MEAN, genes=GENES, observed={"rises": ([0, 2, 2], [1.0, 3.5, 4.5])})
    shown = drawn(figure)
    np.testing.assert_array_equal(shown["rises"].lines[1].get_xydata(), [[0, 1], [2, 3.5], [2, 4.5]])
    assert len(shown["falls"].lines) == 1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["predicted mean", "observed"]


def test_dose_zero_has_a_place_and_doses_a_unit():
    axes = drawn(dose_response(DOSES, MEAN, genes=GENES, unit="mg/kg"))["still"]
    assert axes.get_xlabel() == "Dose (mg/kg)"
    ticks = axes.transData.transform([(dose, 0) for dose in DOSES])[:, 0]
    assert np.isfinite(ticks).all()
    assert (np.diff(ticks) > 5).all()


def test_of_many_genes_twelve_are_drawn():
    mean = np.linspace(1, 3, 20)[:, None] * np.array(DOSES)
    figure = dose_response(DOSES, mean, genes=[f"gene{place}" for place in range(20)])
    assert list(drawn(figure)) == [f"gene{place}" for place in range(19, 7, -1)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"doses": DOSES[::-1]}, "doses must increase from zero or above"),
        ({"doses": [-1.0, 0, 1, 2]}, "doses must increase from zero or above"),
        ({"doses": [1.0]}, "at least two of them"),
        ({"mean": MEAN[:, :3]}, r"mean must be finite and not negative, of shape \[3, 4\], .* got shape \[3, 3\]"),
        ({"mean": -MEAN}, "mean must be finite and not negative"),
        ({"low": MEAN}, "low and high must be given together"),
        ({"low": MEAN + 1, "high": MEAN}, "low must not be above high"),
        ({"low": MEAN[0], "high": MEAN}, r"low must be .* got shape \[4\]"),
        ({"shown": ["other"]}, r"shown must be some of the genes, at least one, got \['other'\]"),
        ({"shown": []}, "at least one, got none"),
        ({"observed": {"rises": ([0, np.nan], [1, 2])}}, r"observed\['rises'\] must be finite"),
    ],
)
def test_curves_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        dose_response(**({"doses": DOSES, "mean": MEAN, "genes": GENES} | options))
