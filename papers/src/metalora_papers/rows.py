"""Rows of results: one finished run each, as `metalora.bench.store` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metalora.bench.store import RowStore

Row = dict[str, Any]
"""Key, suite, configuration, seed, commit, environment, time and results of a run."""


NEEDED = {"key": str, "suite": str, "config": dict, "results": dict}


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file.

    Raises:
        ValueError: There is no such file, it holds no row, or a line is something else than a row.
    """
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "not a file" if path.exists() else "no such file"
        raise ValueError(f"{path}: {kind}, expected a file of rows, such as runs/train/rows.jsonl")
    rows = RowStore(path).rows()
    if not rows:
        raise ValueError(f"{path}: there is no row in it, expected one JSON object a line, as `train` writes them")
    for number, row in enumerate(rows, start=1):
        for name, kind_of_value in NEEDED.items():
            if not isinstance(row.get(name), kind_of_value):
                raise ValueError(f"{path}: row {number} is not a row of results (expected {', '.join(NEEDED)})")
    return rows


def latest(rows: Sequence[Row]) -> list[Row]:
    """Return the last row of every key, in the order in which the keys first occur."""
    return list({row["key"]: row for row in rows}.values())


def result(row: Row, metric: str) -> Any:
    """Return the value at a dotted path of a row's results, such as "k5.trained_mean"; None if there is none."""
    value = row["results"]
    for part in metric.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
