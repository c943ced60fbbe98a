"""The command of the lab, without starting it."""

import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from genailab_pyro import cli_lab


@pytest.fixture
def run():
    app = typer.Typer()
    app.command()(cli_lab.lab)
    return lambda *arguments: CliRunner().invoke(app, arguments)


def test_without_marimo_one_line_names_what_to_install(run, monkeypatch):
    monkeypatch.setattr(cli_lab.importlib.util, "find_spec", lambda name: None)
    result = run()
    assert result.exit_code == 1
    assert result.output.strip() == (
        "expected marimo for the lab, got none; install it: pip install 'genailab-pyro[lab]'"
    )


@pytest.fixture
def started(monkeypatch):
    """What is run in place of marimo."""
    calls = []

    def record(arguments, **options):
        calls.append(arguments)
        return subprocess.CompletedProcess(arguments, 0)

    monkeypatch.setattr(cli_lab.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(cli_lab.subprocess, "run", record)
    return calls


def test_the_app_is_served_where_it_is_asked_for(run, started):
    result = run("--port", "4321", "--headless")
    assert result.exit_code == 0
    assert "http://127.0.0.1:4321" in result.output
    (arguments,) = started
    assert arguments[:4] == [sys.executable, "-m", "marimo", "run"]
    assert arguments[4].endswith("app.py")
    assert arguments[5:] == ["--no-token", "--port", "4321", "--host", "127.0.0.1", "--headless"]
    assert cli_lab.APP.is_file()


def test_a_browser_is_opened_unless_it_is_headless(run, started):
    run()
    assert "--headless" not in started[0]


def test_the_exit_code_is_that_of_marimo(run, started, monkeypatch):
    monkeypatch.setattr(cli_lab.subprocess, "run", lambda call, **_: subprocess.CompletedProcess(call, 3))
    assert run().exit_code == 3


def test_a_port_that_is_none_is_refused(run, started):
    assert run("--port", "0").exit_code == 2
    assert not started
