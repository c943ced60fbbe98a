"""Options that several commands of the command line share."""

from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[Path, typer.Option(help="A new or empty folder for everything that comes out.")]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No line of progress.")]
Model = Annotated[Path, typer.Argument(help="A run's folder, or a folder that fit.save has written.")]
Data = Annotated[Path, typer.Argument(help="An h5ad file with raw counts.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="The h5ad file to write.")]
Levels = Annotated[
    list[str] | None,
    typer.Option("--condition", metavar="NAME=LEVEL", help="Level of a condition; may be given several times."),
]
Conditions = Annotated[
    list[str] | None,
    typer.Option("--condition", metavar="COLUMN", help="Categorical column of obs that the model is told; repeatable."),
]
Continuous = Annotated[
    list[str] | None,
    typer.Option("--continuous", metavar="COLUMN", help="Numeric column of obs that the model is told; repeatable."),
]
Labels = Annotated[
    str | None,
    typer.Option(metavar="COLUMN", help="Column of obs with labels, for the report; SemiSupervisedVAE learns them."),
]
Counts = Annotated[str | None, typer.Option(metavar="LAYER", help="Layer with the raw counts; without it, X.")]
SizeFactor = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="Column of obs that takes the place of a cell's total counts.")
]
