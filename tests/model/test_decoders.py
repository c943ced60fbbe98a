"""Loadings of a linear decoder: what they are, what has none, and the space that they find."""

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import torch

from genailab_pyro import (
    MLP,
    VAE,
    Cells,
    GaussianLikelihood,
    NegativeBinomialLikelihood,
    NormalEncoder,
    OneHot,
    StandardNormal,
    Training,
    fit,
)
from genailab_pyro.model.count_likelihoods import MixtureLikelihood, PoissonLikelihood
from genailab_pyro.model.decoders import LinearDecoder, loadings
from genailab_pyro.nn import Declared

GENES = [f"gene {i}" for i in range(5)]
LEVELS = 3


def declare(likelihood=NegativeBinomialLikelihood, decoder=LinearDecoder, **options):
    torch.manual_seed(0)
    condition = OneHot([LEVELS])
    return VAE(
        prior=StandardNormal(2),
        decoder=decoder(2, condition_dim=LEVELS),
        likelihood=likelihood(2 + LEVELS, len(GENES), **options),
        encoder=NormalEncoder(len(GENES), 2, [8], condition=condition),
        condition=condition,
    )


def identity_mlp(latent_dim, condition_dim):
    return MLP(latent_dim, [], condition_dim=condition_dim)


@pytest.mark.parametrize("decoder", [LinearDecoder, identity_mlp])
@pytest.mark.parametrize("size_factor", [False, True])
def test_loadings_are_what_a_unit_of_a_latent_adds_to_the_log_expression(decoder, size_factor, make_minibatch):
    vae = declare(decoder=decoder, size_factor=size_factor).double()
    minibatch, z = make_minibatch(dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    found = loadings(vae, GENES)
    assert [*found.index] == GENES
    assert [*found.columns] == ["z0", "z1"]
    for latent, column in enumerate(found):
        step = torch.eye(2, dtype=torch.float64)[latent]
        before, after = (vae.likelihood.expression(vae.decode(at, minibatch), minibatch).log() for at in (z, z + step))
        change = after - before
        if not size_factor:
            change = change - change.mean(-1, keepdim=True)
        np.testing.assert_allclose(change.detach(), np.tile(found[column], (6, 1)), atol=1e-12)


def test_numbers_that_proportions_do_not_show_do_not_show_in_the_loadings():
    vae = declare()
    before = loadings(vae, GENES)
    with torch.no_grad():
        vae.likelihood.log_expression.weight.add_(torch.tensor([3.0, -1.0, 0.0, 0.0, 0.0]))
    pd.testing.assert_frame_equal(loadings(vae, GENES), before, atol=1e-5)


def test_loadings_of_normal_values_are_those_of_their_mean():
    vae = declare(GaussianLikelihood)
    np.testing.assert_array_equal(loadings(vae, GENES), vae.likelihood.loc.weight[:, :2].detach())


def test_what_has_no_loadings_is_refused_with_the_reason():
    hidden = declare(decoder=lambda latent, condition_dim: MLP(latent, [7, 5], condition_dim=condition_dim))
    with pytest.raises(TypeError, match=r"linear decoder, got MLP with 2 hidden layer.*LinearDecoder"):
        loadings(hidden, GENES)
    other = declare(decoder=lambda latent, condition_dim: torch.nn.Bilinear(latent, condition_dim, 5))
    with pytest.raises(TypeError, match="linear decoder, got Bilinear, whose effect"):
        loadings(other, GENES)
    mixture = declare(lambda features, genes: MixtureLikelihood([PoissonLikelihood(features, genes)] * 2, genes))
    with pytest.raises(TypeError, match="one linear output for each gene, got MixtureLikelihood"):
        loadings(mixture, GENES)
    with pytest.raises(ValueError, match="names of 5 genes, got 4"):
        loadings(declare(), GENES[:4])


def test_a_linear_decoder_is_declared_by_its_widths():
    decoder = LinearDecoder(4, condition_dim=2)
    again = Declared.declare(decoder.declaration())
    assert type(again) is LinearDecoder
    z, condition = torch.randn(3, 5, 4), torch.randn(5, 2)
    torch.testing.assert_close(again(z, condition), torch.cat([z, condition.expand(3, 5, 2)], dim=-1))
    with pytest.raises(ValueError, match="a condition of width 2, got none"):
        decoder(z)


@pytest.mark.slow
def test_the_loadings_span_the_space_that_counts_were_drawn_from():
    rng = np.random.default_rng(0)
    num_cells, num_genes, latent_dim = 1000, 60, 3
    truth = rng.normal(scale=0.6, size=(num_genes, latent_dim))
    log_expression = rng.normal(size=(num_cells, latent_dim)) @ truth.T + rng.normal(scale=0.5, size=num_genes)
    proportions = np.exp(log_expression) / np.exp(log_expression).sum(1, keepdims=True)
    cells = Cells.from_tensors(rng.poisson(1000 * proportions * rng.gamma(5, size=proportions.shape) / 5))
    torch.manual_seed(0)
    vae = VAE(
        prior=StandardNormal(latent_dim),
        decoder=LinearDecoder(latent_dim),
        likelihood=NegativeBinomialLikelihood(latent_dim, num_genes),
        encoder=NormalEncoder(num_genes, latent_dim, [64], dropout=0.0),
    )
    vae.initialise(cells.take(np.arange(num_cells)))
    training = Training(max_epochs=60, minibatch_size=64, learning_rate=1e-2, learning_rate_schedule="one-cycle")
    found = loadings(fit(vae, cells, training=training, progress=False).vae, cells.registration.genes)
    centred = truth - truth.mean(0)
    cosines = np.cos(scipy.linalg.subspace_angles(found.to_numpy(), centred))
    assert cosines.min() > 0.99
    chance = np.cos(scipy.linalg.subspace_angles(rng.permutation(found.to_numpy()), centred))
    assert chance.min() < 0.5
