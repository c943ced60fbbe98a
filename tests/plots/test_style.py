"""Figures keep to themselves: no pyplot, no changed settings."""

import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from genailab_pyro import plots
from genailab_pyro.plots import style

EPOCHS = pd.DataFrame({"epoch": range(1, 31), "beta": [0.5] * 9 + [1.0] * 21})
for _part in ("train", "validation"):
    EPOCHS[f"{_part}_reconstruction"] = 800 + 600 * np.exp(-EPOCHS["epoch"])
    EPOCHS[f"{_part}_kl"] = np.linspace(3, 12, 30)
    EPOCHS[f"{_part}_elbo"] = -EPOCHS[f"{_part}_reconstruction"] - EPOCHS[f"{_part}_kl"]

FIGURES = {
    "training_curves": lambda: plots.training_curves(EPOCHS),
    "compare_curves": lambda: plots.compare_curves({"pathwise": EPOCHS, "score-graph-ema": EPOCHS}),
    "gradient_variances": lambda: plots.gradient_variances(["a", "b"], [1.0, 100.0]),
    "estimates": lambda: plots.estimates(["a"], [1.0], [0.1], xlabel="x (nats)", title="t"),
    "kl_per_latent": lambda: plots.kl_per_latent([1.0, 0.0]),
    "embedding": lambda: plots.embedding(np.eye(2), ["a", "b"], title="t"),
    "zero_fraction": lambda: plots.zero_fraction([0.5], {"m": [0.4]}),
    "mean_variance": lambda: plots.mean_variance(([1.0], [2.0]), {"m": ([1.0], [1.5])}),
    "gradient_scatter": lambda: plots.gradient_scatter({"a": np.eye(2), "b": 30 * np.eye(2)}, coordinates=("x", "y")),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn_without_warnings_and_settings_stay(name):
    before = dict(mpl.rcParams)
    figure = FIGURES[name]()
    figure.draw_without_rendering()
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("name", FIGURES)
def test_every_word_lies_within_the_figure(name):
    figure = FIGURES[name]()
    figure.draw_without_rendering()
    outer = figure.get_tightbbox().padded(-0.001)
    width, height = figure.get_size_inches()
    assert outer.x0 >= 0
    assert outer.y0 >= 0
    assert outer.x1 <= width
    assert outer.y1 <= height


def test_figures_do_not_need_pyplot():
    code = (
        "import sys, importlib.util, numpy as np\n"
        "from matplotlib.figure import Figure\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        f"sys.path.insert(0, {str(next(iter(plots.__path__)))!r} + '/../..')\n"
        "import types\n"
        "package = types.ModuleType('genailab_pyro')\n"
        f"package.__path__ = [{str(next(iter(plots.__path__)))!r} + '/..']\n"
        "sys.modules['genailab_pyro'] = package\n"
        "from genailab_pyro import plots\n"
        "plots.embedding(np.eye(2), ['a', 'b'], title='t').draw_without_rendering()\n"
        "assert 'matplotlib.pyplot' not in sys.modules, 'pyplot'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ends at -824.1", "ends at \N{MINUS SIGN}824.1"),
        ("score-graph-2 by -.5", "score-graph-2 by \N{MINUS SIGN}.5"),
        ("a - b", "a - b"),
        ("$x$", r"\$x\$"),
    ],
)
def test_only_a_sign_becomes_a_minus(text, shown):
    assert style.typeset(text) == shown


def test_colours_repeat_only_with_another_line():
    looks = {(style.colour(position), style.line_style(position)) for position in range(28)}
    assert len(looks) == 28
