"""Data augmentation: real cells with generated ones of the conditions that are rare."""

from collections.abc import Sequence

import anndata
import numpy as np
import pandas as pd
import pyro
import torch
from anndata import AnnData
from jaxtyping import Int
from scipy import sparse

from genailab_pyro.data.cells import Cells
from genailab_pyro.data.new_cells import NewCells
from genailab_pyro.nn import choose
from genailab_pyro.train.fitted import Fit


def augment(
    fit: Fit,
    adata: AnnData,
    condition: str,
    *,
    target: int | None = None,
    levels: Sequence[str] | None = None,
    source: str = "posterior",
    seed: int = 0,
) -> AnnData:
    """Real cells, and generated ones of each level of a condition until it has as many as asked for.

    From the posterior, each new cell starts at a real one of its level: a draw of its latent, a library drawn from the
    log-normal distribution of its level (where the condition is the first that was registered), and counts drawn given
    both. From the prior, the latent is drawn from it, too: more variety, which the level's real cells need not have.
    Neither makes up what the real cells do not show.

    Args:
        fit: A model conditioned on the labels that are to be balanced, trained on these cells alone.
        adata: The real cells; the copy holds the fit's genes in the fit's order.
        condition: Name of the condition.
        target: Cells that each level is to have; None for as many as the most frequent one.
        levels: Levels to augment; None for all that have cells.
        source: ``"posterior"`` of the level's real cells, or ``"prior"``.
        seed: Seed of the draws.

    Returns:
        Counts in ``.X`` (CSR); ``obs[condition]``, and ``obs["generated"]``, False for the real cells, which come
        first.

    Raises:
        ValueError: If the condition, a level or the source is not known, or nothing is to be generated.
    """
    generate = choose({"posterior": _from_posterior, "prior": _from_prior}, source, "source")
    cells = fit.bind(adata)
    names = [known.name for known in fit.registration.conditions]
    if condition not in names:
        raise ValueError(
            f"expected a condition of the fit, among {', '.join(map(repr, names)) or 'none'}, got {condition!r}; "
            "train a CVAE on cells registered with it"
        )
    codes = cells.conditions[:, names.index(condition)]
    known = fit.registration.conditions[names.index(condition)]
    numbers = np.bincount(codes, minlength=len(known.levels))
    asked = np.flatnonzero(numbers) if levels is None else known.encode(levels)
    goal = int(numbers.max()) if target is None else target
    wanted = np.repeat(asked, np.maximum(goal - numbers[asked], 0))
    if not len(wanted):
        raise ValueError(
            f"expected levels of {condition!r} with fewer than {goal} cells, got none; raise the target or leave "
            "augmentation out"
        )
    drawn = generate(fit, cells, condition, codes, wanted, seed)
    drawn.obs_names = [f"generated_{i}" for i in range(drawn.n_obs)]
    real = AnnData(cells.counts_matrix(), obs=adata.obs.copy(), var=drawn.var.copy())
    real.obs["generated"], drawn.obs["generated"] = False, True
    joined = anndata.concat([real, drawn], join="outer")
    joined.obs[condition] = joined.obs[condition].astype("category")
    for name in real.obs.select_dtypes(bool).columns.difference(["generated"]):
        joined.obs[name] = joined.obs[name].astype("boolean")  # unknown of generated cells
    return joined


def _from_prior(
    fit: Fit, cells: Cells, condition: str, codes: Int[np.ndarray, " cells"], wanted: Int[np.ndarray, " new"], seed: int
) -> AnnData:
    known = next(item for item in fit.registration.conditions if item.name == condition)
    return fit.generate(len(wanted), conditions={condition: [known.levels[code] for code in wanted]}, seed=seed)


def _from_posterior(
    fit: Fit, cells: Cells, condition: str, codes: Int[np.ndarray, " cells"], wanted: Int[np.ndarray, " new"], seed: int
) -> AnnData:
    """Counts given the latent of a real cell of the level, at a new library."""
    rng = np.random.default_rng(seed)
    empty = [code for code in np.unique(wanted) if not (codes == code).any()]
    if empty:
        raise ValueError(
            f"expected real cells of every level of {condition!r} that is augmented from the posterior, got none of "
            f"{len(empty)}; use source='prior', or leave them out"
        )
    own = {code: np.flatnonzero(codes == code) for code in np.unique(wanted)}
    rows = np.concatenate([rng.choice(own[code], (wanted == code).sum()) for code in own])
    sources = cells.subset(rows)
    schema = fit.registration
    conditions = {
        item.name: [item.levels[code] for code in sources.conditions[:, position]]
        for position, item in enumerate(schema.conditions)
    }
    new = NewCells.draw(schema, len(rows), conditions=conditions, seed=seed)
    blocks = []
    dtype = next(fit.vae.parameters()).dtype
    with torch.random.fork_rng(), torch.no_grad(), pyro.validation_enabled(False):
        torch.manual_seed(seed)
        for minibatch in sources.minibatches(512, device=fit.device, dtype=dtype):
            library = torch.as_tensor(new.library, device=fit.device, dtype=dtype)[minibatch.index]
            placed = minibatch._replace(library=library)
            z = fit.vae.posterior_draws(minibatch, 1)[0]
            values = fit.vae.likelihood(fit.vae.decode(z, placed), placed).sample()
            blocks.append(sparse.csr_matrix(fit.vae.likelihood.to_counts(values, placed).float().cpu().numpy()))
    obs = new.obs().assign(library=new.library, source=sources.obs_names)
    for position, covariate in enumerate(schema.continuous):
        obs[covariate.name] = sources.continuous[:, position] * covariate.scale + covariate.loc
    return AnnData(sparse.vstack(blocks, format="csr"), obs=obs, var=pd.DataFrame(index=[*schema.genes]))
