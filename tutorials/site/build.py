"""Builds the site: README, tutorials (executed), how-to and application pages, and the reference of all public names.

    python tutorials/site/build.py --folder site

The site works without a network: MathJax is fetched through npm when it is built. Each tutorial's picture is saved as
PNG and SVG in ``pictures/``, which a page of the site shows.
"""

import argparse
import importlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jupytext
import nbformat

TUTORIALS = Path(__file__).resolve().parent.parent
ROOT = TUTORIALS.parent
MATHJAX = "mathjax@3.2.2"
PACKAGES = ("", "data", "distributions", "estimators", "experiments", "evaluation", "analysis", "plots", "report", "nn")
FORMATS = ("png", "svg")
SAVE = """\
import os
from pathlib import Path

for kind in {formats}:
    picture.savefig(Path(os.environ["PICTURES"]) / f"{name}.{{kind}}", dpi=200, bbox_inches="tight")
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the site; returns the exit status of Sphinx."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("site"), help="where the pages go")
    parser.add_argument("--cache", type=Path, help="where executed tutorials are kept from build to build")
    parser.add_argument("--jobs", type=int, default=1, help="how many pages are read at a time")
    parser.add_argument("--only", nargs="*", help="tutorials to build, by number; all of them unless given")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as made:
        source, pages = Path(made) / "source", Path(made) / "built" / "html"
        source.mkdir()
        (pages / "pictures").mkdir(parents=True)
        write_sources(source, options.only)
        fetch_mathjax(source / "_static" / "mathjax")
        command = [sys.executable, "-m", "sphinx", "-b", "html", "-d", f"{made}/doctrees", "-j", str(options.jobs)]
        if options.only is None:
            command += ["-W", "--keep-going"]  # some tutorials alone link to others that are not there
        if options.cache is not None:
            command += ["-D", "nb_execution_mode=cache", "-D", f"nb_execution_cache_path={options.cache.resolve()}"]
        environment = {"PICTURES": str(pages / "pictures"), "MPLBACKEND": "agg"}
        environment["PYTHONWARNINGS"] = "ignore:IProgress not found"  # no page has a progress bar
        if options.jobs > 1:
            environment["OMP_NUM_THREADS"] = "1"
        built = subprocess.run(
            [*command, str(source), str(pages)], env={**os.environ, **environment}, check=False
        ).returncode
        if built == 0:
            shutil.copytree(pages, options.folder, dirs_exist_ok=True)
        return built


def write_sources(source: Path, only: Sequence[str] | None = None) -> None:
    """Lay out what Sphinx reads: pages as they are, tutorials as notebooks, one page of reference for each package."""
    shutil.copy(TUTORIALS / "site" / "conf.py", source)
    (source / "README.md").write_text(_links((ROOT / "README.md").read_text()))
    for name in ("CHANGELOG.md", "LICENSE"):
        target = source / (name if name.endswith(".md") else f"{name}.md")
        text = (ROOT / name).read_text()
        target.write_text(text if name.endswith(".md") else f"# Licence\n\n```text\n{text}```\n")
    tutorials = _tutorials(source, only)
    sections = {
        "Tutorials": [*tutorials, _pictures(source, tutorials)],
        "Applications": _pages(source, "applications"),
        "How to": _pages(source, "how-to"),
        "Reference": _reference(source),
    }
    toctrees = "".join(
        f"```{{toctree}}\n:caption: {caption}\n:maxdepth: 1\n:hidden:\n\n" + "\n".join(pages) + "\n```\n\n"
        for caption, pages in sections.items()
        if pages
    )
    more = "```{toctree}\n:caption: Project\n:hidden:\n\nCHANGELOG\nLICENSE\n```\n"
    (source / "index.md").write_text((source / "README.md").read_text() + "\n" + toctrees + more)
    (source / "README.md").unlink()


def _links(text: str) -> str:
    """Links of a page of the repository as links of the site."""
    text = re.sub(r"\]\(LICENSE\)", "](LICENSE.md)", text)
    return re.sub(r"\]\((tutorials/\d\d_\w+)\.py\)", r"](\1.ipynb)", text)


def _tutorials(source: Path, only: Sequence[str] | None) -> list[str]:
    folder = source / "tutorials"
    (folder / "solutions").mkdir(parents=True)
    names = []
    for path in sorted(TUTORIALS.glob("[0-9][0-9]_*.py")):
        if only is not None and path.stem[:2] not in only:
            continue
        notebook = _notebook(path)
        save = nbformat.v4.new_code_cell(
            SAVE.format(name=path.stem, formats=FORMATS), metadata={"tags": ["remove-cell"]}
        )
        notebook.cells.append(save)
        nbformat.write(notebook, folder / f"{path.stem}.ipynb")
        names.append(f"tutorials/{path.stem}")
        solved = TUTORIALS / "solutions" / path.name
        solution = _notebook(solved)
        solution.metadata["orphan"] = True  # found from its exercise alone
        nbformat.write(solution, folder / "solutions" / f"{path.stem}.ipynb")
    return names


def _pictures(source: Path, tutorials: Sequence[str]) -> str:
    """A page with the picture of each tutorial, to be taken for slides."""
    text = "# Pictures\n\nThe picture of each tutorial; it leads to the tutorial, and its formats to the files.\n"
    for page in tutorials:
        name = page.removeprefix("tutorials/")
        files = " ".join(f'<a href="pictures/{name}.{kind}">{kind.upper()}</a>' for kind in FORMATS)
        picture = f'<a href="{page}.html"><img src="pictures/{name}.png" alt="{name}"></a>'
        text += f"\n<p>{picture}<br>{files}</p>\n"
    (source / "pictures.md").write_text(text)
    return "pictures"


def _notebook(path: Path) -> nbformat.NotebookNode:
    """A tutorial as a notebook whose links are those of the site."""
    notebook = jupytext.read(path)
    for cell in notebook.cells:
        cell.source = re.sub(r"\]\(((?:\.\./)?(?:solutions/)?\d\d_\w+)\.py\)", r"](\1.ipynb)", cell.source)
    return notebook


def _pages(source: Path, name: str) -> list[str]:
    target = source / "tutorials" / name
    target.mkdir(parents=True, exist_ok=True)
    found = sorted((TUTORIALS / name).glob("*.md"))
    for page in found:
        shutil.copy(page, target)
    return [f"tutorials/{name}/{page.stem}" for page in found]


def _reference(source: Path) -> list[str]:
    folder = source / "reference"
    folder.mkdir()
    pages, seen = [], set[int]()
    for package in PACKAGES:
        module = importlib.import_module(f"genailab_pyro.{package}".rstrip("."))
        title = "genailab_pyro" if not package else f"genailab_pyro.{package}"
        names = [name for name in getattr(module, "__all__", []) if name not in PACKAGES and name != "__version__"]
        if package == "nn":
            names = ["Declared", "MLP", "ConditionEncoding", "OneHot", "Embedding", "Unconditioned"]
        found = {name: getattr(module, name) for name in sorted(names)}
        # A table that was imported from elsewhere has the docstring of dict alone.
        items = {name: item for name, item in found.items() if not isinstance(item, dict)}
        new = {name: item for name, item in items.items() if id(item) not in seen}
        seen |= {id(item) for item in items.values()}
        body = "\n".join(f".. {_directive(item)}:: {title}.{name}" for name, item in new.items())
        text = f"{title}\n{'=' * len(title)}\n\n{(module.__doc__ or '').splitlines()[0]}\n\n{body}\n"
        (folder / f"{title}.rst").write_text(text)
        pages.append(f"reference/{title}")
    return pages


def _directive(item: object) -> str:
    if isinstance(item, type):
        return "autoclass"
    return "autofunction" if callable(item) else "autodata"


def fetch_mathjax(target: Path) -> None:
    """Put MathJax, from the npm registry, where pages find it without a network."""
    with tempfile.TemporaryDirectory() as made:
        packed = subprocess.run(
            ["npm", "pack", "--silent", MATHJAX], cwd=made, capture_output=True, text=True, check=False
        )
        if packed.returncode:
            raise RuntimeError(f"expected npm to fetch {MATHJAX} for the mathematics of the site, got: {packed.stderr}")
        with tarfile.open(Path(made) / packed.stdout.strip().splitlines()[-1]) as archive:
            archive.extractall(made, filter="data")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(Path(made) / "package" / "es5", target)


if __name__ == "__main__":
    sys.exit(main())
