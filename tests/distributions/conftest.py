"""The oracle, loaded by its path: the tests are no package."""

import importlib.util
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def oracle():
    spec = importlib.util.spec_from_file_location("oracle", Path(__file__).with_name("oracle.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def table(oracle):
    return oracle.read()


@pytest.fixture
def gradient_arguments():
    """Counts [cells, genes], log means [particles, cells, genes], log inverse dispersions [genes]; double."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.poisson(3 * torch.rand(4, 5, generator=generator, dtype=torch.float64), generator)
    log_mean = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    log_theta = torch.tensor([-4.0, -1.0, 0.5, 3.0, 6.0], dtype=torch.float64)
    return counts, log_mean.requires_grad_(), log_theta.requires_grad_()
