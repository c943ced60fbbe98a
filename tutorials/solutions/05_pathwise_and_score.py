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
# # Solutions to 05 Pathwise against score function
#
# The pair, and what is drawn from it, are those of the tutorial.

# %%
import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch

import genailab_pyro as glp

COPIES = 100_000
X = 2.0


class Pair(torch.nn.Module):
    max_plate_nesting = 1

    def __init__(self, loc, scale, copies=COPIES):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.full((copies,), loc, dtype=torch.float64))
        self.scale = torch.nn.Parameter(torch.full((copies,), scale, dtype=torch.float64))

    def model(self):
        zero = torch.zeros((), dtype=torch.float64)
        with pyro.plate("copies", len(self.loc), dim=-1):
            z = pyro.sample("z", dist.Normal(zero, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=zero + X)

    model.max_plate_nesting = 1

    def forward(self):
        with pyro.plate("copies", len(self.loc), dim=-1):
            pyro.sample("z", dist.Normal(self.loc, self.scale))


def draw(pair, estimator, *, parameter="loc", seed=0):
    model, guide, elbo = estimator.bind(pair.model, pair)
    pyro.set_rng_seed(seed)
    loss = elbo.differentiable_loss(model, guide)
    (gradient,) = torch.autograd.grad(-loss, getattr(pair, parameter))
    return gradient


def variance(draws):
    found = draws.var().item()
    fourth = ((draws - draws.mean()) ** 4).mean().item()
    return found, math.sqrt((fourth - found**2) / len(draws))


START, POSTERIOR = (0.0, 1.0), (1.0, math.sqrt(0.5))

# %% [markdown]
# ## 1. The other parameter
#
# At fixed noise $\partial a/\partial s = 1/s$, $\partial b/\partial s = x - 2m$ and
# $\partial c/\partial s = -2s$. So
#
# $$ g = \frac1s + (x - 2m)\,\epsilon - 2s\,\epsilon^2 . $$
#
# $\epsilon$ and $\epsilon^2$ are uncorrelated, with variances 1 and 2:
# $\operatorname{Var} g = (x - 2m)^2 + 8s^2$. That is 12 at the start and 4 at the posterior. The
# path scatters more in the scale than in the location.

# %%
for (loc, scale), exact in ((START, 12.0), (POSTERIOR, 4.0)):
    assert abs((X - 2 * loc) ** 2 + 8 * scale**2 - exact) < 1e-9
    gradients = draw(Pair(loc, scale), glp.estimators.get("pathwise"), parameter="scale")
    found, error = variance(gradients)
    print(f"loc {loc}, scale {scale:.3f}: exact {exact}, found {found:.3f}")
    assert abs(found - exact) < 5 * error
    mean = 1 / scale - 2 * scale
    assert abs(gradients.mean().item() - mean) < 5 * math.sqrt(found / COPIES)

# %% [markdown]
# ## 2. When a score beats the path
#
# At $m = 1$ we have $b = 0$. With $K = 2$ leave-one-out has the variance $12c^2/(2s^2)$ and the
# path $4s^2/2$. The first is smaller where $12c^2 < 4s^4$, that is where
# $|\tfrac12 - s^2| < s^2/\sqrt3$. So
#
# $$ \frac{1/2}{1 + 1/\sqrt3} < s^2 < \frac{1/2}{1 - 1/\sqrt3}, \qquad 0.563 < s < 1.088 . $$
#
# The interval holds the scale of the posterior, $\sqrt{1/2} = 0.707$.

# %%
low, high = (math.sqrt(0.5 / (1 + sign / math.sqrt(3))) for sign in (1, -1))
assert abs(low - 0.563) < 0.001
assert abs(high - 1.088) < 0.001
for scale in (0.4, 0.9, 1.4):
    pair = Pair(1.0, scale)
    loo, loo_error = variance(draw(pair, glp.estimators.get("score-loo", num_particles=2)))
    path, path_error = variance(draw(pair, glp.estimators.get("pathwise", num_particles=2)))
    print(f"scale {scale}: score-loo {loo:.3f}, pathwise {path:.3f}")
    assert abs(loo - 12 * (0.5 - scale**2) ** 2 / (2 * scale**2)) < 5 * loo_error
    assert abs(path - 2 * scale**2) < 5 * path_error
    assert (loo < path) == (low < scale < high)

# %% [markdown]
# ## 3. The crossing, exactly
#
# Over a period of $m$ the mean of $\cos 2km$ is 0 and that of $\sin^2 km$ is $1/2$. What is left is
#
# $$ \frac{k^2}{2} - \frac{k^2}{2} e^{-k^2s^2} \quad\text{and}\quad
# \frac{1}{2s^2} - \frac{k^2}{2} e^{-k^2s^2} . $$
#
# Both have lost the same square of the mean. They are equal where $k^2 = 1/s^2$.


# %%
def wave(k, loc, scale):
    turn, fade = k * loc, np.exp(-((k * scale) ** 2))
    mean_squared = k**2 * np.sin(turn) ** 2 * fade
    path = k**2 / 2 * (1 - np.cos(2 * turn) * fade**2) - mean_squared
    swing = np.cos(2 * turn) * (1 - 4 * (k * scale) ** 2) * fade**2
    return path, (1 + swing) / (2 * scale**2) - mean_squared


for k in (0.5, 2.0, 5.0, 10.0):
    period = np.arange(1000) / 1000 * 2 * np.pi / k
    path, score = (values.mean() for values in wave(k, period, 1 / k))
    below, above = ([v.mean() for v in wave(k, period, factor / k)] for factor in (0.9, 1.1))
    print(f"k = {k}: path {path:.6f}, score {score:.6f}")
    assert abs(path - score) < 1e-9 * path
    assert below[0] < below[1]
    assert above[0] > above[1]

# %% [markdown]
# ## The thing to change
#
# With $m = s = 1$ the prediction $(ks)^2$ is right at 10, within a fifth at 1, and wrong at 0.5: the
# ratio is 0.086 and not 0.25. There $e^{-k^2s^2}$ is 0.78, so that the terms with a cosine and the
# square of the mean, which both variances have lost, are no longer small.

# %%
ratios = {k: path / score for k in (0.5, 1.0, 10.0) for path, score in [wave(k, 1.0, 1.0)]}
assert abs(ratios[10.0] / 100 - 1) < 0.01
assert abs(ratios[1.0] - 0.83) < 0.005
assert abs(ratios[0.5] - 0.086) < 0.0005
