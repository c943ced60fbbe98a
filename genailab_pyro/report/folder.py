"""The folder that a run leaves behind."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from anndata import AnnData
from matplotlib.figure import Figure

from genailab_pyro.files import write_whole
from genailab_pyro.train.fitted import Fit

FILES = (
    *("config.yaml", "metrics.csv", "scores.csv", "cells.h5ad", "MODEL_CARD.md", "report.html"),
    *("comparison.nc", "comparison.csv", "race.nc", "race.csv"),
    *("genes.csv", "clusters.csv", "markers.csv", "agreement.csv", "stability.csv", "novelty.csv", "overlap.csv"),
    *("invariance.csv", "dose_response.csv", "fidelity.csv", "classifier.csv"),
)
FOLDERS = ("figures", "model", "state")
# What a process that was killed while it wrote a file leaves beside it.
_PART = re.compile(r"\..+\.part")


def clear_run(path: str | Path) -> None:
    """Empty the folder of an earlier run.

    Args:
        path: The folder; one that is empty or not there is left as it is.

    Raises:
        FileExistsError: If `earlier_run` refuses the folder; nothing is removed then.
    """
    path = Path(path)
    last = {"report.html": 1, "config.yaml": 2}  # what tells, until the end, whose folder it is
    for name in sorted(earlier_run(path), key=lambda name: last.get(name, 0)):
        if name in FOLDERS:
            shutil.rmtree(path / name)
        else:
            (path / name).unlink()


def earlier_run(path: str | Path) -> list[str]:
    """Names of what an earlier run has left in a folder; none where it is empty or not there.

    Raises:
        FileExistsError: If the folder holds anything that a run does not write, or no ``config.yaml``.
    """
    path = Path(path)
    found = [item.name for item in path.iterdir()] if path.exists() else []
    whole = [name for name in found if not _PART.fullmatch(name)]
    foreign = [name for name in whole if name not in (*FILES, *FOLDERS)]
    if whole and (foreign or "config.yaml" not in whole):
        there = f"{', '.join(sorted(foreign)[:5])}, which no run has written" if foreign else "no config.yaml"
        raise FileExistsError(
            f"expected the folder of an earlier run to overwrite, {path} holds {there}; nothing was removed: name "
            "another folder"
        )
    return found


def check_free(path: Path) -> None:
    """Refuse a folder with files.

    Raises:
        FileExistsError: If it holds anything, so that no earlier run is overwritten.
    """
    if path.exists() and not all(_PART.fullmatch(item.name) for item in path.iterdir()):
        raise FileExistsError(
            f"expected a new or empty folder, {path} holds files; name another one with --folder, or replace an "
            "earlier run with --overwrite"
        )


def is_unfinished(path: Path) -> bool:
    """Whether a folder is that of a job that has begun, and has not come to its report."""
    return (path / "config.yaml").is_file() and not (path / "report.html").exists()


class RunFolder:
    """The files of a run: configuration, tables, the model, annotated cells, figures, a report and a model card.

    Args:
        path: The folder; it is made if it is not there.
        going_on: Whether the folder may hold files already, those of the same run.

    Raises:
        FileExistsError: As `check_free` does.
    """

    def __init__(self, path: str | Path, *, going_on: bool = False) -> None:
        self.path = Path(path)
        if not going_on:
            check_free(self.path)
        self.path.mkdir(parents=True, exist_ok=True)

    @classmethod
    def of(cls, path: str | Path, content: Mapping[str, Any]) -> "RunFolder":
        """The folder of a job with a configuration: a new one, or that in which the same job was interrupted.

        Args:
            path: The folder.
            content: The configuration, in types that YAML holds; two jobs are the same if all of it is.

        Raises:
            FileExistsError: If it holds another job, or one that came to its end.
        """
        path = Path(path)
        unfinished = is_unfinished(path)
        if unfinished:
            found = _mapping(path / "config.yaml")
            differ = [name for name in {**content, **found} if _yaml(found.get(name)) != _yaml(content.get(name))]
            if differ:
                raise FileExistsError(
                    f"expected a new or empty folder, or one in which the same job was interrupted, {path} holds one "
                    f"that differs in {', '.join(differ)}; give it what it was begun with, name another folder with "
                    "--folder, or replace it with --overwrite"
                )
        out = cls(path, going_on=unfinished)
        out.config(content)
        return out

    def config(self, content: Mapping[str, Any]) -> Path:
        """Write the resolved configuration."""
        return write_whole(self.path / "config.yaml", _yaml(dict(content)))

    def metrics(self, table: pd.DataFrame) -> Path:
        """Write a table of scores, or the history of a run."""
        return write_whole(self.path / "metrics.csv", table.to_csv())

    def scores(self, table: pd.DataFrame) -> Path:
        """Write the held-out scores of a run whose history is in the other table."""
        return write_whole(self.path / "scores.csv", table.to_csv())

    def table(self, name: str, table: pd.DataFrame) -> Path:
        """Write another table."""
        return write_whole(self.path / f"{name}.csv", table.to_csv())

    def model(self, fit: Fit, name: str = "model") -> Path:
        """Save the fit, in place of one that was there."""
        shutil.rmtree(self.path / name, ignore_errors=True)
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


def _yaml(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False)


def _mapping(path: Path) -> dict[str, Any]:
    """What a file says, if it is YAML of a mapping."""
    try:
        found = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}
