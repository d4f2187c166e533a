"""How the cost of an adapter grows with its rank, the depth, the targets, the tokens and the tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from metalora.bench.config import BenchConfig
from metalora.bench.steps import FLOOR, PEFT, adapter_config, build, timed
from metalora.experiments.inspection import summarise

ALL = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")
AXES: dict[str, tuple[int, ...]] = {
    "rank": (4, 8, 16, 32, 64, 128, 256),
    "layers": (2, 4, 6, 12, 24, 48),
    "targets": (1, 2, 3, 4, 6),
    "tokens": (16, 32, 64, 128, 256),
    "tasks": (1, 10, 100, 1000, 10_000),
}
"""Setting -> its values; of targets, how many of a layer's matrices. Other settings are those of the configuration."""
BY_TASK = ("metatt-4+1d",)  # what is timed over the number of tasks


def scaling(config: BenchConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Every case at every value of every axis, and the exponent of its added time over each axis.

    `predicted` is the ratio by multiply-adds alone: a step of the frozen model costs two products of all its linear
    weights, forward and back through the activations, and the adapter adds three of its own. Exponents are fitted to
    the seconds that a step has beyond the frozen model's, where there are any.
    """
    cases = [
        {"axis": axis, "value": value, **row, "predicted": _predicted(one, row["case"])}
        for axis, value, one in points(config)
        for row in timed(one)
    ]
    return cases, fits(cases)


def points(config: BenchConfig) -> Iterator[tuple[str, int, BenchConfig]]:
    """(axis, value, configuration), one setting changed at a time."""
    for axis, values in AXES.items():
        for value in values:
            if axis == "targets":
                yield axis, value, replace(config, targets=ALL[:value])
            elif axis == "tasks":
                yield axis, value, replace(config, tasks=value, methods=BY_TASK, peers=())
            else:
                yield axis, value, replace(config, **{axis: value})


def fits(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Axis, case, exponent: added seconds ~ value ** exponent, by least squares of the logarithms."""
    import numpy as np

    floors = {(row["axis"], row["value"]): row["step_seconds"] for row in cases if row["case"] == FLOOR}
    added: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in cases:
        more = row["step_seconds"] - floors[row["axis"], row["value"]]
        if more > 0:
            added.setdefault((row["axis"], row["case"]), []).append((row["value"], more))
    return [
        {"axis": axis, "case": case, "exponent": float(np.polyfit(*np.log(np.array(found).T), 1)[0])}
        for (axis, case), found in added.items()
        if len(found) > 1
    ]


def _predicted(config: BenchConfig, name: str) -> float:
    base, _ = build(replace(config, batch=1, tokens=1))
    whole = sum(m.weight.numel() for m in base.modules() if isinstance(m, nn.Linear))
    method = "lora" if name.startswith(PEFT) else name
    added = 0 if name == FLOOR else summarise(base, adapter_config(method, config))["multiply_adds"]
    return 1 + 3 * added / (2 * whole)
