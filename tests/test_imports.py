"""Every module of the library and of the papers can be the first that a process imports."""

import subprocess
import sys
from pathlib import Path

import pytest

from support.imports import missing_name, read_packages

ROOT = Path(__file__).parents[1]
MODULES = read_packages(ROOT / "src" / "metalora", ROOT / "papers" / "src" / "metalora_papers")

RING = {  # `first` asks for a name that `second`, which asks `first`, has not defined yet
    "__init__": "",
    "first": "from package.second import twice\n\nnumber = 1\n",
    "second": "from package import first\nfrom package.first import number\n\n\ndef twice():\n    return 2 * number\n",
    "lazy": "def four():\n    from package.first import number\n    return 4 * number\n",
    "checked": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from package.first import number\n",
    "third": "import package.second\n",
}


def test_every_module_can_be_imported_first():
    problems = {name: missing_name(name, MODULES) for name in MODULES}
    assert len(problems) > 500
    assert not {name: problem for name, problem in problems.items() if problem}


@pytest.mark.parametrize("name", RING)
def test_the_computed_imports_are_those_of_python(name, tmp_path):
    folder = tmp_path / "package"
    folder.mkdir()
    for module, text in RING.items():
        (folder / f"{module}.py").write_text(text)
    first = "package" if name == "__init__" else f"package.{name}"
    done = subprocess.run([sys.executable, "-S", "-c", f"import {first}"], cwd=tmp_path, capture_output=True, text=True)
    problem = missing_name(first, read_packages(folder))
    assert (problem is None) == (done.returncode == 0), done.stderr
    if problem:
        _, _, statement = problem.partition(": ")
        assert statement in done.stderr and "partially initialized module" in done.stderr
