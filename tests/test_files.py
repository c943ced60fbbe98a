"""A file is written whole or not at all."""

import os

import pytest

from genailab_pyro.files import write_whole


def test_text_is_written_and_folders_are_made(tmp_path):
    path = write_whole(tmp_path / "a" / "b.txt", "ELBO ± 1\n")
    assert path.read_bytes() == "ELBO ± 1\n".encode()


def test_a_failure_keeps_the_former_file_and_leaves_no_part(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("former")

    def fail(_):
        message = "no space left"
        raise OSError(message)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        write_whole(path, "new")
    assert path.read_text() == "former"
    assert list(tmp_path.iterdir()) == [path]


def test_the_path_never_holds_a_part(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("former")
    seen = []
    monkeypatch.setattr(os, "fsync", lambda _: seen.append(path.read_text()))
    write_whole(path, "new")
    assert seen == ["former"]
    assert path.read_text() == "new"


def test_a_reader_of_the_former_file_reads_it_to_the_end(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("former")
    with path.open() as reader:
        write_whole(path, "new")
        assert reader.read() == "former"


def test_text_that_cannot_be_encoded_leaves_nothing(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "report.html", "\ud800")
    assert not list(tmp_path.iterdir())


def test_the_file_has_the_permissions_of_any_new_file(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("x")
    assert write_whole(tmp_path / "whole", "x").stat().st_mode == plain.stat().st_mode


def test_a_folder_is_not_replaced(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        write_whole(tmp_path, "x")
