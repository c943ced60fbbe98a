"""A model card says all it must, in Markdown that shows what was given."""

import pytest

from genailab_pyro.report import model_card

PARTS = {
    "data": {"cells": 700, "source": "blood | cells", "conditions": ("batch", "dose")},
    "model": {
        "likelihood": "NB",
        "decoder": {"hidden": [128, 64], "dropout": 0.1, "norm": None, "output": {"bias": False}},
    },
    "estimator": {"name": "pathwise", "num_particles": 1},
    "training": {"seed": 7, "learning_rate": 0.001, "early_stopping": True},
    "held_out": {"ELBO (nats per cell)": "-812.35 ± 0.43"},
    "versions": {"torch": "2.4.0"},
    "intended_use": "Denoising of counts.",
    "limits": ["No other tissue was seen.", "- not for diagnosis"],
}


def written(tmp_path, name="A model", **changes):
    return model_card(tmp_path / "MODEL_CARD.md", name, **{**PARTS, **changes}).read_text(encoding="utf-8")


def test_every_part_is_there_under_its_heading(tmp_path):
    text = written(tmp_path)
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "Intended use",
        "Limits",
        "Data",
        "Model",
        "Gradient estimator",
        "Training",
        "Held-out figures",
        "Versions",
    ]
    assert text.startswith("# A model\n\n")
    assert text.endswith("|\n")


@pytest.mark.parametrize(
    "row",
    [
        "| cells | 700 |",
        "| conditions | batch, dose |",
        "| decoder.hidden | 128, 64 |",
        "| decoder.dropout | 0.1 |",
        "| decoder.norm | none |",
        "| decoder.output.bias | no |",
        "| seed | 7 |",
        "| early\\_stopping | yes |",
        "| ELBO (nats per cell) | -812.35 ± 0.43 |",
        "| source | blood \\| cells |",
    ],
)
def test_fields_are_rows_of_tables(tmp_path, row):
    assert row in written(tmp_path).splitlines()


def test_points_are_a_list(tmp_path):
    assert "- No other tissue was seen.\n- \\- not for diagnosis\n" in written(tmp_path)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("<script>x</script>", "&lt;script&gt;x&lt;/script&gt;"),
        ("a\n\n# heading", "a \\# heading"),
        ("![x](y) `code` *b* _i_ ~s~", "!\\[x\\](y) \\`code\\` \\*b\\* \\_i\\_ \\~s\\~"),
        ("1. first", "1\\. first"),
        ("12.5 nats", "12.5 nats"),
        ("a\\|b & $x$", "a\\\\\\|b &amp; \\$x\\$"),
    ],
)
def test_no_character_means_anything_to_markdown(tmp_path, given, shown):
    assert f"## Intended use\n\n{shown}\n\n" in written(tmp_path, intended_use=given)


def test_a_cell_of_a_table_stays_one_cell(tmp_path):
    line = next(line for line in written(tmp_path, data={"a|b": "c\n| d |"}).splitlines() if line.startswith("| a"))
    assert line == "| a\\|b | c \\| d \\| |"


def test_the_name_is_escaped(tmp_path):
    assert written(tmp_path, name="CVAE_NB <b>").startswith("# CVAE\\_NB &lt;b&gt;\n")


def test_a_part_left_empty_is_named(tmp_path):
    with pytest.raises(ValueError, match="these are empty: Limits, Versions"):
        written(tmp_path, limits="", versions={})
    assert not list(tmp_path.iterdir())


def test_the_seed_is_asked_for(tmp_path):
    with pytest.raises(ValueError, match=r"training must hold the seed of the fit.*\['max_epochs'\]"):
        written(tmp_path, training={"max_epochs": 3})
