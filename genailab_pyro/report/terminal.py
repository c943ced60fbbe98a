"""Tables on the standard output, for a terminal, a pipe or a log."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from rich import box
from rich.console import Console
from rich.table import Table

from genailab_pyro.data.cells import Cells
from genailab_pyro.data.schema import Categorical
from genailab_pyro.experiments import EstimatorComparison
from genailab_pyro.experiments.race import Race
from genailab_pyro.plots.numbers import plus_minus, readable
from genailab_pyro.report.comparison import by_checkpoint

PIPE_WIDTH = 120


def console() -> Console:
    """The standard output; where it is no terminal, lines are as wide as a log allows."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False, markup=False)


def say(text: str) -> None:
    """Print text as it is, without breaking its lines."""
    console().print(text, soft_wrap=True)


def print_table(rows: Sequence[Mapping[str, object]], title: str, *, words: Sequence[str]) -> None:
    """Show rows of the same keys; columns of words stand on the left, numbers on the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, justify="left" if name in words else "right", overflow="fold")
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
    say(title)
    console().print(table)


def print_scores(scores: pd.DataFrame, cells: str, *, over: str = "cells") -> None:
    """Show scores in nats per cell; a column that has a standard error is shown with it.

    Args:
        scores: One row per model, or estimator.
        cells: On which cells.
        over: What the standard errors are over.
    """
    kind = str(scores.index.name or "model")
    rows = []
    for model, row in scores.iterrows():
        shown: dict[str, object] = {kind: model}
        for column in scores.columns:
            if f"{column}_standard_error" in scores.columns:
                shown[column.replace("_", " ")] = plus_minus(row[column], row[f"{column}_standard_error"])
            elif not column.endswith("_standard_error"):
                value = float(row[column])
                shown[column.replace("_", " ")] = f"{value:,.0f}" if value.is_integer() else readable(value)
        rows.append(shown)
    title = f"{cells}, nats per cell: mean ± standard error over {over} (higher is better)"
    print_table(rows, title, words=[kind])


def print_result(folder: Path, scores: pd.DataFrame | None, verdict: Sequence[str] = ()) -> None:
    """Show what a run gave, and where it is.

    Args:
        folder: The run's folder.
        scores: One row per model.
        verdict: What the diagnosis of the fit says.
    """
    if scores is not None:
        print_scores(scores, "Held-out cells")
    for line in verdict:
        say(line)
    say(f"Report: {folder / 'report.html'}")
    say(f"Model:  {folder / 'model'}")
    say(f"Cells:  {folder / 'cells.h5ad'}")


def print_comparison(comparison: EstimatorComparison, race: Race | None) -> None:
    """Show how far each estimator scatters at each checkpoint, and how well it trains."""
    group = str(comparison.at()["group"].item())
    records = by_checkpoint(comparison).reset_index().to_dict("records")
    rows = [{str(key): value for key, value in record.items()} for record in records]
    title = f"Variance of the gradient in the {group}, as a multiple of {comparison.dataset.attrs['reference']}"
    print_table(rows, title, words=["checkpoint", "estimator", "objective"])
    if race is not None:
        print_scores(race.to_dataframe(), "Held-out cells", over="seeds")


def print_cells(adata: AnnData, cells: Cells) -> None:
    """Tell what was found in a file, in the terms of a registration."""
    schema = cells.registration
    ignored = adata.n_vars - len(schema.genes)
    low, median, high = (f"{value:,.0f}" for value in _quantiles(cells.totals))
    facts = {
        "cells": f"{len(cells):,}",
        "genes": f"{len(schema.genes):,}" + (f", and {ignored:,} others that are ignored" if ignored else ""),
        "counts": f"{cells.matrix.place}; median {median} per cell, 5 % below {low}, 5 % above {high}",
    }
    if schema.size_factor is not None:
        facts["size factor"] = f"adata.obs[{schema.size_factor!r}], median {_quantiles(cells.library)[1]:.4g}"
    for position, condition in enumerate(schema.conditions):
        facts[f"condition {condition.name}"] = _levels(condition, cells.conditions[:, position])
    for covariate in schema.continuous:
        facts[f"continuous {covariate.name}"] = f"mean {covariate.loc:.4g}, standard deviation {covariate.scale:.4g}"
    if cells.labels is not None and schema.labels is not None:
        unknown = int((cells.labels < 0).sum())
        rest = f"; {unknown:,} without a known label" if unknown else ""
        facts[f"labels {schema.labels.name}"] = _levels(schema.labels, cells.labels) + rest
    print_table(
        [{"what": name, "found": text} for name, text in facts.items()], "Found in the file", words=["what", "found"]
    )


def _quantiles(values: np.ndarray) -> list[float]:
    return [float(value) for value in np.quantile(values, [0.05, 0.5, 0.95])]


def _levels(described: Categorical, codes: np.ndarray) -> str:
    sizes = np.bincount(codes[codes >= 0], minlength=len(described.levels))
    return ", ".join(f"{level} ({size:,})" for level, size in zip(described.levels, sizes, strict=True))


def print_columns(adata: AnnData) -> None:
    """Tell which columns could be conditions, covariates or labels."""
    rows = []
    for name, column in adata.obs.items():
        known = column.dropna()
        measured = known.dtype.kind in "iuf"
        examples = (
            f"{known.min():.4g} to {known.max():.4g}"
            if measured and len(known)
            else ", ".join(str(value) for value in known.unique()[:5])
        )
        rows.append(
            {"column": name, "values": int(known.nunique()), "missing": len(column) - len(known), "such as": examples}
        )
    if rows:
        print_table(rows, "Columns of obs, for --condition, --continuous and --labels", words=["column", "such as"])
