"""Every part with every estimator, and every prior and guide with every likelihood, as `matrix` tries them."""

import itertools

import pytest
import torch

import genailab_pyro as glp
from tests.contracts.matrix import (
    ENCODERS,
    LIKELIHOODS,
    PARTS,
    PRIORS,
    Broken,
    Part,
    combinations,
    simulated,
    tried,
    with_prior,
)


@pytest.fixture(scope="module")
def cells():
    return simulated()


@pytest.mark.parametrize(("part", "estimator"), combinations())
def test_a_part_trains_by_an_estimator_or_another_is_named(part, estimator, cells, record_property):
    found = tried(PARTS[part], cells, estimator)
    record_property("offered", [part, estimator, found])
    whole, latents = PARTS[part], glp.estimators.table()["latents"]
    others = {"continuous": "discrete", "discrete": "continuous"}[whole.latents]
    assert (found != "yes") == (estimator in whole.refused or latents[estimator] == others)
    for _ in range(2):  # a bound of importance weights may send on to another, which asks for more
        if found != "yes":
            found = tried(whole, cells, found.removeprefix("no: "))
    assert found == "yes"


@pytest.mark.parametrize(("part", "likelihood"), itertools.product(PRIORS | ENCODERS, LIKELIHOODS))
def test_priors_and_guides_go_with_every_likelihood(part, likelihood, cells):
    whole = (PRIORS | ENCODERS)[part]
    assert tried(Part(lambda: whole.build(LIKELIHOODS[likelihood])), cells, "pathwise") == "yes"


class Infinite(glp.StandardNormal):
    """A planted fault: its latents are infinitely far away."""

    def forward(self, condition):
        prior = super().forward(condition)
        prior.base_dist.loc = prior.base_dist.loc + torch.inf
        return prior


def test_a_part_that_is_not_finite_is_found(cells):
    with pytest.raises((Broken, glp.TrainingError)):
        tried(Part(with_prior(lambda: Infinite(2))), cells, "pathwise")
