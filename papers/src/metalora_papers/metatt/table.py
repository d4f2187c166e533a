"""The tables and figures of MetaTT, and TensLoRA's on text: their runs and how they are reported."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from metalora.config import TrainConfig
from metalora_papers.comparison import RateKey
from metalora_papers.config import TEXT_SUITES, TEXT_TABLES, TextRunConfig, TextTableConfig
from metalora_papers.metatt import plots
from metalora_papers.metatt.heads import LINEAR
from metalora_papers.metatt.jobs import DESIGNS, Job, jobs_of, tasks_key
from metalora_papers.metatt.scores import METRICS, mean_score, metrics_of, reported
from metalora_papers.metatt.sequential import FORGETTING, sequential_columns, sequential_rows
from metalora_papers.metatt.transfer import transfer_rows
from metalora_papers.rates import at_chosen_rates, best_rates
from metalora_papers.report import Report, compare_methods, comparison_table, margin_table, summary_table
from metalora_papers.rows import Row, latest
from metalora_papers.runs import rate_of_table

CHOOSING_SEED = 1000  # learning rates are chosen with a seed of their own
TRANSFER, SEQUENTIAL = "metatt-transfer", "metatt-sequential"
SIZES = {"num_params": "parameters", "seconds": "seconds a run"}
MARGIN = "margin of error (MetaTT, eq. 7), %"
BY_PHASE = "Scores after each phase; forgetting: the first task after phase 1 minus after phase 2"
REPORTED = {
    "last": "Scores after the last step",
    "best": "Scores of the best evaluation of each run, chosen on the texts that are reported",
}


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
        if self.table.report == "best" and not self.table.evaluate_every:
            raise ValueError(f"table {self.name}: report best needs evaluations along the way; give evaluate_every")
        return [
            _run(self.table, job, seed, job.lr or rates.get(job.rate_key, self.table.lr))
            for seed in self.table.seeds
            for job in jobs
        ]

    def choosing_runs(self) -> list[TextRunConfig]:
        """Return the runs on the validation split from which the rate of every row is chosen, task by task."""
        if not self.table.lr_grid:
            return []
        jobs = [job for job in jobs_of(self.name, self.table) if job.lr is None and job.trained.heads]
        return [
            _run(self.table, dataclasses.replace(job, left_out=()), CHOOSING_SEED, lr, "val")
            for lr in self.table.lr_grid
            for job in jobs
        ]

    # ---- rows --------------------------------------------------------------------------------------------------------
    def chosen_rates(self, rows: Sequence[Row]) -> dict[RateKey, float]:
        """Return, by row and tasks, the learning rate of the best mean score on the validation split."""
        return best_rates(rows, _rate_key, self._mean_score, _learning_rate)

    def rows_of(self, rows: Sequence[Row]) -> list[Row]:
        """Return the test rows of this model, head and tasks; ValueError if there is none."""
        jobs = jobs_of(self.name, self.table)
        keys = {job.rate_key for job in jobs}
        text_rows = [row for row in latest(rows) if row["suite"] in TEXT_SUITES]
        own_rows = [row for row in text_rows if row["config"]["model"] == self.table.model]
        own_rows = [row for row in own_rows if _rate_key(row) in keys and _head(row) == self.table.head]
        # The name of a row with a fixed rate says the rate, so nothing was chosen for it.
        fixed = {job.rate_key for job in jobs if job.lr is not None}
        rates = {key: rate for key, rate in self.chosen_rates(own_rows).items() if key not in fixed}
        test_rows = at_chosen_rates(own_rows, rates, _rate_key, _learning_rate)
        if not test_rows:
            tasks = ", ".join(self.table.tasks)
            raise ValueError(f"table {self.name}: no row of {self.table.model}, head {self.table.head}, on {tasks}")
        return test_rows

    # ---- reports -----------------------------------------------------------------------------------------------------
    def report(self, rows: Sequence[Row]) -> Report:
        """Return the scores by task and their mean, their margins, and each row against the reference by seed."""
        if self.name == SEQUENTIAL:
            columns = sequential_columns(rows[0]["config"]["phases"])
            return self._report(sequential_rows(rows), columns, SIZES, list(columns), DESIGNS[self.name].reference)
        tasks = self.table.tasks
        columns = {f"{metrics_of(task)[0]}.{task}": _heading(task, metrics_of(task)[0]) for task in tasks}
        columns |= {"mean": "mean"}
        further: dict[str, str] = {}
        if self.name == TRANSFER:
            merged, reference = transfer_rows(self._reported(rows), tasks)
        else:
            merged = by_seed(self._reported(rows), tasks)
            reference = DESIGNS[self.name].reference.format(**dataclasses.asdict(self.table))
            further = {f"{name}.{task}": _heading(task, name) for task in tasks for name in metrics_of(task)[1:]}
            further |= SIZES
        metrics = ["mean", *(name for name in columns if name != "mean")]
        return self._report(merged, columns, further, metrics, reference)

    def _report(
        self,
        rows: Sequence[Row],
        columns: Mapping[str, str],
        further: Mapping[str, str],
        metrics: Sequence[str],
        reference: str,
    ) -> Report:
        """Return the table of all columns, the margins of the first ones, and the comparisons of the metrics."""
        title = f"{self.title}, {self.table.model}"
        report = Report(
            [summary_table(rows, {**columns, **further}, title=f"{title}: %", percent=True, note=self._note)]
        )
        if len({row["seed"] for row in rows}) > 1:
            report.tables.append(margin_table(rows, columns, title=f"{title}: {MARGIN}"))
            self._compare(report, rows, metrics, reference)
        return report

    def _compare(self, report: Report, rows: Sequence[Row], metrics: Sequence[str], reference: str) -> None:
        """Add the comparisons of all rows with the reference, if it is among them."""
        names = list(dict.fromkeys(row["config"]["method"] for row in rows))
        others = [name for name in names if name != reference]
        if reference not in names or not others:
            return
        for metric in metrics:
            report.comparisons += compare_methods(
                rows, metric=metric, treatment_methods=others, baseline_methods=(reference,), size=None,
                higher_is_better=metric != FORGETTING,
            )  # fmt: skip
        title = f"{self.title}, {self.table.model}: against {reference}"
        report.tables.append(comparison_table(report.comparisons, title=title))

    def _reported(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows with the scores of the evaluation that the settings ask for."""
        if self.table.report == "best" and self.name == TRANSFER:
            raise ValueError(f"table {TRANSFER}: left-out tasks are scored after the last step only; report is last")
        return [reported(row, self.table.report) for row in rows]

    def _mean_score(self, row: Row) -> float:
        return mean_score(reported(row, self.table.report)["results"], row["config"]["tasks"])

    @property
    def _note(self) -> str:
        """What a cell is, for below the table."""
        what = BY_PHASE if self.name == SEQUENTIAL else REPORTED[self.table.report]
        return f"{what}. ±: half of the 95 % bootstrap interval over seeds."

    def plot(self, rows: Sequence[Row], folder: Path) -> list[Path]:
        """Draw the figures of the paper that these rows hold."""
        return plots.plot(self.name, self._reported(rows), self.table, folder)


def by_seed(rows: Sequence[Row], tasks: Sequence[str]) -> list[Row]:
    """Merge the rows of a method and a seed, which are of single tasks, into one row with all scores.

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
        twice = [task for task, n in Counter(_tasks_of(members)).items() if n > 1]
        if twice:
            raise ValueError(f"{method!r} has seed {seed} on {twice[0]!r} twice: the rows are of several settings")
        if set(_tasks_of(members)) >= set(tasks):
            merged_rows.append(_merged(members, tasks))
    if not merged_rows:
        raise ValueError(f"no method has a row on each of {', '.join(tasks)}")
    return merged_rows


def _tasks_of(rows: Sequence[Row]) -> list[str]:
    return [task for row in rows for task in row["config"]["tasks"]]


def _merged(members: Sequence[Row], tasks: Sequence[str]) -> Row:
    """One row that stands for several of one method and seed."""
    scores: dict[str, dict[str, float]] = {name: {} for name in METRICS}
    for row in members:
        for name, values in scores.items():
            values |= row["results"].get(name, {})
    seconds = round(sum(row["time"]["seconds"] for row in members) / len(members))
    results = {**members[0]["results"], **scores, "mean": mean_score(scores, tasks), "seconds": seconds}
    return {**members[0], "results": results}


def _heading(task: str, metric: str) -> str:
    return f"{task}, {METRICS[metric]}"


def _rate_key(row: Row) -> RateKey:
    # A row from before there were phases has none.
    return row["config"]["method"], tasks_key(row["config"]["tasks"], row["config"].get("phases", ()))


def _head(row: Row) -> str:
    head: str = row["config"].get("head", LINEAR)  # a row from before there was a choice has none
    return head


def _learning_rate(row: Row) -> float:
    return rate_of_table(row["config"])


def _run(
    table: TextTableConfig, job: Job, seed: int, lr: float, split: Literal["val", "test"] = "test"
) -> TextRunConfig:
    trained = job.trained
    return TextRunConfig(
        suite=table.suite,
        data_root=table.data_root,
        tasks=job.tasks,
        phases=job.phases,
        left_out=job.left_out,
        model=table.model,
        method=job.name,
        full=trained.full,
        classifier=table.classifier if trained.heads else "frozen",
        head=table.head,
        seed=seed,
        adapter=None if trained.adapter is None else dataclasses.replace(trained.adapter, seed=seed),
        train=TrainConfig(
            steps=table.steps * max(1, len(job.phases)),
            lr=lr * trained.lr_ratio,
            schedule="constant" if job.phases else "linear",  # every phase trains at the same rate
            warmup=0.06,
            weight_decay=trained.weight_decay,
            mixed_precision=table.mixed_precision,
            rank_schedule=trained.rank_schedule,
            rank_budget=trained.rank_budget,
            two_site=trained.two_site,
        ),
        batch=table.batch,
        examples=table.examples,
        test_examples=table.test_examples,
        max_length=table.max_length,
        split=split,
        evaluate_every=table.evaluate_every if split == "test" or table.report == "best" else 0,
    )
