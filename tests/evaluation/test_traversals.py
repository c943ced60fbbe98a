"""Walks along latents against decoders whose answer is known."""

import numpy as np
import pytest
import torch
from scipy.special import softmax

import genailab_pyro as glp
from genailab_pyro.evaluation.traversals import positions, traverse

LATENTS = 3


@pytest.fixture(scope="module")
def adata():
    drawn, _ = glp.data.simulate(120, 15, num_types=3, num_batches=2, seed=1)
    drawn.obs["batch"] = np.where(np.arange(120) < 80, "often", "rare")
    drawn.obs["dose"] = np.linspace(0.0, 2.0, drawn.n_obs)
    return drawn


@pytest.fixture(scope="module")
def cells(adata):
    return glp.register(adata, conditions=["batch"], continuous=["dose"])


def trained(cells, kind=glp.CVAE_NB, **options):
    options = {"latent_dim": LATENTS, "hidden_dims": [8], **options}
    return glp.fit(kind.from_registration(cells, **options), cells, max_epochs=3, progress=False)


@pytest.fixture(scope="module")
def fitted(cells):
    return trained(cells)


@pytest.fixture(scope="module")
def linear(cells):
    """A fit without hidden layers, whose log expression is linear in z and the condition."""
    return trained(cells, hidden_dims=[])


def by_hand(fit, adata=None, condition=(1.0, 0.0, 0.0), num_steps=7):
    """Library times the softmax of the linear decoder along each walk."""
    z, head = fit.latent(adata), fit.vae.likelihood.log_expression
    weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()
    library = np.exp(np.mean(np.log(fit.cells.library)))
    walks = np.empty((LATENTS, num_steps, 15))
    for latent in range(LATENTS):
        for row, step in enumerate(np.linspace(-2, 2, num_steps)):
            at = z.mean(0)
            at[latent] += step * z[:, latent].std()
            walks[latent, row] = library * softmax(weight @ np.array([*at, *condition]) + bias)
    return walks


def test_a_walk_moves_one_latent_from_the_centre_of_the_cells(linear):
    np.testing.assert_allclose(traverse(linear), by_hand(linear), rtol=1e-4)
    np.testing.assert_allclose(traverse(linear, steps=3), by_hand(linear, num_steps=3), rtol=1e-4)


def test_the_cells_that_are_given_are_the_ones_walked_from(linear, adata):
    some = adata[adata.obs["cell_type"] == adata.obs["cell_type"].iloc[0]].copy()
    found = traverse(linear, some)
    np.testing.assert_allclose(found, by_hand(linear, some), rtol=1e-4)
    assert not np.allclose(found, traverse(linear), rtol=0.01)


def test_it_is_decoded_under_the_most_frequent_level_or_the_one_that_is_named(linear, cells):
    dose = cells.registration.continuous[0]
    named = traverse(linear, conditions={"batch": "rare"}, continuous={"dose": 2.0})
    np.testing.assert_allclose(named, by_hand(linear, condition=(0.0, 1.0, (2.0 - dose.loc) / dose.scale)), rtol=1e-4)
    np.testing.assert_allclose(traverse(linear, conditions={"batch": "often"}), traverse(linear))


def test_all_walks_cross_at_the_centre_and_one_without_spread_stays_there(cells):
    fit = trained(cells)
    with torch.no_grad():
        fit.vae.encoder.loc.weight[1] = 0
    walks = traverse(fit)
    np.testing.assert_allclose(walks[:, 3], np.broadcast_to(walks[0, 3], (LATENTS, 15)), rtol=1e-5)
    np.testing.assert_allclose(walks[1], np.broadcast_to(walks[0, 3], (7, 15)), rtol=1e-5)
    assert np.abs(np.log(walks[[0, 2]] / walks[0, 3])).max() > 1e-3


def test_it_is_the_same_every_time_and_leaves_the_random_state(fitted):
    state = torch.get_rng_state()
    np.testing.assert_array_equal(traverse(fitted), traverse(fitted))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (glp.CVAE, {}),
        (glp.CVAE_ZINB, {}),
        (glp.CVAE_NB, {"library": "latent"}),
        (glp.CVAE_NB, {"inverse_dispersion": "gene-condition", "embedding_dim": 2}),
        (glp.HierarchicalVAE, {}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_counts_are_those_of_a_typical_cell_whatever_the_model(cells, kind, options):
    walks = traverse(trained(cells, kind, **options), width=1.0)
    assert walks.shape == (LATENTS, 7, 15)
    typical = np.exp(np.log(cells.library).mean())
    np.testing.assert_allclose(walks.sum(-1), typical, rtol=0.5 if kind is glp.CVAE else 1e-4)


def test_double_precision_is_kept(cells):
    vae = glp.CVAE_NB.from_registration(cells, latent_dim=LATENTS, hidden_dims=[8]).double()
    fit = glp.fit(vae, cells, max_epochs=1, progress=False)
    total = traverse(fit).sum(-1)
    np.testing.assert_allclose(total, np.exp(cells.registration.library.loc), rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 6}, "odd number of steps of at least three, as the middle one is at 0, got 6"),
        ({"steps": 1}, "odd number of steps of at least three, .* got 1"),
        ({"width": 0.0}, "width to be finite and above 0, got 0.0"),
        ({"width": np.inf}, "width to be finite and above 0, got inf"),
        ({"conditions": {"batch": "b9"}}, "no level 'b9'"),
        ({"conditions": {"bach": "often"}}, "'bach'"),
        ({"continuous": {"dose": np.nan}}, "one finite value of 'dose'"),
    ],
)
def test_walks_that_cannot_be_are_refused(fitted, options, message):
    with pytest.raises(ValueError, match=message):
        traverse(fitted, **options)


def test_bits_have_no_walk(cells):
    vae = glp.BernoulliVAE.from_registration(cells, latent_dim=LATENTS, hidden_dims=[8])
    fit = glp.fit(vae, cells, "score-loo", max_epochs=1, progress=False)
    with pytest.raises(ValueError, match="latents that are real numbers, got bits"):
        traverse(fit)


def test_positions_hold_zero_exactly():
    assert all(0.0 in positions(steps, width) for steps in (3, 5, 7, 9, 11) for width in (0.1, 1.3, 2.0, 3.0))
