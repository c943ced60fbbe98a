"""The commands on estimators: what there are, and how they compare."""

from pathlib import Path
from typing import Annotated

import typer

from genailab_pyro.cli_options import (
    Conditions,
    Continuous,
    Counts,
    Folder,
    Overwrite,
    Quiet,
    Seed,
    SizeFactor,
    going_on,
)

COMPARE_EXAMPLES = (
    "Examples:\n\ngenailab-pyro compare --folder runs/compare\n\n"
    "genailab-pyro compare --model HierarchicalVAE --folder runs/hierarchy\n\n"
    "genailab-pyro compare cells.h5ad --condition batch --estimator pathwise --estimator score-loo --race 5 "
    "--folder runs/mine"
)
ESTIMATORS_EXAMPLES = "Examples:\n\ngenailab-pyro estimators\n\ngenailab-pyro estimators --uses"


def compare(
    data: Annotated[
        Path | None, typer.Argument(help="An h5ad file with raw counts; without it, blood cells that come along.")
    ] = None,
    folder: Folder = Path("runs/compare"),
    model: Annotated[str, typer.Option(help="A model as for 'genailab-pyro fit'.")] = "CVAE_NB",
    estimator: Annotated[
        list[str] | None,
        typer.Option(help="A name that 'genailab-pyro estimators' lists; repeatable. Without it, the standard ones."),
    ] = None,
    condition: Conditions = None,
    continuous: Continuous = None,
    counts: Counts = None,
    size_factor: SizeFactor = None,
    draws: Annotated[int, typer.Option(min=2, help="Gradient draws of each estimator.")] = 200,
    race: Annotated[int, typer.Option(min=0, help="Training runs by each estimator; 0 for none.")] = 0,
    max_epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of each training run.")] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Measure how far the gradients of each estimator scatter, and what they cost.

    At the beginning, in the middle and at the end of a training run, and with
    --race also how well each estimator trains. The folder gets report.html,
    comparison.csv, comparison.nc and figures/. After an interruption the same
    command goes on: the comparison, once it is done, and each run of the race that
    is done are kept.
    """
    from genailab_pyro.comparing import run_comparison
    from genailab_pyro.configuration import DataSettings, ModelSettings
    from genailab_pyro.report.terminal import print_comparison, say

    settings = DataSettings(
        path=None if data is None else str(data),
        counts=counts,
        conditions=tuple(condition or ()),
        continuous=tuple(continuous or ()),
        size_factor=size_factor,
    )
    with going_on(folder):
        result = run_comparison(
            folder,
            settings,
            ModelSettings(name=model),
            estimators=estimator or (),
            num_draws=draws,
            num_seeds=race,
            max_epochs=max_epochs,
            seed=seed,
            overwrite=overwrite,
            callback=None if quiet else say,
        )
    print_comparison(result.comparison, result.race)
    for line in result.findings:
        say(line)
    say(f"Report: {result.folder / 'report.html'}")


def estimators(
    uses: Annotated[bool, typer.Option("--uses", help="Show what each can be used with.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print it whole, as Markdown.")] = False,
) -> None:
    """List the estimators: what each differentiates how, its objective, and what it needs."""
    from genailab_pyro import estimators as known
    from genailab_pyro.report.terminal import print_table

    frame = known.matrix() if uses else known.table()
    if markdown:
        typer.echo(known.markdown(frame), nl=False)
        return
    shown = frame if uses else frame[["objective", "latents", "least_particles", "needs", "reference"]]
    records = shown.reset_index().to_dict("records")
    rows = [{str(name).replace("_", " "): value for name, value in record.items()} for record in records]
    print_table(rows, "Estimators of the gradient of a bound", words=[*rows[0]])
