"""Whole jobs, on the same data, threads and network: training, encoding, and the importance-weighted bound.

The network has a hidden layer of 128 and 10 latents. Others are scvi-tools (where it is installed), plain Pyro and a
loop in torch, and in training the matrix products alone: what no program with dense weights and inputs goes below.
"""

from collections.abc import Callable, Mapping

from rich import box
from rich.table import Table

import genailab_pyro as glp
from genailab_pyro.report.terminal import console, say
from genailab_pyro.train.run import own_state
from tests.benchmarks.counts import density_of, simulated
from tests.benchmarks.options import Options
from tests.benchmarks.scvi_tools import Scvi, available
from tests.benchmarks.step import TRAINING
from tests.benchmarks.timing import Timings, alternate
from tests.benchmarks.training import CONTENDERS, OURS, SCVI, Task

ROUNDS, THREADS = 5, 2
PARTICLES = 100
AT_ONCE = (1, 10)
"""How many of scvi-tools' draws are taken at once: its default, and one that is faster."""


def training(task: Task, *, rounds: int, scvi_too: bool) -> Timings:
    """Time epochs."""
    contenders = {name: make(task) for name, make in CONTENDERS.items() if scvi_too or name != SCVI}
    return alternate(contenders, rounds=rounds, repeats=1, warmup=1, settle=0)


def questions(task: Task, *, scored: int, rounds: int, scvi_too: bool) -> tuple[Timings, Timings]:
    """Time the encoding of all cells, and the bound of some; of models that are trained for an epoch."""
    fit = glp.fit(task.vae(), task.cells, training=TRAINING, max_epochs=1, progress=False)
    some = task.cells.subset(range(scored))
    encoding: dict[str, Callable[[], object]] = {OURS: fit.latent}
    scoring: dict[str, Callable[[], object]] = {OURS: lambda: fit.log_likelihood(some, num_particles=PARTICLES)}
    if scvi_too:
        model = Scvi(task.cells, inflated=task.inflated)
        model.epoch()
        encoding[SCVI] = model.latent
        for at_once in AT_ONCE:
            scoring[f"{SCVI}, {at_once} at once"] = lambda at_once=at_once: model.log_likelihood(
                range(scored), num_particles=PARTICLES, at_once=at_once
            )
    return (
        alternate(encoding, rounds=rounds, repeats=1, warmup=1),
        alternate(scoring, rounds=rounds, repeats=1, warmup=1, settle=0),
    )


def show(timings: Timings, title: str, num_cells: int) -> None:
    """Print cells per second, and how many times as fast ours are."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in ("cells/s", f"{OURS} is this many times as fast"):
        table.add_column(name, justify="right")
    for name in timings.seconds:
        ratio = "1" if name == OURS else str(timings.ratio(name, OURS))
        table.add_row(name, f"{num_cells / timings.median(name):,.0f}", ratio)
    say(title)
    console().print(table)


def measure(task: Task, *, scored: int, rounds: int, scvi_too: bool) -> Mapping[str, tuple[Timings, int]]:
    """Timings of each job, and on how many cells."""
    with own_state(0):
        trained = training(task, rounds=rounds, scvi_too=scvi_too)
        encoded, bounded = questions(task, scored=scored, rounds=rounds, scvi_too=scvi_too)
    return {
        "Training": (trained, task.size),
        "Encoding": (encoded, task.size),
        f"Importance-weighted bound, {PARTICLES} draws": (bounded, scored),
    }


def run(options: Options) -> None:
    """Measure and print, with negative binomial and zero-inflated counts."""
    size, scored = ((256, 50), 32) if options.small else ((10_000, 2_000), 512)
    cells, scvi_too = simulated(*size), available()
    minibatch, density = TRAINING.minibatch_size, density_of(cells)
    say(f"{size[0]:,} cells x {size[1]:,} genes, {density:.1%} above zero, minibatch {minibatch}")
    for inflated in (False, True):
        likelihood = "zero-inflated negative binomial" if inflated else "negative binomial"
        timings = measure(Task(cells, inflated), scored=scored, rounds=options.rounds, scvi_too=scvi_too)
        for job, (timed, num_cells) in timings.items():
            show(timed, f"{job}, {likelihood}: {num_cells:,} cells", num_cells)
