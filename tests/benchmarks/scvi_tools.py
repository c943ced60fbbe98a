"""SCVI of scvi-tools with the widths of the package's VAE, where it is installed."""

import contextlib
import importlib.util
import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from anndata import AnnData

from genailab_pyro.data.cells import Cells
from genailab_pyro.report.terminal import say
from tests.benchmarks.timing import Seconds

LOGGERS = ("scvi", "lightning", "lightning.pytorch", "lightning.fabric")
QUIET = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
}


def available() -> bool:
    """Whether it is installed; says so in a line where it is not."""
    found = importlib.util.find_spec("scvi") is not None
    if not found:
        say("scvi-tools is left out, as it is not installed: pip install 'genailab-pyro[bench]'")
    return found


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """No warnings and no messages of scvi-tools and lightning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import scvi  # noqa: F401  (it sets the levels of loggers when it is first imported)

        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        yield


class Scvi:
    """SCVI on some cells.

    Args:
        cells: The cells, whose counts are copied.
        inflated: Whether counts are zero-inflated.
        minibatch_size: Cells per step.
    """

    def __init__(self, cells: Cells, *, inflated: bool, minibatch_size: int = 128) -> None:
        self.minibatch_size = minibatch_size
        with silence():
            from scvi.model import SCVI

            adata = AnnData(cells.counts_matrix())
            SCVI.setup_anndata(adata)
            likelihood = "zinb" if inflated else "nb"
            self.model = SCVI(adata, n_hidden=128, n_latent=10, n_layers=1, gene_likelihood=likelihood)

    def epoch(self, order: np.ndarray | None = None) -> Seconds:
        """Train for an epoch on all cells or on some; returns the seconds of the epoch without what is set up."""
        with silence():
            from lightning.pytorch.callbacks import Callback

            class Clock(Callback):
                def on_train_epoch_start(self, *_: Any) -> None:
                    self.begun = time.perf_counter()

                def on_train_epoch_end(self, *_: Any) -> None:
                    self.seconds = Seconds(time.perf_counter() - self.begun)

            clock = Clock()
            options: dict[str, Any] = {"train_size": 1.0}
            if order is not None:
                others = np.setdiff1d(np.arange(self.model.adata.n_obs), order)
                options = {"datasplitter_kwargs": {"external_indexing": [order, np.array([], dtype=int), others]}}
            self.model.train(
                max_epochs=1, batch_size=self.minibatch_size, accelerator="cpu", callbacks=[clock], **options, **QUIET
            )
        return clock.seconds

    def latent(self) -> np.ndarray:
        """Posterior mean of the latent of each cell."""
        with silence():
            return self.model.get_latent_representation()

    def log_likelihood(self, indices: Sequence[int], *, num_particles: int, at_once: int) -> float:
        """Importance-weighted bound of some cells, by so many of the draws at once, in nats per cell."""
        with silence():
            return self.model.get_marginal_ll(
                indices=indices, n_mc_samples=num_particles, n_mc_samples_per_pass=at_once
            )


def expression(adata: AnnData, seed: int) -> np.ndarray:
    """Expression of each cell by SCVI with its own settings, as shares, from 100 draws."""
    with silence():
        import scvi

        scvi.settings.seed = seed
        counted = AnnData(adata.X.copy())
        scvi.model.SCVI.setup_anndata(counted)
        model = scvi.model.SCVI(counted, n_hidden=128, n_latent=10, n_layers=1, gene_likelihood="nb")
        model.train(accelerator="cpu", **QUIET)
        return model.get_normalized_expression(n_samples=100, return_numpy=True)
