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
# # Solutions to 04 Reparameterization
#
# The pair is that of the tutorial, with the function and the guide's distribution left open.

# %%
import math

import pyro
import pyro.distributions as dist
import torch

import genailab_pyro as glp

COPIES = 200_000


class Mean(torch.nn.Module):
    max_plate_nesting = 1

    def __init__(self, function, posterior, *parameters):
        super().__init__()
        self.function, self.posterior = function, posterior
        start = (torch.full((COPIES,), value, dtype=torch.float64) for value in parameters)
        self.values = torch.nn.ParameterList(start)

    def model(self):
        with pyro.plate("copies", COPIES, dim=-1):
            with pyro.poutine.mask(mask=False):
                z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            pyro.factor("f", self.function(z))

    model.max_plate_nesting = 1

    def forward(self):
        with pyro.plate("copies", COPIES, dim=-1), pyro.poutine.mask(mask=False):
            pyro.sample("z", self.posterior(*self.values))


def draw(pair, estimator, *, seed=0):
    """Draws of the gradient in the first parameter."""
    model, guide, elbo = glp.estimators.get(estimator).bind(pair.model, pair)
    pyro.set_rng_seed(seed)
    loss = elbo.differentiable_loss(model, guide)
    return torch.autograd.grad(-loss, pair.values[0])[0]


def variance(draws):
    found = draws.var().item()
    fourth = ((draws - draws.mean()) ** 4).mean().item()
    return found, math.sqrt((fourth - found**2) / len(draws))


# %% [markdown]
# ## 1. A constant costs
#
# The slope of $z^2 + c$ is $2z$, without $c$. The score multiplies $z^2 + c$ by $\epsilon$:
#
# $$ E[(z^2 + c)^2\epsilon^2] - 4 = 34 + 2c\,E[z^2\epsilon^2] + c^2 - 4 = 30 + 8c + c^2 , $$
#
# as $E[z^2\epsilon^2] = E\epsilon^2 + E\epsilon^4 = 4$. It is smallest at $c = -4$, where it is 14.
# A constant changes neither gradient on average. So the best one may be added on purpose: it is a
# baseline.

# %%
for c in (0.0, -4.0, 10.0):
    pair = Mean(lambda z, c=c: z**2 + c, dist.Normal, 1.0, 1.0)
    path, path_error = variance(draw(pair, "pathwise"))
    score, score_error = variance(draw(pair, "score"))
    print(f"c = {c}: path {path:.2f}, score {score:.2f}, formula {30 + 8 * c + c**2}")
    assert abs(path - 4) < 5 * path_error
    assert abs(score - (30 + 8 * c + c**2)) < 5 * score_error

# %% [markdown]
# ## 2. A move of your own
#
# At a fixed $u$ we have $\partial z/\partial\lambda = \log(u)/\lambda^2 = -z/\lambda$. With $f = z$
# the path is $g = -z/\lambda$, of mean $-1$ and variance 1 at $\lambda = 1$. The log-density
# $\log\lambda - \lambda z$ has the derivative $1/\lambda - z$. The score is $g = z(1 - z)$, of mean
# $1 - 2 = -1$ and variance $E[z^2 - 2z^3 + z^4] - 1 = 2 - 12 + 24 - 1 = 13$.

# %%
pair = Mean(lambda z: z, dist.Exponential, 1.0)
for name, exact in (("pathwise", 1.0), ("score", 13.0)):
    gradients = draw(pair, name)
    found, error = variance(gradients)
    print(f"{name}: mean {gradients.mean():.3f}, variance {found:.2f}")
    assert abs(gradients.mean().item() + 1) < 5 * math.sqrt(found / COPIES)
    assert abs(found - exact) < 5 * error

# %% [markdown]
# ## 3. A narrow guide
#
# The ratio is $(m^4/s^2 + 14m^2 + 15s^2)/(4s^2)$. At $m = 1$ it grows as $1/(4s^4)$ when $s \to 0$:
# the path scatters less and less, and the score more and more. At $s = 0.1$ it is 2854.

# %%
exact = (1 / 0.1**2 + 14 + 15 * 0.1**2) / (4 * 0.1**2)
assert abs(exact - 2854) < 0.5
pair = Mean(torch.square, dist.Normal, 1.0, 0.1)
(score, score_error), (path, path_error) = (variance(draw(pair, n)) for n in ("score", "pathwise"))
error = score / path * math.hypot(score_error / score, path_error / path)
print(f"exact {exact:.0f}, found {score / path:.0f} +- {error:.0f}")
assert abs(score / path - exact) < 5 * error
