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
# # 06 Estimator details
#
# A path and a score both give the gradient of the ELBO. This page is about what is done to them
# afterwards: terms that are left out, costs that are not charged, numbers that are subtracted.
# None of it may change the mean. You will be able to
#
# - say why sticking the landing has no variance at the posterior, and why pathwise has;
# - say when Pyro's `Trace_ELBO` and `TraceGraph_ELBO` differ, and which one is then the better;
# - choose the number of particles K: it helps some estimators, and harms one.

# %% [markdown]
# ## The pieces of a gradient
#
# The model is $p_\theta(x, z) = p(z)\, p_\theta(x \mid z)$, the guide $q_\phi(z \mid x)$. Call
#
# $$f(z) = \log p_\theta(x, z) - \log q_\phi(z \mid x), \qquad \mathcal L = E_q[f(z)]$$
#
# the cost of a draw and the ELBO. With a path $z = g_\phi(\varepsilon)$ the derivative of one draw
# has two parts, since $\phi$ is in the draw and in the density:
#
# $$\frac{d f}{d\phi} =
# \underbrace{\frac{\partial f}{\partial z}\frac{\partial z}{\partial\phi}}_{\text{path}}
# \;-\; \underbrace{\frac{\partial \log q_\phi(z \mid x)}{\partial\phi}}_{\text{score}\ h(z)}.$$
#
# The score has mean zero: $E_q[h] = \int \partial_\phi q = \partial_\phi 1 = 0$. Leaving it out, or
# adding a multiple of it, keeps the mean. What is on this page follows from that one line.
#
# - *Pathwise* keeps both parts. *Sticking the landing* (`stl`) keeps the path alone.
# - The *score function* needs no path: $\nabla_\phi \mathcal L = E_q[f h]$. As $E_q[b\, h] = 0$ for every
#   $b$ that does not depend on the draw, $(f - b)\, h$ is as good: b is a *baseline*.
#
# Everything is checked on a model whose numbers are known. The prior is $N(0, 1)$, the likelihood
# $N(z, 1)$, the observation $x = 2$. The posterior is $N(1, 1/2)$. The guide is $N(m, s^2)$.
# Each copy has parameters of its own, so that one call gives as many independent gradients as there
# are copies.

# %%
import math

import matplotlib.pyplot as plt
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


# %% [markdown]
# The exact means and variances are sums over a fine grid of the guide's noise.

# %%
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


# %% [markdown]
# ## Sticking the landing
#
# At the posterior, $f(z) = \log p(x)$ for every $z$. Its slope is zero, so the path part is zero
# for every single draw: `stl` has variance 0 there. Pathwise is then the score alone, with a minus
# sign, and scatters by $1/s^2 = 2$. Away from the posterior nothing says which is the better: at
# the start the variances are 1 and 4.

# %%
for loc, scale in (START, POSTERIOR):
    cost, slope, score = parts(loc, scale)
    exact = {"pathwise": variance(slope), "stl": variance(slope + score)}
    pair = Pair(np.full(COPIES, 2.0), loc, scale)
    for name in ("pathwise", "stl"):
        draws, _ = gradients(pair.programs(), [pair.loc, pair.scale], name)
        found, error = variance_and_error(draws)
        assert abs(found - exact[name]) < 5 * error + 1e-10, (name, found, exact[name])
assert abs(exact["pathwise"] - 2) < 1e-6  # at the posterior
assert exact["stl"] < 1e-10

landed = Pair(np.full(1000, 2.0), *POSTERIOR)
for draws in gradients(landed.programs(), [landed.loc, landed.scale], "stl"):
    assert np.abs(draws).max() < 1e-6, "sticking the landing scatters at the posterior"

# %% [markdown]
# The mean does not tell them apart, in the location or in the scale.

# %%
away = Pair(np.full(COPIES, 2.0), *START)
by_path = gradients(away.programs(), [away.loc, away.scale], "pathwise", seed=SEED)
by_stl = gradients(away.programs(), [away.loc, away.scale], "stl", seed=SEED + 1)
for one, other in zip(by_path, by_stl, strict=True):
    error = math.sqrt((one.var() + other.var()) / COPIES)
    assert abs(one.mean() - other.mean()) < 5 * error, "leaving out the score changed the mean"

# %% [markdown]
# ## Baselines
#
# The variance of $(f - b)\,h$ is a parabola in b. Setting its derivative to zero gives the best
# constant,
#
# $$b^* = \frac{E_q[f h^2]}{E_q[h^2]},$$
#
# which is near the mean of f but not the same. A baseline of your own is a class with `forward`.


# %%
class Known(glp.estimators.Baseline):
    """A baseline that is told its value."""

    value = 0.0

    def forward(self, site):
        return torch.tensor(Known.value, dtype=torch.float64)


glp.estimators.register_baseline("known", Known)
with_baseline = glp.Estimator(rule="score", baseline="known")

table = {}
for point in (START, POSTERIOR):
    cost, slope, score = parts(*point)
    best = mean(cost * score**2) / mean(score**2)
    pair = Pair(np.full(COPIES, 2.0), *point)
    for name, value in {"none": 0.0, "mean": mean(cost), "best": best}.items():
        Known.value = value
        (draws,) = gradients(pair.programs(), [pair.loc], with_baseline)
        found, error = variance_and_error(draws)
        exact = variance((cost - value) * score)
        table[name, point] = exact
        assert abs(found - exact) < 5 * error + 1e-10, (name, found, exact)

assert [round(table[name, START], 1) for name in ("none", "mean", "best")] == [29.0, 10.5, 9.5]
assert round(table["none", POSTERIOR], 1) == 10.3
assert table["mean", POSTERIOR] < 1e-10

# %% [markdown]
# At the start a baseline takes the variance from 29.0 to 10.5 (the mean) or 9.5 (the best). At the
# posterior f is constant, the baseline is all of it, and 10.3 becomes 0: the score function can
# land, too.
#
# **Leave-one-out** needs no knowledge: the baseline of particle k is the mean of the other $K - 1$.
# Written out, the estimate is the sample covariance of f and h,
#
# $$\frac1K \sum_k \Big(f_k - \frac{1}{K-1}\sum_{j \ne k} f_j\Big) h_k
#   = \frac{1}{K-1} \sum_k (f_k - \bar f)(h_k - \bar h),$$
#
# since $\sum_k (f_k - \bar f) = 0$. The variance of a sample covariance is known: with the central
# moments $\mu_{22} = E[(f - Ef)^2 h^2]$, $\sigma_{fh}$, $\sigma_f^2$ and $\sigma_h^2$,
#
# $$\frac{\mu_{22}}{K} - \frac{K - 2}{K (K - 1)}\, \sigma_{fh}^2
#   + \frac{\sigma_f^2 \sigma_h^2}{K (K - 1)}.$$

# %%
K = 8
cost, slope, score = parts(*START)
centred = cost - mean(cost)
exact = mean(centred**2 * score**2) / K - (K - 2) / (K * (K - 1)) * mean(centred * score) ** 2
exact += mean(centred**2) * mean(score**2) / (K * (K - 1))
pair = Pair(np.full(COPIES, 2.0), *START)
(draws,) = gradients(pair.programs(), [pair.loc], glp.estimators.get("score-loo", num_particles=K))
found, error = variance_and_error(draws)
assert abs(found - exact) < 5 * error, (found, exact)
assert abs(draws.mean() - mean(cost * score)) < 5 * draws.std() / math.sqrt(COPIES)

# %% [markdown]
# **One number for all cells is not enough.** Cells differ in $\log p(x_n)$, on real counts by tens
# of nats. Put every cell at its own posterior, $N(x_n / 2, 1/2)$. Then $f_n = \log p(x_n)$ with
# $p(x_n) = N(0, 2)$, whatever is drawn. A constant baseline b leaves $(f_n - b)\, h_n$, with
# variance $\frac1N \sum_n (f_n - b)^2 / s^2$ over cells; a number for each cell leaves nothing.
# Both learn from their first call.

# %%
x = np.linspace(-6, 6, COPIES)
evidence = log_normal(x, 0, math.sqrt(2))
cells = Pair(x, x / 2, math.sqrt(0.5))
found = {}
for kind in ("constant", "cell-average"):
    estimator = glp.Estimator(rule="score", baseline=kind)
    (found[kind],) = gradients(cells.programs(), [cells.loc], estimator, times=2)

exact = ((evidence - evidence.mean()) ** 2).mean() / 0.5
left, error = variance_and_error(found["constant"])
assert abs(left - exact) < 5 * error, (left, exact)
assert found["cell-average"].var() < 1e-10, "a number for each cell leaves something at the posterior"

# %% [markdown]
# ## Which costs does a score multiply?
#
# `Trace_ELBO` multiplies the score of a site by all costs in its plates. `TraceGraph_ELBO`
# multiplies it by the costs downstream of the site only. A cost c that is not downstream does not
# depend on z, given what z was drawn from, so $E[c\, h] = E[c\, E(h \mid \text{before})] = 0$:
# dropping it keeps the mean.
#
# With one latent, every cost is downstream of it. The two are the same estimator, draw by draw.

# %%
pair = Pair(np.full(1000, 2.0), *START)
(by_plates,) = gradients(pair.programs(), [pair.loc], "score")
(by_graph,) = gradients(pair.programs(), [pair.loc], "score-graph")
assert np.abs(by_plates - by_graph).max() < 1e-10, "with one latent the two differ"

# %% [markdown]
# With two layers, $z_2 \to z \to x$, they differ. Let
#
# $$z_2 \sim N(0, 1), \quad z \sim N(z_2, 1), \quad x \sim N(z, 1), \qquad
#   q(z_2) = N(m_2, s_2^2), \quad q(z \mid z_2) = N(m + c\, z_2,\, s^2).$$
#
# The cost splits into $f = u + d$. Downstream of z is
# $d = \log p(z \mid z_2) + \log p(x \mid z) - \log q(z \mid z_2)$, and
# $u = \log p(z_2) - \log q(z_2)$ is not.
#
# The exact posterior of x = 2 is in this guide: $m_2 = 2/3$, $s_2^2 = 2/3$, $m = 1$, $c = 1/2$,
# $s^2 = 1/2$. The exact variances are sums over a grid of both noises.


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


places = {
    "start": Hierarchy(0.0, 2.0, 0.0, 1.0, 1.0),
    "posterior": Hierarchy(2 / 3, math.sqrt(2 / 3), 1.0, 0.5, math.sqrt(0.5)),
}
spreads = {}
for place, hierarchy in places.items():
    for given in (0.0, None):
        middle, exact, baselines = hierarchy.exact(given, given)
        for credit in ("plates", "graph"):
            Known.value = baselines[credit]
            estimator = glp.Estimator(rule="score", credit=credit, baseline="known")
            (draws,) = gradients(hierarchy.programs(), [hierarchy.loc], estimator)
            found, error = variance_and_error(draws)
            assert abs(found - exact[credit]) < 5 * error + 1e-8, (place, credit, found, exact)
            assert abs(draws.mean() - middle) < 5 * draws.std() / math.sqrt(COPIES) + 1e-8
            spreads[place, "mean" if given is None else "none", credit] = exact[credit]

# %% [markdown]
# So the graph has less variance? Not always.

# %%
assert spreads["posterior", "mean", "plates"] < 1e-6 < 0.1 < spreads["posterior", "mean", "graph"]
assert spreads["start", "mean", "graph"] < 0.8 * spreads["start", "mean", "plates"]
assert [round(spreads["start", "mean", key], 1) for key in ("plates", "graph")] == [63.0, 46.5]
{key: round(float(value), 2) for key, value in spreads.items()}

# %% [markdown]
# At this start, where the guide of $z_2$ is too wide, the graph has 46.5 and the plates 63.0: u is
# noise, and is better left out. At the posterior, all costs together are the constant $\log p(x)$:
# with a baseline they leave no variance. The graph has thrown away the part that made them
# constant, and scatters. What is not downstream adds nothing to the mean; it is noise, or it
# cancels noise.

# %% [markdown]
# ## More particles
#
# Averaging K gradients leaves the mean and divides the variance by K, so the signal-to-noise ratio
#
# $$\mathrm{SNR}(K) = \frac{|\text{mean}|}{\text{standard deviation}}$$
#
# grows like $\sqrt K$. The importance-weighted bound is another objective in every K:
#
# $$L_K = E \log \frac1K \sum_k w_k, \qquad w_k = \frac{p_\theta(x, z_k)}{q_\phi(z_k \mid x)}.$$
#
# Let $r = w / p(x)$ and $V = \mathrm{Var}_q(r)$. A second-order expansion of the logarithm around 1
# gives $L_K \approx \log p(x) - V / (2K)$. The guide matters less and less, so its gradient
# shrinks:
#
# $$\text{mean} \approx -\frac{1}{2K} \frac{dV}{d\phi}, \qquad
#   \text{standard deviation (IWAE)} \approx \frac{1}{\sqrt K}
#   \sqrt{E_q\Big[r^2 \Big(\frac{d f}{d\phi}\Big)^2\Big]}.$$
#
# The ratio falls like $1/\sqrt K$: **with more particles IWAE tells the guide less**. The doubly
# reparameterised gradient (`dreg`) turns the score part of $df/d\phi$ into a path once more. Each
# of its terms has a square of a normalised weight, of order $1/K^2$: their sum scatters like
# $K^{-3/2}$, and the ratio grows like $\sqrt K$ again.

# %%
LOC, SCALE = 0.7, 0.8  # a guide that is near the posterior, and not at it
cost, slope, score = parts(LOC, SCALE)
ratio = np.exp(cost - log_normal(2, 0, math.sqrt(2)))
limit_mean = 0.5 * mean(ratio**2 * score)  # -1/2 dV/dphi
limit_noise = math.sqrt(mean(ratio**2 * slope**2))

particles = [4, 8, 16, 32, 64]
pair = Pair(np.full(COPIES, 2.0), LOC, SCALE)
snr, seen = {}, {}
for name in ("stl", "pathwise", "dreg", "iwae"):
    for number in particles:
        estimator = glp.estimators.get(name, num_particles=number)
        (draws,) = gradients(pair.programs(), [pair.loc], estimator)
        seen[name, number] = draws.mean(), draws.std()
        snr[name, number] = draws.mean() / draws.std()

last = particles[-1]
centre, noise = seen["dreg", last]
assert abs(last * centre - limit_mean) < 0.05 * limit_mean, (last * centre, limit_mean)
assert abs(math.sqrt(last) * seen["iwae", last][1] - limit_noise) < 0.05 * limit_noise
assert abs(seen["iwae", last][0] - centre) < 5 * seen["iwae", last][1] / math.sqrt(COPIES)

# %% [markdown]
# From 4 particles to 64, the laws say: four times the ratio for `stl` and `pathwise`, a quarter of
# it for `iwae`, and in the limit four times for `dreg`.


# %%
def growth(name):
    return snr[name, 64] / snr[name, 4]


assert abs(growth("stl") - 4) < 0.19
assert abs(growth("pathwise") - 4) < 0.19
assert growth("iwae") < 0.5, "more particles do not harm the guide's gradient"
assert growth("dreg") > 3.5, "the doubly reparameterised gradient does not gain"

picture, axes = plt.subplots(figsize=(7, 4.4), layout="constrained")
shown = {
    "stl": ("#009E73", "stl (ELBO)"),
    "pathwise": ("#56B4E9", "pathwise (ELBO)"),
    "dreg": ("#0072B2", "dreg (IW bound)"),
    "iwae": ("#D55E00", "iwae (IW bound)"),
}
for name, (colour, label) in shown.items():
    values = [snr[name, number] for number in particles]
    axes.plot(particles, values, "o-", color=colour, linewidth=2)
    axes.annotate(label, (particles[-1], values[-1]), (8, -3), textcoords="offset points", color=colour)
grid = np.array(particles)
expected = limit_mean / limit_noise / np.sqrt(grid)
axes.plot(grid, expected, ":", color="#5c5c5c")
axes.annotate("theory: falls like 1/√K", (8, expected[1]), (-30, -26), textcoords="offset points", color="#5c5c5c")
axes.set_xscale("log", base=2)
axes.set_yscale("log")
axes.set_xticks(particles, [str(number) for number in particles])
axes.set_xlim(3.6, 190)
axes.set_xlabel("Number of particles K per cell")
axes.set_ylabel("Signal-to-noise of the guide's gradient (no unit)")
axes.spines[["top", "right"]].set_visible(False)
axes.set_title("More particles help three gradients and harm the fourth", loc="left", fontweight="bold")
picture

# %% [markdown]
# ## Change one thing
#
# Set `LOC, SCALE = 0.5, 1.0`: a guide that is further from the posterior. Predict first, for each
# of the four curves, whether it rises or falls. (Two of them keep the score part, which scatters
# even where the guide is good. The other two have no noise at the posterior.)

# %% [markdown]
# ## Exercises
#
# 1. At the start, for which constant baselines b is the variance of $(f - b)\,h$ larger than
#    without any baseline? Find the interval outside of which b harms, and check one value beyond
#    its end by draws.
# 2. In the hierarchy, let $q(z_2) = N(-1, 1)$, $m = 0$, $c = 1$ and $s = 1$. Which credit has less
#    variance, with the mean as baseline each? Compute both, and check them by draws.
# 3. Take `rule="score"` and a baseline that is the cost itself, `return site.cost`. What is the
#    mean of the gradient, and which rule for baselines does it break?

# %% [markdown]
# ## Next
#
# [07 Optimization](07_optimization.py): the gradient is good, now take the steps.
