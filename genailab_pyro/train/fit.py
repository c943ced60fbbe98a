"""Training by Pyro's stochastic variational inference, and going on with a run that was interrupted."""

import copy
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from genailab_pyro.data.cells import Cells
from genailab_pyro.estimators import Estimator, get
from genailab_pyro.model.check import check_pair
from genailab_pyro.model.composition import check_composition
from genailab_pyro.model.penalties import Penalty
from genailab_pyro.model.vae import VAE
from genailab_pyro.train.checkpoint import RUN, declare_run, read_run, restore_state, save_state
from genailab_pyro.train.fitted import Fit
from genailab_pyro.train.objective import NonFiniteLossError, explain
from genailab_pyro.train.optim import NonFiniteGradientError
from genailab_pyro.train.progress import ProgressLine
from genailab_pyro.train.run import Run, own_state
from genailab_pyro.train.settings import Training

Callback = Callable[[int, Mapping[str, float]], None]


class TrainingError(ArithmeticError):
    """A run that was stopped because its loss or its gradient was not finite.

    Attributes:
        fit: The fit with the last good weights.
    """

    def __init__(self, message: str, fit: Fit) -> None:
        super().__init__(message)
        self.fit = fit


def fit(
    vae: VAE,
    cells: Cells,
    estimator: str | Estimator = "pathwise",
    *,
    training: Training | None = None,
    penalties: Sequence[Penalty] = (),
    seed: int = 0,
    device: str | torch.device | None = None,
    run_folder: str | Path | None = None,
    callback: Callback | None = None,
    progress: bool = True,
    **settings: Any,
) -> Fit:
    """Train a copy of a VAE on registered cells by ``pyro.infer.SVI``.

    Cells that will be scored as held-out must not be among them. A share of them (``validation_fraction``) is set
    aside to choose the epoch whose weights are kept.

    Args:
        vae: The VAE; it stays as it is, so that several estimators start from the same weights.
        cells: Registered cells.
        estimator: A name in ``glp.estimators.table()``, or an `Estimator`.
        training: The settings; None for the defaults.
        penalties: Terms added to the loss, in nats per cell; they need a pathwise estimator.
        seed: Seed of the split, the order of the cells and the draws; the caller's random state is left as it was.
        device: Where to train and keep the model; None for where it is.
        run_folder: Where each epoch leaves the state from which `resume` goes on.
        callback: Called after each epoch with its number (from 1) and its row of the history.
        progress: Whether to show a line of progress.
        settings: Fields of `Training` to change, such as ``max_epochs``, ``minibatch_size`` or ``learning_rate``.

    Returns:
        The fit. After Ctrl-C, the fit so far.

    Raises:
        PairError: If the model and the guide do not fit together.
        TrainingError: If the loss or its gradient is NaN or infinite; its ``fit`` holds the last good weights.
        TypeError, ValueError: If an argument is not what is expected.

    Example:
        >>> import genailab_pyro as glp
        >>> cells = glp.register(glp.data.pbmc68k())
        >>> vae = glp.CVAE_NB.from_registration(cells, hidden_dims=[16])
        >>> glp.fit(vae, cells, estimator="pathwise", max_epochs=2, progress=False).latent().shape
        (700, 10)
    """
    check_arguments(vae, cells)
    chosen = get(estimator)
    training = Training.from_json({**(training or Training()).to_json(), **settings})
    seed = operator.index(seed)
    if run_folder is None:  # else it is refused
        _warn_of_unsaved(vae)
    vae = _copied(vae)
    device = next(vae.parameters()).device if device is None else torch.device(device)
    with own_state(seed):
        run = Run(vae, cells, chosen, training, penalties=penalties, seed=seed, device=device)
        _check_programs(run)
        folder = None if run_folder is None else Path(run_folder)
        if folder is not None:
            declare_run(folder, run, cells, chosen, penalties)
        return _train(run, cells, chosen, folder, callback=callback, progress=progress)


def resume(
    folder: str | Path,
    cells: Cells,
    *,
    penalties: Sequence[Penalty] = (),
    device: str | torch.device = "cpu",
    callback: Callback | None = None,
    progress: bool = True,
) -> Fit:
    """Go on with a run as if it had never stopped: to the last bit, on the same machine with as many threads.

    Args:
        folder: The ``run_folder`` of an interrupted `fit`.
        cells: The same cells.
        penalties: The same penalties.
        device: Where to train and keep the model.
        callback: Called after each epoch with its number (from 1) and its row of the history.
        progress: Whether to show a line of progress.

    Returns:
        The fit. If the run had come to its end, the fit that it gave.

    Raises:
        FileNotFoundError: If the folder holds no run.
        TypeError: If something other than `Cells` is given.
        ValueError: If the cells or the penalties are not those of the run, or the folder is damaged.
    """
    folder = Path(folder)
    if not isinstance(cells, Cells):
        raise TypeError(f"expected cells from glp.register(adata), got {type(cells).__name__}")
    declared = read_run(folder, cells, penalties)
    with own_state(declared["seed"]):
        run = Run(
            declared["vae"],
            cells,
            declared["estimator"],
            declared["training"],
            penalties=penalties,
            seed=declared["seed"],
            device=device,
        )
        restore_state(folder, run)
        return _train(run, cells, declared["estimator"], folder, callback=callback, progress=progress)


def fit_whole(
    vae: VAE,
    cells: Cells,
    estimator: str | Estimator = "pathwise",
    *,
    run_folder: Path,
    training: Training,
    seed: int,
    progress: bool,
) -> Fit:
    """Train to the end, going on with what an interrupted call has left in the folder: part of a longer job.

    The arguments are those of `fit`. A run that goes on is as it was begun: it is the job that compares what it is
    asked for with what it was asked for then.

    Raises:
        KeyboardInterrupt: After Ctrl-C; a fit so far would pass for one that is whole.
        ValueError: If the run was begun with other cells.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "training was interrupted")  # it tells of a fit that nobody gets
        if (run_folder / RUN).is_file():
            fitted = resume(run_folder, cells, progress=progress)
        else:
            fitted = fit(vae, cells, estimator, run_folder=run_folder, training=training, seed=seed, progress=progress)
    if fitted.interrupted:
        raise KeyboardInterrupt
    return fitted


def _train(
    run: Run,
    cells: Cells,
    estimator: Estimator,
    folder: Path | None,
    *,
    callback: Callback | None,
    progress: bool,
) -> Fit:
    def fitted(*, interrupted: bool = False) -> Fit:
        run.finish()
        return Fit(
            vae=run.vae,
            registration=cells.registration,
            history=pd.DataFrame(run.record.history).astype({"epoch": int}) if run.record.history else pd.DataFrame(),
            estimator=estimator,
            training=run.training,
            seed=run.seed,
            cells=cells,
            interrupted=interrupted,
            baseline=None if run.baseline is None else dict(run.baseline.state_dict()),
        )

    good = {name: value.clone() for name, value in run.vae.state_dict().items()}
    with ProgressLine(run.num_epochs, shown=progress) as line:
        try:
            while not run.finished:
                row = run.epoch()
                good = {name: value.clone() for name, value in run.vae.state_dict().items()}
                if folder is not None:
                    save_state(folder, run)
                line.update(row)
                if callback is not None:
                    with torch.random.fork_rng():  # what it draws does not change the run
                        callback(run.record.epoch, dict(row))
            run.check_validated()
        except KeyboardInterrupt:
            warnings.warn(
                f"training was interrupted after epoch {run.record.epoch} of {run.num_epochs}; this is the fit so far",
                stacklevel=3,
            )
            return fitted(interrupted=True)
        except (NonFiniteLossError, NonFiniteGradientError) as error:
            message = _diagnosis(run, error)
            run.vae.load_state_dict(good)
            raise TrainingError(message, fitted(interrupted=True)) from error
    return fitted()


def _diagnosis(run: Run, error: ArithmeticError) -> str:
    where = explain(run.model, run.guide, run.minibatch, run.vae)
    minibatch = run.minibatch
    names = run.train_cells.obs_names[minibatch.index[:5].cpu().numpy()].tolist()
    return (
        f"training stopped at step {run.record.step + 1} (epoch {run.record.epoch + 1}): {error}. {where}. The "
        f"minibatch held {minibatch.size} cells ({', '.join(names)}, ...) with libraries from "
        f"{minibatch.library.min():g} to {minibatch.library.max():g}. The last good weights are in this error's .fit. "
        "What usually helps: a lower learning_rate, a lower gradient_clip, norm='layer', a longer warmup, and a look "
        "at cells with extreme counts"
    )


def check_arguments(vae: VAE, cells: Cells) -> None:
    """Refuse a VAE and cells that do not fit together.

    Raises:
        TypeError: If they are something else.
        ValueError: If they have other genes.
    """
    if not isinstance(vae, VAE):
        raise TypeError(f"expected a VAE, such as glp.CVAE_NB.from_registration(cells), got {type(vae).__name__}")
    if not isinstance(cells, Cells):
        raise TypeError(f"expected cells from glp.register(adata), got {type(cells).__name__}")
    genes = getattr(vae, "input_dim", None)
    if genes is not None and genes != len(cells.registration.genes):
        raise ValueError(
            f"expected cells with the {genes} genes that the model was declared with (input_dim), got "
            f"{len(cells.registration.genes)}; declare it by from_registration(cells)"
        )


def _warn_of_unsaved(vae: VAE) -> None:
    """Say of a VAE that cannot be saved what is missing before hours have gone into it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where it can be loaded is said when it is saved
            vae.declaration()
    except TypeError as error:
        warnings.warn(f"this fit cannot be saved: {error}", stacklevel=3)


def _copied(vae: VAE) -> VAE:
    """A copy that can be trained while the VAE stays as it is."""
    for where, part in vae.named_modules():
        made = [name for name, value in vars(part).items() if torch.is_tensor(value) and value.grad_fn is not None]
        if made:
            raise ValueError(
                f"expected parts whose tensors are parameters or made in forward(), got {where or 'the VAE'}."
                f"{made[0]}, computed from parameters when it was declared, which would not train; make it in forward()"
            )
    return copy.deepcopy(vae)


def _check_programs(run: Run) -> None:
    size = min(len(run.train_cells), run.training.minibatch_size, 8)
    minibatch = run.train_cells.take(range(size), device=run.device, dtype=run.dtype)
    was_training = run.vae.training
    run.vae.eval()
    check_composition(run.vae, minibatch)
    check_pair(run.vae.model, run.vae.guide, minibatch)
    if run.baseline is not None:
        run.baseline.eval()
    with torch.random.fork_rng():  # what the estimator cannot do is said before anything is written
        run.objective.elbo.differentiable_loss(run.model, run.guide, minibatch)
    if run.baseline is not None:
        run.baseline.train()
    run.vae.train(was_training)
