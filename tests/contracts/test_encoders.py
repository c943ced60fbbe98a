"""The laws that every encoder obeys, the posterior of a latent library among them."""

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from genailab_pyro import Embedding, Encoder, LatentLibrary, Minibatch, NormalEncoder, OneHot
from genailab_pyro.nn import Declared

GENES, LATENT, LEVELS, CELLS = 6, 3, 2, 5


class MeanField(Encoder):
    """One location and scale for all cells, as a user might begin."""

    def __init__(self, latent_dim):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(latent_dim))

    def forward(self, minibatch):
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(1).expand([minibatch.size])


ROSTER = {
    "normal": lambda: NormalEncoder(GENES, LATENT, [8]),
    "normal-linear": lambda: NormalEncoder(GENES, LATENT, []),
    "normal-one-hot": lambda: NormalEncoder(GENES, LATENT, [8], condition=OneHot([LEVELS])),
    "normal-embedding": lambda: NormalEncoder(GENES, LATENT, [8, 8], condition=Embedding([LEVELS], 4), norm="batch"),
    "mean-field": lambda: MeanField(LATENT),
}
every_encoder = pytest.mark.parametrize("build", list(ROSTER.values()), ids=list(ROSTER))


def cells(dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    counts = torch.poisson(torch.full((CELLS, GENES), 4.0, dtype=dtype), generator=generator) * scale
    counts[:, 0] += 1
    levels = (torch.arange(CELLS) % LEVELS)[:, None]
    none = torch.zeros(CELLS, 0, dtype=dtype)
    return Minibatch(counts, levels, none, counts.sum(1), torch.arange(CELLS), CELLS)


def built(build):
    torch.manual_seed(0)
    return build().eval()


@every_encoder
def test_event_is_the_latent_and_batch_the_cells(build):
    posterior = built(build)(cells())
    assert posterior.event_shape == (LATENT,)
    assert posterior.batch_shape == (CELLS,)
    assert posterior.expand([4, CELLS]).rsample().shape == (4, CELLS, LATENT)
    assert posterior.log_prob(posterior.sample()).shape == (CELLS,)
    assert posterior.mean.shape == (CELLS, LATENT)


@every_encoder
def test_the_density_integrates_to_one(build):
    posterior = built(build).double()(cells(torch.float64)).base_dist
    start, step = posterior.mean - 9 * posterior.stddev, posterior.stddev / 50
    values = start + step * torch.arange(901, dtype=torch.float64)[:, None, None]
    integral = (posterior.log_prob(values).exp() * step).sum(0)
    torch.testing.assert_close(integral, torch.ones_like(integral), rtol=1e-6, atol=0)


@every_encoder
def test_draws_carry_a_path_to_every_parameter(build):
    encoder = built(build).train()
    drawn = encoder(cells()).rsample().square().sum()
    gradients = torch.autograd.grad(drawn, list(encoder.parameters()), allow_unused=True)
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)


@every_encoder
@pytest.mark.parametrize("scale", [0.0, 1e6])
def test_gradients_are_finite_for_empty_and_for_rich_cells(build, scale):
    encoder = built(build)
    posterior = encoder(cells(scale=scale))
    drawn = posterior.rsample()
    entropy = posterior.log_prob(drawn).sum() + drawn.square().sum()
    assert torch.isfinite(entropy)
    for gradient in torch.autograd.grad(entropy, list(encoder.parameters()), allow_unused=True):
        assert gradient is None or torch.isfinite(gradient).all()


@every_encoder
def test_a_declaration_gives_the_same_encoder(build):
    encoder = built(build)
    again = Declared.declare(encoder.declaration()).eval()
    again.load_state_dict(encoder.state_dict())
    value = torch.randn(CELLS, LATENT)
    torch.testing.assert_close(again(cells()).log_prob(value), encoder(cells()).log_prob(value))


@every_encoder
def test_it_moves_to_double_precision(build):
    assert built(build).double()(cells(torch.float64)).sample().dtype == torch.float64


@every_encoder
def test_a_cell_is_encoded_by_itself(build):
    encoder, minibatch = built(build), cells()
    moved = minibatch._replace(counts=minibatch.counts + torch.tensor([0.0, 0, 0, 0, 9.0])[:, None])
    torch.testing.assert_close(encoder(moved).mean[:4], encoder(minibatch).mean[:4])


@pytest.mark.parametrize("name", [name for name in ROSTER if name.startswith("normal")])
def test_counts_and_the_declared_condition_move_the_posterior(name):
    encoder, minibatch = built(ROSTER[name]), cells()
    richer = minibatch._replace(counts=minibatch.counts + 3)
    swapped = minibatch._replace(conditions=1 - minibatch.conditions)
    mean = encoder(minibatch).mean
    assert not torch.allclose(encoder(richer).mean, mean)
    assert torch.allclose(encoder(swapped).mean, mean) == (encoder.condition is None)


@pytest.mark.parametrize("name", [name for name in ROSTER if name.startswith("normal")])
def test_counts_are_seen_through_log1p(name):
    encoder, minibatch = built(ROSTER[name]), cells()
    seen = []
    encoder.trunk.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    encoder(minibatch)
    torch.testing.assert_close(seen[0], minibatch.counts.log1p())


@pytest.mark.parametrize("build", [ROSTER["normal"], lambda: LatentLibrary(GENES, [1.0], [1.0])])
def test_without_counts_there_is_nothing_to_encode(build):
    encoder = build()
    ask = encoder.posterior if isinstance(encoder, LatentLibrary) else encoder
    with pytest.raises(ValueError, match="expected a minibatch with counts to encode"):
        ask(cells()._replace(counts=None))


class TestLatentLibrary:
    @pytest.mark.parametrize(("loc", "scale"), [([3.0], [0.5]), ([3.0, 4.0], [0.5, 0.2])])
    def test_prior_and_posterior_are_over_one_positive_number_per_cell(self, loc, scale):
        library, minibatch = LatentLibrary(GENES, loc, scale, [8]), cells()
        for distribution in (library.prior(minibatch), library.posterior(minibatch)):
            assert distribution.event_shape == ()
            draws = distribution.expand([4, CELLS]).sample()
            assert (draws > 0).all()

    def test_the_prior_is_that_of_the_level(self):
        library, minibatch = LatentLibrary(GENES, [3.0, 4.0], [0.5, 0.2], [8]), cells()
        prior = library.prior(minibatch)
        torch.testing.assert_close(prior.loc, torch.tensor([3.0, 4.0, 3.0, 4.0, 3.0]))
        torch.testing.assert_close(prior.scale, torch.tensor([0.5, 0.2, 0.5, 0.2, 0.5]))

    def test_the_density_integrates_to_one(self):
        library = LatentLibrary(GENES, [3.0], [0.5], [8]).double()
        logs = torch.linspace(-3, 9, 6001, dtype=torch.float64)[:, None]
        for distribution in (library.prior(cells(torch.float64)), library.posterior(cells(torch.float64))):
            density = distribution.log_prob(logs.exp()) + logs  # of the logarithm
            integral = density.exp().sum(0) * 0.002
            torch.testing.assert_close(integral, torch.ones_like(integral), rtol=1e-5, atol=0)

    def test_a_declaration_gives_the_same_library(self):
        library = LatentLibrary(GENES, [3.0, 4.0], [0.5, 0.2], [8], norm="batch").eval()
        again = Declared.declare(library.declaration()).eval()
        again.load_state_dict(library.state_dict())
        minibatch = cells()
        torch.testing.assert_close(again.prior(minibatch).loc, library.prior(minibatch).loc)
        torch.testing.assert_close(again.posterior(minibatch).loc, library.posterior(minibatch).loc)
