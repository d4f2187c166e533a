"""What the rows of the time to a new task say of each method: accuracy with its interval, seconds, joules, bytes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metalora_papers.new_task.line_up import METHODS
from metalora_papers.rows import Row
from metalora_papers.statistics import bootstrap_interval


@dataclass(frozen=True)
class MethodSummary:
    """One method over all seeds and tasks of one kind of inputs.

    Attributes:
        name: Name of the method.
        accuracy: Mean over seeds and tasks.
        low: Lower bound of its 95 % interval over seeds and, within each, tasks; the mean if there is one value.
        high: Upper bound, likewise.
        seconds: Median wall time from the support set to predictions.
        cpu_seconds: Median CPU time.
        seconds_of_100: Median wall time of 100 predictions.
        bytes: Median size of a stored task.
        joules: Median energy; None if it was not measured.
        training_seconds: Wall time of the meta-training; 0 if there was none.
        lr: Learning rate of the steps on a support set; 0 if there are none.
        steps: Their number.
        seeds: Number of seeds.
        tasks: Number of tasks of a seed.
    """

    name: str
    accuracy: float
    low: float
    high: float
    seconds: float
    cpu_seconds: float
    seconds_of_100: float
    bytes: float
    joules: float | None
    training_seconds: float
    lr: float
    steps: int
    seeds: int
    tasks: int


def summaries_of(rows: Sequence[Row]) -> list[MethodSummary]:
    """Return a summary of each method, in the order of `METHODS`.

    Args:
        rows: Rows of one kind of inputs.
    """
    measured = {row["config"]["method"] for row in rows}
    names = [name for name in METHODS if name in measured]
    return [_summary(name, [row for row in rows if row["config"]["method"] == name]) for name in names]


def _summary(name: str, rows: Sequence[Row]) -> MethodSummary:
    by_seed = [list(row["results"]["tasks"].values()) for row in sorted(rows, key=lambda row: row["seed"])]
    interval = bootstrap_interval([[scores["accuracy"] for scores in tasks] for tasks in by_seed])
    low, high = (interval.mean if math.isnan(bound) else bound for bound in (interval.low, interval.high))
    every = [scores for tasks in by_seed for scores in tasks]
    joules = [scores["joules"] for scores in every]
    training = rows[0]["results"]["training"]
    return MethodSummary(
        name=name,
        accuracy=interval.mean,
        low=low,
        high=high,
        seconds=_median(every, "seconds"),
        cpu_seconds=_median(every, "cpu_seconds"),
        seconds_of_100=_median(every, "seconds_of_100"),
        bytes=_median(every, "bytes"),
        joules=None if None in joules else statistics.median(joules),
        training_seconds=0.0 if training is None else training["seconds"],
        lr=rows[0]["config"]["lr"],
        steps=rows[0]["config"]["steps"],
        seeds=len(by_seed),
        tasks=len(by_seed[0]),
    )


def _median(every: Sequence[dict[str, Any]], name: str) -> float:
    return statistics.median(scores[name] for scores in every)


def tasks_until_it_pays(learner: MethodSummary, peer: MethodSummary) -> int | None:
    """Return the number of tasks from which on the meta-training of a learner has saved time against a peer.

    The smallest n with training + n * seconds of the learner < n * seconds of the peer.

    Args:
        learner: A method with a meta-training.
        peer: A method without one.

    Returns:
        The number; None if the peer is as fast, so that the learner never saves time.
    """
    saved = peer.seconds - learner.seconds
    return math.floor(learner.training_seconds / saved) + 1 if saved > 0 else None
