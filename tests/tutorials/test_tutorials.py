"""The tutorials run as notebooks at full size, what they claim can fail, and they have one shape."""

import ast
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
SCRIPT = "tutorial.py"
FRAME = re.compile(r'  File "(?:.*/)?([^/"]+)", line (\d+)')
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


def run(source, folder):
    """Run a source as a plain script, in a folder of its own."""
    script = folder / SCRIPT
    script.write_text(source)
    environment = {**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=SECONDS
    )


def failed_at(source, done):
    """The assertion of a script at which it failed, as it is written; None if it did not fail at one."""
    lines = done.stderr.rstrip().splitlines()
    frames = [match for match in map(FRAME.match, lines) if match]
    if done.returncode == 0 or not frames or not any(line.startswith("AssertionError") for line in lines):
        return None
    name, number = frames[-1].groups()
    for node in ast.walk(ast.parse(source)):
        if name == SCRIPT and isinstance(node, ast.Assert) and node.lineno <= int(number) <= node.end_lineno:
            return ast.get_source_segment(source, node)
    return None


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
    assert source.count(planted["old"]) == 1, planted["old"]
    changed = source.replace(planted["old"], planted["new"])
    done = run(changed, tmp_path)
    assertion = failed_at(changed, done)
    assert assertion is not None, f"no assertion of the page failed:\n{done.stderr[-2000:] or done.stdout[-500:]}"
    assert planted["fails"] in assertion


@pytest.mark.parametrize("stem", sorted({stem for stem, _, _ in PLANTED}))
def test_what_is_planted_is_in_the_page(stem):
    source = (TUTORIALS / f"{stem}.py").read_text()
    for planted in (planted for page, _, planted in PLANTED if page == stem):
        assert set(planted) == {"old", "new", "fails"}
        assert source.count(planted["old"]) == 1, planted["old"]
        assert planted["old"] != planted["new"]
        changed = source.replace(planted["old"], planted["new"])
        compile(changed, stem, "exec")
        assert any(planted["fails"] in line for line in changed.splitlines()), planted["fails"]


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


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("assert 1 + 1 == 2\n", None),
        ("raise ValueError('no assertion')\n", None),
        ("raise AssertionError('not of the page')\n", None),
        ("assert 1 + 1 == 3, 'sum'\n", "assert 1 + 1 == 3, 'sum'"),
        ("assert (\n    1 + 1\n    == 3\n), 'over lines'\n", "assert (\n    1 + 1\n    == 3\n), 'over lines'"),
    ],
)
def test_the_assertion_that_fails_is_told_from_other_ends(source, found, tmp_path):
    assert failed_at(source, run(source, tmp_path)) == found
