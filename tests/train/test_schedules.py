"""The weight of the KL and the learning rate over a run."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from genailab_pyro import Warmup
from genailab_pyro.train.schedules import LEARNING_RATES, SHAPES, Annealed


def weights(warmup, num_steps=40):
    return [warmup.at(step, num_steps) for step in range(num_steps + 1)]


def test_linear_rises_evenly_and_stays():
    assert weights(Warmup(shape="linear", length=0.5), 8) == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1]


def test_a_length_in_steps_does_not_depend_on_the_run():
    warmup = Warmup(shape="linear", length=4)
    assert [warmup.at(step, 10**6) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert warmup.at(2, 10**6) == Warmup(length=0.5).at(2, 8)


def test_cosine_is_half_way_at_half_time_and_flat_at_both_ends():
    values = weights(Warmup(shape="cosine", length=1.0))
    assert values[0] == 0
    assert values[20] == pytest.approx(0.5)
    assert values[40] == 1
    assert values[10] == pytest.approx((1 - math.cos(math.pi / 4)) / 2)
    steps = [after - before for before, after in itertools.pairwise(values)]
    assert max(steps) == pytest.approx(steps[19])
    assert steps[0] < steps[10] < steps[19]


@pytest.mark.parametrize("shape", ["linear", "cosine"])
@pytest.mark.parametrize("length", [0.3, 1.0, 7])
def test_a_single_warmup_never_falls_and_arrives_at_beta(shape, length):
    values = weights(Warmup(beta=4.0, shape=shape, length=length))
    assert values == sorted(values)
    assert values[0] == 0
    assert values[-1] == 4
    assert all(0 <= value <= 4 for value in values)


def test_constant_is_beta_from_the_first_step():
    assert set(weights(Warmup(beta=0.3, shape="constant"))) == {0.3}


def test_cycles_repeat_the_rise():
    values = weights(Warmup(shape="linear", length=0.5, cycles=4))
    one = [0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1]
    assert values[:40] == pytest.approx(one * 4)
    assert values[40] == 1


def test_cycles_of_a_length_in_steps_rise_in_as_many():
    assert weights(Warmup(shape="linear", length=2, cycles=2), 8)[:8] == [0, 0.5, 1, 1, 0, 0.5, 1, 1]


def test_more_cycles_than_steps_are_one_step_long():
    assert all(math.isfinite(value) for value in weights(Warmup(cycles=100), 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": -0.1}, "beta to be finite and at least 0, got -0.1"),
        ({"beta": float("nan")}, "got nan"),
        ({"shape": "exponential"}, "shape to be one of 'constant', 'linear', 'cosine', got 'exponential'"),
        ({"length": 0}, "got length=0"),
        ({"length": 0.0}, r"a float in \(0, 1\].*got length=0.0"),
        ({"length": 1.5}, "got length=1.5"),
        ({"length": float("nan")}, "got length=nan"),
        ({"cycles": 0}, "cycles=0"),
        ({"cycles": 1.5}, "cycles=1.5"),
    ],
)
def test_a_warmup_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Warmup(**arguments)


def test_learning_rates_begin_and_end_where_they_should():
    one_cycle, cosine = LEARNING_RATES["one-cycle"], LEARNING_RATES["cosine"]
    assert one_cycle(0.0) == pytest.approx(1 / 25)
    assert one_cycle(0.3) == pytest.approx(1.0)
    assert one_cycle(1.0) == pytest.approx(1e-4)
    assert one_cycle(0.15) == pytest.approx((1 + 1 / 25) / 2)
    assert (cosine(0.0), cosine(0.5), cosine(1.0)) == pytest.approx((1.0, 0.5, 0.0))
    assert {LEARNING_RATES[name](t) for name in ("constant", "plateau") for t in (0.0, 0.4, 1.0)} == {1.0}


def test_no_learning_rate_leaves_its_range_and_one_cycle_has_one_peak():
    for name, schedule in LEARNING_RATES.items():
        values = [schedule(step / 200) for step in range(201)]
        assert all(0 <= value <= 1 for value in values), name
    values = [LEARNING_RATES["one-cycle"](step / 200) for step in range(201)]
    peak = values.index(max(values))
    assert values[:peak] == sorted(values[:peak])
    assert values[peak:] == sorted(values[peak:], reverse=True)


def test_every_shape_runs_from_zero_to_one_but_constant():
    assert {name: (shape(0.0), shape(1.0)) for name, shape in SHAPES.items()} == {
        "constant": (1.0, 1.0),
        "linear": (0.0, 1.0),
        "cosine": (0.0, 1.0),
    }


def test_annealing_scales_the_named_latent_sites_alone():
    def program():
        with poutine.scale(scale=2.0):
            pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("library", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(()))

    annealed = Annealed(["z", "x"])
    annealed.beta = 0.25
    with annealed:
        trace = poutine.trace(program).get_trace()
    scales = {name: trace.nodes[name]["scale"] for name in ("z", "library", "x")}
    assert scales == {"z": 0.5, "library": 1, "x": 1}
