"""A guide refined cell by cell against closed forms of a linear-Gaussian model, and an encoder spoilt on purpose."""

import copy
import dataclasses
import random

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from genailab_pyro import (
    CVAE_NB,
    MLP,
    VAE,
    BernoulliVAE,
    Cells,
    Encoder,
    HierarchicalVAE,
    Likelihood,
    NegativeBinomialLikelihood,
    StandardNormal,
    Training,
    data,
    estimators,
    fit,
    register,
)
from genailab_pyro.evaluation import Estimate, amortisation
from genailab_pyro.evaluation.amortisation import CellwiseGuide, amortisation_gap
from genailab_pyro.model.encoders import FullRankEncoder
from genailab_pyro.model.flows import FlowEncoder
from genailab_pyro.train.fitted import Fit

GENES, LATENT, CELLS = 6, 2, 60


class CountsAsValues(Likelihood):
    """Normal values with overlapping loadings, so that the exact posterior is correlated."""

    def __init__(self, latent_dim, genes):
        super().__init__()
        self.loc = nn.Linear(latent_dim, genes)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, features, minibatch):
        return dist.Normal(self.loc(features), self.log_scale.exp()).to_event(1)


class Linear(Encoder):
    """Location linear in the values, one scale per latent."""

    def __init__(self, genes, latent_dim):
        super().__init__()
        self.loc = nn.Linear(genes, latent_dim)
        self.log_scale = nn.Parameter(torch.zeros(latent_dim))

    def forward(self, minibatch):
        return dist.Normal(self.loc(minibatch.counts), self.log_scale.exp()).to_event(1)


def fit_of(vae, cells):
    """A fit of a VAE as it is."""
    history = pd.DataFrame({"epoch": [], "gradient_norm": [], "train_elbo": [], "validation_elbo": []})
    return Fit(vae.eval(), cells.registration, history, estimators.get("pathwise"), Training(), 0, cells)


@pytest.fixture(scope="module")
def linear():
    torch.manual_seed(0)
    cells = Cells.from_tensors(torch.poisson(torch.full((CELLS, GENES), 4.0)) + 1)
    vae = VAE(StandardNormal(LATENT), MLP(LATENT, []), CountsAsValues(LATENT, GENES), Linear(GENES, LATENT))
    with torch.no_grad():
        loadings = 0.5 + torch.rand(GENES, 1) + 0.4 * torch.randn(GENES, LATENT)
        vae.encoder.loc.weight.mul_(0.3)
        vae.likelihood.loc.weight.copy_(loadings)
        vae.likelihood.loc.bias.fill_(5.0)
        vae.likelihood.log_scale.fill_(0.5)
    return fit_of(vae.double(), cells)


@pytest.fixture(scope="module")
def exact(linear):
    """Log-likelihood of each cell, its bound by the best normal with independent latents, and its ELBO as it is."""
    values = linear.cells.take(range(CELLS), dtype=torch.float64).counts
    likelihood, encoder = linear.vae.likelihood, linear.vae.encoder
    with torch.no_grad():
        loadings, noise = likelihood.loc.weight, (2 * likelihood.log_scale).exp()
        covariance = loadings @ loadings.T + noise * torch.eye(GENES)
        log_likelihood = dist.MultivariateNormal(likelihood.loc.bias, covariance).log_prob(values)
        precision = torch.eye(LATENT) + loadings.T @ loadings / noise
        mean_field = (precision.diagonal().log().sum() - torch.logdet(precision)) / 2
        mean = torch.linalg.solve(precision, loadings.T @ (values - likelihood.loc.bias).T / noise).T
        posterior = dist.MultivariateNormal(mean, precision_matrix=precision)
        guide = dist.MultivariateNormal(encoder.loc(values), scale_tril=encoder.log_scale.exp().diag())
        elbo = log_likelihood - torch.distributions.kl_divergence(guide, posterior)
    assert mean_field > 0.1
    return {
        "log_likelihood": log_likelihood.numpy(),
        "refined_elbo": (log_likelihood - mean_field).numpy(),
        "elbo": elbo.numpy(),
    }


@pytest.fixture(scope="module")
def gaps(linear):
    return amortisation_gap(linear, num_steps=300, num_particles=400)


def agrees(first, second):
    """Whether two values of each cell agree on average over cells, within five standard errors."""
    difference = Estimate.of(np.asarray(first - second))
    return abs(difference.mean) < 5 * difference.standard_error


class TestOnALinearGaussianModel:
    def test_a_row_per_cell_and_gaps_that_add_up(self, gaps, linear):
        assert [*gaps.columns] == ["elbo", "refined_elbo", "log_likelihood", "amortisation_gap", "approximation_gap"]
        assert [*gaps.index] == [*linear.cells.obs_names]
        np.testing.assert_allclose(gaps["refined_elbo"] - gaps["elbo"], gaps["amortisation_gap"])
        np.testing.assert_allclose(gaps["log_likelihood"] - gaps["refined_elbo"], gaps["approximation_gap"])
        assert (gaps["approximation_gap"] > 0).all()  # of the same draws

    @pytest.mark.parametrize("column", ["elbo", "refined_elbo", "log_likelihood"])
    def test_each_column_is_its_closed_form(self, gaps, exact, column):
        assert agrees(gaps[column], exact[column])
        assert not any(agrees(gaps[column], exact[other]) for other in exact if other != column)

    def test_refinement_reaches_the_best_guide_of_its_form_in_every_cell(self, gaps, exact):
        scatter = (gaps["refined_elbo"] - exact["refined_elbo"]).std()
        assert (abs(gaps["refined_elbo"] - exact["refined_elbo"]) < 5 * scatter).all()
        assert scatter < 0.1
        assert gaps["amortisation_gap"].mean() > 10 * scatter

    def test_without_steps_there_is_no_gap(self, linear):
        gaps = amortisation_gap(linear, num_steps=0, num_particles=7)
        np.testing.assert_allclose(gaps["elbo"], gaps["refined_elbo"], rtol=1e-9)

    def test_some_cells_alone_are_refined_as_among_others(self, linear, gaps):
        some = amortisation_gap(linear, linear.cells.subset([3, 8]), num_steps=300)
        assert [*some.index] == [*gaps.index[[3, 8]]]
        np.testing.assert_allclose(some["refined_elbo"], gaps["refined_elbo"].iloc[[3, 8]], atol=0.3)

    def test_the_draws_are_scored_in_blocks_and_the_cells_in_minibatches(self, linear, exact, monkeypatch):
        monkeypatch.setattr(amortisation, "CHUNK", 7 * GENES * 20)
        monkeypatch.setattr(amortisation, "CELLS_AT_ONCE", 20)
        gaps = amortisation_gap(linear, num_steps=300, num_particles=100)
        assert len(gaps) == CELLS
        assert all(agrees(gaps[column], exact[column]) for column in ("elbo", "refined_elbo"))


@pytest.fixture(scope="module")
def cells():
    return register(data.simulate(150, 20, num_batches=2, seed=0).adata, conditions=["batch"])


@pytest.fixture(scope="module")
def trained(cells):
    vae = CVAE_NB.from_registration(cells, latent_dim=2, hidden_dims=[16], dropout=0.0, library="latent")
    return fit(vae, cells, max_epochs=40, minibatch_size=32, learning_rate=0.01, progress=False)


def with_encoder_spoilt(trained):
    vae = copy.deepcopy(trained.vae)
    with torch.no_grad():
        vae.encoder.loc.weight.mul_(-1)
        vae.encoder.scale.bias.add_(1)
    return dataclasses.replace(trained, vae=vae)


class TestOnCounts:
    @pytest.fixture(scope="class")
    def gaps(self, trained):
        return amortisation_gap(trained)

    def test_refinement_does_not_lower_the_bound(self, gaps):
        gain = Estimate.of(gaps["amortisation_gap"].to_numpy())
        assert gain.mean > -5 * gain.standard_error
        assert gaps["amortisation_gap"].min() > -3
        assert (gaps["log_likelihood"] > gaps["refined_elbo"]).all()

    def test_the_bounds_are_those_of_the_fit(self, gaps, trained):
        assert agrees(gaps["elbo"], trained.elbo(num_particles=100, seed=5))
        assert not agrees(gaps["elbo"], trained.log_likelihood(num_particles=100, seed=5))

    def test_a_spoilt_encoder_has_a_large_gap_that_refinement_closes(self, gaps, trained):
        spoilt = amortisation_gap(with_encoder_spoilt(trained), num_steps=400)
        assert spoilt["amortisation_gap"].mean() > 10 * max(gaps["amortisation_gap"].mean(), 0.1)
        np.testing.assert_allclose(spoilt["refined_elbo"].mean(), gaps["refined_elbo"].mean(), atol=0.5)

    def test_the_latent_library_is_refined_too(self, trained):
        vae = copy.deepcopy(trained.vae)
        with torch.no_grad():
            vae.library.head.bias[0] += 1
        spoilt = amortisation_gap(dataclasses.replace(trained, vae=vae), num_steps=400)
        assert spoilt["amortisation_gap"].mean() > 5
        np.testing.assert_allclose(
            spoilt["refined_elbo"].mean(), amortisation_gap(trained)["refined_elbo"].mean(), atol=0.5
        )


def test_the_fit_and_the_callers_state_are_left_as_they_were(trained):
    pyro.get_param_store().clear()
    pyro.param("mine", torch.tensor([1.0]))

    def state():
        store = pyro.get_param_store()
        return (
            torch.get_rng_state().tolist(),
            str(np.random.get_state()),  # noqa: NPY002  (the caller's, that must not move)
            random.getstate(),
            {name: store[name].tolist() for name in store.get_all_param_names()},
            torch.distributions.Distribution._validate_args,
            torch.is_grad_enabled(),
            {name: value.tolist() for name, value in trained.vae.state_dict().items()},
            [(value.requires_grad, value.grad is None) for value in trained.vae.parameters()],
            trained.vae.training,
        )

    before = state()
    first = amortisation_gap(trained, num_steps=5, num_particles=3)
    assert state() == before
    torch.manual_seed(99)
    pd.testing.assert_frame_equal(amortisation_gap(trained, num_steps=5, num_particles=3), first)
    other = amortisation_gap(trained, num_steps=5, num_particles=3, seed=1)
    assert not np.allclose(other["elbo"], first["elbo"])
    pyro.get_param_store().clear()


@pytest.mark.parametrize("kind", [FullRankEncoder, FlowEncoder])
def test_a_guide_of_another_form_is_refined_from_its_moments(kind, cells):
    torch.manual_seed(0)
    likelihood = NegativeBinomialLikelihood(2, 20)
    fitted = fit_of(VAE(StandardNormal(2), MLP(2, []), likelihood, kind(20, 2, [8])), cells)
    minibatch = cells.take(range(30))
    posterior = fitted.vae.encoder(minibatch)
    guide = CellwiseGuide(fitted.vae, minibatch)
    torch.testing.assert_close(guide.z.loc, posterior.mean)
    torch.testing.assert_close(guide.z.scale, posterior.sample((4000,)).std(0), rtol=0.15, atol=0)
    gaps = amortisation_gap(fitted, cells.subset(range(30)), num_particles=10)
    assert gaps["amortisation_gap"].mean() > 1


class TestRefusals:
    @pytest.mark.parametrize(
        ("kind", "message"),
        [
            (HierarchicalVAE, "expected a VAE whose only latents are z and a library, got HierarchicalVAE with 'z2'"),
            (BernoulliVAE, "expected continuous latents to refine, got BernoulliVAE with an encoder of draws without"),
        ],
    )
    def test_latents_that_have_no_normal_of_their_own(self, kind, message, cells):
        with pytest.raises(ValueError, match=message):
            amortisation_gap(fit_of(kind(20, 2, 2, [8]), cells))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_steps": -1}, "expected num_steps to be a whole number of at least 0, got -1"),
            ({"num_steps": 2.5}, "expected num_steps to be a whole number of at least 0, got 2.5"),
            ({"num_particles": 0}, "expected num_particles to be a whole number of at least 1, got 0"),
            ({"learning_rate": 0.0}, "expected learning_rate to be finite and above 0, got 0.0"),
            ({"learning_rate": float("nan")}, "expected learning_rate to be finite and above 0, got nan"),
        ],
    )
    def test_numbers_out_of_range(self, trained, options, message):
        with pytest.raises(ValueError, match=message):
            amortisation_gap(trained, **options)

    def test_other_cells(self, trained):
        with pytest.raises(ValueError, match="expected cells registered with the genes and conditions of this fit"):
            amortisation_gap(trained, Cells.from_tensors(torch.ones(3, 4)))
