"""How the cost of an adapter grows with its rank, the depth, the targets, the tokens and the tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from metalora.bench.cases import FLOOR, MERGED, PEFT, adapter_config, build_model
from metalora.bench.config import BenchConfig
from metalora.bench.steps import time_cases
from metalora.bench.tasks import METHOD
from metalora.cost import summarise

ALL_TARGETS = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")
# Setting -> its values; for "targets", how many of a layer's matrices. Other settings are those of the configuration.
AXES: dict[str, tuple[int, ...]] = {
    "rank": (4, 8, 16, 32, 64, 128, 256),
    "layers": (2, 4, 6, 12, 24, 48),
    "targets": (1, 2, 3, 4, 6),
    "tokens": (16, 32, 64, 128, 256),
    "tasks": (1, 10, 100, 1000, 10_000),
}
BY_TASK = (METHOD,)  # the methods that are timed over the number of tasks


def scaling(config: BenchConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Time each case at each value of each axis, and fit how the added time grows along each axis.

    Returns:
        The rows of `time_cases`, each with "axis", "value" and "predicted", and the rows of `fit_exponents`.
        "predicted" is the ratio of a step by multiply-adds alone: a step of the frozen model costs two products with
        all its linear weights (forward, and backward through the activations), and the adapter adds three products
        with its own factors.

    Raises:
        ValueError: The configuration has ranks of single methods.
    """
    if config.ranks:
        raise ValueError("bench: --what scaling times every method at the same ranks and takes no --ranks")
    cases = []
    for axis, value, point in points(config):
        base, _ = build_model(point)
        for row in time_cases(point):
            predicted = _predicted_ratio(base, point, row["case"])
            cases.append({"axis": axis, "value": value, **row, "predicted": predicted})
    return cases, fit_exponents(cases)


def points(config: BenchConfig) -> Iterator[tuple[str, int, BenchConfig]]:
    """Yield (axis, value, configuration), with one setting changed at a time."""
    for axis, values in AXES.items():
        for value in values:
            yield axis, value, replace(config, **_changes(axis, value))


def _changes(axis: str, value: int) -> dict[str, Any]:
    if axis == "targets":
        return {"targets": ALL_TARGETS[:value]}
    if axis == "tasks":
        return {"tasks": value, "methods": BY_TASK, "peers": ()}
    return {axis: value}


def added_seconds(cases: list[dict[str, Any]]) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """Compute what a step costs beyond the frozen model's, from the median ratio over the rounds.

    Args:
        cases: The rows of `scaling`.

    Returns:
        (axis, case) -> pairs of value and added seconds.
    """
    floors = {(row["axis"], row["value"]): row["step_seconds"] for row in cases if row["case"] == FLOOR}
    added: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in cases:
        if row["case"] != FLOOR:
            seconds = (row["step"] - 1) * floors[row["axis"], row["value"]]
            added.setdefault((row["axis"], row["case"]), []).append((row["value"], seconds))
    return added


def fit_exponents(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fit added seconds ~ value ** exponent by least squares of the logarithms.

    Values at which a case adds no time are left out; a case with fewer than two other values has no exponent.

    Args:
        cases: The rows of `scaling`.

    Returns:
        Rows with "axis", "case" and "exponent".
    """
    import numpy as np

    exponents = []
    for (axis, case), measured in added_seconds(cases).items():
        # A difference of two times may be negative, and has no logarithm then.
        positive = [(value, seconds) for value, seconds in measured if seconds > 0]
        if len(positive) > 1:
            log_values = np.log([float(value) for value, _ in positive])
            log_seconds = np.log([seconds for _, seconds in positive])
            slope, _ = np.polyfit(log_values, log_seconds, 1)
            exponents.append({"axis": axis, "case": case, "exponent": float(slope)})
    return exponents


def _predicted_ratio(base: nn.Module, config: BenchConfig, name: str) -> float:
    if name == FLOOR or name.endswith(MERGED):
        return 1.0
    base_products = sum(module.weight.numel() for module in base.modules() if isinstance(module, nn.Linear))
    method = name.removeprefix(PEFT)  # the tuners of PEFT have the names of our methods
    added_products = summarise(base, adapter_config(method, config)).multiply_adds
    return 1 + 3 * added_products / (2 * base_products)  # the tokens cancel
