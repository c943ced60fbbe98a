"""What is bounded: Pyro's ELBO classes, each with a differentiable loss and open to whoever watches its traces."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import ELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.poutine import Trace

Watcher = Callable[[Trace, Trace], None]


class WatchedELBO(ELBO):
    """An ELBO that hands each pair of traces, with their log-probabilities, to its watchers.

    What is reported beside the loss, and the penalties that are added to it, read these traces: nothing is run or
    scored twice.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.watchers: list[Watcher] = []

    def _get_trace(self, *args: Any, **kwargs: Any) -> tuple[Trace, Trace]:
        model_trace, guide_trace = super()._get_trace(*args, **kwargs)
        for watcher in self.watchers:
            watcher(model_trace, guide_trace)
        return model_trace, guide_trace


class TraceELBO(WatchedELBO, Trace_ELBO):
    """Pyro's ``Trace_ELBO``: a site's score multiplies the costs that share its plates."""


class TraceMeanFieldELBO(WatchedELBO, TraceMeanField_ELBO):
    """Pyro's ``TraceMeanField_ELBO``: the KL of each latent site in closed form, where there is one."""


class TraceGraphELBO(WatchedELBO, TraceGraph_ELBO):
    """Pyro's ``TraceGraph_ELBO``, a site's score multiplies the costs downstream of it, with a differentiable loss."""

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The negative ELBO, whose derivative is that of the surrogate; a scalar, in nats."""
        elbo, surrogate = self._loss_and_surrogate_loss(model, guide, args, kwargs)
        return -torch.as_tensor(elbo).detach() + (surrogate - surrogate.detach())


BOUNDS: dict[tuple[str, str], type[WatchedELBO]] = {
    ("elbo", "plates"): TraceELBO,
    ("elbo", "graph"): TraceGraphELBO,
    ("elbo-kl", "plates"): TraceMeanFieldELBO,
}
