"""Laws of the schema's parts and of their journey through JSON."""

import json

import numpy as np
import pytest

from genailab_pyro.data.cells import Cells
from genailab_pyro.data.registration import Categorical, Continuous, Registration


def registered():
    rng = np.random.default_rng(0)
    return Cells.from_tensors(
        rng.poisson(2.0, (30, 4)) + 1,
        {"batch": ["late", "early"] * 15, "plate": rng.integers(0, 3, 30)},
        {"dose": rng.normal(1 / 3, 0.1, 30)},
        labels=rng.choice(["A", "B"], 30),
        size_factor=rng.uniform(0.5, 2, 30),
    ).registration


def test_json_round_trip_is_exact():
    registration = registered()
    plain = registration.to_json()
    assert Registration.from_json(plain) == registration
    assert Registration.from_json(json.loads(json.dumps(plain))) == registration
    bare = Cells.from_tensors([[1, 2], [3, 4]]).registration
    assert Registration.from_json(bare.to_json()) == bare
    assert bare != registration


def test_json_holds_plain_types_only():
    def kinds(value):
        children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return {type(value)}.union(*map(kinds, children))

    assert kinds(registered().to_json()) <= {dict, list, str, int, float, type(None)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plain: plain.pop("genes"), "with the fields"),
        (lambda plain: plain.update(extra=1), "extra"),
        (lambda plain: plain.update(genes="G0"), "expected 'genes' as list"),
        (lambda plain: plain.update(genes=[1, 2]), "expected strings in 'genes'"),
        (lambda plain: plain.update(genes=["G0", "G0"]), "occur more than once"),
        (lambda plain: plain.update(num_cells="40"), "expected 'num_cells' as int"),
        (lambda plain: plain.update(num_cells=True), "expected 'num_cells' as int"),
        (lambda plain: plain.update(num_cells=0), "at least one cell"),
        (lambda plain: plain.update(counts=3), "expected 'counts' as str"),
        (lambda plain: plain.update(labels="A"), "an object with the field"),
        (lambda plain: plain.update(conditions=[3]), "an object with the field"),
        (lambda plain: plain["conditions"][1].update(name="batch"), "distinct names of covariates"),
        (lambda plain: plain["conditions"][0].update(levels=["a"]), "one frequency for each"),
        (lambda plain: plain["conditions"][0].update(levels=["a", "a"]), "distinct levels"),
        (lambda plain: plain["conditions"][0].update(frequencies=[0.5, 0.6]), "sum of one"),
        (lambda plain: plain["conditions"][0].update(frequencies=["a", 0.5]), "expected numbers in 'freq"),
        (lambda plain: plain["continuous"][0].update(scale=0.0), "deviation above zero"),
        (lambda plain: plain["library"].update(scale=None), "expected numbers in 'scale'"),
        (lambda plain: plain["library"].update(scale=True), "expected numbers in 'scale'"),
        (lambda plain: plain["library"].update(levels=[[1.0]]), "expected pairs"),
        (lambda plain: plain["library"].update(levels=[[1.0, 1.0]]), "for 2 levels"),
        (lambda plain: plain["library"].update(levels=[[1.0, -1.0], [1.0, 1.0]]), "scale above zero"),
    ],
)
def test_malformed_json_is_refused(change, message):
    plain = registered().to_json()
    change(plain)
    with pytest.raises(ValueError, match=message):
        Registration.from_json(plain)


@pytest.mark.parametrize("plain", [None, [], "registration"])
def test_what_is_no_object_is_refused(plain):
    with pytest.raises(ValueError, match="expected a registration as to_json gives it"):
        Registration.from_json(plain)


def test_standardising_refuses_what_is_no_number():
    with pytest.raises(ValueError, match="expected finite numbers for 'dose'"):
        Continuous("dose", 0.0, 1.0).standardise([1.0, np.nan])
    with pytest.raises(ValueError, match="expected numbers for 'dose', got 'high'"):
        Continuous("dose", 0.0, 1.0).standardise("high")


def test_encoding_names_all_unseen_levels_and_the_known_ones():
    with pytest.raises(ValueError, match=r"no level 'd', 'c': expected one of 'a', 'b'"):
        Categorical("batch", ("a", "b"), (0.5, 0.5)).encode(["a", "d", "c", "d"])
