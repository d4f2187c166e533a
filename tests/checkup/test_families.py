"""Every family of transformers, timm and torchvision that can be built small: nothing crashes, nothing is wrong."""

import json
import runpy
from pathlib import Path

import pytest

from support.model_families import Family, families
from support.model_sweep import COLUMNS, rows_of

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "docs" / "models.jsonl"
LEAST = {"transformers": 60, "timm": 80, "torchvision": 20}  # families that run


def faults(rows):
    """(targets, host, column, what is wrong) of every cell that is a fault."""
    return [
        (row["targets"], row["host"], column, row[column])
        for row in rows
        for column in COLUMNS
        if row.get(column, "").startswith("fault")
    ]


@pytest.mark.parametrize("name", ("bert", "gpt2", "llama", "convnext"))
def test_some_families_of_transformers_are_right(name):
    rows = rows_of(Family("transformers", name))
    assert len(rows) >= 2 and faults(rows) == []
    assert {row["host"] for row in rows} == {"attach", "peft"}
    assert {row[column] for row in rows for column in ("attach", "forward", "merged")} == {"right"}


@pytest.mark.slow
@pytest.mark.parametrize("family", [*families()], ids=lambda family: f"{family.library}-{family.name}")
def test_a_family_has_no_fault(family):
    rows = rows_of(family)
    if any("not_run" in row for row in rows):
        pytest.skip(rows[0]["not_run"])
    assert faults(rows) == []


def test_the_page_is_that_of_the_rows():
    table = runpy.run_path(str(ROOT / "tools" / "model_table.py"))
    assert (ROOT / "docs" / "models.md").read_text() == table["page"](table["read"](ROWS))


@pytest.mark.parametrize("library", LEAST)
def test_the_rows_are_of_many_families(library):
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    run = {row["family"] for row in rows if row["library"] == library and "not_run" not in row}
    assert len(run) >= LEAST[library]
