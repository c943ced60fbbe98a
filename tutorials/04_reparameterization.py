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
# # 04 Reparameterization
#
# You will be able to
#
# - write a draw of $z$ as a fixed noise that is moved, and differentiate through it;
# - derive the two gradients of an expectation, pathwise and score function, and check that they
#   agree;
# - compute by hand that the score function needs 7.5 times the draws for $f = z^2$, and measure
#   what that becomes in a VAE of counts.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch

import genailab_pyro as glp

# %% [markdown]
# ## The gradient of a mean
#
# The ELBO $\mathcal L = E_q[\log p_\theta(x, z) - \log q_\phi(z \mid x)]$ is a mean over draws of
# the guide, and the guide is what we want to train. Call what is averaged $f(z)$. The trouble is
# that $\phi$ stands under the integral *as the density of the draws*:
#
# $$ \frac{\partial}{\partial\phi} E_q[f(z)]
# = \frac{\partial}{\partial\phi} \int q_\phi(z) f(z)\, dz . $$
#
# Drawing some $z$ and differentiating $f(z)$ gives nothing: a number that was drawn knows nothing
# of $\phi$. There are two ways out.
#
# **Score function.** Differentiate the density, and use $\partial q = q\,\partial \log q$:
#
# $$ \int \frac{\partial q_\phi(z)}{\partial\phi} f(z)\, dz
# = E_q\Big[f(z)\, \frac{\partial \log q_\phi(z)}{\partial\phi}\Big] . $$
#
# (In the ELBO $f$ itself holds $-\log q_\phi$. Its derivative at a fixed $z$ has mean zero, because
# $\int \partial q_\phi\, dz = \partial\, 1 = 0$.)
#
# **Pathwise.** Draw the noise first, from a law without parameters, and move it:
# $z = t_\phi(\epsilon)$ with $\epsilon \sim p(\epsilon)$. The mean is then over $\epsilon$, and
# $\phi$ stands inside, where it can be differentiated:
#
# $$ \frac{\partial}{\partial\phi} E_{p(\epsilon)}[f(t_\phi(\epsilon))]
# = E_{p(\epsilon)}\Big[f'(z)\, \frac{\partial t_\phi(\epsilon)}{\partial\phi}\Big] . $$
#
# For the normal guide $q = N(m, s^2)$ the move is $z = m + s\epsilon$ with $\epsilon \sim N(0, 1)$,
# so that
#
# $$ \frac{\partial z}{\partial m} = 1, \qquad \frac{\partial z}{\partial s} = \epsilon . $$
#
# ## One noise, a fan of z
#
# Hold a noise fixed and widen the guide. Its $z$ runs along a straight line, and the slope of the
# line is the noise. This is all that "differentiating through a draw" means. Redrawn at each scale,
# the same guide gives dots through which no line goes.

# %%
LOC = 1.0
scales = torch.linspace(0.0, 1.5, 31)
noises = torch.tensor([-1.8, -1.1, -0.5, 0.2, 0.7, 1.3, 2.0])
pyro.set_rng_seed(0)
fresh = LOC + scales * torch.randn(len(noises), len(scales))

picture, (left, right) = plt.subplots(
    1,
    2,
    figsize=(10.5, 4.6),
    sharey=True,
    layout="constrained",
)
left.plot(scales, fresh.T, "o", color="#8a8a8a", markersize=3.5)
left.set_title("A fresh draw at each scale: no line, no slope")
shades = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(noises)))
for noise, shade in zip(noises.tolist(), shades, strict=True):
    right.plot(scales, LOC + scales * noise, color=shade, linewidth=2)
    right.plot(1.0, LOC + noise, "o", color=shade, markersize=7, markeredgecolor="white")
    label = f"$\\epsilon$ = {noise:.1f}"
    right.text(1.53, LOC + 1.5 * noise, label, color=shade, va="center", fontsize=10)
right.axvline(1.0, color="#9a9a9a", linewidth=1, linestyle="--")
right.text(0.97, 4.6, "seven draws of N(1, 1)", ha="right", color="#5c5c5c")
right.set_title("One noise, a fan of z: the slope of a line is its noise")
right.set_xlim(0, 1.85)
left.set_ylabel("draw z (units of the latent)")
for panel in (left, right):
    panel.set_xlabel("scale s of the guide N(1, s²) (units of the latent)")
    panel.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# Torch finds these slopes. `rsample` of a Pyro distribution keeps the path to its parameters.
# `sample` cuts it.

# %%
m = torch.tensor(1.0, requires_grad=True)
s = torch.tensor(1.0, requires_grad=True)
pyro.set_rng_seed(0)
z = dist.Normal(m, s).rsample()
by_loc, by_scale = torch.autograd.grad(z, (m, s))
assert by_loc.item() == 1.0
assert abs(by_scale.item() - (z.item() - 1.0) / 1.0) < 1e-6, "the slope is the noise"
kept, cut = dist.Normal(m, s).rsample(), dist.Normal(m, s).sample()
assert kept.requires_grad, "a draw with a path"
assert not cut.requires_grad, "a draw without a path"

# %% [markdown]
# A normal is one case. What a distribution needs is a smooth move from noise to draw. A latent
# library size is log-normal, $l = \exp(m + s\epsilon)$, and moves by
# $\partial l / \partial s = l\,\epsilon$. A label is drawn by comparing noise with thresholds: the
# move has steps, and no slope. `has_rsample` tells.

# %%
log_normal = dist.LogNormal(m, s)
size = log_normal.rsample()
(slope,) = torch.autograd.grad(size, s)
noise = math.log(size.item()) - 1.0
assert abs(slope.item() - size.item() * noise) < 1e-4 * abs(slope.item())
rate, label = dist.Gamma(2.0, 1.0), dist.Categorical(torch.ones(3))
assert all(kind.has_rsample for kind in (log_normal, rate)), "sizes and rates have a path"
assert not label.has_rsample, "a label has no path"

# %% [markdown]
# ## Two gradients of one number
#
# Take $f = z^2$ and $z \sim N(m, s^2)$. Then $E f = m^2 + s^2$, and the gradient is $2m$ in the
# location and $2s$ in the scale. One draw of each estimator is
#
# $$ g_{\text{path}} = 2z \quad\text{or}\quad 2z\epsilon, \qquad
# g_{\text{score}} = z^2\,\frac{\epsilon}{s} \quad\text{or}\quad z^2\,\frac{\epsilon^2 - 1}{s} , $$
#
# because $\log q = -\log s - (z - m)^2/(2s^2) + \text{const}$ has the derivatives
# $(z - m)/s^2 = \epsilon/s$ and $(z - m)^2/s^3 - 1/s = (\epsilon^2 - 1)/s$.
#
# **Variance in the location.** The path gives $\operatorname{Var}(2z) = 4s^2$. For the score expand
#
# $$ z^4 = m^4 + 4m^3 s\epsilon + 6m^2s^2\epsilon^2 + 4ms^3\epsilon^3 + s^4\epsilon^4 $$
#
# and use $E\epsilon^2 = 1$, $E\epsilon^4 = 3$, $E\epsilon^6 = 15$, while odd powers vanish:
#
# $$ \operatorname{Var} g_{\text{score}} = \frac{E[z^4\epsilon^2]}{s^2} - (2m)^2
# = \frac{m^4 + 18 m^2s^2 + 15 s^4}{s^2} - 4m^2 = \frac{m^4}{s^2} + 14m^2 + 15s^2 . $$
#
# At $m = s = 1$ that is 30 against 4: the ratio is **7.5**.
#
# **Variance in the scale**, at $m = s = 1$. The path has
# $E[4z^2\epsilon^2] - 4 = 4\,(1 + 3) - 4 = 12$. For the score,
# $(\epsilon^2 - 1)^2 = \epsilon^4 - 2\epsilon^2 + 1$ and $E\epsilon^8 = 105$ give
# $E[z^4(\epsilon^2 - 1)^2] = 2 + 6 \cdot 10 + 78 = 140$. The variance is $140 - 4 = 136$, and the
# ratio is 11.3.
#
# Now the same by Pyro. The model has a factor $f(z)$. A mask takes the log-probabilities of the
# latent out of the bound, in the model and in the guide, so that $\mathcal L = E_q[z^2]$ and
# nothing else. The pair is in many copies, each with parameters of its own: one backward pass gives
# a draw of the gradient for each.

# %%
COPIES = 200_000


class Square(torch.nn.Module):
    max_plate_nesting = 1

    def __init__(self, loc, scale, copies=COPIES):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.full((copies,), loc, dtype=torch.float64))
        self.scale = torch.nn.Parameter(torch.full((copies,), scale, dtype=torch.float64))

    def model(self):
        with pyro.plate("copies", len(self.loc), dim=-1):
            with pyro.poutine.mask(mask=False):
                z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            pyro.factor("f", z**2)

    model.max_plate_nesting = 1

    def forward(self):  # the guide
        with pyro.plate("copies", len(self.loc), dim=-1), pyro.poutine.mask(mask=False):
            pyro.sample("z", dist.Normal(self.loc, self.scale))


def draw(pair, estimator, *, seed=0):
    """Draws of the gradient of the ELBO in the location and in the scale, one for each copy."""
    model, guide, elbo = glp.estimators.get(estimator).bind(pair.model, pair)
    pyro.set_rng_seed(seed)
    loss = elbo.differentiable_loss(model, guide)
    return torch.autograd.grad(-loss, (pair.loc, pair.scale))


def variance(draws):
    """Variance of the draws, and the Monte Carlo standard error of that variance."""
    found = draws.var().item()
    fourth = ((draws - draws.mean()) ** 4).mean().item()
    return found, math.sqrt((fourth - found**2) / len(draws))


pair = Square(1.0, 1.0)
EXACT = {"pathwise": (4.0, 12.0), "score": (30.0, 136.0)}
measured = {}
for name, exact_variances in EXACT.items():
    for parameter, gradients, exact in zip(
        ("loc", "scale"),
        draw(pair, name),
        exact_variances,
        strict=True,
    ):
        found, error = variance(gradients)
        measured[name, parameter] = found, error
        print(f"{name:>8}, {parameter:>5}: mean {gradients.mean():.3f}, variance {found:.2f}")
        assert abs(gradients.mean().item() - 2.0) < 5 * math.sqrt(found / COPIES), "both are right"
        assert abs(found - exact) < 5 * error, (name, parameter)

# %% [markdown]
# Both are right on average. The score function scatters more, and the ratio is 7.5 in the location:
# for the same precision it needs 7.5 times the draws.


# %%
def ratio_of(score, path):
    """Ratio of two measured variances, and its Monte Carlo standard error."""
    ratio = score[0] / path[0]
    return ratio, ratio * math.hypot(score[1] / score[0], path[1] / path[0])


for parameter, exact in (("loc", 7.5), ("scale", 136 / 12)):
    found, error = ratio_of(measured["score", parameter], measured["pathwise", parameter])
    print(f"ratio in the {parameter}: exact {exact:.2f}, found {found:.2f} +- {error:.2f}")
    assert abs(found - exact) < 5 * error, ("ratio", parameter)
assert abs(EXACT["score"][1] / EXACT["pathwise"][1] - 11.3) < 0.05

# %% [markdown]
# ## In a VAE of counts
#
# There $f$ is minus hundreds of nats: the log-probability of all genes of a cell. The path sees the
# slope of $f$, the score multiplies its size. `compare_estimators` freezes a fitted VAE and draws
# the gradient of the same minibatch by both.

# %%
cells = glp.register(glp.data.pbmc68k())
torch.manual_seed(0)
vae = glp.CVAE_NB.from_registration(cells, latent_dim=5, hidden_dims=[64])
fit = glp.fit(vae, cells, max_epochs=20, progress=False, seed=0)
compared = glp.compare_estimators(
    fit.vae,
    cells,
    ["pathwise", "score"],
    num_draws=100,
    checkpoints=("given",),
    particles=(),
    seed=0,
)
table = compared.to_dataframe()
table[["variance", "ratio", "ratio_low", "ratio_high"]]

# %% [markdown]
# Nothing is wrong with the score function here. It has the same mean. But it needs more than
# 100,000 times the draws in the location of the latent. This is why reparameterization made VAEs
# possible, and why the score function has to be given a baseline before it is of use.

# %%
low = table.xs(("latent location", "score"), level=("group", "estimator"))["ratio_low"].item()
decoder = table.xs(("decoder", "score"), level=("group", "estimator"))["ratio"].item()
assert fit.elbo(cells, seed=0).mean() < -300, "hundreds of nats"
assert table["bias_errors"].max() < 5, "both are right here, too"
assert low > 100_000, "in a VAE the ratio is no longer 7.5"
assert abs(decoder - 1) < 1e-3, "the decoder is differentiated in the same way by both"

# %% [markdown]
# The decoder is a control: its parameters are not those of the draws, both estimators differentiate
# it alike, and with the same random numbers its ratio is 1.
#
# Which rule a site has is a word. The draw shows it:

# %%
minibatch = cells.take(range(10))
for rule, has_path in (("pathwise", True), ("score", False)):
    guide = glp.estimate(z=rule)(fit.vae.guide)
    with pyro.get_param_store().scope():
        trace = pyro.poutine.trace(guide).get_trace(minibatch)
    assert trace.nodes["z"]["value"].requires_grad == has_path, rule

# %% [markdown]
# ## Change one thing
#
# Move the location `my_loc` from 1 to 0, and to 3. From the formula,
# $\operatorname{Var} g_{\text{path}}$ does not change at all. What does the ratio do, and why does
# the place of a parabola matter to the score, when only its slope should?

# %%
my_loc = 1.0
moved = Square(my_loc, 1.0)
found, error = ratio_of(*(variance(draw(moved, name)[0]) for name in ("score", "pathwise")))
predicted = (my_loc**4 + 14 * my_loc**2 + 15) / 4
print(f"predicted ratio {predicted:.2f}, measured {found:.2f} +- {error:.2f}")
assert abs(found - predicted) < 5 * error, "the ratio that was predicted"

# %% [markdown]
# ## Exercises
#
# 1. *A constant costs.* Let $f = z^2 + c$. Show that the pathwise gradient does not see $c$, and
#    that the variance of the score in the location at $m = s = 1$ is $30 + 8c + c^2$. For which $c$
#    is it smallest, and how small? Check by drawing.
# 2. *A move of your own.* The exponential distribution of rate $\lambda$ is drawn as
#    $z = -\log(u)/\lambda$ with $u$ uniform. Derive both gradients of $E z = 1/\lambda$ in
#    $\lambda$ and their variances at $\lambda = 1$ (you need $E z^n = n!$). Check by drawing.
# 3. *A narrow guide.* At $m = 1$, what does the ratio of the two variances become as $s \to 0$?
#    Check at $s = 0.1$.
#
# Solutions: `solutions/04_reparameterization.py`.
#
# ## Next
#
# [05 Pathwise against score function](05_pathwise_and_score.py): does the path always win?
