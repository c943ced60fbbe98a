"""Training runs side by side start alike, see the same, and are scored on cells that none of them saw."""

import copy
from importlib import import_module

import numpy as np
import pyro
import pytest
import torch
import xarray as xr

import genailab_pyro as glp
from genailab_pyro.estimators import EstimatorError
from genailab_pyro.experiments.race import Race, race
from genailab_pyro.train.run import Run

HOME = import_module("genailab_pyro.experiments.race")
RATES = [1e-5, 1e-2]
NUM_SEEDS, NUM_POINTS = 4, 3


@pytest.fixture(scope="module")
def run(cells, vaes):
    """A race of few epochs, unless told otherwise."""

    def ran(estimators, *, vae="plain", **changes):
        options = {"num_seeds": 1, "learning_rates": [1e-2], "num_particles": 3, "num_points": 2, "max_epochs": 4}
        options |= {"minibatch_size": 32, "held_out": 0.2}
        return race(vaes[vae] if isinstance(vae, str) else vae, cells, estimators, **{**options, **changes})

    return ran


@pytest.fixture(scope="module")
def raced(run):
    return run(
        ["score", "pathwise"],
        num_seeds=NUM_SEEDS,
        learning_rates=RATES,
        num_particles=20,
        num_points=NUM_POINTS,
        max_epochs=60,
    )


@pytest.fixture
def trained_on(monkeypatch):
    """The names of the cells of each run that follows."""
    seen = []
    trajectory = HOME.trajectory

    def noted(vae, cells, *args, **options):
        seen.append({*cells.obs_names})
        return trajectory(vae, cells, *args, **options)

    monkeypatch.setattr(HOME, "trajectory", noted)
    return seen


@pytest.fixture
def scored_on(monkeypatch):
    """The names of the cells by which each bound that follows was scored."""
    seen = []
    log_likelihood = glp.Fit.log_likelihood

    def noted(fit, cells, **options):
        seen.append({*cells.obs_names})
        return log_likelihood(fit, cells, **options)

    monkeypatch.setattr(glp.Fit, "log_likelihood", noted)
    return seen


class TestDataset:
    def test_it_spans_estimators_seeds_and_points(self, raced):
        data = raced.dataset
        assert dict(data.sizes) == {"estimator": 2, "seed": NUM_SEEDS, "share": NUM_POINTS + 1, "candidate": 2}
        for name in ("bound", "step", "seconds"):
            assert data[name].dims == ("estimator", "seed", "share")
        assert data["tuning"].dims == ("estimator", "candidate")
        assert data["learning_rate"].dims == ("estimator",)
        assert [*data["estimator"].values] == ["score", "pathwise"]
        assert [*data["candidate"].values] == RATES
        np.testing.assert_allclose(data["share"], [0, 1 / 3, 2 / 3, 1])
        assert data.attrs == {"num_particles": 20, "num_held_out": 24, "model": "CVAE_NB"}
        assert np.isfinite(data["bound"]).all()

    def test_all_begin_with_the_same_weights(self, raced):
        first = raced.dataset["bound"].isel(share=0)
        assert len(np.unique(first)) == 1
        assert len(np.unique(raced.dataset["bound"].isel(share=-1))) == first.size

    def test_all_take_the_same_steps(self, raced):
        steps = raced.dataset["step"]
        # 96 cells less a tenth for validation are three minibatches.
        assert (steps == xr.DataArray([0, 60, 120, 180], dims="share")).all()
        assert (raced.dataset["seconds"].diff("share") > 0).all()
        assert (raced.dataset["seconds"].isel(share=0) == 0).all()

    def test_the_runs_of_a_seed_see_the_same_cells_in_the_same_order(self, run, monkeypatch):
        orders = []
        order = Run._order

        def noted(training):
            positions = order(training)
            orders.append([training.train_cells.obs_names[index].tolist() for index in positions])
            return positions

        monkeypatch.setattr(Run, "_order", noted)
        steps = run(["pathwise", "stl", "score"], num_seeds=2, max_epochs=2).dataset["step"]
        pathwise, stl, score = orders[:4], orders[4:8], orders[8:]
        assert pathwise == stl == score
        assert (steps == steps.isel(estimator=0)).all()
        assert pathwise[:2] != pathwise[2:]  # another seed

    def test_how_often_it_is_scored_changes_nothing_of_a_run(self, run):
        once, often = (run(["pathwise"], num_points=number).dataset["bound"].squeeze() for number in (1, 4))
        assert len(np.unique(often)) == 5
        assert once.sel(share=[0, 1]).equals(often.sel(share=[0, 1]))

    def test_points_that_share_an_epoch_are_drawn_once(self, run):
        crowded = run(["pathwise"], num_points=5, max_epochs=2)
        assert [*np.unique(crowded.dataset["step"])] == [0, 3, 6]
        (line, *_) = crowded.plot().axes[0].get_lines()
        assert [*line.get_xdata()] == [0, 3, 6]


class TestOutcome:
    def test_the_path_beats_the_score(self, raced):
        final = raced.dataset["bound"].isel(share=-1)
        differences = (final.sel(estimator="pathwise") - final.sel(estimator="score")).values
        assert differences.mean() > 5 * differences.std(ddof=1) / np.sqrt(NUM_SEEDS)
        assert (differences > 0).all()

    def test_training_raises_the_bound(self, raced):
        bounds = raced.dataset["bound"].sel(estimator="pathwise")
        assert (bounds.isel(share=-1) > bounds.isel(share=0) + 1).all()

    def test_the_table_is_sorted_with_no_difference_for_the_best(self, raced):
        table = raced.to_dataframe()
        assert table.index.name == "estimator"
        assert table["bound"].is_monotonic_decreasing
        assert table.index[-1] == "score"
        assert table["difference"].iloc[0] == table["difference_standard_error"].iloc[0] == 0
        assert (table["difference"].iloc[1:] < 0).all()
        np.testing.assert_allclose(table["difference"], table["bound"] - table["bound"].iloc[0])
        assert (table["steps"] == 180).all()
        assert (table["learning_rate"] == 1e-2).all()

    def test_differences_are_paired_by_seeds(self):
        # Seeds that shift both alike say nothing on their difference.
        bound = np.array([[1.0, 5.0, 9.0], [0.0, 4.0, 8.0]])[:, :, None]
        dims = ("estimator", "seed", "share")
        data = xr.Dataset(
            {
                "bound": (dims, bound),
                "step": (dims, np.ones_like(bound)),
                "seconds": (dims, np.ones_like(bound)),
                "learning_rate": ("estimator", [0.1, 0.1]),
            },
            coords={"estimator": ["a", "b"], "share": [1.0]},
        )
        table = Race(data).to_dataframe()
        assert table.loc["b", "difference"] == -1
        assert table.loc["b", "difference_standard_error"] == 0
        assert table.loc["b", "bound_standard_error"] == pytest.approx(4 / np.sqrt(3))

    def test_one_seed_has_no_standard_error(self, run):
        table = run(["pathwise"]).to_dataframe()
        assert table["bound_standard_error"].isna().all()
        assert table["bound"].notna().all()


class TestLearningRate:
    def test_the_one_with_the_best_validation_bound_is_taken(self, raced, run):
        tuning = raced.dataset["tuning"]
        assert (raced.dataset["learning_rate"] == tuning.idxmax("candidate")).all()
        turned = run(["pathwise"], learning_rates=RATES[::-1]).dataset
        assert turned["learning_rate"] == tuning.idxmax("candidate").sel(estimator="pathwise") == RATES[1]
        assert turned["tuning"][0, 0] > turned["tuning"][0, 1]

    def test_a_single_one_is_taken_as_it_is(self, run, trained_on):
        data = run(["pathwise"], learning_rates=[3e-3]).dataset
        assert data["learning_rate"] == 3e-3
        assert data["tuning"].isnull().all()
        assert len(trained_on) == 1

    def test_it_is_not_told_of_the_held_out_cells(self, run, cells, trained_on, scored_on):
        _, held_out = cells.split(0.2, seed=0)
        data = run(["pathwise", "score"], learning_rates=RATES, num_points=1, held_out=0.2).dataset
        held = {*held_out.obs_names}
        assert len(held) == data.attrs["num_held_out"] == 24
        assert len(trained_on) == 2 * (2 + 1)
        assert all(names.isdisjoint(held) for names in trained_on)
        for tuned, final in (scored_on[:4], scored_on[4:]), (trained_on[:3], trained_on[3:]):
            assert tuned == final  # both estimators were scored and trained alike
        (first, second, *points), runs = scored_on[:4], trained_on[:3]
        assert first == second
        assert first.isdisjoint(held | runs[0])
        assert runs[0] | first == runs[2]
        assert points == [held, held]

    def test_it_is_chosen_alike_whatever_is_held_out(self, run, cells, vaes):
        seen, rest = cells.split(0.3, seed=5)
        first, second = rest.split(0.5, seed=0)
        options = {"num_seeds": 1, "learning_rates": RATES, "num_particles": 3, "num_points": 1, "max_epochs": 3}
        one, other = (
            race(vaes["plain"], seen, ["pathwise"], held_out=part, **options).dataset for part in (first, second)
        )
        xr.testing.assert_identical(one["tuning"], other["tuning"])
        assert (one["bound"] != other["bound"]).all()

    def test_a_run_that_diverges_is_never_the_best(self, run):
        data = run(["pathwise"], learning_rates=[1e30, 1e-2]).dataset
        assert data["learning_rate"] == 1e-2
        assert data["tuning"].isnull().values.tolist() == [[True, False]]

    def test_runs_that_diverge_are_kept_without_a_bound(self, run):
        for rates in ([1e30], [1e30, 1e29]):
            broken = run(["pathwise"], learning_rates=rates)
            assert broken.dataset["bound"].isnull().all()
            assert broken.to_dataframe()["bound"].isna().all()
            assert (broken.to_dataframe()["diverged"] == broken.dataset.sizes["seed"]).all()

    def test_an_estimator_whose_runs_diverged_comes_behind_those_that_finished(self, run):
        raced = run(["pathwise", "score"], num_seeds=3)
        broken = raced.dataset.copy(deep=True)
        broken["bound"].loc[{"estimator": "pathwise", "seed": [0, 1]}] = float("nan")
        table = type(raced)(broken).to_dataframe()
        assert [*table.index] == ["score", "pathwise"]
        assert [*table["diverged"]] == [0, 2]

    def test_the_standard_error_is_over_the_runs_that_finished(self, run):
        broken = run(["pathwise"], num_seeds=3).dataset.copy(deep=True)
        broken["bound"].loc[{"seed": 0}] = float("nan")
        finished = broken["bound"].isel(estimator=0, share=-1).values[1:]
        error = Race(broken).to_dataframe()["bound_standard_error"].item()
        assert error == pytest.approx(np.std(finished, ddof=1) / 2**0.5)


class TestHeldOut:
    def test_cells_that_are_trained_on_and_others_are_refused(self, cells, vaes):
        with pytest.raises(ValueError, match="120 of them are among those that are trained on"):
            race(vaes["plain"], cells, ["pathwise"], held_out=cells)
        other = glp.register(glp.data.simulate(30, 20, seed=9)[0])
        with pytest.raises(ValueError, match="expected held-out cells of the registration of the others"):
            race(vaes["plain"], cells, ["pathwise"], held_out=other)

    def test_cells_may_be_given_in_place_of_a_share(self, run, cells, vaes):
        seen, held_out = cells.split(0.2, seed=0)
        shared = run(["pathwise"]).dataset
        options = {"num_seeds": 1, "learning_rates": [1e-2], "num_particles": 3, "num_points": 2, "max_epochs": 4}
        given = race(vaes["plain"], seen, ["pathwise"], held_out=held_out, minibatch_size=32, **options).dataset
        xr.testing.assert_identical(shared.drop_vars("seconds"), given.drop_vars("seconds"))

    def test_more_draws_tighten_the_bound(self, run):
        few, many = (run(["pathwise"], num_particles=number).dataset["bound"] for number in (1, 60))
        assert (many > few).all()


class TestCaller:
    def test_nothing_of_the_callers_is_touched(self, run, plain):
        plain.encoder.eval()
        weights, modes = copy.deepcopy(plain.state_dict()), [module.training for module in plain.modules()]
        with pyro.get_param_store().scope():
            pyro.param("mine", torch.ones(1))
            state = torch.get_rng_state()
            run(["pathwise", "score-graph-nn"], vae=plain, learning_rates=RATES, max_epochs=1, num_points=1)
            assert [*pyro.get_param_store().keys()] == ["mine"]
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(value, weights[name]) for name, value in plain.state_dict().items())
        assert [module.training for module in plain.modules()] == modes

    def test_it_runs_alike_whatever_the_callers_random_state(self, run):
        first = run(["pathwise"]).dataset
        torch.manual_seed(99)
        xr.testing.assert_identical(first.drop_vars("seconds"), run(["pathwise"]).dataset.drop_vars("seconds"))

    def test_what_is_done_is_said(self, run):
        said = []
        run(["pathwise"], learning_rates=RATES, num_seeds=2, max_epochs=1, callback=said.append)
        assert said == [
            "pathwise: trying the learning rate 1e-05",
            "pathwise: trying the learning rate 0.01",
            "pathwise: seed 0 (1 of 2) at the learning rate 0.01",
            "pathwise: seed 1 (2 of 2) at the learning rate 0.01",
        ]


class TestReading:
    def test_it_is_drawn_against_steps_and_against_seconds(self, raced):
        figure = raced.plot()
        assert [axes.get_xlabel() for axes in figure.axes] == ["Optimiser steps", "Training time (seconds)"]
        assert figure.axes[0].get_ylabel() == "Held-out bound, 20 draws (nats per cell)"
        lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
        for name in ("pathwise", "score"):
            expected = raced.dataset["bound"].sel(estimator=name).mean("seed")
            np.testing.assert_allclose(lines[name].get_ydata(), expected)

    def test_it_is_saved_and_read(self, raced, tmp_path):
        path = raced.save(tmp_path / "race.nc")
        read = Race.load(path)
        xr.testing.assert_identical(read.dataset, raced.dataset)
        assert read.to_dataframe().equals(raced.to_dataframe())
        with pytest.raises(FileNotFoundError, match=r"expected a netCDF file at .*none\.nc"):
            Race.load(tmp_path / "none.nc")


class TestRefusals:
    def test_an_estimator_that_cannot_be_used_is_refused_before_anything_is_done(self, run):
        said = []
        with pytest.raises(EstimatorError, match=r"^enum: .*'pathwise'.*leave it out of the comparison"):
            run(["pathwise", "enum"], callback=said.append)
        assert said == []

    @pytest.mark.parametrize(
        ("estimators", "options", "message"),
        [
            ("pathwise", {}, r"expected a list of estimators, such as \['pathwise', 'score'\], got 'pathwise'"),
            (["pathwize"], {}, r"expected estimator to be one of 'pathwise'.*got 'pathwize'"),
            (["score", "score"], {}, "expected each estimator once, got score, score"),
            (["pathwise"], {"num_seeds": 0}, "expected num_seeds to be a whole number of at least one, got 0"),
            (["pathwise"], {"num_seeds": True}, "expected num_seeds to be a whole number of at least one, got True"),
            (["pathwise"], {"num_particles": 0}, "expected num_particles to be a whole number of at least one, got 0"),
            (["pathwise"], {"num_points": 2.0}, r"expected num_points to be a whole number of at least one, got 2\.0"),
            (["pathwise"], {"learning_rates": []}, r"expected at least one learning rate, got none"),
            (
                ["pathwise"],
                {"learning_rates": [1e-2, -1.0]},
                r"expected learning_rate to be finite and above 0, got -1",
            ),
            (["pathwise"], {"held_out": 1.5}, r"expected a fraction above 0 and below 1, got 1\.5"),
            (["pathwise"], {"held_out": 1}, "expected a fraction above 0 and below 1, got 1"),
            (["pathwise"], {"max_epoch": 3}, r"expected training settings among.*max_epoch"),
        ],
    )
    def test_a_bad_argument_is_answered_with_what_was_expected(self, estimators, options, message, run):
        said = []
        with pytest.raises(ValueError, match=message):
            run(estimators, callback=said.append, **options)
        assert said == []


class TestARaceThatWasInterrupted:
    """It keeps the runs that were done."""

    CHANGES = {"num_seeds": 2, "learning_rates": RATES}  # noqa: RUF012

    def test_goes_on_to_the_same_bounds(self, run, tmp_path, trained_on, monkeypatch):
        whole = run(["pathwise", "score"], **self.CHANGES)
        assert len(trained_on) == 8
        log_likelihood, calls = glp.Fit.log_likelihood, []

        def interrupted(self, *args, **options):
            calls.append(self)
            if len(calls) == 8:  # within the second run of the first estimator: two for the rates, three a run
                raise KeyboardInterrupt
            return log_likelihood(self, *args, **options)

        with monkeypatch.context() as patched:
            patched.setattr(glp.Fit, "log_likelihood", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(["pathwise", "score"], run_folder=tmp_path / "state", **self.CHANGES)
        trained_on.clear()
        again = run(["pathwise", "score"], run_folder=tmp_path / "state", **self.CHANGES)
        assert len(trained_on) == 5
        xr.testing.assert_identical(again.dataset.drop_vars("seconds"), whole.dataset.drop_vars("seconds"))

    def test_may_be_given_more_seeds_and_estimators(self, run, tmp_path, trained_on):
        run(["pathwise"], run_folder=tmp_path)
        more = run(["score", "pathwise"], num_seeds=2, run_folder=tmp_path)
        assert len(trained_on) == 4
        assert more.dataset.sizes["seed"] == 2

    def test_does_not_take_a_run_of_the_tuning_for_one_of_the_race(self, run, tmp_path):
        run(["pathwise"], run_folder=tmp_path, learning_rates=RATES)
        again, fresh = (run(["pathwise"], run_folder=folder, seed=1_000) for folder in (tmp_path, None))
        xr.testing.assert_identical(again.dataset.drop_vars("seconds"), fresh.dataset.drop_vars("seconds"))

    def test_keeps_that_a_run_diverged(self, run, tmp_path, trained_on):
        for _ in range(2):
            with np.errstate(all="ignore"):
                raced = run(["pathwise"], learning_rates=[1e12], run_folder=tmp_path)
            assert raced.to_dataframe().loc["pathwise", "diverged"] == 1
        assert len(trained_on) == 1

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"max_epochs": 5}, "training settings"),
            ({"held_out": 0.3}, "cells, held-out cells"),
            ({"num_particles": 4}, "points and particles"),
            ({"num_points": 3}, "points and particles"),
            ({"vae": "zero-inflated"}, "vae, weights"),
            ({"warmup": glp.Warmup(length=1)}, "training settings"),
        ],
    )
    def test_is_not_taken_for_another(self, run, tmp_path, change, named):
        run(["pathwise"], run_folder=tmp_path, warmup=glp.Warmup(length=1.0))  # the whole run, not one step
        change = {"warmup": glp.Warmup(length=1.0), **change}
        with pytest.raises(ValueError, match=f"to be of the same {named}, got those of others"):
            run(["pathwise"], run_folder=tmp_path, **change)

    def test_is_another_by_what_the_weights_do_not_tell(self, run, cells, vaes, tmp_path):
        run(["pathwise"], run_folder=tmp_path)
        weights, frozen = copy.deepcopy(vaes["plain"]), copy.deepcopy(vaes["plain"])
        with torch.no_grad():
            next(weights.parameters()).add_(1e-3)
        next(frozen.decoder.parameters()).requires_grad_(False)
        dropout = glp.CVAE_NB.from_registration(cells, latent_dim=3, hidden_dims=[16], dropout=0.5)
        dropout.load_state_dict(vaes["plain"].state_dict())
        for vae, named in ((weights, "weights"), (frozen, "frozen"), (dropout, "vae")):
            with pytest.raises(ValueError, match=f"to be of the same {named}, got"):
                run(["pathwise"], vae=vae, run_folder=tmp_path)

    @pytest.mark.parametrize("content", ["{}", '{"of": [], "measured": {}}', '{"of": {}}', "no JSON"])
    def test_says_that_its_file_is_damaged(self, run, tmp_path, content):
        (tmp_path / "runs.json").write_text(content)
        with pytest.raises(ValueError, match="the file is damaged"):
            run(["pathwise"], run_folder=tmp_path)
