"""Numbers are written with the digits that they have."""

import math

import pytest

from genailab_pyro.plots.numbers import plus_minus, readable


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.0, "1.00"),
        (-823.77, "-824"),
        (66_000.4, "66,000"),
        (0.000312, "0.000312"),
        (3.1e-5, "3.10e-05"),
        (2.5e6, "2.50e+06"),
        (math.nan, "not finite"),
        (-math.inf, "not finite"),
    ],
)
def test_readable_keeps_three_significant_digits(value, text):
    assert readable(value) == text


def test_readable_takes_the_number_of_digits():
    assert readable(-823.77, digits=4) == "-823.8"


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (-812.3456, 0.4321, "-812.35 ± 0.43"),
        (1234.5, 56.7, "1,234 ± 57"),
        (0.12345, 0.00678, "0.1235 ± 0.0068"),
        (3.0, 0.0, "3.000"),
        (3.0, math.nan, "3.000"),
        (math.nan, 1.0, "not finite"),
        (1.5, 2e-12, "1.5 ± 2.0e-12"),
    ],
)
def test_the_error_sets_the_digits_of_the_estimate(value, error, text):
    assert plus_minus(value, error) == text


def test_a_negative_error_is_refused():
    with pytest.raises(ValueError, match="must not be negative"):
        plus_minus(1.0, -0.1)
