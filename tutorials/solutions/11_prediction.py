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
# # Solutions to 11 A VAE for prediction
#
# ## 1. Shared controls with other numbers of cells
#
# The covariance is the variance of the mean of the controls, $\sigma^2 / n_c$. The shifts have the
# variances $\sigma^2 (1/n_p + 1/n_c)$ and $\sigma^2 (1/n_q + 1/n_c)$. So
#
# $$
# r = \frac{1 / n_c}{\sqrt{(1 / n_p + 1 / n_c)(1 / n_q + 1 / n_c)}} ,
# $$
#
# which is $1/5$ for $n_p = n_q = 20$ and $n_c = 80$: many controls share little noise.

# %%
import numpy as np

import genailab_pyro as glp
from genailab_pyro.evaluation import (
    PerturbationTask,
    log_normalise,
    pearson_of_shift,
    score_references,
)

pool = glp.data.simulate(4800, 200, num_types=1, types=glp.data.CellTypes(spread=0.0), seed=1).adata
groups = log_normalise(pool.X).reshape(40, 120, 200)
found = [pearson_of_shift(cells[:20], cells[20:40], cells[40:]) for cells in groups]
exact = (1 / 80) / (1 / 20 + 1 / 80)
error = np.std(found, ddof=1) / np.sqrt(len(found))
print(f"r = {np.mean(found):.3f} +- {error:.3f}, derived {exact:.3f}")
assert abs(exact - 0.2) < 1e-12
assert abs(np.mean(found) - exact) < 5 * error, "as derived"
assert abs(np.mean(found) - 0.5) > 5 * error, "and not one half"

# %% [markdown]
# ## 2. Log fold changes carried over without a network
#
# The shares of all counts under both conditions give $\hat\delta$ up to a constant, which
# normalisation takes out.

# %%
SEED = 0


def simulated(separation):
    """The cells of the page, its task, and which of the cells are moved."""
    adata, truth = glp.data.simulate(
        1200,
        100,
        num_types=4,
        types=glp.data.CellTypes(separation=separation),
        perturbations=glp.data.Perturbations(number=2, num_genes=40, scale=1.0),
        seed=SEED,
    )
    task, real = PerturbationTask.hold_out(
        log_normalise(adata.X),
        adata.obs,
        ("type3", "perturbation1"),
        context="cell_type",
        perturbation="perturbation",
    )
    return adata, truth, task, real


def by_fold_change(adata):
    """Controls of the target's type, with the mean log fold change of the other types."""
    counts, obs = adata.X.toarray().astype(float), adata.obs

    def log_shares(cell_type, perturbation):
        rows = (obs["cell_type"] == cell_type) & (obs["perturbation"] == perturbation)
        total = counts[rows.to_numpy()].sum(0) + 1
        return np.log(total / total.sum())

    others = ["type0", "type1", "type2"]
    changes = [log_shares(one, "perturbation1") - log_shares(one, "control") for one in others]
    controls = (obs["cell_type"] == "type3") & (obs["perturbation"] == "control")
    return log_normalise(counts[controls.to_numpy()] * np.exp(np.mean(changes, axis=0)))


adata, truth, task, real = simulated(2.0)
scores = score_references(task, real, models={"fold change": by_fold_change(adata)}, seed=SEED)
rmse = {name: scores[name].rmse for name in ("fold change", "mean shift", "ridge on PCA")}
print({name: round(value, 3) for name, value in rmse.items()})
assert rmse["fold change"] < 0.95 * rmse["mean shift"], "what types have in common is carried over"

# %% [markdown]
# It is better than the mean shift: a good part of what the VAE gains is that it carries over the
# right quantity. The VAE is better still: the page has 0.19 for it, and this predictor 0.25. It has
# three noisy fold changes per gene, which the VAE shrinks. By how much depends on the simulation (try
# other seeds), so a new model is to be shown beside this one, too.
#
# ### The change of one thing
#
# With `SEPARATION` 0.3 all types move by nearly the same, and the mean shift is as good as half of
# the real cells. Ridge gains most (0.47 to 0.11): three types are too few to learn how a shift depends
# on the type, and now it need not. The VAE gains least (0.19 to 0.12). These assertions of the page fail:
#
# - that types move by different amounts, since they no longer do;
# - that means agree where nothing is predicted: genes differ less where types do, and the same
#   shift is a larger part of what there is to explain;
# - the three that the VAE has a smaller error than the mean shift and than ridge, and a larger
#   correlation: where the average of the types is right, no model is better by a margin.

# %%
alike, its_truth, near, its_real = simulated(0.3)
spread = []
for one in (truth, its_truth):
    shares = one.proportions_under(perturbation="control")
    common = np.log(shares @ np.exp(one.perturbation_effects[1]))
    spread.append(np.ptp([common[one.types == code].mean() for code in range(4)]))
scores_near = score_references(near, its_real, seed=SEED)
print(f"types move apart by {spread[0]:.2f} and by {spread[1]:.2f} log-counts")
assert spread[1] < 0.5 * spread[0], "types that are alike move alike"
gain = {name: rmse[name] - scores_near[name].rmse for name in ("mean shift", "ridge on PCA")}
print({name: round(value, 3) for name, value in gain.items()})
assert scores_near["mean shift"].rmse < 0.7 * rmse["mean shift"], "the mean shift gains"
assert gain["ridge on PCA"] > gain["mean shift"], "ridge gains more"
assert scores_near["mean shift"].rmse < 1.1 * scores_near["half against half"].rmse

# %% [markdown]
# ## 3. No intervention
#
# The mean under the intervention is the mean as observed, $\mu' = \mu$. Each molecule stays with
# the probability one, and none comes: the counts are those of the cell.

# %%
cells = glp.register(adata, conditions=["perturbation"], labels="cell_type")
vae = glp.PerturbationVAE.from_registration(cells, "perturbation", seed=SEED)
fit = glp.fit(vae, cells, max_epochs=2, progress=False, seed=SEED)
controls = adata[(adata.obs["perturbation"] == "control").to_numpy()].copy()
same = glp.predict(fit, controls, do={"perturbation": "control"}, noise="kept", seed=SEED)
other = glp.predict(fit, controls, do={"perturbation": "perturbation1"}, noise="kept", seed=SEED)
assert abs(same.X - controls.X).max() == 0, "nothing is set, and nothing changes"
assert abs(other.X - controls.X).max() > 0, "something is set"
