"""The table of names, and combinations that are refused."""

import pytest

from genailab_pyro import Estimator, estimators


def test_a_name_gives_its_specification():
    assert estimators.get("score-graph") == Estimator(rule="score", credit="graph")
    assert estimators.get("score", num_particles=8).num_particles == 8
    assert estimators.get(Estimator("score")) == Estimator("score")


def test_the_table_lists_objective_needs_and_reference():
    table = estimators.table()
    assert {"pathwise", "pathwise-kl", "score", "score-graph"} <= set(table.index)
    assert set(table.loc[["pathwise", "score"], "objective"]) == {"ELBO"}
    assert table["reference"].str.contains("doi:").all()


def test_a_user_adds_a_row():
    estimators.register("pathwise-16", Estimator(num_particles=16), reference="ours")
    assert estimators.get("pathwise-16").num_particles == 16
    with pytest.raises(ValueError, match="choose another name"):
        estimators.register("pathwise", Estimator("score"))


def test_an_estimator_has_a_name_to_be_shown():
    assert estimators.name_of(Estimator("score", credit="graph")) == "score-graph"
    assert estimators.name_of(Estimator("score", num_particles=4)) == "score-4"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "reinforce"}, "rule to be one of 'pathwise', 'score', got 'reinforce'"),
        ({"bound": "renyi"}, "got bound='renyi'"),
        ({"rule": "score", "bound": "elbo-kl"}, "no gradient; use the estimator 'score'"),
        ({"num_particles": 0}, "at least one, got 0"),
        ({"num_particles": True}, "at least one, got True"),
        ({"baseline": "average"}, "got 'average'"),
    ],
)
def test_what_cannot_work_is_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        Estimator(**arguments)


def test_an_unknown_name_is_answered_with_the_known():
    with pytest.raises(ValueError, match=r"'pathwise', 'pathwise-kl', 'score'.*got 'pathwize'"):
        estimators.get("pathwize")
