"""Every family of transformers, timm and torchvision that can be built small: nothing crashes, nothing is wrong."""

import json
import runpy
from pathlib import Path

import pytest

from support.model_families import Family
from support.model_sweep import COLUMNS, rows_of

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "docs" / "models.jsonl"
LEAST = {"transformers": 60, "timm": 80, "torchvision": 20}  # families that run


def families_that_run():
    """The families of the page, in its order."""
    rows = map(json.loads, ROWS.read_text().splitlines())
    return [*dict.fromkeys(Family(row["library"], row["family"]) for row in rows if "not_run" not in row)]


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
@pytest.mark.parametrize("family", families_that_run(), ids=lambda family: f"{family.library}-{family.name}")
def test_a_family_has_no_fault(family):
    rows = rows_of(family)
    assert rows and not any("not_run" in row for row in rows)
    assert faults(rows) == []


def test_the_page_is_that_of_the_rows():
    table = runpy.run_path(str(ROOT / "tools" / "model_table.py"))
    assert (ROOT / "docs" / "models.md").read_text() == table["page"](table["read"](ROWS))


@pytest.mark.parametrize("library", LEAST)
def test_the_rows_are_of_many_families(library):
    assert sum(family.library == library for family in families_that_run()) >= LEAST[library]
