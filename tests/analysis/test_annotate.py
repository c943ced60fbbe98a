"""Latents and expression beside the counts, and their map."""

import numpy as np
import pytest
import scanpy
import torch

import genailab_pyro as glp
from genailab_pyro.analysis import annotate, umap


@pytest.fixture(scope="module")
def adata():
    return glp.data.simulate(80, 30, num_batches=2, seed=2).adata


@pytest.fixture(scope="module")
def fitted(adata):
    cells = glp.register(adata, conditions=["batch"])
    vae = glp.CVAE_NB.from_registration(cells, latent_dim=3, hidden_dims=[16])
    return glp.fit(vae, cells, max_epochs=3, progress=False)


def test_expression_is_scaled_to_the_median_library(fitted, adata):
    annotated = annotate(fitted, adata)
    median = np.median(np.asarray(adata.X.sum(1)))
    np.testing.assert_allclose(annotated.layers["expression"].sum(1), median, rtol=1e-4)
    assert annotated.uns["expression_library"] == median
    np.testing.assert_array_equal(annotated.obsm["X_vae"], fitted.latent())


def test_the_cells_are_copied_in_the_genes_order_of_the_fit(fitted, adata):
    shuffled = adata[:, ::-1].copy()
    annotated = annotate(fitted, shuffled)
    assert [*annotated.var_names] == [*fitted.registration.genes]
    assert "X_vae" not in shuffled.obsm
    np.testing.assert_allclose(annotated.obsm["X_vae"], fitted.latent(), rtol=1e-5)


def test_conditions_change_the_expression_and_not_the_latent(fitted, adata):
    factual, other = annotate(fitted, adata), annotate(fitted, adata, conditions={"batch": adata.obs["batch"].iloc[0]})
    np.testing.assert_array_equal(factual.obsm["X_vae"], other.obsm["X_vae"])
    changed = np.abs(factual.layers["expression"] - other.layers["expression"]).max(axis=1) > 1e-4
    assert (changed == (adata.obs["batch"] != adata.obs["batch"].iloc[0]).to_numpy()).all()


def test_a_map_leaves_the_number_of_threads_alone(monkeypatch):
    def layout(cells, *, random_state):
        torch.set_num_threads(3)
        cells.obsm["X_umap"] = cells.obsm["X_vae"][:, :2]

    monkeypatch.setattr(scanpy.tl, "umap", layout)
    before = torch.get_num_threads()
    umap(np.random.default_rng(0).normal(size=(40, 3)))
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_a_map_keeps_far_groups_apart_and_takes_many_cells():
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1], 4500)
    xy = umap(rng.normal(size=(9000, 3)) + 50 * groups[:, None])
    found = glp.evaluation.label_agreement(xy[::30], groups[::30])
    assert found.purity == 1
