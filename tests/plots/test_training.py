"""Training curves hold the history they were given."""

import numpy as np
import pandas as pd
import pytest

from genailab_pyro.plots import compare_curves, training_curves


def history(epochs=40, *, offset=0.0):
    epoch = np.arange(1, epochs + 1)
    frame = pd.DataFrame({"epoch": epoch, "beta": np.minimum(1.0, epoch / 10)})
    for part, lag in (("train", 0.0), ("validation", 6.0)):
        frame[f"{part}_reconstruction"] = 800 - offset + lag + 500 * np.exp(-epoch / 2)
        frame[f"{part}_kl"] = 12 - 10 * np.exp(-epoch / 5) + 0.1 * lag
        frame[f"{part}_elbo"] = -(frame[f"{part}_reconstruction"] + frame[f"{part}_kl"])
    return frame


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_each_panel_holds_its_term_for_both_sets_of_cells():
    frame = history()
    figure = training_curves(frame)
    for axes, term in zip(figure.axes, ("elbo", "reconstruction", "kl"), strict=True):
        drawn = lines(axes)
        for part in ("train", "validation"):
            curve = drawn["training cells" if part == "train" else "validation cells"]
            np.testing.assert_array_equal(curve.get_xdata(), frame["epoch"])
            np.testing.assert_array_equal(curve.get_ydata(), frame[f"{part}_{term}"])
        assert axes.get_xlabel() == "Epoch"
        assert axes.get_ylabel().endswith("(nats per cell)")


def test_the_title_names_the_best_validation_epoch():
    frame = history()
    frame.loc[24, "validation_elbo"] = -700.25
    assert (
        training_curves(frame).get_suptitle().startswith("Validation ELBO is highest at epoch 25: \N{MINUS SIGN}700.2")
    )


def test_validation_measured_now_and_then_is_one_line_through_the_measured_epochs():
    frame = history()
    columns = [name for name in frame if name.startswith("validation")]
    frame.loc[frame["epoch"] % 5 != 0, columns] = np.nan
    curve = lines(training_curves(frame).axes[0])["validation cells"]
    np.testing.assert_array_equal(curve.get_xdata(), np.arange(5, 41, 5))


def test_a_fit_without_validation_shows_training_alone():
    frame = history()
    frame[[name for name in frame if name.startswith("validation")]] = np.nan
    figure = training_curves(frame)
    assert "validation cells" not in lines(figure.axes[0])
    best = frame["epoch"][frame["train_elbo"].argmax()]
    assert figure.get_suptitle().startswith(f"Training ELBO is highest at epoch {best}:")


def test_the_end_of_the_warm_up_is_marked():
    figure = training_curves(history())
    for axes in figure.axes:
        assert list(lines(axes)["KL weight reaches 1"].get_xdata()) == [10, 10]
    constant = training_curves(history().assign(beta=1.0))
    assert not any(label.startswith("KL weight") for label in lines(constant.axes[0]))
    rising = training_curves(history().assign(beta=np.linspace(0.1, 0.5, 40)))
    assert not any(label.startswith("KL weight") for label in lines(rising.axes[0]))


def test_the_legend_below_the_panels_lists_each_curve_once():
    (legend,) = training_curves(history()).legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["training cells", "validation cells", "KL weight reaches 1", "highest validation ELBO"]


def test_a_steep_start_does_not_flatten_the_rest_and_is_said():
    frame = history()
    axes = training_curves(frame).axes[0]
    low, high = axes.get_ylim()
    late = frame.loc[frame["epoch"] > 6, ["train_elbo", "validation_elbo"]].to_numpy()
    assert low < late.min() < late.max() < high
    assert frame["train_elbo"].min() < low
    assert any("early values to \N{MINUS SIGN}1" in text.get_text() for text in axes.texts)


def test_an_even_course_is_shown_whole():
    frame = history()
    for name in [name for name in frame if name not in ("epoch", "beta")]:
        frame[name] = np.linspace(-900, -800, len(frame))
    axes = training_curves(frame).axes[0]
    low, high = axes.get_ylim()
    assert low <= -900
    assert high >= -800
    assert not axes.texts


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda frame: frame.drop(columns="train_kl"), ValueError, r"lacks the columns \['train_kl'\]"),
        (lambda frame: frame.iloc[:0], ValueError, "no rows"),
        (lambda _: pd.DataFrame(), ValueError, "no rows"),
        (lambda frame: frame.iloc[::-1], ValueError, "must increase"),
        (lambda frame: frame.to_numpy(), TypeError, "DataFrame"),
        (lambda frame: frame.assign(train_elbo=np.nan, validation_elbo=np.nan), ValueError, "no finite ELBO"),
    ],
)
def test_a_history_that_cannot_be_drawn_is_named(spoil, error, message):
    with pytest.raises(error, match=message):
        training_curves(spoil(history()))


def test_one_epoch_is_visible():
    figure = training_curves(history(1))
    assert lines(figure.axes[0])["training cells"].get_marker() == "o"


def test_compared_runs_keep_their_values_and_are_ranked_by_the_last():
    runs = {"score": history(offset=-50), "pathwise": history(), "stl": history(offset=-3)}
    figure = compare_curves(runs)
    (axes,) = figure.axes
    assert [text.get_text().split(":")[0] for text in axes.get_legend().get_texts()] == [
        "pathwise",
        "stl",
        "score",
    ]
    for line in axes.get_lines():
        name, value = line.get_label().split(": ")
        np.testing.assert_array_equal(line.get_ydata(), runs[name]["validation_elbo"])
        assert float(value.replace("\N{MINUS SIGN}", "-")) == pytest.approx(
            runs[name]["validation_elbo"].iloc[-1], abs=0.05
        )
    assert axes.get_ylabel() == "Validation ELBO (nats per cell)"
    assert figure.get_suptitle() == "Validation ELBO: pathwise ends highest"


def test_runs_have_colours_of_their_own():
    figure = compare_curves({f"run {number}": history(offset=-number) for number in range(9)})
    looks = {(line.get_color(), str(line.get_linestyle())) for line in figure.axes[0].get_lines()}
    assert len(looks) == 9


def test_seeds_of_a_run_share_its_colour_and_its_entry():
    figure = compare_curves({"pathwise": [history(), history(offset=2)], "score": [history(offset=-40)]})
    (axes,) = figure.axes
    drawn = axes.get_lines()
    assert len(drawn) == 3
    assert len({line.get_color() for line in drawn}) == 2
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    mean = (history()["validation_elbo"].iloc[-1] + history(offset=2)["validation_elbo"].iloc[-1]) / 2
    assert texts[0] == f"pathwise: \N{MINUS SIGN}{-mean:.1f}"


def test_other_axes_are_read_and_labelled():
    frame = history().assign(seconds=np.linspace(1, 9, 40), held_out_bound=-3.0)
    (axes,) = compare_curves({"run": frame}, x="seconds", y="held_out_bound").axes
    assert axes.get_xlabel() == "Training time (seconds)"
    assert axes.get_ylabel() == "Held-out bound (nats per cell)"
    np.testing.assert_array_equal(axes.get_lines()[0].get_xdata(), frame["seconds"])


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ({}, "at least one run"),
        ({"a": history().assign(validation_elbo=np.nan)}, r"histories\['a'\] has no finite value"),
        ({"a": []}, r"histories\['a'\] has no finite value"),
        ({"a": history().drop(columns="validation_elbo")}, "lacks the columns"),
    ],
)
def test_runs_that_cannot_be_compared_are_named(runs, message):
    with pytest.raises(ValueError, match=message):
        compare_curves(runs)
