# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 Pairs, plates and shapes
#
# You will be able to
#
# - write a Pyro model and its guide as a pair, and train them on minibatches;
# - read the shape of every site, and say what a plate does to the bound;
# - find with `glp.check_pair` the five mistakes that Pyro passes over without an error.
#
# Nothing here needs a neural network. The model is so small that its posterior is known exactly, so
# a mistake can be measured.

# %%
import math
import warnings
from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO

import genailab_pyro as glp

SEED = 0
N, B = 1000, 100  # observations in the data set, and in a minibatch

# %% [markdown]
# ## The mathematics
#
# **Model.** A gene's log-expression is measured in $N$ cells. Its level $a$ is not known, and the
# noise has a standard deviation of 1:
#
# $$ p(a) = \mathcal N(0, 1), \qquad p(x_n \mid a) = \mathcal N(a, 1), \qquad n = 1, \dots, N . $$
#
# Here $a$ is the latent variable of the whole data set. In the next pages each cell has its own
# latent, $z_n$.
#
# **Guide.** The distribution that we fit is $q_\phi(a) = \mathcal N(m, s^2)$ with $\phi = (m, s)$.
#
# **Bound.** Training maximises $\mathcal L = E_q[\log p_\theta(x, a) - \log q_\phi(a)]$. Page 02
# derives it. With normal distributions all expectations are known. Write $\bar x$ for the mean of
# the data; up to a constant
#
# $$
# \mathcal L(m, s) = -\tfrac N2 \big[(m - \bar x)^2 + s^2\big]
# - \tfrac 12 \big[m^2 + s^2\big] + \log s .
# $$
#
# The three terms are the likelihood, the prior and the entropy of the guide. Set the derivative in
# $s$ to zero:
#
# $$ -N s - s + \frac 1s = 0 \quad\Longrightarrow\quad s = \frac{1}{\sqrt{N + 1}} . $$
#
# The derivative in $m$ gives $m = N \bar x / (N + 1)$. These are the mean and the standard
# deviation of the exact posterior.
#
# **Minibatch.** A step sees only $B$ of the $N$ observations, with the indices $\mathcal B$. Their
# log-probability must count $N / B$ times, so that the step is right on average:
#
# $$
# \widehat{\mathcal L} = \frac NB \sum_{n \in \mathcal B} E_q[\log p(x_n \mid a)]
# + E_q[\log p(a) - \log q_\phi(a)] .
# $$
#
# A **plate** does that. `pyro.plate("cells", N, subsample=index)` declares that there are $N$
# independent cells of which those at `index` are seen, and it multiplies their log-probabilities by
# $N / B$.
#
# **The wrong plate.** If the plate is declared with size $B$, the factor is 1. The same algebra
# then gives $s = 1 / \sqrt{B + 1}$: the posterior of $B$ observations.

# %%
exact = 1 / math.sqrt(N + 1)
assert abs(exact - 0.0316) < 5e-5
too_wide = math.sqrt((N + 1) / (B + 1))
assert abs(too_wide - 3.15) < 0.005

# %% [markdown]
# ## A pair
#
# A model and a guide are functions with the same arguments. A latent site has the same name in
# both. What the model observes is not in the guide.

# %%
pyro.set_rng_seed(SEED)
values = 0.5 + torch.randn(N)


def model(index, size=N):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("cells", size, subsample=index):
        pyro.sample("x", dist.Normal(a, 1.0), obs=values[index])


def guide(index, size=N):
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(0.1), constraint=dist.constraints.positive)
    pyro.sample("a", dist.Normal(loc, scale))


# %% [markdown]
# Training draws a minibatch and makes a step, many times. The steps scatter, so the last two thirds
# of them are averaged. Pyro keeps parameters in one store for the whole program; `scope()` gives
# each run a store of its own.


# %%
def train(model, guide, *arguments, seed=SEED, steps=800):
    """The location and the scale of the guide after training."""
    pyro.set_rng_seed(seed)
    path = []
    with pyro.get_param_store().scope():
        bound = Trace_ELBO(num_particles=256, vectorize_particles=True, max_plate_nesting=1)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02, "betas": (0.9, 0.99)}), bound)
        for _ in range(steps):
            svi.step(torch.randperm(N)[:B], *arguments)
            path.append([pyro.param("loc").item(), pyro.param("scale").log().item()])
    loc, log_scale = torch.tensor(path[steps // 3 :]).mean(0)
    return loc.item(), log_scale.exp().item()


loc, scale = train(model, guide)
assert abs(scale - exact) < 0.05 * exact
assert abs(loc - N * values.mean().item() / (N + 1)) < 0.5 * exact

# %% [markdown]
# The scale is the exact one, and the location is within half a posterior standard deviation of the
# exact one. The same pair with the wrong plate trains as smoothly:

# %%
_, wide = train(model, guide, B)
assert abs(wide / exact - too_wide) < 0.05 * too_wide

# %% [markdown]
# It comes out about 3 times too wide. No error, no warning, and a loss that falls as it should. A
# latent of each cell, $z_n$, would not show the mistake: the factor multiplies its prior, its guide
# and its likelihood alike. Latents that all cells share do.
#
# ## Shapes
#
# The shape of a draw has three parts:
#
# - the **event**: what one draw is made of, such as the $D$ latents or the $G$ genes of a cell. It
#   has one log-probability;
# - the **batch**: independent draws, each with a log-probability of its own. Every batch dimension
#   belongs to a plate;
# - `to_event(1)` moves the rightmost batch dimension to the event.
#
# Draws of the same latent for the estimate of the bound ($K$ particles) are one more plate, left of
# that of the cells. Here is a model with both kinds of latents: the level $a$ for all cells, and
# two latents $z_n$ for each,
#
# $$ p(z_n) = \mathcal N(0, I_D), \qquad p(x_n \mid a, z_n) = \mathcal N(a + z_n W, I_G) . $$

# %%
D, G, K = 2, 5, 4  # latents, genes, particles
pyro.set_rng_seed(SEED)
W = torch.randn(D, G)
cells = 0.5 + torch.randn(N, D) @ W + torch.randn(N, G)


def factor_model(index, size=N, event=True):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("cells", size, subsample=index):
        prior = dist.Normal(torch.zeros(len(index), D), 1.0)
        z = pyro.sample("z", prior.to_event(1) if event else prior)
        pyro.sample("x", dist.Normal(a[..., None] + z @ W, 1.0).to_event(1), obs=cells[index])


class FactorGuide(torch.nn.Module):
    def __init__(self, name="a", registered=True, event=True):
        super().__init__()
        self.network = torch.nn.Linear(G, D)
        self.name, self.registered, self.event = name, registered, event

    def forward(self, index, *rest):
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(0.1), constraint=dist.constraints.positive)
        pyro.sample(self.name, dist.Normal(loc, scale))
        if self.registered:
            pyro.module("network", self.network)
        with pyro.plate("cells", N, subsample=index):
            posterior = dist.Normal(self.network(cells[index]), 0.5)
            pyro.sample("z", posterior.to_event(1) if self.event else posterior)


# %% [markdown]
# `poutine.trace` records every site of a run. `poutine.replay` runs the model with the guide's
# draws. Together they are what Pyro does in a step.


# %%
def paired_traces(model, guide, index, particles):
    """Traces of model and guide with the same draws, and their log-probabilities."""

    def repeated(program):
        plate = pyro.plate("particles", particles, dim=-2) if particles > 1 else nullcontext()
        with plate:
            program(index)

    with pyro.get_param_store().scope():
        guide_trace = poutine.trace(repeated).get_trace(guide)
        model_trace = poutine.trace(poutine.replay(repeated, trace=guide_trace)).get_trace(model)
    for trace in (guide_trace, model_trace):
        trace.compute_log_prob()
    return model_trace, guide_trace


index = torch.randperm(N)[:B]
factor_guide = FactorGuide()
pyro.set_rng_seed(SEED)
model_trace, guide_trace = paired_traces(factor_model, factor_guide, index, K)
shapes = {
    name: (tuple(site["fn"].batch_shape), tuple(site["fn"].event_shape), float(site["scale"]))
    for name, site in model_trace.nodes.items()
    if name in ("a", "z", "x")
}
assert shapes == {"a": ((K, 1), (), 1.0), "z": ((K, B), (D,), N / B), "x": ((K, B), (G,), N / B)}
for name, (batch_shape, event_shape, _) in shapes.items():
    site = model_trace.nodes[name]
    assert site["value"].shape[-len(event_shape) :] == event_shape or not event_shape
    assert tuple(site["log_prob"].shape) == batch_shape  # after the factor N / B

# %% [markdown]
# Two lines of arithmetic on the two traces are the bound: the sum of the scaled log-probabilities
# of the model, less that of the guide, over the number of particles. Pyro's own `Trace_ELBO` gives
# the same number for the same draws.

# %%
by_hand = (model_trace.log_prob_sum() - guide_trace.log_prob_sum()).item() / K
with pyro.get_param_store().scope():
    pyro.set_rng_seed(SEED)
    bound = Trace_ELBO(num_particles=K, vectorize_particles=True, max_plate_nesting=1)
    by_pyro = -bound.loss(factor_model, factor_guide, index)
assert abs(by_hand - by_pyro) < 1e-6 * abs(by_pyro)

# %% [markdown]
# ## The picture
#
# On the left the plates are boxes. A circle in a box is drawn once for each of what the box counts;
# a grey circle is observed. On the right are the shapes that the cell above found. Read both
# together: each box around a circle is one dimension of its batch.

# %%
INK, BLUE, ORANGE, GREY = "#1a1a1a", "#0072B2", "#D55E00", "#9a9a9a"
picture = Figure(figsize=(10.6, 4.6), layout="constrained", facecolor="white")
left, right = picture.subplots(1, 2, width_ratios=(1, 1.25))
left.set(xlim=(0, 10), ylim=(0, 10), aspect="equal", title="Plates: who is drawn how often")
for x0, y0, width, height, colour in ((0.3, 0.3, 9.4, 9.4, ORANGE), (1.1, 1.3, 7.8, 5.6, BLUE)):
    style = {"boxstyle": "round,pad=0,rounding_size=.4", "fill": False}
    left.add_patch(FancyBboxPatch((x0, y0), width, height, ec=colour, **style))
left.text(9.4, 0.55, f"particles: K = {K}", ha="right", color=ORANGE)
left.text(8.6, 1.55, f"cells: N = {N:,}, {B} of them seen", ha="right", color=BLUE)
circles = {"$a$": (5, 8.3, "white"), "$z_n$": (2.7, 4.4, "white"), "$x_n$": (6.6, 4.4, "#dddddd")}
for label, (x0, y0, fill) in circles.items():
    left.add_patch(Circle((x0, y0), 0.85, fc=fill, ec=INK, lw=1.5, zorder=3))
    left.text(x0, y0, label, ha="center", va="center", fontsize=14, zorder=4)
for start, end in (((5.4, 7.5), (6.2, 5.2)), ((3.6, 4.4), (5.7, 4.4))):
    left.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.5})
left.text(2.7, 3.15, f"D = {D} latents", ha="center", fontsize=9)
left.text(6.6, 3.15, f"G = {G} genes", ha="center", fontsize=9)
left.set_axis_off()

right.set(xlim=(0, 10), ylim=(0, 10), title="Shapes: one batch dimension for each plate")
columns = {"site": 0.4, "batch shape": 3.1, "event shape": 6.2, "factor": 9.1}
for label, x0 in columns.items():
    right.text(x0, 8.4, label, ha="center" if x0 > 1 else "left", weight="bold", color=INK)
right.plot([0.2, 9.9], [7.9, 7.9], color=GREY, lw=1)
for row, (name, (batch_shape, event_shape, factor)) in enumerate(shapes.items()):
    y0 = 7 - 1.5 * row
    right.text(0.4, y0, {"a": "$a$", "z": "$z_n$", "x": "$x_n$"}[name], fontsize=14, va="center")
    right.text(2.55, y0, f"{batch_shape[0]}", color=ORANGE, ha="center", va="center", fontsize=13)
    right.text(3.65, y0, f"{batch_shape[1]}", color=BLUE, ha="center", va="center", fontsize=13)
    event = " ".join(map(str, event_shape)) or "none"
    right.text(6.2, y0, event, ha="center", va="center", fontsize=13)
    right.text(9.1, y0, f"{factor:g}", ha="center", va="center", fontsize=13)
right.text(2.55, 2.6, "K", color=ORANGE, ha="center", va="top")
right.text(3.65, 2.6, "cells", color=BLUE, ha="center", va="top")
right.text(6.2, 2.6, "inside one\ncell", ha="center", va="top")
right.text(9.1, 2.6, "N / B", ha="center", va="top")
right.text(0.4, 0.4, "A log-probability has the batch shape: the event is summed.")
right.set_axis_off()
picture

# %% [markdown]
# ## Five silent mistakes
#
# Each entry below is a pair with one mistake. All five make a step with a finite loss. We switch
# Pyro's validation off, as fast training loops do; with it on, only the first is spoken of, in a
# warning.
#
# | mistake | what it does |
# |---|---|
# | a site has another name in the guide | its location is never trained |
# | a network is not registered with `pyro.module` | it is never trained |
# | the plate has the size of the minibatch | the posterior of $a$ is too wide |
# | `to_event` is left out, with as many cells as latents | cells and latents are mixed up |
# | a site is scaled in the model alone | the weight $\beta$ falls on half of the KL |

# %%
beta = 0.5
two = index[:2]  # as many cells as latents


def scaled_model(index, size=N):
    with poutine.scale(scale=beta):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("cells", size, subsample=index):
        pyro.sample("x", dist.Normal(a, 1.0), obs=values[index])


mistakes = {
    "name": (
        factor_model,
        FactorGuide(name="level"),
        (index,),
        "latent site 'a' is not in the guide",
    ),
    "network": (
        factor_model,
        FactorGuide(registered=False),
        (index,),
        "add pyro.module('name', network)",
    ),
    "plate": (model, guide, (index, B), "but plate 'cells' has size 100"),
    "to_event": (
        lambda index: factor_model(index, event=False),
        FactorGuide(event=False),
        (two,),
        "is in no plate; add .to_event(1)",
    ),
    "scale": (scaled_model, guide, (index,), "is scaled by 0.5 in the model and by 1 in the guide"),
}


def first_step(model, guide, arguments):
    """The loss of one step of training."""
    with pyro.get_param_store().scope():
        pyro.set_rng_seed(SEED)
        bound = Trace_ELBO(max_plate_nesting=1)
        return SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), bound).step(*arguments)


def finding(model, guide, arguments):
    """What `glp.check_pair` says; nothing where it finds nothing."""
    try:
        glp.check_pair(model, guide, arguments, num_cells=N)
    except glp.PairError as error:
        return str(error)
    return ""


# %% [markdown]
# `glp.PairError` is a `ValueError`. Its message names the site and the fix.

# %%
for name, (wrong_model, wrong_guide, arguments, words) in mistakes.items():
    with warnings.catch_warnings(), pyro.validation_enabled(False):
        warnings.simplefilter("error")  # a warning would end the page
        assert math.isfinite(first_step(wrong_model, wrong_guide, arguments))
    assert words in finding(wrong_model, wrong_guide, arguments), name

spoken_of = set()
for name, (wrong_model, wrong_guide, arguments, _) in mistakes.items():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first_step(wrong_model, wrong_guide, arguments)
    spoken_of |= {name} if caught else set()
assert spoken_of == {"name"}

# %% [markdown]
# The right pairs pass. Also with the same scale in both programs, which is how $\beta$ is meant.

# %%
scaled_guide = poutine.scale(guide, scale=beta)
assert finding(model, guide, (index,)) == ""
assert finding(factor_model, FactorGuide(), (index,)) == ""
assert finding(factor_model, FactorGuide(), (two,)) == ""
assert finding(scaled_model, scaled_guide, (index,)) == ""

# %% [markdown]
# What each mistake does can be measured. The plate has been. **Name:** the draw of the model's `a`
# comes from the prior, so the data say nothing to the guide. The gradient in its location vanishes.
# **Network:** a step leaves it unchanged.


# %%
def gradient_of_location(guide):
    """Gradient of the loss in the guide's location."""
    with pyro.get_param_store().scope(), pyro.validation_enabled(False):
        pyro.set_rng_seed(SEED)
        loss = Trace_ELBO(max_plate_nesting=1).differentiable_loss(factor_model, guide, index)
        return torch.autograd.grad(loss, pyro.param("loc").unconstrained())[0].abs().item()


assert gradient_of_location(FactorGuide()) > 10
assert gradient_of_location(FactorGuide(name="level")) < 1e-5

for registered in (True, False):
    trained_guide = FactorGuide(registered=registered)
    before = trained_guide.network.weight.detach().clone()
    first_step(factor_model, trained_guide, (index,))
    assert torch.equal(before, trained_guide.network.weight) != registered

# %% [markdown]
# **to_event:** with two cells and two latents the log-probability of $z$ has four entries where one
# for each cell is meant. Their sum is right, so the loss looks right. What needs a number for each
# cell (importance weights, score functions, page 02 and 05) is wrong. With three or more
# particles in a plate Pyro would see the mistake, and raise; with two it takes the latents for
# them.

# %%
right_sites, _ = paired_traces(factor_model, FactorGuide(), two, 1)
wrong_model, wrong_guide, *_ = mistakes["to_event"]
wrong_sites, _ = paired_traces(wrong_model, wrong_guide, two, 1)
assert right_sites.nodes["z"]["log_prob"].shape == (2,)
assert wrong_sites.nodes["z"]["log_prob"].shape == (2, 2)

# %% [markdown]
# **Scale:** a weight $\beta$ of the KL multiplies $\log p(a) - \log q(a)$. The same algebra as
# above gives $s^2 = \beta / (N + \beta)$. With $\beta$ in the model alone, the entropy keeps the
# weight 1, and $s^2 = 1 / (N + \beta)$. The ratio of the standard deviations is $1 / \sqrt\beta$,
# here 1.41.

# %%
_, annealed = train(scaled_model, scaled_guide)
_, half_annealed = train(scaled_model, guide)
assert abs(annealed - math.sqrt(beta / (N + beta))) < 0.05 * annealed
assert abs(half_annealed / annealed - 1.41) < 0.05 * 1.41

# %% [markdown]
# The VAEs of this package come as pairs that pass, and `glp.fit` calls `check_pair` before the
# first step. Their sites are `z` and `x`, in a plate `cells`.

# %%
registered = glp.register(glp.data.pbmc68k())
vae = glp.CVAE_NB.from_registration(registered, latent_dim=10)
minibatch = registered.take(range(32))
glp.check_pair(vae.model, vae.guide, minibatch)
with pyro.plate("particles", K, dim=-2):
    x = poutine.trace(vae.model).get_trace(minibatch).nodes["x"]
assert (x["fn"].batch_shape, x["fn"].event_shape) == ((K, 32), (765,))
assert x["scale"] == 700 / 32

# %% [markdown]
# ## Change one thing
#
# Set `B = 25`. Predict how much too wide the posterior comes out with the wrong plate, and what
# becomes of the shape `(4, 100)` and of the factor 10. Then run the page. (The assertions of 3.15
# and of the words `has size 100` will have to follow.) What if $B = N$?
#
# ## Exercises
#
# 1. **Two plates.** Write a model of 6 cells and 3 genes with a plate for each: `x` is drawn in
#    both, and a level $a_g$ only in that of the genes. The plate of the cells has `dim=-2`, that of
#    the genes `dim=-1`. Predict the batch shapes of `x` and of `a`, and what becomes of them with a
#    plate of 4 particles at `dim=-3`.
# 2. **Another prior.** Let $p(a) = \mathcal N(0, \tau^2)$. Derive the exact $s$ from the bound, and
#    check it by training with $\tau = 0.02$ and $N = 1000$. How much too wide is the wrong plate
#    with $B = 100$ now?
# 3. **A broken pair.** Which two mistakes are in this pair? Find them by reading, then by
#    `glp.check_pair`, and mend them.
#
#     ```python
#     def broken_model(index):
#         a = pyro.sample("a", dist.Normal(0.0, 1.0))
#         with pyro.plate("cells", len(index)):
#             pyro.sample("x", dist.Normal(a, 1.0), obs=values[index])
#
#     free = torch.tensor(0.3, requires_grad=True)
#
#     def broken_guide(index):
#         pyro.sample("a", dist.Normal(pyro.param("loc", torch.tensor(0.0)), free))
#     ```
#
# Solutions: [solutions/00_pyro_pairs](solutions/00_pyro_pairs.py).
#
# ## Next
#
# [01 Overview](01_overview.py): a latent for each cell, a network that finds it, and what both have
# to do with PCA.
