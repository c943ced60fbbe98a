"""What is measured of the gradients of estimators at one set of frozen parameters."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import nn

from genailab_pyro.data.cells import Cells
from genailab_pyro.estimators import Estimator, get, name_of
from genailab_pyro.experiments.gradients import GradientDraws, GradientSampler, resampled_draws
from genailab_pyro.model.vae import VAE
from genailab_pyro.types import Minibatch

HEADS = {"loc": "latent location", "scale": "latent scale", "logits": "latent logits"}
PARTS = {
    "encoder": "encoder trunk",
    "upper": "upper latent",
    "library": "latent library",
    "prior": "prior",
    "condition": "conditions",  # what the encoder reads, too
    "decoder": "decoder",
    "likelihood": "decoder",
}
NUM_DIRECTIONS = 8
REFERENCE_PARTICLES = {"pathwise": 16, "enum": 2, "score-loo": 16}  # what is summed over needs few
WARM_STEPS = 300
NUM_MINIBATCHES = 40
FEW_CELLS = 16


def groups_of(vae: VAE) -> dict[str, list[nn.Parameter]]:
    """The trainable parameters of a VAE in groups: heads and trunk of the encoder, what is above, and the decoder."""
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in (*HEADS.values(), *PARTS.values())}
    for name, parameter in vae.named_parameters():
        part, head = name.split(".")[:2]
        group = HEADS[head] if part == "encoder" and head in HEADS else PARTS[part]
        if parameter.requires_grad:
            groups[group].append(parameter)
    return {name: parameters for name, parameters in groups.items() if parameters}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A frozen VAE and the minibatch on which its gradient is drawn.

    It must be used inside `frozen`.

    Args:
        vae: The VAE, in evaluation mode.
        cells: The cells of which other minibatches are drawn.
        minibatch: The minibatch.
        guiding: Name of the estimator of the ELBO with the least scatter that can be used with the VAE.
        num_draws: Gradient draws of each estimator.
        seed: Seed of the draws.
    """

    vae: VAE
    cells: Cells
    minibatch: Minibatch
    guiding: str
    num_draws: int
    seed: int

    @cached_property
    def groups(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """The parameters in groups."""
        return groups_of(self.vae)

    def sampler(self, estimator: Estimator, size: int) -> GradientSampler:
        """An estimator whose baseline has learned on shuffled minibatches of a size."""
        torch.manual_seed(self.seed)
        sampler = GradientSampler(self.vae.model, self.vae.guide, estimator, self.groups)
        sampler.warm(self._shuffled(WARM_STEPS, size, seed=self.seed + 1))
        return sampler

    def _with_particles(self, warmed: GradientSampler, estimator: Estimator) -> GradientSampler:
        """An estimator with the baseline of another, whose number of particles may differ."""
        sampler = GradientSampler(self.vae.model, self.vae.guide, estimator, self.groups)
        sampler.elbo.baseline = warmed.elbo.baseline
        return sampler

    def _shuffled(self, number: int, size: int, *, seed: int) -> Iterator[Minibatch]:
        """Minibatches of all cells in an order of their own in each pass."""
        device = self.minibatch.index.device
        passes = (self.cells.minibatches(size, seed=seed + number, device=device) for number in itertools.count())
        return itertools.islice(itertools.chain.from_iterable(passes), number)

    def reference_of(self, estimator: Estimator) -> Estimator:
        """A precise estimator of the same objective; of the ELBO for a relaxed one."""
        number = estimator.num_particles
        if estimator.bound == "renyi":
            return get("renyi", num_particles=number, alpha=estimator.alpha)
        if estimator.bound == "importance-weighted" and self.guiding == "pathwise":
            return get("iwae", num_particles=number)
        if estimator.bound == "importance-weighted":
            return get("vimco", num_particles=number, baseline="leave-one-out" if number > 1 else None)
        return get(self.guiding, num_particles=REFERENCE_PARTICLES[self.guiding])

    def measure(self, named: Mapping[str, Estimator], reference: str) -> xr.Dataset:
        """Everything but the signal-to-noise by particles, for each group of parameters and estimator."""
        drawn, seconds, evaluations = {}, {}, {}
        for name, estimator in named.items():
            sampler = self.sampler(estimator, self.minibatch.size)
            drawn[name] = sampler.draws(self.minibatch, self.num_draws, self.seed)
            seconds[name] = float(np.median(sampler.seconds))
            evaluations[name] = sampler.evaluations / self.minibatch.size
        precise: dict[Estimator, dict[str, GradientDraws]] = {}
        between: dict[Estimator, dict[str, float]] = {}
        for exact in {self.reference_of(estimator) for estimator in named.values()}:
            sampler = self.sampler(exact, self.minibatch.size)
            # Its many particles make a few draws precise.
            precise[exact] = sampler.draws(self.minibatch, max(self.num_draws // 2, 2), self.seed + 1)
            between[exact] = self._between(sampler)
        rows = []
        for group in self.groups:
            columns = []
            for name, estimator in named.items():
                exact = self.reference_of(estimator)
                column = _scatter(drawn[name][group], drawn[reference][group], self.seed)
                column |= _bias(drawn[name][group], precise[exact][group], self.seed)
                comparable = estimator.objective == named[reference].objective
                column |= _difference(drawn[name][group], drawn[reference][group] if comparable else None, self.seed)
                column["variance_between_minibatches"] = xr.DataArray(between[exact][group])
                columns.append(xr.Dataset(column))
            rows.append(xr.concat(columns, xr.Variable("estimator", [*named])))
        dataset = xr.concat(rows, xr.Variable("group", [*self.groups]))
        per_estimator = {
            "seconds": [seconds[name] for name in named],
            "evaluations": [evaluations[name] for name in named],
            "particles": [estimator.num_particles for estimator in named.values()],
        }
        dataset = dataset.assign({name: ("estimator", values) for name, values in per_estimator.items()})
        references = [name_of(self.reference_of(estimator)) for estimator in named.values()]
        dataset = dataset.assign_coords(
            objective=("estimator", [estimator.objective for estimator in named.values()]),
            bias_reference=("estimator", references),
        )
        return dataset.assign(variance_seconds=dataset["variance"] * dataset["seconds"])

    def _between(self, sampler: GradientSampler) -> dict[str, float]:
        """Variance over minibatches of the mean gradient, from two independent draws of each minibatch."""
        pairs = []
        shuffled = self._shuffled(2 * NUM_MINIBATCHES, self.minibatch.size, seed=self.seed + 10_000)
        whole = (other for other in shuffled if other.size == self.minibatch.size)  # the smaller last ones vary more
        for position, minibatch in enumerate(itertools.islice(whole, NUM_MINIBATCHES)):
            first = (self.seed + 2) * 1_000_003 + 2 * position
            pairs.append([sampler.draw(minibatch, seed) for seed in (first, first + 1)])
        found = {}
        for group in self.groups:
            values = np.stack([[draw[group] for draw in pair] for pair in pairs])
            one, other = np.moveaxis(values - values.mean(0), 1, 0)
            found[group] = float((one * other).sum() / (NUM_MINIBATCHES - 1) / sampler.share(group))
        return found

    def signal_to_noise(self, named: Mapping[str, Estimator], particles: Sequence[int]) -> xr.Dataset:
        """Signal-to-noise of the first group on some of the cells, by particles; NaN where an estimator needs more."""
        group = next(iter(self.groups))
        cells = self.cells.take(self.minibatch.index[:FEW_CELLS].cpu().numpy(), device=self.minibatch.index.device)
        values = np.full((len(named), len(particles)), np.nan)
        for row, estimator in enumerate(named.values()):
            warmed = self.sampler(get(estimator, num_particles=estimator.least_particles), self.minibatch.size)
            for column, number in enumerate(particles):
                try:
                    changed = get(estimator, num_particles=int(number))
                except ValueError:
                    continue
                sampler = self._with_particles(warmed, changed)
                drawn = sampler.draws(cells, max(self.num_draws // 4, 2), self.seed)
                values[row, column] = drawn[group].signal_to_noise
        return xr.Dataset(
            {"signal_to_noise_by_particles": (("estimator", "num_particles"), values, {"group": group})},
            coords={"estimator": [*named], "num_particles": [*particles]},
        )


def _scatter(drawn: GradientDraws, reference: GradientDraws, seed: int) -> dict[str, xr.DataArray]:
    variance, least = drawn.variance, reference.variance
    low, high = _ratio_interval(drawn.squares, reference.squares, seed)
    values = {
        "variance": variance,
        "ratio": variance / least if least > 0 else np.nan,
        "ratio_low": low,
        "ratio_high": high,
        "signal_to_noise": drawn.signal_to_noise,
    }
    return {name: xr.DataArray(value) for name, value in values.items()}


def _bias(drawn: GradientDraws, precise: GradientDraws, seed: int) -> dict[str, xr.DataArray]:
    mine, exact = (_projected(draws, seed) for draws in (drawn, precise))
    error = np.sqrt(mine.var(0, ddof=1) / len(mine) + exact.var(0, ddof=1) / len(exact))
    return {
        "bias": xr.DataArray(mine.mean(0) - exact.mean(0), dims="projection"),
        "bias_standard_error": xr.DataArray(error, dims="projection"),
        "projected": xr.DataArray(mine[:, 0], dims="draw"),
        "projected_reference": xr.DataArray(exact[:, 0].mean()),
    }


def _difference(drawn: GradientDraws, reference: GradientDraws | None, seed: int) -> dict[str, xr.DataArray]:
    mine = _projected(drawn, seed)
    paired = np.full_like(mine, np.nan) if reference is None else mine - _projected(reference, seed)
    return {
        "difference": xr.DataArray(paired.mean(0), dims="projection"),
        "difference_standard_error": xr.DataArray(paired.std(0, ddof=1) / np.sqrt(len(paired)), dims="projection"),
    }


def _projected(drawn: GradientDraws, seed: int) -> Float[np.ndarray, "draws projections"]:
    """Draws on random directions of unit length, the same for all estimators."""
    directions = np.random.default_rng(seed).normal(size=(drawn.values.shape[1], NUM_DIRECTIONS))
    return drawn.values @ (directions / np.linalg.norm(directions, axis=0))


def _ratio_interval(
    squares: Float[np.ndarray, " draws"], reference: Float[np.ndarray, " draws"], seed: int
) -> tuple[float, float]:
    """Central 95 % bootstrap interval of a ratio of variances, over draws resampled in pairs."""
    drawn = resampled_draws(len(squares), 500, seed)
    below = reference[drawn].sum(1)
    if not below.all():
        return np.nan, np.nan
    low, high = np.quantile(squares[drawn].sum(1) / below, [0.025, 0.975])
    return float(low), float(high)
