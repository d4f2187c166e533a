"""The tables and figures of MetaTT, and TensLoRA's on text: their runs and how they are reported."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from metalora.config import TrainConfig
from metalora_papers.comparison import RateKey
from metalora_papers.config import TEXT_TABLES, TextRunConfig, TextTableConfig
from metalora_papers.metatt import plots
from metalora_papers.metatt.jobs import DESIGNS, FULL, Job, jobs_of
from metalora_papers.metatt.transfer import transfer_rows
from metalora_papers.rates import at_chosen_rates, best_rates
from metalora_papers.report import Report, compare_methods, comparison_table, summary_table
from metalora_papers.rows import Row, latest

CHOOSING_SEED = 1000  # learning rates are chosen with a seed of their own
FULL_LR_RATIO = 0.01  # training every weight takes a hundredth of an adapter's learning rate
TRANSFER = "metatt-transfer"


class TextComparison:
    """A table or figure on text; a `metalora_papers.comparison.Comparison`.

    Args:
        name: One of `TEXT_TABLES`, such as "metatt-2".
        table: The settings.
    """

    def __init__(self, name: str, table: TextTableConfig):
        self.name, self.table = name, table

    @property
    def title(self) -> str:
        """What is compared, and the numbers of the tables and figures in the paper."""
        return TEXT_TABLES[self.name]

    @property
    def file_stem(self) -> str:
        """The name."""
        return self.name

    # ---- runs --------------------------------------------------------------------------------------------------------
    def runs(self, rates: Mapping[RateKey, float]) -> list[TextRunConfig]:
        """Return every run, seeds outermost; `rates` is by row and by the tasks that are trained together."""
        jobs = jobs_of(self.name, self.table)
        return [
            _run(self.table, job, seed, job.lr or rates.get(job.rate_key, self.table.lr))
            for seed in self.table.seeds
            for job in jobs
        ]

    def choosing_runs(self) -> list[TextRunConfig]:
        """Return the runs on the validation split from which the rate of every row is chosen, task by task."""
        if not self.table.lr_grid:
            return []
        jobs = [dataclasses.replace(job, left_out=()) for job in jobs_of(self.name, self.table) if job.lr is None]
        return [_run(self.table, job, CHOOSING_SEED, lr, "val") for lr in self.table.lr_grid for job in jobs]

    # ---- rows --------------------------------------------------------------------------------------------------------
    def chosen_rates(self, rows: Sequence[Row]) -> dict[RateKey, float]:
        """Return, by row and tasks, the learning rate of the best mean accuracy on the validation split."""
        return best_rates(rows, _rate_key, _mean_accuracy, _learning_rate)

    def rows_of(self, rows: Sequence[Row]) -> list[Row]:
        """Return the test rows of this model and these tasks; ValueError if there is none."""
        jobs = jobs_of(self.name, self.table)
        keys = {job.rate_key for job in jobs}
        own_rows = [row for row in latest(rows) if row["config"]["model"] == self.table.model]
        own_rows = [row for row in own_rows if _rate_key(row) in keys]
        # The name of a row with a fixed rate says the rate, so nothing was chosen for it.
        fixed = {job.rate_key for job in jobs if job.lr is not None}
        rates = {key: rate for key, rate in self.chosen_rates(own_rows).items() if key not in fixed}
        test_rows = at_chosen_rates(own_rows, rates, _rate_key, _learning_rate)
        if not test_rows:
            raise ValueError(f"table {self.name}: no row of {self.table.model} on {', '.join(self.table.tasks)}")
        return test_rows

    # ---- reports -----------------------------------------------------------------------------------------------------
    def report(self, rows: Sequence[Row]) -> Report:
        """Return the accuracies by task and their mean, and each row against the reference, paired by seed."""
        own_rows, tasks = self.rows_of(rows), self.table.tasks
        columns = {f"accuracy.{task}": task for task in tasks} | {"mean": "mean"}
        if self.name == TRANSFER:
            merged, reference = transfer_rows(own_rows, tasks)
        else:
            merged = by_seed(own_rows, tasks)
            reference = DESIGNS[self.name].reference.format(**dataclasses.asdict(self.table))
            columns |= {"num_params": "parameters", "seconds": "seconds a run"}
        title = f"{self.title}, {self.table.model}"
        report = Report([summary_table(merged, columns, title=f"{title}: accuracy, %", percent=True)])
        names = list(dict.fromkeys(row["config"]["method"] for row in merged))
        others = [name for name in names if name != reference]
        if reference in names and others and len({row["seed"] for row in merged}) > 1:
            for metric in ("mean", *(f"accuracy.{task}" for task in tasks)):
                report.comparisons += compare_methods(
                    merged, metric=metric, treatment_methods=others, baseline_methods=(reference,), size=None
                )
            report.tables.append(comparison_table(report.comparisons, title=f"{title}: against {reference}"))
        return report

    def plot(self, rows: Sequence[Row], folder: Path) -> list[Path]:
        """Draw the figures of the paper that these rows hold."""
        return plots.plot(self.name, rows, self.table, folder)


def by_seed(rows: Sequence[Row], tasks: Sequence[str]) -> list[Row]:
    """Merge the rows of a method and a seed, which are of single tasks, into one row with all accuracies.

    Args:
        rows: Test rows.
        tasks: The tasks that a merged row must have; a method and seed that lacks one is left out.

    Returns:
        One row for every method and seed.

    Raises:
        ValueError: No method has all tasks, or one has a task twice (then the rows are of several settings).
    """
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["config"]["method"], row["seed"]), []).append(row)
    merged_rows = []
    for (method, seed), members in groups.items():
        accuracy: dict[str, float] = {}
        for row in members:
            for task, value in row["results"]["accuracy"].items():
                if task in accuracy:
                    raise ValueError(f"{method!r} has seed {seed} on {task!r} twice: the rows are of several settings")
                accuracy[task] = value
        if set(accuracy) >= set(tasks):
            merged_rows.append(_merged(members, {task: accuracy[task] for task in tasks}))
    if not merged_rows:
        raise ValueError(f"no method has a row on each of {', '.join(tasks)}")
    return merged_rows


def _merged(members: Sequence[Row], accuracy: dict[str, float]) -> Row:
    """One row that stands for several of one method and seed."""
    seconds = round(sum(row["time"]["seconds"] for row in members) / len(members))
    mean = sum(accuracy.values()) / len(accuracy)
    results: dict[str, Any] = {**members[0]["results"], "accuracy": accuracy, "mean": mean, "seconds": seconds}
    return {**members[0], "results": results}


def _rate_key(row: Row) -> RateKey:
    return row["config"]["method"], "+".join(row["config"]["tasks"])


def _mean_accuracy(row: Row) -> float:
    mean: float = row["results"]["mean"]
    return mean


def _learning_rate(row: Row) -> float:
    """The learning rate of the table that a row was run at."""
    rate: float = row["config"]["train"]["lr"]
    return rate / (FULL_LR_RATIO if row["config"]["full"] else 1.0)


def _run(
    table: TextTableConfig, job: Job, seed: int, lr: float, split: Literal["val", "test"] = "test"
) -> TextRunConfig:
    full = job.name == FULL
    return TextRunConfig(
        suite=table.suite,
        data_root=table.data_root,
        tasks=job.tasks,
        left_out=job.left_out,
        model=table.model,
        method=job.name,
        full=full,
        classifier=table.classifier,
        seed=seed,
        adapter=None if job.adapter is None else dataclasses.replace(job.adapter, seed=seed),
        train=TrainConfig(
            steps=table.steps,
            lr=lr * (FULL_LR_RATIO if full else 1.0),
            schedule="linear",
            warmup=0.06,
            mixed_precision=table.mixed_precision,
            rank_schedule=job.rank_schedule,
        ),
        batch=table.batch,
        examples=table.examples,
        test_examples=table.test_examples,
        max_length=table.max_length,
        split=split,
        evaluate_every=table.evaluate_every if split == "test" else 0,
    )
