"""Measurements of the applications on cells of a file, printed as tables: ``python -m tests.measurements``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import anndata
import torch

import genailab_pyro as glp
from genailab_pyro.report.terminal import say
from tests.measurements import denoising, integration, perturbation


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the measurement that is named."""
    parser = argparse.ArgumentParser(prog="python -m tests.measurements", description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True)
    for module in (denoising, integration, perturbation):
        command = commands.add_parser(module.__name__.rpartition(".")[2], help=module.__doc__)
        command.add_argument(
            "file", nargs="?", type=Path, help="h5ad with counts in X; the embedded cells unless given"
        )
        command.add_argument("--seeds", type=int, default=2, help="how many seeds, from 0")
        command.add_argument("--epochs", type=int, default=120)
        module.add_arguments(command)
        command.set_defaults(measure=module.measure)
    given = vars(parser.parse_args(arguments))
    name, file, measure = given.pop("name"), given.pop("file"), given.pop("measure")
    torch.set_num_threads(1)
    adata = glp.data.pbmc68k() if file is None else anndata.read_h5ad(file)
    settings = ", ".join(f"{key} {value}" for key, value in given.items())
    say(f"{name}: {adata.n_obs} cells x {adata.n_vars} genes, {settings}")
    say(measure(adata, **given).round(4).to_string())


if __name__ == "__main__":
    main()
