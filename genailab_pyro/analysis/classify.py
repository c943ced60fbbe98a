"""Labels and clusters of cells by a fit that has them: probabilities, predictions, and their calibration."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from genailab_pyro.data.cells import Cells
from genailab_pyro.model.heads import LabelHead
from genailab_pyro.model.upper import UpperLabel
from genailab_pyro.model.vae import VAE
from genailab_pyro.train.fitted import Fit
from genailab_pyro.types import Minibatch

NUM_DRAWS = 25


@dataclass(frozen=True)
class _Classifier:
    """The part of a VAE that tells labels.

    Attributes:
        logits: Logits of a minibatch, shape ``[draws, cells, labels]``.
        layer: The linear layer that they come from.
        labelled: Whether its labels are the registered ones; else they are clusters.
    """

    logits: Callable[[Minibatch], Float[Tensor, "draws cells labels"]]
    layer: nn.Linear
    labelled: bool


def _classifier(vae: VAE) -> _Classifier:
    upper = vae.upper
    if isinstance(upper, UpperLabel):
        return _Classifier(lambda minibatch: upper.posterior(minibatch).logits[None], upper.head, upper.annotated)
    for head in vae.heads:
        if isinstance(head, LabelHead):

            def logits(minibatch: Minibatch, head: LabelHead = head) -> Tensor:
                return head(vae.posterior_draws(minibatch, NUM_DRAWS), minibatch).logits

            return _Classifier(logits, head.logits, labelled=True)
    raise ValueError(
        f"expected a fit that tells labels, got one of {type(vae).__name__} without them; train a SemiSupervisedVAE, a "
        "LabelVAE, or a VAE with heads=[LabelHead(...)]"
    )


def _answers(fit: Fit, cells: Cells, classifier: _Classifier, seed: int) -> Iterator[Tensor]:
    """Logits of the cells, in minibatches; the caller's random state is left as it was."""
    dtype = next(fit.vae.parameters()).dtype
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for minibatch in cells.minibatches(512, device=fit.device, dtype=dtype):
            yield classifier.logits(minibatch).cpu()


def label_probabilities(fit: Fit, cells: AnnData | Cells | None = None, *, seed: int = 0) -> pd.DataFrame:
    """Probability of each label, or cluster, for each cell.

    It is ``q(label | x)`` where a label is above z (`SemiSupervisedVAE`, `LabelVAE`), and ``p(y | z)`` averaged over
    25 draws of z from the posterior where a `LabelHead` is trained beside the VAE. What is known of the labels of
    these cells is not looked at.

    Args:
        fit: The fitted model.
        cells: The cells; None for those it was trained on.
        seed: Seed of the posterior draws.

    Returns:
        One row per cell, one column per registered label or per cluster (``"cluster_0"``, ...); rows sum to one.

    Raises:
        ValueError: If the fit tells no labels, or the cells do not fit its registration.

    Example:
        >>> import genailab_pyro as glp
        >>> cells = glp.register(glp.data.simulate(60, 20).adata)
        >>> vae = glp.LabelVAE.from_registration(cells, num_labels=3, hidden_dims=[8])
        >>> fit = glp.fit(vae, cells, "enum", max_epochs=1, progress=False)
        >>> label_probabilities(fit).shape
        (60, 3)
    """
    classifier = _classifier(fit.vae)
    bound = fit.bind(cells)
    blocks = [logits.softmax(-1).mean(0) for logits in _answers(fit, bound, classifier, seed)]
    return pd.DataFrame(torch.cat(blocks).numpy(), index=bound.obs_names, columns=_names(fit, classifier))


def predict_labels(fit: Fit, cells: AnnData | Cells | None = None, *, seed: int = 0) -> pd.Series:
    """The most probable label, or cluster, of each cell.

    Args:
        fit: The fitted model.
        cells: The cells; None for those it was trained on.
        seed: Seed of the posterior draws.

    Returns:
        A categorical column with the name of each cell's label, for ``adata.obs``.

    Raises:
        ValueError: If the fit tells no labels, or the cells do not fit its registration.
    """
    probabilities = label_probabilities(fit, cells, seed=seed)
    codes = probabilities.to_numpy().argmax(1)
    values = pd.Categorical.from_codes(codes, categories=probabilities.columns)
    return pd.Series(values, index=probabilities.index, name="label")


def calibrate(fit: Fit, cells: AnnData | Cells, *, seed: int = 0) -> Fit:
    r"""Make the probabilities of the labels those with which they are right, by one temperature.

    The logits are divided by the temperature T > 0 of the largest likelihood,

    .. math:: \max_T \sum_n \log \frac{1}{S} \sum_s \mathrm{softmax}(a_{ns} / T)_{y_n},

    over the cells whose label is known and the S posterior draws of each. The most probable label of a draw stays as it
    is. The cells should be none that the fit was trained on: of those it is surer than of others.

    Args:
        fit: A fit that tells registered labels.
        cells: Held-out cells, some of which have a label.
        seed: Seed of the posterior draws.

    Returns:
        A new fit, whose classifier's last layer is divided by the temperature; everything else is the given one's.

    Raises:
        ValueError: If the fit tells no registered labels, or no cell has one.

    References:
        Guo, Pleiss, Sun, Weinberger (2017). On calibration of modern neural networks. doi:10.48550/arXiv.1706.04599
    """
    classifier = _classifier(fit.vae)
    bound = fit.bind(cells)
    if not classifier.labelled:
        raise ValueError(
            "expected a fit that tells registered labels, got one that finds clusters, of which none is known"
        )
    if bound.labels is None or not (bound.labels >= 0).any():
        raise ValueError("expected cells of which some have a label, got none; calibrate on labelled, held-out cells")
    held = bound.subset(bound.labels >= 0)
    logits = torch.cat([*_answers(fit, held, classifier, seed)], dim=1).double()
    labels = torch.as_tensor(held.labels).expand(len(logits), -1).unsqueeze(-1)

    def loss(log_temperature: float) -> float:
        log_probs = (logits / np.exp(log_temperature)).log_softmax(-1).gather(-1, labels)
        return -(log_probs.logsumexp(0) - np.log(len(logits))).mean().item()

    temperature = float(np.exp(minimize_scalar(loss, bounds=(-4.0, 4.0), method="bounded").x))
    vae = copy.deepcopy(fit.vae)
    layer = _classifier(vae).layer
    with torch.no_grad():
        layer.weight.div_(temperature)
        layer.bias.div_(temperature)
    return replace(fit, vae=vae)


def _names(fit: Fit, classifier: _Classifier) -> list[str]:
    number = classifier.layer.out_features
    if not classifier.labelled:
        return [f"cluster_{code}" for code in range(number)]
    labels = fit.registration.labels
    if labels is None or len(labels.levels) != number:
        found = "none" if labels is None else len(labels.levels)
        raise ValueError(
            f"expected a fit whose registration has the {number} labels of its classifier, got {found}; register them: "
            "register(adata, labels=...)"
        )
    return [*labels.levels]
