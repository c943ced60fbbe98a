"""After the tests: the table of what is offered, as they found it."""

import pandas as pd


def pytest_terminal_summary(terminalreporter):
    """Print part by estimator, where both were tried."""
    reports = terminalreporter.getreports("passed")
    found = [value for report in reports for name, value in report.user_properties if name == "offered"]
    if found:
        table = pd.DataFrame(found, columns=["part", "estimator", "offered"]).pivot_table(
            index="part", columns="estimator", values="offered", aggfunc="first", sort=False
        )
        terminalreporter.section("parts and the estimators that they are offered with")
        terminalreporter.write_line(table.T.to_string())
