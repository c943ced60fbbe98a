"""What a call of fit promises: the same seed, the same weights, and nothing else touched."""

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pandas.testing import assert_frame_equal

import genailab_pyro as glp
from genailab_pyro import Training, Warmup
from genailab_pyro.train.objective import NonFiniteLossError
from genailab_pyro.train.optim import NonFiniteGradientError

COLUMNS = [
    "epoch",
    "train_elbo",
    "train_reconstruction",
    "train_kl",
    "validation_elbo",
    "validation_reconstruction",
    "validation_kl",
    "beta",
    "learning_rate",
    "gradient_norm",
    "seconds",
]


@pytest.mark.parametrize("estimator", ["pathwise", "pathwise-kl", "score", "score-graph"])
def test_a_seed_decides_every_bit(vae, cells, train, same_state, columns_but_seconds, estimator):
    first = train(vae, cells, estimator, seed=4)
    torch.manual_seed(99)
    second = train(vae, cells, estimator, seed=4)
    other = train(vae, cells, estimator, seed=5)
    assert same_state(first.vae, second.vae)
    assert_frame_equal(columns_but_seconds(first), columns_but_seconds(second), check_exact=True)
    assert not same_state(first.vae, other.vae)


def test_a_seed_may_be_a_numpy_integer(vae, cells, train, same_state, tmp_path):
    fit = train(vae, cells, seed=np.int64(4))
    assert same_state(fit.vae, train(vae, cells, seed=4).vae)
    assert glp.load(fit.save(tmp_path / "fit")).seed == 4
    with pytest.raises(TypeError, match="float"):
        train(vae, cells, seed=4.0)


def test_the_vae_and_the_cells_that_are_given_stay_as_they_are(vae, cells, train):
    vae.eval()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    library, conditions, name = cells.library.copy(), cells.conditions.copy(), vae.name
    fit = train(vae, cells)
    assert all(torch.equal(value, before[key]) for key, value in vae.state_dict().items())
    assert all(parameter.grad is None for parameter in vae.parameters())
    assert not vae.training
    assert vae.name == name
    assert np.array_equal(cells.library, library)
    assert np.array_equal(cells.conditions, conditions)
    assert fit.vae is not vae
    assert not fit.vae.training


QUESTIONS = {
    "latent": lambda fit: fit.latent(),
    "posterior_samples": lambda fit: fit.posterior_samples(num_samples=2),
    "expression": lambda fit: fit.expression(num_samples=2),
    "generate": lambda fit: fit.generate(5),
    "elbo": lambda fit: fit.elbo(num_particles=2),
    "log_likelihood": lambda fit: fit.log_likelihood(num_particles=2),
    "terms": lambda fit: fit.terms(num_particles=2),
    "diagnose": lambda fit: fit.diagnose(num_particles=25),
    "plot": lambda fit: fit.plot(),
    "repr": repr,
}


@pytest.fixture
def global_state():
    """Everything global that a call might disturb, as one comparable value."""
    pyro.get_param_store().clear()
    pyro.param("mine", torch.tensor([1.0, 2.0]))

    def state():
        store = pyro.get_param_store()
        return (
            torch.get_rng_state().tolist(),
            str(np.random.get_state()),  # noqa: NPY002  (the caller's, that must not move)
            random.getstate(),
            {name: store[name].tolist() for name in store.get_all_param_names()},
            torch.distributions.Distribution._validate_args,
            pyro.poutine.runtime._PYRO_STACK[:],
            torch.is_grad_enabled(),
        )

    yield state
    pyro.get_param_store().clear()


@pytest.mark.parametrize("question", QUESTIONS)
def test_no_question_moves_the_callers_state(fitted, same_state, global_state, question):
    before, weights = global_state(), {key: value.clone() for key, value in fitted.vae.state_dict().items()}
    QUESTIONS[question](fitted)
    assert global_state() == before
    assert all(torch.equal(value, weights[key]) for key, value in fitted.vae.state_dict().items())
    assert not fitted.vae.training


def test_neither_fit_nor_resume_nor_load_moves_the_callers_state(vae, cells, train, tmp_path, global_state):
    before = global_state()
    fit = train(vae, cells, run_folder=tmp_path / "run")
    assert global_state() == before
    glp.resume(tmp_path / "run", cells, progress=False)
    assert global_state() == before
    fit.save(tmp_path / "fit")
    glp.load(tmp_path / "fit")
    assert global_state() == before


def test_a_run_that_fails_leaves_the_callers_state_too(vae, cells, train, global_state):
    def fail(epoch, row):
        raise RuntimeError("the callback's own")

    before = global_state()
    with pytest.raises(RuntimeError, match="the callback's own"):
        train(vae, cells, callback=fail)
    assert global_state() == before


def test_a_fit_does_not_depend_on_the_fits_before_it(vae, cells, train, same_state):
    alone = train(vae, cells)
    train(glp.CVAE_ZINB.from_registration(cells, latent_dim=3, hidden_dims=[16]), cells)
    assert same_state(train(vae, cells).vae, alone.vae)


def test_history_has_a_row_per_epoch_and_its_columns(vae, cells, train):
    history = train(vae, cells).history
    assert list(history.columns) == COLUMNS
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["epoch"].dtype.kind == "i"
    assert (history["seconds"].diff().iloc[1:] > 0).all()
    assert np.isfinite(history.to_numpy(dtype=float)).all()


def test_elbo_is_minus_reconstruction_minus_kl(vae, cells, train):
    history = train(vae, cells).history
    for part in ("train", "validation"):
        total = history[f"{part}_reconstruction"] + history[f"{part}_kl"]
        np.testing.assert_allclose(history[f"{part}_elbo"], -total, rtol=1e-12)
        assert (history[f"{part}_kl"] > 0).all()
        assert (history[f"{part}_reconstruction"] > 0).all()


def test_without_validation_cells_their_columns_are_nan(vae, cells, train):
    history = train(vae, cells, validation_fraction=0.0).history
    assert history.filter(like="validation").isna().all(axis=None)
    assert history.filter(like="train").notna().all(axis=None)


def test_a_fit_improves_the_elbo(fitted):
    history = fitted.history
    assert history["train_elbo"].iloc[-1] > history["train_elbo"].iloc[0] + 1
    assert history["validation_elbo"].max() > history["validation_elbo"].iloc[0] + 1


def test_the_callback_sees_each_row_and_cannot_change_the_run(vae, cells, train, same_state):
    rows = []

    def callback(epoch, row):
        rows.append((epoch, dict(row)))
        row["beta"] = -1.0
        torch.randn(7)

    watched = train(vae, cells, callback=callback)
    assert [epoch for epoch, _ in rows] == [1, 2, 3]
    assert [row for _, row in rows] == watched.history.to_dict("records")
    assert (watched.history["beta"] == 1).all()
    assert same_state(watched.vae, train(vae, cells).vae)


def interrupt_at(last):
    def callback(epoch, row):
        if epoch == last:
            raise KeyboardInterrupt

    return callback


def test_ctrl_c_returns_the_fit_so_far(vae, cells, train, same_state):
    with pytest.warns(UserWarning, match="interrupted after epoch 2 of 50"):
        fit = train(vae, cells, max_epochs=50, callback=interrupt_at(2))
    assert fit.interrupted
    assert fit.history["epoch"].tolist() == [1, 2]
    assert same_state(fit.vae, train(vae, cells, max_epochs=2).vae)
    assert not train(vae, cells, max_epochs=2).interrupted


def test_ctrl_c_in_the_first_epoch_returns_a_fit_without_a_history(vae, cells, train, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(glp.train.run.Objective, "loss_and_grads", interrupt)
    with pytest.warns(UserWarning, match="interrupted after epoch 0 of 3"):
        fit = train(vae, cells)
    assert fit.history.empty
    assert fit.latent().shape == (120, 3)


class Spoilt(glp.NegativeBinomialLikelihood):
    """Sound for some calls in training, then broken in one of several ways."""

    def __init__(self, features, genes, *, spoil, sound_steps):
        super().__init__(features, genes)
        self.spoil = spoil
        self.sound_steps = sound_steps
        self.calls = 0

    def forward(self, features, minibatch):
        self.calls += self.training
        if not self.training or self.calls <= self.sound_steps:
            return super().forward(features, minibatch)
        if self.spoil == "value":
            features = features * torch.nan
        if self.spoil == "gradient":
            features = features + (0.0 * features).sqrt()
        if self.spoil == "weight":
            self.log_expression.bias.data[3] = torch.nan
        if self.spoil == "infinity":
            return dist.Poisson(torch.zeros(minibatch.size, 20)).to_event(1)
        if self.spoil == "error":
            raise RuntimeError("no distribution")
        return super().forward(features, minibatch)


def spoilt(spoil, sound_steps=7):
    torch.manual_seed(0)
    return glp.VAE(
        prior=glp.StandardNormal(3),
        decoder=glp.MLP(3, [16]),
        likelihood=Spoilt(16, 20, spoil=spoil, sound_steps=sound_steps),
        encoder=glp.NormalEncoder(20, 3, [16]),
    )


BREAKDOWNS = {
    "value": (NonFiniteLossError, "loss is not finite", "of the model's site 'x' is not finite at 40 places"),
    "infinity": (NonFiniteLossError, "loss is not finite", "of the model's site 'x' is not finite at 40 places"),
    "weight": (NonFiniteLossError, "loss is not finite", "'likelihood.log_expression.bias' holds 1 values"),
    "gradient": (NonFiniteGradientError, "gradient's norm is nan", "gradient of 'decoder.layers.0.weight'"),
}


@pytest.mark.parametrize("spoil", BREAKDOWNS)
def test_what_is_not_finite_stops_the_run_and_names_where(cells, train, same_state, spoil):
    cause, what, where = BREAKDOWNS[spoil]
    options = {"validation_fraction": 0.0, "minibatch_size": 40}
    with pytest.raises(glp.TrainingError) as caught:
        train(spoilt(spoil), cells, max_epochs=9, **options)
    message = str(caught.value)
    assert isinstance(caught.value.__cause__, cause)
    assert "stopped at step 8 (epoch 3)" in message
    assert what in message
    assert where in message
    assert "held 40 cells (cell" in message
    assert "What usually helps: a lower learning_rate" in message
    fit = caught.value.fit
    assert fit.interrupted
    assert fit.history["epoch"].tolist() == [1, 2]
    assert np.isfinite(fit.latent()).all()
    assert same_state(fit.vae, train(spoilt(spoil), cells, max_epochs=2, **options).vae)


class Untold(glp.NegativeBinomialLikelihood):
    """Infinitely improbable counts in evaluation, once the programs have been looked at."""

    calls = 0

    def forward(self, features, minibatch):
        self.calls += self.training
        if self.training or not self.calls:
            return super().forward(features, minibatch)
        return dist.Poisson(torch.zeros(minibatch.size, 20)).to_event(1)


def test_validation_cells_that_never_have_a_probability_are_spoken_of(cells, train):
    parts = glp.StandardNormal(3), glp.MLP(3, [16]), Untold(16, 20), glp.NormalEncoder(20, 3, [16])
    with pytest.raises(glp.TrainingError, match="ELBO of the validation cells was finite after no epoch") as caught:
        train(glp.VAE(*parts), cells, max_epochs=3)
    assert len(caught.value.fit.history) == 3
    assert train(glp.VAE(*parts), cells, max_epochs=3, validation_fraction=0.0).history["train_elbo"].notna().all()


def test_the_cells_that_are_named_are_those_of_the_minibatch(vae, cells, train, monkeypatch):
    seen = []

    def broken(objective, model, guide, minibatch):
        seen.append(minibatch.library)
        raise NonFiniteLossError("the loss is nan")

    monkeypatch.setattr(glp.train.run.Objective, "loss_and_grads", broken)
    with pytest.raises(glp.TrainingError) as caught:
        train(vae, cells)
    names = str(caught.value).split("cells (")[1].split(", ...")[0].split(", ")
    found = [cells.library[cells.obs_names.tolist().index(name)] for name in names]
    assert found == seen[0][:5].tolist()
    assert "another draw are finite" in str(caught.value)


def test_the_best_weights_are_those_of_a_stopped_run_too(cells, train):
    with pytest.raises(glp.TrainingError) as caught:
        train(spoilt("value", sound_steps=75), cells, learning_rate=0.3, max_epochs=50)
    fit = caught.value.fit
    best = fit.history["validation_elbo"].idxmax()
    assert 0 < best < len(fit.history) - 1  # else this would say nothing
    sound = train(spoilt("value", sound_steps=75), cells, learning_rate=0.3, max_epochs=int(best) + 1)
    assert fit.elbo().tolist() == sound.elbo().tolist()


def test_a_program_that_cannot_be_run_again_is_no_second_error(vae, cells):
    minibatch = cells.take(range(4))
    broken = spoilt("error", sound_steps=0)
    message = glp.train.objective.explain(broken.model, broken.guide, minibatch, broken)
    assert message == "the programs cannot be run again (no distribution)"


def test_single_settings_change_those_that_are_given(vae, cells, settings):
    fit = glp.fit(vae, cells, training=settings, max_epochs=1, warmup=Warmup(beta=0.5), progress=False)
    assert fit.training.max_epochs == 1
    assert fit.training.warmup == Warmup(beta=0.5)
    assert fit.training.minibatch_size == settings.minibatch_size
    assert settings.max_epochs == 3


def test_settings_are_judged_together(vae, cells, settings):
    patient = Training.from_json({**settings.to_json(), "patience": 2})
    fit = glp.fit(vae, cells, training=patient, validation_fraction=0.0, patience=None, progress=False)
    assert fit.training.validation_fraction == 0
    with pytest.raises(ValueError, match="validation cells for early stopping"):
        glp.fit(vae, cells, training=patient, validation_fraction=0.0, progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 3}, r"among \['free_bits'.*got \['epochs'\]"),
        ({"max_epochs": 0}, "max_epochs to be a whole number of at least one, got 0"),
        ({"estimator": "pathwize"}, "got 'pathwize'"),
        ({"estimator": "score", "free_bits": 0.1}, "pathwise estimator beside a penalty, got"),
        ({"estimator": "score", "penalties": [glp.FreeBits(0.1)]}, "pathwise estimator beside a penalty"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(vae, cells, train, changes, message):
    with pytest.raises(ValueError, match=message):
        train(vae, cells, **changes)


def test_other_objects_than_a_vae_and_cells_are_refused(vae, cells, adata, train, tmp_path):
    with pytest.raises(TypeError, match=r"expected cells from glp.register\(adata\), got AnnData"):
        train(vae, adata)
    with pytest.raises(TypeError, match=r"a VAE, such as glp\.CVAE_NB.*got Linear"):
        train(torch.nn.Linear(2, 2), cells)
    train(vae, cells, run_folder=tmp_path)
    with pytest.raises(TypeError, match=r"expected cells from glp.register\(adata\), got AnnData"):
        glp.resume(tmp_path, adata)


def test_a_model_of_other_genes_is_refused(cells, train):
    with pytest.raises(ValueError, match=r"the 30 genes .* got 20; declare it by from_registration\(cells\)"):
        train(glp.VAE_NB(30, 3, [16]), cells)


class Unregistered(glp.VAE_NB):
    """Forgets to show its encoder to Pyro."""

    def register_parts(self, *names):
        super().register_parts(*(name for name in names if name != "encoder"))


def test_a_network_that_would_not_train_is_refused(cells, train):
    with pytest.raises(glp.PairError, match=r"the guide's site 'z' depends on 8 tensor\(s\)"):
        train(Unregistered(20, 3, [16]), cells)
