"""The counts in docs/house.md are those of the code."""

import ast
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "metalora"
TOOL = runpy.run_path(str(ROOT / "tools" / "house_figures.py"))
PAGE = {
    cells[0].strip(): cells[-1].strip()
    for cells in (line.strip("|").split("|") for line in (ROOT / "docs" / "house.md").read_text().splitlines())
    if len(cells) == 3
}


def sources(*files):
    """Files as the tool reads them, without the tokens, which take seconds."""
    return [TOOL["Source"](file, file.read_text(), ast.parse(file.read_text()), ()) for file in files]


@pytest.mark.parametrize(
    "row, count",
    [
        ("names in `metalora.__all__`", TOOL["count_public_names"](sources(PACKAGE / "__init__.py"))),
        ("fields of `Method`", TOOL["count_fields"](sources(PACKAGE / "methods" / "method.py"), "Method")),
        ("methods of `Adapter`", TOOL["count_methods"](sources(PACKAGE / "adapters" / "adapter.py"), "Adapter")),
    ],
)
def test_a_count_is_that_of_the_code(row, count):
    assert int(PAGE[row]) == count > 0


@pytest.mark.parametrize("row, folder", [("library", "src/metalora"), ("papers", "papers/src")])
def test_the_number_of_lines_is_right_to_a_twentieth(row, folder):
    lines = sum(len(file.read_text().splitlines()) for file in (ROOT / folder).rglob("*.py"))
    assert int(PAGE[f"lines of the {row}"].replace(",", "")) == pytest.approx(lines, rel=0.05)
