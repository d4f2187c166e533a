"""Every Python block of the README and of docs/ runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = [
    (f"{path.name}-{k}", block)
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for k, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.S))
]


def test_there_are_blocks():
    assert BLOCKS


@pytest.mark.parametrize("block", [block for _, block in BLOCKS], ids=[name for name, _ in BLOCKS])
def test_a_block_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "block", "exec"), {"__name__": "__main__"})


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
def test_the_numbers_of_the_readme_are_those_of_the_rows(suite, data, backbone):
    from metalora.bench.store import RowStore
    from metalora_papers.config import TableConfig
    from metalora_papers.metalora.table import ImageComparison

    comparison = ImageComparison("metalora", TableConfig(suite=suite, data=data, backbone=backbone))
    rows = RowStore(ROOT / "papers" / "results" / f"{suite}.jsonl").rows()
    found = comparison.report(comparison.rows_of(rows))
    text = (ROOT / "README.md").read_text()
    for cells in found.tables[0].cells:
        line = " | ".join(cells[2:4])  # the two metrics that are compared
        assert f"| {line} |" in text, cells
