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
# # Solutions of 09, negative binomial with or without extra zeros

# %%
import torch

from genailab_pyro.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial


def nb(mean, theta):
    return NegativeBinomial(torch.as_tensor(mean).log(), torch.as_tensor(theta).log())


def drawn(law, number, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return law.sample((number,)).double()


# %% [markdown]
# ## 1. The moment estimate
#
# $\theta = \mu^2 / (\mathrm{Var}[x] - \mu)$, with the sample's mean and variance in their places.

# %%
x = drawn(nb(5.0, 3.0), 100_000)
theta = float(x.mean() ** 2 / (x.var() - x.mean()))
print(f"theta {theta:.2f}")
assert abs(theta - 3) < 0.15  # 5 %

# %% [markdown]
# ## 2. Zeros and dispersion
#
# Solve $(\theta / (\theta + 2))^\theta = 0.4$. The variance is then $2 + 4/\theta$.

# %%
grid = torch.linspace(0.05, 20.0, 40_000, dtype=torch.float64)
zeros = grid * (grid / (grid + 2)).log()
solved = float(grid[(zeros.exp() - 0.4).abs().argmin()])
variance = 2 + 4 / solved
print(f"theta {solved:.2f}, variance {variance:.1f}")
assert abs((solved / (solved + 2)) ** solved - 0.4) < 1e-3
assert abs(solved - 0.65) < 0.01
assert abs(variance - 8.1) < 0.1  # against 2 of a Poisson, which has 14 % zeros

# %% [markdown]
# ## 3. A wrong gate
#
# ZINB of the same mean has $\mu = 0.3 / 0.7$ before zeros are added. Its best $\theta$ is larger,
# since the gate makes zeros. The difference of two log-likelihoods grows like the number of
# cells, its error like the root: five errors are reached with $(5 s / d)^2$ cells, where d and s
# are mean and standard deviation of the difference per cell.

# %%
x = torch.arange(0.0, 201.0, dtype=torch.float64)
mean, gate = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
true = nb(mean, torch.tensor(0.5, dtype=torch.float64)).log_prob(x)
weights = true.exp()
thetas = torch.logspace(-1, 2, 300, dtype=torch.float64)
rivals = ZeroInflatedNegativeBinomial(
    (mean / (1 - gate)).log(), thetas.log().unsqueeze(-1), gate_logits=gate.logit()
).log_prob(x)
best = int((rivals * weights).sum(-1).argmax())
difference = true - rivals[best]
behind = float((weights * difference).sum())
spread = float((weights * (difference - behind) ** 2).sum().sqrt())
needed = (5 * spread / behind) ** 2
print(f"theta {thetas[best]:.2f}; {behind:.5f} nats per cell; {needed:,.0f} cells")
assert thetas[best] > 0.5
assert 0 < behind < 0.001
assert needed > 50_000
