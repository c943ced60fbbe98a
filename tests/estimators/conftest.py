"""A conjugate normal model whose gradients have closed-form moments."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn


class Conjugate(nn.Module):
    """p(z) = N(0, 1), p(x | z) = N(z, 1), x = 2; guide N(loc, scale); many independent copies in a plate.

    Each copy has parameters of its own, so that one gradient of the whole holds an independent draw for each.
    """

    max_plate_nesting = 1

    def __init__(self, loc, scale, num_copies=1):
        super().__init__()
        ones = torch.ones(num_copies, dtype=torch.float64)
        self.loc = nn.Parameter(loc * ones)
        self.log_scale = nn.Parameter(math.log(scale) * ones)

    def model(self):
        zero = torch.zeros((), dtype=torch.float64)
        with pyro.plate("copies", len(self.loc), dim=-1):
            z = pyro.sample("z", dist.Normal(zero, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=zero + 2.0)

    def forward(self):
        pyro.module("guide", self)
        with pyro.plate("copies", len(self.loc), dim=-1):
            return pyro.sample("z", dist.Normal(self.loc, self.log_scale.exp()))


@pytest.fixture
def conjugate():
    return Conjugate
