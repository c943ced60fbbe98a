"""What a comparison of estimators must find, and what it must leave alone."""

import copy

import numpy as np
import pyro
import pytest
import torch
import xarray as xr
from pyro.distributions.score_parts import ScoreParts

import genailab_pyro as glp
from genailab_pyro.estimators.baselines import CellBaseline, LeaveOneOut
from genailab_pyro.estimators.rules import Score
from genailab_pyro.experiments import EstimatorComparison, draw_gradients
from genailab_pyro.experiments.gradients import frozen
from genailab_pyro.experiments.measure import WARM_STEPS, Checkpoint, groups_of
from genailab_pyro.experiments.trajectory import sample

ONE_PARTICLE = ["pathwise", "stl", "score", "score-graph", "score-graph-ema"]
FOUR = glp.Estimator(num_particles=4)
WEIGHTED = ["iwae", "dreg", "iwae-2"]
NUM_DRAWS = 100
HOT = glp.Estimator("gumbel", temperature=5.0)
COLUMNS = [
    "objective",
    "bias_reference",
    "particles",
    "variance",
    "ratio",
    "ratio_low",
    "ratio_high",
    "bias_errors",
    "difference_errors",
    "signal_to_noise",
    "variance_between_minibatches",
    "seconds",
    "variance_seconds",
    "evaluations",
]


@pytest.fixture(scope="module")
def compared(compare):
    pair = glp.estimators.get("iwae", num_particles=2)
    estimators = [*ONE_PARTICLE, FOUR, "score-loo", "iwae", "dreg", pair]
    return compare("plain", estimators, num_draws=NUM_DRAWS, checkpoints=("initial", "trained"))


@pytest.fixture(scope="module")
def labelled(compare):
    return compare("label", ["enum", "score-loo", HOT], num_draws=NUM_DRAWS, checkpoints=("trained",))


@pytest.fixture(scope="module")
def bits(compare):
    return compare("bits", ["disarm", "score-loo", HOT], num_draws=NUM_DRAWS, checkpoints=("trained",))


@pytest.fixture(scope="module")
def by_particles(compare):
    estimators = ["pathwise", "iwae", "score-loo", "dreg"]
    return compare("plain", estimators, num_draws=240, checkpoints=("trained",), particles=(1, 4, 16))


@pytest.fixture
def few_steps(monkeypatch):
    """Baselines that learn for a short time."""
    monkeypatch.setattr("genailab_pyro.experiments.measure.WARM_STEPS", 12)


def row(compared, group, name, column="ratio", checkpoint="initial"):
    return compared.dataset[column].sel(checkpoint=checkpoint, group=group, estimator=name)


def errors(compared, *names):
    """The largest bias of each row, in standard errors."""
    table = compared.to_dataframe()["bias_errors"]
    return table[table.index.isin(names, level="estimator")]


class TestDataset:
    def test_it_spans_checkpoints_groups_estimators_projections_and_draws(self, compared):
        data = compared.dataset
        assert dict(data.sizes) == {"checkpoint": 2, "group": 4, "estimator": 10, "projection": 8, "draw": NUM_DRAWS}
        assert [*data["checkpoint"].values] == ["initial", "trained"]
        assert [*data["group"].values] == ["latent location", "latent scale", "encoder trunk", "decoder"]
        assert [*data["estimator"].values] == [*ONE_PARTICLE, "pathwise-4", "score-loo", *WEIGHTED]
        assert data["projected"].dims == ("checkpoint", "group", "estimator", "draw")
        assert data["bias"].dims == ("checkpoint", "group", "estimator", "projection")

    def test_each_row_says_what_it_estimates_and_by_how_much_work(self, compared):
        data = compared.dataset.sel(checkpoint="initial")
        assert [*data["objective"].values] == [*["ELBO"] * 7, "IW-K (K=8)", "IW-K (K=8)", "IW-K (K=2)"]
        assert [*data["particles"].values] == [1, 1, 1, 1, 1, 4, 8, 8, 8, 2]
        assert [*data["evaluations"].values] == [1, 1, 1, 1, 1, 4, 8, 8, 8, 2]
        assert (data["seconds"] > 0).all()
        xr.testing.assert_allclose(data["variance_seconds"], data["variance"] * data["seconds"])

    def test_it_says_how_it_was_made(self, compared):
        made = {"reference": "pathwise", "trajectory": "pathwise", "num_draws": NUM_DRAWS, "minibatch_size": 32}
        made |= {"num_cells": 120, "seed": 0, "model": "CVAE_NB"}
        assert compared.dataset.attrs.items() >= made.items()
        assert repr(compared) == "EstimatorComparison(10 estimators, 2 checkpoints, 4 groups; 100 draws)"

    def test_the_table_has_a_row_for_each_checkpoint_group_and_estimator(self, compared):
        table = compared.to_dataframe()
        assert [*table] == COLUMNS
        assert [*table.index.names] == ["checkpoint", "group", "estimator"]
        assert len(table) == 2 * 4 * 10
        assert table.index.is_unique
        first = table.loc["trained", "decoder", "iwae"]
        assert first["objective"] == "IW-K (K=8)"
        assert first["variance"] == row(compared, "decoder", "iwae", "variance", "trained")

    def test_a_group_at_a_checkpoint_is_looked_up(self, compared):
        assert compared.at()["checkpoint"] == "trained"
        assert compared.at()["group"] == "latent location"
        assert compared.at("initial", "decoder")["group"] == "decoder"
        with pytest.raises(ValueError, match=r"expected group to be one of 'latent location'.*got 'decodr'"):
            compared.at(group="decodr")

    def test_the_caller_may_name_shares_of_the_epochs(self, compare):
        data = compare("plain", ["pathwise"], num_draws=2, checkpoints=(0.5, "initial")).dataset
        assert [*data["checkpoint"].values] == ["0.5", "initial"]

    def test_given_weights_are_measured_without_training(self, cells, compare):
        said = []
        vae = glp.fit(glp.CVAE_NB.from_registration(cells, hidden_dims=[16]), cells, max_epochs=2, progress=False).vae
        given = compare(vae, ["pathwise"], num_draws=4, checkpoints=("given",), callback=said.append).dataset
        assert said == ["measuring at the checkpoint given (epoch 0)"]
        minibatch = sample(cells, 32, seed=0, device=torch.device("cpu"))
        head = {"bias": vae.encoder.loc.bias, "weight": vae.encoder.loc.weight}
        drawn = draw_gradients(vae.model, vae.guide, minibatch, "pathwise", head, num_draws=4)
        expected = sum(draws.variance for draws in drawn.values())
        variance = given["variance"].sel(checkpoint="given", group="latent location", estimator="pathwise")
        assert variance == pytest.approx(expected, rel=1e-6)

    def test_the_weights_of_a_later_checkpoint_are_others(self, compared):
        untrained, trained = (
            row(compared, "decoder", "pathwise", "variance", name) for name in compared.dataset["checkpoint"].values
        )
        assert abs(trained / untrained - 1) > 0.1


class TestGroups:
    @pytest.mark.parametrize(
        ("vae", "more"),
        [
            ("plain", set()),
            ("zero-inflated", set()),
            ("embedded conditions", {"conditions"}),
            ("latent library", {"latent library"}),
            ("hierarchy", {"upper latent", "prior"}),
            ("label", {"upper latent", "prior"}),
        ],
    )
    def test_they_part_all_parameters(self, vae, more, vaes):
        groups = groups_of(vaes[vae])
        parted = [id(parameter) for group in groups.values() for parameter in group]
        assert sorted(parted) == sorted(id(parameter) for parameter in vaes[vae].parameters())
        assert groups.keys() == {"latent location", "latent scale", "encoder trunk", "decoder"} | more

    def test_bits_have_logits_in_the_place_of_location_and_scale(self, vaes):
        groups = groups_of(vaes["bits"])
        assert [*groups] == ["latent logits", "encoder trunk", "prior", "decoder"]
        parted = [id(parameter) for group in groups.values() for parameter in group]
        assert sorted(parted) == sorted(id(parameter) for parameter in vaes["bits"].parameters())

    def test_parameters_that_are_not_trained_are_in_none(self, plain, compare):
        plain.encoder.requires_grad_(False)
        assert [*compare(plain, ["pathwise"], num_draws=2).dataset["group"].values] == ["decoder"]


class TestVariance:
    def test_it_is_the_trace_of_the_covariance_of_the_draws(self, cells, plain, compared):
        minibatch = sample(cells, 32, seed=0, device=torch.device("cpu"))
        plain.eval()
        for group, parameters in groups_of(plain).items():
            named = {str(position): parameter for position, parameter in enumerate(parameters)}
            drawn = draw_gradients(plain.model, plain.guide, minibatch, "score", named, num_draws=NUM_DRAWS)
            values = np.concatenate([draws.values for draws in drawn.values()], axis=1)
            expected = np.trace(np.atleast_2d(np.cov(values.T)))
            assert row(compared, group, "score", "variance") == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("checkpoint", ["initial", "trained"])
    def test_the_decoder_is_the_same_for_all_rules_of_one_particle(self, checkpoint, compared):
        # The control: the same draws of the latents, along which the decoder has the same gradient.
        data = compared.dataset.sel(checkpoint=checkpoint, group="decoder", estimator=ONE_PARTICLE)
        drawn = data["projected"].sel(estimator="pathwise")
        for name in ONE_PARTICLE:
            np.testing.assert_allclose(data["projected"].sel(estimator=name), drawn, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(data["ratio"], 1, rtol=1e-4)
        assert (compared.to_dataframe().loc[checkpoint, "decoder"].loc[ONE_PARTICLE, "difference_errors"] < 5).all()

    @pytest.mark.parametrize("vae", ["embedded conditions", "latent library", "hierarchy"])
    def test_the_control_holds_for_other_structures(self, vae, compare):
        table = compare(vae, ["pathwise", "score"], num_draws=20)
        assert row(table, "decoder", "score") == pytest.approx(1, rel=1e-4)
        assert row(table, "latent location", "score") > 100

    def test_particles_break_the_control(self, compared):
        assert row(compared, "decoder", "pathwise-4") < 0.5

    def test_score_and_score_graph_are_one_estimator_for_one_latent(self, compared):
        data = compared.dataset
        plates, graph = (data.sel(estimator=name).drop_vars("estimator") for name in ("score", "score-graph"))
        np.testing.assert_allclose(graph["projected"], plates["projected"], rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(graph["variance"], plates["variance"], rtol=1e-5)

    def test_the_score_scatters_much_more_than_the_path(self, compared):
        assert (compared.dataset["ratio"].sel(estimator="score").drop_sel(group="decoder") > 1000).all()

    def test_the_interval_of_the_ratio_holds_it(self, compared):
        data = compared.dataset
        assert (data["ratio_low"] <= data["ratio"]).all()
        assert (data["ratio"] <= data["ratio_high"]).all()
        others = data.drop_sel(estimator="pathwise", group="decoder")
        assert (others["ratio_low"] < others["ratio_high"]).all()
        own = data.sel(estimator="pathwise")
        assert (own["ratio_low"] == 1).all()
        assert (own["ratio_high"] == 1).all()

    def test_four_particles_have_a_quarter_of_the_variance(self, compared):
        data = compared.dataset.sel(estimator="pathwise-4")
        error = (data["ratio_high"] - data["ratio_low"]) / (2 * 1.96)
        assert (abs(data["ratio"] - 1 / 4) < 5 * error).all()
        for wrong in (1 / 2, 1 / 16):  # of two particles, and of a variance where the deviation was meant
            assert (abs(data["ratio"] - wrong) > 5 * error).any("group").all()

    def test_the_variance_between_minibatches_is_that_of_the_objective(self, compared):
        between = compared.dataset["variance_between_minibatches"]
        for name in ("score", "score-loo", "pathwise-4"):
            np.testing.assert_array_equal(between.sel(estimator=name), between.sel(estimator="pathwise"))
        assert (between.sel(group="decoder") > 0).all()
        assert (
            between.sel(estimator="iwae", group="decoder") != between.sel(estimator="pathwise", group="decoder")
        ).all()

    def test_the_variance_between_minibatches_falls_with_their_size(self, compare):
        # As (1 / n - 1 / N), down to none where a minibatch is the whole data set.
        between = "variance_between_minibatches"
        few, half, all_cells = (
            row(compare("plain", ["pathwise"], num_draws=2, minibatch_size=size), "decoder", "pathwise", between)
            for size in (30, 60, 120)
        )
        assert 2 < few / half < 4.5
        assert abs(all_cells) < 0.05 * half


class TestBias:
    def test_none_is_found_in_unbiased_estimators(self, compared):
        assert (compared.to_dataframe()["bias_errors"] < 5).all()

    def test_none_is_found_in_unbiased_estimators_of_discrete_latents(self, labelled, bits):
        assert (errors(labelled, "enum", "score-loo") < 5).all()
        assert (errors(bits, "disarm", "score-loo") < 5).all()

    def test_a_doubled_score_is_found(self, compare, monkeypatch):
        def doubled(rule, base, value):
            log_prob = base.log_prob(value)
            return ScoreParts(log_prob, 2 * log_prob, 0.0)

        monkeypatch.setattr(Score, "score_parts", doubled)
        table = errors(compare("plain", ["pathwise", "score-loo"], num_draws=100), "score-loo")
        assert (table.drop("decoder", level="group") > 5).all()
        assert (table.xs("decoder", level="group") < 5).all()

    def test_a_baseline_that_depends_on_its_own_draw_is_found(self, compare, monkeypatch):
        def with_its_own(baseline, site):
            return site.cost.mean(site.particle_dim, keepdim=True).expand_as(site.cost)

        monkeypatch.setattr(LeaveOneOut, "forward", with_its_own)
        pair = glp.estimators.get("score-loo", num_particles=2)
        table = errors(compare("plain", ["pathwise", pair], num_draws=200), "score-loo-2")
        assert (table.drop("decoder", level="group") > 5).any()
        monkeypatch.undo()
        assert (errors(compare("plain", ["pathwise", pair], num_draws=200), "score-loo-2") < 5).all()

    @pytest.mark.parametrize("fixture", ["labelled", "bits"])
    def test_a_relaxed_row_shows_its_bias_for_the_elbo(self, fixture, request):
        compared = request.getfixturevalue(fixture)
        assert errors(compared, "gumbel-5.0").max() > 5
        assert compared.dataset["objective"].sel(estimator="gumbel-5.0") == "relaxed ELBO"
        assert compared.dataset["difference"].sel(estimator="gumbel-5.0").isnull().all()

    def test_an_importance_weighted_row_has_no_difference_from_the_elbo(self, compared):
        missing = compared.dataset["difference"].isnull().any(["checkpoint", "group", "projection"])
        assert [*missing["estimator"].values[missing]] == WEIGHTED
        assert compared.dataset["difference"].sel(estimator=WEIGHTED).isnull().all()
        assert (compared.dataset["difference"].sel(estimator="pathwise") == 0).all()

    def test_an_importance_weighted_row_is_held_against_its_own_number_of_draws(self, compared, compare, monkeypatch):
        references = compared.dataset["projected_reference"]
        assert (references.sel(estimator="dreg") == references.sel(estimator="iwae")).all()
        assert (references.sel(estimator="iwae-2") != references.sel(estimator="iwae")).all()
        assert (errors(compared, *WEIGHTED) < 5).all()
        other = glp.estimators.get("iwae", num_particles=2)
        monkeypatch.setattr(Checkpoint, "reference_of", lambda *_: other)
        assert errors(compare("plain", ["iwae"], num_draws=100), "iwae").max() > 5

    def test_enumeration_may_be_the_reference(self, labelled, compare):
        assert labelled.dataset.attrs["reference"] == labelled.dataset.attrs["trajectory"] == "enum"
        assert (labelled.dataset["ratio"].sel(estimator="enum") == 1).all()
        chosen = compare("label", ["score-loo", "enum"], reference="enum", num_draws=4).dataset
        assert chosen.attrs["reference"] == "enum"
        assert (chosen["ratio"].sel(estimator="enum") == 1).all()

    def test_the_reference_may_be_an_estimator(self, compare):
        data = compare("plain", ["pathwise", "score"], reference=glp.Estimator("score"), num_draws=10).dataset
        assert data.attrs["reference"] == "score"
        assert (data["ratio"].sel(estimator="pathwise").drop_sel(group="decoder") < 0.1).all()


class TestBaseline:
    def test_one_that_has_learned_beats_none(self, compared):
        data = compared.dataset.drop_sel(group="decoder")
        assert (data["ratio"].sel(estimator="score-graph-ema") < 0.01 * data["ratio"].sel(estimator="score")).all()

    @pytest.mark.parametrize("name", ["score-graph-ema", "score-graph-nn"])
    def test_it_learns_from_shuffled_cells_and_stays_as_it_is_while_measured(self, name, cells, vaes, monkeypatch):
        seen = []
        update = CellBaseline.update

        def noted(baseline, site):
            seen.append(site.index)
            update(baseline, site)

        monkeypatch.setattr(CellBaseline, "update", noted)
        minibatch = sample(cells, 32, seed=0, device=torch.device("cpu"))
        at = Checkpoint(copy.deepcopy(vaes["plain"]).eval(), cells, minibatch, "pathwise", 3, 0)
        with frozen():
            sampler = at.sampler(glp.estimators.get(name), minibatch.size)
            learned = {key: value.clone() for key, value in sampler.elbo.baseline.state_dict().items()}
            steps = len(seen)
            sampler.draws(minibatch, 3, 0)
        after = sampler.elbo.baseline.state_dict()
        assert learned.keys() == after.keys()
        assert all(torch.equal(value, after[key]) for key, value in learned.items())
        assert max(float(value.abs().max()) for value in learned.values()) > 0
        if name == "score-graph-ema":
            assert len(seen) == steps == WARM_STEPS
            assert len(torch.cat(seen[:4]).unique()) == len(cells)
            assert not torch.equal(seen[0], seen[4])
            assert not any(torch.equal(index.sort().values, minibatch.index) for index in seen)


class TestParticles:
    def test_more_of_them_need_not_help(self, by_particles):
        ratios = by_particles.dataset["signal_to_noise_by_particles"]
        one, _, many = ratios.sel(estimator="pathwise").values
        assert many > 2 * one
        one, _, many = ratios.sel(estimator="iwae").values
        assert many < one / 2
        _, some, many = ratios.sel(estimator="dreg").values
        assert many > some

    def test_one_is_no_importance_weight(self, by_particles):
        one = by_particles.dataset["signal_to_noise_by_particles"].sel(num_particles=1)
        assert one.sel(estimator="iwae") == pytest.approx(one.sel(estimator="pathwise").item(), rel=1e-4)

    def test_too_few_are_left_out(self, by_particles):
        ratios = by_particles.dataset["signal_to_noise_by_particles"]
        assert [*ratios["num_particles"].values] == [1, 4, 16]
        assert ratios.attrs["group"] == "latent location"
        assert ratios.isnull().sum() == 1
        assert ratios.sel(estimator="score-loo", num_particles=1).isnull()


class TestCaller:
    def test_nothing_of_the_callers_is_touched(self, plain, compare, few_steps):
        plain.encoder.eval()
        weights = copy.deepcopy(plain.state_dict())
        modes = [module.training for module in plain.modules()]
        with pyro.get_param_store().scope():
            pyro.param("mine", torch.ones(1))
            before, state, numpy_state = [*pyro.get_param_store().keys()], torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
            estimators = ["pathwise", "score-graph-nn", "iwae"]
            compare(plain, estimators, num_draws=2, checkpoints=("trained",), particles=(2,), max_epochs=1)
            assert [*pyro.get_param_store().keys()] == before == ["mine"]
        assert torch.equal(torch.get_rng_state(), state)
        assert np.array_equal(np.random.get_state()[1], numpy_state[1])  # noqa: NPY002
        assert all(torch.equal(value, weights[name]) for name, value in plain.state_dict().items())
        assert [module.training for module in plain.modules()] == modes
        assert all(parameter.grad is None for parameter in plain.parameters())

    def test_it_measures_alike_whatever_the_callers_state(self, plain, compare, few_steps):
        options = {"num_draws": 4, "checkpoints": ("trained",), "particles": (2,), "max_epochs": 2}
        estimators = ["pathwise", "score-graph-nn"]
        first = compare(plain, estimators, **options).dataset
        torch.manual_seed(99)
        plain.eval()
        again = compare(plain, estimators, **options).dataset
        timed = ["seconds", "variance_seconds"]
        xr.testing.assert_identical(first.drop_vars(timed), again.drop_vars(timed))

    def test_another_seed_draws_others(self, compare):
        first, other = (compare("plain", ["pathwise"], num_draws=4, seed=seed).dataset for seed in (0, 1))
        assert not np.isclose(first["projected"], other["projected"]).any()


class TestRefusals:
    @pytest.mark.parametrize(
        ("vae", "name", "instead"),
        [("label", "pathwise", "enum"), ("bits", "pathwise", "score-loo"), ("plain", "enum", "pathwise")],
    )
    def test_an_estimator_that_cannot_be_used_is_refused_before_anything_is_done(self, vae, name, instead, compare):
        said = []
        message = f"^{name}: .*{instead}.*leave it out of the comparison"
        with pytest.raises(glp.estimators.EstimatorError, match=message):
            compare(vae, ["score", name], checkpoints=("trained",), callback=said.append)
        assert said == []

    @pytest.mark.parametrize(
        ("estimators", "options", "message"),
        [
            ("pathwise", {}, r"expected a list of estimators, such as \['pathwise', 'score'\], got 'pathwise'"),
            (glp.Estimator(), {}, "expected a list of estimators"),
            ([], {}, r"expected a list of estimators.*got \[\]"),
            (["pathwize"], {}, "expected estimator to be one of 'pathwise'.*got 'pathwize'"),
            ([1], {}, "expected estimator to be one of 'pathwise'.*got 1"),
            (["pathwise", "pathwise"], {}, "expected each estimator once, got pathwise, pathwise"),
            (["pathwise", glp.Estimator()], {}, "expected each estimator once"),
            (
                ["pathwise"],
                {"num_draws": 1},
                "expected at least two draws, whose scatter is asked for, got num_draws=1",
            ),
            (["pathwise"], {"num_draws": 2.5}, "expected at least two draws"),
            (
                ["pathwise"],
                {"checkpoints": ("final",)},
                "expected checkpoints among 'given', 'initial', 'mid', 'trained'.*'final'",
            ),
            (["pathwise"], {"checkpoints": (1.5,)}, "shares of the epochs from 0 to 1, got 1.5"),
            (["pathwise"], {"checkpoints": "initial"}, "expected a list of checkpoints"),
            (["pathwise"], {"checkpoints": ()}, "expected a list of checkpoints"),
            (["pathwise"], {"reference": "score"}, "expected the reference among.*pathwise, got 'score'; add it"),
            (["pathwise"], {"particles": (0,)}, r"expected a list of whole numbers of particles.*got \(0,\)"),
            (["pathwise"], {"particles": 4}, "expected a list of whole numbers of particles.*got 4"),
            (["pathwise"], {"max_epoch": 3}, "expected training settings among.*max_epoch"),
        ],
    )
    def test_a_bad_argument_is_answered_with_what_was_expected(self, estimators, options, message, compare):
        said = []
        with pytest.raises(ValueError, match=message):
            compare("plain", estimators, **{"checkpoints": ("trained",), "callback": said.append, **options})
        assert said == []

    def test_what_is_done_is_said(self, compare):
        said = []
        options = {"num_draws": 2, "checkpoints": ("initial", "trained"), "particles": (1, 2), "max_epochs": 3}
        compare("plain", ["score"], callback=said.append, **options)
        assert said == [
            "training the reference run by pathwise",
            "measuring at the checkpoint initial (epoch 0)",
            "measuring at the checkpoint trained (epoch 3)",
            "measuring the signal-to-noise for 1, 2 particles",
        ]


class TestReading:
    def test_it_is_drawn_in_figures(self, by_particles):
        figures = by_particles.plot()
        assert [*figures] == ["gradient_variance", "variance_against_cost", "gradient_histograms", "signal_to_noise"]
        titles = {name: figure.get_suptitle() for name, figure in figures.items()}
        where = "latent location, checkpoint trained"
        assert titles["variance_against_cost"] == f"Variance and cost of a gradient of the ELBO: {where}"
        assert all("latent location" in title for title in titles.values())

    def test_another_checkpoint_and_group_are_drawn(self, compared):
        figures = compared.plot("initial", "decoder")
        assert [*figures] == ["gradient_variance", "variance_against_cost", "gradient_histograms"]
        assert all("decoder, checkpoint initial" in figure.get_suptitle() for figure in figures.values())

    def test_it_is_saved_and_read(self, by_particles, tmp_path):
        path = by_particles.save(tmp_path / "comparison.nc")
        read = EstimatorComparison.load(path)
        xr.testing.assert_identical(read.dataset, by_particles.dataset)
        assert read.to_dataframe().equals(by_particles.to_dataframe())
        assert repr(read) == repr(by_particles)
        assert [*read.plot()] == [*by_particles.plot()]
        assert by_particles.save(path) == path

    def test_a_file_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"expected a netCDF file at .*none\.nc"):
            EstimatorComparison.load(tmp_path / "none.nc")
