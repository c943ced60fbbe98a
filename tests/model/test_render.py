"""Every part of the matrix is drawn by ``pyro.render_model``, with the sites and edges that it is said to have."""

import re
from itertools import pairwise

import pyro
import pytest
import torch

from tests.contracts.matrix import PARTS, simulated

pytest.importorskip("graphviz")

# Latent sites from above, and what is observed; each latent is a parent of what is below it.
LATENTS = {"HierarchicalVAE": ["z2", "z"], "LabelVAE": ["label", "z"], "SemiSupervisedVAE": ["label", "z"]}
HEADS = {"LabelHead": {"y": "z"}, "SemiSupervisedVAE": {"annotation": "label"}}


def drawn(program, minibatch):
    """Names of the latent and of the observed sites, and the edges, that Pyro's graph of a program has."""
    torch.manual_seed(0)
    source = pyro.render_model(program, model_args=(minibatch,)).source
    assert "label=cells" in source
    colours = dict(re.findall(r"(\w+) \[label=\w+ fillcolor=(white|gray)", source))
    edges = set(re.findall(r"(\w+) -> (\w+)", source))
    by_colour = {colour: {site for site, its in colours.items() if its == colour} for colour in ("white", "gray")}
    return by_colour["white"], by_colour["gray"], edges


@pytest.fixture(scope="module")
def minibatch():
    return simulated().take(range(6))


@pytest.mark.parametrize("name", PARTS)
def test_the_sites_of_both_programs_are_drawn(name, minibatch):
    torch.manual_seed(0)
    vae = PARTS[name].build()
    latents, heads = LATENTS.get(name, ["z"]), HEADS.get(name, {})
    white, gray, edges = drawn(vae.model, minibatch)
    assert white == set(latents)
    assert gray == {"x", *heads}
    assert edges == {("z", "x"), *pairwise(latents), *((above, site) for site, above in heads.items())}
    white, gray, _ = drawn(vae.guide, minibatch)
    assert (white, gray) == (set(latents), set())


def test_a_part_that_is_left_out_is_not_drawn(minibatch):
    torch.manual_seed(0)
    vae = PARTS["LabelHead"].build()
    _, gray, _ = drawn(vae.model, minibatch._replace(labels=None))
    assert gray == {"x"}
