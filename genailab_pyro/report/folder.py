"""The folder that a run leaves behind."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from anndata import AnnData
from matplotlib.figure import Figure

from genailab_pyro.report.files import write_whole
from genailab_pyro.train.fitted import Fit

FILES = ("config.yaml", "metrics.csv", "scores.csv", "cells.h5ad", "MODEL_CARD.md", "report.html")
FOLDERS = ("figures", "model", "state")


def clear_run(path: str | Path) -> None:
    """Remove what a run has left in a folder; files that are not a run's stay.

    Args:
        path: The folder; one that is empty or not there is left as it is.

    Raises:
        FileExistsError: If the folder holds files and no ``config.yaml``, and so is not a run's.
    """
    path = Path(path)
    if not path.exists() or not any(path.iterdir()):
        return
    if not (path / "config.yaml").is_file():
        raise FileExistsError(
            f"expected the folder of an earlier run to overwrite, {path} holds files but no config.yaml; "
            "nothing was removed: name another folder"
        )
    for name in FOLDERS:
        shutil.rmtree(path / name, ignore_errors=True)
    for name in FILES:
        (path / name).unlink(missing_ok=True)


class RunFolder:
    """The files of a run: configuration, tables, the model, annotated cells, figures, a report and a model card.

    Args:
        path: The folder; it is made if it is not there.
        going_on: Whether the folder may hold files already, those of the same run.

    Raises:
        FileExistsError: If it holds anything already, so that no earlier run is overwritten.
    """

    def __init__(self, path: str | Path, *, going_on: bool = False) -> None:
        self.path = Path(path)
        if not going_on and self.path.exists() and any(self.path.iterdir()):
            raise FileExistsError(
                f"expected a new or empty folder, {self.path} holds files; name another one with --folder"
            )
        self.path.mkdir(parents=True, exist_ok=True)

    def config(self, content: Mapping[str, Any]) -> Path:
        """Write the resolved configuration."""
        return write_whole(self.path / "config.yaml", yaml.safe_dump(dict(content), sort_keys=False))

    def metrics(self, table: pd.DataFrame) -> Path:
        """Write a table of scores, or the history of a run."""
        return write_whole(self.path / "metrics.csv", table.to_csv())

    def scores(self, table: pd.DataFrame) -> Path:
        """Write the held-out scores of a run whose history is in the other table."""
        return write_whole(self.path / "scores.csv", table.to_csv())

    def model(self, fit: Fit, name: str = "model") -> Path:
        """Save the fit."""
        return fit.save(self.path / name)

    def cells(self, adata: AnnData) -> Path:
        """Write annotated cells."""
        path = self.path / "cells.h5ad"
        adata.write_h5ad(path, compression="gzip")
        return path

    def figure(self, name: str, figure: Figure) -> Path:
        """Write a figure as PNG."""
        path = self.path / "figures" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, dpi=150, facecolor="white")
        return path
