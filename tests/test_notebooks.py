"""The notebooks of docs/notebooks parse, hold what a true run printed, and run."""

import json
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
EACH = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
PATH_OF_A_MACHINE = re.compile(r"/(home|root|work|tmp|usr|opt|Users|mnt)/|site-packages|[A-Z]:\\\\")


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def printed(cells: list[dict]) -> list[str]:
    return [
        output["name"] + "".join(output["text"]) for cell in cells for output in cell["outputs"] if "text" in output
    ]


def test_there_is_one_for_each_kind_of_input():
    assert [path.stem for path in NOTEBOOKS] == ["images", "llm", "texts"]


@EACH
def test_a_notebook_is_small_and_parses(path):
    assert len(json.loads(path.read_text())["cells"]) <= 15
    for cell in code_cells(path):
        compile("".join(cell["source"]), path.name, "exec")


@EACH
def test_a_notebook_has_the_outputs_of_a_run_from_its_start(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert len(printed(cells)) >= 3
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]


@EACH
def test_a_notebook_names_no_folder_of_a_machine(path):
    found = PATH_OF_A_MACHINE.search(re.sub(r'"image/png": "[^"]*"', "", path.read_text()))
    assert found is None, found


@EACH
def test_its_links_lead_somewhere(path):
    for target in re.findall(r"\]\((\.\./[^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target


@pytest.mark.slow
@EACH
def test_a_notebook_runs(path):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    executed = runpy.run_path(str(ROOT / "tools" / "run_notebooks.py"))["executed"]
    assert len(executed(path).cells) == len(json.loads(path.read_text())["cells"])
