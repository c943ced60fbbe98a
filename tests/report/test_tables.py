"""A table writes numbers with the digits that they need."""

import numpy as np
import pandas as pd
import pytest

from genailab_pyro.report.tables import as_table


def column(values, formats=None):
    return [row[0] for row in as_table(pd.DataFrame({"a": values}), formats).rows]


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([2700, 32738], ["2,700", "32,738"]),
        ([-812.3456, 3.1], ["-812.3", "3.1"]),
        ([0.01234, 0.5], ["0.0123", "0.5000"]),
        ([1.46, 12795.2], ["1.460", "12,795"]),
        ([1e-9, 2e-9], ["1.000e-09", "2.000e-09"]),
        ([3.0, np.nan], ["3", "–"]),  # noqa: RUF001
        ([1.5, np.inf], ["1.500", "∞"]),
        ([0.0, 0.0], ["0.0", "0.0"]),
        ([True, False], ["yes", "no"]),
        (["-812.35 ± 0.43", None], ["-812.35 ± 0.43", "–"]),  # noqa: RUF001
        ([1.5, "text"], ["1.500", "text"]),
    ],
)
def test_values_are_written_as_read(values, texts):
    assert column(values) == texts


def test_missing_values_of_nullable_columns_are_dashes():
    assert column(pd.array([1.25, None], dtype="Float64")) == ["1.250", "\N{EN DASH}"]
    assert column(pd.array([1200, None], dtype="Int64")) == ["1,200", "\N{EN DASH}"]


def test_a_format_for_all_leaves_text_alone():
    table = as_table(pd.DataFrame({"a": [1.23456], "b": ["x"], "c": [2.0]}), ".2f")
    assert table.rows == (("1.23", "x", "2.00"),)


def test_missing_values_need_no_format():
    assert column([0.5, np.nan], ".2f") == ["0.50", "\N{EN DASH}"]


def test_a_format_for_a_column_leaves_the_others_alone():
    assert as_table(pd.DataFrame({"a": [1.23456], "b": [0.5]}), {"a": ".1f"}).rows == (("1.2", "0.5000"),)


def test_numbers_and_estimates_are_set_to_the_right():
    frame = pd.DataFrame({"n": [1], "x": [0.5], "e": ["-1 ± 2"], "name": ["NB"], "mixed": ["3 cells, or so"]})
    frame["mixed"] = ["B cells"]
    assert as_table(frame).numeric == (True, True, True, False, False)


@pytest.mark.parametrize(
    ("index", "named"), [(None, False), (["a"], True), (pd.RangeIndex(1, name="epoch"), True), ([7], True)]
)
def test_rows_have_names_unless_the_index_is_the_default_one(index, named):
    table = as_table(pd.DataFrame({"x": [1]}, index=index))
    assert table.named_rows is named
    assert len(table.columns) == len(table.rows[0]) == len(table.numeric) == 1 + named


def test_a_table_without_rows_keeps_its_headings():
    assert as_table(pd.DataFrame({"a": []})).columns == ("a",)


def test_columns_of_one_name_are_both_shown():
    frame = pd.DataFrame([[1, 2]], columns=["a", "a"])
    assert as_table(frame).rows == (("1", "2"),)


@pytest.mark.parametrize(
    ("frame", "formats", "error", "message"),
    [
        ([[1]], None, TypeError, "pandas DataFrame, got list"),
        (pd.DataFrame(), None, ValueError, "at least one column"),
        (pd.DataFrame({("a", "b"): [1]}), None, ValueError, "one level"),
        (pd.DataFrame({"a": [1]}, index=[[1], [2]]), None, ValueError, "one level"),
        (pd.DataFrame({"a": [1]}), {"b": ".1f"}, ValueError, r"names the columns \['b'\].*it has \['a'\]"),
    ],
)
def test_tables_that_cannot_be_shown_are_refused(frame, formats, error, message):
    with pytest.raises(error, match=message):
        as_table(frame, formats)
