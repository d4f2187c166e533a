"""A bench as a result row, and its plot."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from metalora.bench.config import BenchConfig
from metalora.bench.memory import keep_freed
from metalora.bench.steps import steps
from metalora.bench.tasks import tasks_in_a_batch
from metalora.config import to_dict
from metalora.experiments.rows import RowStore, make_row


def run(config: BenchConfig, what: str, out: Path | None) -> dict[str, Any]:
    """Time what is asked for: a row with the configuration, the environment and every case; appended to `out`."""
    start = time.monotonic()
    if config.keep_memory:
        keep_freed()
    cases = steps(config) if what == "steps" else _tasks(config)
    row = make_row(
        key=f"{what}-{time.time_ns()}", suite="bench", config={"what": what, **to_dict(config)}, seed=0,
        results={"cases": cases}, seconds=time.monotonic() - start,
    )  # fmt: skip
    if out is not None:
        RowStore(out).append(row)
    return row


def _tasks(config: BenchConfig) -> list[dict[str, Any]]:
    return [
        {"case": one.name, "reference": one.reference, "cost": one.median, "cost_low": one.low, "cost_high": one.high,
         "seconds": one.seconds}
        for one in tasks_in_a_batch(config.rounds, rank=config.rank)
    ]  # fmt: skip
