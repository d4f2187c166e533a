"""A bench as a result row."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from metalora.bench import tasks
from metalora.bench.config import BenchConfig
from metalora.bench.memory import keep_freed
from metalora.bench.scaling import scaling
from metalora.bench.serving import serving
from metalora.bench.steps import steps
from metalora.bench.store import RowStore, make_row
from metalora.bench.timing import Ratio
from metalora.config import to_dict

WHAT_TASKS_TAKES = ("rank", "rounds", "keep_memory")
WHAT_SERVING_TAKES = (*WHAT_TASKS_TAKES, "model", "targets", "layers", "batch", "tokens", "size", "dtype")


def run(config: BenchConfig, measurement: str, out: Path | None) -> dict[str, Any]:
    """Time what is asked for.

    Args:
        config: The configuration.
        measurement: "steps", "tasks", "attach", "scaling" or "serving".
        out: File to which the row is appended; None: no file.

    Returns:
        A row with the configuration, the environment and the results of all cases.

    Raises:
        ValueError: The configuration names something unknown, or has a setting that the measurement does not take.
    """
    start = time.monotonic()
    if out is not None:
        RowStore(out).check()
    if measurement == "tasks":
        config = tasks_config(config)
    if measurement == "serving" and config != _only(config, WHAT_SERVING_TAKES):
        raise ValueError(f"bench: --what serving takes only {', '.join(WHAT_SERVING_TAKES)}")
    if config.keep_memory:
        keep_freed()
    results = _measure(config, measurement)
    row = make_row(
        key=f"{measurement}-{time.time_ns()}",  # the same measurement may be repeated, so its key has the time
        suite="bench",
        config={"what": measurement, **to_dict(config)},  # "what" is the name in the stored rows
        seed=0,
        results=results,
        seconds=time.monotonic() - start,
    )
    if out is not None:
        RowStore(out).append(row)
    return row


def tasks_config(config: BenchConfig) -> BenchConfig:
    """The configuration that the measurement "tasks" really times; its model and its batch are fixed.

    Raises:
        ValueError: A setting is given that it does not take.
    """
    accepted = _only(config, WHAT_TASKS_TAKES)
    if config != accepted:  # some other setting is not at its default
        names = ", ".join(WHAT_TASKS_TAKES)
        raise ValueError(f"bench: --what tasks has a batch and a model of its own and takes only {names}")
    return replace(
        accepted,
        methods=(tasks.METHOD,),
        targets=tasks.TARGETS,
        tasks=tasks.BATCH,
        batch=tasks.BATCH,
        tokens=tasks.TOKENS,
    )


def _only(config: BenchConfig, names: Sequence[str]) -> BenchConfig:
    """Return the configuration with all other settings at their defaults."""
    return BenchConfig(**{name: getattr(config, name) for name in names})


def _measure(config: BenchConfig, measurement: str) -> dict[str, Any]:
    if measurement == "scaling":
        cases, exponents = scaling(config)
        return {"cases": cases, "exponents": exponents}
    if measurement == "tasks":
        ratios = tasks.tasks_in_a_batch(config.rounds, config.batch, config.tokens, config.rank)
        return {"cases": _cost_rows(ratios)}
    if measurement == "serving":
        return {"cases": serving(config)}
    if measurement == "attach":
        from metalora.bench.attaching import attaching  # it needs PEFT

        return {"cases": _cost_rows(attaching(config))}
    return {"cases": steps(config)}


def _cost_rows(ratios: list[Ratio]) -> list[dict[str, Any]]:
    return [
        {
            "case": ratio.name,
            "reference": ratio.reference,
            "cost": ratio.median,
            "cost_low": ratio.low,
            "cost_high": ratio.high,
            "seconds": ratio.seconds,
        }
        for ratio in ratios
    ]
