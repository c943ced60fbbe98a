"""The tutorials run as notebooks at full size, what they claim can fail, and they have one shape."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

TUTORIALS = Path(__file__).parents[2] / "tutorials"
SOLUTIONS = TUTORIALS / "solutions"
HERE = Path(__file__).parent
NUMBERED = re.compile(r"\d\d_\w+")
PAGES = sorted(path for path in TUTORIALS.glob("*.py") if NUMBERED.fullmatch(path.stem))
SOLVED = sorted(SOLUTIONS.glob("*.py"))
PLANTED = [
    (path.stem, number, planted)
    for path in sorted(HERE.glob("*.toml"))
    for number, planted in enumerate(tomllib.loads(path.read_text())["planted"])
]
SECONDS = 300
NOTES = """\
import atexit, json, pathlib
_failed = []
atexit.register(lambda: pathlib.Path({found!r}).write_text(json.dumps(_failed)))
"""
LINK = re.compile(r"\]\((\d\d_\w+)\.py\)")


def text_of(page):
    """The Markdown of a tutorial, without the comment signs."""
    cells = re.split(r"^# %%", page.read_text(), flags=re.MULTILINE)
    prose = [cell for cell in cells if cell.startswith(" [markdown]")]
    return "\n".join(re.sub(r"^# ?", "", line) for cell in prose for line in cell.splitlines()[1:])


def section(text, title):
    """What stands under a heading of the second level."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def assertions(source):
    """The assertions of a source, as they are written."""
    return [
        ast.get_source_segment(source, node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)
    ]


class Noted(ast.NodeTransformer):
    """Notes an assertion that fails, in place of ending there."""

    def __init__(self, source):
        self.source = source

    def visit_Assert(self, node):
        """Catch the error of an assertion, and nothing else."""
        note = ast.parse(f"_failed.append({ast.get_source_segment(self.source, node)!r})").body
        caught = ast.ExceptHandler(type=ast.Name("AssertionError", ast.Load()), name=None, body=note)
        return ast.Try(body=[node], handlers=[caught], orelse=[], finalbody=[])


def failed(source, folder):
    """Run a source as a plain script, in a folder of its own: the assertions that fail, and what it says."""
    noted = ast.fix_missing_locations(Noted(source).visit(ast.parse(source)))
    script, found = folder / "tutorial.py", folder / "failed.json"
    script.write_text(NOTES.format(found=str(found)) + ast.unparse(noted))
    environment = {**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    return json.loads(found.read_text()), done.stderr


@pytest.mark.parametrize("page", [*PAGES, *SOLVED], ids=lambda page: str(page.relative_to(TUTORIALS).with_suffix("")))
def test_a_tutorial_runs_as_a_notebook(page, tmp_path, monkeypatch):
    reason = "notebooks are executed by jupytext, nbclient and ipykernel: pip install 'genailab-pyro[tutorials]'"
    jupytext = pytest.importorskip("jupytext", reason=reason)
    nbclient = pytest.importorskip("nbclient", reason=reason)
    pytest.importorskip("ipykernel", reason=reason)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = jupytext.read(page)
    client = nbclient.NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    try:
        client.execute()
    except nbclient.exceptions.CellExecutionError as error:
        pytest.fail(f"{page.name}:\n{error.traceback}", pytrace=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stem", "planted"),
    [pytest.param(stem, planted, id=f"{stem}-{number}") for stem, number, planted in PLANTED],
)
def test_a_planted_mistake_fails_where_it_should(stem, planted, tmp_path):
    source = (TUTORIALS / f"{stem}.py").read_text()
    found, said = failed(source.replace(planted["old"], planted["new"]), tmp_path)
    for part in planted["fails"]:
        assert any(part in assertion for assertion in found), f"{part}\n{said[-2000:]}\nfailed: {found}"


@pytest.mark.parametrize("stem", sorted({stem for stem, _, _ in PLANTED}))
def test_what_is_planted_is_in_the_page(stem):
    source = (TUTORIALS / f"{stem}.py").read_text()
    for planted in (planted for page, _, planted in PLANTED if page == stem):
        assert set(planted) == {"old", "new", "fails"}
        assert source.count(planted["old"]) == 1, planted["old"]
        assert planted["old"] != planted["new"]
        changed = source.replace(planted["old"], planted["new"])
        compile(changed, stem, "exec")
        assert assertions(changed) == assertions(source), (
            "a mistake is planted in what is asserted, not in the assertion"
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_each_assertion_fails_for_a_planted_mistake(page):
    parts = [part for stem, _, planted in PLANTED if stem == page.stem for part in planted["fails"]]
    source = page.read_text()
    for part in parts:
        assert sum(part in assertion for assertion in assertions(source)) == 1, part
    assert [each for each in assertions(source) if not any(part in each for part in parts)] == []


def test_there_are_planted_mistakes_for_each_page():
    assert {stem for stem, _, _ in PLANTED} == {page.stem for page in PAGES}


def test_there_are_solutions_for_each_page():
    assert [page.name for page in SOLVED] == [page.name for page in PAGES]


def test_the_numbers_are_those_of_a_series():
    assert [int(page.stem[:2]) for page in PAGES] == list(range(len(PAGES)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_the_shape_of_the_series(page):
    source, text = page.read_text(), text_of(page)
    title = re.search(r"^# (.+)$", text, flags=re.MULTILINE)
    assert title[1].startswith(page.stem[:2])
    opening = text[: text.index("\n## ")] if "\n## " in text else text
    assert "You will be able to" in opening
    assert opening.count("\n- ") == 3
    names = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name) and node.id == "picture")
    assert sum(isinstance(name.ctx, ast.Store) for name in names) == 1, "one picture, bound once"
    for heading in ("Change one thing", "Exercises"):
        assert section(text, heading).strip(), heading
    assert 2 <= len(re.findall(r"^\d+\. ", section(text, "Exercises"), flags=re.MULTILINE)) <= 3
    assert "savefig" not in source
    assert (SOLUTIONS / page.name).exists()
    assert re.search(r"^ *assert ", source, flags=re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_leads_to_the_next(page):
    linked = LINK.findall(section(text_of(page), "Next"))
    assert linked
    following = PAGES[(PAGES.index(page) + 1) % len(PAGES)].stem
    assert linked[0] == following
    for stem in LINK.findall(text_of(page)):
        assert (TUTORIALS / f"{stem}.py").exists(), stem


@pytest.mark.parametrize("page", SOLVED, ids=lambda page: page.stem)
def test_each_solution_is_asserted(page):
    assert re.search(r"^ *assert ", page.read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("page", [*PAGES, *SOLVED], ids=lambda page: str(page.relative_to(TUTORIALS).with_suffix("")))
def test_lines_fit(page):
    assert max(map(len, page.read_text().splitlines())) <= 120


def test_assertions_that_fail_are_noted_and_others_are_not(tmp_path):
    source = "assert 1 + 1 == 2\nfor n in range(2):\n    assert n == 0, (\n        'over lines'\n    )\nassert not n\n"
    found, said = failed(source + "raise ValueError('no assertion')\nassert n == 5\n", tmp_path)
    assert found == ["assert n == 0, (\n        'over lines'\n    )", "assert not n"]
    assert said.endswith("ValueError: no assertion\n")
