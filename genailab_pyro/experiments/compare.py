"""An honest comparison of gradient estimators: bias, variance, signal-to-noise and cost at frozen parameters."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import xarray as xr

from genailab_pyro.data.cells import Cells
from genailab_pyro.estimators import Estimator, get, name_of
from genailab_pyro.experiments.comparison import EstimatorComparison
from genailab_pyro.experiments.gradients import frozen
from genailab_pyro.experiments.measure import Checkpoint
from genailab_pyro.experiments.trajectory import BY_SCATTER, check_usable, first_usable, load, sample, trajectory
from genailab_pyro.model.vae import VAE
from genailab_pyro.train.fit import check_arguments
from genailab_pyro.train.settings import Training

CHECKPOINTS = {"given": 0.0, "initial": 0.0, "mid": 0.5, "trained": 1.0}


def compare_estimators(
    vae: VAE,
    cells: Cells,
    estimators: Sequence[str | Estimator],
    *,
    num_draws: int = 200,
    checkpoints: Sequence[str | float] = ("initial", "mid", "trained"),
    particles: Sequence[int] = (1, 4, 16, 64),
    reference: str | Estimator | None = None,
    training: Training | None = None,
    seed: int = 0,
    callback: Callable[[str], None] | None = None,
    **settings: Any,
) -> EstimatorComparison:
    """Measure what gradient estimators cost and how far they scatter, at the same parameters and cells.

    One reference run trains a copy of the VAE; at each checkpoint its parameters are frozen, in evaluation mode, and
    every estimator draws the gradient of one minibatch with common random numbers. Baselines that learn have learned
    on other, shuffled minibatches before, and stay as they are.

    Args:
        vae: The VAE; it stays as it is.
        cells: Registered cells, on which the reference run is trained.
        estimators: Names in ``glp.estimators.table()``, or `Estimator` objects.
        num_draws: Gradient draws of each estimator, at least two.
        checkpoints: ``"initial"``, ``"mid"``, ``"trained"``, or shares of the epochs of the reference run;
            ``("given",)`` measures at the weights as they are, such as those of a fit, and trains nothing.
        particles: Numbers of particles for which the signal-to-noise is measured at the last checkpoint; empty for
            none.
        reference: What the ratios of variances are to; None for ``"pathwise"``, or the first that is compared.
        training: Settings of the reference run, whose ``minibatch_size`` is that of the measured minibatch, too; None
            for the defaults.
        seed: Seed of everything; the caller's random state is left as it was.
        callback: Called with a line on what is being done.
        settings: Fields of `Training` to change.

    Returns:
        For each checkpoint, group of parameters and estimator: bias against the reference of the same objective,
        variance and its ratio with a bootstrap interval, signal-to-noise, seconds.

    Raises:
        EstimatorError: If an estimator cannot be used with the VAE; before anything is done.
        TypeError, ValueError: If an argument is not what is expected.

    Example:
        >>> import genailab_pyro as glp
        >>> cells = glp.register(glp.data.pbmc68k())
        >>> vae = glp.CVAE_NB.from_registration(cells, hidden_dims=[16])
        >>> compared = glp.compare_estimators(
        ...     vae, cells, ["pathwise", "score"], num_draws=10, checkpoints=("given",), particles=()
        ... )
        >>> float(compared.dataset["ratio"].sel(group="latent location", estimator="score").squeeze()) > 10
        True
    """
    check_arguments(vae, cells)
    named = named_estimators(estimators)
    shares = _shares(checkpoints)
    _check_numbers(num_draws, particles)
    training = Training.from_json({**(training or Training()).to_json(), **settings})
    device = next(vae.parameters()).device
    minibatch = sample(cells, training.minibatch_size, seed=seed, device=device)
    check_usable(vae, named, minibatch)
    chosen = _reference(named, reference)
    say = callback or (lambda line: None)
    guiding = first_usable(vae, BY_SCATTER, minibatch)
    if max(shares.values()):
        say(f"training the reference run by {guiding}")
    snapshots = trajectory(vae, cells, get(guiding), training, [*shares.values()], seed=seed)
    measured = []
    with frozen():
        for name, snapshot in zip(shares, snapshots, strict=True):
            say(f"measuring at the checkpoint {name} (epoch {snapshot.epoch})")
            at = Checkpoint(load(vae, snapshot), cells, minibatch, guiding, num_draws, seed)
            measured.append(at.measure(named, chosen))
        dataset = xr.concat(measured, xr.Variable("checkpoint", [*shares]), join="exact", combine_attrs="override")
        if particles:
            say(f"measuring the signal-to-noise for {', '.join(map(str, particles))} particles")
            dataset = dataset.merge(at.signal_to_noise(named, particles))
    dataset.attrs |= {
        "reference": chosen,
        "trajectory": guiding,
        "num_draws": num_draws,
        "minibatch_size": minibatch.size,
        "num_cells": len(cells),
        "seed": seed,
        "model": type(vae).__name__,
        "threads": torch.get_num_threads(),
    }
    return EstimatorComparison(dataset)


def named_estimators(estimators: Sequence[str | Estimator]) -> dict[str, Estimator]:
    """Estimators by the names under which they are shown.

    Raises:
        ValueError: If there are none, one is unknown, or two are the same.
    """
    if isinstance(estimators, (str, Estimator)) or not estimators:
        raise ValueError(f"expected a list of estimators, such as ['pathwise', 'score'], got {estimators!r}")
    found = [get(estimator) for estimator in estimators]
    names = [name if isinstance(name, str) else name_of(name) for name in estimators]
    named = dict(zip(names, found, strict=True))
    if len(named) < len(estimators):
        raise ValueError(f"expected each estimator once, got {', '.join(map(str, estimators))}")
    return named


def _check_numbers(num_draws: int, particles: Sequence[int]) -> None:
    if isinstance(num_draws, bool) or not isinstance(num_draws, int) or num_draws < 2:
        raise ValueError(f"expected at least two draws, whose scatter is asked for, got num_draws={num_draws!r}")
    if isinstance(particles, int) or any(isinstance(k, bool) or k < 1 or k != int(k) for k in particles):
        raise ValueError(f"expected a list of whole numbers of particles, such as (1, 4, 16), got {particles!r}")


def _shares(checkpoints: Sequence[str | float]) -> dict[str, float]:
    if isinstance(checkpoints, str) or not len(checkpoints):
        raise ValueError(f"expected a list of checkpoints, such as ('initial', 'trained'), got {checkpoints!r}")
    shares: dict[str, float] = {}
    for checkpoint in checkpoints:
        share = CHECKPOINTS.get(checkpoint) if isinstance(checkpoint, str) else float(checkpoint)
        if share is None or not 0 <= share <= 1:
            raise ValueError(
                f"expected checkpoints among {', '.join(map(repr, CHECKPOINTS))} or shares of the epochs from 0 to 1, "
                f"got {checkpoint!r}"
            )
        shares[checkpoint if isinstance(checkpoint, str) else f"{share:g}"] = share
    return shares


def _reference(named: dict[str, Estimator], reference: str | Estimator | None) -> str:
    if reference is None:
        return "pathwise" if "pathwise" in named else next(iter(named))
    name = reference if isinstance(reference, str) else name_of(reference)
    if name not in named:
        raise ValueError(f"expected the reference among the estimators {', '.join(named)}, got {name!r}; add it")
    return name
