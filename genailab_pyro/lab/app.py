"""The ELBO lab: a marimo notebook, shown by ``genailab-pyro lab`` and opened for changes by ``marimo edit``."""

# mypy: ignore-errors
# ruff: noqa: ANN001, ANN202

import marimo

app = marimo.App(width="medium", app_title="The ELBO lab")

with app.setup:
    import functools
    import math

    import marimo as mo
    import numpy as np

    from genailab_pyro.data import pbmc68k
    from genailab_pyro.lab import collapse, counts, exact, gradients
    from genailab_pyro.plots import lab as plots

    simulated = functools.cache(collapse.simulated_cells)
    small_fit = functools.cache(lambda beta, warmup: collapse.fit_small(simulated(), beta, warmup))
    blood_cells = functools.cache(pbmc68k)

    def figures(**values: float) -> mo.Html:
        """Named values as a row of cards, each with its name as the id of its element."""
        cells = "".join(
            f'<div style="margin-right:2em"><small>{name.replace("-", " ")}</small><br>'
            f'<b id="{name}" data-value="{value!r}">{value:.5g}</b></div>'
            for name, value in values.items()
        )
        return mo.Html(f'<div style="display:flex;flex-wrap:wrap">{cells}</div>')


@app.cell
def _():
    objective = mo.ui.dropdown(
        {what.formula: name for name, what in exact.OBJECTIVES.items()},
        value=exact.OBJECTIVES["z^2"].formula,
        label="What is bounded",
    )
    loc = mo.ui.slider(-2, 3, 0.1, value=1.0, label="Location", show_value=True, include_input=True)
    scale = mo.ui.slider(0.3, 1.5, 0.05, value=1.0, label="Scale", show_value=True, include_input=True)
    learning_rate = mo.ui.slider(
        steps=[0.005, 0.01, 0.02, 0.05, 0.1, 0.2], value=0.05, label="Step size", show_value=True
    )
    seed = mo.ui.number(0, 999, value=0, label="Seed")
    return learning_rate, loc, objective, scale, seed


@app.cell
def _(objective):
    names = exact.names_for(objective.value)
    estimator = mo.ui.dropdown(names, value="pathwise", label="Estimator")
    return (estimator,)


@app.cell
def _(estimator):
    choices = exact.particles_for(estimator.value)
    particles = mo.ui.dropdown([str(number) for number in choices], value=str(choices[0]), label="Particles")
    return (particles,)


@app.cell
def _(estimator, learning_rate, loc, objective, particles, scale, seed):
    _at = (objective.value, estimator.value, loc.value, scale.value)
    _number = int(particles.value)
    _draws = gradients.draw_gradients(*_at, num_particles=_number, seed=seed.value)
    _exact = exact.exact_gradient(*_at, _number)
    _variance, _error = gradients.variance_of(_draws)
    _limits = (-4.0, 4.0), (-2.5, 1.0)
    _path = gradients.ascend(
        *_at, num_particles=_number, learning_rate=learning_rate.value, limits=_limits, seed=seed.value
    )
    _locs, _log_scales = (np.linspace(*ends, 61) for ends in _limits)
    _surface = gradients.bound_surface(objective.value, _locs, _log_scales)
    _what = "ELBO" if exact.OBJECTIVES[objective.value].model else "mean cost, upside down"
    estimators_tab = mo.vstack(
        [
            mo.md(
                "The guide is $q(z) = N(\\text{location}, \\text{scale}^2)$. An estimator draws the gradient of the "
                "bound; its mean is the same for all that estimate one bound, its variance is not. **Measured** is "
                "that of 20,000 draws by the library; **exact** is an integral."
            ),
            mo.hstack([objective, estimator, particles], justify="start"),
            mo.hstack([loc, scale, learning_rate, seed], justify="start", wrap=True),
            figures(
                **{
                    "measured-variance": _variance,
                    "standard-error": _error,
                    "exact-variance": _exact.variance,
                    "measured-mean": float(_draws.mean()),
                    "exact-mean": _exact.mean,
                    "last-step": len(_path) - 1,
                }
            ),
            mo.as_html(plots.gradient_histogram(_draws, _exact.mean, title=f"20,000 gradients by {estimator.value}")),
            mo.as_html(
                plots.bound_path(
                    _locs,
                    _log_scales,
                    _surface,
                    _path,
                    title=f"{len(_path) - 1} steps by {estimator.value} on the {_what}",
                )
            ),
        ]
    )
    return (estimators_tab,)


@app.cell
def _():
    beta = mo.ui.slider(steps=[0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128], value=1, label="beta", show_value=True)
    warmup = mo.ui.slider(0, 1, 0.1, value=0.3, label="Warm-up share", show_value=True)
    train = mo.ui.run_button(label="Fit a small VAE")
    return beta, train, warmup


@app.cell
def _(beta):
    linear = collapse.linear_vae(simulated())
    _betas = np.geomspace(0.25, 256, 200)
    _kl = linear.kl(np.array([beta.value]))[0]
    _active = int(linear.active_units(np.array([beta.value]))[0])
    linear_shown = mo.vstack(
        [
            figures(**{"linear-active-units": _active, "linear-kl": float(_kl.sum())}),
            mo.as_html(
                plots.collapse_curves(
                    _betas,
                    linear.kl(_betas),
                    beta.value,
                    title=f"Linear VAE, exact: {_active} of {len(_kl)} are active",
                )
            ),
        ]
    )
    return (linear_shown,)


@app.cell
def _(beta, train, warmup):
    if train.value:
        _fit = small_fit(beta.value, warmup.value)
        _history, _use = _fit.history, _fit.diagnosis.latents
        fit_shown = mo.vstack(
            [
                figures(**{"fit-active-units": _use.active_units, "fit-kl": float(_use.kl.sum())}),
                mo.as_html(
                    plots.kl_over_training(
                        _history["epoch"],
                        _history["train_kl"],
                        _history["beta"],
                        title=f"VAE_NB at beta {beta.value:g}: {_use.active_units} of {len(_use.kl)} are active",
                    )
                ),
                mo.Html(f'<pre id="diagnosis" style="white-space:pre-wrap">{_fit.diagnosis}</pre>'),
            ]
        )
    else:
        fit_shown = mo.md(
            "*A click fits a VAE to the same cells at this beta and warm-up, in some seconds, and diagnoses it.*"
        )
    return (fit_shown,)


@app.cell
def _(beta, fit_shown, linear_shown, train, warmup):
    collapse_tab = mo.vstack(
        [
            mo.md(
                "A latent **collapses** where its posterior is its prior. In a linear VAE that is exact: a latent "
                "collapses where beta times the noise outgrows the variance along its axis; no training can help. In "
                "a VAE of counts, training plays a part, too: whether a warm-up changes it, try."
            ),
            mo.hstack([beta, warmup, train], justify="start"),
            linear_shown,
            fit_shown,
        ]
    )
    return (collapse_tab,)


@app.cell
def _():
    _ranked = blood_cells().var_names[np.argsort(-np.asarray(blood_cells().X.mean(0)).ravel())]
    gene = mo.ui.dropdown(sorted(_ranked), value=_ranked[20], label="Gene", searchable=True)
    return (gene,)


@app.cell
def _(gene):
    observed = counts.gene_counts(blood_cells(), gene.value)
    _mean, _theta = counts.matching(counts.observed_moments(observed))
    mean = mo.ui.slider(
        0.05, 30, 0.05, value=round(min(max(_mean, 0.05), 30) / 0.05) * 0.05, label="Mean mu", show_value=True
    )
    log_theta = mo.ui.slider(
        -2,
        2,
        0.05,
        value=round(math.log10(min(max(_theta, 0.01), 100)) / 0.05) * 0.05,
        label="log10 theta",
        show_value=True,
    )
    gate = mo.ui.slider(0, 0.95, 0.05, value=0.2, label="Gate of the ZINB", show_value=True)
    return gate, log_theta, mean, observed


@app.cell
def _(gate, gene, log_theta, mean, observed):
    _theta = 10**log_theta.value
    _shapes = {
        "NB": counts.count_distribution(mean.value, _theta),
        "ZINB": counts.count_distribution(mean.value, _theta, gate.value),
    }
    _highest = int(max(observed.max(), 10))
    _rows = {"observed": counts.observed_moments(observed)}
    _rows |= {name: counts.moments_of(shape) for name, shape in _shapes.items()}
    counts_tab = mo.vstack(
        [
            mo.md(
                "The negative binomial has variance $\\mu + \\mu^2 / \\theta$; the ZINB adds zeros, with the "
                "probability of its gate. A gene begins with the mean and the variance of its counts in 700 blood "
                "cells; a theta of 100 is all but Poisson. The cells differ in their library, which one distribution "
                "for all of them takes for overdispersion."
            ),
            mo.hstack([gene, mean, log_theta, gate], justify="start", wrap=True),
            *(
                figures(**{f"{name}-mean": row.mean, f"{name}-variance": row.variance, f"{name}-zeros": row.zeros})
                for name, row in _rows.items()
            ),
            mo.as_html(
                plots.count_bars(
                    counts.shares(observed, _highest),
                    {name: counts.probabilities(shape, _highest) for name, shape in _shapes.items()},
                    gene=gene.value,
                )
            ),
        ]
    )
    return (counts_tab,)


@app.cell
def _(collapse_tab, counts_tab, estimators_tab):
    mo.vstack(
        [
            mo.md("# The ELBO lab"),
            mo.ui.tabs(
                {
                    "Estimators": estimators_tab,
                    "Beta and collapse": collapse_tab,
                    "NB and ZINB": counts_tab,
                }
            ),
        ]
    )
    return


if __name__ == "__main__":
    app.run()
