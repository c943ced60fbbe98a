"""The pages of the applications run as they are written, and what they claim is computed and can fail."""

import re

import pytest

from tests.pages import blocks, pages, run

PAGES = pages("applications")
WRITTEN = {"augment", "causal", "denoise", "discover", "evaluate", "integrate", "perturb"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs(page, tmp_path):
    done = run(page, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_asserts_what_it_claims(page):
    assert sum(len(re.findall(r"^ *assert ", block, re.MULTILINE)) for block in blocks(page)) >= 4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_compiles_and_fits_the_line(page):
    for block in blocks(page):
        compile(block, page.name, "exec")
        assert max(map(len, block.splitlines())) <= 125


@pytest.mark.parametrize("stem", ["augment", "denoise", "discover", "evaluate", "integrate"])
def test_a_page_says_what_it_does_not(stem):
    (text,) = (page.read_text() for page in PAGES if page.stem == stem)
    assert "\n## What it does not say\n" in text
    assert "glp.data.simulate(" in text
    assert "glp.data.pbmc68k()" in text


def test_there_is_a_page_for_each_application():
    assert {page.stem for page in PAGES} >= WRITTEN


@pytest.mark.parametrize(
    ("line", "said"),
    [("assert 1 + 1 == 3", "AssertionError"), ("import warnings; warnings.warn('ho', stacklevel=1)", "UserWarning")],
)
def test_a_page_that_is_wrong_fails(line, said, tmp_path):
    page = tmp_path / "wrong.md"
    page.write_text(f"A claim.\n\n```python\n{line}\n```\n")
    done = run(page, tmp_path)
    assert done.returncode != 0
    assert said in done.stderr
