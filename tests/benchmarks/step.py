"""One training step: ours by each estimator, the same step written by hand in torch, and plain Pyro's.

All take the same minibatches, dense and in memory, from the same weights, with the same dropout, by one draw per cell
unless an estimator is declared with more. The steps by hand have the networks and the likelihood of the package, but
know no programs, sites, traces or store: one has the distributions of torch and of the package, the other the formulas
that these come to here. Arguments are validated in none.
"""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from rich import box
from rich.table import Table
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn.functional import softplus

import genailab_pyro as glp
from genailab_pyro.data.cells import Cells
from genailab_pyro.distributions import NegativeBinomial
from genailab_pyro.distributions.formulas import negative_binomial_log_prob
from genailab_pyro.model.vae import VAE
from genailab_pyro.report.terminal import console, say
from genailab_pyro.train.optim import ModuleOptim
from genailab_pyro.train.run import Run, own_state
from genailab_pyro.types import Minibatch
from tests.benchmarks.options import Options
from tests.benchmarks.timing import Timings, alternate

ROUNDS, THREADS = 200, 1
BY_HAND, INLINED, STOCK = "torch by hand", "torch by hand, inlined", "Pyro's SVI, ClippedAdam"
TRAINING = glp.Training(
    validation_fraction=0.0, max_epochs=1000, learning_rate_schedule="constant", warmup=glp.Warmup(shape="constant")
)
Step = Callable[[Minibatch], object]
Loss = Callable[[Any, Minibatch], Tensor]


def our_step(vae: VAE, cells: Cells, estimator: str = "pathwise") -> Step:
    """What `glp.fit` does with each minibatch; it trains the VAE."""
    run = Run(vae, cells, glp.estimators.get(estimator), TRAINING)
    run.vae.train()
    return run.step


def moments(vae: VAE, minibatch: Minibatch) -> tuple[Tensor, Tensor]:
    """Location and scale of the guide."""
    hidden = vae.encoder.trunk(minibatch.counts.log1p(), vae.encoder.condition(minibatch))
    return vae.encoder.loc(hidden), softplus(vae.encoder.scale(hidden)) + 1e-4


def log_mean(vae: VAE, z: Tensor, minibatch: Minibatch) -> Tensor:
    """Logarithm of the mean counts."""
    logits = vae.likelihood.log_expression(vae.decoder(z, vae.condition(minibatch)))
    return logits.log_softmax(-1) + minibatch.library.log().unsqueeze(-1)


def loss_by_hand(vae: VAE, minibatch: Minibatch) -> Tensor:
    """The negative ELBO of all cells by a draw per cell, in nats."""
    posterior, prior = Normal(*moments(vae, minibatch)), Normal(0.0, 1.0)
    z = posterior.rsample()
    counts = NegativeBinomial(log_mean(vae, z, minibatch), vae.likelihood.log_inverse_dispersion.log_value)
    kl = (posterior.log_prob(z) - prior.log_prob(z)).sum()
    return minibatch.num_cells / minibatch.size * (kl - counts.log_prob(minibatch.counts).sum())


def inlined_loss(vae: VAE, minibatch: Minibatch) -> Tensor:
    """The same by as few operations as it takes."""
    loc, scale = moments(vae, minibatch)
    noise = torch.randn_like(loc)
    z = loc + scale * noise
    kl = 0.5 * (z**2 - noise**2).sum() - scale.log().sum()
    theta = vae.likelihood.log_inverse_dispersion.log_value
    log_likelihood = negative_binomial_log_prob(minibatch.counts, log_mean(vae, z, minibatch), theta)
    return minibatch.num_cells / minibatch.size * (kl - log_likelihood.sum())


def step_by_hand(vae: nn.Module, cells: Cells, loss_of: Loss = loss_by_hand) -> Step:
    """The body of a loop as it is written in torch: loss, gradient, clip, fused step."""
    vae.train()
    parameters = [*vae.parameters()]
    ours = ModuleOptim(vae, weight_decay=TRAINING.weight_decay)  # for the same groups
    groups = [{key: group[key] for key in ("params", "weight_decay")} for group in ours.optimizer.param_groups]
    optimizer = torch.optim.AdamW(groups, lr=TRAINING.learning_rate, fused=True)
    clip = TRAINING.gradient_clip * len(cells)

    def step(minibatch: Minibatch) -> float:
        optimizer.zero_grad()
        loss = loss_of(vae, minibatch)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        return loss.item()

    return step


def stock_step(vae: VAE) -> Step:
    """Pyro's own bound and optimizer for the same model and guide."""
    vae.train()
    optim = ClippedAdam({"lr": TRAINING.learning_rate, "clip_norm": 10.0})
    return SVI(vae.model, vae.guide, optim, Trace_ELBO(max_plate_nesting=1)).step


def continuous_estimators() -> list[str]:
    """Names of the estimators that work with normal latents."""
    table = glp.estimators.table()
    return [*table.index[table["latents"] != "discrete"]]


def measure(cells: Cells, *, estimators: bool, rounds: int) -> Timings:
    """Time the steps on minibatches of some cells.

    Args:
        cells: The cells.
        estimators: Whether to time all estimators, or ``"pathwise"`` alone beside the steps of others.
        rounds: How often each is timed.
    """
    vae = glp.CVAE_NB.from_registration(cells, latent_dim=10, hidden_dims=[128])
    size = TRAINING.minibatch_size
    starts = range(0, len(cells) - size + 1, size)
    minibatches = [cells.take(range(start, start + size)) for start in starts][:40]

    def over_minibatches(step: Step) -> Callable[[], object]:
        each = itertools.cycle(minibatches)
        return lambda: step(next(each))

    with own_state(0):
        steps = {BY_HAND: step_by_hand(copy.deepcopy(vae), cells)}
        for name in continuous_estimators() if estimators else ["pathwise"]:
            steps[name] = our_step(copy.deepcopy(vae), cells, name)
        if not estimators:
            steps[INLINED] = step_by_hand(copy.deepcopy(vae), cells, inlined_loss)
            steps[STOCK] = stock_step(copy.deepcopy(vae))
        return alternate({name: over_minibatches(step) for name, step in steps.items()}, rounds=rounds)


def show(timings: Timings, title: str) -> None:
    """Print milliseconds per step and what they are of those by hand."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("step")
    table.add_column("ms", justify="right")
    to = [name for name in (BY_HAND, INLINED) if name in timings.seconds]
    for name in to:
        table.add_column(f"ratio to {name}", justify="right")
    for name in timings.seconds:
        ratios = [str(timings.ratio(name, reference)) if name != reference else "1" for reference in to]
        table.add_row(name, f"{1000 * timings.median(name):.2f}", *ratios)
    say(title)
    console().print(table)


def run(options: Options) -> None:
    """Measure and print, at the standard size and on the embedded cells."""
    sizes = (256, 50) if options.small else (10_000, 2_000)
    simulated = glp.register(glp.data.simulate(*sizes, seed=0).adata)
    for cells in (simulated,) if options.small else (simulated, glp.register(glp.data.pbmc68k())):
        size = f"{len(cells):,} cells x {len(cells.registration.genes):,} genes, minibatch {TRAINING.minibatch_size}"
        for estimators, times in ((False, options.rounds), (True, max(options.rounds // 4, 1))):
            what = "each estimator (as declared: several have 8 draws per cell)" if estimators else "one draw per cell"
            show(measure(cells, estimators=estimators, rounds=times), f"Training step, {what}: {size}")
