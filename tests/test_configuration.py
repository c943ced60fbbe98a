import inspect
from dataclasses import asdict, fields

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from anndata import AnnData

from genailab_pyro import CVAE_NB, Cells, SemiSupervisedVAE, Training, estimators, preprocess
from genailab_pyro.configuration import (
    MODELS,
    STRUCTURE,
    Configuration,
    HeldOut,
    ModelSettings,
    Preprocessing,
    marked_cells,
    override,
)

FULL = {
    "data": {"path": "cells.h5ad", "counts": "raw", "conditions": ["batch"], "preprocess": {"max_genes": 500}},
    "model": {"name": "CVAE_ZINB", "hidden_dims": [64, 32], "dropout": 0.2},
    "estimator": {"name": "score", "num_particles": 8},
    "training": {"max_epochs": 7, "learning_rate": 1e-05, "warmup": {"shape": "cosine", "length": 100}},
    "held_out": {"column": "donor", "levels": ["d1", "d2"]},
    "seed": 3,
    "device": "cpu",
}


@pytest.fixture
def cells():
    counts = np.random.default_rng(0).poisson(2.0, (30, 6)) + 1
    return Cells.from_tensors(counts, conditions={"batch": ["a", "b"] * 15}, labels=["t", "u", "v"] * 10)


@pytest.fixture
def adata():
    obs = pd.DataFrame(
        {"test": [True] * 3 + [False] * 17, "donor": ["a"] * 5 + ["b"] * 15}, index=[f"c{i}" for i in range(20)]
    )
    return AnnData(np.ones((20, 2), dtype=np.float32), obs)


def test_what_is_not_set_is_as_the_library_has_it(cells):
    built, given = Configuration().model.build(cells, seed=5), CVAE_NB.from_registration(cells, seed=5)
    assert str(built) == str(given)
    assert built.state_dict().keys() == given.state_dict().keys()
    for name, weights in given.state_dict().items():
        assert torch.equal(built.state_dict()[name], weights), name
    assert Configuration().training == Training()
    assert Configuration().estimator.build() == estimators.get("pathwise")


def test_every_option_of_the_library_can_be_set():
    arguments = set(inspect.signature(preprocess).parameters) - {"adata", "counts"}
    assert {item.name for item in fields(Preprocessing)} == arguments
    assert asdict(Preprocessing()) == {
        name: parameter.default
        for name, parameter in inspect.signature(preprocess).parameters.items()
        if name in arguments
    }
    modules = {"cells", "condition"}
    options = set(inspect.signature(CVAE_NB.from_registration).parameters) - modules - {"seed", "options"}
    options |= {"dropout", "norm", "inverse_dispersion", *STRUCTURE}
    assert {item.name for item in fields(ModelSettings)} == options | {"name"}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_is_built_with_its_settings(cells, name):
    content = {"data": {"labels": "type"}, "model": {"name": name, "latent_dim": 3, "hidden_dims": [8]}}
    if name == "PerturbationVAE":
        content["model"] |= {"perturbation": "batch", "control": "a"}
    vae = Configuration.from_mapping(content).model.build(cells, seed=0)
    assert type(vae).__name__ == name
    assert vae.latent_dim == 3
    assert vae.decoder.output_dim == (24 if name == "PerturbationVAE" else 8)  # the effect beside the hidden layer


@pytest.mark.parametrize(
    ("name", "options", "found"),
    [
        ("HierarchicalVAE", {"upper_dim": 2}, lambda vae: (vae.upper.output_dim,)),
        ("LabelVAE", {"num_labels": 4}, lambda vae: (vae.upper.output_dim,)),
        (
            "SemiSupervisedVAE",
            {"error": 0.25, "weight": 7.0},
            lambda vae: (1 - vae.heads[0].confusion[0, 0].item(), vae.heads[0].weight),
        ),
    ],
)
def test_options_of_one_model_reach_it_and_no_other(cells, name, options, found):
    assert found(ModelSettings(name, hidden_dims=(8,), **options).build(cells, seed=0)) == (*options.values(),)
    for option, value in options.items():
        with pytest.raises(ValueError, match=f"expected no {option} for CVAE_NB, got {value}.*or choose {name}"):
            ModelSettings("CVAE_NB", **{option: value})


def test_options_that_are_not_set_are_those_of_the_model(cells):
    vae = ModelSettings("SemiSupervisedVAE", hidden_dims=(8,)).build(cells, seed=0)
    given = SemiSupervisedVAE.from_registration(cells, hidden_dims=[8])
    assert vae.heads[0].weight == given.heads[0].weight
    torch.testing.assert_close(vae.heads[0].confusion, given.heads[0].confusion)


def test_settings_reach_what_they_are_for():
    configuration = Configuration.from_mapping(FULL)
    assert configuration.data.conditions == ("batch",)
    assert configuration.data.preprocess.max_genes == 500
    assert configuration.model.hidden_dims == (64, 32)
    assert configuration.estimator.build() == estimators.get("score", num_particles=8)
    assert configuration.training.warmup.length == 100
    assert configuration.training.learning_rate == 1e-05


@pytest.mark.parametrize("content", [{}, FULL, {"data": {"preprocess": {"max_genes": None}}}])
def test_a_configuration_comes_back_from_yaml(content, tmp_path):
    configuration = Configuration.from_mapping(content)
    file = tmp_path / "config.yaml"
    file.write_text(configuration.to_yaml())
    assert Configuration.from_file(file) == configuration
    assert Configuration.from_file(file).to_mapping() == configuration.to_mapping()


def test_the_yaml_holds_every_setting():
    content = yaml.safe_load(Configuration().to_yaml())
    assert content["training"].keys() == {item.name for item in fields(Training)}
    assert content["model"].keys() == {item.name for item in fields(ModelSettings)}
    assert content["model"]["latent_dim"] == Configuration().model.latent_dim


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"trainin": {}}, "'trainin' is no setting.*'data', 'model'.*did you mean 'training'"),
        ({"training": {"max_epoch": 3}}, "'training.max_epoch' is no setting.*did you mean 'max_epochs'"),
        ({"training": {"warmup": {"lenght": 1}}}, "'training.warmup.lenght'.*did you mean 'length'"),
        ({"data": {"preprocess": {"genes": 1}}}, "'data.preprocess.genes' is no setting"),
        ({"training": {"max_epochs": "many"}}, "expected training.max_epochs to be a whole number or null, got 'many'"),
        ({"training": {"max_epochs": True}}, "expected training.max_epochs to be a whole number or null, got True"),
        ({"training": {"learning_rate": "fast"}}, "expected training.learning_rate to be a number"),
        ({"training": {"learning_rate": -1}}, "training: expected learning_rate to be finite and above 0"),
        ({"training": 5}, "expected keys under 'training', got 5"),
        ({"model": {"name": "NB"}}, "model: expected name to be one of .*'CVAE_NB'"),
        ({"model": {"name": "SemiSupervisedVAE"}}, "column of obs with labels, from which SemiSupervisedVAE.*--labels"),
        ({"model": {"weight": 3}}, "model: expected no weight for CVAE_NB, got 3.*choose SemiSupervisedVAE"),
        ({"model": {"hidden_dims": [64, "x"]}}, r"expected model.hidden_dims\[1\] to be a whole number"),
        ({"estimator": {"name": "scor"}}, "estimator: expected estimator to be one of .*'score'"),
        ({"estimator": {"num_particles": 0}}, "estimator: expected num_particles"),
        ({"data": {"conditions": [False]}}, r"data.conditions\[0\] to be text, got False; put it in quotes"),
        ({"held_out": {"fraction": 1.0}}, "held_out: expected fraction to be at least 0 and below 1"),
        ({"held_out": {"levels": ["a"]}}, "held_out: expected a column of obs"),
        ({"seed": None}, "expected seed to be a whole number, got None"),
    ],
)
def test_what_makes_no_sense_is_named(content, message):
    with pytest.raises(ValueError, match=message):
        Configuration.from_mapping(content)


def test_numbers_that_yaml_takes_for_text_are_numbers():
    content = override({}, ["training.learning_rate=1e-3", "training.gradient_clip=null", "training.warmup.length=0.5"])
    training = Configuration.from_mapping(content).training
    assert (training.learning_rate, training.gradient_clip, training.warmup.length) == (1e-3, None, 0.5)


def test_one_name_is_a_list_of_one_and_nothing_is_the_default():
    content = {"data": {"conditions": "batch", "continuous": None}, "training": None, "held_out": None}
    configuration = Configuration.from_mapping(content)
    assert configuration.data.conditions == ("batch",)
    assert configuration.data.continuous == ()
    assert configuration.training == Training()


def test_overrides_set_values_and_leave_the_rest_alone():
    before = {"training": {"max_epochs": 5, "patience": 2}}
    after = override(before, ["training.max_epochs=50", "data.preprocess.max_genes=10", "data.conditions=[a, b]"])
    assert after == {
        "training": {"max_epochs": 50, "patience": 2},
        "data": {"preprocess": {"max_genes": 10}, "conditions": ["a", "b"]},
    }
    assert before == {"training": {"max_epochs": 5, "patience": 2}}
    assert override({"seed": 1}, ["seed=2", "seed=3"]) == {"seed": 3}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("training.max_epochs", "expected key=value"),
        ("=5", "expected key=value"),
        ("training..x=5", "expected key=value"),
        ("seed.x=5", "expected keys under 'seed'"),
        ("data.conditions=[a", "expected YAML in data.conditions"),
    ],
)
def test_overrides_that_make_no_sense_are_refused(assignment, message):
    with pytest.raises(ValueError, match=message):
        override({"seed": 1}, [assignment])


def test_files_that_are_no_configuration_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        Configuration.from_file(tmp_path / "none.yaml")
    file = tmp_path / "list.yaml"
    file.write_text("- a\n- b\n")
    with pytest.raises(ValueError, match="got list"):
        Configuration.from_file(file)
    file.write_text("a: [b\n")
    with pytest.raises(ValueError, match=r"expected YAML in .*list.yaml.*line"):
        Configuration.from_file(file)
    file.write_text("")
    assert Configuration.from_file(file) == Configuration()


def test_a_fraction_is_drawn_by_the_seed_alone(adata):
    held_out = HeldOut(fraction=0.3)
    first, again, other = (held_out.mask(adata, seed=seed) for seed in (1, 1, 2))
    assert first.sum() == other.sum() == 6
    assert (first == again).all()
    assert (first != other).any()
    assert HeldOut(fraction=0.001).mask(adata, seed=0).sum() == 1
    assert HeldOut(fraction=0.999).mask(adata, seed=0).sum() == 19
    assert not HeldOut(fraction=0.0).mask(adata, seed=0).any()


def test_a_column_holds_out_the_cells_that_it_marks(adata):
    assert list(np.flatnonzero(HeldOut(column="test").mask(adata, seed=0))) == [0, 1, 2]
    assert HeldOut(column="donor", levels=("a",)).mask(adata, seed=0).sum() == 5
    adata.obs["donor"] = adata.obs["donor"].astype("category")
    adata.obs.iloc[0, 1] = None
    assert HeldOut(column="donor", levels=("a",)).mask(adata, seed=0).sum() == 4


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        (HeldOut(column="donr"), r'expected adata.obs\["donr"\].*did you mean .donor.'),
        (HeldOut(column="donor"), "or a column of true and false, got none"),
        (HeldOut(column="donor", levels=("c",)), "among 'a', 'b'.*got 'c'"),
        (HeldOut(column="donor", levels=("a", "b")), r'got 0 and 20 by adata.obs\["donor"\]'),
    ],
)
def test_a_column_that_cannot_tell_is_named(adata, held_out, message):
    with pytest.raises(ValueError, match=message):
        held_out.mask(adata, seed=0)


def test_a_column_that_marks_no_cell_is_named(adata):
    adata.obs["test"] = False
    with pytest.raises(ValueError, match="got 20 and 0"):
        HeldOut(column="test").mask(adata, seed=0)


def test_cells_are_marked_by_the_text_of_their_value(adata):
    adata.obs["day"] = [1] * 4 + [2] * 16
    assert marked_cells(adata, "day", ("1",)).sum() == 4
    assert marked_cells(adata, "test", ("True",)).sum() == 3
