"""Rows of results: one finished run each, as `metalora.bench.store` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
"""Key, suite, configuration, seed, commit, environment, time and results of a run."""


def latest(rows: Sequence[Row]) -> list[Row]:
    """Return the last row of every key, in the order in which the keys first occur."""
    return list({row["key"]: row for row in rows}.values())


def result(row: Row, metric: str) -> Any:
    """Return the value at a dotted path of a row's results, such as "k5.trained_mean"; None if there is none."""
    value = row["results"]
    for part in metric.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
