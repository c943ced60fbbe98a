"""How much memory registration and an epoch take, with the counts in memory and on disk.

Each is measured in a process of its own: ``python -m tests.benchmarks.memory FILE STORAGE THREADS``.
"""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata.io import sparse_dataset, write_elem
from rich import box
from rich.table import Table

import genailab_pyro as glp
from genailab_pyro.report.terminal import console, say
from tests.benchmarks.options import Options

ROUNDS, THREADS = 1, 2
GENES, DENSITY, MINIBATCH, CHUNK = 2_000, 0.08, 128, 10_000
BASELINE = 2_200
"""Few cells, but as many as the model looks at before training and some steps take."""
IN_MEMORY, ON_DISK = "in memory", "on disk"
ROOT = Path(__file__).parents[2]


def chunk(num_cells: int, rng: np.random.Generator) -> sp.csr_matrix:
    """Random counts, with at least one in each cell."""
    rows, columns = np.nonzero(rng.random((num_cells, GENES)) < DENSITY)
    values = rng.geometric(0.5, len(rows)).astype(np.float32)
    one_each = sp.csr_matrix(
        (np.ones(num_cells, np.float32), (np.arange(num_cells), rng.integers(GENES, size=num_cells)))
    )
    one_each.resize((num_cells, GENES))
    return sp.csr_matrix((values, (rows, columns)), shape=(num_cells, GENES)) + one_each


def write_cells(path: Path, num_cells: int) -> float:
    """Write a file of so many cells, some at a time; returns the megabytes of its counts as CSR."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        for start in range(0, num_cells, CHUNK):
            block = chunk(min(CHUNK, num_cells - start), rng)
            if start == 0:
                write_elem(file, "X", block)
            else:
                sparse_dataset(file["X"]).append(block)
        for name, size in (("obs", num_cells), ("var", GENES)):
            write_elem(file, name, pd.DataFrame(index=np.arange(size).astype(str)))
        return sum(part.size * part.dtype.itemsize for part in file["X"].values()) / 1e6


def train(path: Path, storage: str) -> float:
    """Register the cells of a file and train for an epoch; returns the most memory ever held, in megabytes."""
    cells = glp.register(anndata.read_h5ad(path, backed="r" if storage == ON_DISK else None))
    vae = glp.VAE_NB.from_registration(cells)
    glp.fit(vae, cells, max_epochs=1, minibatch_size=MINIBATCH, validation_fraction=0.0, progress=False)
    return peak()


def peak() -> float:
    """The most memory that this process ever held, in megabytes."""
    status = Path("/proc/self/status")
    if status.exists():  # a child's ru_maxrss begins at its parent's
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held * (1 if sys.platform == "darwin" else 1024) / 1e6


def measure(path: Path, storage: str, rounds: int) -> float:
    """The same in processes of their own, the median."""
    command = [sys.executable, "-m", "tests.benchmarks.memory", str(path), storage, str(torch.get_num_threads())]
    run_once = [
        float(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout)
        for _ in range(rounds)
    ]
    return float(np.median(run_once))


def run(options: Options) -> None:
    """Measure and print."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("cells", "counts as CSR", IN_MEMORY, ON_DISK):
        table.add_column(name, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.h5ad"
        write_cells(path, BASELINE)
        baseline = measure(path, IN_MEMORY, options.rounds)
        for num_cells in (3_000,) if options.small else options.cells:
            size = write_cells(path, num_cells)
            above = (measure(path, storage, options.rounds) - baseline for storage in (IN_MEMORY, ON_DISK))
            table.add_row(f"{num_cells:,}", f"{size:,.0f}", *(f"{value:,.0f}" for value in above))
    say(
        f"Peak memory of registration and an epoch, in MB above the {baseline:,.0f} MB that {BASELINE:,} cells take: "
        f"{GENES:,} genes, {DENSITY:.0%} above zero, minibatch {MINIBATCH}"
    )
    console().print(table)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    say(str(train(Path(sys.argv[1]), sys.argv[2])))
