"""The linear VAE against a search for its optimum, and small fits."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from genailab_pyro.lab.collapse import LinearVAE, fit_small, linear_vae, simulated_cells


def loss(parameters, covariance, noise, beta, num_latents):
    """Minus the beta-weighted ELBO of a linear VAE per cell, apart from constants, by the moments of the values."""
    genes = len(covariance)
    decoder, encoder, log_scale = np.split(parameters, [genes * num_latents, 2 * genes * num_latents])
    decoder, encoder = decoder.reshape(genes, num_latents), encoder.reshape(num_latents, genes)
    spread = np.exp(2 * log_scale)
    left = np.eye(genes) - decoder @ encoder
    squared = np.trace(left @ covariance @ left.T) + (decoder**2 @ spread).sum()
    kl = 0.5 * (np.diag(encoder @ covariance @ encoder.T) + spread - 2 * log_scale - 1)
    return squared / (2 * noise) + beta * kl.sum(), kl


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0, 9.0])
def test_no_linear_vae_is_better_than_the_closed_form(beta):
    lengths, noise = np.array([6.0, 2.0, 0.5, 0.5]), 0.5
    start = np.random.default_rng(0).normal(0, 0.3, 2 * 4 * 2 + 2)
    found = minimize(lambda values: loss(values, np.diag(lengths), noise, beta, 2)[0], start, tol=1e-10)
    kl = np.sort(loss(found.x, np.diag(lengths), noise, beta, 2)[1])[::-1]
    exact = LinearVAE(lengths[:2], noise).kl(np.array([beta]))[0]
    np.testing.assert_allclose(kl, exact, atol=2e-3)
    # Half of the noise is another model.
    assert not np.allclose(kl, LinearVAE(lengths[:2], noise / 2).kl(np.array([beta]))[0], atol=0.02)


def test_a_latent_collapses_at_its_threshold():
    linear = LinearVAE(np.array([8.0, 2.0]), 0.5)
    assert linear.thresholds.tolist() == [16.0, 4.0]
    assert linear.active_units(np.array([3.0, 4.0, 15.0, 16.0])).tolist() == [2, 1, 1, 0]


def test_the_noise_is_what_is_left_of_the_variance():
    values = np.random.default_rng(0).normal(size=(500, 5)) * [3.0, 2.0, 1.0, 1.0, 1.0]
    linear = LinearVAE.of(values, 2)
    total = np.cov(values.T, bias=True).trace()
    assert linear.lengths.sum() + 3 * linear.noise == pytest.approx(total)
    assert linear.lengths[0] > linear.lengths[1] > linear.noise


def test_what_has_no_linear_vae_is_refused():
    with pytest.raises(ValueError, match=r"more of both than num_latents.*got shape \(3, 2\) and 2 latents"):
        LinearVAE.of(np.ones((3, 2)), 2)
    with pytest.raises(ValueError, match="expected betas above zero"):
        LinearVAE(np.ones(2), 1.0).kl(np.array([0.0]))


def test_the_simulated_cells_have_latents_to_lose():
    thresholds = linear_vae(simulated_cells()).thresholds
    assert thresholds[0] > 16 * thresholds[-1] > 16


def test_a_small_fit_has_a_history_and_a_diagnosis():
    state = torch.get_rng_state()
    small = fit_small(simulated_cells(), 2.0, 0.5, max_epochs=4)
    assert small.history["beta"].iloc[-1] == 2
    assert small.history["beta"].is_monotonic_increasing
    assert small.diagnosis.latents.kl.shape == (6,)
    assert torch.equal(torch.get_rng_state(), state)
    constant = fit_small(simulated_cells(), 2.0, 0.0, max_epochs=1)
    assert constant.history["beta"].tolist() == [2]


def test_a_warm_up_that_is_no_share_is_refused():
    with pytest.raises(ValueError, match=r"a share of the training in \[0, 1\], got 3"):
        fit_small(simulated_cells(), 1.0, 3.0)


@pytest.mark.slow
def test_a_larger_beta_leaves_fewer_active_units():
    small, large = (fit_small(simulated_cells(), beta, 0.3).diagnosis for beta in (0.5, 16.0))
    assert small.active_units > large.active_units
    assert small.latents.kl.sum() > large.latents.kl.sum()
