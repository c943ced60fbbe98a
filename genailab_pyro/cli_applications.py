"""The commands that use a fitted model: denoise, predict, augment, integrate, discover, and compare groups of cells."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genailab_pyro.__about__ import __version__
from genailab_pyro.cli_options import (
    Conditions,
    Continuous,
    Counts,
    Data,
    Levels,
    Model,
    Output,
    Overwrite,
    Quiet,
    Seed,
    going_on,
    number_of,
    pair,
    pairs,
)

if TYPE_CHECKING:
    from genailab_pyro.applications import ApplicationResult

Folder = Annotated[Path, typer.Option(help="A new or empty folder for everything that comes out.", show_default=False)]
Reference = Annotated[str, typer.Option(metavar="LEVEL", help="The level it is compared with.")]


def denoise(
    model: Model,
    data: Data,
    output: Output,
    condition: Levels = None,
    intervals: Annotated[
        bool, typer.Option("--intervals", help='Also layers["expression_low"] and layers["expression_high"], 90 %.')
    ] = False,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Put denoised expression in layers["expression"] and the latent in obsm["X_vae"].

    With --condition, each cell is shown as it would be under that level. The
    intervals hold what the latent leaves open, for the model as it is; 'recover'
    tells whether denoising predicts molecules that it has not seen.
    """
    from genailab_pyro.analysis import annotate
    from genailab_pyro.report.terminal import say
    from genailab_pyro.runs import check_new, load_model, read_cells, write_cells

    check_new(output, overwrite=overwrite)
    levels = pairs(condition, "--condition", "batch=b1")
    fitted = load_model(model)
    adata = read_cells(data)
    cells = annotate(fitted, adata, conditions=levels or None, seed=seed)
    layers = ["expression"]
    if intervals:
        ends = fitted.expression_quantiles(adata, conditions=levels or None, seed=seed)
        for name, values in zip(("expression_low", "expression_high"), ends, strict=True):
            cells.layers[name] = values * cells.uns["expression_library"]
            layers.append(name)
    cells.uns["genailab_pyro"] = {"denoised_by": str(model), "conditions": levels, "seed": seed, "version": __version__}
    write_cells(cells, output)
    say(
        f"{cells.n_obs:,} cells x {cells.n_vars:,} genes, {', '.join(f'layers[{name!r}]' for name in layers)} in "
        f"counts of a cell of {cells.uns['expression_library']:,.0f} counts, obsm['X_vae']: {output}"
    )


def recover(
    data: Data,
    folder: Folder,
    model: Annotated[str, typer.Option(help="A model as for 'genailab-pyro fit'.")] = "CVAE_NB",
    condition: Conditions = None,
    continuous: Continuous = None,
    counts: Counts = None,
    max_genes: Annotated[int | None, typer.Option(min=1, help="Keep that many highly variable genes.")] = None,
    max_epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the cells.")] = None,
    fraction: Annotated[float, typer.Option(help="Share of the molecules that is trained on.")] = 0.5,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train on half of the molecules of each cell, and see how well the others are predicted.

    Beside the model stand no denoising, an average over near neighbours, and the
    mean of all cells. The folder gets report.html, scores.csv, cells.h5ad, model/
    and figures/. After an interruption the same command goes on.
    """
    from genailab_pyro.applications import Job
    from genailab_pyro.applications_counts import run_recovery
    from genailab_pyro.configuration import DataSettings, ModelSettings, Preprocessing

    settings = DataSettings(
        counts=counts,
        conditions=tuple(condition or ()),
        continuous=tuple(continuous or ()),
        preprocess=None if max_genes is None else Preprocessing(max_genes=max_genes),
    )
    job = Job(data, folder, seed=seed, overwrite=overwrite)
    chosen = ModelSettings(name=model)
    with going_on(folder):
        result = run_recovery(job, settings, chosen, fraction=fraction, max_epochs=max_epochs, progress=not quiet)
    _show(result)


def predict(
    model: Model,
    data: Data,
    do: Annotated[str, typer.Option(metavar="NAME=LEVEL", help="The level to which a condition is set.")],
    folder: Folder,
    control: Annotated[str, typer.Option(metavar="LEVEL", help="Level of the cells in which it is set.")] = "control",
    context: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of contexts, such as the cell type; each is scored.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="The one context to predict, such as one left out of training.")
    ] = None,
    dose: Annotated[
        str | None, typer.Option(metavar="NAME=VALUE", help="Value to which a continuous covariate is set.")
    ] = None,
    doses: Annotated[
        str | None, typer.Option(metavar="0,1,10", help="Doses of response curves; the covariate is that of --dose.")
    ] = None,
    noise: Annotated[
        str, typer.Option(metavar="drawn|kept", help="Draw all of a cell's noise, or keep what it shows.")
    ] = "drawn",
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Predict what control cells would look like under another level of a condition.

    Where the file holds real cells at that level, the prediction is scored beside
    simple references, which never see them: no change, the mean shift in other
    contexts, and so on. The folder gets report.html, cells.h5ad, genes.csv,
    scores.csv, invariance.csv, dose_response.csv and figures/.
    """
    from genailab_pyro.applications import Job
    from genailab_pyro.applications_counts import Intervention, run_prediction

    if target is not None and context is None:
        raise typer.BadParameter("--target is a level of a column: name it by --context COLUMN")
    condition, level = pair(do, "--do", "condition=stimulated")
    chosen = None
    if dose is not None:
        name, value = pair(dose, "--dose", "dose=2")
        chosen = name, number_of(value, name)
    asked = Intervention(condition, level, control, context, target, chosen, noise)
    places = _doses(doses)
    job = Job(data, folder, model, seed=seed, overwrite=overwrite)
    _show(run_prediction(job, asked, doses=places))


def augment(
    model: Model,
    data: Data,
    condition: Annotated[str, typer.Option(metavar="NAME", help="Condition of the model whose levels are balanced.")],
    folder: Folder,
    level: Annotated[list[str] | None, typer.Option(help="A level to augment; repeatable. Without it, all.")] = None,
    target: Annotated[
        int | None, typer.Option(min=1, help="Cells that each level is to have; without it, as the most frequent.")
    ] = None,
    source: Annotated[str, typer.Option(metavar="posterior|prior", help="Where latents are drawn from.")] = "posterior",
    test: Annotated[
        Path | None, typer.Option(help="An h5ad file of real cells that were not trained on, for a classifier.")
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Generate cells of the rare levels of a condition, and see whether they look real.

    With --test, a classifier is trained on the real cells, on these with copies of
    the rare ones, and on these with generated ones, and scored on the test cells.
    The folder gets report.html, cells.h5ad, fidelity.csv, classifier.csv and
    figures/.
    """
    from genailab_pyro.applications import Job
    from genailab_pyro.applications_counts import run_augmentation

    job = Job(data, folder, model, () if test is None else (test,), seed=seed, overwrite=overwrite)
    _show(run_augmentation(job, condition=condition, target=target, levels=level, source=source, test=test))


def integrate(
    model: Model,
    data: Data,
    batch: Annotated[str, typer.Option(metavar="COLUMN", help="Column of obs with the batches.")],
    folder: Folder,
    labels: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of obs with labels that are to stay apart.")
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Put the latent beside the counts, and score how batches mix and labels stay, before and after.

    Before are principal components of log-normalised counts. The folder gets
    report.html, cells.h5ad (obsm X_vae, X_pca, X_umap), scores.csv and figures/.
    """
    from genailab_pyro.applications import Job, run_integration

    _show(run_integration(Job(data, folder, model, seed=seed, overwrite=overwrite), batch=batch, labels=labels))


def discover(
    model: Model,
    data: Data,
    folder: Folder,
    resolution: Annotated[float, typer.Option(help="Of the Leiden clusters: the higher, the more.")] = 1.0,
    labels: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of obs with labels to compare the clusters with.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="An h5ad file of known cells that were not trained on, for the novelty.")
    ] = None,
    refit: Annotated[
        list[Path] | None, typer.Option(help="The same model fitted by another seed, for the stability; repeatable.")
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Cluster cells in the latent space: a map, markers, uncertainty, stability and novelty.

    The folder gets report.html, cells.h5ad, clusters.csv, markers.csv,
    agreement.csv, stability.csv, novelty.csv and figures/.
    """
    from genailab_pyro.applications import Job, run_discovery

    others = [*(refit or ()), *([] if reference is None else [reference])]
    job = Job(data, folder, model, others, seed=seed, overwrite=overwrite)
    _show(run_discovery(job, resolution=resolution, labels=labels, reference=reference, refits=refit or ()))


def differential(
    model: Model,
    data: Data,
    groupby: Annotated[str, typer.Option(metavar="COLUMN", help="Column of obs with the groups.")],
    group: Annotated[str, typer.Option(metavar="LEVEL", help="The group of interest.")],
    folder: Folder,
    reference: Reference = "rest",
    delta: Annotated[float, typer.Option(help="Smallest log2 fold change of interest.")] = 0.25,
    fdr: Annotated[float, typer.Option(help="Expected share of false calls.")] = 0.05,
    condition: Levels = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Find the genes whose mean expression differs between two groups of cells.

    With --condition, all cells are decoded under that level. The folder gets
    report.html, genes.csv (with a rank-sum test beside) and figures/.
    """
    from genailab_pyro.applications import Job, run_differential

    levels = pairs(condition, "--condition", "batch=b1")
    job = Job(data, folder, model, seed=seed, overwrite=overwrite)
    options: dict[str, Any] = {"groupby": groupby, "group": group, "reference": reference}
    _show(run_differential(job, **options, delta=delta, fdr=fdr, conditions=levels))


def contrast(
    model: Model,
    data: Data,
    treatment: Annotated[str, typer.Option(metavar="NAME", help="Condition of the model that is the treatment.")],
    level: Annotated[str, typer.Option(help="The level of interest.")],
    reference: Reference,
    folder: Folder,
    population: Annotated[
        str, typer.Option(metavar="all|treated", help="Over which cells both levels are averaged.")
    ] = "all",
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Compare what a treatment does, adjusted for the latent, with how treated cells differ.

    It warns where cells of one arm have none of the other near by. The folder gets
    report.html, genes.csv (naive and adjusted), overlap.csv and figures/.
    """
    from genailab_pyro.applications import Job, run_contrast

    job = Job(data, folder, model, seed=seed, overwrite=overwrite)
    _show(run_contrast(job, treatment=treatment, level=level, reference=reference, population=population))


def _doses(text: str | None) -> list[float]:
    places = [] if text is None else [number_of(part.strip(), "--doses") for part in text.split(",")]
    if text is not None and (len(places) < 2 or min(places) < 0 or sorted(set(places)) != places):
        raise typer.BadParameter(f"expected increasing doses of at least 0, such as --doses 0,1,10, got {text!r}")
    return places


def _show(result: "ApplicationResult") -> None:
    """Tell what was found, and where the rest is."""
    from genailab_pyro.report.terminal import say

    for line in result.findings:
        say(line)
    say(f"Report: {result.folder / 'report.html'}")


def _examples(*lines: str) -> str:
    return "\n\n".join(["Examples:" if len(lines) > 1 else "Example:", *(f"genailab-pyro {line}" for line in lines)])


APPLICATIONS: dict[str, tuple[Callable[..., None], str]] = {
    "denoise": (
        denoise,
        _examples(
            "denoise runs/first cells.h5ad -o denoised.h5ad --intervals",
            "denoise runs/first cells.h5ad -o as_b1.h5ad --condition batch=b1",
        ),
    ),
    "recover": (recover, _examples("recover cells.h5ad --condition batch --max-genes 2000 --folder runs/recover")),
    "predict": (
        predict,
        _examples(
            "predict runs/first cells.h5ad --do condition=stimulated --context cell_type --folder runs/predict",
            "predict runs/first cells.h5ad --do drug=A --dose dose=10 --doses 0,1,10 --folder runs/doses",
        ),
    ),
    "augment": (
        augment,
        _examples("augment runs/first train.h5ad --condition cell_type --test test.h5ad --folder runs/augment"),
    ),
    "integrate": (
        integrate,
        _examples("integrate runs/first cells.h5ad --batch batch --labels cell_type --folder runs/integrate"),
    ),
    "discover": (
        discover,
        _examples("discover runs/first cells.h5ad --resolution 0.5 --reference known.h5ad --folder runs/discover"),
    ),
    "differential": (
        differential,
        _examples("differential runs/first cells.h5ad --groupby cell_type --group B --folder runs/markers"),
    ),
    "contrast": (
        contrast,
        _examples(
            "contrast runs/first cells.h5ad --treatment condition --level stimulated --reference control "
            "--folder runs/contrast"
        ),
    ),
}
