"""Measured comparisons, printed as tables: ``python -m tests.benchmarks``, from the root of the repository."""

import argparse

import torch

from genailab_pyro.report.terminal import say
from tests.benchmarks import step

BENCHMARKS = {"step": step.run}
"""Each takes the number of rounds, measures, and prints."""


def main() -> None:
    """Run the benchmarks that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)}; none for all")
    parser.add_argument("--rounds", type=int, default=200, help="how often each contender is timed")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    options = parser.parse_args()
    unknown = sorted({*options.names} - {*BENCHMARKS})
    if unknown:
        parser.error(f"expected names among {', '.join(BENCHMARKS)}, got {', '.join(unknown)}")
    for name in options.names or BENCHMARKS:
        torch.set_num_threads(options.threads)
        say(f"{name}: torch {torch.__version__}, {options.threads} thread(s); medians over rounds in which all take")
        say("turns, in brackets the middle half of the ratios of the rounds")
        BENCHMARKS[name](options.rounds)


if __name__ == "__main__":
    main()
