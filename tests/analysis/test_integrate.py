"""Latents beside the counts, and a new batch on a trained model whose other weights stay as they are."""

import copy
from importlib import import_module

import numpy as np
import pytest
import torch

import genailab_pyro as glp
from genailab_pyro.analysis.integrate import integrate, map_batch
from genailab_pyro.model.flows import FlowPrior

module = import_module("genailab_pyro.analysis.integrate")  # the package has a function of that name

NEW = "batch2"
QUICK = {"max_epochs": 2, "progress": False}


@pytest.fixture(scope="module")
def adata():
    cells = glp.data.simulate(150, 30, num_batches=3, seed=0).adata
    cells.obs["donor"] = np.where(np.arange(150) % 3 == 0, "d1", "d2")
    cells.obs["age"] = np.linspace(20, 60, 150)
    return cells


@pytest.fixture(scope="module")
def old(adata):
    return adata[adata.obs["batch"] != NEW].copy()


@pytest.fixture(scope="module")
def new(adata):
    return adata[adata.obs["batch"] == NEW].copy()


def trained(
    old, model=glp.CVAE_NB, conditions=("batch",), continuous=(), estimator="pathwise", max_epochs=2, **options
):
    cells = glp.register(old, conditions=[*conditions], continuous=[*continuous])
    vae = model.from_registration(cells, **{"latent_dim": 3, "hidden_dims": [8], **options})
    return glp.fit(vae, cells, estimator, max_epochs=max_epochs, progress=False)


@pytest.fixture(scope="module")
def reference(old):
    return trained(old)


@pytest.fixture(scope="module")
def mapped(reference, adata):
    return map_batch(reference, adata, **QUICK)


def test_the_latent_is_beside_all_genes_of_a_copy(reference, old):
    wider = old[:, ::-1].copy()
    found = integrate(reference, wider, key="X_integrated")
    np.testing.assert_allclose(found.obsm["X_integrated"], reference.latent(), rtol=1e-5, atol=1e-6)
    assert [*found.var_names] == [*wider.var_names]
    assert "X_integrated" not in wider.obsm
    assert "X_vae" in integrate(reference, old).obsm


CASES = {
    "one-hot": {},
    "embedding": {"embedding_dim": 2},
    "zero-inflated": {"model": glp.CVAE_ZINB},
    "gaussian": {"model": glp.CVAE},
    "dispersion": {"inverse_dispersion": "gene-condition"},
    "latent library": {"library": "latent"},
    "batch norm": {"norm": "batch"},
    "second of two": {"conditions": ("donor", "batch"), "continuous": ("age",)},
    "first of two": {"conditions": ("batch", "donor"), "continuous": ("age",), "inverse_dispersion": "gene-condition"},
    "embedding of two": {"conditions": ("donor", "batch"), "continuous": ("age",), "embedding_dim": 2},
    "hierarchical": {"model": glp.HierarchicalVAE, "upper_dim": 2},
    "label": {"model": glp.LabelVAE, "num_labels": 3, "estimator": "enum"},
    "bits": {"model": glp.BernoulliVAE, "estimator": "score"},
}


@pytest.mark.parametrize("name", CASES)
def test_old_cells_keep_what_they_had_and_new_cells_are_trained(old, new, adata, tmp_path, name):
    fit = trained(old, **CASES[name])
    kept = copy.deepcopy(fit.vae.state_dict())
    found = map_batch(fit, adata, **QUICK)
    # To the last bit; only the logits of a label are sums of dense inputs, taken in another order beside a zero more.
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if name == "label" else {"rtol": 0, "atol": 0}
    for answer in (glp.Fit.latent, glp.Fit.elbo, glp.Fit.expression):
        np.testing.assert_allclose(answer(found, old), answer(fit, old), **tolerance)
    assert all(torch.equal(value, fit.vae.state_dict()[key]) for key, value in kept.items())
    other = "batch0"
    moved = new.copy()
    moved.obs["batch"] = other
    assert np.abs(found.expression(new) - found.expression(moved)).max() > 0
    assert [item.requires_grad for item in found.vae.parameters()] == [True] * len([*fit.vae.parameters()])
    loaded = glp.load(found.save(tmp_path / "mapped"))
    np.testing.assert_array_equal(loaded.latent(adata), found.latent(adata))
    np.testing.assert_array_equal(loaded.elbo(new), found.elbo(new))


def test_dense_counts_give_the_old_latents_up_to_the_order_of_the_sums(old, adata):
    dense, wider = old.copy(), adata.copy()
    dense.X, wider.X = (np.asarray(part.X.todense()) + 1.0 for part in (old, adata))  # no zeros to pass over
    fit = trained(dense)
    np.testing.assert_allclose(map_batch(fit, wider, **QUICK).latent(dense), fit.latent(), rtol=1e-5, atol=1e-6)


def test_every_weight_but_the_new_columns_is_as_it_was(reference, mapped):
    before, after = reference.vae.state_dict(), mapped.vae.state_dict()
    assert before.keys() == after.keys()
    grown = [name for name in before if before[name].shape != after[name].shape]
    assert grown == ["decoder.layers.0.weight", "encoder.trunk.layers.0.weight"]
    for name, value in before.items():
        found = after[name][: len(value)] if name in grown else after[name]  # the batch is the last input
        assert torch.equal(found, value), name
    for name in grown:
        others = before[name][-2:].mean(0)
        assert not torch.equal(after[name][-1], others)  # it is trained from the mean of the others


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_nothing_else_moves_in_training(old, norm):
    vae, parts = module._with_level(trained(old, norm=norm).vae, 0, [(0.0, 1.0)] * 3)
    trainable = module._trainable(vae, parts)
    free = [tuple(parameter.shape) for parameter in trainable.parameters() if parameter.requires_grad]
    assert free == [(1, 8), (1, 8)]  # of the decoder and of the encoder
    before = {name: value.clone() for name, value in trainable.named_buffers() if "running" in name}
    trainable.train()
    trainable.decoder(torch.randn(16, 3), torch.eye(3)[:1].expand(16, 3))
    assert all(torch.equal(value, trainable.get_buffer(name)) for name, value in before.items())
    assert (len(before) > 0) == (norm == "batch")


def test_it_begins_at_the_mean_of_the_other_levels(reference, adata):
    start = map_batch(reference, adata, learning_rate=1e-30, **QUICK).vae.decoder.layers[0].weight
    torch.testing.assert_close(start[-1], reference.vae.decoder.layers[0].weight[-2:].mean(0))


def test_the_registration_has_the_level_and_the_cells(reference, mapped, old, new):
    (condition,) = mapped.registration.conditions
    assert condition.levels == ("batch0", "batch1", NEW)
    assert mapped.registration.num_cells == 150
    assert sum(condition.frequencies) == pytest.approx(1)
    assert condition.frequencies[2] == pytest.approx(len(new) / 150)
    logs = np.log(np.concatenate([np.asarray(part.X.sum(1)).ravel() for part in (old, new)]))
    library = mapped.registration.library
    assert (library.loc, library.scale) == pytest.approx((logs.mean(), logs.std()), rel=1e-5)
    assert library.levels[2] == pytest.approx((logs[len(old) :].mean(), logs[len(old) :].std()), rel=1e-5)
    assert [*mapped.cells.obs_names] == [*new.obs_names]
    assert reference.registration.num_cells == len(old)


def test_a_mapped_fit_is_like_any_other(mapped, adata, old):
    generated = mapped.generate(5, conditions={"batch": NEW})
    assert (generated.obs["batch"] == NEW).all()
    assert mapped.expression(old, conditions={"batch": NEW}).shape == (len(old), 30)
    twice = adata.copy()
    twice.obs["batch"] = twice.obs["batch"].astype(str).where(np.arange(150) > 20, "batch3")
    again = map_batch(mapped, twice, level="batch3", **QUICK)
    assert again.registration.conditions[0].levels[-1] == "batch3"
    np.testing.assert_array_equal(again.latent(adata), mapped.latent(adata))


def test_the_same_seed_gives_the_same_map_and_leaves_the_random_state(reference, mapped, adata):
    state = torch.get_rng_state()
    same, other = map_batch(reference, adata, **QUICK), map_batch(reference, adata, seed=1, **QUICK)
    assert torch.equal(state, torch.get_rng_state())
    one, two, three = (fit.vae.decoder.layers[0].weight for fit in (mapped, same, other))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_a_composition_of_parts_is_mapped_too(old, adata):
    cells = glp.register(old, conditions=["batch"])
    condition = glp.nn.OneHot([2])
    vae = glp.VAE(
        prior=glp.DependentNormal(2, 3),
        decoder=glp.LinearDecoder(3, condition_dim=2),
        likelihood=glp.NegativeBinomialLikelihood(5, 30),
        encoder=glp.NormalEncoder(30, 3, [8]),
        condition=condition,
    )
    fit = glp.fit(vae, cells, **QUICK)
    found = map_batch(fit, adata, **QUICK)
    np.testing.assert_array_equal(found.elbo(old), fit.elbo(old))
    assert found.vae.prior.loc.weight.shape == (3, 3)
    assert torch.equal(found.vae.likelihood.log_expression.weight[:, :5], fit.vae.likelihood.log_expression.weight)


def test_a_planted_error_in_the_place_of_the_level_is_found(reference, old, adata, monkeypatch):
    right = module._part

    def before_the_condition(vae, position, path):
        part = right(vae, position, path)
        return module.replace(part, index=part.index - 1, levels=1)

    monkeypatch.setattr(module, "_part", before_the_condition)
    found = map_batch(reference, adata, **QUICK)
    assert not np.array_equal(found.latent(old), reference.latent(old))


class TestRefusals:
    def test_a_model_that_does_not_see_the_condition(self, reference, old, adata):
        with pytest.raises(ValueError, match="expected a model with the categorical condition 'donor', got one with "):
            map_batch(reference, adata, condition="donor")
        blind = trained(old, model=glp.VAE_NB)
        with pytest.raises(ValueError, match="expected a model with the categorical condition 'batch', got one with n"):
            map_batch(blind, adata)

    def test_levels_that_are_not_new(self, reference, old, adata):
        with pytest.raises(ValueError, match=r"one level .* not registered, got none; name one"):
            map_batch(reference, old)
        with pytest.raises(ValueError, match="got 'batch0', which is registered"):
            map_batch(reference, adata, level="batch0")
        with pytest.raises(ValueError, match="got 'batch7', which is without cells"):
            map_batch(reference, adata, level="batch7")
        several = adata.copy()
        several.obs["batch"] = np.where(np.arange(150) % 2 == 0, "x", "y")
        with pytest.raises(ValueError, match=r"expected one level .* got 'x', 'y'; name one"):
            map_batch(reference, several)

    def test_data_of_another_kind(self, reference, adata):
        with pytest.raises(TypeError):
            map_batch(reference, np.zeros((3, 30)))
        column = adata.copy()
        del column.obs["batch"]
        with pytest.raises(ValueError, match=r'expected adata.obs\["batch"\], which names the new batch'):
            map_batch(reference, column)
        with pytest.raises(ValueError, match="genes"):
            map_batch(reference, adata[:, :10].copy())
        with pytest.raises(ValueError, match="expected training settings"):
            map_batch(reference, adata, run_folder="somewhere")

    def test_a_part_that_is_not_known(self, old, adata):
        pytest.importorskip("zuko")
        cells = glp.register(old, conditions=["batch"])
        vae = glp.CVAE_NB.from_registration(cells, latent_dim=3, hidden_dims=[8])
        parts = {name: getattr(vae, name) for name in ("decoder", "likelihood", "encoder", "condition")}
        flow = glp.VAE(prior=FlowPrior(3, condition_dim=2, transforms=1, hidden_dims=(8,)), **parts)
        fit = glp.fit(flow, cells, **QUICK)
        with pytest.raises(NotImplementedError, match="expected parts that read the condition by linear layers or tab"):
            map_batch(fit, adata, **QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("embedding_dim", [None, 4])
def test_the_weights_of_a_new_batch_are_learned(embedding_dim):
    simulated = glp.data.simulate(600, 60, num_batches=3, batch_scale=1.0, seed=1).adata
    old, new = (simulated[(simulated.obs["batch"] == NEW) == wanted].copy() for wanted in (False, True))
    fit = trained(old, latent_dim=4, hidden_dims=[32], max_epochs=40, embedding_dim=embedding_dim)
    untrained, found = (
        map_batch(fit, simulated, max_epochs=epochs, learning_rate=rate, progress=False)
        for epochs, rate in ((1, 1e-30), (100, 2e-2))
    )
    assert found.elbo(new).mean() > untrained.elbo(new).mean() + 2
