"""Sections of a report on what a fit is used for: integration, discovery, differential expression, contrasts."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.figure import Figure
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from genailab_pyro import plots
from genailab_pyro.analysis import ClusterStability
from genailab_pyro.report.html import Report
from genailab_pyro.report.run import Map

SHOWN_GENES = 20
SHOWN_GROUPS = 6
LEVEL = 0.05
MOST_ALONE = 0.05


class Told(NamedTuple):
    """What a section has drawn and found.

    Attributes:
        figures: Figures by name.
        findings: What was found, a sentence each.
    """

    figures: dict[str, Figure]
    findings: list[str]


def integration_section(
    report: Report,
    scores: pd.DataFrame,
    drawn: Mapping[str, Map],
    obs: pd.DataFrame,
    *,
    batch: str,
    labels: str | None,
    told: Sequence[str],
) -> Told:
    """How the latent space mixes batches and keeps labels, beside principal components.

    Args:
        report: The report.
        scores: One row per space, ``"PCA"`` and ``"latent"``.
        drawn: A map of each space, by its name.
        obs: Of all cells.
        batch: Column of the batches.
        labels: Column of the labels, or None.
        told: What the model is told.
    """
    before, after = scores["batch_excess"][["PCA", "latent"]]
    findings = [
        f"Neighbours from a cell's own batch, above chance: {before:.1%} in principal components, {after:.1%} in the "
        "latent (0 is perfect mixing)."
    ]
    if labels is not None:
        purity = scores["purity"]
        findings.append(
            f"Neighbours with a cell's {labels}: {purity['PCA']:.1%} before, {purity['latent']:.1%} after, "
            f"{scores['chance']['latent']:.1%} by chance."
        )
    report.section("Before and after").bullets(findings)
    if batch not in told:
        report.warning(
            f"The model is not told {batch}: it had no reason to take it out. Fit one with --condition {batch}."
        )
    _warn_told(report, labels, told)
    report.table(
        scores.T.rename_axis("score"),
        "Principal components of log-normalised counts (before) and the latent (after), by the definitions of "
        "scib-metrics. Of batch_excess 0 is best, chance is what random neighbours give, and of the others 1 is best; "
        "pcr compares a space with the first.",
        formats=".3f",
    )
    report.note(
        "Mixing is no merit of its own: a latent of pure noise mixes perfectly. "
        + (
            f"It counts as far as {labels} stays apart; labels that were made from the clusters of one space favour "
            "it. A state that is in one batch alone is not scored by mixing within labels."
            if labels is not None
            else "Without labels nothing here tells whether cell types have been mixed, too; pass --labels."
        )
    )
    return Told(_maps(report, drawn, obs, batch, labels), findings)


def _maps(
    report: Report, drawn: Mapping[str, Map], obs: pd.DataFrame, batch: str, labels: str | None
) -> dict[str, Figure]:
    """A map of each space by batch, and by label where there are any."""
    figures = {}
    for what, column in {"batch": batch, "label": labels}.items():
        for space, (cells, xy) in drawn.items():
            if column is None:
                continue
            values = obs[column].iloc[cells]
            names = values.astype(str).where(values.notna(), None)
            figure = plots.embedding(xy, names, title=f"{space} by {column}", name=column)
            report.figure(
                figure, f"UMAP of the {space}, coloured by {column}.", alt=f"A scatter of cells coloured by {what}."
            )
            figures[f"umap_{space.lower()}_{what}"] = figure
    return figures


def _warn_told(report: Report, labels: str | None, told: Sequence[str]) -> None:
    if labels in told:
        report.warning(
            f"The model is told {labels}: its latent has no reason to hold it, and agreement with it says little. Fit "
            f"a model without --condition {labels}."
        )


def discovery_section(
    report: Report,
    found: AnnData,
    drawn: Map,
    clusters: pd.DataFrame,
    agreement: pd.DataFrame | None,
    *,
    labels: str | None,
    told: Sequence[str],
) -> Told:
    """Clusters, what marks them, and how sure the latent of their cells is.

    Args:
        report: The report.
        found: The cells with ``obs["leiden"]`` and ``obs["latent_sd"]``.
        drawn: Their map.
        clusters: One row per cluster.
        agreement: Of the clusters with labels, beside those of principal components; None without labels.
        labels: Column of the labels, or None.
        told: What the model is told.
    """
    findings = [f"{len(clusters)} clusters, of {clusters['cells'].min():,} to {clusters['cells'].max():,} cells."]
    if agreement is not None:
        ari = agreement["adjusted_rand_index"]
        findings.append(
            f"Adjusted Rand index with the labels: {ari['latent']:.2f}, and {ari['PCA']:.2f} for clusters of principal "
            "components by the same steps."
        )
    report.section("Clusters").bullets(findings)
    _warn_told(report, labels, told)
    report.table(
        clusters,
        "Leiden clusters of the latent: their cells, the mean posterior standard deviation of the latent (1 is that of "
        "the prior, which knows nothing of a cell), and the genes that they have more of than the other cells.",
    )
    if agreement is not None:
        report.table(
            agreement,
            "Agreement with the labels of clusters of the latent, and of principal components of log-normalised counts "
            "at the same resolution. The number of clusters differs, which both scores depend on.",
            formats={"adjusted_rand_index": ".3f", "normalised_mutual_information": ".3f"},
        )
    report.note(
        "The number of clusters is that of the resolution, and clusters are found in noise, too. Markers differ "
        "between clusters of the same counts by construction: their false discovery rate is not controlled, so look at "
        "the sizes of the changes, or test them on other cells."
    )
    return Told(_cluster_maps(report, found.obs, drawn), findings)


def _cluster_maps(report: Report, obs: pd.DataFrame, drawn: Map) -> dict[str, Figure]:
    """The map by cluster, and by how sure the latent is."""
    cells, xy = drawn
    names = obs["leiden"].astype("category").cat.rename_categories(lambda name: f"leiden {name}")
    by_cluster = plots.embedding(xy, names.iloc[cells], title="Clusters of the latent", name="cluster")
    report.figure(by_cluster, "UMAP of the latent, coloured by cluster.", alt="A scatter of cells in groups.")
    unsure = plots.embedding(
        xy,
        obs["latent_sd"].iloc[cells].astype(float),
        title="How sure the latent is",
        name="posterior standard deviation",
    )
    report.figure(
        unsure,
        "Root mean posterior variance of the latent of each cell, for the weights of the model as they are. Cells of "
        "few counts are less sure; it says nothing of what another fit would give.",
        alt="A scatter of cells coloured by a number.",
    )
    return {"umap_cluster": by_cluster, "umap_latent_sd": unsure}


def label_agreement_of(clusters: pd.DataFrame, labels: pd.Series) -> pd.DataFrame:
    """Agreement of each clustering with labels, over the cells that have one.

    Args:
        clusters: Cluster of each cell in each space, shape ``[cells, spaces]``.
        labels: The labels.
    """
    known = labels.notna().to_numpy()
    names = labels[known].astype(str)
    rows = {
        space: {
            "clusters": clusters[space].nunique(),
            "adjusted_rand_index": adjusted_rand_score(names, clusters[space][known]),
            "normalised_mutual_information": normalized_mutual_info_score(names, clusters[space][known]),
        }
        for space in clusters
    }
    return pd.DataFrame.from_dict(rows, orient="index").astype({"clusters": int})


def stability_section(report: Report, stability: ClusterStability) -> Told:
    """How far the clusters of several fits agree."""
    findings = [f"Clusters of {len(stability.ari)} fits agree by an adjusted Rand index of {stability.mean_ari:.2f}."]
    report.section("Stability").bullets(findings)
    figure = plots.stability_heatmap(stability.ari, [str(name) for name in stability.ari])
    report.figure(
        figure,
        "Adjusted Rand index of the clusters of each pair of fits, at the same resolution and seed. Stable clusters "
        "are not thereby cell types.",
        alt="A matrix of numbers.",
    )
    return Told({"stability": figure}, findings)


def novelty_section(report: Report, table: pd.DataFrame, clusters: pd.Series, num_reference: int) -> Told:
    """Which cells are like none of the reference.

    Args:
        report: The report.
        table: What `novelty` returns.
        clusters: Cluster of each cell.
        num_reference: Number of reference cells.
    """
    share = float((table["p_value"] <= LEVEL).mean())
    findings = [f"{share:.1%} of the cells have a novelty p-value of at most {LEVEL:g}; of known cells it is 5 %."]
    report.section("Novelty").bullets(findings)
    shares = (table["p_value"] <= LEVEL).groupby(clusters.to_numpy()).mean().sort_values(ascending=False)
    shown = [*shares.index[:SHOWN_GROUPS]]
    names = clusters.astype(str).where(clusters.isin(shown), "other cells").to_numpy()
    parts = {f"cluster {name}" if name != "other cells" else name: table[names == name] for name in np.unique(names)}
    figure = plots.novelty_histogram(
        {name: part["score"] for name, part in parts.items()}, {name: part["p_value"] for name, part in parts.items()}
    )
    report.figure(
        figure,
        f"Novelty of the cells against {num_reference:,} reference cells, and the share with a p-value of at most each "
        f"level; by cluster, the {SHOWN_GROUPS} most novel at most. Known cells follow the diagonal.",
        alt="Histograms and cumulative curves by cluster.",
    )
    report.note(
        f"No p-value is below {1 / (1 + num_reference):.2g}. Another batch, and a worse measurement, are new to the "
        "model as well as a new kind of cell; and a kind whose near relative is known can pass unseen."
    )
    return Told({"novelty": figure}, findings)


def differential_section(
    report: Report, table: pd.DataFrame, *, group: str, reference: str, delta: float, fdr: float
) -> Told:
    """Which genes differ between two groups, beside the rank-sum test.

    Args:
        report: The report.
        table: What `differential_expression` returns, with ``rank_sum_fdr``.
        group: The group.
        reference: What it is compared with.
        delta: Smallest log2 fold change of interest.
        fdr: Nominal level.
    """
    called, tested = table["is_de"].to_numpy(dtype=bool), (table["rank_sum_fdr"] < fdr).to_numpy()
    findings = [
        f"{called.sum():,} of {len(table):,} genes are called at an expected false discovery rate of {fdr:g}: "
        f"their mean in {group} differs from that in {reference} by more than {delta:g} in log2 fold change.",
        f"A rank-sum test finds {tested.sum():,} genes that differ at all, {(called & tested).sum():,} of them called "
        "here, too.",
    ]
    report.section(f"{group} against {reference}").bullets(findings)
    volcano = plots.volcano(
        table["lfc_mean"], table["probability"].clip(0, 1), called, [*table.index.astype(str)], delta=delta
    )
    report.figure(
        volcano,
        f"Posterior mean of each gene's log2 fold change, and the probability that its size is above {delta:g}.",
        alt="A cloud of genes, the called ones on both sides.",
    )
    top = table.loc[table["lfc_mean"].abs().sort_values(ascending=False, kind="stable").index]
    top = (top[top["is_de"].astype(bool)] if called.any() else top).head(SHOWN_GENES)
    intervals = plots.lfc_intervals(
        [*top.index.astype(str)], top["lfc_mean"], top["lfc_low"], top["lfc_high"], delta=delta
    )
    report.figure(
        intervals,
        "The called genes of the largest change, with 95 % credible intervals."
        if called.any()
        else "No gene is called; those of the largest change, with 95 % credible intervals.",
        alt="A row with an interval for each gene.",
    )
    report.table(
        top[["lfc_mean", "lfc_low", "lfc_high", "local_fdr", "detected_group", "detected_reference", "rank_sum_fdr"]],
        "The same genes; local_fdr is the posterior probability that the call is false, detected the share of cells "
        "with a count, rank_sum_fdr that of a Wilcoxon rank-sum test on log-normalised counts.",
        formats=".3g",
    )
    report.note(
        "The false discovery rate is that for populations from which the cells are drawn one by one. It does not hold "
        "where the groups are clusters of the same counts, or where the cells of few donors stand for all donors. "
        "Differences of groups are no effects: they may differ in batch, depth or composition."
    )
    return Told({"volcano": volcano, "intervals": intervals}, findings)


def contrast_section(
    report: Report, table: pd.DataFrame, overlap: pd.DataFrame, *, level: str, reference: str, population: str
) -> Told:
    """What a treatment does, adjusted for the latent, beside how treated cells differ.

    Args:
        report: The report.
        table: One row per gene: the columns of `contrast`, with ``naive_`` and ``adjusted_`` before their names.
        overlap: What `overlap` returns.
        level: The level of interest.
        reference: The level it is compared with.
        population: Over which cells both are averaged.
    """
    naive, adjusted = table["naive_log2_fold_change"], table["adjusted_log2_fold_change"]
    apart = {
        name: (table[f"{name}_low"] > 0) | (table[f"{name}_high"] < 0) for name in ("naive", "adjusted")
    }  # whose interval does not hold zero
    averaged = overlap[overlap["treated"].astype(bool)] if population == "treated" else overlap
    alone = float(averaged["alone"].mean())
    findings = [
        f"{apart['naive'].sum():,} of {len(table):,} genes have a naive interval without zero, "
        f"{apart['adjusted'].sum():,} an adjusted one; {(apart['naive'] & ~apart['adjusted']).sum():,} only the naive.",
        f"Adjustment moves the log2 fold change by {np.sqrt(np.mean((naive - adjusted) ** 2)):.2f} (root mean square).",
        f"{alone:.1%} of the cells averaged over have no cell of the other arm near by.",
    ]
    report.section(f"{level} against {reference}").bullets(findings)
    if alone > MOST_ALONE:
        report.warning(
            "For these cells the decoder extrapolates what it never saw, and the adjusted contrast with it. Leave them "
            "out, ask for --population treated, or register what the treatment was assigned by."
        )
    clear = table[apart["naive"] | apart["adjusted"]]
    figure = _pairs(report, table if clear.empty else clear, f"Log2 fold change of {level} against {reference}")
    report.table(
        overlap.groupby("treated")[["propensity", "alone"]].mean().rename(index={True: level, False: reference}),
        "Overlap of the arms: mean share of treated cells among a cell's neighbours, and share of cells without one of "
        "the other arm.",
        formats=".3f",
    )
    report.note(
        "The adjusted contrast is an effect where nothing beside the latent and the conditions decides on treatment "
        "and expression both. What leaves no trace in the counts, or goes with the treatment in every cell (such as "
        "the day of the experiment), is counted as its effect, and nothing here can notice. The intervals hold neither "
        "that nor the error of the networks; where all cells of a donor are treated or none, they are too narrow."
    )
    return Told({"contrast": figure}, findings)


def _pairs(report: Report, table: pd.DataFrame, label: str) -> Figure:
    """The genes of the largest adjusted change, naive above adjusted."""
    order = table["adjusted_log2_fold_change"].abs().sort_values(ascending=False, kind="stable")
    top = table.loc[order.index[: SHOWN_GENES // 2]]
    figure = plots.estimates(
        [f"{gene}, {name}" for gene in top.index for name in ("naive", "adjusted")],
        top[["naive_log2_fold_change", "adjusted_log2_fold_change"]].to_numpy().ravel(),
        top[["naive_standard_error", "adjusted_standard_error"]].to_numpy().ravel(),
        xlabel=label,
        title="Genes of the largest change, naive and adjusted",
        reference=("no effect", 0.0),
    )
    report.figure(
        figure,
        "The largest adjusted changes, of genes with an interval without zero where there are any. Naive: the arms as "
        "they are. Adjusted: the same cells under both levels, decoded given their latents and "
        "other conditions, corrected by counts.",
        alt="Two rows with intervals for each gene.",
    )
    return figure
