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
# # Solutions of 12, where to go next

# %%
import numpy as np
import torch

# %% [markdown]
# ## 1. One number
#
# A cell gives the information $\mu\theta/(\mu + \theta) = 6/5$. The prior is worth
# $1/\tau^2 = 4$. With n cells $B = 1.2 n / (1.2 n + 4)$: one half at $n = 4 / 1.2 = 3.3$, that is
# 4 cells, and 0.9 at $n = 9 \cdot 4 / 1.2 = 30$ cells.

# %%
information, prior = 2 * 3 / (2 + 3), 0.5**-2
needed = {}
for share in (0.5, 0.9):
    cells = share / (1 - share) * prior / information
    needed[share] = int(np.ceil(cells - 1e-9))
    assert abs(information * cells / (information * cells + prior) - share) < 1e-12
assert needed == {0.5: 4, 0.9: 30}

# %% [markdown]
# ## 2. Other things that do not matter
#
# A swap and a change of sign are reflections: the normal prior is as round under them as under a
# rotation. Doubling a latent and halving its loadings leaves $Wz$ as it is, but not $p(z)$: the
# prior fixes the scale.

# %%
generator = torch.Generator().manual_seed(0)
loadings, z = torch.randn(40, 2, generator=generator), torch.randn(100, 2, generator=generator)
normal = torch.distributions.Normal(0.0, 1.0)
changes = {
    "swap": torch.tensor([[0.0, 1.0], [1.0, 0.0]]),
    "sign": torch.tensor([[-1.0, 0.0], [0.0, 1.0]]),
    "double": torch.tensor([[2.0, 0.0], [0.0, 1.0]]),
}
same = {}
for name, matrix in changes.items():
    moved, other = z @ matrix.T, loadings @ matrix.inverse()
    assert (moved @ other.T - z @ loadings.T).abs().max() < 1e-5
    prior_change = (normal.log_prob(moved).sum(-1) - normal.log_prob(z).sum(-1)).abs().max()
    same[name] = bool(prior_change < 1e-5)
assert same == {"swap": True, "sign": True, "double": False}

# %% [markdown]
# ## 3. A table by hand
#
# Treated: $(90 \cdot 0.02 + 10 \cdot 0.01)/100 = 0.019$. Controls:
# $(10 \cdot 0.02 + 90 \cdot 0.01)/100 = 0.011$. The naive fold change is 19/11, 1.73, of a
# treatment that does nothing. Adjusted, both arms are averaged over the same 100 cells of A and
# 100 of B: 0.015 / 0.015 = 1.

# %%
share = np.array([0.02, 0.01])
treated, controls = np.array([90, 10]), np.array([10, 90])
naive = np.average(share, weights=treated) / np.average(share, weights=controls)
everyone = treated + controls
adjusted = np.average(share, weights=everyone) / np.average(share, weights=everyone)
assert abs(naive - 19 / 11) < 1e-12
assert abs(adjusted - 1) < 1e-12
