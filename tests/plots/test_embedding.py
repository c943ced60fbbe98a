"""A map holds every cell at its place in its colour."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from genailab_pyro.plots import embedding

RNG = np.random.default_rng(0)


def cells(count=300):
    return RNG.normal(size=(count, 2))


def entries(figure):
    legend = figure.axes[0].get_legend()
    handles = zip(legend.get_texts(), legend.legend_handles, strict=True)
    return {text.get_text(): to_hex(handle.get_color()) for text, handle in handles}


def drawn(figure):
    points = figure.axes[0].collections[0]
    colours = [to_hex(colour) for colour in points.get_facecolors()]
    return {tuple(place): colour for place, colour in zip(points.get_offsets().tolist(), colours, strict=True)}


@pytest.mark.parametrize("kinds", [3, 12, 30])
def test_each_cell_lies_at_its_place_in_the_colour_of_its_label(kinds):
    places, labels = cells(), np.array([f"type {number % kinds:02d}" for number in range(300)])
    figure = embedding(places, labels, title="types")
    shown, legend = drawn(figure), entries(figure)
    assert len(legend) == kinds
    assert len(set(legend.values())) == kinds
    colour_of = {text[text.index("type") :].split(" (")[0]: colour for text, colour in legend.items()}
    assert shown == {tuple(place): colour_of[label] for place, label in zip(places.tolist(), labels, strict=True)}


def test_the_legend_counts_the_cells_of_each_label():
    figure = embedding(cells(5), ["a", "b", "a", "a", "b"], title="two", name="batch")
    assert list(entries(figure)) == ["a (3)", "b (2)"]
    assert figure.axes[0].get_legend().get_title().get_text() == "batch (cells)"


def test_no_label_is_drawn_over_another():
    figure = embedding(cells(400), np.repeat(["first", "second"], 200), title="two")
    order = [colour == entries(figure)["second (200)"] for colour in drawn(figure).values()]
    assert 50 < sum(order[:200]) < 150


def test_many_labels_carry_numbers_on_the_map_and_in_the_legend():
    labels = np.array([f"type {number % 12:02d}" for number in range(300)])
    places = cells()
    axes = embedding(places, labels, title="types").axes[0]
    assert [text.get_text() for text in axes.texts] == [str(number) for number in range(1, 13)]
    for number, text in enumerate(axes.texts):
        assert text.get_position() in set(map(tuple, places[labels == f"type {number:02d}"].tolist()))
    assert axes.get_legend().get_texts()[11].get_text().startswith("12  type 11")
    assert not embedding(places, labels == "type 00", title="few").axes[0].texts


def test_many_short_labels_are_on_the_map_themselves():
    labels = np.array([str(number % 12) for number in range(300)])
    (axes,) = embedding(cells(), labels, title="Twelve clusters", name="leiden").axes
    assert sorted(text.get_text() for text in axes.texts) == sorted(map(str, range(12)))
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sorted(shown) == sorted(f"{number} (25)" for number in range(12))


def test_numbers_of_labels_at_one_place_keep_apart():
    labels = np.array([f"type {number % 9}" for number in range(900)])
    axes = embedding(cells(900), labels, title="types").axes[0]
    spots = np.array([text.get_position() for text in axes.texts])
    distances = np.linalg.norm(spots[:, None] - spots[None], axis=-1) + np.eye(9) * 1e3
    assert distances.min() > 0.2


def test_categories_keep_their_order_and_empty_ones_are_dropped():
    dose = pd.Categorical(["low", "high", "low"], categories=["low", "middle", "high"], ordered=True)
    assert list(entries(embedding(cells(3), dose, title="dose"))) == ["low (2)", "high (1)"]


def test_missing_labels_are_grey_and_said():
    figure = embedding(cells(4), pd.Series(["a", None, "b", np.nan], dtype=object), title="partly labelled")
    legend = entries(figure)
    assert list(legend) == ["a (1)", "b (1)", "unlabelled (2)"]
    red, green, blue = (legend["unlabelled (2)"][start : start + 2] for start in (1, 3, 5))
    assert red == green == blue


def test_beyond_thirty_labels_the_rarest_share_an_entry():
    labels = np.array([f"type {min(number // 10, 39):02d}" for number in range(600)])
    places = cells(600)
    figure = embedding(places, labels, title="types")
    legend = entries(figure)
    assert len(legend) == 30
    assert list(legend)[-1] == "11 rarer labels (110)"
    assert any(text.endswith("type 39 (210)") for text in legend)
    assert len(figure.axes[0].texts) == 29
    assert list(drawn(figure).values()).count(legend["11 rarer labels (110)"]) == 110


def test_missing_labels_are_not_among_the_rare_ones():
    labels = pd.Series([f"type {number % 40}" for number in range(400)], dtype=object)
    labels[400], labels[401] = None, None
    legend = entries(embedding(cells(402), labels, title="types"))
    assert list(legend)[-2:] == ["11 rarer labels (110)", "unlabelled (2)"]


@pytest.mark.parametrize("values", [np.linspace(0, 5, 300), np.arange(300)])
def test_numbers_are_a_quantity_with_a_colour_bar(values):
    places = cells()
    figure = embedding(places, values, title="depth", name="total counts per cell")
    points = figure.axes[0].collections[0]
    found = {
        tuple(place): value for place, value in zip(points.get_offsets().tolist(), points.get_array(), strict=True)
    }
    assert found == {tuple(place): value for place, value in zip(places.tolist(), values, strict=True)}
    assert figure.axes[1].get_ylabel() == "total counts per cell"
    assert figure.axes[0].get_legend() is None


def test_axes_are_named_after_the_embedding():
    axes = embedding(cells(3), ["a", "b", "c"], title="t", axis="PCA").axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("PCA 1 (arbitrary units)", "PCA 2 (arbitrary units)")


def test_a_dollar_sign_in_a_label_is_no_mathematics():
    figure = embedding(cells(2), ["$\\frac{", "b$"], title="cost in $, not in $")
    figure.draw_without_rendering()
    assert len(entries(figure)) == 2


@pytest.mark.parametrize(
    ("places", "labels", "error", "message"),
    [
        (np.zeros((3, 3)), ["a"] * 3, ValueError, r"xy must have shape \[cells, 2\]"),
        (np.zeros((3, 2)), ["a"] * 2, ValueError, "one value for each of the 3 cells of xy, got 2"),
        (np.full((3, 2), np.nan), ["a"] * 3, ValueError, "xy must be finite, got 6 of 6"),
        (np.zeros((3, 2)), [1.0, np.nan, 2.0], ValueError, "colour_by must be finite"),
        ([["a", "b"]], ["a"], TypeError, "xy must be a dense array of real numbers"),
    ],
)
def test_inputs_that_do_not_fit_are_named(places, labels, error, message):
    with pytest.raises(error, match=message):
        embedding(places, labels, title="t")
