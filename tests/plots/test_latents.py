"""Bars of latent use are in order, under their index, and marked when active."""

import numpy as np
import pytest

from genailab_pyro.plots import kl_per_latent

KL = np.array([2.4, 0.004, 1.7, 0.9, 0.0003])


def bars(figure):
    axes = figure.axes[0]
    names = [tick.get_text() for tick in axes.get_xticklabels()]
    return {int(name): (bar.get_height(), bar.get_facecolor()) for name, bar in zip(names, axes.patches, strict=True)}


def test_each_bar_is_the_kl_of_the_index_under_it():
    drawn = bars(kl_per_latent(KL))
    assert list(drawn) == [0, 2, 3, 1, 4]
    assert {latent: height for latent, (height, _) in drawn.items()} == dict(enumerate(KL))


def test_active_latents_have_a_colour_of_their_own_and_are_counted():
    figure = kl_per_latent(KL)
    drawn = bars(figure)
    assert drawn[0][1] == drawn[2][1] == drawn[3][1] != drawn[1][1] == drawn[4][1]
    assert figure.get_suptitle() == "3 of 5 latent dimensions are active; they carry 5.00 nats per cell"


def test_the_threshold_moves_the_mark():
    assert kl_per_latent(KL, threshold=1.0).get_suptitle().startswith("2 of 5")


def test_a_stricter_rule_replaces_the_threshold():
    figure = kl_per_latent(KL, active=[True, False, False, False, False])
    assert figure.get_suptitle().startswith("1 of 5 latent dimensions are active; they carry 2.40")
    assert "spread" in figure.axes[0].get_legend().get_texts()[0].get_text()


def test_axes_are_labelled_with_units():
    axes = kl_per_latent(KL).axes[0]
    assert axes.get_ylabel() == "Mean KL to the prior (nats)"
    assert axes.get_xlabel().startswith("Index of the latent dimension")


def test_many_latents_keep_readable_ticks():
    axes = kl_per_latent(np.linspace(1, 0.1, 100)).axes[0]
    assert len(axes.patches) == 100
    assert len(axes.get_xticklabels()) <= 32
    assert not axes.texts


@pytest.mark.parametrize(
    ("kl", "active", "message"),
    [
        (np.ones((2, 2)), None, "kl must be a vector"),
        ([1.0, np.nan], None, "kl must be finite"),
        ([1.0, 2.0], [True], r"active must be a vector of shape \[2\]"),
    ],
)
def test_latents_that_do_not_fit_are_named(kl, active, message):
    with pytest.raises(ValueError, match=message):
        kl_per_latent(kl, active=active)
