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
# # 10 The negative binomial likelihood
#
# The reconstruction term of a VAE for counts is a log-probability, $\log p_\theta(x \mid z)$.
# This page takes the negative binomial one apart. You will be able to
#
# - derive it from a Poisson whose rate scatters, and say what each part of the formula does;
# - write down its gradient, and say why a gene with many counts cannot drown the others;
# - see where the textbook formula breaks in single precision, and what to call instead.

# %% [markdown]
# ## The mathematics
#
# **One notation.** The model is $p_\theta(x, z) = p(z)\, p_\theta(x \mid z)$, the guide
# $q_\phi(z \mid x)$, and the bound
#
# $$
# \mathcal{L} = E_{q}\big[\log p_\theta(x, z) - \log q_\phi(z \mid x)\big]
#   = E_q\Big[\sum_g \log p_\theta(x_g \mid z)\Big]
#   - \mathrm{KL}\big(q_\phi(z \mid x)\,\|\,p(z)\big).
# $$
#
# The decoder makes proportions $\rho_g(z)$ that sum to one over the genes. A cell of library
# $l_n$ has the mean counts $\mu_{ng} = l_n\, \rho_g(z_n)$. In this page one gene of one cell is
# enough, so the indices are left out.
#
# **A rate that scatters.** Two cells with the same latent still differ: genes are transcribed in
# bursts, and not every cell catches its molecules as well. Let the rate $\lambda$ be gamma
# distributed with mean $\mu$ and shape $\theta$, and the count Poisson given the rate:
#
# $$
# \lambda \sim \mathrm{Gamma}(\theta,\ \theta/\mu), \qquad
# x \mid \lambda \sim \mathrm{Poisson}(\lambda).
# $$
#
# The rate is not observed. Integrate it out:
#
# $$
# p(x) = \int_0^\infty \frac{\lambda^x e^{-\lambda}}{x!}\,
#        \frac{(\theta/\mu)^\theta}{\Gamma(\theta)}\,
#        \lambda^{\theta - 1} e^{-\lambda\theta/\mu}\; d\lambda
#      = \frac{(\theta/\mu)^\theta}{x!\,\Gamma(\theta)}
#        \int_0^\infty \lambda^{x + \theta - 1} e^{-\lambda(1 + \theta/\mu)}\, d\lambda .
# $$
#
# The last integral is $\Gamma(x + \theta)\,(1 + \theta/\mu)^{-(x + \theta)}$, so
#
# $$
# \log p(x) =
#     \underbrace{\log \frac{\Gamma(x + \theta)}{\Gamma(\theta)\, x!}}_{\text{ways to arrange}}
#   + \underbrace{x \log \frac{\mu}{\mu + \theta}}_{\text{molecules seen}}
#   + \underbrace{\theta \log \frac{\theta}{\mu + \theta}}_{\text{molecules not seen}} .
# $$
#
# **Mean and variance** follow without any sum, from $E[x] = E[\lambda]$ and
# $\mathrm{Var}[x] = E[\lambda] + \mathrm{Var}[\lambda]$:
#
# $$
# E[x] = \mu, \qquad \mathrm{Var}[x] = \mu + \mu^2/\theta .
# $$
#
# $\theta$ is the **inverse dispersion**: a large one means little scatter beyond Poisson.

# %%
import numpy as np
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure

from genailab_pyro.distributions import NegativeBinomial

torch.set_default_dtype(torch.float64)  # double precision, until single precision is the topic


def tensor(value):
    return torch.as_tensor(value, dtype=torch.float64)


def nb(mu, theta):
    """The package's negative binomial, which is declared by logarithms."""
    return NegativeBinomial(tensor(mu).log(), tensor(theta).log())


# %% [markdown]
# **Check the integral.** The trapezium rule over the rate must give the formula. $\mu = 6$ and
# $\theta = 2$ from here on.

# %%
mu, theta = 6.0, 2.0
counts = torch.arange(0.0, 61.0)
# The integral is taken over log(rate): d rate = rate d log(rate).
log_rate = torch.linspace(-25.0, 6.0, 6001)
rate = log_rate.exp()
gamma = dist.Gamma(tensor(theta), tensor(theta / mu)).log_prob(rate)
poisson = dist.Poisson(rate).log_prob(counts.unsqueeze(-1))
integral = torch.trapezoid((poisson + gamma + log_rate).exp(), log_rate)
formula = nb(mu, theta).log_prob(counts).exp()
assert (integral / formula - 1).abs().max() < 1e-6, "the gamma integral is the negative binomial"

# %% [markdown]
# **Check it by drawing.** 20,000 rates, and a count from each. The share of each count must lie
# within five standard errors $\sqrt{p(1-p)/n}$ of the formula, and mean and variance within five
# of theirs.

# %%
number = 20_000
rng = np.random.default_rng(0)
rates = rng.gamma(theta, mu / theta, number)
drawn = rng.poisson(rates)

share = np.bincount(drawn, minlength=61)[:31] / number
expected = formula[:31].numpy()
errors = np.sqrt(expected * (1 - expected) / number)
assert (np.abs(share - expected) < 5 * errors).all(), "the drawn counts follow the formula"

variance = mu + mu**2 / theta
squares = (drawn - mu) ** 2
assert abs(drawn.mean() - mu) < 5 * drawn.std() / number**0.5, "the mean of the counts"
error = squares.std() / number**0.5
assert abs(squares.mean() - variance) < 5 * error, "the variance of the counts"
assert variance == 24.0  # of Poisson counts with the same mean it would be 6

# %% [markdown]
# ## The picture
#
# Above, the cloud: one dot per cell, at its rate. Each dot falls to the count that it became.
# Below, the counts: the bars are what fell, the line is the formula that we derived, and the
# dashed line is the Poisson that all cells would follow if they had the same rate. The cloud has
# width. That width is what makes the bars wider than Poisson.

# %%
shown = rng.permutation(number)[:250]
picture = Figure(figsize=(7.6, 6.0), layout="constrained")
cloud, bars = picture.subplots(2, 1, sharex=True, height_ratios=[1, 1.5])
grid = np.linspace(0.01, 25, 500)
density = dist.Gamma(tensor(theta), tensor(theta / mu)).log_prob(tensor(grid)).exp().numpy()
height = np.interp(rates[shown], grid, density) * rng.uniform(0.08, 0.95, shown.size)
seen = drawn[shown]
for x0, y0, x1 in zip(rates[shown], height, seen, strict=True):
    cloud.plot([x0, x1], [y0, -0.02], color="#0072B2", alpha=0.10, linewidth=0.7)
cloud.scatter(rates[shown], height, s=9, color="#0072B2", alpha=0.8, linewidths=0)
cloud.plot(grid, density, color="#0072B2", linewidth=1.8)
cloud.text(10.5, 0.105, "density of the rate: Gamma(θ, θ/μ)", color="#0072B2")
cloud.text(
    10.5,
    0.086,
    "one dot: the rate of one cell, which falls to its count",
    color="#5c5c5c",
    fontsize=9,
)
cloud.set(ylabel="Density\n(1 / counts)", ylim=(-0.02, density.max() * 1.12))
cloud.set_title("Rates that scatter become negative binomial counts (μ = 6, θ = 2)", loc="left")
support = np.arange(26)
bars.bar(support, share[:26], color="#9ecae1", width=0.85)
bars.plot(support, expected[:26], "o-", color="#0072B2", markersize=4)
same = dist.Poisson(tensor(mu)).log_prob(tensor(support)).exp().numpy()
bars.plot(support, same, "--", color="#D55E00")
bars.text(13.0, 0.062, "negative binomial: variance 24", color="#0072B2")
bars.text(8.6, 0.136, "Poisson, had all cells the rate μ: variance 6", color="#D55E00")
bars.set(xlabel="Rate λ (above), count x (below), molecules", xlim=(-0.7, 25))
bars.set_ylabel("Share of cells")
for panel in (cloud, bars):
    panel.spines[["top", "right"]].set_visible(False)
picture

# %% [markdown]
# ## The gradient
#
# The decoder is trained by $\partial \log p / \partial \log \mu$. Write $p = \mu/(\mu + \theta)$.
# The first part of the formula does not know $\mu$; of the others,
#
# $$
# \frac{\partial \log p(x)}{\partial \log \mu} = x - (x + \theta)\, p
#   = (x - \mu)\, \frac{\theta}{\mu + \theta} .
# $$
#
# Read it from the right: a residual, times a weight between 0 and 1. For the inverse dispersion,
# with the digamma function $\psi = (\log \Gamma)'$,
#
# $$
# \frac{\partial \log p(x)}{\partial \log \theta}
#   = \theta\big[\psi(x + \theta) - \psi(\theta)\big]
#   + \theta \log\frac{\theta}{\mu + \theta} - (x - \mu)\, \frac{\theta}{\mu + \theta} .
# $$
#
# Both must agree with automatic differentiation of the formula as it stands.

# %%
grid_x, grid_mu, grid_theta = torch.meshgrid(
    torch.tensor([0.0, 1.0, 2.0, 10.0, 200.0]),
    torch.tensor([0.01, 0.5, 5.0, 300.0]),
    torch.tensor([0.05, 1.0, 20.0, 500.0]),
    indexing="ij",
)


def textbook(x, log_mu, log_theta):
    """The formula above, term by term."""
    theta, log_total = log_theta.exp(), torch.logaddexp(log_mu, log_theta)
    ways = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    return ways + x * (log_mu - log_total) + theta * (log_theta - log_total)


def by_hand(x, mu, theta):
    """The two derivatives above."""
    weight = theta / (mu + theta)
    by_mu = (x - mu) * weight
    rise = theta * (torch.digamma(x + theta) - torch.digamma(theta))
    by_theta = rise + theta * weight.log() - by_mu
    return by_mu, by_theta


def by_autograd(log_prob, x, mu, theta):
    """Derivatives of a log-probability with respect to log mu and log theta."""
    at = [mu.log().requires_grad_(), theta.log().requires_grad_()]
    return torch.autograd.grad(log_prob(x, *at).sum(), at)


def package(x, log_mu, log_theta):
    return NegativeBinomial(log_mu, log_theta).log_prob(x)


hand = by_hand(grid_x, grid_mu, grid_theta)
for log_prob in (textbook, package):
    for found, wanted in zip(by_autograd(log_prob, grid_x, grid_mu, grid_theta), hand, strict=True):
        difference = (found - wanted).abs() / (1 + wanted.abs())
        assert difference.max() < 1e-8, "the gradient by hand is that of automatic differentiation"

# %% [markdown]
# **A slip that is easy to make.** By $\mu$ itself,
# $\partial(-\log p)/\partial\mu = (x + \theta)/(\mu + \theta) - x/\mu$. Leave the $x$ out of the
# first numerator, and $\theta/(\mu + \theta) - x/\mu$ remains. It looks right, as it tends to the
# right limit for large $\theta$. A test without any autograd finds it: the mean of a score is
# zero, $E_{x \sim p}[\partial \log p] = 0$.

# %%
x = torch.arange(0.0, 400.0)
weights = nb(mu, theta).log_prob(x).exp()
right = (x + theta) / (mu + theta) - x / mu
slip = theta / (mu + theta) - x / mu
mean_right, mean_slip = (float((weights * part).sum()) for part in (right, slip))
assert abs(mean_right) < 1e-12, "the mean of the score is zero"
assert abs(mean_slip - (-mu / (mu + theta))) < 1e-9, "the slip has a mean"
assert abs(mean_slip - (-0.75)) < 1e-9  # it pushes the mean up, even where it is right

# %% [markdown]
# **Why genes with many counts do not drown the others.** The variance of the score is the Fisher
# information,
#
# $$
# E\Big[\Big(\frac{\partial \log p}{\partial \log\mu}\Big)^2\Big]
#   = \mathrm{Var}[x] \Big(\frac{\theta}{\mu + \theta}\Big)^2 = \frac{\mu\,\theta}{\mu + \theta} .
# $$
#
# It grows like $\mu$ for rare genes, as for Poisson counts, and stops at $\theta$. A Poisson gene
# of mean 1,000 would pull 1,000 times as hard as one of mean 1. With $\theta = 2$ the negative
# binomial one pulls three times as hard.

# %%
information = {}
for mean in (1.0, 1000.0):
    x = torch.arange(0.0, 60_000.0)
    score = (x - mean) * theta / (mean + theta)
    information[mean] = float((nb(mean, theta).log_prob(x).exp() * score**2).sum())
    wanted = mean * theta / (mean + theta)
    assert abs(information[mean] - wanted) < 2e-6, "the Fisher information"
ratio = information[1000.0] / information[1.0]
assert abs(ratio - 3) < 0.01, "a gene of mean 1000 pulls three times as hard as one of mean 1"

# %% [markdown]
# ## The Poisson limit
#
# As $\theta$ grows the cloud narrows to a point and the counts become Poisson. How fast? Expand
# the formula in $1/\theta$:
#
# $$
# \log p_{\mathrm{NB}}(x) = \log p_{\mathrm{Poisson}}(x)
#   + \frac{(x - \mu)^2 - x}{2\,\theta} + O(\theta^{-2}) .
# $$
#
# The first correction pays for counts far from the mean and charges for those near it: more
# spread.

# %%
x, mean = torch.tensor([0.0, 3.0, 5.0, 12.0]), 5.0
first_order = ((x - mean) ** 2 - x) / 2
for large in (1e3, 1e4, 1e5):
    difference = nb(mean, large).log_prob(x) - dist.Poisson(tensor(mean)).log_prob(x)
    remainder = (large * difference - first_order).abs().max()
    assert remainder < 200 / large, "the difference from Poisson is ((x - mu)^2 - x) / (2 theta)"

limit = NegativeBinomial(tensor(mean).log(), tensor(torch.inf)).log_prob(x)
off = (limit - dist.Poisson(tensor(mean)).log_prob(x)).abs().max()
assert off < 1e-12, "an infinite theta is the Poisson"

# %% [markdown]
# ## The float32 trap
#
# Networks run in single precision, about seven digits. The textbook formula subtracts
# $\log\Gamma(\theta)$ from $\log\Gamma(x + \theta)$. At $\theta = 10^7$ both are near
# $1.5 \cdot 10^8$, where neighbouring single-precision numbers are 16 apart. The result should be
# near $-1.74$: no digit of it is left. What comes out may be **positive**, a probability above
# one. An optimiser finds such a place, since it looks like a triumph.
#
# For whole counts the gamma functions can be had without cancellation,
# $\Gamma(x + \theta)/\Gamma(\theta) = \prod_{k<x} (\theta + k)$, which gives a reference to
# compare with:
#
# $$
# \log p(x) = \sum_{k < x} \log(1 + k/\theta) + x \log\mu
#   - (x + \theta) \log(1 + \mu/\theta) - \log x! .
# $$


# %%
def exact(x, mu, theta):
    """The log-probability by the product, in double precision."""
    rises = sum(np.log1p(k / theta) for k in range(x))
    factorial = sum(np.log(k) for k in range(1, x + 1))
    return rises + x * np.log(mu) - (x + theta) * np.log1p(mu / theta) - factorial


truth = exact(5, 5.0, 1e7)
single = [torch.tensor(value, dtype=torch.float32) for value in (5.0, 5.0, 1e7)]
at = [single[1].log(), single[2].log()]
pyros = dist.NegativeBinomial(total_count=single[2], logits=at[0] - at[1])
plain = float(pyros.log_prob(single[0]))
ours = float(NegativeBinomial(*at).log_prob(single[0]))
print(f"truth {truth:.4f}; single precision: Pyro {plain:.4f}, genailab_pyro {ours:.4f}")
assert abs(truth - (-1.7403)) < 1e-4
assert plain > 0, "single precision gives a probability above one"
assert abs(ours - truth) < 1e-4, "the package keeps the digits"

# %% [markdown]
# The gradient is lost in the same way, since $\psi(x + \theta) - \psi(\theta)$ cancels too. At
# $x = \mu = 5$ and $\theta = 10^6$ the true derivative by $\log\theta$ is $2.5 \cdot 10^{-6}$:
# nothing to be learned. The formula says more than 0.1 of either sign, and $\theta$ walks off.
# The package errs by less than $10^{-6}$, the rounding of numbers of the size of $x$.

# %%
single = [torch.tensor(value, dtype=torch.float32) for value in (5.0, 5.0, 1e6)]
true_slope = -((5.0 - 5.0) ** 2 - 5.0) / (2 * 1e6)  # the first correction above, by log(theta)
formula_slope = float(by_hand(*single)[1])
our_slope = float(by_autograd(package, *single)[1])
print(f"truth {true_slope:.2e}   formula {formula_slope:.2e}   genailab_pyro {our_slope:.2e}")
assert abs(true_slope - 2.5e-6) < 1e-12
assert abs(formula_slope) > 0.1, "the formula's slope is noise"
errs = abs(our_slope - true_slope), abs(formula_slope - true_slope)
assert errs[0] < 1e-4 * errs[1], "the package's slope errs ten thousand times less"

# %% [markdown]
# **Two more habits to drop.** A small number inside the logarithm, $\log(\mu + \epsilon)$, is no
# protection but another model: with $\epsilon = 5 \cdot 10^{-3}$ a gene of mean $10^{-3}$ is
# scored as one of mean $6 \cdot 10^{-3}$. And a probability that saturates is lost: $1 - p$
# rounds to zero where $\mu/\theta$ is large. Stay in logarithms, and a mean of zero is no
# problem.

# %%
epsilon, rare = 5e-3, 1e-3
other, itself = (nb(value, theta).log_prob(tensor(1.0)).exp() for value in (rare + epsilon, rare))
assert abs(float(other / itself) - 6) < 0.05, "the epsilon makes one count six times as likely"

wide = [torch.tensor(value, dtype=torch.float32) for value in (1e4, 1e-4)]
assert float(wide[0] / (wide[0] + wide[1])) == 1.0  # the probability, in single precision
none = torch.tensor(0.0, dtype=torch.float32)
kept = float(NegativeBinomial(*(value.log() for value in wide)).log_prob(none))
assert abs(kept / exact(0, 1e4, 1e-4) - 1) < 1e-5, "log space keeps what the probability lost"
empty = float(NegativeBinomial(none.log(), none).log_prob(none))
assert empty == 0.0, "a mean of zero is no problem"

# %% [markdown]
# **Zeros are cheap.** For $x = 0$ the gamma functions cancel, and
# $\log p(0) = -\theta\,\mathrm{softplus}(\log\mu - \log\theta)$. Most counts are zero, which is
# why the package scores zeros by this line and keeps gamma functions for the rest.

# %%
zero = -theta * torch.nn.functional.softplus(tensor(mu).log() - tensor(theta).log())
off = abs(float(zero - nb(mu, theta).log_prob(tensor(0.0))))
assert off < 1e-12, "a count of zero needs no gamma function"
assert abs(float(zero.exp()) - 1 / 16) < 1e-12  # at mu = 6, theta = 2, one cell in sixteen

# %% [markdown]
# ## Change one thing
#
# Set `theta = 0.5` in the first check, and leave `mu`. Predict before you run: what is the
# variance, and what is the share of zeros? (The asserts that hold numbers for $\theta = 2$ will
# stop and tell you.) The formulas say $6 + 36/0.5 = 78$ and $(0.5/6.5)^{0.5} = 0.28$. The cloud
# then has most of its dots near zero and a few far to the right.

# %%
thinner = nb(mu, 0.5)
assert abs(float(thinner.variance) - 78) < 1e-9
assert abs(float(thinner.log_prob(tensor(0.0)).exp()) - 0.277) < 1e-3

# %% [markdown]
# ## Exercises
#
# 1. **The best mean.** Show that the mean that maximises $\sum_n \log p(x_n)$ over cells of equal
#    library is the average count, whatever $\theta$ is. Check it on counts 0, 1, 1, 7 with
#    $\theta = 0.3$ and $\theta = 30$ on a grid of means.
# 2. **The remainder.** In the Poisson limit, how large must $\theta$ be so that no count from 0
#    to 30 has a log-probability that is off by more than 0.01 nats at $\mu = 5$? Solve it by the
#    first-order formula, then check the exact values.
# 3. **A trap of your own.** Find the smallest $\theta$ among $10^3, 10^4, \dots, 10^8$ at which
#    Pyro's negative binomial in single precision is off by more than 0.01 nats at $x = \mu = 5$.
#    Check that the package's is not, at any of them.
#
# Solutions: [solutions/10_nb_likelihood](solutions/10_nb_likelihood.py).

# %% [markdown]
# ## Next
#
# [11 Prediction](11_prediction.py): what a fitted model says about cells that it has not seen.
