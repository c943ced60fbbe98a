"""Integration of batches: latents beside the counts, and the cells of a new batch on a model that is trained."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.utils import parametrize

from genailab_pyro.data.cells import Cells
from genailab_pyro.data.registration import Registration
from genailab_pyro.data.schema import Categorical, LibraryStatistics
from genailab_pyro.data.validation import check_anndata, named
from genailab_pyro.model.encoders import LatentLibrary
from genailab_pyro.model.likelihoods import ConditionInverseDispersion
from genailab_pyro.model.priors import DependentNormal
from genailab_pyro.model.vae import VAE
from genailab_pyro.nn import MLP, Declared, Embedding, InputLayer, OneHot
from genailab_pyro.train.fit import fit as train
from genailab_pyro.train.fitted import Fit
from genailab_pyro.train.settings import Training


def integrate(fit: Fit, adata: AnnData, key: str = "X_vae") -> AnnData:
    """A copy of the cells, all of their genes included, with their latent in ``obsm[key]``.

    Args:
        fit: The fitted model.
        adata: The cells, with at least the fit's genes.
        key: Where the latent goes.

    Returns:
        The copy, for neighbours, clusters and maps: ``sc.pp.neighbors(cells, use_rep="X_vae")``.

    Raises:
        ValueError: If the data do not fit the registration.
    """
    latent = fit.latent(adata)
    integrated = adata.copy()
    integrated.obsm[key] = latent
    return integrated


def map_batch(
    fit: Fit,
    adata: AnnData,
    *,
    condition: str = "batch",
    level: str | None = None,
    max_epochs: int | None = None,
    seed: int = 0,
    progress: bool = True,
    **settings: Any,
) -> Fit:
    """Map the cells of a new batch onto a trained model, by training the weights of its level alone.

    The registration gets one level more, and so do the weights that read it: a row of each embedding table, or a column
    beside the others in the layers that read one-hot conditions, encoder and decoder alike (and an inverse dispersion
    per gene, or moments of a latent library, where levels have their own). They begin at the mean of the other levels'
    and are trained on the new cells; every other weight stays as it is, to the last bit, so that the cells of the other
    batches keep their latents (where dense inputs are summed in another order beside one zero more, all but the last
    bit). That is scArches, which trains the same weights from random ones. It makes the new counts likelier; whether
    the new cells mix with the others is mostly what the trained encoder makes of them: look at `batch_excess`.

    Args:
        fit: The trained model; it stays as it is.
        adata: Cells with the fit's genes and columns; those at registered levels are passed over.
        condition: The categorical condition that has the new level.
        level: The new level in ``adata.obs[condition]``; None for the only one that is not registered.
        max_epochs: Passes over the new cells; None for as many as `Training` takes.
        seed: Seed of the split, the order of the cells and the draws.
        progress: Whether to show a line of progress.
        settings: Fields of `Training` to change from the fit's, such as ``learning_rate``.

    Returns:
        A new fit with the level registered, which answers about old and new cells; its ``cells`` and ``history`` are
        those of the mapping.

    Raises:
        TypeError: If the data are no AnnData.
        ValueError: If the model does not see the condition, or there is no such level, or it is registered.
        NotImplementedError: If a part of the model reads the condition in a way that is not known here.

    References:
        Lotfollahi, Naghipourfar, Luecken, Khajavi, Buettner, Wagenstetter, Avsec, Gayoso, Yosef, Interlandi, Rybakov,
        Misharin, Theis (2022). Mapping single-cell data to reference atlases by transfer learning.
        doi:10.1038/s41587-021-01001-7

    Example:
        >>> import genailab_pyro as glp
        >>> adata = glp.data.simulate(90, 20, num_batches=3, seed=0).adata
        >>> last = (adata.obs["batch"] == adata.obs["batch"].cat.categories[-1]).to_numpy()
        >>> cells = glp.register(adata[~last].copy(), conditions=["batch"])
        >>> vae = glp.CVAE_NB.from_registration(cells, hidden_dims=[16])
        >>> reference = glp.fit(vae, cells, max_epochs=1, progress=False)
        >>> mapped = map_batch(reference, adata, max_epochs=1, progress=False)
        >>> len(mapped.registration.conditions[0].levels), mapped.latent(adata).shape
        (3, (90, 10))
    """
    position = _position(fit, condition)
    level, chosen = _new_cells(fit.registration, adata, position, level)
    cells = _bound(fit.registration, adata[chosen], position, level)
    grown, parts = _with_level(fit.vae, position, cells.registration.library.levels)
    changes = {
        "max_epochs": max_epochs,
        "weight_decay": 0.0,
        "warmup": replace(fit.training.warmup, shape="constant"),
    }
    training = Training.from_json({**fit.training.to_json(), **changes, **settings})
    trainable = _trainable(grown, parts)
    trained = train(trainable, cells, fit.estimator, training=training, seed=seed, device=fit.device, progress=progress)
    with torch.no_grad():
        for part in parts:
            part.of(grown).copy_(part.of(trained.vae))
    return replace(trained, vae=grown.eval())


def _position(fit: Fit, condition: str) -> int:
    names = [item.name for item in fit.registration.conditions]
    seen = isinstance(fit.vae.condition, OneHot | Embedding)
    if condition not in names or not seen:
        found = named(names, 20) if seen and names else "none"
        raise ValueError(
            f"expected a model with the categorical condition {condition!r}, got one with {found}; train it on "
            f"register(adata, conditions=[{condition!r}]), by a model that sees conditions"
        )
    return names.index(condition)


def _new_cells(
    registration: Registration, adata: AnnData, position: int, level: str | None
) -> tuple[str, Bool[np.ndarray, " cells"]]:
    """The new level, and which cells are at it."""
    check_anndata(adata)
    known = registration.conditions[position]
    if known.name not in adata.obs.columns:
        raise ValueError(f'expected adata.obs["{known.name}"], which names the new batch, got no such column')
    column = adata.obs[known.name]
    values = column.astype(str).to_numpy()
    unseen = sorted({*values[column.notna().to_numpy()]} - {*known.levels})
    if level is None and len(unseen) != 1:
        raise ValueError(
            f'expected one level of adata.obs["{known.name}"] that is not registered, got '
            f"{named(unseen, 20) or 'none'}; name one: level=..."
        )
    level = unseen[0] if level is None else str(level)
    if level not in unseen:
        what = "registered" if level in known.levels else "without cells"
        raise ValueError(
            f'expected a level of adata.obs["{known.name}"] that is not registered, {named(unseen, 20) or "none"}, '
            f"got {level!r}, which is {what}"
        )
    return level, values == level


def _bound(registration: Registration, adata: AnnData, position: int, level: str) -> Cells:
    """The new cells, bound to the registration with one level more."""
    old, before, now = registration.conditions[position], registration.num_cells, adata.n_obs
    frequencies = [value * before / (before + now) for value in old.frequencies]
    extended = Categorical(old.name, (*old.levels, level), (*frequencies, now / (before + now)))
    conditions = (*registration.conditions[:position], extended, *registration.conditions[position + 1 :])
    library = registration.library
    unset = replace(library, levels=(*library.levels, (0.0, 1.0))) if position == 0 else library
    schema = replace(registration, conditions=conditions, library=unset, num_cells=before + now)
    cells = schema.bind(adata)
    found = LibraryStatistics.of(cells.library, [], 0)
    loc = (before * library.loc + now * found.loc) / (before + now)
    square = (before * (library.scale**2 + library.loc**2) + now * (found.scale**2 + found.loc**2)) / (before + now)
    levels = (*library.levels, (found.loc, found.scale)) if position == 0 else library.levels
    moments = LibraryStatistics(loc, float(np.sqrt(square - loc**2)), levels)
    return replace(cells, registration=replace(schema, library=moments))


@dataclass(frozen=True)
class _Part:
    """The part of a parameter that is a level's own: one row, or column, after those of the levels before it.

    Attributes:
        owner: The module that has the parameter.
        name: Name of the parameter in it.
        axis: Along which the levels lie.
        index: Position of the new level.
        levels: Number of the levels before it.
    """

    owner: str
    name: str
    axis: int
    index: int
    levels: int

    def of(self, vae: VAE) -> Tensor:
        """The parameter of a VAE."""
        return getattr(vae.get_submodule(self.owner), self.name)

    def inserted(self, old: Tensor) -> Tensor:
        """The parameter with the new level's part, which is the mean of the others'."""
        before, after = old.split([self.index, old.shape[self.axis] - self.index], self.axis)
        others = before.narrow(self.axis, self.index - self.levels, self.levels)
        return torch.cat([before, others.mean(self.axis, keepdim=True), after], self.axis)


class _OnePart(nn.Module):
    """A parametrisation that makes one row, or column, of a tensor the parameter and keeps the rest."""

    before: Tensor
    after: Tensor

    def __init__(self, whole: Tensor, part: _Part) -> None:
        super().__init__()
        self.part = part
        sizes = [part.index, 1, whole.shape[part.axis] - part.index - 1]
        before, _, after = whole.detach().split(sizes, part.axis)
        self.register_buffer("before", before.clone())
        self.register_buffer("after", after.clone())

    def forward(self, own: Tensor) -> Tensor:
        return torch.cat([self.before, own, self.after], self.part.axis)

    def right_inverse(self, whole: Tensor) -> Tensor:
        return whole.narrow(self.part.axis, self.part.index, 1).clone()


# Along which axis of a parameter the levels of a condition lie.
_AXES: dict[type[nn.Module], int] = {InputLayer: 0, nn.Linear: 1, nn.Embedding: 0, ConditionInverseDispersion: 0}


def _with_level(vae: VAE, position: int, moments: Sequence[tuple[float, float]]) -> tuple[VAE, list[_Part]]:
    """The VAE with one level more of a condition, and the parts of its parameters that are the new level's."""
    with torch.random.fork_rng():
        grown = Declared.declare(_declared(vae, position, moments))
    assert isinstance(grown, VAE)
    first = next(vae.parameters())
    grown.to(first.device, first.dtype)
    parts = []
    with torch.no_grad():
        for path, parameter in grown.named_parameters():
            old: Tensor = vae.get_parameter(path)
            parameter.requires_grad_(old.requires_grad)
            if parameter.shape != old.shape:
                parts.append(_part(vae, position, path))
                old = parts[-1].inserted(old)
            parameter.copy_(old)
        for path, buffer in grown.named_buffers():
            if buffer.shape == vae.get_buffer(path).shape:  # else they are moments of a library, as declared
                buffer.copy_(vae.get_buffer(path))
    return grown, parts


def _part(vae: VAE, position: int, path: str) -> _Part:
    """Where a level that comes last of its condition belongs in a parameter."""
    owner, _, name = path.rpartition(".")
    module, levels = vae.get_submodule(owner), vae.condition.levels
    axis = _AXES.get(type(module))
    if axis is None:
        raise NotImplementedError(
            f"expected parts that read the condition by linear layers or tables, got {path!r}, of a "
            f"{type(module).__name__}; train a new model on all batches"
        )
    index = levels[position]
    if isinstance(module, InputLayer | nn.Linear):
        index = sum(levels[: position + 1])
        # A prior reads the condition before what is above z; everything else reads it after its other inputs.
        if not isinstance(vae.get_submodule(owner.rpartition(".")[0]), DependentNormal):
            index += vae.get_parameter(path).shape[axis] - vae.condition.output_dim
    return _Part(owner, name, axis, index, levels[position])


def _declared(vae: VAE, position: int, moments: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """The declaration of the VAE with one level more: longer encodings, and wider inputs where they are one-hot."""
    longer = [count + (place == position) for place, count in enumerate(vae.condition.levels)]
    changes: dict[type[Declared], dict[str, Any]] = {OneHot: {"levels": longer}, Embedding: {"levels": longer}}
    if position == 0:
        changes[ConditionInverseDispersion] = {"levels": longer[0]}
        if vae.library is not None and len(vae.library.prior_loc) == vae.condition.levels[0]:
            loc, scale = zip(*moments, strict=True)
            changes[LatentLibrary] = {"loc": [*loc], "scale": [*scale]}
    widths: dict[str, int] = {}
    if isinstance(vae.condition, OneHot):
        above = 0 if vae.upper is None else vae.upper.output_dim
        widths = {"condition_dim": vae.condition.output_dim, "context_dim": vae.condition.output_dim + above}
        if isinstance(vae.decoder, MLP) and not vae.decoder.layers:  # the likelihood itself reads the condition
            widths["features"] = vae.decoder.output_dim
    by_path = {f"{kind.__module__}:{kind.__qualname__}": values for kind, values in changes.items()}
    declaration: dict[str, Any] = _rewritten(vae.declaration(), by_path, widths)
    return declaration


def _rewritten(value: Any, changes: Mapping[str, Mapping[str, Any]], widths: Mapping[str, int]) -> Any:
    """A declaration with other arguments of some classes, and arguments that are a certain width one wider."""
    if isinstance(value, list):
        return [_rewritten(item, changes, widths) for item in value]
    if not isinstance(value, dict):
        return value
    changed = {name: _rewritten(item, changes, widths) for name, item in value.items()}
    if "class" in changed:
        arguments = changed["arguments"]
        arguments.update({name: width + 1 for name, width in widths.items() if arguments.get(name) == width})
        arguments.update(changes.get(changed["class"], {}))
    return changed


def _trainable(vae: VAE, parts: Sequence[_Part]) -> VAE:
    """A copy of which some parts alone are trained."""
    trainable = copy.deepcopy(vae).requires_grad_(False)
    for module in trainable.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = 0.0  # its running moments stay
    for part in parts:
        module = trainable.get_submodule(part.owner)
        parametrize.register_parametrization(module, part.name, _OnePart(part.of(trainable), part))
        trainable.get_parameter(f"{part.owner}.parametrizations.{part.name}.original").requires_grad_(True)
    return trainable
