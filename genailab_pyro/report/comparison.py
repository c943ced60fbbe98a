"""Sections of a report on gradient estimators: their scatter and cost, and training by each of them."""

import pandas as pd
from matplotlib.figure import Figure

from genailab_pyro.experiments import EstimatorComparison
from genailab_pyro.experiments.race import Race
from genailab_pyro.plots.numbers import plus_minus, readable
from genailab_pyro.report.html import Report

BIASED = 5.0
# The first two are alike in rule and baseline, and differ in the costs that a score multiplies.
CREDITS = (("score", "score-graph"), ("score-cell-average", "score-graph-ema"))


def comparison_section(report: Report, comparison: EstimatorComparison) -> dict[str, Figure]:
    """How far the gradients of each estimator scatter, what they cost, and whether their means agree."""
    attrs = comparison.dataset.attrs
    checkpoints = [str(name) for name in comparison.dataset["checkpoint"].values]
    group = str(comparison.at()["group"].item())
    report.section(
        "How far the gradients scatter",
        f"Each estimator drew the gradient of one minibatch of {attrs['minibatch_size']} cells {attrs['num_draws']} "
        f"times, at the same frozen weights of a {attrs['model']} and with the same random numbers. Estimators of one "
        "objective have the same mean. What differs is the variance, and with it the number of draws (or steps) that "
        "a given precision costs.",
    )
    report.bullets(findings(comparison))
    report.table(
        by_checkpoint(comparison),
        f"Variance of the gradient in the {group}, as a multiple of that of {attrs['reference']}, with a 95 % "
        "bootstrap interval; the largest distance of its mean from a precise reference of the same objective (of the "
        "ELBO for a relaxed one), in standard errors over random projections; its signal-to-noise ratio; and the time "
        f"of one gradient, with {attrs['threads']} threads.",
    )
    figures = dict(comparison.plot())
    captions = {
        "gradient_variance": (
            "Variance of the gradient, summed over the parameters of the group, in (nats per cell)^2.",
            "A point with an interval for each estimator.",
        ),
        "variance_against_cost": (
            "Variance against the time of one gradient, for estimators of one objective. On a dashed line the product "
            "is the same: as precise a gradient takes as long.",
            "A point for each estimator on logarithmic axes.",
        ),
        "gradient_histograms": (
            "Draws of one projection of the gradient, each estimator on an axis of its own.",
            "A histogram for each estimator.",
        ),
        "signal_to_noise": (
            "Signal-to-noise ratio against the number of particles. Under importance weights the signal shrinks "
            "faster than the noise: a tighter bound teaches the guide less.",
            "A line for each estimator.",
        ),
    }
    for name, figure in figures.items():
        caption, alt = captions[name]
        report.figure(figure, caption, alt=alt)
    report.table(
        by_group(comparison),
        f"The same ratio for each group of parameters, at the checkpoint {checkpoints[-1]}. Where a group does not "
        "depend on how the latents are differentiated, as the decoder, estimators of one objective with as many "
        "particles have a ratio of one: a control.",
        formats=".3g",
    )
    return figures


def race_section(report: Report, race: Race) -> dict[str, Figure]:
    """Training by each estimator, scored by one bound."""
    attrs = race.dataset.attrs
    report.section(
        "Training by each estimator",
        f"From the same weights, a model was trained by each estimator with {race.dataset.sizes['seed']} seeds, at the "
        "learning rate that served it best on validation cells. All are scored by one importance-weighted bound of "
        f"{attrs['num_particles']} draws on {attrs['num_held_out']} cells that no run saw.",
    )
    table = race.to_dataframe()
    shown = pd.DataFrame(
        {
            "bound": [plus_minus(*pair) for pair in table[["bound", "bound_standard_error"]].to_numpy()],
            "difference": [plus_minus(*pair) for pair in table[["difference", "difference_standard_error"]].to_numpy()],
            "runs that diverged": table["diverged"],
            "learning rate": [f"{rate:g}" for rate in table["learning_rate"]],
            "seconds": [f"{seconds:.1f}" for seconds in table["seconds"]],
        },
        index=table.index,
    )
    report.table(
        shown, "Held-out bound in nats per cell, mean ± standard error over seeds; difference from the best, by seeds."
    )
    if race.dataset["bound"].isnull().any("share").all():
        report.note("Every run diverged; there is no curve to show. A lower learning rate usually helps.")
        return {}
    figure = race.plot()
    report.figure(
        figure,
        "The held-out bound against steps and against seconds: mean and range over seeds.",
        alt="A curve for each estimator in two panels.",
    )
    return {"race": figure}


def findings(comparison: EstimatorComparison) -> list[str]:
    """What the comparison shows, a sentence each."""
    data = comparison.at()
    group, where = str(data["group"].item()), str(data["checkpoint"].item())
    lines = []
    for objective in dict.fromkeys(str(name) for name in data["objective"].values):
        same = data.where(data["objective"] == objective, drop=True)
        names = [str(name) for name in same["estimator"].values]
        if len(names) > 1:
            products = same["variance_seconds"].values
            best, worst = names[int(products.argmin())], names[int(products.argmax())]
            times = float(products.max() / products.min())
            lines.append(
                f"For the {objective}, {best} gives the most precise gradient of the {group} in a given time "
                f"(checkpoint {where}); {worst} takes {readable(times, 2)} times as long for the same precision."
            )
    lines += _credit(comparison)
    table = comparison.to_dataframe()
    largest = table["bias_errors"].unstack("estimator").max()
    biased = [name for name in data["estimator"].values if largest[name] > BIASED]
    if biased:
        lines.append(
            f"The means of {', '.join(map(str, biased))} differ from the gradient of their reference by more than "
            f"{BIASED:g} standard errors somewhere."
        )
    else:
        lines.append(f"No mean is more than {largest.max():.1f} standard errors from its reference, in any group.")
    own = [
        str(name)
        for name, of in zip(data["estimator"].values, data["bias_reference"].values, strict=True)
        if str(of).rsplit("-", 1)[0] == str(name) or str(of) == str(name)
    ]
    if own:
        lines.append(f"{', '.join(own)} {'is its' if len(own) == 1 else 'are their'} own reference, by fresh draws.")
    return lines


def _credit(comparison: EstimatorComparison) -> list[str]:
    """Where it pays to multiply a score by the costs downstream of its site only."""
    data = comparison.dataset
    lines = []
    for plates, graph in CREDITS:
        if {plates, graph} <= {str(name) for name in data["estimator"].values}:
            ratio = data["variance"].sel(estimator=graph) / data["variance"].sel(estimator=plates)
            cost = data["seconds"].sel(estimator=graph) / data["seconds"].sel(estimator=plates)
            latents = [name for name in ratio["group"].values if "latent" in str(name)]
            low, high = float(ratio.sel(group=latents).min()), float(ratio.sel(group=latents).max())
            lines.append(
                f"Costs downstream only ({graph}) against all costs of the plates ({plates}): {low:.2f} to {high:.2f} "
                f"times the variance in the latents, at {float(cost.mean()):.1f} times the time. "
                + (
                    "With one latent site all costs are downstream of it, and the two are the same estimator."
                    if max(abs(low - 1), abs(high - 1)) < 1e-4
                    else "Costs that are left out had a mean of zero, but near a good posterior they also offset the "
                    "others: leaving them out need not lower the variance."
                )
            )
    return lines


def by_checkpoint(comparison: EstimatorComparison) -> pd.DataFrame:
    """Ratio, bias, signal-to-noise and time of the first group, for each checkpoint and estimator."""
    table = comparison.to_dataframe()
    group = str(comparison.at()["group"].item())
    shown = table.xs(group, level="group")
    columns = {
        "objective": shown["objective"],
        "K": shown["particles"].astype(int),
        "ratio": shown["ratio"].map(readable),
        "95 % interval": shown["ratio_low"].map(readable) + " to " + shown["ratio_high"].map(readable),
        "bias (standard errors)": shown["bias_errors"].map("{:.1f}".format),
        "signal-to-noise": shown["signal_to_noise"].map(readable),
        "ms": (1000 * shown["seconds"]).map("{:.1f}".format),
    }
    return pd.DataFrame(columns).reset_index("estimator")


def by_group(comparison: EstimatorComparison) -> pd.DataFrame:
    """Ratio of the variance by estimator and group of parameters, at the last checkpoint."""
    last = comparison.dataset["ratio"].isel(checkpoint=-1).drop_vars("objective")
    frame = last.to_series().unstack("group")
    return frame.loc[last["estimator"].values, last["group"].values].rename_axis(columns=None)
