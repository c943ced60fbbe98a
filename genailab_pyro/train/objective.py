"""The loss of one step: the bound and its penalties, what is reported beside it, and the refusal of a broken one."""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce

import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from genailab_pyro.estimators import WatchedELBO, closed_form_kl
from genailab_pyro.estimators.credit import plate_factor
from genailab_pyro.model.penalties import Penalty
from genailab_pyro.types import Minibatch


class NonFiniteLossError(ArithmeticError):
    """A loss that is NaN or infinite; no step was taken with it."""


@dataclass(frozen=True)
class Terms:
    """The parts of the negative ELBO at beta = 1, in nats per cell.

    Attributes:
        reconstruction: -E log p(x | z).
        kl: KL from guide to prior, in closed form where there is one.
    """

    reconstruction: float
    kl: float

    @property
    def elbo(self) -> float:
        """-(reconstruction + kl)."""
        return -(self.reconstruction + self.kl)

    @classmethod
    def of(cls, model_trace: Trace, guide_trace: Trace, num_cells: int, num_particles: int) -> "Terms":
        """Read them off a pair of traces whose log-probabilities have been computed.

        The annealing weight is not part of them; the plate's factor is. Heads are left out.
        """
        reconstruction = kl = 0.0
        with torch.no_grad():
            probabilities = _enumerated(guide_trace)
            for name, site in model_trace.nodes.items():
                if site["type"] != "sample" or site["infer"].get("is_head"):
                    continue
                weight = plate_factor(site) / num_particles
                if site["is_observed"]:
                    reconstruction -= weight * _expected(site["unscaled_log_prob"], probabilities)
                else:
                    kl += weight * _expected(_site_kl(site, guide_trace.nodes[name]), probabilities)
        return cls(reconstruction / num_cells, kl / num_cells)


def _enumerated(guide_trace: Trace) -> Tensor | None:
    """The probability of each combination of the values that are summed over; None where none are."""
    sites = [site for site in guide_trace.nodes.values() if site["type"] == "sample"]
    listed = [site["unscaled_log_prob"].exp() for site in sites if site["infer"].get("enumerate")]
    return reduce(torch.mul, listed) if listed else None


def _expected(terms: Tensor, probabilities: Tensor | None) -> float:
    return (terms if probabilities is None else probabilities * terms).sum().item()


def _site_kl(model_site: dict, guide_site: dict) -> Tensor:
    if not guide_site["infer"].get("enumerate"):  # else its own probabilities are those of what it is summed over
        with suppress(NotImplementedError):
            return closed_form_kl(guide_site["fn"], model_site["fn"])
    return guide_site["unscaled_log_prob"] - model_site["unscaled_log_prob"]


class Objective:
    """What ``pyro.infer.SVI`` minimises: the bound of an estimator plus penalties, watched.

    Args:
        elbo: The bound.
        penalties: Terms that are added to it, each in nats per cell.

    Attributes:
        steps: The terms of each step since they were last taken.
    """

    def __init__(self, elbo: WatchedELBO, penalties: Sequence[Penalty] = ()) -> None:
        self.elbo = elbo
        self.penalties = tuple(penalties)
        self.steps: list[Terms] = []
        self._traces: list[tuple[Trace, Trace]] = []
        elbo.watchers.append(lambda model_trace, guide_trace: self._traces.append((model_trace, guide_trace)))

    def loss(self, model: Callable, guide: Callable, minibatch: Minibatch) -> float:
        """The loss as a number, for ``SVI.evaluate_loss``."""
        with torch.no_grad():
            return self._differentiable(model, guide, minibatch).item()

    def loss_and_grads(self, model: Callable, guide: Callable, minibatch: Minibatch) -> float:
        """The loss as a number; its gradient is left in the parameters.

        Raises:
            NonFiniteLossError: If it is NaN or infinite.
        """
        loss = self._differentiable(model, guide, minibatch)
        value = loss.item()
        if not math.isfinite(value):
            raise NonFiniteLossError("the loss is not finite")
        loss.backward()
        return value

    def _differentiable(self, model: Callable, guide: Callable, minibatch: Minibatch) -> Tensor:
        self._traces.clear()
        loss = self.elbo.differentiable_loss(model, guide, minibatch)
        particles = self.elbo.num_particles
        for model_trace, guide_trace in self._traces:
            self.steps.append(Terms.of(model_trace, guide_trace, minibatch.num_cells, particles))
            for penalty in self.penalties:
                term = penalty(minibatch, guide_trace, model_trace)
                loss = loss + minibatch.num_cells * term / len(self._traces)
        self._traces.clear()
        return loss


def explain(model: Callable, guide: Callable, minibatch: Minibatch, module: torch.nn.Module) -> str:
    """Where a pair stops being finite: the first site, value or parameter, in the order of the programs.

    Args:
        model: The generative program.
        guide: The variational program.
        minibatch: The cells on which the loss or its gradient was not finite.
        module: The VAE, whose parameters and gradients are looked at.
    """
    found = [
        f"the parameter {name!r} holds {_count(parameter)} values that are not finite"
        for name, parameter in module.named_parameters()
        if _count(parameter)
    ]
    try:
        found += _broken_sites(model, guide, minibatch)
    except (ValueError, RuntimeError) as error:
        found.append(f"the programs cannot be run again ({str(error).splitlines()[0]})")
    found += [
        f"the gradient of {name!r} is not finite at {_count(parameter.grad)} places"
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and _count(parameter.grad)
    ]
    return "; ".join(found[:4]) or "the weights and the log-probabilities of another draw are finite"


def _broken_sites(model: Callable, guide: Callable, minibatch: Minibatch) -> list[str]:
    with torch.no_grad():
        guide_trace = poutine.trace(guide).get_trace(minibatch)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(minibatch)
        return [
            f"the {what} of the {who}'s site {name!r} is not finite at {_count(tensor)} places"
            for who, trace in (("guide", guide_trace), ("model", model_trace))
            for name, site in trace.nodes.items()
            if site["type"] == "sample"
            for what, tensor in (("value", site["value"]), ("log-probability", site["fn"].log_prob(site["value"])))
            if _count(tensor)
        ]


def _count(tensor: Tensor) -> int:
    return int((~torch.isfinite(tensor)).sum())
