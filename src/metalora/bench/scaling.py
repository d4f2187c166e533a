"""How the cost of an adapter grows with its rank, the depth, the targets, the tokens and the tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from metalora.bench.config import BenchConfig
from metalora.bench.steps import FLOOR, MERGED, PEFT, adapter_config, build, timed
from metalora.bench.tasks import METHOD
from metalora.cost import summarise

ALL = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")
AXES: dict[str, tuple[int, ...]] = {
    "rank": (4, 8, 16, 32, 64, 128, 256),
    "layers": (2, 4, 6, 12, 24, 48),
    "targets": (1, 2, 3, 4, 6),
    "tokens": (16, 32, 64, 128, 256),
    "tasks": (1, 10, 100, 1000, 10_000),
}
"""Setting -> its values; of targets, how many of a layer's matrices. Other settings are those of the configuration."""
BY_TASK = (METHOD,)  # what is timed over the number of tasks


def scaling(config: BenchConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Every case at every value of every axis, and the exponent of its added time over each axis.

    `predicted` is the ratio by multiply-adds alone: a step of the frozen model costs two products of all its linear
    weights, forward and back through the activations, and the adapter adds three of its own. Exponents are fitted to
    the seconds that a step has beyond the frozen model's, where there are any.
    """
    cases = []
    for axis, value, one in points(config):
        base, _ = build(one)
        cases += [
            {"axis": axis, "value": value, **row, "predicted": _predicted(base, one, row["case"])} for row in timed(one)
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


def added_seconds(cases: list[dict[str, Any]]) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """(axis, case) -> what a step has beyond the frozen model's, value by value: by the ratio of every round."""
    floors = {(row["axis"], row["value"]): row["step_seconds"] for row in cases if row["case"] == FLOOR}
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in cases:
        if row["case"] != FLOOR:
            more = (row["step"] - 1) * floors[row["axis"], row["value"]]
            found.setdefault((row["axis"], row["case"]), []).append((row["value"], more))
    return found


def fits(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Axis, case, exponent: added seconds ~ value ** exponent, by least squares of the logarithms."""
    import numpy as np

    found = []
    for (axis, case), measured in added_seconds(cases).items():
        more = [(value, seconds) for value, seconds in measured if seconds > 0]
        if len(more) > 1:
            exponent = float(np.polyfit(*np.log(np.array(more).T), 1)[0])
            found.append({"axis": axis, "case": case, "exponent": exponent})
    return found


def _predicted(base: nn.Module, config: BenchConfig, name: str) -> float:
    if name == FLOOR or name.endswith(MERGED):
        return 1.0
    whole = sum(m.weight.numel() for m in base.modules() if isinstance(m, nn.Linear))
    added = summarise(base, adapter_config(name.removeprefix(PEFT), config))["multiply_adds"]  # PEFT's names are ours
    return 1 + 3 * added / (2 * whole)
