"""The runs of the table, one after another, as many as a time budget holds."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from metalora.bench.gpu.budget import Budget, OutOfTime
from metalora.bench.store import RowStore
from metalora.config import from_dict, read_yaml
from metalora_papers.execution import execute
from metalora_papers.jobs import key_of
from metalora_papers.learner.config import LearnerRunConfig, LearnerTableConfig
from metalora_papers.learner.line_up import EMOJI, ORIGINAL, STATIC, run_of
from metalora_papers.learner.scores import READOUT
from metalora_papers.rows import Row

RECIPE = Path("papers/recipes/learner/emoji.yaml")
SIZE = 96
GENERATED = "metalora-cp"
WARM_STEPS, JUDGED_STEPS = 5, 20  # the first steps load kernels; the median of the next ones is the time of a step

Say = Callable[[str], None]


def planned_runs(dry_run: bool) -> list[LearnerRunConfig]:
    """Return the runs, the most valuable first: the frozen network and a LoRA of each seed, then MetaLoRA-CP.

    Args:
        dry_run: One seed, two steps, one test episode of each notion and pictures of 32 pixels.

    Raises:
        ValueError: The recipe cannot be read.
    """
    table = dataclasses.replace(from_dict(LearnerTableConfig, read_yaml(RECIPE), str(RECIPE)), size=SIZE)
    if dry_run:
        table = dataclasses.replace(table, size=32, steps=2, test_episodes=1, seeds=table.seeds[:1])
    pairs = [(method, seed) for seed in table.seeds for method in (ORIGINAL, STATIC)]
    pairs += [(GENERATED, seed) for seed in table.seeds]
    return [run_of(EMOJI, table, method, seed, table.lr) for method, seed in pairs]


def run_within(budget: Budget, runs: Sequence[LearnerRunConfig], store: RowStore, say: Say = print) -> list[Row]:
    """Execute runs and add their rows to a file, each as soon as it is there.

    A run is left out if it has a row, or if an earlier one with its method took longer than what is left. A run that
    its first steps show to be too long is given up.

    Args:
        budget: The time for all of them.
        runs: The runs, in their order.
        store: The file.
        say: Takes a line for the terminal.

    Returns:
        The new rows.
    """
    rows: list[Row] = []
    for run in runs:
        name = f"{run.method}, seed {run.seed}"
        try:
            if store.done(key_of(run)):
                say(f"{name}: has a row")
                continue
            rows.append(_row_within(budget, run, rows))
        except OutOfTime as error:
            say(f"{name}: not run, {error}")
            continue
        store.append(rows[-1])
        say(f"{name}: {_summary(rows[-1])}")
    return rows


def _row_within(budget: Budget, run: LearnerRunConfig, earlier: Sequence[Row]) -> Row:
    """Execute one run; OutOfTime if it does not end within the budget."""
    expected = max((_seconds(row) for row in earlier if row["config"]["method"] == run.method), default=0.0)
    _check_time(expected, budget)
    evaluation = max((_seconds(row) for row in earlier if row["config"]["method"] == ORIGINAL), default=0.0)
    try:
        with budget.enforced():
            return execute(run, on_step=Pace(run.train.steps, evaluation, budget)).row
    finally:
        gc.collect()  # modules and their hooks form cycles, which would keep the memory of the card
        torch.cuda.empty_cache()  # nothing to do without a card


class Pace:
    """Judges after the first steps of a training whether it ends within a budget; called after each step.

    Args:
        steps: Number of steps of the training.
        evaluation: Seconds that are needed after it.
        budget: The budget.
        clock: Returns the time in seconds.
    """

    def __init__(self, steps: int, evaluation: float, budget: Budget, clock: Callable[[], float] = time.monotonic):
        self.steps, self.evaluation, self.budget, self.clock = steps, evaluation, budget, clock
        self._times: list[float] = []

    def __call__(self, step: int, loss: float) -> None:
        """Take the time of a step.

        Raises:
            OutOfTime: What is left of the run takes longer than what is left of the budget.
        """
        if len(self._times) > JUDGED_STEPS:
            return
        self._times.append(self.clock())
        if len(self._times) > JUDGED_STEPS:
            times = self._times[WARM_STEPS:]
            seconds = median(after - before for before, after in zip(times, times[1:], strict=False))
            _check_time(seconds * (self.steps - step - 1) + self.evaluation, self.budget)


def _check_time(seconds: float, budget: Budget) -> None:
    if not budget.remaining:
        raise OutOfTime("no time is left")
    if seconds > budget.remaining:
        raise OutOfTime(f"it takes {seconds:.0f} more seconds, and {budget.remaining:.0f} are left")


def _seconds(row: Row) -> float:
    seconds: float = row["time"]["seconds"]
    return seconds


def _summary(row: Row) -> str:
    scores: dict[str, Any] = row["results"][READOUT]
    trained, held_out = 100 * scores["trained_mean"], 100 * scores["held_out_mean"]
    return f"{trained:.1f} % on trained notions, {held_out:.1f} % on others, in {_seconds(row):.0f} s"
