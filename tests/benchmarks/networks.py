"""The package's VAE without conditions, by others: networks of torch, a plain Pyro program, and a loss by hand.

Nothing here knows which counts are zero, and the log-probabilities are those of Pyro, or the textbook's formula.
"""

from collections.abc import Callable
from typing import Any, Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from genailab_pyro.model.vae import VAE
from genailab_pyro.types import Minibatch

GATE_BOUND = 10.0


def hidden_layer(inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    """Linear, norm, activation, dropout."""
    return nn.Sequential(nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.ReLU(), nn.Dropout(dropout))


class Encoder(nn.Module):
    """Location and scale of the latent."""

    def __init__(self, genes: int, hidden: int, latent: int, dropout: float) -> None:
        super().__init__()
        self.trunk = hidden_layer(genes, hidden, dropout)
        self.loc = nn.Linear(hidden, latent)
        self.scale = nn.Linear(hidden, latent)

    def forward(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(counts.log1p())
        return self.loc(features), softplus(self.scale(features)) + 1e-4


class Decoder(nn.Module):
    """Logarithm of the mean, and the gate's logits where counts are zero-inflated; holds the inverse dispersion."""

    def __init__(self, genes: int, hidden: int, latent: int, dropout: float, *, inflated: bool) -> None:
        super().__init__()
        self.trunk = hidden_layer(latent, hidden, dropout)
        self.log_expression = nn.Linear(hidden, genes)
        self.gate = nn.Linear(hidden, genes) if inflated else None
        self.log_inverse_dispersion = nn.Parameter(torch.zeros(genes))

    def forward(self, z: Tensor, library: Tensor) -> tuple[Tensor, Tensor | None]:
        features = self.trunk(z)
        log_mean = self.log_expression(features).log_softmax(-1) + library.log().unsqueeze(-1)
        if self.gate is None:
            return log_mean, None
        return log_mean, GATE_BOUND * torch.tanh(self.gate(features) / GATE_BOUND)


class Network(nn.Module):
    """Encoder and decoder."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    @classmethod
    def of(cls, vae: VAE) -> Self:
        """The same networks as those of a VAE, with its weights."""
        trunk, likelihood = vae.encoder.trunk, vae.likelihood
        widths = vae.input_dim, trunk.output_dim, vae.latent_dim
        inflated = hasattr(likelihood, "gate")
        dropout = trunk.layers[3].p
        network = cls(Encoder(*widths, dropout), Decoder(*widths, dropout, inflated=inflated))
        encoder, decoder = network.encoder, network.decoder
        network.to(next(vae.parameters()).dtype)
        with torch.no_grad():
            for mine, theirs in ((encoder.trunk, trunk.layers), (decoder.trunk, vae.decoder.layers)):
                mine[0].weight.copy_(theirs[0].weight.t())
                mine[0].bias.copy_(theirs[0].bias)
                mine[1].load_state_dict(theirs[1].state_dict())
            for name in ("loc", "scale"):
                getattr(encoder, name).load_state_dict(getattr(vae.encoder, name).state_dict())
            for name in ("log_expression", "gate")[: 1 + inflated]:
                getattr(decoder, name).load_state_dict(getattr(likelihood, name).state_dict())
            decoder.log_inverse_dispersion.copy_(likelihood.log_inverse_dispersion.log_value)
        return network


def pyro_programs(network: Network) -> tuple[Callable[[Minibatch], Any], Callable[[Minibatch], Any]]:
    """Model and guide as Pyro's own tutorials write them."""

    def model(minibatch: Minibatch) -> None:
        pyro.module("decoder", network.decoder)
        with pyro.plate("cells", minibatch.num_cells, subsample=minibatch.index):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([network.encoder.loc.out_features]).to_event(1))
            log_mean, gate_logits = network.decoder(z, minibatch.library)
            log_theta = network.decoder.log_inverse_dispersion
            if gate_logits is None:
                counts = dist.NegativeBinomial(log_theta.exp(), logits=log_mean - log_theta)
            else:
                counts = dist.ZeroInflatedNegativeBinomial(
                    log_theta.exp(), logits=log_mean - log_theta, gate_logits=gate_logits
                )
            pyro.sample("x", counts.to_event(1), obs=minibatch.counts)

    def guide(minibatch: Minibatch) -> None:
        pyro.module("encoder", network.encoder)
        with pyro.plate("cells", minibatch.num_cells, subsample=minibatch.index):
            pyro.sample("z", dist.Normal(*network.encoder(minibatch.counts)).to_event(1))

    return model, guide


def log_prob(counts: Tensor, log_mean: Tensor, log_theta: Tensor, gate_logits: Tensor | None) -> Tensor:
    """The textbook's log-probability of counts."""
    theta = log_theta.exp()
    log_total = torch.logaddexp(log_mean, log_theta)
    value = torch.lgamma(counts + theta) - torch.lgamma(theta) - torch.lgamma(counts + 1)
    value = value + counts * (log_mean - log_total) + theta * (log_theta - log_total)
    if gate_logits is None:
        return value
    positive = logsigmoid(-gate_logits) + value
    return torch.where(counts == 0, torch.logaddexp(logsigmoid(gate_logits), positive), positive)


def loss_by_hand(network: Network, minibatch: Minibatch) -> Tensor:
    """The negative ELBO of all cells by a draw per cell, in nats."""
    loc, scale = network.encoder(minibatch.counts)
    noise = torch.randn_like(loc)
    z = loc + scale * noise
    kl = 0.5 * (z**2 - noise**2).sum() - scale.log().sum()
    log_mean, gate_logits = network.decoder(z, minibatch.library)
    log_likelihood = log_prob(minibatch.counts, log_mean, network.decoder.log_inverse_dispersion, gate_logits)
    return minibatch.num_cells / minibatch.size * (kl - log_likelihood.sum())
