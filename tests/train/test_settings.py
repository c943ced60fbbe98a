"""Settings say what is wrong with them, and survive a journey through JSON."""

import json

import pytest

from genailab_pyro import Training, Warmup


def test_settings_survive_json(settings):
    warmup = Warmup(beta=0.3, shape="cosine", length=25, cycles=4)
    changed = Training(
        max_epochs=7,
        minibatch_size=33,
        optimizer="adam",
        learning_rate=0.1 + 0.2,
        learning_rate_schedule="plateau",
        plateau_patience=3,
        weight_decay=1e-7,
        gradient_clip=None,
        warmup=warmup,
        free_bits=0.1,
        validation_fraction=0.25,
        patience=5,
    )
    for training in (settings, changed, Training()):
        assert Training.from_json(json.loads(json.dumps(training.to_json()))) == training


def test_a_warmup_of_one_step_is_not_one_of_the_whole_run():
    for length in (1, 1.0):
        training = Training(warmup=Warmup(length=length))
        read = Training.from_json(json.loads(json.dumps(training.to_json())))
        assert type(read.warmup.length) is type(length)


def test_an_unknown_field_is_named_among_the_known():
    with pytest.raises(ValueError, match=r"\['free_bits', .*'weight_decay'\], got \['lr'\]"):
        Training.from_json({"lr": 0.1})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_epochs", 0, "max_epochs to be a whole number of at least one, got 0"),
        ("max_epochs", 2.0, "got 2.0"),
        ("minibatch_size", True, "minibatch_size to be a whole number of at least one, got True"),
        ("patience", -1, "patience to be a whole number of at least one, got -1"),
        ("plateau_patience", 0, "plateau_patience to be a whole number"),
        ("optimizer", "sgd", "optimizer to be one of 'adamw', 'adam', got 'sgd'"),
        ("learning_rate", 0.0, "learning_rate to be finite and above 0, got 0.0"),
        ("learning_rate", float("nan"), "learning_rate to be finite and above 0, got nan"),
        ("learning_rate_schedule", "step", "learning_rate_schedule to be one of .*'one-cycle'.*, got 'step'"),
        ("gradient_clip", -1.0, "gradient_clip to be finite and above 0, got -1.0"),
        ("weight_decay", -0.1, "weight_decay to be finite and at least 0, got -0.1"),
        ("free_bits", float("inf"), "free_bits to be finite and at least 0, got inf"),
        ("validation_fraction", 1.0, r"validation_fraction in \[0, 1\), got 1.0"),
    ],
)
def test_a_value_out_of_range_is_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        Training(**{field: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patience": 3}, "validation cells for early stopping"),
        ({"patience": None, "learning_rate_schedule": "plateau"}, "for the schedule 'plateau'"),
    ],
)
def test_what_looks_at_validation_cells_needs_some(changes, message):
    with pytest.raises(ValueError, match=message):
        Training(validation_fraction=0.0, **changes)


@pytest.mark.parametrize(("num_cells", "steps"), [(1, 1), (64, 1), (65, 2), (128, 2), (1000, 16)])
def test_steps_of_an_epoch_cover_all_cells(num_cells, steps):
    assert Training(minibatch_size=64).steps_per_epoch(num_cells) == steps


def test_epochs_are_those_asked_for_or_make_a_run_of_some_length():
    assert Training(max_epochs=3).epochs(10**6) == 3
    few, many = (Training(max_epochs=None, minibatch_size=64).epochs(number) for number in (10**6, 100))
    assert 1 <= few <= many


def test_a_number_is_no_warmup():
    with pytest.raises(ValueError, match=r"such as Warmup\(length=0.5\), got 0.5"):
        Training(warmup=0.5)
