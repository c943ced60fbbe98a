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
# # Solutions of 02: the evidence lower bound

# %%
import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch.distributions import kl_divergence

import genailab_pyro as glp

SEED, REPEATS, copies = 0, 20, 4_000
x = 2.0
posterior = dist.Normal(x / 2, math.sqrt(0.5))
log_evidence = dist.Normal(0.0, math.sqrt(2.0)).log_prob(torch.tensor(x)).item()


def model():
    with pyro.plate("cells", copies):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.full((copies,), x))


def missing(scale, particles):
    """Mean and standard error of log p(x) less the bound with the guide N(1, scale^2)."""

    def guide():
        with pyro.plate("cells", copies):
            pyro.sample("z", dist.Normal(1.0, scale))

    model.max_plate_nesting = guide.max_plate_nesting = 1
    parts = glp.estimators.get("iwae", num_particles=particles).bind(model, guide)
    pyro.set_rng_seed(SEED)
    values = [log_evidence + parts[2].loss(*parts[:2]) / copies for _ in range(REPEATS)]
    return np.mean(values), np.std(values, ddof=1) / math.sqrt(REPEATS)


# %% [markdown]
# ## 1. How many particles?
#
# With $u = z - 1$, the posterior is $\mathcal N(0, 1/2)$ and the guide $\mathcal N(0, 1)$ in $u$:
#
# $$ \int \frac{p(z \mid x)^2}{q(z)}\, dz = \frac{\sqrt{2\pi}}{\pi} \int e^{-2 u^2 + u^2 / 2}\, du
# = \frac{\sqrt{2\pi}}{\pi} \sqrt{\frac{2\pi}{3}} = \frac{2}{\sqrt 3} . $$
#
# The relative variance is $2 / \sqrt 3 - 1 = 0.155$, so $0.155 / (2K) < 0.01$ needs $K = 8$. The
# prior, with 1.25, needs 63.

# %%
relative_variance = 2 / math.sqrt(3) - 1
assert abs(relative_variance - 0.155) < 5e-4
needed = math.ceil(relative_variance / 0.02)
assert needed == 8
value, error = missing(1.0, needed)
assert value < 0.01 + 5 * error
value_of_half, error_of_half = missing(1.0, needed // 2)
assert value_of_half > 0.01 + 5 * error_of_half
assert math.ceil(1.25 / 0.02) == 63

# %% [markdown]
# ## 2. Too narrow
#
# With a variance $s^2$ the exponent is $-2 u^2 + u^2 / (2 s^2)$. The integral is finite only for
# $s^2 > 1/4$. The guide $\mathcal N(1, 0.09)$ is below: the average of its weights converges, but a
# single weight can be as large as all others together. With 64 particles it misses more than
# $\mathcal N(1, 1)$ does.

# %%
assert 0.3**2 < 0.25
narrow, narrow_error = missing(0.3, 64)
wide, wide_error = missing(1.0, 64)
assert narrow - wide > 5 * math.hypot(narrow_error, wide_error)
assert narrow > 10 * wide

# %% [markdown]
# ## 3. The bound chooses the wrong model
#
# Under B, $p(x) = \mathcal N(0, 5)$, and the posterior is $\mathcal N(4x/5, 4/5) = \mathcal N(1.6,
# 0.8)$. B is the more probable one, but the guide suits A, and the bound takes off B's KL. A bound
# compares models only as far as their guides are equally good.

# %%
evidence_of_b = dist.Normal(0.0, math.sqrt(5.0)).log_prob(torch.tensor(x)).item()
q = dist.Normal(1.0, 0.7)
elbo_of_a = log_evidence - kl_divergence(q, posterior).item()
elbo_of_b = evidence_of_b - kl_divergence(q, dist.Normal(1.6, math.sqrt(0.8))).item()
assert evidence_of_b > log_evidence + 0.1
assert elbo_of_b < elbo_of_a - 0.1
