"""The files of a result: a table of trials, all numbers as JSON, the best settings as YAML, and a page."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path

import yaml

from metalora._util.files import write_atomically
from metalora.learner.sweeps.page import write_sweep_page
from metalora.learner.sweeps.result import SweepResult
from metalora.learner.sweeps.space import Space

BEST, SETTINGS, RESULT, TABLE, PAGE = "best", "best.yaml", "result.json", "trials.csv", "report.html"


def write_result(folder: Path, result: SweepResult, space: Space, facts: Mapping[str, object]) -> None:
    """Write a result into the folder of its search; each file completely or not at all.

    Args:
        folder: The folder.
        result: The result.
        space: What was chosen from.
        facts: What else the page says.
    """
    write_atomically(folder / TABLE, table_of(result).encode())
    write_atomically(folder / RESULT, json.dumps(result.to_dict(), indent=1, allow_nan=False).encode())
    if result.settings:
        plain = json.loads(json.dumps(result.settings))  # YAML has no tuples
        write_atomically(folder / SETTINGS, yaml.safe_dump(plain, sort_keys=False).encode())
    write_sweep_page(folder / PAGE, result, space, facts)


def table_of(result: SweepResult) -> str:
    """Return the trials as CSV.

    Args:
        result: The result.
    """
    text = io.StringIO()
    rows = [row.table_row() for row in result.trials]
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["trial"])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
