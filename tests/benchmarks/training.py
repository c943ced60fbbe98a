"""Contenders in training: the same VAE on the same cells by several programs, an epoch at a time.

Each reads its own minibatches, in an order that is drawn anew for each epoch. Ours, plain Pyro and torch by hand begin
from the same weights.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from torch import Tensor, nn

import genailab_pyro as glp
from genailab_pyro.data.cells import Cells, Indices
from genailab_pyro.model.vae import VAE
from genailab_pyro.train.run import Run
from genailab_pyro.types import Minibatch
from tests.benchmarks.networks import Network, loss_by_hand, pyro_programs
from tests.benchmarks.scvi_tools import Scvi
from tests.benchmarks.step import TRAINING, step_by_hand

OURS, DENSE, PYRO, TORCH, SCVI, FLOOR = (
    "genailab_pyro",
    "genailab_pyro, dense form",
    "plain Pyro",
    "torch by hand",
    "scvi-tools",
    "matrix products alone",
)
HIDDEN, LATENT, DROPOUT = 128, 10, 0.1
Epoch = Callable[[], object]


class DenseCells(Cells):
    """Cells whose minibatches do not know which of their counts are zero."""

    @classmethod
    def of(cls, cells: Cells) -> "DenseCells":
        """The same cells."""
        return cls(**vars(cells))

    def take(
        self, indices: Indices, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> Minibatch:
        """Some cells as a minibatch of ordinary tensors."""
        minibatch = super().take(indices, device=device, dtype=dtype)
        return minibatch._replace(counts=minibatch.counts.as_subclass(Tensor))


@dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        cells: The cells.
        inflated: Whether counts are zero-inflated.
        minibatch_size: Cells per step.
        most: An epoch is over at most so many of the cells, drawn anew for each; None for all.
    """

    cells: Cells
    inflated: bool = False
    minibatch_size: int = TRAINING.minibatch_size
    most: int | None = None

    @property
    def size(self) -> int:
        """Cells in an epoch."""
        return len(self.cells) if self.most is None else min(self.most, len(self.cells))

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return math.ceil(self.size / self.minibatch_size)

    def order(self) -> np.ndarray:
        """The cells of an epoch."""
        return torch.randperm(len(self.cells))[: self.size].numpy()

    def vae(self) -> VAE:
        """The VAE with its first weights."""
        kind = glp.VAE_ZINB if self.inflated else glp.VAE_NB
        return kind.from_registration(self.cells, latent_dim=LATENT, hidden_dims=[HIDDEN], dropout=DROPOUT)


def ours(task: Task) -> Epoch:
    """What `glp.fit` does in an epoch."""
    training = replace(TRAINING, minibatch_size=task.minibatch_size)
    run = Run(task.vae(), task.cells, glp.estimators.get("pathwise"), training)

    def epoch() -> None:
        if task.size < len(task.cells):
            run.train_cells = task.cells.subset(task.order())
        run.epoch()

    return epoch


def ours_dense(task: Task) -> Epoch:
    """The same, but all counts are looked at."""
    return ours(replace(task, cells=DenseCells.of(task.cells)))


class DenseReader:
    """Reads an epoch as a short loop does: rows of a sparse matrix made dense, one minibatch after the other."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.counts = task.cells.counts_matrix()
        self.library = torch.from_numpy(task.cells.library)
        self.nothing = torch.zeros(task.minibatch_size, 0)

    def __iter__(self) -> Iterator[Minibatch]:
        task = self.task
        for index in np.array_split(task.order(), task.steps):
            nothing = self.nothing[: len(index)]
            counts = torch.from_numpy(self.counts[index].toarray())
            yield Minibatch(counts, nothing.long(), nothing, self.library[index], torch.from_numpy(index), task.size)


def plain_pyro(task: Task) -> Epoch:
    """A Pyro program, Pyro's own distributions, bound and optimizer."""
    reader, network = DenseReader(task), Network.of(task.vae())
    network.train()
    optim = ClippedAdam({"lr": TRAINING.learning_rate, "clip_norm": 10.0})
    svi = SVI(*pyro_programs(network), optim, Trace_ELBO())

    def epoch() -> None:
        for minibatch in reader:
            svi.step(minibatch)

    return epoch


def torch_by_hand(task: Task) -> Epoch:
    """A loop as it is written in torch, with the textbook's formula and a fused optimizer."""
    reader = DenseReader(task)
    step = step_by_hand(Network.of(task.vae()), task.cells, loss_by_hand)

    def epoch() -> None:
        for minibatch in reader:
            step(minibatch)

    return epoch


def scvi(task: Task) -> Epoch:
    """SCVI of scvi-tools."""
    model = Scvi(task.cells, inflated=task.inflated, minibatch_size=task.minibatch_size)
    if task.size == len(task.cells):
        return model.epoch
    return lambda: model.epoch(task.order())


def floor(task: Task) -> Epoch:
    """Dense products with the weights, their derivatives and the optimizer's step: what is left without the rest."""
    genes = len(task.cells.registration.genes)
    counts = torch.rand(min(task.minibatch_size, task.size), genes)
    trunk, loc, scale, decoder = (
        nn.Linear(*widths, bias=False)
        for widths in ((genes, HIDDEN), (HIDDEN, LATENT), (HIDDEN, LATENT), (LATENT, HIDDEN))
    )
    heads = [nn.Linear(HIDDEN, genes, bias=False) for _ in range(1 + task.inflated)]
    parameters = [*nn.ModuleList([trunk, loc, scale, decoder, *heads]).parameters()]
    optimizer = torch.optim.AdamW(parameters, fused=True)
    upstream = [torch.randn(len(counts), width) for width in (LATENT, *(genes for _ in heads))]

    def epoch() -> None:
        for _ in range(task.steps):
            optimizer.zero_grad()
            hidden = trunk(counts)
            features = decoder(loc(hidden))
            torch.autograd.backward([scale(hidden), *(head(features) for head in heads)], upstream)
            optimizer.step()

    return epoch


CONTENDERS: dict[str, Callable[[Task], Epoch]] = {
    OURS: ours,
    DENSE: ours_dense,
    PYRO: plain_pyro,
    TORCH: torch_by_hand,
    SCVI: scvi,
    FLOOR: floor,
}
"""Each makes, of a task, what passes once over its cells."""
