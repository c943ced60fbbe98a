"""The how-to pages run as they are written, from top to bottom, in a folder of their own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).parent.parent / "tutorials" / "how-to").glob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\w+\.py)\n")


def blocks(page):
    return BLOCK.findall(page.read_text())


def run(page, folder):
    """Write what a page puts into files, and run the rest as one script."""
    script = []
    for block in blocks(page):
        name = FILE.match(block)
        if name:
            (folder / name[1]).write_text(block)
        else:
            script.append(block)
    command = [sys.executable, "-W", "error::UserWarning", "-c", "\n".join(script)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs(page, tmp_path):
    done = run(page, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_is_new_fits_in_fifteen_lines(page):
    for block in filter(FILE.match, blocks(page)):
        body = block[block.index("class ") :]
        code = re.sub(r'""".*?"""', "", body, flags=re.DOTALL)
        lines = [line for line in code.splitlines() if line.strip()]
        assert len(lines) <= 15, page.stem


def test_there_is_a_page_for_each_part():
    assert {page.stem for page in PAGES} == {"likelihood", "prior", "guide", "condition", "structure", "estimator"}


def test_a_page_that_is_wrong_fails(tmp_path):
    page = tmp_path / "wrong.md"
    page.write_text("```python\n# my_part.py\nanswer = 42\n```\n```python\nfrom my_part import question\n```\n")
    assert "cannot import name" in run(page, tmp_path).stderr
