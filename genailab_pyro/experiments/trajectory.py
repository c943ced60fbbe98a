"""One training run with its weights at several epochs, and which estimator can train a model."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genailab_pyro.data.cells import Cells
from genailab_pyro.estimators import Estimator, EstimatorError, get
from genailab_pyro.experiments.gradients import frozen
from genailab_pyro.model.vae import VAE
from genailab_pyro.train.run import Run, own_state
from genailab_pyro.train.settings import Training
from genailab_pyro.types import Minibatch

# What estimates the gradient of the ELBO with the least scatter, by what the latents offer.
BY_SCATTER = ("pathwise", "enum", "score-loo")


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The weights of a run after some epochs.

    Attributes:
        epoch: Epochs that were done.
        step: Steps that were done.
        seconds: Spent in training until then.
        weights: The state of the VAE.
    """

    epoch: int
    step: int
    seconds: float
    weights: dict[str, Tensor]


def trajectory(
    vae: VAE, cells: Cells, estimator: Estimator, training: Training, shares: Sequence[float], *, seed: int
) -> list[Snapshot]:
    """Train a copy of a VAE, and keep its weights at some shares of its epochs.

    Args:
        vae: The VAE; it stays as it is.
        cells: What it is trained on.
        estimator: How the gradient is estimated.
        training: The settings.
        shares: Shares of the epochs from 0, the weights before training, to 1; training ends with the largest.
        seed: Seed of the split, the order of the cells and the draws.

    Returns:
        A snapshot for each share.
    """
    with own_state(seed):
        run = Run(copy.deepcopy(vae), cells, estimator, training, seed=seed, device=next(vae.parameters()).device)
        epochs = [round(share * run.num_epochs) for share in shares]
        snapshots: dict[int, Snapshot] = {}
        for epoch in range(max(epochs) + 1):
            if epoch:
                run.epoch()
            if epoch in epochs:
                weights = {name: value.clone() for name, value in run.vae.state_dict().items()}
                snapshots[epoch] = Snapshot(epoch, run.record.step, run.record.seconds, weights)
        return [snapshots[epoch] for epoch in epochs]


def usable(vae: VAE, estimator: Estimator, minibatch: Minibatch) -> EstimatorError | None:
    """None if an estimator can be used with a VAE, else why not."""
    vae = copy.deepcopy(vae).eval()
    try:
        with frozen():
            model, guide, elbo = estimator.bind(vae.model, vae.guide)
            elbo.differentiable_loss(model, guide, minibatch)
    except EstimatorError as error:
        return error
    return None


def first_usable(vae: VAE, names: Sequence[str], minibatch: Minibatch) -> str:
    """The first of some named estimators that can be used with a VAE.

    Raises:
        EstimatorError: If there is none.
    """
    refused = None
    for name in names:
        refused = usable(vae, get(name), minibatch)
        if refused is None:
            return name
    assert refused is not None
    raise refused


def check_usable(vae: VAE, estimators: dict[str, Estimator], minibatch: Minibatch) -> None:
    """Refuse estimators that cannot be used with a VAE, before any work is done.

    Raises:
        EstimatorError: If one cannot; the message names it.
    """
    for name, estimator in estimators.items():
        error = usable(vae, estimator, minibatch)
        if error is not None:
            raise EstimatorError(f"{name}: {error}; leave it out of the comparison")


def load(vae: VAE, snapshot: Snapshot) -> VAE:
    """A copy of a VAE with the weights of a snapshot, in evaluation mode."""
    loaded = copy.deepcopy(vae)
    loaded.load_state_dict(snapshot.weights)
    return loaded.eval()


def sample(cells: Cells, number: int, *, seed: int, device: torch.device) -> Minibatch:
    """A minibatch of cells drawn by a seed."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(len(cells), generator=generator)[: min(number, len(cells))]
    return cells.take(index.sort().values.numpy(), device=device)
