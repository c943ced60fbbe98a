"""One training run, epoch by epoch: everything that its next step depends on, and nothing else."""

import contextlib
import copy
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import SVI
from pyro.poutine import Trace
from torch import Tensor, nn

from genailab_pyro.data.cells import Cells
from genailab_pyro.estimators import Estimator, Handled
from genailab_pyro.memory import memory_kept
from genailab_pyro.model.particles import paired_traces
from genailab_pyro.model.penalties import FreeBits, Penalty
from genailab_pyro.model.upper import UpperNormal
from genailab_pyro.model.vae import VAE
from genailab_pyro.train.objective import NonFiniteLossError, Objective, Terms
from genailab_pyro.train.optim import ModuleOptim
from genailab_pyro.train.schedules import LEARNING_RATES, Annealed
from genailab_pyro.train.settings import Training
from genailab_pyro.types import Minibatch


@dataclass
class Record:
    """What a run remembers beside its weights.

    Attributes:
        epoch: Epochs that are done.
        step: Steps that are done.
        history: One row per epoch.
        best: Highest validation ELBO, its KL weighed by the final beta, in nats per cell.
        stale: Epochs since then.
        plateau: Factor that the plateau schedule has put on the learning rate.
        seconds: Spent in training.
    """

    epoch: int = 0
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: float = -math.inf
    stale: int = 0
    plateau: float = 1.0
    seconds: float = 0.0


@contextlib.contextmanager
def own_state(seed: int) -> Iterator[None]:
    """A random state and a store of Pyro's of a run's own."""
    # Everything in a run was validated when the cells were registered and the pair checked.
    with torch.random.fork_rng(), pyro.get_param_store().scope(), pyro.validation_enabled(False), memory_kept():
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Encountered NaN")  # TrainingError says more
            # Freezing parameters is a choice, not a slip.
            warnings.filterwarnings("ignore", message=".* was not registered in the param store because requires_grad")
            yield


class Run:
    """Trains one VAE on one set of cells, an epoch at a time.

    It must be used inside `own_state`.

    Args:
        vae: The VAE that is trained, in place.
        cells: Training and validation cells together.
        estimator: How the gradient is estimated.
        training: The settings.
        penalties: Further terms of the loss.
        seed: Seed of the split, the order of the cells and the draws.
        device: Where to train.
    """

    def __init__(
        self,
        vae: VAE,
        cells: Cells,
        estimator: Estimator,
        training: Training,
        *,
        penalties: Sequence[Penalty] = (),
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        self.vae = vae.to(device)
        self.device = torch.device(device)
        self.dtype = next(vae.parameters()).dtype
        self.training = training
        self.seed = seed
        penalties = copy.deepcopy(tuple(penalties))  # what they learn in a run is the run's own
        if training.free_bits:
            penalties = (*penalties, self._free_bits)
        if penalties and not estimator.reparameterised:
            raise ValueError(
                f"expected a pathwise estimator beside a penalty, got the rule {estimator.rule!r}, whose draws carry "
                "no path to the penalty; use estimator='pathwise' or leave the penalty out (free_bits=0)"
            )
        self.train_cells, self.validation_cells = _split(cells, training.validation_fraction, seed)
        self.num_epochs = training.epochs(len(self.train_cells))
        self.num_steps = self.num_epochs * training.steps_per_epoch(len(self.train_cells))
        self.annealed = Annealed(["z"] if vae.upper is None else [vae.upper.site, "z"])
        programs = vae.model, vae.guide
        for program in programs:
            program.registers = False  # the optimizer holds the parameters by itself
        model, guide, elbo = estimator.bind(*(Handled(program, self.annealed) for program in programs))
        self.model, self.guide = model, guide
        self.baseline = elbo.baseline
        self.objective = Objective(elbo, penalties)
        self.learning_penalties = [penalty for penalty in penalties if isinstance(penalty, nn.Module)]
        clip = None if training.gradient_clip is None else training.gradient_clip * len(self.train_cells)
        self.optim = ModuleOptim(
            vae,
            optimizer=training.optimizer,
            learning_rate=training.learning_rate,
            weight_decay=training.weight_decay,
            clip=clip,
            beside=self.baseline,
        )
        self.svi = SVI(model, guide, self.optim, loss=self.objective.loss, loss_and_grads=self.objective.loss_and_grads)
        self.record = Record()
        self.best_weights: dict[str, Tensor] | None = None
        self.minibatch: Any = None

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end, or has stopped early."""
        patience = self.training.patience
        return self.record.epoch >= self.num_epochs or (patience is not None and self.record.stale >= patience)

    def epoch(self) -> dict[str, float]:
        """Pass once over the training cells; returns the new row of the history."""
        begun = time.perf_counter()
        record, training = self.record, self.training
        self.vae.train()
        self.objective.steps.clear()
        norms: list[float] = []
        for minibatch in self.train_cells.take_each(self._order(), device=self.device, dtype=self.dtype):
            factor = self.step(minibatch)
            norms.append(self.optim.gradient_norm / len(self.train_cells))
        record.epoch += 1
        train = _mean(self.objective.steps)
        validation = self.validate()
        record.seconds += time.perf_counter() - begun
        row = {
            "epoch": record.epoch,
            **_columns("train", train),
            **_columns("validation", validation),
            "beta": self.annealed.beta,
            "learning_rate": training.learning_rate * factor,
            "gradient_norm": sum(norms) / len(norms),
            "seconds": record.seconds,
        }
        record.history.append(row)
        self._compare(validation)
        return row

    def step(self, minibatch: Minibatch) -> float:
        """Take a step on a minibatch of the training cells; returns the factor of the learning rate."""
        record, training = self.record, self.training
        self.minibatch = minibatch
        self.annealed.beta = training.warmup.at(record.step, self.num_steps)
        factor = LEARNING_RATES[training.learning_rate_schedule](record.step / self.num_steps) * record.plateau
        self.optim.set_learning_rate(factor)
        self.svi.step(minibatch)
        record.step += 1
        return factor

    def _order(self) -> list[np.ndarray]:
        # Minibatches whose sizes differ by one cell at most, in an order that only the seed and the epoch decide.
        num_cells = len(self.train_cells)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.record.epoch)
        order = torch.randperm(num_cells, generator=generator).numpy()
        return np.array_split(order, self.training.steps_per_epoch(num_cells))

    def _free_bits(self, minibatch: Minibatch, guide_trace: Trace, model_trace: Trace) -> Tensor:
        # The floor is under the KL as it enters the loss, with its weight; else a beta below one rewards a larger KL.
        sites = [self.vae.upper.site, "z"] if isinstance(self.vae.upper, UpperNormal) else ["z"]
        terms = [FreeBits(self.training.free_bits, site)(minibatch, guide_trace, model_trace) for site in sites]
        return self.annealed.beta * torch.stack(terms).sum()

    def validate(self) -> Terms | None:
        """The terms of the validation cells at beta = 1, by the same draws in every epoch."""
        cells = self.validation_cells
        if cells is None:
            return None
        self.vae.eval()
        parts = []
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(self.seed)
            for minibatch in cells.minibatches(1024, device=self.device, dtype=self.dtype):
                traces = paired_traces(self.vae.model, self.vae.guide, minibatch, 1)
                for trace in traces:
                    trace.compute_log_prob()
                parts.append((minibatch.size, Terms.of(*traces, minibatch.num_cells, 1)))
        return _mean([terms for _, terms in parts], [size for size, _ in parts])

    def _compare(self, validation: Terms | None) -> None:
        record, training = self.record, self.training
        if validation is None:
            return
        # Weighed as in the end: by the ELBO alone, the best weights of a beta-VAE would be those of its warm-up.
        score = -(validation.reconstruction + training.warmup.beta * validation.kl)
        if score > record.best:
            record.best, record.stale = score, 0
            self.best_weights = {name: value.clone() for name, value in self.vae.state_dict().items()}
            return
        record.stale += 1
        if training.learning_rate_schedule == "plateau" and record.stale % training.plateau_patience == 0:
            record.plateau /= 2

    def check_validated(self) -> None:
        """Refuse a run that has come to its end without weights under which the validation cells have a probability.

        Raises:
            NonFiniteLossError: If their ELBO was finite after no epoch.
        """
        if self.record.history and self.validation_cells is not None and self.best_weights is None:
            raise NonFiniteLossError("the ELBO of the validation cells was finite after no epoch")

    def finish(self) -> None:
        """Put the best weights back, where validation cells told which they are."""
        if self.best_weights is not None:
            self.vae.load_state_dict(self.best_weights)
        self.vae.eval()


def _split(cells: Cells, fraction: float, seed: int) -> tuple[Cells, Cells | None]:
    if fraction == 0 or len(cells) < 2:
        return cells, None
    return cells.split(fraction, seed=seed)


def _mean(terms: Sequence[Terms], weights: Sequence[float] | None = None) -> Terms:
    weights = [1.0] * len(terms) if weights is None else weights
    total = sum(weights)
    return Terms(
        sum(weight * item.reconstruction for weight, item in zip(weights, terms, strict=True)) / total,
        sum(weight * item.kl for weight, item in zip(weights, terms, strict=True)) / total,
    )


def _columns(which: str, terms: Terms | None) -> dict[str, float]:
    return {
        f"{which}_{name}": math.nan if terms is None else getattr(terms, name)
        for name in ("elbo", "reconstruction", "kl")
    }
