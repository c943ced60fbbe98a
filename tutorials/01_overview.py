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
# # 01 Overview: a VAE is PCA that has learned to count
#
# You will be able to
#
# - declare a variational autoencoder (VAE) by its four parts, train it, and ask it questions;
# - say why a linear VAE is principal component analysis (PCA), and check a trained one against the
#   exact answer;
# - name what is changed to get from PCA to a model of gene-expression counts.

# %%
import numpy as np
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.distributions import MultivariateNormal
from torch.nn.functional import softplus

import genailab_pyro as glp

SEED = 0
D = 2  # latents

# %% [markdown]
# ## The mathematics
#
# **The model** says how a cell comes about. First a few latents are drawn, then the expression of
# all genes given them:
#
# $$ p_\theta(x, z) = p(z)\, p_\theta(x \mid z), \qquad p(z) = \mathcal N(0, I_D) . $$
#
# A network, the *decoder*, makes of $z$ the parameters of $p_\theta(x \mid z)$.
#
# **The guide** $q_\phi(z \mid x)$ says where the latents of a cell are. Another network, the
# *encoder*, makes of $x$ its location and scale. It stands for the posterior $p_\theta(z \mid x)$,
# which in general cannot be computed.
#
# **The bound.** Both are trained by one objective, which page 02 derives,
#
# $$ \mathcal L = E_q[\log p_\theta(x, z) - \log q_\phi(z \mid x)] \le \log p_\theta(x) . $$
#
# It equals $\log p_\theta(x)$ where the guide is the posterior.
#
# **The linear case.** Let the decoder be linear and the noise the same for all $G$ genes:
#
# $$ p_\theta(x \mid z) = \mathcal N(W z + b, \sigma^2 I_G) . $$
#
# Then $x = W z + b + \sigma \varepsilon$ is a sum of normal variables, so $x$ is normal, too:
#
# $$ p_\theta(x) = \mathcal N(b, C), \qquad C = W W^\top + \sigma^2 I_G . $$
#
# Let $S$ be the covariance of the data, with eigenvalues $\lambda_1 \ge \lambda_2 \ge \dots$ and
# eigenvectors $u_j$. With $b$ the mean of the data, the log-likelihood per cell is
#
# $$ \ell = -\tfrac 12 \big[ G \log 2\pi + \log |C| + \operatorname{tr}(C^{-1} S) \big] . $$
#
# Where $C$ has the eigenvectors of $S$ and the eigenvalues $c_j$, this is $-\tfrac12 \sum_j [\log
# 2\pi + \log c_j + \lambda_j / c_j]$. A term is best at $c_j = \lambda_j$. But $C$ has only $D$
# eigenvalues of its own; the others are all $\sigma^2$, and their best common value is the mean of
# the $\lambda_j$ that are left. Tipping and Bishop (1999) show that the $D$ free ones belong to the
# largest $\lambda_j$:
#
# $$
# \sigma^2 = \frac{1}{G - D} \sum_{j > D} \lambda_j, \qquad
# W = U_D (\Lambda_D - \sigma^2 I)^{1/2} R,
# $$
#
# $$
# \ell_{\max} = -\tfrac 12 \Big[ G \log 2\pi + \sum_{j \le D} \log \lambda_j
# + (G - D) \log \sigma^2 + G \Big] .
# $$
#
# $U_D$ holds the first $D$ principal axes, $\Lambda_D$ their eigenvalues, and $R$ is any rotation.
# **The columns of $W$ span the plane of PCA.**
#
# **The posterior** is $\mathcal N(M^{-1} W^\top (x - b),\ \sigma^2 M^{-1})$ with $M = W^\top W +
# \sigma^2 I_D$. Its mean is linear in $x$ and its covariance is the same for all cells. A linear
# encoder can be exactly that if $M$ is diagonal, and $R = I$ makes it so. So the best bound is
# $\ell_{\max}$: a linear VAE loses nothing.
#
# ## The data
#
# 700 blood cells; the 50 genes that vary most in $y = \log(1 + \text{count})$. The exact answer
# takes one eigendecomposition.

# %%
adata = glp.data.pbmc68k()
variance = np.log1p(adata.X.toarray()).var(0)
cells = glp.register(adata[:, np.sort(np.argsort(-variance)[:50])].copy(), labels="bulk_labels")
y = np.log1p(cells.counts_matrix().toarray())
N, G = y.shape

eigenvalues, axes = np.linalg.eigh(np.cov(y.T, bias=True))
eigenvalues, axes = eigenvalues[::-1], axes[:, ::-1]


def largest_log_likelihood(num_latents):
    """Log-likelihood in nats per cell at the best parameters of a linear model."""
    noise = eigenvalues[num_latents:].mean()
    logs = np.log(eigenvalues[:num_latents]).sum() + (G - num_latents) * np.log(noise)
    return -0.5 * (G * np.log(2 * np.pi) + logs + G)


def log_likelihood(loadings, offset, noise):
    """Log-likelihood in nats per cell at any parameters, by a multivariate normal density."""
    covariance = loadings @ loadings.T + noise * np.eye(G)
    marginal = MultivariateNormal(torch.as_tensor(offset), torch.as_tensor(covariance))
    return marginal.log_prob(torch.as_tensor(y)).mean().item()


noise = eigenvalues[D:].mean()
exact = largest_log_likelihood(D)
y = y.astype(np.float64)
best = axes[:, :D] * np.sqrt(eigenvalues[:D] - noise)
assert abs(log_likelihood(best, y.mean(0), noise) - exact) < 1e-4

# %% [markdown]
# Without latents, the best log-likelihood is more than 20 nats per cell lower. One percent of the
# exact one is half a nat: to come that close is to have found what the two latents say.

# %%
assert abs(exact - -48.7) < 0.05
assert exact - largest_log_likelihood(0) > 20
assert abs(0.01 * exact) < 0.5

# %% [markdown]
# ## The same by a VAE
#
# A VAE of this package is declared by its prior, decoder, likelihood and encoder. Three parts are
# at hand. The likelihood with one noise for all genes is a class of a few lines. `observed` says
# what the model is a density of.


# %%
class OneNoise(glp.Likelihood):
    """Normal values of log1p(counts), with the same noise for all genes."""

    scale = "log1p(counts)"

    def __init__(self, features, genes):
        super().__init__()
        self.loc = nn.Linear(features, genes)
        self.spread = nn.Parameter(torch.zeros(()))

    def noise(self):
        return softplus(self.spread)

    def forward(self, features, minibatch):
        return dist.Normal(self.loc(features), self.noise()).to_event(1)

    def observed(self, minibatch):
        return None if minibatch.counts is None else minibatch.counts.log1p()

    def initialise(self, minibatch):
        with torch.no_grad():
            self.loc.bias.copy_(minibatch.counts.log1p().mean(0))


def linear_vae(num_latents=D, seed=SEED):
    """A VAE whose networks are linear."""
    torch.manual_seed(seed)
    vae = glp.VAE(
        prior=glp.StandardNormal(num_latents),
        decoder=glp.LinearDecoder(num_latents),
        likelihood=OneNoise(num_latents, G),
        encoder=glp.NormalEncoder(G, num_latents, []),  # no hidden layers
    )
    vae.initialise(cells.take(range(N)))
    return vae


linear = {"learning_rate": 0.02, "weight_decay": 0.0, "validation_fraction": 0.0, "max_epochs": 300}
linear |= {"warmup": glp.Warmup(beta=1.0), "progress": False}
fit = glp.fit(linear_vae(), cells, "pathwise", seed=SEED, **linear)

# %% [markdown]
# Five estimates of the bound with seeds of their own tell how far the draws scatter it. It must lie
# below the exact maximum, as every bound at every parameter does, and within 1 % of it.

# %%
bounds = np.array([fit.elbo(num_particles=50, seed=seed).mean() for seed in range(5)])
bound, standard_error = bounds.mean(), bounds.std(ddof=1) / np.sqrt(5)
assert bound < exact + 5 * standard_error
assert exact - bound < 0.01 * abs(exact)

# %% [markdown]
# The parameters themselves have an exact log-likelihood, between the two. Its distance from the
# bound is what the encoder still misses.

# %%
likelihood = fit.vae.likelihood
W = likelihood.loc.weight.detach().double().numpy()
b = likelihood.loc.bias.detach().double().numpy()
sigma = likelihood.noise().item()

at_parameters = log_likelihood(W, b, sigma**2)
assert bound - 5 * standard_error < at_parameters <= exact
assert abs(sigma**2 - noise) < 0.05 * noise

# %% [markdown]
# The encoder was never told what a posterior is. Its means are nevertheless those of the formula
# above: what differs is less than 5 % of their spread.

# %%
M = W.T @ W + sigma**2 * np.eye(D)
means = np.linalg.solve(M, W.T @ (y - b).T).T
error = np.sqrt(((fit.latent() - means) ** 2).mean())
assert error < 0.05 * means.std()

# %% [markdown]
# And the plane is that of PCA. The cosines of the angles between two planes are the singular values
# of $U_D^\top Q$, where the columns of $Q$ are orthonormal and span the decoder's columns. The
# share of an axis $u_j$ that lies in the decoder's plane is the squared length of $Q^\top u_j$.

# %%
Q = np.linalg.qr(W)[0]
cosines = np.linalg.svd(axes[:, :D].T @ Q, compute_uv=False)
angle = np.degrees(np.arccos(np.clip(cosines.min(), -1, 1)))
assert angle < 2  # degrees
share = ((axes[:, :6].T @ Q) ** 2).sum(1)
assert share[:D].min() > 0.99
assert share[D:].max() < 0.01

# %% [markdown]
# ## The picture
#
# Left: all cells in the plane of PCA, once by PCA (circles) and once as the decoder draws them from
# the mean of their latents (dots). Each dot is in its circle or a little nearer to the middle, as
# the prior pulls the latents to zero. The two arrows are the decoder's columns: they need not be
# the principal axes, as a rotation of the latents leaves the model as it is. Right: the first two
# principal axes lie in the decoder's plane, the others do not.

# %%
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#9a9a9a"
by_pca = (y - y.mean(0)) @ axes[:, :D]
by_vae = (fit.latent() @ W.T + b - y.mean(0)) @ axes[:, :D]
columns = W.T @ axes[:, :D]

picture = Figure(figsize=(10.4, 5), layout="constrained", facecolor="white")
left, right = picture.subplots(1, 2, width_ratios=(1.7, 1))
left.scatter(*by_pca.T, s=34, facecolors="none", edgecolors=GREY, lw=0.9)
left.scatter(*by_vae.T, s=7, color=BLUE)
for column in columns:
    left.annotate("", column, (0, 0), arrowprops={"arrowstyle": "-|>", "color": ORANGE, "lw": 2.5})
left.text(0, 0.3, "decoder's columns", color=ORANGE, weight="bold", ha="center")
labels = adata.obs["bulk_labels"].astype(str).to_numpy()
names = {"CD14+ Monocyte": "monocytes", "CD19+ B": "B cells", "CD56+ NK": "NK cells"}
names["Dendritic"] = "dendritic"
for label, name in names.items():
    x0, y0 = np.median(by_pca[labels == label], axis=0)
    box = {"boxstyle": "round,pad=.2", "fc": "white", "ec": "none", "alpha": 0.8}
    left.text(x0, y0, name, ha="center", va="center", bbox=box)
left.text(0.02, 0.07, "o  PCA", transform=left.transAxes, color="#5c5c5c", weight="bold")
left.text(0.02, 0.02, "•  linear VAE", transform=left.transAxes, color=BLUE, weight="bold")
left.set_xlabel("first principal axis (log counts)")
left.set_ylabel("second principal axis (log counts)")
left.set_title(f"A linear VAE finds the plane of PCA: largest angle {angle:.1f} degrees")
right.bar(range(1, 7), share, color=[BLUE] * D + [GREY] * (6 - D))
for position, value in enumerate(share, start=1):
    right.text(position, value + 0.015, f"{value:.2f}", ha="center")
right.set(xlabel="principal axis", ylim=(0, 1.1), title="Share of the axis in the decoder's plane")
for panel in (left, right):
    panel.spines[["top", "right"]].set_visible(False)
picture

# %% [markdown]
# ## From PCA to counts
#
# Three parts are exchanged, each by one line, and the bound stays as it is:
#
# | part | PCA | the models of this package | page |
# |---|---|---|---|
# | likelihood | normal, one noise | NB: mean $\mu$, variance $\mu + \mu^2 / \theta_g$ | 09, 10 |
# | decoder | linear | a network, scaled by the library $l_n$ of the cell | 03 |
# | guide | linear | a network | 03 to 06 |
#
# Why counts? The linear model believes in expression below zero. By its own normal density, this
# share of all values is:

# %%
spread = np.sqrt((W**2).sum(1) + sigma**2)
below_zero = dist.Normal(0.0, 1.0).cdf(torch.as_tensor(-b / spread)).mean().item()
assert below_zero > 0.1

# %% [markdown]
# More than a tenth. A negative binomial VAE draws counts, zeros among them. Genes with many zeros
# have many zeros in drawn cells, too: over genes, the two shares of zeros have a correlation above
# 0.9.

# %%
torch.manual_seed(SEED)
counts_vae = glp.CVAE_NB.from_registration(cells, latent_dim=10)
counts_fit = glp.fit(counts_vae, cells, "pathwise", max_epochs=60, seed=SEED, progress=False)
drawn = counts_fit.generate(3000, seed=SEED).X.toarray()
real = cells.counts_matrix().toarray()
assert drawn.min() == 0
assert np.array_equal(drawn, drawn.round())
zeros = np.corrcoef((drawn == 0).mean(0), (real == 0).mean(0))[0, 1]
assert zeros > 0.9

# %% [markdown]
# The estimator of the gradient is a line, too. `"stl"` (page 06) instead of `"pathwise"` trains the
# same model with the same bound, and also comes within 1 %:

# %%
other = glp.fit(linear_vae(), cells, "stl", seed=SEED, **linear)
assert exact - other.elbo(num_particles=50, seed=SEED).mean() < 0.01 * abs(exact)

# %% [markdown]
# ## Change one thing
#
# Set `D = 3`. Before you run: by how much does the exact log-likelihood rise? (It is in the
# eigenvalues, by the formula of $\ell_{\max}$.) How many bars on the right reach 1? The assertion
# of -48.7 will have to follow.
#
# ## Exercises
#
# 1. **A guide that need not be diagonal.** `glp.FullRankEncoder(G, D, [])` has a full covariance.
#    Then the bound is tight for every rotation $R$. Train with it, and compare the gap between
#    `at_parameters` and the bound with that of `NormalEncoder`.
# 2. **Collapse, foretold.** Hold $\sigma$ fixed. By the derivation, $c_j = \lambda_j$ is out of
#    reach where $\lambda_j < \sigma^2$, and the best $W$ has a column of zeros instead. Choose a
#    $\sigma$ with $\lambda_2 < \sigma^2 < \lambda_1$, train, and count the latents that are used:
#    `fit.diagnose().active_units`. The optimum itself has collapsed: no better optimiser would
#    help.
# 3. **The plane is found, the axes are not.** Show that $W R$ with a rotation $R$ has the same
#    exact log-likelihood as $W$, and spans the same plane, while the columns change.
#
# Solutions: [solutions/01_overview](solutions/01_overview.py).
#
# ## References
#
# Tipping, Bishop (1999). Probabilistic principal component analysis. doi:10.1111/1467-9868.00196
#
# Lucas, Tucker, Grosse, Norouzi (2019). Don't blame the ELBO! A linear VAE perspective on posterior
# collapse. doi:10.48550/arXiv.1911.02469
#
# Kingma, Welling (2014). Auto-encoding variational Bayes. doi:10.48550/arXiv.1312.6114
#
# ## Next
#
# [02 The evidence lower bound](02_elbo.py): where the bound comes from, and what it leaves out.
