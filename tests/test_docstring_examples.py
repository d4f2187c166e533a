"""Every example in a docstring of the library runs and prints what it says."""

from pathlib import Path

import pytest

from support.docstrings import run_examples

SOURCE = Path(__file__).parents[1] / "src"
MODULES = [
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(SOURCE.glob("metalora/**/*.py"))
    if ">>> " in path.read_text()
]


def test_there_are_examples():
    assert MODULES


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_a_module_run(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_examples(module)
