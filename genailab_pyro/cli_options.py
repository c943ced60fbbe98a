"""Options that several commands of the command line share."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

INTERRUPTED = 130
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


def pair(text: str, option: str, example: str) -> tuple[str, str]:
    """Name and value of ``NAME=VALUE``."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise typer.BadParameter(f"expected NAME=VALUE after {option}, such as {option} {example}, got {text!r}")
    return name.strip(), value.strip()


def pairs(texts: Sequence[str] | None, option: str, example: str) -> dict[str, str]:
    """Values by name of an option that may be given several times."""
    found = [pair(text, option, example) for text in texts or ()]
    if len(dict(found)) < len(found):
        raise typer.BadParameter(f"expected each name once after {option}, got {', '.join(texts or ())}")
    return dict(found)


def number_of(text: str, name: str) -> float:
    """A number that was given as text."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"expected a number for {name}, got {text!r}") from None


def say_error(kind: str, message: object) -> None:
    """One line on the standard error: what it is of, and what is wrong."""
    text = " ".join(str(message).split())
    Console(stderr=True, highlight=False).print(f"[bold red]{kind}:[/] {escape(text)}", soft_wrap=True)


@contextmanager
def going_on(folder: Path) -> Iterator[None]:
    """Tell, after Ctrl-C, how to go on with a job that has begun in its folder."""
    from genailab_pyro.report.folder import is_unfinished

    try:
        yield
    except KeyboardInterrupt:
        if not is_unfinished(folder):
            raise
        say_error("interrupted", "go on with the same command, without --overwrite")
        raise typer.Exit(INTERRUPTED) from None
