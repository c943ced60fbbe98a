"""The command line ``genailab-pyro``.

What a command needs is imported when it runs, so that help comes at once.
"""

import shlex
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from genailab_pyro.__about__ import __version__
from genailab_pyro.cli_applications import APPLICATIONS
from genailab_pyro.cli_estimators import COMPARE_EXAMPLES, ESTIMATORS_EXAMPLES, compare, estimators
from genailab_pyro.cli_lab import LAB_EXAMPLES, lab
from genailab_pyro.cli_options import (
    INTERRUPTED,
    Conditions,
    Continuous,
    Counts,
    Data,
    Folder,
    Labels,
    Levels,
    Model,
    Output,
    Overwrite,
    Quiet,
    Seed,
    SizeFactor,
    going_on,
    number_of,
    pair,
    pairs,
    say_error,
)


class Commands(TyperGroup):
    """Shows what the library refuses as one message, and what it warns of as one line each."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for category in (UserWarning, RuntimeWarning):
                warnings.simplefilter("default", category)
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except (ValueError, TypeError, KeyError, OSError, ArithmeticError) as error:
                if ctx.params["traceback"] or isinstance(error, BrokenPipeError):
                    raise
                say_error("error", _sentence(error))
                raise typer.Exit(1) from None


def _sentence(error: Exception) -> str:
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if " " in text:
        return text
    # Not what the library says to people: a name alone tells nothing.
    return f"{type(error).__name__}: {text}; genailab-pyro --traceback COMMAND shows where it comes from"


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"genailab-pyro {__version__}")
        raise typer.Exit


@app.callback(
    epilog="Begin with:\n\ngenailab-pyro demo\n\ngenailab-pyro check cells.h5ad\n\n"
    "genailab-pyro fit cells.h5ad --condition batch --folder runs/first"
)
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", envvar="GENAILAB_PYRO_TRACEBACK", help="Show where an error comes from.")
    ] = False,
) -> None:
    """Variational autoencoders for gene-expression counts: fit them, score them, draw from them."""


@app.command(epilog="Examples:\n\ngenailab-pyro demo\n\ngenailab-pyro demo --folder runs/look --max-epochs 5")
def demo(
    folder: Folder = Path("runs/demo"),
    seed: Seed = 0,
    max_epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of each fit; fewer are a quick look.")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Fit four models to real blood cells that come with the package, compare them, and write a report.

    It needs no data and no network, and takes a few minutes. After an interruption
    the same command goes on.
    """
    from genailab_pyro.demo import run_demo
    from genailab_pyro.report.folder import clear_run
    from genailab_pyro.report.terminal import print_result

    if overwrite:
        clear_run(folder)
    with going_on(folder):
        result = run_demo(folder, seed=seed, max_epochs=max_epochs, progress=not quiet)
    print_result(
        result.folder, result.scores.filter(regex="elbo|log_likelihood|difference|active|purity$"), result.findings
    )


@app.command(
    epilog="Examples:\n\ngenailab-pyro fit cells.h5ad --condition batch --labels cell_type --folder runs/first\n\n"
    "genailab-pyro fit cells.h5ad --model VAE_ZINB --set training.max_epochs=50 --folder runs/zinb\n\n"
    "genailab-pyro fit cells.h5ad --set data.preprocess.max_genes=2000 --print-config > config.yaml\n\n"
    "genailab-pyro fit --config config.yaml --folder runs/second\n\n"
    "The options win over the file of --config, and --set wins over both."
)
def fit(
    data: Annotated[Path | None, typer.Argument(help="An h5ad file with raw counts.", show_default=False)] = None,
    folder: Annotated[Path | None, typer.Option(help="A new or empty folder for everything that comes out.")] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file of settings, as --print-config shows it.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting of the YAML file; repeatable.")
    ] = None,
    condition: Conditions = None,
    continuous: Continuous = None,
    labels: Labels = None,
    counts: Counts = None,
    size_factor: SizeFactor = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="CVAE, CVAE_NB, CVAE_ZINB; without conditions VAE_Gaussian, VAE_NB, VAE_ZINB; with structured latents "
            "HierarchicalVAE, LabelVAE, SemiSupervisedVAE, BernoulliVAE; of perturbations PerturbationVAE (with "
            "--set penalties.alignment=100)."
        ),
    ] = None,
    estimator: Annotated[str | None, typer.Option(help="A name that 'genailab-pyro estimators' lists.")] = None,
    max_epochs: Annotated[int | None, typer.Option(help="Passes over the training cells.")] = None,
    held_out: Annotated[
        str | None, typer.Option(metavar="SHARE|COLUMN", help="Share of the cells, or a true/false column of obs.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything that is drawn.")] = None,
    device: Annotated[str | None, typer.Option(help="Where to train, such as cuda.")] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Show all settings as YAML, and exit.")] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Fit a model to your cells, score it on cells that it never sees, and write a report.

    The folder gets report.html, MODEL_CARD.md, model/, cells.h5ad (latents,
    expression, split), scores.csv, metrics.csv, config.yaml and figures/.
    """
    from genailab_pyro.configuration import Configuration, assign, override, read_yaml

    chosen = {
        "data.path": None if data is None else str(data),
        "data.conditions": condition,
        "data.continuous": continuous,
        "data.labels": labels,
        "data.counts": counts,
        "data.size_factor": size_factor,
        "model.name": model,
        "estimator.name": estimator,
        "training.max_epochs": max_epochs,
        "held_out": None if held_out is None else _held_out(held_out),
        "seed": seed,
        "device": device,
    }
    content = {} if config is None else read_yaml(config)
    for key, value in chosen.items():
        if value is not None:
            content = assign(content, key, value)
    for setting in settings or ():
        pair(setting, "--set", "training.max_epochs=50")
    configuration = Configuration.from_mapping(override(content, settings or ()))
    if print_config:
        typer.echo(configuration.to_yaml(), nl=False)
        return
    if folder is None:
        raise typer.BadParameter("name a folder for what comes out, such as --folder runs/first")
    from genailab_pyro.runs import run

    _finish(folder, lambda: run(configuration, folder, overwrite=overwrite, progress=not quiet))


@app.command(epilog="Example:\n\ngenailab-pyro resume runs/first")
def resume(
    folder: Annotated[Path, typer.Argument(help="The folder of a run that was interrupted.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write the outputs of a complete run again.")] = False,
    quiet: Quiet = False,
) -> None:
    """Go on with a run that was interrupted, as if it had never stopped."""
    from genailab_pyro.runs import continue_run

    _finish(folder, lambda: continue_run(folder, overwrite=overwrite, progress=not quiet))


@app.command(
    epilog="Examples:\n\ngenailab-pyro evaluate runs/first held_out.h5ad\n\n"
    "genailab-pyro evaluate runs/nb runs/zinb runs/nb/cells.h5ad --only split=held-out --csv scores.csv"
)
def evaluate(
    models: Annotated[list[Path], typer.Argument(help="Folders of runs or of saved fits.")],
    data: Annotated[Path, typer.Argument(help="An h5ad file with cells that none of the models was trained on.")],
    only: Annotated[
        str | None, typer.Option(metavar="COLUMN=LEVEL", help="Score only the cells with this value in obs.")
    ] = None,
    particles: Annotated[int, typer.Option(min=1, help="Draws per cell of the importance-weighted bound.")] = 100,
    seed: Seed = 0,
    csv: Annotated[Path | None, typer.Option(help="Write the table to this file, too.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Score models on cells that they never saw: ELBO and log-likelihood, in nats per cell.

    The difference of two models is taken cell by cell: it has a much smaller
    standard error than the scores themselves.
    """
    from genailab_pyro.files import write_whole
    from genailab_pyro.report.terminal import print_scores
    from genailab_pyro.runs import check_new, load_models, read_cells, score, select_cells

    if csv is not None:
        check_new(csv, overwrite=overwrite)
    fits = load_models(models)
    cells = read_cells(data)
    cells = cells if only is None else select_cells(cells, *pair(only, "--only", "split=held-out"))
    if "train" in set(cells.obs.get("split", ())):
        say_error("warning", "obs['split'] says that some cells were trained on; leave them out: --only split=held-out")
    scores = score(fits, cells, num_particles=particles, seed=seed)
    print_scores(scores, f"{cells.n_obs:,} cells")
    if csv is not None:
        write_whole(csv, scores.to_csv())


@app.command(
    epilog="Examples:\n\ngenailab-pyro generate runs/first 500 -o new.h5ad\n\n"
    "genailab-pyro generate runs/first 500 -o new.h5ad --condition batch=b1 --seed 1"
)
def generate(
    model: Model,
    number: Annotated[int, typer.Argument(min=1, help="How many cells.")],
    output: Output,
    condition: Levels = None,
    continuous: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Value of a continuous covariate; may be given several times."),
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Draw new cells from a model.

    A condition that is not named is drawn as often as in the training cells.
    """
    from genailab_pyro.report.terminal import say
    from genailab_pyro.runs import check_new, load_model, write_cells

    check_new(output, overwrite=overwrite)
    values = {name: number_of(text, name) for name, text in pairs(continuous, "--continuous", "dose=2").items()}
    levels = pairs(condition, "--condition", "batch=b1")
    cells = load_model(model).generate(number, conditions=levels, continuous=values, seed=seed)
    cells.uns["genailab_pyro"] = {"generated_by": str(model), "seed": seed, "version": __version__}
    write_cells(cells, output)
    say(f"{cells.n_obs:,} new cells x {cells.n_vars:,} genes, counts in X: {output}")


@app.command(
    epilog="Examples:\n\ngenailab-pyro check cells.h5ad\n\n"
    "genailab-pyro check cells.h5ad --condition batch --labels cell_type\n\n"
    "genailab-pyro check new_cells.h5ad --model runs/first"
)
def check(
    data: Data,
    model: Annotated[Path | None, typer.Option(help="A run's folder, or a folder that fit.save has written.")] = None,
    condition: Conditions = None,
    continuous: Continuous = None,
    labels: Labels = None,
    counts: Counts = None,
    size_factor: SizeFactor = None,
) -> None:
    """Say what a file holds, and whether a model could be fitted to it, or fits it already (--model).

    The exit code is 1 where it does not fit.
    """
    from genailab_pyro.data.registration import register
    from genailab_pyro.report.terminal import print_cells, print_columns, say
    from genailab_pyro.runs import load_model, read_cells

    columns: dict[str, Any] = {"--condition": condition, "--continuous": continuous, "--labels": labels and [labels]}
    columns |= {"--counts": counts and [counts], "--size-factor": size_factor and [size_factor]}
    roles = [word for option, names in columns.items() for name in names or () for word in (option, name)]
    if model is not None and roles:
        raise typer.BadParameter("--model knows the columns already; leave the other options out")
    if model is not None:
        fitted, adata = load_model(model), read_cells(data)
        print_cells(adata, fitted.bind(adata))
        say(f"The cells fit the model in {model}.")
        return
    adata = read_cells(data)
    print_cells(adata, register(adata, counts, condition or (), continuous or (), labels, size_factor))
    if not roles:
        print_columns(adata)
    say(f"The cells can be fitted: genailab-pyro fit {shlex.join([str(data), *roles])} --folder runs/first")


for name, (command, examples) in APPLICATIONS.items():
    app.command(name, epilog=examples)(command)
app.command(epilog=COMPARE_EXAMPLES)(compare)
app.command(epilog=ESTIMATORS_EXAMPLES)(estimators)
app.command(epilog=LAB_EXAMPLES)(lab)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    say_error("warning", message)


def _held_out(text: str) -> dict[str, Any]:
    try:
        return {"fraction": float(text)}
    except ValueError:
        return {"column": text}


def _finish(folder: Path, begin: Callable[[], Any]) -> None:
    """Tell what a run gave, or, after Ctrl-C, how to go on with it."""
    from genailab_pyro.report.terminal import print_result

    try:
        result = begin()
    except KeyboardInterrupt:
        if not (folder / "state").is_dir():
            raise
        result = None
    if result is None or result.fit.interrupted:
        say_error("interrupted", f"go on with: genailab-pyro resume {folder}")
        raise typer.Exit(INTERRUPTED)
    print_result(result.folder, result.scores, () if result.diagnosis is None else result.diagnosis.verdict)


def main() -> None:
    """Run the command line."""
    app()
