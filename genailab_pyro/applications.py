"""The jobs of the commands that use a fit: cells from a file in, a folder of tables, figures and a report out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Float
from sklearn.decomposition import PCA

from genailab_pyro.analysis import (
    cluster_stability,
    differential_expression,
    discover,
    integrate,
    markers,
    novelty,
    umap,
)
from genailab_pyro.analysis.causal import contrast, overlap
from genailab_pyro.data.cells import Cells
from genailab_pyro.data.validation import named, suggestion
from genailab_pyro.evaluation import (
    batch_excess,
    batch_variance_removed,
    integration_scores,
    log_normalise,
    rank_sum_test,
)
from genailab_pyro.report import Report
from genailab_pyro.report import applications as sections
from genailab_pyro.report.applications import Told
from genailab_pyro.report.folder import RunFolder, check_free, clear_run, earlier_run, is_unfinished
from genailab_pyro.report.run import Map, map_cells
from genailab_pyro.runs import load_model, read_cells
from genailab_pyro.train.fitted import Fit, installed

NUM_COMPONENTS = 50
FEWEST_CELLS = 5


@dataclass(frozen=True)
class ApplicationResult:
    """What an application gave.

    Attributes:
        findings: What was found, a sentence each.
        folder: Where everything is.
    """

    findings: list[str]
    folder: Path


@dataclass(frozen=True)
class Job:
    """What every application is told.

    Attributes:
        data: An h5ad file of cells.
        folder: A new or empty folder for what comes out.
        model: The folder of a run or of a saved fit; None where a model is trained.
        others: Further files and folders that are read.
        seed: Seed of everything that is drawn.
        overwrite: Whether what an earlier run left in the folder is removed, once all is computed, or once training
            is ready to begin.

    Raises:
        FileExistsError: If the folder holds files; where it may be overwritten, if others than those of a run.
        ValueError: If something that is read lies in the folder.
    """

    data: Path
    folder: Path
    model: Path | None = None
    others: Sequence[Path] = ()
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        for path in (self.data, self.model, *self.others):
            if path is not None and self.folder.resolve() in (path.resolve(), *path.resolve().parents):
                raise ValueError(f"expected another folder than one that is read, {path} is in {self.folder}")
        if self.overwrite:
            earlier_run(self.folder)
        elif self.model is not None or not is_unfinished(self.folder):
            check_free(self.folder)

    def load(self) -> tuple[Fit, AnnData]:
        """The model and the cells."""
        assert self.model is not None
        return load_model(self.model), read_cells(self.data)

    def begin(self, name: str, settings: Mapping[str, Any]) -> RunFolder:
        """The folder with its configuration: a new one, or that in which the same job was interrupted.

        Args:
            name: Name of the application.
            settings: What it was asked for, in types that YAML holds.

        Raises:
            FileExistsError: If the folder holds another job, or one that came to its end.
        """
        if self.overwrite:
            clear_run(self.folder)
        read = {"model": self.model, "data": self.data}
        places = {what: str(path.resolve()) for what, path in read.items() if path is not None}
        return RunFolder.of(self.folder, {"application": name, **places, **settings, "seed": self.seed})

    def report(self, title: str, summary: str) -> Report:
        """An empty report."""
        return Report(f"{title}: {self.data.name}", summary, versions={**installed(), "seed": self.seed})


def finish(
    out: RunFolder,
    report: Report,
    told: Sequence[Told],
    *,
    tables: Mapping[str, pd.DataFrame],
    cells: AnnData | None = None,
    trained: Fit | None = None,
) -> ApplicationResult:
    """Write the folder; the report comes last, as the sign that all of it is there.

    Args:
        out: The folder, as `Job.begin` gives it.
        report: The report.
        told: What its sections found, and their figures.
        tables: Tables, by the names of their files.
        cells: Annotated cells.
        trained: A model that the application has trained.
    """
    for title, table in tables.items():
        out.table(title, table)
    if trained is not None:
        out.model(trained)
    if cells is not None:
        cells.obs = _writable(cells.obs)
        out.cells(cells)
    for part in told:
        for title, figure in part.figures.items():
            out.figure(title, figure)
    report.write(out.path / "report.html")
    return ApplicationResult([line for part in told for line in part.findings], out.path)


def _writable(obs: pd.DataFrame) -> pd.DataFrame:
    """The columns as h5ad files can hold them: true and false beside missing values are no objects there."""
    mixed = [name for name in obs if obs[name].dtype == object and pd.api.types.infer_dtype(obs[name]) == "boolean"]
    return obs.astype(dict.fromkeys(mixed, "boolean"))


def column_of(adata: AnnData, name: str) -> pd.Series:
    """A column of ``.obs``.

    Raises:
        ValueError: If there is none of that name.
    """
    known = list(adata.obs.columns)
    if name not in known:
        raise ValueError(
            f'expected adata.obs["{name}"], but there are {named(known, 20) or "no columns"}{suggestion(name, known)}'
        )
    return adata.obs[name]


def components(cells: Cells, *, seed: int) -> Float[np.ndarray, "cells components"]:
    """Principal components of log-normalised counts, at most 50: what a latent space is seen beside."""
    values = log_normalise(cells.counts_matrix())
    return PCA(min(NUM_COMPONENTS, min(values.shape) - 1), random_state=seed).fit_transform(values)


def _told(fitted: Fit) -> list[str]:
    """Names of the conditions that the model is told."""
    return [item.name for item in fitted.registration.conditions] if fitted.vae.condition.output_dim else []


def run_integration(job: Job, *, batch: str, labels: str | None = None) -> ApplicationResult:
    """Put the latent of each cell beside its counts, and score how batches mix and labels stay, before and after.

    Args:
        job: What is read and written.
        batch: Column of the batches.
        labels: Column of the labels; None to score the mixing alone.

    Raises:
        ValueError: If a column is not there, or has fewer than two levels.
    """
    fitted, adata = job.load()
    batches = column_of(adata, batch)
    names = None if labels is None else column_of(adata, labels)
    if batches.isna().any() or batches.nunique() < 2:
        raise ValueError(
            f'expected at least two batches in adata.obs["{batch}"] and one for each cell, got {batches.nunique()}, '
            f"and {int(batches.isna().sum())} cells without; name another column, or leave these cells out"
        )
    integrated = integrate(fitted, adata)
    integrated.obsm["X_pca"] = components(fitted.bind(adata), seed=job.seed)
    spaces = {"PCA": integrated.obsm["X_pca"], "latent": integrated.obsm["X_vae"]}
    rows = {name: _mixing(space, spaces["PCA"], batches, names, job.seed) for name, space in spaces.items()}
    scores = pd.DataFrame.from_dict(rows, orient="index").rename_axis("space").dropna(axis=1, how="all")
    drawn = map_cells(integrated, seed=job.seed)
    maps = {"PCA": Map(drawn.cells, umap(spaces["PCA"][drawn.cells], seed=job.seed)), "latent": drawn}
    report = job.report(
        "Integration",
        f"The latent of {adata.n_obs:,} cells of {batches.nunique()} batches, scored beside principal components. It "
        'is in obsm["X_vae"] of cells.h5ad, for neighbours, clusters and maps.',
    )
    told = sections.integration_section(
        report, scores, maps, integrated.obs, batch=batch, labels=labels, told=_told(fitted)
    )
    out = job.begin("integrate", {"batch": batch, "labels": labels})
    return finish(out, report, [told], tables={"scores": scores}, cells=integrated)


def _mixing(
    space: np.ndarray, before: np.ndarray, batches: pd.Series, labels: pd.Series | None, seed: int
) -> dict[str, float | None]:
    if labels is not None:
        found = integration_scores(
            space,
            batches.astype(str).to_numpy(),
            labels.astype(str).where(labels.notna(), None).to_numpy(dtype=object),
            reference=None if space is before else before,
            seed=seed,
        )
        return asdict(found)
    codes = pd.factorize(batches)[0]
    return {
        "batch_excess": batch_excess(space, codes, np.zeros(len(codes), dtype=int)),
        "pcr": None if space is before else batch_variance_removed(before, space, codes, seed=seed),
    }


def run_discovery(
    job: Job,
    *,
    resolution: float = 1.0,
    labels: str | None = None,
    reference: Path | None = None,
    refits: Sequence[Path] = (),
) -> ApplicationResult:
    """Cluster cells in the latent space, with markers, stability over fits, and novelty.

    Args:
        job: What is read and written.
        resolution: Of the Leiden clusters.
        labels: Column of labels to compare the clusters with.
        reference: An h5ad file of known cells that the model was not trained on; None for no novelty.
        refits: Other fits of the same model, for the stability of the clusters.

    Raises:
        ValueError: If a column is not there, or cells of the reference are among the others.
    """
    fitted, adata = job.load()
    names = None if labels is None else column_of(adata, labels)
    known = None if reference is None else fitted.bind(read_cells(reference))
    others = {f"refit {place + 1}": load_model(path) for place, path in enumerate(refits)}
    cells = fitted.bind(adata)
    if known is not None:
        _check_apart(cells, known)
    found = discover(fitted, adata, resolution=resolution, umap=False, seed=job.seed)
    drawn = map_cells(found, seed=job.seed)
    clusters, table = _clusters(fitted, found, job.seed)
    agreement = None
    if names is not None:
        spaces = {"latent": found.obsm["X_vae"], "PCA": components(cells, seed=job.seed)}
        agreement = sections.label_agreement_of(
            cluster_stability(spaces, resolution=resolution, seed=job.seed).clusters, names
        )
    report = job.report(
        "Discovery",
        f"Leiden clusters of the latent of {adata.n_obs:,} cells at resolution {resolution:g}. Clusters, latent and "
        "map are in cells.h5ad.",
    )
    told = [sections.discovery_section(report, found, drawn, clusters, agreement, labels=labels, told=_told(fitted))]
    tables = {"clusters": clusters, "markers": table} | ({} if agreement is None else {"agreement": agreement})
    if others:
        stability = cluster_stability({"model": fitted, **others}, adata, resolution=resolution, seed=job.seed)
        found.obs["cluster_uncertainty"] = stability.uncertainty.to_numpy()
        told.append(sections.stability_section(report, stability))
        tables["stability"] = stability.ari
    if known is not None:
        scored = novelty(fitted, cells, known, seed=job.seed)
        found.obs["novelty"], found.obs["novelty_p_value"] = scored["score"].to_numpy(), scored["p_value"].to_numpy()
        told.append(sections.novelty_section(report, scored, found.obs["leiden"], len(known)))
        tables["novelty"] = scored
    settings = {"resolution": resolution, "labels": labels, "refits": [str(path) for path in refits]}
    settings |= {"reference": None if reference is None else str(reference)}
    return finish(job.begin("discover", settings), report, told, tables=tables, cells=found)


def _clusters(fitted: Fit, found: AnnData, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What is known of each cluster, and the markers of those with enough cells to compare."""
    leiden = found.obs["leiden"]
    sizes = leiden.value_counts(sort=False)
    large = leiden.isin(sizes.index[sizes >= FEWEST_CELLS]).to_numpy()
    table = pd.DataFrame()
    if leiden[large].nunique() > 1:
        table = markers(fitted, found if large.all() else found[large].copy(), "leiden", seed=seed)
    best: Any = (
        {} if table.empty else table.reset_index().groupby("group")["gene"].agg(lambda genes: ", ".join(genes[:5]))
    )
    clusters = pd.DataFrame(
        {"cells": sizes, "latent_sd": found.obs.groupby("leiden", observed=False)["latent_sd"].mean()}
    ).rename_axis("cluster")
    clusters["markers"] = [best.get(str(name), "") for name in clusters.index]
    return clusters, table


def _check_apart(cells: Cells, reference: Cells) -> None:
    """Refuse reference cells that are among the others: the same name and the same counts in all."""
    ours, theirs = (pd.Series(part.totals, index=part.obs_names) for part in (cells, reference))
    shared = ours.index.intersection(theirs.index)
    same = int((ours[shared].to_numpy() == theirs[shared].to_numpy()).sum()) if len(shared) else 0
    if same:
        raise ValueError(
            f"expected reference cells that are not among the cells that are asked about, got {same} of {len(theirs)} "
            "with the same name and counts; hold some known cells out"
        )


def run_differential(
    job: Job,
    *,
    groupby: str,
    group: str,
    reference: str = "rest",
    delta: float = 0.25,
    fdr: float = 0.05,
    conditions: Mapping[str, str] | None = None,
) -> ApplicationResult:
    """Find the genes that differ between two groups of cells.

    Args:
        job: What is read and written.
        groupby: Column of the groups.
        group: The group of interest.
        reference: The one it is compared with, or ``"rest"``.
        delta: Smallest log2 fold change of interest.
        fdr: Nominal level.
        conditions: Levels to decode all cells under.

    Raises:
        ValueError: If `differential_expression` refuses a column, level or number.
    """
    fitted, adata = job.load()
    column = column_of(adata, groupby)
    table = differential_expression(
        fitted, adata, groupby, group, reference, delta=delta, fdr=fdr, conditions=conditions or None, seed=job.seed
    )
    values = log_normalise(fitted.bind(adata).counts_matrix())
    names = column.astype(str).to_numpy()
    other = names == reference if reference in names else column.notna().to_numpy() & (names != group)
    test = rank_sum_test(values[names == group], values[other])
    genes = pd.Index(fitted.registration.genes)
    table["rank_sum_log2_fold_change"] = pd.Series(test.log2_fold_change, index=genes)
    table["rank_sum_fdr"] = pd.Series(test.fdr, index=genes)
    report = job.report(
        "Differential expression",
        f"Mean expression of {len(table):,} genes in {int((names == group).sum()):,} cells of {group} and "
        f"{int(other.sum()):,} of {reference}, by {groupby}.",
    )
    told = sections.differential_section(report, table, group=group, reference=reference, delta=delta, fdr=fdr)
    settings = {"groupby": groupby, "group": group, "reference": reference, "delta": delta, "fdr": fdr}
    settings |= {"conditions": dict(conditions or {})}
    return finish(job.begin("differential", settings), report, [told], tables={"genes": table})


def run_contrast(job: Job, *, treatment: str, level: str, reference: str, population: str = "all") -> ApplicationResult:
    """Compare what a treatment does, adjusted for the latent, with how treated cells differ.

    Args:
        job: What is read and written.
        treatment: Name of the condition that is the treatment.
        level: The level of interest.
        reference: The level it is compared with.
        population: ``"all"`` or ``"treated"``.

    Raises:
        ValueError: If `contrast` refuses a name.
    """
    fitted, adata = job.load()
    parts = {
        name: contrast(
            fitted, adata, treatment, level, reference, adjusted=adjusted, population=population, seed=job.seed
        ).add_prefix(f"{name}_")
        for name, adjusted in {"adjusted": True, "naive": False}.items()
    }
    arms = overlap(fitted, adata, treatment, level, reference, seed=job.seed)
    table = pd.concat(parts.values(), axis=1)
    report = job.report(
        "Contrast", f"{treatment}: {level} against {reference}, of {len(arms):,} cells, naive and adjusted."
    )
    told = sections.contrast_section(report, table, arms, level=level, reference=reference, population=population)
    settings = {"treatment": treatment, "level": level, "reference": reference, "population": population}
    return finish(job.begin("contrast", settings), report, [told], tables={"genes": table, "overlap": arms})
