"""The folder of a job tells, at any moment, whose it is."""

import shutil

import pytest

from genailab_pyro.report.folder import RunFolder, clear_run, is_unfinished

CONTENT = {"data": {"path": "cells.h5ad", "conditions": ("batch",)}, "length": 1, "seed": 0}


@pytest.fixture
def folder(tmp_path):
    """One in which a job has begun."""
    return RunFolder.of(tmp_path / "job", CONTENT).path


def test_a_job_goes_on_in_its_folder(folder):
    (folder / "state").mkdir()
    assert RunFolder.of(folder, CONTENT).path == folder
    assert (folder / "state").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [({"seed": 1}, "seed"), ({"length": 1.0}, "length"), ({"data": None}, "data"), ({"more": 0}, "more")],
)
def test_another_job_is_refused_by_what_differs(folder, change, named):
    before = (folder / "config.yaml").read_text()
    with pytest.raises(FileExistsError, match=f"holds one that differs in {named}; give it what it was begun with"):
        RunFolder.of(folder, {**CONTENT, **change})
    assert (folder / "config.yaml").read_text() == before


def test_a_job_that_was_asked_for_more_is_another(folder):
    with pytest.raises(FileExistsError, match="holds one that differs in length; give it what it was begun with"):
        RunFolder.of(folder, {name: value for name, value in CONTENT.items() if name != "length"})


@pytest.mark.parametrize("content", [b"- 1", b"{", b"\xff\xfe\x00", b""])
def test_a_configuration_of_nobody_is_of_another_job(folder, content):
    (folder / "config.yaml").write_bytes(content)
    with pytest.raises(FileExistsError, match="differs in data, length, seed"):
        RunFolder.of(folder, CONTENT)


def test_a_job_that_came_to_its_report_is_over(folder):
    (folder / "report.html").touch()
    with pytest.raises(FileExistsError, match=r"expected a new or empty folder, .* holds files"):
        RunFolder.of(folder, CONTENT)


def test_a_part_of_a_file_is_nothing(tmp_path):
    (tmp_path / ".config.yaml.0.part").touch()
    RunFolder.of(tmp_path, CONTENT)
    (tmp_path / "config.yaml").unlink()
    clear_run(tmp_path)
    assert not [*tmp_path.iterdir()]


def test_clearing_that_is_cut_short_can_be_done_again(folder, monkeypatch):
    for name in ("model", "state"):
        (folder / name).mkdir()
    for name in ("report.html", "scores.csv"):
        (folder / name).touch()

    def busy(path):
        raise PermissionError

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", busy)
        with pytest.raises(PermissionError):
            clear_run(folder)
    assert not is_unfinished(folder)
    clear_run(folder)
    assert not [*folder.iterdir()]
