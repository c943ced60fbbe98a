"""Measured comparisons, printed as tables: ``python -m tests.benchmarks``, from the root of the repository."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from genailab_pyro.report.terminal import say
from tests.benchmarks import memory, scaling, speed, step
from tests.benchmarks.options import Options

BENCHMARKS = {"step": step, "speed": speed, "scaling": scaling, "memory": memory}
"""Each has its numbers of rounds and of threads, and ``run``, which takes the options, measures, and prints."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmarks that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)}; none for all")
    parser.add_argument("--rounds", type=int, help="how often each contender is timed; each benchmark has its own")
    parser.add_argument("--threads", type=int, help="torch's threads; 1 for step and 2 for the others unless given")
    parser.add_argument("--small", action="store_true", help="tiny data, to see that it runs")
    parser.add_argument("--figure", type=Path, default=Options.figure, help="where the figure of scaling goes")
    parser.add_argument("--cells", type=int, nargs="+", default=Options.cells, help="numbers of cells for memory")
    given = parser.parse_args(arguments)
    unknown = sorted({*given.names} - {*BENCHMARKS})
    if unknown:
        parser.error(f"expected names among {', '.join(BENCHMARKS)}, got {', '.join(unknown)}")
    for name in given.names or BENCHMARKS:
        benchmark = BENCHMARKS[name]
        threads = given.threads or benchmark.THREADS
        rounds = given.rounds or (1 if given.small else benchmark.ROUNDS)
        torch.set_num_threads(threads)
        say(f"{name}: torch {torch.__version__}, {threads} thread(s), {rounds} round(s). Times are medians over rounds")
        say("in which all take turns, in brackets the middle half of the ratios of the rounds.")
        benchmark.run(Options(rounds, given.small, given.figure, tuple(given.cells)))


if __name__ == "__main__":
    main()
