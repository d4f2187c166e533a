"""The pages of the papers: every Python block runs, and the tables hold the numbers of the rows."""

import re
from pathlib import Path

import pytest

from metalora.bench.store import RowStore
from metalora_papers.config import TableConfig
from metalora_papers.metalora.table import ImageComparison

PAPERS = Path(__file__).parents[1]
BLOCKS = [
    (f"{path.name}-{k}", block)
    for path in (PAPERS / "README.md", *sorted((PAPERS / "docs").glob("*.md")))
    for k, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.S))
]


def test_there_are_blocks():
    assert BLOCKS


@pytest.mark.parametrize("block", [block for _, block in BLOCKS], ids=[name for name, _ in BLOCKS])
def test_a_block_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "block", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("name", ["learners", "metalora", "metatt", "tenslora"])
def test_a_page_links_to_files_that_exist(name):
    page = PAPERS / "docs" / f"{name}.md"
    links = re.findall(r"\]\(((?:\.\./)?[\w./-]+\.(?:md|jsonl|yaml))", page.read_text())
    recipes = re.findall(r"papers/(recipes/\S+?\.yaml)", page.read_text())
    assert links and recipes
    for target in [*(page.parent / link for link in links), *(PAPERS / recipe for recipe in recipes)]:
        assert target.exists(), target


TABLES = {
    ("attributes", "fashion-mnist", "resnet"),
    ("attributes", "fashion-mnist", "mixer"),
    ("attributes", "mnist-5k", "resnet"),
    ("cue", "fashion-mnist", "resnet"),
    ("cue", "fashion-mnist", "mixer"),
    ("cue", "mnist-5k", "resnet"),
    ("shift", "fashion-mnist", "resnet"),
    ("natural", "fashion-mnist", "resnet"),
}


@pytest.mark.parametrize("suite, data, backbone", sorted(TABLES))
def test_the_numbers_of_the_page_are_those_of_the_rows(suite, data, backbone):
    comparison = ImageComparison("metalora", TableConfig(suite=suite, data=data, backbone=backbone))
    rows = RowStore(PAPERS / "results" / f"{suite}.jsonl").rows()
    found = comparison.report(comparison.rows_of(rows))
    text = (PAPERS / "docs" / "metalora.md").read_text()
    for cells in found.tables[0].cells:
        line = " | ".join(cells[2:4])  # the two metrics that are compared
        assert f"| {line} |" in text, cells


def test_the_table_of_the_readme_is_in_the_page():
    page, readme = ((PAPERS / name).read_text() for name in ("docs/metalora.md", "../README.md"))
    table = re.search(r"\| ResNet \|.*?\n\n", readme, re.S)[0]
    assert table.count("\n") > 5 and table in page
