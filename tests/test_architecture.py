"""The package's files import in one direction only."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "genailab_pyro"
ORDER = [
    "__about__",
    "files",
    "memory",
    "threads",
    "types",
    "sparse",
    "plots",
    "distributions",
    "data",
    "nn",
    "estimators",
    "model",
    "train",
    "experiments",
    "analysis",
    "evaluation",
    "report",
    "penalty_settings",
    "configuration",
    "runs",
    "comparing",
    "applications",
    "applications_counts",
    "demo",
    "lab",
    "cli_options",
    "cli_applications",
    "cli_estimators",
    "cli_lab",
    "cli",
]
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE)


def imported(source: str) -> set[str]:
    """The parts of the package that a source imports."""
    parts = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "genailab_pyro":
                names = [f"genailab_pyro.{alias.name}" for alias in node.names]
        parts |= {name.split(".")[1] for name in names if name.startswith("genailab_pyro.")}
    return parts


def upward(part: str, source: str) -> set[str]:
    """The imports of a source in a part of the package that point upward."""
    return {name for name in imported(source) if ORDER.index(name) > ORDER.index(part)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downward(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert part in ORDER, f"{part} has no place in the order of the package"
    assert not upward(part, path.read_text())


def test_an_upward_import_is_found():
    assert upward("estimators", "from genailab_pyro.train.fit import fit") == {"train"}
    assert upward("data", "from genailab_pyro import model") == {"model"}
    assert not upward("train", "from genailab_pyro.model import VAE")


def test_modules_stay_small():
    long = {path.name: lines for path in FILES if (lines := len(path.read_text().splitlines())) > 450}
    assert not long
