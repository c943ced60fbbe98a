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

# %% [markdown]
# # Solutions of 00: pairs, plates and shapes

# %%
import math

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO

import genailab_pyro as glp

SEED = 0
N, B = 1000, 100

# %% [markdown]
# ## 1. Two plates
#
# `x` is in both plates: batch shape `(6, 3)`. The level `a` is only in that of the genes: `(3,)`. A
# plate of particles stands left of both, so that `x` gets `(4, 6, 3)`, and `a` gets `(4, 1, 3)`:
# the dimension of the cells is there, and of size 1.


# %%
def two_plates():
    with pyro.plate("genes", 3, dim=-1):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("cells", 6, dim=-2):
            pyro.sample("x", dist.Normal(a, 1.0))


def batch_shapes(program):
    nodes = poutine.trace(program).get_trace().nodes
    return {name: tuple(nodes[name]["fn"].batch_shape) for name in ("a", "x")}


def four_particles():
    with pyro.plate("particles", 4, dim=-3):
        two_plates()


assert batch_shapes(two_plates) == {"a": (3,), "x": (6, 3)}
assert batch_shapes(four_particles) == {"a": (4, 1, 3), "x": (4, 6, 3)}

# %% [markdown]
# ## 2. Another prior
#
# The prior's term becomes $-(m^2 + s^2) / (2 \tau^2)$. The derivative in $s$ is $-N s - s / \tau^2
# + 1 / s$, so that
#
# $$ s = \frac{1}{\sqrt{N + \tau^{-2}}} . $$
#
# With $\tau = 0.02$, $\tau^{-2} = 2500$ and $s = 1 / \sqrt{3500}$. The wrong plate gives $1 /
# \sqrt{2600}$: only 1.16 times too wide. A strong prior hides the mistake.

# %%
tau = 0.02
pyro.set_rng_seed(SEED)
values = 0.5 + torch.randn(N)


def model(index, size=N):
    a = pyro.sample("a", dist.Normal(0.0, tau))
    with pyro.plate("cells", size, subsample=index):
        pyro.sample("x", dist.Normal(a, 1.0), obs=values[index])


def guide(index, size=N):
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(0.1), constraint=dist.constraints.positive)
    pyro.sample("a", dist.Normal(loc, scale))


def trained_scale(size, steps=800):
    pyro.set_rng_seed(SEED)
    path = []
    with pyro.get_param_store().scope():
        bound = Trace_ELBO(num_particles=256, vectorize_particles=True, max_plate_nesting=1)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02, "betas": (0.9, 0.99)}), bound)
        for _ in range(steps):
            svi.step(torch.randperm(N)[:B], size)
            path.append(pyro.param("scale").log().item())
    return math.exp(sum(path[steps // 3 :]) / len(path[steps // 3 :]))


exact = 1 / math.sqrt(N + tau**-2)
too_wide = math.sqrt((N + tau**-2) / (B + tau**-2))
assert abs(too_wide - 1.16) < 0.005
assert abs(trained_scale(N) - exact) < 0.05 * exact
assert abs(trained_scale(B) - too_wide * exact) < 0.05 * exact

# %% [markdown]
# ## 3. A broken pair
#
# The plate has the size of the minibatch, and `free` is no parameter that Pyro knows, so it never
# trains.


# %%
def broken_model(index):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("cells", len(index)):
        pyro.sample("x", dist.Normal(a, 1.0), obs=values[index])


free = torch.tensor(0.3, requires_grad=True)


def broken_guide(index):
    pyro.sample("a", dist.Normal(pyro.param("loc", torch.tensor(0.0)), free))


def mended_model(index):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("cells", N, subsample=index):
        pyro.sample("x", dist.Normal(a, 1.0), obs=values[index])


def mended_guide(index):
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(0.3), constraint=dist.constraints.positive)
    pyro.sample("a", dist.Normal(loc, scale))


index = torch.arange(B)
try:
    glp.check_pair(broken_model, broken_guide, (index,), num_cells=N)
    found = []
except glp.PairError as error:
    found = str(error).split("\n  - ")[1:]
assert len(found) == 2
assert "but plate 'cells' has size 100" in found[0]
assert "so they will not train" in found[1]
glp.check_pair(mended_model, mended_guide, (index,), num_cells=N)
