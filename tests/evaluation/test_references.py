"""Each reference recovers the truth that it assumes, and says why it does not apply elsewhere."""

import numpy as np
import pandas as pd
import pytest

from genailab_pyro.evaluation import references
from genailab_pyro.evaluation.perturbation import perturbation_table, r2_of_shift
from genailab_pyro.evaluation.references import (
    HALF,
    REFERENCES,
    DoesNotApply,
    Group,
    PerturbationTask,
    predict_references,
    score_references,
)

NUM_GENES = 12


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def simulated(mean, groups, rng, *, cells=6, noise=0.0):
    """Cells of groups whose mean is a function of the group, with a dose of 0 for controls."""
    rows = [group for group in groups for _ in range(cells)]
    table = pd.DataFrame(rows, columns=["context", "perturbation", "dose"])
    values = np.stack([mean(group) for group in rows]) + noise * rng.normal(size=(len(rows), NUM_GENES))
    return values, table


def held_out(values, table, target):
    dose = "dose" if table["dose"].nunique() > 2 else None
    return PerturbationTask.hold_out(values, table, target, context="context", perturbation="perturbation", dose=dose)


class Contexts:
    """Cell types in which a stimulus acts in proportion to where the controls are."""

    def __init__(self, rng, names="ABCDEF"):
        self.places = dict(zip(names, rng.normal(size=len(names)), strict=True))
        self.base, self.axis, self.common, self.specific = (
            rng.uniform(4, 6, NUM_GENES),
            *rng.normal(size=(3, NUM_GENES)),
        )

    def shift(self, context):
        return self.common + self.places[context] * self.specific

    def mean(self, group):
        control = self.base + self.places[group.context] * self.axis
        return control + (self.shift(group.context) if group.perturbation == "stimulated" else 0)

    def task(self, rng, target="C", **options):
        groups = [Group(name, what) for name in self.places for what in ("control", "stimulated")]
        return held_out(*simulated(self.mean, groups, rng, **options), Group(target, "stimulated"))


class Combinations:
    """Genes whose effects add up."""

    names = "ABCD"

    def __init__(self, rng):
        self.effects = dict(zip(self.names, rng.normal(size=(4, NUM_GENES)), strict=True))

    def shift(self, perturbation):
        return sum(
            (self.effects[part] for part in perturbation.split("+") if part in self.effects), np.zeros(NUM_GENES)
        )

    def task(self, rng, target="A+B", names=("A", "B", "C", "D", "A+B", "A+C", "B+C"), **options):
        groups = [Group("K562", name) for name in ("control", *names)]
        values = simulated(lambda group: 10 + self.shift(group.perturbation), groups, rng, **options)
        return held_out(*values, Group("K562", target))


class Doses:
    """Effects in proportion to the logarithm of the dose."""

    levels = (0.0, 0.5, 1.0, 4.0, 16.0)

    def __init__(self, rng):
        self.slope = rng.normal(size=NUM_GENES)

    def mean(self, group):
        return 20 + self.slope * np.log1p(group.dose / 0.5)

    def task(self, rng, dose=4.0, unit=1.0, **options):
        groups = [Group("liver", "drug" if level else "control", level) for level in self.levels]
        values, table = simulated(self.mean, groups, rng, **options)
        return held_out(values, table.assign(dose=table["dose"] * unit), Group("liver", "drug", dose * unit))


class TestTask:
    def test_the_target_is_held_out_and_its_controls_are_not(self, rng):
        truth = Contexts(rng)
        task, real = truth.task(rng)
        assert (len(task.expression), len(real), len(task.controls)) == (66, 6, 6)
        np.testing.assert_allclose(real, np.tile(truth.mean(Group("C", "stimulated")), (6, 1)))
        np.testing.assert_allclose(task.control_mean("C"), truth.mean(Group("C", "control")))
        assert [group.context for group in task.groups] == [*"ABDEF"]
        np.testing.assert_allclose(task.shift(Group("A", "stimulated")), truth.shift("A"))
        assert task.centroids.shape == (0, NUM_GENES)

    def test_predicted_cells_are_moved_controls_cut_off_at_zero(self, rng):
        task, _ = Contexts(rng).task(rng, noise=0.1)
        shift = np.where(np.arange(NUM_GENES) < 6, -100, 1.0)
        np.testing.assert_array_equal(task.predict(shift)[:, :6], 0)
        np.testing.assert_allclose(task.predict(shift)[:, 6:], task.controls[:, 6:] + 1)

    def test_split_controls_are_halves_of_those_of_the_target_alone(self, rng):
        task, _ = Contexts(rng).task(rng, noise=0.1)
        halved, other = task.split_controls(seed=1)
        assert (len(halved.controls), len(other), len(halved.expression)) == (3, 3, 63)
        both = np.concatenate([halved.controls, other])
        np.testing.assert_allclose(np.sort(both, axis=0), np.sort(task.controls, axis=0))
        assert halved.target == task.target

    def test_the_projection_is_of_the_training_cells(self, rng):
        task, _ = Contexts(rng).task(rng, noise=0.1)
        assert task.projection.n_components_ == NUM_GENES
        np.testing.assert_allclose(task.projection.mean_, task.expression.mean(0))

    def test_categories_are_names(self, rng):
        values, table = simulated(Contexts(rng).mean, [Group("A", "control"), Group("A", "stimulated")], rng)
        _, real = held_out(
            values, table.astype({"context": "category", "perturbation": "category"}), Group("A", "stimulated")
        )
        assert len(real) == 6

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"context": ["a"]}, r"the context of each of 3 cells, got shape \[1\]"),
            ({"perturbation": ["control", None, "x"]}, "the perturbation of each of 3 .* with 1 missing; leave out"),
            ({"dose": [0.0, 1.0, np.nan]}, "the dose of each of 3 .* with 1 missing"),
            ({"dose": [0.0, 0.0, 1.0]}, "doses above 0 of perturbed cells, got others; .* is 'control'"),
            ({"target": Group("a", "x")}, r"no training cells of the target \(a, x\); see PerturbationTask.hold_out"),
            ({"target": Group("a", "z+y")}, r"no training cells of the target \(a, z\+y\)"),
            ({"target": Group("b", "x")}, r"training controls \('control'\) of the context 'b', got none"),
            ({"expression": np.ones(3)}, r"expression of shape \[cells, genes\]"),
        ],
    )
    def test_a_task_that_cannot_be_is_named(self, change, message):
        arguments = {
            "expression": np.ones((3, 2)),
            "context": ["a", "a", "a"],
            "perturbation": ["control", "x", "y+z"],
            "target": Group("a", "new"),
        }
        with pytest.raises(ValueError, match=message):
            PerturbationTask(**{**arguments, **change})

    def test_columns_and_cells_that_are_not_there_are_named(self, rng):
        values, table = simulated(Contexts(rng).mean, [Group("A", "control"), Group("A", "stimulated")], rng)
        with pytest.raises(
            KeyError, match=r"columns \['drug'\] of the cells, got \['context', 'perturbation', 'dose'\]"
        ):
            PerturbationTask.hold_out(values, table, Group("A", "x"), context="context", perturbation="drug")
        with pytest.raises(ValueError, match="cells of A, x among 12, got 0 in a table of 12"):
            held_out(values, table, Group("A", "x"))


class TestPredictors:
    def test_mean_shift_is_that_over_contexts_and_not_over_cells(self, rng):
        truth = Contexts(rng)
        task, _ = truth.task(rng)
        expected = np.mean([truth.shift(name) for name in "ABDEF"], axis=0)
        np.testing.assert_allclose(references.mean_shift(task), expected)
        more = np.r_[np.arange(len(task.expression)), np.flatnonzero(task.context == "A")]
        twice = PerturbationTask(task.expression[more], task.context[more], task.perturbation[more], task.target)
        np.testing.assert_allclose(references.mean_shift(twice), expected)

    def test_the_nearest_context_is_told_by_the_controls(self, rng):
        truth = Contexts(rng)
        truth.places |= {"C": 1.0, "E": 1.2, "A": 0.5}
        task, _ = truth.task(rng)
        np.testing.assert_allclose(references.nearest_context(task), truth.shift("E"))

    def test_ridge_finds_how_the_shift_depends_on_the_context(self, rng):
        truth = Contexts(rng)
        truth.places |= {"C": 0.3}
        task, real = truth.task(rng)
        np.testing.assert_allclose(references.ridge_on_pca(task), truth.shift("C"), atol=0.01)
        found = {
            name: r2_of_shift(real, cells, task.controls) for name, cells in predict_references(task).cells.items()
        }
        assert max(found, key=found.get) == "ridge on PCA"

    def test_ridge_adds_what_the_perturbation_and_what_the_context_do(self, rng):
        truth = Contexts(rng)
        effects = {"x": np.zeros(NUM_GENES), "y": rng.normal(size=NUM_GENES)}

        def mean(group):
            control = truth.mean(group)
            return control if group.perturbation == "control" else control + truth.shift(group.context) + effect(group)

        def effect(group):
            return sum(effects[part] for part in group.perturbation.split("+"))

        groups = [Group(name, what) for name in truth.places for what in ("control", "x", "y", "x+y")]
        task, real = held_out(*simulated(mean, groups, rng), Group("C", "x+y"))
        expected = truth.shift("C") + effects["y"]
        np.testing.assert_allclose(real.mean(0) - task.control_mean("C"), expected)
        np.testing.assert_allclose(references.ridge_on_pca(task), expected, atol=0.02)

    def test_ridge_does_not_follow_noise(self, rng):
        truth = Contexts(rng)
        truth.specific *= 0
        task, _ = truth.task(rng, noise=0.5)
        errors = [
            np.abs(predictor(task) - truth.common).mean()
            for predictor in (references.ridge_on_pca, references.mean_shift)
        ]
        assert errors[0] < 1.5 * errors[1]

    def test_single_effects_add_up(self, rng):
        truth = Combinations(rng)
        task, _ = truth.task(rng)
        np.testing.assert_allclose(references.additive(task), truth.shift("A+B"))
        np.testing.assert_allclose(references.ridge_on_pca(task), truth.shift("A+B"), atol=0.05)

    def test_ridge_takes_the_effect_of_a_gene_from_its_combinations(self, rng):
        truth = Combinations(rng)
        task, _ = truth.task(rng, names=("A", "C", "D", "B+C", "B+D", "A+D", "A+B"))
        np.testing.assert_allclose(references.ridge_on_pca(task), truth.shift("A+B"), atol=0.02)
        with pytest.raises(DoesNotApply, match="no training cells of K562, B"):
            references.additive(task)

    def test_the_mean_of_other_perturbations_leaves_the_target_out(self, rng):
        truth = Combinations(rng)
        task, _ = truth.task(rng, target="A", names=("A", "B", "C", "B+C"))
        expected = np.mean([truth.shift(name) for name in ("B", "C", "B+C")], axis=0)
        np.testing.assert_allclose(references.mean_perturbation(task), expected)
        np.testing.assert_allclose(task.centroids.mean(0), 10 + expected)

    def test_other_doses_of_the_target_are_no_other_perturbation(self, rng):
        levels = [Group("liver", "control", 0.0), *(Group("liver", name, dose) for name in "xy" for dose in (1.0, 3.0))]
        values = simulated(lambda group: np.full(NUM_GENES, 10 + (group.perturbation == "y") * group.dose), levels, rng)
        task, _ = held_out(*values, Group("liver", "x", 3.0))
        np.testing.assert_allclose(references.mean_perturbation(task), 2)

    @pytest.mark.parametrize(
        ("dose", "neighbours"), [(4.0, (1.0, 16.0)), (0.5, (0.0, 1.0)), (16.0, (4.0,)), (1.0, (0.5, 4.0))]
    )
    def test_nearest_doses_are_those_around(self, rng, dose, neighbours):
        truth = Doses(rng)
        task, _ = truth.task(rng, dose)
        expected = np.mean([truth.mean(Group("liver", "drug", level)) - 20 for level in neighbours], axis=0)
        np.testing.assert_allclose(references.nearest_doses(task), expected)

    @pytest.mark.parametrize("dose", [1.0, 4.0, 16.0])
    @pytest.mark.parametrize("predictor", [references.linear_in_log_dose, references.ridge_on_pca])
    def test_effects_are_linear_in_the_logarithm_of_the_dose(self, rng, predictor, dose):
        truth = Doses(rng)
        task, real = truth.task(rng, dose)
        np.testing.assert_allclose(predictor(task), real.mean(0) - 20, atol=1e-6)

    @pytest.mark.parametrize("predictor", [references.linear_in_log_dose, references.ridge_on_pca])
    def test_the_unit_of_the_dose_does_not_matter(self, rng, predictor):
        truth = Doses(rng)
        found = [predictor(truth.task(np.random.default_rng(1), 4.0, unit, noise=0.3)[0]) for unit in (1.0, 1000.0)]
        np.testing.assert_allclose(*found)

    def test_a_shift_in_another_context_is_at_the_same_dose(self, rng):
        def mean(group):
            return np.full(NUM_GENES, 10.0 * len(group.context) + group.dose)

        groups = [
            Group(context, "drug" if dose else "control", dose) for context in ("a", "bb") for dose in (0.0, 1, 3)
        ]
        task, _ = held_out(*simulated(mean, groups, rng), Group("bb", "drug", 3.0))
        np.testing.assert_allclose(references.mean_shift(task), 3)
        np.testing.assert_allclose(references.nearest_context(task), 3)

    def test_those_that_do_not_apply_say_why(self, rng):
        predictions = predict_references(Contexts(rng, "AB").task(rng, "A")[0])
        assert list(predictions.cells) == ["no change", "mean shift", "nearest context"]
        assert predictions.left_out == {
            "mean perturbation": "no other perturbation was seen in A",
            "additive": "stimulated is no combination",
            "nearest doses": "no other dose of stimulated was seen in A",
            "linear in log dose": "no other dose of stimulated was seen in A",
            "ridge on PCA": "at least three perturbed training groups are needed, got 1",
        }
        unseen = predict_references(Combinations(rng).task(rng, "D", names=("A", "B", "C", "D"))[0])
        assert unseen.left_out["ridge on PCA"] == "no training cells of D"
        assert unseen.left_out["mean shift"] == "any other context, D was not seen"

    def test_a_reference_of_the_users_own_is_taken(self, rng, monkeypatch):
        monkeypatch.setitem(REFERENCES, "half of the mean", lambda task: references.mean_shift(task) / 2)
        task, _ = Contexts(rng).task(rng)
        cells = predict_references(task).cells
        np.testing.assert_allclose(cells["half of the mean"] - task.controls, (cells["mean shift"] - task.controls) / 2)


class TestScores:
    def test_references_are_between_no_change_and_real_cells(self, rng):
        task, real = Contexts(rng).task(rng, cells=60, noise=0.5)
        scores = score_references(task, real, models={"model": task.controls}, top=5)
        assert list(scores) == [HALF, "no change", "mean shift", "nearest context", "ridge on PCA", "model"]
        assert scores[HALF].r2_shift > 0.9
        assert scores["no change"].pearson_shift == scores["no change"].pearson_shift_split == 0
        assert scores["model"].pearson_shift_split == 0
        assert scores["mean shift"].rmse < scores["no change"].rmse
        assert abs(scores[HALF].energy_distance) < 0.1 < scores["no change"].energy_distance
        assert len(perturbation_table({"C": scores})) == 12

    def test_with_split_controls_nothing_is_predicted_where_nothing_changes(self):
        """Shifts of doses share the controls: only references that never saw half of them are without its noise."""
        shared, split = [], []
        for seed in range(60):
            rng = np.random.default_rng(seed)
            truth = Doses(rng)
            truth.slope *= 0
            task, real = truth.task(rng, noise=0.3)
            scores = score_references(task, real, seed=seed)["nearest doses"]
            shared.append(scores.pearson_shift)
            split.append(scores.pearson_shift_split)
        error = np.std(split) / np.sqrt(len(split))
        assert abs(np.mean(split)) < 5 * error
        assert np.mean(shared) > 10 * error

    def test_scores_are_those_of_the_seed(self, rng):
        task, real = Combinations(rng).task(rng, cells=20, noise=0.5)
        first, again, other = (score_references(task, real, seed=seed)[HALF] for seed in (0, 0, 1))
        assert first == again != other
        assert np.isfinite(first.pearson_systema)
        assert np.isnan(score_references(*Contexts(rng).task(rng, noise=0.1))[HALF].pearson_systema)

    def test_several_draws_of_the_same_cells_score_like_one(self, rng):
        task, real = Contexts(rng).task(rng, cells=40, noise=0.3)
        moved = task.controls + 0.4
        once, thrice = (
            score_references(task, real, models={"model": cells})["model"] for cells in (moved, np.tile(moved, (3, 1)))
        )
        assert thrice.pearson_shift_split == pytest.approx(once.pearson_shift_split)
        assert thrice.rmse == pytest.approx(once.rmse)

    def test_a_models_cells_are_one_from_each_control(self, rng):
        task, real = Contexts(rng).task(rng)
        with pytest.raises(ValueError, match=r"a row of the 6 controls for each of 5 predicted cells"):
            score_references(task, real + rng.normal(size=real.shape), models={"model": task.controls[:5]})
