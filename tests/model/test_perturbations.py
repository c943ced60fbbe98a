"""Perturbations compose, their effect is zero without one, and it never falls with the dose."""

import pandas as pd
import pytest
import torch

import genailab_pyro as glp
from genailab_pyro import Minibatch
from genailab_pyro.model.perturbation_vae import EffectDecoder, PerturbationVAE
from genailab_pyro.model.perturbations import (
    DOSE_CURVES,
    HillCurve,
    LogCurve,
    PerturbationEncoding,
    parts_of,
)
from genailab_pyro.nn import Declared

NAMES = ["control", "A", "B", "A+B"]
FEATURES = {"A": [1.0, 0.0], "B": [0.0, 1.0], "C": [1.0, 1.0]}


def given(codes, doses=None):
    """Cells of the first context that were given perturbations, at doses."""
    codes = torch.as_tensor(codes)
    number = len(codes)
    continuous = torch.zeros(number, 0) if doses is None else torch.as_tensor(doses, dtype=torch.float32)[:, None]
    conditions = torch.stack([torch.zeros_like(codes), codes], 1)
    return Minibatch(None, conditions, continuous, torch.ones(number), torch.arange(number), number)


def encoding(**options):
    torch.manual_seed(0)
    return PerturbationEncoding([2, len(NAMES)], NAMES, position=1, effect_dim=3, **options)


@pytest.mark.parametrize("features", [None, FEATURES])
@pytest.mark.parametrize("hidden_dims", [(), (4,)])
def test_the_control_has_no_effect_and_a_combination_the_sum(features, hidden_dims):
    effect = encoding(features=features, hidden_dims=hidden_dims).effect(given([0, 1, 2, 3]))
    assert (effect[0] == 0).all()
    assert (effect[1:3].abs().max(1).values > 0).all()
    torch.testing.assert_close(effect[3], effect[1] + effect[2])


def test_columns_are_contexts_other_covariates_and_the_effect():
    module = encoding(continuous_dim=2, dose=LogCurve(2, index=1, loc=1.0, scale=1.0))
    cells = given([1, 3])._replace(continuous=torch.tensor([[0.3, 0.0], [0.7, -1.0]]))
    values = module(cells)
    assert values.shape == (2, module.output_dim) == (2, 6)
    assert values[:, :3].tolist() == [[1, 0, pytest.approx(0.3)], [1, 0, pytest.approx(0.7)]]
    torch.testing.assert_close(values[:, 3:], module.effect(cells))
    assert (values[1, 3:] == 0).all()


@pytest.mark.parametrize("name", DOSE_CURVES)
def test_the_effect_is_zero_at_dose_zero_and_never_falls(name):
    curve = DOSE_CURVES[name](2, loc=3.7, scale=2.9)
    with torch.no_grad():
        for parameter in curve.parameters():
            parameter.add_(torch.randn_like(parameter))
    doses = torch.cat([torch.zeros(1), torch.logspace(-3, 3, 50)])
    factor = curve(given([1] * 51, (doses - 3.7) / 2.9))
    assert (factor[0] == 0).all()
    assert (factor.diff(dim=0) >= 0).all()
    assert factor.requires_grad
    factor.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in curve.parameters())


def test_the_curves_are_those_of_their_formulas():
    cells = given([1, 1], [0.5, 2.0])
    hill, log = HillCurve(1, loc=0.0, scale=2.0), LogCurve(1, loc=0.0, scale=2.0)
    with torch.no_grad():
        hill.slope.fill_(0.0)
    slope = torch.tensor(2.0).log()  # what softplus makes of zero
    doses = torch.tensor([1.0, 4.0])
    torch.testing.assert_close(hill(cells)[:, 0], doses**slope / (2.0**slope + doses**slope))
    torch.testing.assert_close(log(cells)[:, 0], (1 + doses / 2).log())


def test_a_dose_scales_each_part_of_a_combination_by_its_own_curve():
    module = encoding(continuous_dim=1, dose=LogCurve(2, loc=1.0, scale=1.0))
    with torch.no_grad():
        module.dose.log_half.copy_(torch.tensor([0.0, 2.0]))
    single, other, both = module.effect(given([1, 2, 3], [1.0, 1.0, 1.0]))
    torch.testing.assert_close(both, single + other)
    torch.testing.assert_close(single, module.vectors[0] * torch.tensor(3.0).log())


def test_levels_that_no_cell_was_given_are_composed():
    module = PerturbationEncoding([3], NAMES[:3], effect_dim=3)
    opened = module.with_levels(["B+A", "A+A"])
    cells = given([0, 1, 2, 3, 4])._replace(conditions=torch.arange(5)[:, None])
    effect = opened.effect(cells)
    torch.testing.assert_close(effect[3], effect[1] + effect[2])
    torch.testing.assert_close(effect[4], 2 * effect[1])
    assert (opened.levels, module.levels) == ((5,), (3,))
    old = cells._replace(conditions=cells.conditions[:3])
    torch.testing.assert_close(effect[:3], module.effect(old))


def test_features_tell_the_effect_of_a_perturbation_that_no_cell_was_given():
    module = encoding(features=FEATURES)
    effect = module.with_levels(["C"]).effect(given([1, 2, 4]))
    torch.testing.assert_close(effect[2], effect[0] + effect[1])  # as its features are the sum of theirs
    with pytest.raises(ValueError, match="expected 'D' to be composed of known perturbations, 'A', 'B', 'C', got 'D'"):
        module.with_levels(["D"])


def test_the_callers_random_state_stays():
    module = encoding()
    before = torch.get_rng_state()
    module.with_levels(["B+B"])
    assert (torch.get_rng_state() == before).all()


@pytest.mark.parametrize(
    ("level", "control", "separator", "expected"),
    [
        ("A+B", "control", "+", ["A", "B"]),
        ("A + ctrl", "ctrl", "+", ["A"]),
        ("ctrl", "ctrl", "+", []),
        ("ctrl+ctrl", "ctrl", "+", []),
        ("no+thing", "no+thing", "+", []),
        ("IFN-a", "control", None, ["IFN-a"]),
        ("A_B", "control", "_", ["A", "B"]),
    ],
)
def test_parts_of_a_level(level, control, separator, expected):
    assert parts_of(level, control, separator) == expected


@pytest.mark.parametrize("options", [{}, {"features": FEATURES, "hidden_dims": [4]}])
def test_a_declaration_and_weights_restore_it(options):
    module = encoding(continuous_dim=1, dose=HillCurve(3 if options else 2, loc=2.0, scale=1.5), **options)
    restored = Declared.declare(module.declaration())
    restored.load_state_dict(module.state_dict())
    cells = given([0, 1, 2, 3], [-1.0, 0.0, 1.0, 2.0])
    torch.testing.assert_close(restored(cells), module(cells), rtol=0, atol=0)


def test_it_is_declared_from_a_registration():
    doses = glp.data.Perturbations(number=2, dose=glp.data.Doses())
    adata = glp.data.simulate(120, 20, num_batches=2, perturbations=doses).adata
    cells = glp.register(adata, conditions=["batch", "perturbation"], continuous=["dose"])
    module = PerturbationEncoding.from_registration(cells, "perturbation", dose="dose", dose_curve="log", effect_dim=4)
    assert (module.levels, module.position, module.output_dim) == ((2, 3), 1, 6)
    minibatch = cells.take(range(120))
    dose = torch.as_tensor(adata.obs["dose"].to_numpy(), dtype=torch.float32)
    torch.testing.assert_close(module.dose.dose(minibatch)[:, 0], dose, rtol=1e-5, atol=1e-5)
    control = torch.as_tensor((adata.obs["perturbation"] == "control").to_numpy())
    assert (module.effect(minibatch)[control] == 0).all()
    features = pd.DataFrame({"size": [1.0, 2.0]}, index=["perturbation1", "perturbation2"])
    described = PerturbationEncoding.from_registration(cells, "perturbation", features=features)
    assert described.table.tolist() == [[1], [2]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position": 0}, "expected the position of a condition with 4 levels, got position=0"),
        ({"position": 2}, "expected the position of a condition with 4 levels, got position=2"),
        ({"control": "ctrl"}, r"expected the control 'ctrl' among the levels 'control', 'A', 'B', 'A\+B'"),
        ({"effect_dim": 0}, "expected effect_dim to be at least one, got 0"),
        ({"features": {"A": [1.0]}}, "expected 'B' to be composed of known perturbations, 'A', got 'B'"),
        ({"features": {"A": [1.0], "B": [float("nan")]}}, "expected a row of finite numbers for each perturbation"),
        ({"dose": HillCurve(2)}, "expected the dose among 0 continuous covariates, got index=0"),
        ({"dose": HillCurve(3), "continuous_dim": 1}, "expected a dose curve for each of 2 .* got 3"),
    ],
)
def test_what_can_not_be_encoded_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PerturbationEncoding([2, 4], NAMES, **({"position": 1} | options))


@pytest.mark.parametrize("options", [{"index": -1}, {"scale": 0.0}])
def test_a_dose_that_can_not_be_read_is_refused(options):
    with pytest.raises(ValueError, match="expected the index of a covariate and a scale above zero"):
        HillCurve(1, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"perturbation": "drug"}, "drug"),
        ({"perturbation": "perturbation", "dose": "mg"}, "mg"),
        ({"perturbation": "perturbation", "control": "none"}, "expected the control 'none'"),
    ],
)
def test_names_that_are_not_registered_are_refused(options, message):
    adata = glp.data.simulate(60, 10, perturbations=glp.data.Perturbations(number=1, num_genes=3)).adata
    cells = glp.register(adata, conditions=["perturbation"])
    with pytest.raises(ValueError, match=message):
        PerturbationEncoding.from_registration(cells, **options)


def test_a_vae_is_declared_with_it_and_learns_it(tmp_path):
    adata = glp.data.simulate(120, 20, perturbations=glp.data.Perturbations(number=2)).adata
    cells = glp.register(adata, conditions=["perturbation"])
    condition = PerturbationEncoding.from_registration(cells, "perturbation", effect_dim=4)
    vae = glp.CVAE_NB.from_registration(cells, latent_dim=3, hidden_dims=[8], condition=condition)
    assert vae.condition is vae.encoder.condition is condition
    fit = glp.fit(vae, cells, max_epochs=2, progress=False)
    assert not torch.equal(fit.vae.condition.vectors, condition.vectors)
    loaded = glp.load(fit.save(tmp_path / "fit"))
    torch.testing.assert_close(loaded.vae.condition.vectors, fit.vae.condition.vectors, rtol=0, atol=0)
    assert loaded.vae.condition.singles == ("perturbation1", "perturbation2")


def test_an_encoding_of_other_conditions_is_refused():
    adata = glp.data.simulate(60, 10, perturbations=glp.data.Perturbations(number=2, num_genes=3)).adata
    cells = glp.register(adata, conditions=["perturbation"])
    with pytest.raises(ValueError, match=r"expected an encoding of conditions with \[3\] levels, .* got one of \[4\]"):
        glp.CVAE_NB.from_registration(cells, condition=PerturbationEncoding([4], NAMES))
    condition = PerturbationEncoding.from_registration(cells, "perturbation")
    with pytest.raises(ValueError, match=r"and no embedding_dim beside it, got .* embedding_dim=4"):
        glp.CVAE_NB.from_registration(cells, condition=condition, embedding_dim=4)
    with pytest.raises(ValueError, match="expected no condition for VAE_NB, which is blind to them"):
        glp.VAE_NB.from_registration(cells, condition=condition)


def decoder_and_encoding():
    module = PerturbationEncoding([2, 4], NAMES, position=1, effect_dim=3)
    decoder = EffectDecoder(2, [5], condition_dim=module.output_dim, effect_dim=3, dropout=0.0)
    torch.nn.init.normal_(decoder.gate.weight)
    return decoder, module


def test_log_fold_changes_of_a_combination_are_the_sums_of_those_of_its_parts():
    torch.manual_seed(0)
    decoder, module = decoder_and_encoding()
    likelihood = glp.NegativeBinomialLikelihood(decoder.output_dim, 6, size_factor=True)
    cells = given([0, 1, 2, 3])
    z = torch.randn(1, 2).expand(4, -1)
    control, first, second, both = likelihood.log_mean(decoder(z, module(cells)), cells)
    torch.testing.assert_close(both - control, (first - control) + (second - control))
    assert (first - control).abs().max() > 0.01


def test_a_perturbation_does_the_same_to_every_cell_at_first_and_then_what_its_latent_says():
    torch.manual_seed(0)
    decoder, module = decoder_and_encoding()
    condition, z = module(given([1, 1])), torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    effect = decoder(z, condition)[:, -3:]
    torch.testing.assert_close(effect[0], module.vectors[0])
    torch.testing.assert_close(effect[1], module.vectors[0] * (1 + decoder.gate.weight @ z[1]))
    fresh = EffectDecoder(2, [5], condition_dim=5, effect_dim=3)
    assert (fresh.gate.weight == 0).all()


def test_the_effect_is_broadcast_over_particles():
    decoder, module = decoder_and_encoding()
    cells = given([0, 1, 3])
    z = torch.randn(4, 3, 2)
    together = decoder.eval()(z, module(cells))
    assert together.shape == (4, 3, 8)
    torch.testing.assert_close(together[2], decoder(z[2], module(cells)))


def test_a_vae_of_composing_effects_is_declared_saved_and_loaded(tmp_path):
    doses = glp.data.Perturbations(number=2, dose=glp.data.Doses())
    adata = glp.data.simulate(120, 20, num_batches=2, perturbations=doses).adata
    cells = glp.register(adata, conditions=["batch", "perturbation"], continuous=["dose"], labels="cell_type")
    condition = PerturbationEncoding.from_registration(cells, "perturbation", dose="dose")
    vae = PerturbationVAE.from_registration(cells, condition, latent_dim=3, hidden_dims=[8])
    assert vae.condition is vae.encoder.condition is condition
    fit = glp.fit(vae, cells, max_epochs=2, progress=False)
    loaded = glp.load(fit.save(tmp_path / "fit"))
    options = {"conditions": {"perturbation": "perturbation2"}, "num_samples": 2}
    assert (loaded.expression(adata, **options) == fit.expression(adata, **options)).all()


def test_the_seed_sets_the_weights_and_the_callers_random_state_stays():
    adata = glp.data.simulate(60, 12, perturbations=glp.data.Perturbations(number=1)).adata
    cells = glp.register(adata, conditions=["perturbation"])
    before = torch.get_rng_state()
    first, again, other = (PerturbationVAE.from_registration(cells, "perturbation", seed=seed) for seed in (1, 1, 2))
    assert (torch.get_rng_state() == before).all()
    weights = [
        torch.cat([vae.condition.vectors.ravel(), vae.encoder.loc.weight.ravel()]) for vae in (first, again, other)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.isclose(weights[0], weights[2]).any()
    with pytest.raises(ValueError, match="drug"):
        PerturbationVAE.from_registration(cells, "drug")
    with pytest.raises(TypeError, match=r"expected cells from glp\.register"):
        PerturbationVAE.from_registration(adata, "perturbation")


@pytest.mark.parametrize("effect_dim", [0, 6])
def test_an_effect_wider_than_the_condition_is_refused(effect_dim):
    with pytest.raises(ValueError, match="expected an effect of width 1 to 5, the condition's, got"):
        EffectDecoder(2, [5], condition_dim=5, effect_dim=effect_dim)
