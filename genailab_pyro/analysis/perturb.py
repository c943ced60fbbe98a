"""What cells would look like under another perturbation: counterfactual counts, dose responses, and their premise."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from jaxtyping import Float
from scipy import sparse
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor

from genailab_pyro.data.cells import Cells
from genailab_pyro.data.validation import check_names
from genailab_pyro.distributions import NegativeBinomial
from genailab_pyro.model.count_likelihoods import PoissonLikelihood
from genailab_pyro.model.encoders import observed_counts
from genailab_pyro.model.likelihoods import (
    ConditionInverseDispersion,
    GeneInverseDispersion,
    Likelihood,
    ZeroInflatedNegativeBinomialLikelihood,
)
from genailab_pyro.model.perturbations import PerturbationEncoding
from genailab_pyro.nn import ConditionEncoding, choose
from genailab_pyro.train.fitted import CHUNK, Fit
from genailab_pyro.types import Counts, Latent, Minibatch

MOST_CELLS = 2000  # a support vector machine takes time that grows with the square of their number


def predict(
    fit: Fit,
    adata: AnnData | Cells | None = None,
    do: Mapping[str, str] | None = None,
    *,
    continuous: Mapping[str, float] | None = None,
    noise: str = "drawn",
    library_factor: float = 1.0,
    num_samples: int = 25,
    seed: int = 0,
) -> AnnData:
    r"""Counts that each cell would have shown under other conditions.

    A cell is encoded as it was observed and decoded under the intervention, at its own library. That gives its mean
    count mu as observed and mu' under the intervention, for each draw of z. Its counts are then, with the noise

    - ``"drawn"``: drawn from the likelihood at mu', whatever the counts were;
    - ``"kept"``: those that it shows, changed no more than the intervention asks. A negative binomial count is a
      Poisson count at the rate of :math:`\epsilon\mu`, where the noise :math:`\epsilon \sim \Gamma(\theta, \theta)`
      is the cell's own, whose posterior is :math:`\Gamma(\theta + x, \theta + \mu)`. Where the mean falls, each
      molecule stays with the probability mu'/mu; where it rises, others come:

      .. math::
          x' = \mathrm{Binomial}(x, \min(1, \mu' / \mu)) + \mathrm{Poisson}(\epsilon \max(0, \mu' - \mu)).

      If x is distributed as the model says, x' is so, too. Where it is not, what the model misses of the cells stays
      with them: a gene that the intervention leaves alone keeps its counts. So does what is chance in them: of a few
      cells, the means are better with the noise drawn.

    Compare its counts with real ones by the same transformation of both, such as the logarithm of normalised counts:
    the logarithm of an expected count is not the expectation of the logarithm.

    Args:
        fit: The fitted model.
        adata: The cells, such as the control cells of one type; None for those that it was trained on.
        do: The level to which a condition is set, such as ``{"condition": "stimulated"}``; the others stay. Where a
            `PerturbationEncoding` is the model's condition, a combination that no cell was given may be named, such as
            ``"A+B"``.
        continuous: The value to which a covariate is set, such as ``{"dose": 2.0}``, in the column's unit.
        noise: ``"drawn"``, or ``"kept"`` where the likelihood is Poisson, or negative binomial with one inverse
            dispersion per gene.
        library_factor: What the intervention does to a cell's library, above zero, such as `library_response` tells: a
            perturbed cell may yield more molecules.
        num_samples: Number of posterior draws of each cell, at least two.
        seed: Seed of the draws; the caller's random state is left as it was.

    Returns:
        One row per cell: ``X``, a draw of its counts (CSR); ``layers["mean"]``, their expectation, a mean over
        posterior draws; ``layers["sd"]``, its standard deviation over these draws: how unsure the model is of the
        expected count, the scatter of counts about it left out; ``obs``, that of the cells with the conditions and
        covariates set; ``uns["do"]`` and ``uns["noise"]``, what was set, and whether noise was kept.

    Raises:
        ValueError: If a condition, level or covariate is not known, nothing is set, there are fewer than two draws, or
            the likelihood's noise can not be kept.

    References:
        Pearl (2009). Causality, section 7.1. doi:10.1017/CBO9780511803161 (abduction, action, prediction)
        Lotfollahi, Wolf, Theis (2019). scGen predicts single-cell perturbation responses.
        doi:10.1038/s41592-019-0494-8 (which moves z by an average; here the decoder is told the perturbation)

    Example:
        >>> import genailab_pyro as glp
        >>> adata = glp.data.simulate(90, 20, perturbations=glp.data.Perturbations(number=1)).adata
        >>> cells = glp.register(adata, conditions=["perturbation"])
        >>> vae = glp.CVAE_NB.from_registration(cells, hidden_dims=[8])
        >>> fit = glp.fit(vae, cells, max_epochs=1, progress=False)
        >>> predict(fit, adata, do={"perturbation": "perturbation1"}).obs["perturbation"].unique().tolist()
        ['perturbation1']
    """
    if not do and not continuous:
        raise ValueError("expected something to be set, got nothing; such as do={'condition': 'stimulated'}")
    if num_samples < 2:
        raise ValueError(f"expected at least two posterior draws, for a standard deviation, got {num_samples!r}")
    if not (np.isfinite(library_factor) and library_factor > 0):
        raise ValueError(f"expected library_factor to be finite and above zero, got {library_factor!r}")
    observed, vae = fit.bind(adata), fit.vae
    _check_noise(noise, vae.likelihood)
    twin = _twin(fit, observed, do or {}, continuous)
    twin = twin._replace(cells=replace(twin.cells, library=twin.cells.library * np.float32(library_factor)))
    counts, means, deviations = [], [], []
    for minibatch, z in _posterior(fit, observed, num_samples, seed):
        features, other = twin.decode(minibatch, z)
        if noise == "kept":
            factual = vae.likelihood(vae.decode(z, minibatch), minibatch).base_dist
            one, expected = _kept(observed_counts(minibatch), factual, vae.likelihood(features, other).base_dist)
        else:
            one = vae.likelihood.to_counts(vae.likelihood(features[0], other).sample(), other)
            expected = vae.likelihood.expression(features, other) * other.library.unsqueeze(-1)
        counts.append(sparse.csr_matrix(one.float().cpu().numpy()))
        means.append(expected.mean(0).float().cpu().numpy())
        deviations.append(expected.std(0).float().cpu().numpy())
    return AnnData(
        sparse.vstack(counts, format="csr"),
        obs=_obs(twin.cells),
        var=pd.DataFrame(index=[*fit.registration.genes]),
        layers={"mean": np.concatenate(means), "sd": np.concatenate(deviations)},
        uns={"do": {**(do or {}), **(continuous or {})}, "noise": noise},
    )


def _check_noise(noise: str, likelihood: Likelihood) -> None:
    form = getattr(likelihood, "log_inverse_dispersion", None)
    gated = isinstance(likelihood, ZeroInflatedNegativeBinomialLikelihood)
    keeps = isinstance(likelihood, PoissonLikelihood) or (isinstance(form, GeneInverseDispersion) and not gated)
    if not choose({"drawn": True, "kept": keeps}, noise, "noise"):
        raise ValueError(
            "expected a Poisson likelihood, or a negative binomial one with an inverse dispersion per gene, to keep a "
            f"cell's noise, got {type(likelihood).__name__}; pass noise='drawn'"
        )


def _kept(
    counts: Counts, factual: NegativeBinomial, other: NegativeBinomial
) -> tuple[Counts, Float[Tensor, "draws cells genes"]]:
    """Counts under the intervention, of the first posterior draw, and their expectation given those observed."""
    counts = counts.as_subclass(Tensor)
    theta = factual.log_inverse_dispersion.exp().clamp(max=1e6)  # Poisson counts have an infinite one
    stays = (other.mean / factual.mean).clamp(max=1)
    more = (other.mean - factual.mean).clamp(min=0)
    shape, rate = theta + counts, theta + factual.mean
    expected = counts * stays + more * shape / rate
    drawn = torch.distributions.Gamma(shape[0], rate[0]).sample()
    return torch.binomial(counts, stays[0]) + torch.poisson(more[0] * drawn), expected


class _Twin(NamedTuple):
    """Cells under an intervention, and what decodes them.

    Attributes:
        fit: The fit.
        cells: The cells under the conditions set.
        encoding: The encoding of the conditions, which knows the levels set.
    """

    fit: Fit
    cells: Cells
    encoding: ConditionEncoding

    def decode(self, minibatch: Minibatch, z: Latent) -> tuple[Tensor, Minibatch]:
        """Features of latents under the intervention, and the minibatch as it then is."""
        other = self.cells.take(minibatch.index.cpu(), device=z.device, dtype=z.dtype)
        return self.fit.vae.decoder(z, self.encoding(other)), other


def _twin(fit: Fit, observed: Cells, do: Mapping[str, str], continuous: Mapping[str, float] | None) -> _Twin:
    registration, encoding = fit.registration, fit.vae.condition
    if isinstance(encoding, PerturbationEncoding):
        condition = registration.conditions[encoding.position]
        level = str(do.get(condition.name, encoding.control))
        if level not in condition.levels:
            encoding = encoding.with_levels([level])
            _check_dispersion(fit, encoding.position, level)
            registration = registration.with_levels(condition.name, [level])
    cells = replace(observed, registration=registration).with_conditions(do, continuous)
    return _Twin(fit, cells, encoding)


def _check_dispersion(fit: Fit, position: int, level: str) -> None:
    if position == 0 and any(isinstance(part, ConditionInverseDispersion) for part in fit.vae.likelihood.modules()):
        raise ValueError(
            f"expected a level with an inverse dispersion of its own, got {level!r}, which no cell was given; declare "
            "the VAE with inverse_dispersion='gene', or register another condition before the perturbation"
        )


def _posterior(fit: Fit, cells: Cells, num_samples: int, seed: int) -> Iterator[tuple[Minibatch, Latent]]:
    """Minibatches of cells with draws of their latents; the caller's random state is left as it was."""
    dtype = next(fit.vae.parameters()).dtype
    rows = min(max(CHUNK // (num_samples * len(fit.registration.genes)), 1), 512)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for minibatch in cells.minibatches(rows, device=fit.device, dtype=dtype):
            yield minibatch, fit.vae.posterior_draws(minibatch, num_samples)


def _obs(cells: Cells) -> pd.DataFrame:
    source = cells.adata
    obs = pd.DataFrame(index=pd.Index(cells.obs_names)) if source is None else source.obs.copy()
    for place, condition in enumerate(cells.registration.conditions):
        obs[condition.name] = pd.Categorical.from_codes(cells.conditions[:, place], pd.Index(condition.levels))
    for place, covariate in enumerate(cells.registration.continuous):
        obs[covariate.name] = covariate.loc + covariate.scale * cells.continuous[:, place].astype(float)
    return obs


def library_response(
    cells: Cells, condition: str, level: str, *, control: str = "control", context: str | None = None
) -> float:
    """By what factor the libraries of perturbed cells differ from those of control cells of the same context.

    It is the ratio of geometric means, and the geometric mean of that over contexts, each of which counts the same.

    Args:
        cells: The cells.
        condition: Name of the condition that is the perturbation.
        level: The perturbation.
        control: The level that it is compared with.
        context: Name of another condition, or of the labels, such as the cell type; None to take all cells together.

    Raises:
        ValueError: If a name is not registered, or no context has cells of both levels.

    Example:
        >>> cells = Cells.from_tensors([[2, 2], [4, 4], [8, 8]], conditions={"drug": ["control", "control", "A"]})
        >>> round(library_response(cells, "drug", "A"), 3)  # 16 against the geometric mean of 4 and 8
        2.828
    """
    codes, levels = _codes(cells, condition)
    check_names({control: None, level: None}, levels, f"level of {condition!r}")
    contexts = np.zeros(len(cells), dtype=int) if context is None else _codes(cells, context)[0]
    logs = np.log(cells.library)
    perturbed, unperturbed = codes == levels.index(level), codes == levels.index(control)
    both = np.intersect1d(contexts[perturbed], contexts[unperturbed])
    ratios = [logs[perturbed & (contexts == c)].mean() - logs[unperturbed & (contexts == c)].mean() for c in both]
    if not ratios:
        raise ValueError(f"expected a context with cells of both {level!r} and {control!r}, got none; name another")
    return float(np.exp(np.mean(ratios)))


def dose_response(
    fit: Fit,
    adata: AnnData | Cells | None,
    do: Mapping[str, str],
    doses: Sequence[float],
    *,
    covariate: str = "dose",
    genes: Sequence[str] | None = None,
    interval: float = 0.9,
    num_samples: int = 25,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Expected expression of each gene at each dose of a perturbation, in the same cells with the same latents.

    Of cells n with posterior draws :math:`z_{ns}` it is the mean over both of :math:`l\, \rho_g(z_{ns}, d)`, in a cell
    of the geometric mean library l of the data.

    Args:
        fit: The fitted model.
        adata: The cells, such as the controls of one type; None for those that it was trained on.
        do: The perturbation, such as ``{"drug": "TCE"}``.
        doses: Where to look, in the covariate's unit.
        covariate: Name of the continuous covariate that is the dose.
        genes: Which genes; None for all.
        interval: Share of cells and draws that is between ``low`` and ``high``, above 0 and below 1. It is where the
            expected expression of the cells lies: it holds their differences and the uncertainty of their latents, and
            not that of the model's weights.
        num_samples: Number of posterior draws of each cell.
        seed: Seed of the draws.

    Returns:
        One row per gene and dose: ``gene``, ``dose``, ``mean``, ``low``, ``high`` (counts), and ``log2_fold_change`` of
        the mean against that at dose zero.

    Raises:
        ValueError: If a name or a number does not fit.

    Example:
        >>> import genailab_pyro as glp
        >>> doses = glp.data.Perturbations(number=1, dose=glp.data.Doses())
        >>> adata = glp.data.simulate(90, 20, perturbations=doses).adata
        >>> cells = glp.register(adata, conditions=["perturbation"], continuous=["dose"])
        >>> fit = glp.fit(glp.CVAE_NB.from_registration(cells), cells, max_epochs=1, progress=False)
        >>> dose_response(fit, adata, {"perturbation": "perturbation1"}, [0, 1], genes=["gene3"]).columns.tolist()
        ['gene', 'dose', 'mean', 'low', 'high', 'log2_fold_change']
    """
    names = [*fit.registration.genes] if genes is None else [*genes]
    check_names(dict.fromkeys(names), fit.registration.genes, "gene")
    if not 0 < interval < 1:
        raise ValueError(f"expected an interval above 0 and below 1, got {interval!r}")
    if not len(doses) or num_samples < 1:
        raise ValueError(f"expected at least one dose and one draw, got {len(doses)} and {num_samples}")
    observed = fit.bind(adata)
    places = [fit.registration.genes.index(name) for name in names]
    twins = [_twin(fit, observed, do, {covariate: float(dose)}) for dose in (0.0, *doses)]
    blocks = []
    for minibatch, z in _posterior(fit, observed, num_samples, seed):
        decoded = (twin.decode(minibatch, z) for twin in twins)
        blocks.append(torch.stack([fit.vae.likelihood.expression(*pair)[..., places].cpu() for pair in decoded]))
    values = torch.cat(blocks, dim=2).flatten(1, 2).double().numpy() * np.exp(fit.registration.library.loc)
    base, values = values[0], values[1:]
    tails = np.quantile(values, [(1 - interval) / 2, (1 + interval) / 2], axis=1)
    mean = values.mean(1)
    table = {
        "gene": np.repeat(names, len(doses)),
        "dose": np.tile(np.asarray(doses, dtype=float), len(names)),
        "mean": mean.T.ravel(),
        "low": tails[0].T.ravel(),
        "high": tails[1].T.ravel(),
        "log2_fold_change": np.log2(mean / base.mean(0)).T.ravel(),
    }
    return pd.DataFrame(table)


def latent_invariance(
    fit: Fit,
    adata: AnnData | Cells | None = None,
    *,
    condition: str,
    context: str | None = None,
    folds: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """How well a classifier tells the perturbation from the latent, in each context: at chance where it can not.

    A counterfactual is decoded from the latent of another condition. It is right only where the latent means the same
    under both: what of the perturbation is left in it is decoded beside the perturbation set. A support vector machine
    with a radial kernel is trained on one posterior draw of each cell, which is what the decoder sees, and scored by
    the balanced accuracy (mean over levels of the share that is recognised) in held-out folds.

    Args:
        fit: The fitted model.
        adata: The cells; None for those that it was trained on.
        condition: Name of the condition that the latent should not tell.
        context: Name of another condition, or of the labels, within whose levels it is asked, such as the cell type;
            None to take all cells together. (The condition may be seen in a latent because the mix of types differs.)
        folds: Number of folds.
        seed: Seed of the draws and folds.

    Returns:
        One row per context: ``balanced_accuracy``, ``chance`` (one over the number of levels) and ``cells`` (at most
        2,000 of each context are looked at); NaN where fewer than two levels have a cell for each fold.

    Raises:
        ValueError: If a name is not registered, or there are fewer than two folds.

    References:
        Brodersen, Ong, Stephan, Buhmann (2010). The balanced accuracy and its posterior distribution.
        doi:10.1109/ICPR.2010.764
        Lopez-Paz, Oquab (2017). Revisiting classifier two-sample tests. doi:10.48550/arXiv.1610.06545

    Example:
        >>> import genailab_pyro as glp
        >>> adata = glp.data.simulate(90, 20, perturbations=glp.data.Perturbations(number=1)).adata
        >>> cells = glp.register(adata, conditions=["perturbation"], labels="cell_type")
        >>> fit = glp.fit(glp.CVAE_NB.from_registration(cells), cells, max_epochs=1, progress=False)
        >>> latent_invariance(fit, condition="perturbation", context="cell_type")["chance"].tolist()
        [0.5, 0.5, 0.5, 0.5]
    """
    if folds < 2:
        raise ValueError(f"expected at least two folds, got {folds!r}")
    cells = fit.bind(adata)
    codes, _ = _codes(cells, condition)
    contexts, names = (np.zeros(len(cells), dtype=int), ["all"]) if context is None else _codes(cells, context)
    z = fit.posterior_samples(cells, num_samples=1, seed=seed)[0]
    rng = np.random.default_rng(seed)
    rows = {}
    for code, name in enumerate(names):
        members = rng.permutation(np.flatnonzero(contexts == code))[:MOST_CELLS]
        rows[name] = _recognised(z[members], codes[members], folds, seed)
    return pd.DataFrame.from_dict(rows, orient="index", columns=["balanced_accuracy", "chance", "cells"])


def _codes(cells: Cells, name: str) -> tuple[np.ndarray, Sequence[str]]:
    schema = cells.registration
    if schema.labels is not None and schema.labels.name == name and cells.labels is not None:
        return cells.labels, schema.labels.levels
    known = [condition.name for condition in schema.conditions]
    check_names({name: None}, known, "condition")
    return cells.conditions[:, known.index(name)], schema.conditions[known.index(name)].levels


def _recognised(
    z: Float[np.ndarray, "cells latent"], codes: np.ndarray, folds: int, seed: int
) -> tuple[float, float, int]:
    """Balanced accuracy in held-out folds, chance, and the number of cells, of the levels with enough of them."""
    levels, numbers = np.unique(codes, return_counts=True)
    enough = np.isin(codes, levels[numbers >= folds])
    levels = levels[numbers >= folds]
    if len(levels) < 2:
        return np.nan, np.nan, len(codes)
    z, codes = z[enough], codes[enough]
    classifier = make_pipeline(StandardScaler(), SVC(class_weight="balanced"))
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed)
    told = cross_val_predict(classifier, z, codes, cv=parts)
    return float(balanced_accuracy_score(codes, told)), 1 / len(levels), len(codes)
