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
# # Solutions of 10, the negative binomial likelihood

# %%
import numpy as np
import pyro.distributions as dist
import torch

from genailab_pyro.distributions import NegativeBinomial

# %% [markdown]
# ## 1. The best mean
#
# The derivative is $\sum_n (x_n - \mu)\, \theta / (\mu + \theta)$. The weight is the same for all
# cells and never zero, so the sum is zero where $\sum_n (x_n - \mu) = 0$: at the average.

# %%
counts = torch.tensor([0.0, 1.0, 1.0, 7.0], dtype=torch.float64)
means = torch.arange(0.05, 10.0, 0.05, dtype=torch.float64)
for theta in (0.3, 30.0):
    log_theta = torch.tensor(theta, dtype=torch.float64).log()
    law = NegativeBinomial(means.log().unsqueeze(-1), log_theta)
    best = float(means[law.log_prob(counts).sum(-1).argmax()])
    assert abs(best - 2.25) < 0.051  # the average, up to the step of the grid

# %% [markdown]
# ## 2. The remainder
#
# The first-order difference is $((x - 5)^2 - x) / (2\theta)$. Of the counts from 0 to 30 it is
# largest at 30, where it is $(625 - 30)/(2\theta) = 297.5/\theta$. It is 0.01 at
# $\theta = 29750$.

# %%
x = torch.arange(0.0, 31.0, dtype=torch.float64)
size = ((x - 5) ** 2 - x).abs() / 2
assert float(size.max()) == 297.5
mean = torch.tensor(5.0, dtype=torch.float64)
for theta, fits in ((29_750 * 1.05, True), (29_750 / 1.05, False)):
    law = NegativeBinomial(mean.log(), torch.tensor(theta, dtype=torch.float64).log())
    off = (law.log_prob(x) - dist.Poisson(mean).log_prob(x)).abs().max()
    assert (off < 0.01) == fits

# %% [markdown]
# ## 3. A trap of your own
#
# The truth goes from the negative binomial's value to the Poisson's as $\theta$ grows; the
# product formula gives it.


# %%
def exact(x, mu, theta):
    rises = sum(np.log1p(k / theta) for k in range(x))
    factorial = sum(np.log(k) for k in range(1, x + 1))
    return rises + x * np.log(mu) - (x + theta) * np.log1p(mu / theta) - factorial


five = torch.tensor(5.0)
off_at = []
for power in range(3, 9):
    theta = torch.tensor(10.0**power)
    plain = dist.NegativeBinomial(total_count=theta, logits=five.log() - theta.log()).log_prob(five)
    ours = NegativeBinomial(five.log(), theta.log()).log_prob(five)
    truth = exact(5, 5.0, 10.0**power)
    if abs(float(plain) - truth) > 0.01:
        off_at.append(power)
    assert abs(float(ours) - truth) < 1e-4
print("Pyro in single precision is off at 10 to the power of", off_at)
assert off_at[0] == 5
