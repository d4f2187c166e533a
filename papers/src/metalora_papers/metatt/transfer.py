"""A left-out task: what the adapters of other tasks are worth on it, seen through a few labelled examples."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from statistics import fmean

from metalora_papers.metatt.scores import by_metric
from metalora_papers.rows import Row

SINGLE = "best single-task adapter"
Scores = dict[str, dict[int, float]]  # task -> seed -> what judges the task


def transfer_rows(rows: Sequence[Row], tasks: Sequence[str]) -> tuple[list[Row], str]:
    """Return rows of scores on left-out tasks, and the name of the reference among them.

    For every left-out task, the reference takes the adapter (method and task that it was trained on) with the best
    mean over seeds on that very task. No one could choose it in practice: it is a hard baseline.

    Args:
        rows: Test rows of runs with left-out tasks.
        tasks: The tasks that a row must have.

    Returns:
        One row for every method and seed, and the name of the reference.
    """
    best_scores: dict[str, Scores] = {}
    for (method, trained_on), by_task in _scores_by_source(rows).items():
        best = best_scores.setdefault(_name(method, trained_on), {})
        for task, by_seed in by_task.items():
            if task not in best or _mean(by_seed.values()) > _mean(best[task].values()):
                best[task] = by_seed
    complete = {name: by_task for name, by_task in best_scores.items() if set(by_task) >= set(tasks)}
    return [row for name, by_task in complete.items() for row in _rows(rows[0], name, by_task, tasks)], SINGLE


def _scores_by_source(rows: Sequence[Row]) -> dict[tuple[str, str], Scores]:
    """Return (method, tasks that it was trained on) -> scores on left-out tasks."""
    scores: dict[tuple[str, str], Scores] = {}
    for row in rows:
        source = (row["config"]["method"], "+".join(row["config"]["tasks"]))
        for task, value in row["results"]["left_out"].items():
            scores.setdefault(source, {}).setdefault(task, {})[row["seed"]] = value
    return scores


def _name(method: str, trained_on: str) -> str:
    if "+" in trained_on:
        return f"{method}, the other tasks"
    return "frozen encoder" if method == "head alone" else SINGLE


def _rows(example: Row, name: str, by_task: Scores, tasks: Sequence[str]) -> Iterator[Row]:
    """Yield a row for every seed that all tasks have."""
    for seed in sorted(set.intersection(*(set(by_task[task]) for task in tasks))):
        scores = {task: by_task[task][seed] for task in tasks}
        results = {**by_metric(scores), "mean": _mean(scores.values())}
        yield {**example, "seed": seed, "config": {**example["config"], "method": name}, "results": results}


def _mean(values: Collection[float]) -> float:
    return fmean(values)
