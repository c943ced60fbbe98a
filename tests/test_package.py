"""What the package offers by name."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import genailab_pyro as glp


def test_every_public_name_is_found():
    assert all(getattr(glp, name) is not None for name in glp.__all__)
    assert dir(glp) == sorted(glp.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'genailab_pyro' has no attribute 'CVAE_PB'"):
        _ = glp.CVAE_PB


def test_names_found_late_are_those_that_type_checkers_see():
    source = ast.parse(Path(glp.__file__).read_text())
    block = next(node for node in source.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module.removeprefix("genailab_pyro").lstrip(".")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {name: home for name, home in seen.items() if home} == glp._HOME
    assert {name for name, home in seen.items() if not home} == set(glp._PACKAGES)
    assert set(glp.__all__) == {*seen, "__version__"}


def test_the_package_imports_without_torch():
    code = "import sys, genailab_pyro; sys.exit('torch' in sys.modules or 'scanpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
