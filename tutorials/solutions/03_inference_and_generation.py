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
# # Solutions to 03 Inference and generation

# %%
import math

import torch
from torch.distributions import MultivariateNormal, kl_divergence

# %% [markdown]
# ## 1. The price of being upright
#
# The precision of $p$ has the diagonal $1/(1 - r^2)$ and the determinant $1/(1 - r^2)$. For
# $q = N(0, \operatorname{diag}(v_1, v_2))$
#
# $$ \mathrm{KL}(q \,\|\, p) = \tfrac12 \Big( \frac{v_1 + v_2}{1 - r^2} - 2 + \log(1 - r^2)
# - \log v_1 v_2 \Big) . $$
#
# The derivative in $v_1$ vanishes at $v_1 = 1 - r^2$, and likewise for $v_2$. What is left is
# $\tfrac12(\log(1 - r^2) - 2\log(1 - r^2)) = -\tfrac12\log(1 - r^2)$. It is 0.2 nats at
# $r = \sqrt{1 - e^{-0.4}} = 0.574$.

# %%
r = math.sqrt(1 - math.exp(-0.4))
assert abs(r - 0.574) < 0.001
exact = MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, r], [r, 1.0]]))
log_variance = torch.zeros(2, requires_grad=True)
optimizer = torch.optim.LBFGS([log_variance], max_iter=100)


def divergence():
    optimizer.zero_grad()
    upright = MultivariateNormal(torch.zeros(2), torch.diag(log_variance.exp()))
    loss = kl_divergence(upright, exact)
    loss.backward()
    return loss


optimizer.step(divergence)
gap = divergence().item()
print(f"r = {r:.3f}: gap {gap:.4f} nats, variances {log_variance.exp().tolist()}")
assert abs(gap - 0.2) < 1e-3
assert (log_variance.exp() - (1 - r**2)).abs().max() < 1e-2 * (1 - r**2)

# %% [markdown]
# ## 2. Why not draw from the prior?
#
# The square of a normal density is a narrower one:
# $N(z; x, \sigma^2)^2 = N(z; x, \sigma^2/2) / (2\sigma\sqrt\pi)$. Its mean under the prior, at
# $x = 0$, is $(2\pi(1 + \sigma^2/2))^{-1/2} / (2\sigma\sqrt\pi)$. Divided by
# $p(0)^2 = 1/(2\pi(1 + \sigma^2))$ that is $(1 + \sigma^2)/(\sigma\sqrt{2 + \sigma^2})$ for one
# dimension. Independent dimensions multiply.
#
# The relative variance of one draw is this number less one. A mean of $K$ draws has a relative
# error of 10 % at $K = 100$ times that: 4,975 draws for two dimensions, and about
# $3.4 \cdot 10^{10}$ for ten.

# %%
sigma = 0.1
square = (1 + sigma**2) / (sigma * math.sqrt(2 + sigma**2))
needed = {dimensions: 100 * (square**dimensions - 1) for dimensions in (2, 10)}
print(needed)
assert abs(needed[2] - 4975) < 1
assert abs(needed[10] / 3.4e10 - 1) < 0.05
torch.manual_seed(0)
z = torch.randn(2_000_000, 2, dtype=torch.float64)
density = (-0.5 * (z / sigma).square()).exp().prod(1) / (2 * math.pi * sigma**2)
relative = density / (1 / (2 * math.pi * (1 + sigma**2)))
error = relative.square().std().item() / math.sqrt(len(relative))
assert abs(relative.square().mean().item() - square**2) < 5 * error

# %% [markdown]
# ## 3. Too small, or off?
#
# In units of the exact scales the latent is at a squared distance $d^2$ from the mean that is
# exponential with mean 2: $P(d^2 > t) = e^{-t/2}$. The encoder's ellipse reaches to
# $t = -2c^2\log 0.1$. So it holds the latent with probability
# $1 - e^{c^2 \log 0.1} = 1 - 0.1^{c^2}$.
#
# At $c = 0.64$ that is 0.61. The page's encoder holds 0.37. Of the $0.90 - 0.37 = 0.53$ that are
# missing, the scale explains $0.90 - 0.61 = 0.29$, a good half. The rest is due to ellipses that are
# off, or that do not lean.

# %%
c = 0.64
held = 1 - 0.1 ** (c**2)
assert abs(held - 0.61) < 0.005
assert abs((0.90 - held) / (0.90 - 0.37) - 0.55) < 0.01
latent = torch.randn(1_000_000, 2, dtype=torch.float64)
found = ((latent / c).square().sum(1) < -2 * math.log(0.1)).double().mean().item()
print(f"coverage {held:.3f}, found {found:.4f}")
assert abs(found - held) < 5 * math.sqrt(held * (1 - held) / len(latent))
