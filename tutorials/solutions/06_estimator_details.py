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
# # Solutions of 06 Estimator details
#
# The model, the guides and the sums over a grid are those of the page.

# %%
import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import nn

import genailab_pyro as glp

SEED = 0
COPIES = 20_000
START, POSTERIOR = (0.0, 1.0), (1.0, math.sqrt(0.5))  # loc and scale of the guide


class Pair:
    """The model and the guide N(loc, scale) of x, a value for each independent copy."""

    def __init__(self, x, loc, scale):
        self.x = torch.as_tensor(x, dtype=torch.float64)
        self.loc = nn.Parameter(torch.zeros_like(self.x) + torch.as_tensor(loc))
        self.scale = nn.Parameter(torch.zeros_like(self.x) + scale)

    def programs(self):
        zero = torch.zeros((), dtype=torch.float64)

        def model():
            with pyro.plate("cells", len(self.x), dim=-1):
                z = pyro.sample("z", dist.Normal(zero, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=self.x)

        def guide():
            with pyro.plate("cells", len(self.x), dim=-1):
                pyro.sample("z", dist.Normal(self.loc, self.scale))

        model.max_plate_nesting = guide.max_plate_nesting = 1  # else Pyro runs them once more to see
        return model, guide


def gradients(programs, parameters, estimator, seed=SEED, times=1):
    """Gradients of the ELBO in some parameters, one for each copy, by the last of some calls."""
    model, guide, elbo = glp.estimators.get(estimator).bind(*programs)
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(seed)
        for _ in range(times):
            found = torch.autograd.grad(-elbo(model, guide)(), parameters)
    return [gradient.numpy() for gradient in found]


def variance_and_error(draws):
    """The variance of some draws, and its Monte Carlo standard error."""
    variance = draws.var()
    fourth = ((draws - draws.mean()) ** 4).mean()
    return variance, math.sqrt((fourth - variance**2) / len(draws))


NOISE = np.linspace(-12, 12, 100_001)
MASS = np.exp(-0.5 * NOISE**2) / math.sqrt(2 * math.pi) * (NOISE[1] - NOISE[0])


def log_normal(value, mean, scale):
    return -0.5 * ((value - mean) / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)


def mean(values):
    return (values * MASS).sum()


def variance(values):
    return mean(values**2) - mean(values) ** 2


def parts(loc, scale, x=2.0):
    """The cost f, the slope of log p(x, z), and the score in the location, on the grid."""
    z = loc + scale * NOISE
    cost = log_normal(z, 0, 1) + log_normal(x, z, 1) - log_normal(z, loc, scale)
    return cost, x - 2 * z, NOISE / scale


class Known(glp.estimators.Baseline):
    """A baseline that is told its value."""

    value = 0.0

    def forward(self, site):
        return torch.tensor(Known.value, dtype=torch.float64)


glp.estimators.register_baseline("known", Known)
with_baseline = glp.Estimator(rule="score", baseline="known")


# %% [markdown]
# ## 1. Baselines that harm
#
# The mean of $(f - b) s$ does not depend on b, and $E[(f - b)^2 s^2] = E[f^2 s^2] - 2 b E[f s^2] +
# b^2 E[s^2]$ is below its value at $b = 0$ where b is between 0 and $2 b^*$. All others harm.

# %%
cost, slope, score = parts(*START)
best = mean(cost * score**2) / mean(score**2)
plain = variance(cost * score)
assert best < 0  # so the interval is (2 b*, 0)
assert abs(variance((cost - 2 * best) * score) - plain) < 1e-6

Known.value = 3 * best
pair = Pair(np.full(COPIES, 2.0), *START)
(draws,) = gradients(pair.programs(), [pair.loc], with_baseline)
found, error = variance_and_error(draws)
assert found - 5 * error > plain, "a baseline beyond twice the best one does not harm"

# %% [markdown]
# ## 2. Which credit?
#
# The upper guide is at the wrong place: u varies with $z_2$, and is noise to the score of z.


# %%
class Hierarchy:
    """Two layers of latents and their guide, in independent copies."""

    def __init__(self, m2, s2, m, c, s):
        self.values = (m2, s2, m, c, s)
        self.loc = nn.Parameter(torch.full((COPIES,), m, dtype=torch.float64))

    def programs(self):
        m2, s2, _, c, s = self.values
        zero = torch.zeros(COPIES, dtype=torch.float64)

        def model():
            with pyro.plate("cells", COPIES, dim=-1):
                z2 = pyro.sample("z2", dist.Normal(zero, 1.0))
                z = pyro.sample("z", dist.Normal(z2, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=zero + 2.0)

        def guide():
            with pyro.plate("cells", COPIES, dim=-1):
                z2 = pyro.sample("z2", dist.Normal(zero + m2, s2))
                pyro.sample("z", dist.Normal(self.loc + c * z2, s))

        model.max_plate_nesting = guide.max_plate_nesting = 1
        return model, guide

    def exact(self, b_all, b_down):
        """Mean of the gradient in m, and its variances by each credit with a baseline each."""
        m2, s2, m, c, s = self.values
        noise = np.linspace(-8, 8, 401)
        mass = np.exp(-0.5 * noise**2) / math.sqrt(2 * math.pi) * (noise[1] - noise[0])
        weight = mass[:, None] * mass
        z2 = m2 + s2 * noise[:, None]
        z = m + c * z2 + s * noise
        up = log_normal(z2, 0, 1) - log_normal(z2, m2, s2)
        down = log_normal(z, z2, 1) + log_normal(2, z, 1) - log_normal(z, m + c * z2, s)
        score = noise / s
        if b_all is None:
            b_all, b_down = (weight * (up + down)).sum(), (weight * down).sum()
        gradients = {"plates": (up + down - b_all) * score, "graph": (down - b_down) * score}
        middle = (weight * gradients["graph"]).sum()
        spread = {key: (weight * g**2).sum() - middle**2 for key, g in gradients.items()}
        return middle, spread, {"plates": b_all, "graph": b_down}


hierarchy = Hierarchy(-1.0, 1.0, 0.0, 1.0, 1.0)
middle, exact, baselines = hierarchy.exact(None, None)
for credit in ("plates", "graph"):
    Known.value = float(baselines[credit])
    estimator = glp.Estimator(rule="score", credit=credit, baseline="known")
    (draws,) = gradients(hierarchy.programs(), [hierarchy.loc], estimator)
    found, error = variance_and_error(draws)
    assert abs(found - exact[credit]) < 5 * error, (credit, found, exact)
assert exact["graph"] < 0.9 * exact["plates"], "the graph is not the better credit here"
{key: round(float(value), 1) for key, value in exact.items()}


# %% [markdown]
# ## 3. A baseline that looks at the draw
#
# $(f - f)\, s = 0$: the gradient is 0 for every draw, and so is its mean, where 2 is right. A
# baseline must not depend on the draw whose cost it lowers.


# %%
class Cheat(glp.estimators.Baseline):
    """The cost of the draw itself."""

    def forward(self, site):
        return site.cost


glp.estimators.register_baseline("cheat", Cheat)
(draws,) = gradients(pair.programs(), [pair.loc], glp.Estimator(rule="score", baseline="cheat"))
assert np.abs(draws).max() < 1e-10
assert abs(mean(cost * score) - 2) < 1e-6
