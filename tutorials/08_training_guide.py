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
# # 08 Training guide
#
# Runs fall sick in a few ways, and each way leaves a sign. Here each sickness is caused on purpose,
# on cells whose truth is known, found by `fit.diagnose()`, and cured. You will be able to
#
# - tell a healthy run from six sick ones by its curves;
# - read what `diagnose()` says, and know what it cannot say;
# - choose the cure, and check that it worked.

# %% [markdown]
# ## What is measured
#
# The model is $p_\theta(x, z) = p(z)\, p_\theta(x \mid z)$ with negative binomial counts, the guide
# $q_\phi(z \mid x)$. Four quantities tell nearly everything.
#
# **Is a latent used?** Latent i is *active* when
#
# $$\frac1N \sum_n \mathrm{KL}\big(q(z_i \mid x_n) \,\|\, p(z_i)\big) > 0.01
#   \quad\text{and}\quad \mathrm{Var}_n\big(E_q[z_i \mid x_n]\big) > 0.01.$$
#
# Both are needed. A posterior that differs from the prior, but is the same for all cells, has a KL
# and tells nothing: no active latent, and yet no collapse. *Collapse* is when no latent has a KL
# above 0.01. Here $p(z_i) = N(0, 1)$ and $q(z_i \mid x) = N(m, s^2)$, so that
# $\mathrm{KL} = \tfrac12 (m^2 + s^2 - 1 - \log s^2)$, as in [07 Optimization](07_optimization.py).
#
# **How far is the bound from the evidence?** With $w_k = p(x, z_k) / q(z_k \mid x)$,
#
# $$\underbrace{E \log \frac1K \sum_k w_k}_{\text{importance-weighted}} - \underbrace{E \log w}_{\mathcal L}
#   \;\le\; \log p(x) - \mathcal L = \mathrm{KL}\big(q(z \mid x) \,\|\, p(z \mid x)\big).$$
#
# The `gap` is a lower bound of what the guide costs.
#
# **Can the weights be trusted?** `pareto_k` above 0.7 says that a few draws carry the sum.
#
# **Does it generalise?** `overfit` is the ELBO of validation cells less that of training cells, in
# the last epoch, in nats per cell. Validation cells choose the epoch and are never trained on.

# %%
import matplotlib.pyplot as plt
import numpy as np

import genailab_pyro as glp

SEED = 0


def simulated(num_cells=400, num_genes=60, counts=500.0, spread=1.0):
    """Counts of cells that differ along two latents."""
    return glp.data.simulate(
        num_cells,
        num_genes,
        num_types=1,
        types=glp.data.CellTypes(latent_dim=2, separation=0.0, spread=spread),
        library=glp.data.LibrarySizes(median=counts, scale=0.1),
        noise=glp.data.CountNoise(inverse_dispersion=10.0),
        seed=SEED,
    ).adata


def trained(cells, *, latent_dim=2, hidden=32, **settings):
    """A small model that is trained with settings that are good, but for those that are given."""
    vae = glp.CVAE_NB.from_registration(cells, latent_dim=latent_dim, hidden_dims=[hidden], dropout=0.0, seed=SEED)
    settings = {"max_epochs": 30, "minibatch_size": 64, "learning_rate": 1e-2} | settings
    return glp.fit(vae, cells, seed=SEED, progress=False, **settings)


def says(diagnosis, words):
    """Whether the verdict holds some words."""
    return any(words in line for line in diagnosis.verdict)


# %% [markdown]
# ## Health
#
# Two latents in the truth, two in the model, both active. The verdict has nothing to complain of.

# %%
adata = simulated()
cells = glp.register(adata)
fits = {"healthy": trained(cells)}
healthy = fits["healthy"].diagnose()
assert healthy.active_units == 2, "the healthy run is not healthy"
assert not healthy.collapsed
assert healthy.latents.kl.min() > 1
assert healthy.overfit > -30
assert not any(says(healthy, words) for words in ("collapsed", "hardly", "not used", "overfits"))
print(healthy)

# %% [markdown]
# ## Collapse
#
# **Cause**: the KL weighs too much from the first step (here thirty times as much as it should; a
# mean of the reconstruction over genes in place of a sum does the same in disguise). **Sign**: no
# active latent, no KL. **Cure**: weight 1, after a warm-up. That is the healthy run.

# %%
heavy = glp.Warmup(beta=30.0, shape="constant")
fits["collapse"] = trained(cells, warmup=heavy, max_epochs=20)
collapsed = fits["collapse"].diagnose()
assert collapsed.collapsed, "a collapse is not seen"
assert collapsed.active_units == 0
assert says(collapsed, "The posterior has collapsed onto the prior")
cured = fits["healthy"].terms(num_particles=20).elbo
assert cured > fits["collapse"].terms(num_particles=20).elbo + 5, "the cure of collapse fails"

# %% [markdown]
# ## Undertrained
#
# **Cause**: too few steps, or too small. **Sign**: the posterior has not come back to the prior
# (some KL), but hardly differs from cell to cell; the validation ELBO still rises in the last epoch.
# **Cure**: more epochs, a higher learning rate.

# %%
deep = glp.register(simulated(num_genes=200, counts=6000.0, spread=0.35))
fits["undertrained"] = trained(deep, latent_dim=4, max_epochs=4, learning_rate=1e-4)
young = fits["undertrained"].diagnose()
assert young.active_units == 0
assert not young.collapsed, "a run that has not begun is called collapsed"
assert says(young, "hardly from cell to cell"), "an undertrained run is not seen"
rise = fits["undertrained"].history["validation_elbo"].to_numpy()
assert rise[-1] > rise[-2] > rise[0]
print(young)

cured = trained(deep, latent_dim=4, warmup=glp.Warmup(length=0.5))
assert cured.diagnose().active_units >= 2, "the cure of undertraining fails"
assert cured.history["validation_elbo"].max() > rise[-1] + 10

# %% [markdown]
# ## Steps that are too large
#
# **Cause**: a learning rate of 10, a thousand times as much, without a schedule and without
# clipping. **Sign**: the KL of a latent is above 5 nats, more than twice that of a healthy one, for
# nothing. Most often the posterior is far away and the same for all cells; the verdict has the same
# words as before, *hardly from cell to cell*, and leaves it to the curve whether steps were too
# small or too large. Else it differs between cells and fits none: the importance weights of more
# than half of them cannot be trusted. The curve jumps and falls, where that of small steps rises
# steadily, and its best epoch is more than 100 nats below that of the healthy run. **Cure**:
# a smaller rate. That is the healthy run. (Where the loss is not finite, `glp.fit` stops with a
# `TrainingError`, and its `.fit` holds the last good weights.)

# %%
fits["steps too large"] = trained(
    cells,
    learning_rate=10.0,
    learning_rate_schedule="constant",
    gradient_clip=None,
    max_epochs=10,
)
wild = fits["steps too large"].diagnose()
assert wild.latents.kl.max() > max(5, 2 * healthy.latents.kl.max()), "too large steps are not seen"
untrusted = (wild.pareto_k > 0.7).mean()
assert says(wild, "hardly from cell to cell") or untrusted > 0.5, wild.verdict
assert (np.diff(fits["steps too large"].history["validation_elbo"]) < 0).any(), "the curve rises steadily"
best = {name: fits[name].history["validation_elbo"].max() for name in ("steps too large", "healthy")}
assert best["healthy"] > best["steps too large"] + 100, "a smaller step is no cure"
print(wild)

# %% [markdown]
# ## Overfitting
#
# **Cause**: 60 cells, 300 genes, no weight decay, no dropout, many epochs. **Sign**: validation
# cells score more than 30 nats below training cells. **Cure**: more cells. With six times as many
# and the same number of steps the gap falls to less than half. (Dropout, weight decay and fewer
# epochs close the gap, too; look at the validation ELBO itself to see whether they help.)

# %%
many = simulated(360, 300, counts=3000.0)
bad = {
    "latent_dim": 10,
    "hidden": 64,
    "learning_rate": 0.02,
    "learning_rate_schedule": "constant",
    "weight_decay": 0.0,
    "validation_fraction": 0.25,
    "minibatch_size": 45,
}
fits["overfitting"] = trained(glp.register(many[:60].copy()), max_epochs=120, **bad)
overfit = fits["overfitting"].diagnose()
assert overfit.overfit < -30
assert says(overfit, "it overfits"), "overfitting is not seen"

cured = trained(glp.register(many), max_epochs=20, **bad).diagnose()
assert cured.overfit > overfit.overfit / 2, "more cells do not cure overfitting"
assert not says(cured, "it overfits")

# %% [markdown]
# ## Too many latents
#
# **Cause**: twelve latents where the truth has two. **Sign**: most are not used. It is the mildest
# of all: the model has shut what it does not need. **Cure**: fewer latents, and nothing is lost:
# with two, trained in the same way, the ELBO is not a nat lower.

# %%
long = {"learning_rate_schedule": "constant", "max_epochs": 40}
fits["too many latents"] = trained(cells, latent_dim=12, **long)
wide = fits["too many latents"].diagnose()
assert 2 <= wide.active_units <= 6
assert says(wide, "Half or more of the latents are not used"), "idle latents are not seen"
cured = trained(cells, latent_dim=2, **long)
lost = fits["too many latents"].terms(num_particles=20).elbo - cured.terms(num_particles=20).elbo
assert lost < 1, "fewer latents cost something"

# %% [markdown]
# ## Counts that are no counts
#
# **Cause**: values that were scaled. If they are no integers, `glp.register` refuses them and says
# what they look like. If somebody has rounded them, nothing is refused: they are valid counts of
# cells that hold less than two molecules on average. **Sign**: latents that hold next to nothing,
# less than a fifth of what they hold on the raw counts. **Cure**: the raw counts. That is the
# healthy run.

# %%
logged = adata.copy()
logged.X = logged.X.log1p()
try:
    glp.register(logged)
except ValueError as error:
    message = str(error)
else:
    message = "nothing was refused"
assert "this looks log1p-normalised" in message, message

scaled = adata.copy()
scaled.X = np.rint(scaled.X.toarray() * 0.005)
scaled = scaled[scaled.X.sum(1) > 0].copy()
scaled = scaled[:, scaled.X.sum(0) > 0].copy()
assert scaled.X.sum(1).mean() < 2
fits["scaled counts"] = trained(glp.register(scaled), max_epochs=20, learning_rate=4e-3)
starved = fits["scaled counts"].diagnose()
assert starved.latents.kl.sum() < 0.2 * healthy.latents.kl.sum(), "scaled counts are not seen"

# %% [markdown]
# ## The gallery
#
# Each panel shows the curve that gives the sickness away.

# %%
picture, panels = plt.subplots(2, 4, figsize=(12, 5.6), layout="constrained")
BLUE, RED, GREY = "#0072B2", "#D55E00", "#9a9a9a"
signs = {
    "healthy": "both rise, side by side",
    "undertrained": "stops while validation still rises",
    "steps too large": "far below the healthy run (dotted)",
    "overfitting": "one goes on rising, the other stops",
}
for panel, (name, sign) in zip(panels.flat, signs.items(), strict=False):
    history = fits[name].history
    panel.plot(history["epoch"], history["train_elbo"], color=BLUE, label="training cells")
    panel.plot(history["epoch"], history["validation_elbo"], "--", color=RED, label="validation")
    panel.set_title(f"{name}\n{sign}", loc="left", fontsize=9)
    panel.set_ylabel("ELBO (nats per cell)")
panels[0, 0].legend(frameon=False, fontsize=8, loc="lower right")
panels[0, 2].axhline(fits["healthy"].history["validation_elbo"].iloc[-1], color=GREY, linestyle=":")
panels[0, 2].set_ylim(3 * best["steps too large"], 300)
for panel, name, sign in (
    (panels[1, 0], "healthy", "the latents fill"),
    (panels[1, 1], "collapse", "the KL goes to zero"),
    (panels[1, 2], "scaled counts", "hardly any KL"),
):
    panel.plot(fits[name].history["epoch"], fits[name].history["train_kl"], color=BLUE)
    panel.set_ylim(0, 1.1 * fits["healthy"].history["train_kl"].max())
    panel.set_title(f"{name}\n{sign}", loc="left", fontsize=9)
    panel.set_ylabel("KL (nats per cell)")
kl = np.sort(wide.latents.kl)[::-1]
assert kl[:2].sum() > 0.7 * kl.sum()
panels[1, 3].bar(np.arange(1, 13), kl, color=[BLUE] * 2 + [GREY] * 10)
panels[1, 3].set_title("too many latents\ntwo of twelve hold most of the KL", loc="left", fontsize=9)
panels[1, 3].set_ylabel("KL of a latent (nats per cell)")
for panel in panels.flat:
    panel.set_xlabel("Epoch")
    panel.spines[["top", "right"]].set_visible(False)
panels[1, 3].set_xlabel("Latent, by its KL")
picture.suptitle("One healthy run, and six that are not", x=0.01, ha="left", fontweight="bold")
picture

# %% [markdown]
# ## A routine
#
# 1. Look at the curves, `fit.plot()`. Do they still rise? Do they part?
# 2. `print(fit.diagnose())`. How many latents are active?
# 3. Compare `fit.terms(others).elbo`, on cells that `fit` never received, with that of a run with one
#    thing changed.
#
# A verdict of health is no proof of a good model. It does not know the best ELBO that can be had,
# and it cannot see a batch or a label that was not registered.

# %% [markdown]
# ## Change one thing
#
# In a new cell, run `trained(cells, warmup=glp.Warmup(beta=beta, shape="constant"), max_epochs=20)` with
# `beta` 1.0 and 3.0. Predict first how many latents stay active at 3.0, and by how much
# `fit.terms(num_particles=20).elbo` falls. (One of two, and about 10 nats.)

# %% [markdown]
# ## Exercises
#
# 1. A posterior is $N(0.8, 1)$ for every cell. What is its KL from the prior, and is the latent
#    active? Is the run collapsed?
# 2. The decoder of a collapsed run ignores the latent. How far does `fit.expression()` differ from
#    cell to cell? Compare it with the healthy run: take the standard deviation over cells of its
#    logarithm, and the mean of that over genes.
# 3. Run `trained(cells, learning_rate=rate, max_epochs=10)` at the rates 0.0001, 0.01 and 1. Rank them
#    by the best validation ELBO. What does the verdict say of the first and of the last, and how do
#    their curves tell which of the two rates is too small?

# %% [markdown]
# ## Next
#
# [09 NB and ZINB](09_nb_and_zinb.py): why counts want these two distributions.
