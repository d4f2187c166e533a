"""Test modules stand alone: what several of them need is in `support` or `oracles`."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for folder in ("tests", "papers/tests") for path in (ROOT / folder).rglob("test_*.py"))
ORACLES = sorted((ROOT / "tests" / "oracles").glob("*.py"))


def imported_modules(path: Path) -> set[str]:
    """The names of the modules that a file imports."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
    return modules


@pytest.mark.parametrize("folder", ("tests", "papers/tests"))
def test_no_test_module_imports_another(folder):
    importers = {
        str(path.relative_to(ROOT)): sorted(name for name in imported_modules(path) if "test_" in name)
        for path in MODULES
        if path.is_relative_to(ROOT / folder)
    }
    assert not {path: names for path, names in importers.items() if names}


@pytest.mark.parametrize("path", ORACLES, ids=lambda path: path.stem)
def test_an_oracle_shares_no_code_with_the_library(path):
    assert not {name for name in imported_modules(path) if name.split(".")[0] in ("metalora", "support")}
