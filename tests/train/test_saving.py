"""A fit that is saved is the fit that is loaded, and nothing else is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pandas.testing import assert_frame_equal
from safetensors.torch import load_file, save_file
from torch import nn

import genailab_pyro as glp

WEIGHTS, DECLARATION = "weights.safetensors", "fit.json"

MODELS = {
    "library latent": (glp.CVAE_NB, {"library": "latent"}),
    "embedding": (glp.CVAE_NB, {"embedding_dim": 2}),
    "embedding and library": (glp.CVAE_ZINB, {"embedding_dim": 2, "library": "latent"}),
    "per condition": (glp.CVAE_NB, {"inverse_dispersion": "gene-condition", "norm": "batch"}),
    "per cell": (glp.VAE_ZINB, {"inverse_dispersion": "gene-cell", "norm": "none"}),
    "normal": (glp.CVAE, {}),
    "no conditions": (glp.VAE_NB, {}),
}


@pytest.fixture(scope="module")
def several(adata):
    """Two conditions, a continuous covariate, and labels."""
    return glp.register(adata, conditions=["batch", "cell_type"], continuous=["dose"], labels="cell_type")


def assert_same_fit(loaded, fit, adata):
    assert loaded.registration == fit.registration
    assert (loaded.training, loaded.estimator, loaded.seed) == (fit.training, fit.estimator, fit.seed)
    assert loaded.interrupted is fit.interrupted
    assert loaded.versions == fit.versions
    assert loaded.cells is None
    assert_frame_equal(loaded.history, fit.history, check_exact=True)
    assert np.array_equal(loaded.latent(adata), fit.latent(adata))
    for question in ("elbo", "log_likelihood"):
        mine, theirs = (getattr(each, question)(adata, num_particles=3, seed=2) for each in (loaded, fit))
        assert np.array_equal(mine, theirs)
    assert np.array_equal(loaded.generate(20, seed=1).X.toarray(), fit.generate(20, seed=1).X.toarray())
    assert loaded.vae.state_dict().keys() == fit.vae.state_dict().keys()


@pytest.mark.parametrize("model", MODELS)
def test_a_fit_comes_back_to_the_last_bit(several, adata, train, tmp_path, model):
    declared, options = MODELS[model]
    vae = declared.from_registration(several, latent_dim=3, hidden_dims=[16, 8], **options)
    fit = train(vae, several, "score", max_epochs=2, learning_rate_schedule="cosine")
    folder = fit.save(tmp_path / "fit")
    assert sorted(path.name for path in folder.iterdir()) == [DECLARATION, WEIGHTS]
    assert_same_fit(glp.load(folder), fit, adata)


def test_a_fit_without_validation_cells_or_after_ctrl_c_comes_back(vae, cells, adata, train, tmp_path):
    def interrupt(epoch, row):
        raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="interrupted"):
        fit = train(vae, cells, validation_fraction=0.0, callback=interrupt)
    assert fit.history["validation_elbo"].isna().all()
    assert_same_fit(glp.load(fit.save(tmp_path)), fit, adata)


def test_a_fit_in_double_precision_comes_back(vae, cells, adata, train, tmp_path):
    fit = train(vae.double(), cells, run_folder=tmp_path / "run")
    loaded = glp.load(fit.save(tmp_path / "fit"))
    assert loaded.latent(adata).dtype == np.float64
    assert_same_fit(loaded, fit, adata)
    assert glp.resume(tmp_path / "run", cells, progress=False).latent().tolist() == fit.latent().tolist()


def test_a_fit_that_is_loaded_can_be_saved_again(fitted, adata, tmp_path):
    once = glp.load(fitted.save(tmp_path / "first"))
    twice = glp.load(once.save(tmp_path / "second"))
    assert_same_fit(twice, fitted, adata)
    assert (tmp_path / "first" / DECLARATION).read_text() == (tmp_path / "second" / DECLARATION).read_text()


def test_parts_that_were_shared_are_shared_again(several, train, tmp_path):
    vae = glp.CVAE_NB.from_registration(several, latent_dim=3, hidden_dims=[16], embedding_dim=2)
    loaded = glp.load(train(vae, several, max_epochs=1).save(tmp_path))
    assert loaded.vae.encoder.condition is loaded.vae.condition
    assert len(list(loaded.vae.parameters())) == len(list(vae.parameters()))


class PoissonCounts(glp.Likelihood):
    """A user's likelihood, at the top of a module."""

    def __init__(self, features, genes, *, floor=0.0):
        super().__init__()
        self.floor = floor
        self.log_rate = nn.Linear(features, genes)

    def forward(self, features, minibatch):
        rate = self.log_rate(features).softmax(-1) * minibatch.library.unsqueeze(-1)
        return dist.Poisson(rate + self.floor).to_event(1)


def made_by_hand(likelihood):
    torch.manual_seed(0)
    return glp.VAE(
        prior=glp.StandardNormal(3),
        decoder=glp.MLP(3, [16]),
        likelihood=likelihood,
        encoder=glp.NormalEncoder(20, 3, [16]),
    )


def test_a_users_own_likelihood_comes_back(cells, adata, train, tmp_path):
    fit = train(made_by_hand(PoissonCounts(16, 20, floor=0.25)), cells)
    loaded = glp.load(fit.save(tmp_path))
    assert isinstance(loaded.vae.likelihood, PoissonCounts)
    assert loaded.vae.likelihood.floor == 0.25
    assert_same_fit(loaded, fit, adata)


def test_a_class_inside_a_function_is_refused_at_save(cells, train, tmp_path):
    class LocalCounts(PoissonCounts):
        pass

    with pytest.warns(UserWarning, match="this fit cannot be saved: .*LocalCounts, defined inside a function"):
        fit = train(made_by_hand(LocalCounts(16, 20)), cells, max_epochs=1)
    with pytest.raises(TypeError, match=r"LocalCounts, defined inside a function; define it at the top of a module"):
        fit.save(tmp_path / "fit")
    assert not (tmp_path / "fit").exists()


def test_an_argument_that_can_not_be_saved_is_refused_before_anything_is_trained():
    with pytest.raises(TypeError, match=r"PoissonCounts\(floor=\) to be a number.*got Tensor"):
        PoissonCounts(16, 20, floor=torch.tensor(0.25))


OWN_MODULE = '''
from genailab_pyro import NegativeBinomialLikelihood

class OwnCounts(NegativeBinomialLikelihood):
    """A user's likelihood, in a file of the user's."""
'''

READER = """
import sys
import anndata
import numpy as np
import genailab_pyro as glp
folder, counts, answers = sys.argv[1:]
fit, cells = glp.load(folder), anndata.read_h5ad(counts)
np.savez(answers, latent=fit.latent(cells), bound=fit.log_likelihood(cells, num_particles=3))
"""


@pytest.mark.slow
def test_a_fit_is_read_in_another_process_without_the_data(cells, adata, train, tmp_path, monkeypatch):
    (tmp_path / "own_counts.py").write_text(OWN_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    from own_counts import OwnCounts

    fit = train(made_by_hand(OwnCounts(16, 20)), cells)
    folder = fit.save(tmp_path / "fit")
    adata.write_h5ad(tmp_path / "cells.h5ad")
    command = [sys.executable, "-c", READER, str(folder), str(tmp_path / "cells.h5ad"), str(tmp_path / "read.npz")]
    subprocess.run(command, check=True, timeout=300, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    read = np.load(tmp_path / "read.npz")
    assert np.array_equal(read["latent"], fit.latent(adata))
    assert np.array_equal(read["bound"], fit.log_likelihood(adata, num_particles=3))


@pytest.fixture
def folder(fitted, tmp_path):
    return fitted.save(tmp_path / "fit")


def edit(folder, **changes):
    content = json.loads((folder / DECLARATION).read_text())
    (folder / DECLARATION).write_text(json.dumps({**content, **changes}))


def test_another_fit_in_the_folder_is_not_overwritten(fitted, folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError, match="a folder without a fit"):
        fitted.save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("missing", [WEIGHTS, DECLARATION])
def test_a_missing_file_is_named(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"a file {missing} in .*, found none"):
        glp.load(folder)


def test_a_folder_of_pickles_alone_is_no_fit(tmp_path):
    torch.save({}, tmp_path / "weights.pt")
    with pytest.raises(FileNotFoundError, match=r"a saved fit with a file fit\.json"):
        glp.load(tmp_path)


def test_a_pickle_in_place_of_the_weights_is_refused(fitted, folder):
    torch.save(fitted.vae.state_dict(), folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"a pickle, as torch\.save writes, is never loaded"):
        glp.load(folder)


def test_a_newer_format_is_refused_before_anything_is_built(folder):
    edit(folder, format=2, vae={"class": "os:system", "arguments": {}, "part": 0})
    with pytest.raises(ValueError, match=r"format 1 or older in .* got 2; update genailab_pyro"):
        glp.load(folder)


def test_weights_that_were_changed_are_refused(folder):
    weights = load_file(folder / WEIGHTS)
    name = "decoder.layers.0.weight"
    changes = {
        r"'decoder.layers.0.weight' of shape \(5, 16\).*got \(16, 5\)": {name: weights[name].T.contiguous()},
        "type torch.float32 .* and torch.float64": {name: weights[name].double()},
        r"not its own: \['extra'\]": {"extra": torch.zeros(1)},
    }
    for message, change in changes.items():
        save_file({**weights, **change}, folder / WEIGHTS)
        with pytest.raises(ValueError, match=message):
            glp.load(folder)
    save_file({key: value for key, value in weights.items() if key != name}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"missing: \['decoder.layers.0.weight'\]"):
        glp.load(folder)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("name", [WEIGHTS, DECLARATION])
def test_a_file_that_is_cut_off_is_refused(folder, name, kept):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=f"expected .*{name}, got something else"):
        glp.load(folder)


CALLABLES = ["os:system", "builtins:exec", "subprocess:Popen", "pathlib:Path.unlink", "torch.nn:Linear"]


@pytest.mark.parametrize("name", CALLABLES)
@pytest.mark.parametrize("nested", [False, True])
def test_a_declaration_that_names_no_module_of_ours_is_refused_and_not_called(
    folder, monkeypatch, tmp_path, name, nested
):
    called = []
    for target, attribute in ((os, "system"), (subprocess, "Popen"), (Path, "unlink")):
        monkeypatch.setattr(target, attribute, lambda *args, **kwargs: called.append(args))
    attack = {"class": name, "arguments": {"command": f"touch {tmp_path / 'owned'}"}, "part": 0}
    if nested:
        content = json.loads((folder / DECLARATION).read_text())
        attack = {**content["vae"], "arguments": {**content["vae"]["arguments"], "library": attack}}
    edit(folder, vae=attack)
    with pytest.raises(ValueError, match=r"(a subclass of genailab_pyro\.nn\.Declared|of an importable module), got"):
        glp.load(folder)
    assert called == []
    assert not (tmp_path / "owned").exists()


MLP = {"class": "genailab_pyro.nn:MLP", "arguments": {"input_dim": 2, "hidden_dims": [3]}, "part": 0}


@pytest.mark.parametrize(
    ("vae", "message"),
    [
        (MLP, "declares a MLP in place of a VAE"),
        ({**MLP, "class": "nowhere.to_be:Found"}, r"'nowhere\.to_be:Found' .*put its file on the Python path"),
        ({**MLP, "class": "genailab_pyro.nn:Missing"}, "Missing"),
        ({**MLP, "class": ""}, "module"),
        ({**MLP, "class": 3}, "importable module, got 3"),
        ({**MLP, "arguments": {"width": 3}}, "a part is missing or wrong"),
        ({**MLP, "arguments": [3]}, "expected the declaration of an importable module"),
        ({"class": MLP["class"], "arguments": MLP["arguments"]}, "'part'"),
        ({"shared": 0}, "expected"),
        ({}, "importable module, got None"),
        ([], "expected"),
        ("genailab_pyro.nn:MLP", "expected"),
        (None, "expected"),
    ],
)
def test_a_declaration_that_is_malformed_is_refused(folder, vae, message):
    edit(folder, vae=vae)
    with pytest.raises(ValueError, match=message):
        glp.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"registration": {"genes": []}}, "a registration as to_json gives it"),
        ({"training": {"learning_rate": -1.0}}, "learning_rate"),
        ({"training": {"warmup": {"speed": 1}}}, "a part is missing or wrong"),
        ({"estimator": {"rule": "magic"}}, "got 'magic'"),
        ({"estimator": {"speed": 1}}, "a part is missing or wrong"),
        ({"seed": None}, "a part is missing or wrong"),
        ({"precision": None}, "precision to be one of"),
        ({"frozen": ["nothing"]}, "nothing"),
        ({"format": "1"}, "format 1 or older"),
        ({"history": [1, 2]}, "the history of a fit"),
        ({"history": {"epoch": ["one"]}}, "could not convert"),
        ({"history": {"train_elbo": [1.0]}}, "the history of a fit"),
    ],
)
def test_a_part_that_is_malformed_is_refused(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(ValueError, match=message):
        glp.load(folder)


@pytest.mark.parametrize("part", ["vae", "registration", "training", "estimator", "seed", "history", "precision"])
def test_a_part_that_is_missing_is_refused(folder, part):
    content = json.loads((folder / DECLARATION).read_text())
    del content[part]
    (folder / DECLARATION).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=part):
        glp.load(folder)


def test_the_declaration_is_strict_json_without_the_cells(vae, cells, adata, train, tmp_path):
    def refuse(constant):
        raise AssertionError(constant)

    fit = train(vae, cells, max_epochs=1, validation_fraction=0.0)
    text = (fit.save(tmp_path) / DECLARATION).read_text()
    content = json.loads(text, parse_constant=refuse)
    assert content["history"]["validation_elbo"] == [None]
    assert content["registration"]["genes"] == adata.var_names.tolist()
    assert adata.obs_names[7] not in text.replace(adata.var_names[7], "")
