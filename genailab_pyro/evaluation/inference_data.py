"""A fit and its cells as ArviZ inference data, and held-out likelihoods in the form that `arviz.compare` takes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyro
import torch
from anndata import AnnData
from jaxtyping import Float
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites

from genailab_pyro.data.cells import Cells
from genailab_pyro.evaluation.heldout import check_comparable
from genailab_pyro.memory import memory_kept
from genailab_pyro.train.fitted import Fit
from genailab_pyro.types import Minibatch

if TYPE_CHECKING:
    import arviz as az


def to_inference_data(
    fit: Fit, adata: AnnData | Cells | None = None, *, num_samples: int = 50, seed: int = 0
) -> "az.InferenceData":
    """Draws of a fit for some cells in ArviZ's container, for its plots, summaries and files.

    The posterior is the guide's, one chain of independent draws. The group ``log_likelihood`` holds log p(x | z) of
    each draw: it is conditional on the cell's own latent, so that `arviz.loo` on it asks for the prediction of a gene
    vector from a latent that has seen it, and says so by its Pareto k. To compare models, use `compare_elpd` on cells
    that were held out.

    Args:
        fit: The fitted model.
        adata: The cells; None for those that it was trained on.
        num_samples: Number of draws; memory grows by draws x cells x genes.
        seed: Seed of the draws.

    Returns:
        Groups ``posterior`` (latent sites, ``[chain, draw, cell, ...]``), ``posterior_predictive`` (counts ``"x"``,
        ``[chain, draw, cell, gene]``), ``log_likelihood`` (``"x"``, ``[chain, draw, cell]``, in nats),
        ``observed_data`` (``"x"``) and ``constant_data`` (``"library"``).

    Raises:
        ValueError: If the number of draws is below one, or the data do not fit the registration.

    Example:
        >>> import genailab_pyro as glp
        >>> cells = glp.register(glp.data.simulate(40, 10, seed=0).adata)
        >>> fit = glp.fit(glp.VAE_NB.from_registration(cells, latent_dim=2), cells, max_epochs=1, progress=False)
        >>> dict(to_inference_data(fit, num_samples=3).posterior_predictive.sizes)
        {'chain': 1, 'draw': 3, 'cell': 40, 'gene': 10}

    References:
        Kumar, Carroll, Hartikainen, Martin (2019). ArviZ. doi:10.21105/joss.01143
    """
    import arviz as az  # takes seconds to import, which only this needs

    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"expected num_samples to be a whole number of at least one, got {num_samples!r}")
    cells = fit.bind(adata)
    at_once = max(4_000_000 // (num_samples * len(fit.registration.genes)), 1)
    dtype = next(fit.vae.parameters()).dtype
    with torch.random.fork_rng(), pyro.get_param_store().scope(), torch.no_grad(), memory_kept():
        torch.manual_seed(seed)
        minibatches = cells.minibatches(at_once, device=fit.device, dtype=dtype)
        blocks = [_drawn(fit, minibatch, num_samples) for minibatch in minibatches]
    drawn: dict[str, Any] = {
        group: {name: np.concatenate([block[group][name] for block in blocks], axis=1)[None] for name in content}
        for group, content in blocks[0].items()
    }
    coords = {"cell": cells.obs_names, "gene": np.array(fit.registration.genes)}
    dims = {"z": ["cell", "latent"], "x": ["cell", "gene"], "library": ["cell"]}
    found = az.from_dict(
        posterior=drawn["posterior"],
        posterior_predictive=drawn["posterior_predictive"],
        observed_data={"x": cells.counts_matrix().toarray()},
        constant_data={"library": cells.library},
        coords=coords,
        dims=dims,
    )
    # The counts of a cell are one observation: their log-likelihood has no dimension of genes.
    found.extend(az.from_dict(log_likelihood=drawn["log_likelihood"], coords=coords, dims={"x": ["cell"]}))
    return found


def _drawn(fit: Fit, minibatch: Minibatch, number: int) -> dict[str, dict[str, np.ndarray]]:
    """Draws of the latents, counts drawn given them, and how probable the observed counts are given them."""
    with pyro.plate("particles", number, dim=-2):
        guide = prune_subsample_sites(poutine.trace(fit.vae.guide).get_trace(minibatch))
        model = poutine.trace(poutine.replay(fit.vae.model, trace=guide)).get_trace(minibatch._replace(counts=None))
    site = model.nodes["x"]
    library = guide.nodes["library"]["value"] if "library" in guide.nodes else minibatch.library
    counts = fit.vae.likelihood.to_counts(site["value"], minibatch._replace(library=library))
    log_prob = site["fn"].log_prob(fit.vae.likelihood.observed(minibatch))
    latents = {name: node["value"] for name, node in guide.nodes.items() if node["type"] == "sample"}
    return {
        "posterior": {name: _array(value) for name, value in latents.items()},
        "posterior_predictive": {"x": _array(counts)},
        "log_likelihood": {"x": _array(log_prob)},
    }


def _array(tensor: Any) -> np.ndarray:
    return tensor.cpu().numpy()


def held_out_elpd(fit: Fit, adata: AnnData | Cells, *, num_particles: int = 100, seed: int = 0) -> "az.ELPDData":
    """Expected log predictive density of cells that a fit never saw, for `arviz.compare`.

    Each term is the importance-weighted bound of log p(x) of a cell, with its latent integrated out: it needs no
    leave-one-out approximation, since the cells were left out of training.

    Args:
        fit: The fitted model.
        adata: Cells that it was not trained on.
        num_particles: Draws per cell of the bound.
        seed: Seed of the draws.

    Returns:
        What `arviz.loo` returns, with the field names of leave-one-out: ``elpd_loo`` and ``se`` in nats, ``loo_i`` by
        cell; ``p_loo`` is NaN, as no parameters are counted.

    References:
        Vehtari, Gelman, Gabry (2017). Practical Bayesian model evaluation using leave-one-out cross-validation and
        WAIC. doi:10.1007/s11222-016-9696-4
    """
    import arviz as az  # takes seconds to import, which only this needs
    import xarray as xr

    cells = fit.bind(adata)
    values = fit.log_likelihood(cells, num_particles=num_particles, seed=seed).astype(np.float64)
    error = float(np.sqrt(len(values)) * values.std(ddof=1)) if len(values) > 1 else float("nan")
    entries = {
        "elpd_loo": float(values.sum()),
        "se": error,
        "p_loo": float("nan"),
        "n_samples": num_particles,
        "n_data_points": len(values),
        "warning": False,
        "loo_i": xr.DataArray(values, dims=["cell"], coords={"cell": cells.obs_names}),
        "scale": "log",
    }
    return az.ELPDData(data=[*entries.values()], index=[*entries])


def compare_elpd(
    fits: Mapping[str, Fit], adata: AnnData | Cells, *, num_particles: int = 100, seed: int = 0
) -> pd.DataFrame:
    """The table of `arviz.compare` for some fits on cells that none of them saw.

    Weights are pseudo-Bayesian with bootstrapped uncertainty: those of stacking take exponentials of each cell's
    log-likelihood, which are zero for hundreds of genes.

    Args:
        fits: The fits by name, over the same genes and the same kind of values.
        adata: Cells that none of them was trained on.
        num_particles: Draws per cell of the bound.
        seed: Seed of the draws.

    Returns:
        One row per fit, best first: ``rank``, ``elpd_loo``, ``elpd_diff`` from the best with its paired standard error
        ``dse``, ``weight`` and ``se``; sums over cells, in nats.

    Raises:
        ValueError: If fewer than two fits are given, or they are over other genes or values.

    Example:
        >>> import genailab_pyro as glp
        >>> train, test = glp.register(glp.data.simulate(60, 10, seed=0).adata).split(0.5)
        >>> kinds = {"NB": glp.VAE_NB, "ZINB": glp.VAE_ZINB}
        >>> vaes = {name: kind.from_registration(train, latent_dim=2) for name, kind in kinds.items()}
        >>> fits = {name: glp.fit(vae, train, max_epochs=1, progress=False) for name, vae in vaes.items()}
        >>> sorted(compare_elpd(fits, test).index)
        ['NB', 'ZINB']
    """
    import arviz as az  # takes seconds to import, which only this needs

    check_comparable(fits)
    scored: Any = {
        name: held_out_elpd(fit, adata, num_particles=num_particles, seed=seed) for name, fit in fits.items()
    }
    return az.compare(scored, ic="loo", method="BB-pseudo-BMA", seed=seed)


def gene_checks(
    fit: Fit, adata: AnnData | Cells | None = None, *, num_replicates: int = 100, level: float = 0.9, seed: int = 0
) -> pd.DataFrame:
    """Posterior predictive checks of each gene: its mean, variance and share of zeros against replicated data.

    A replicate draws, for each cell, a latent from its posterior and counts given it.

    Args:
        fit: The fitted model.
        adata: The cells; None for those that it was trained on.
        num_replicates: Number of replicated data sets.
        level: Probability of the interval over replicates.
        seed: Seed of the draws.

    Returns:
        One row per gene and statistic (``gene``, ``statistic``): ``observed``, ``low``, ``high``, and
        ``p_value``, the share of replicates at or above the observed value, ties counted half.

    Raises:
        ValueError: If the level is not between 0 and 1, or there are no replicates.

    References:
        Gelman, Meng, Stern (1996). Posterior predictive assessment of model fitness. Statistica Sinica 6, 733-760
    """
    if not 0 < level < 1:
        raise ValueError(f"expected a level above 0 and below 1, got {level!r}")
    data: Any = to_inference_data(fit, adata, num_samples=num_replicates, seed=seed)
    observed = _statistics(data.observed_data["x"].to_numpy()[None])
    replicated = _statistics(data.posterior_predictive["x"].to_numpy()[0])
    parts = []
    for name, values in replicated.items():
        seen = observed[name][0]
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
        p_value = ((values > seen) + 0.5 * (values == seen)).mean(0)
        part = pd.DataFrame({"observed": seen, "low": low, "high": high, "p_value": p_value})
        parts.append(part.assign(gene=list(fit.registration.genes), statistic=name))
    return pd.concat(parts).set_index(["gene", "statistic"])


def _statistics(
    counts: Float[np.ndarray, "replicates cells genes"],
) -> dict[str, Float[np.ndarray, "replicates genes"]]:
    return {"mean": counts.mean(1), "variance": counts.var(1), "zero_fraction": (counts == 0).mean(1)}
