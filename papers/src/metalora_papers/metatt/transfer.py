"""A left-out task: what the adapters of other tasks are worth on it, seen through a few labelled examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SINGLE = "best single-task adapter"


def transfer_rows(rows: Sequence[dict], tasks: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """Rows of accuracies on left-out tasks, one for each method and seed, and the name of the reference among them.

    The reference takes for every left-out task the adapter (method and task it was trained on) of the best mean over
    seeds on that very task, which no one could choose in practice: a hard baseline.
    """
    scores: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for row in rows:
        source = (row["config"]["method"], "+".join(row["config"]["tasks"]))
        for task, value in row["results"]["left_out"].items():
            scores.setdefault(source, {}).setdefault(task, {})[row["seed"]] = value
    found: dict[str, dict[str, dict[int, float]]] = {}
    for (method, trained), by_task in scores.items():
        joint = "+" in trained
        for task, by_seed in by_task.items():
            name = f"{method}, the other tasks" if joint else SINGLE if method != "head alone" else "frozen encoder"
            best = found.setdefault(name, {})
            if task not in best or _mean(by_seed) > _mean(best[task]):
                best[task] = by_seed
    example = rows[0]
    made = []
    for name, by_task in found.items():
        if set(by_task) < set(tasks):
            continue
        for seed in sorted(set.intersection(*(set(by_task[task]) for task in tasks))):
            accuracy = {task: by_task[task][seed] for task in tasks}
            results = {"accuracy": accuracy, "mean": _mean(accuracy)}
            made.append({**example, "seed": seed, "config": {**example["config"], "method": name}, "results": results})
    return made, SINGLE


def _mean(values: dict[Any, float]) -> float:
    return sum(values.values()) / len(values)
