"""The table of the time to a new task: its runs, its report, and its figure."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from metalora._util.suggest import check_choice
from metalora.config import from_dict
from metalora_papers.comparison import RateKey
from metalora_papers.new_task.config import SUITES, THROUGHPUT, TITLES, NewTaskRunConfig, NewTaskTableConfig
from metalora_papers.new_task.figure import plot_front
from metalora_papers.new_task.line_up import CHOOSING_SEEDS, Schedule, methods_of, run_of, schedules_of, throughput_run
from metalora_papers.new_task.summary import MethodSummary, summaries_of, tasks_until_it_pays
from metalora_papers.rates import at_chosen_rates, best_rates
from metalora_papers.report import Report, Table
from metalora_papers.rows import Row, latest

NOT_MEASURED = "not measured"
COLUMNS = (
    "method",
    "accuracy, %",
    "seconds to the task",
    "CPU seconds",
    "joules",
    "seconds of 100 predictions",
    "kB of a task",
    "learning rate",
    "steps",
)
STEPS = "steps"  # a number of steps is chosen under the key of the learning rate and this word


class NewTaskComparison:
    """The table of the time to a new task; a `metalora_papers.comparison.Comparison`.

    Args:
        name: "new-task".
        table: The settings.

    Raises:
        ValueError: An unknown kind of inputs.
    """

    def __init__(self, name: str, table: NewTaskTableConfig):
        for suite in table.suites:
            check_choice("suite", suite, SUITES)
        self.name, self.table = name, table

    @property
    def title(self) -> str:
        """What is compared."""
        return "time to a new task"

    @property
    def file_stem(self) -> str:
        """Name of the files."""
        return self.name

    @property
    def _inputs(self) -> tuple[str, ...]:
        """The kinds of inputs of this table."""
        return tuple(suite for suite in self.table.suites if suite != THROUGHPUT)

    # ---- runs --------------------------------------------------------------------------------------------------------
    def runs(self, rates: Mapping[RateKey, float]) -> list[NewTaskRunConfig]:
        """Return every run, seeds outermost; the throughput, which is a ratio within its run, has one seed."""
        runs = [
            run_of(suite, self.table, method, seed, self._schedule(suite, method, rates))
            for seed in self.table.seeds
            for suite in self._inputs
            for method in methods_of(suite, self.table)
        ]
        if THROUGHPUT in self.table.suites:
            runs.append(throughput_run(self.table, self.table.seeds[0]))
        return runs

    def choosing_runs(self) -> list[NewTaskRunConfig]:
        """Return the runs on the validation split from which rate and number of steps of each method are chosen."""
        return [
            run_of(suite, self.table, method, seed, schedule, "val")
            for seed in CHOOSING_SEEDS
            for suite in self._inputs
            for method in methods_of(suite, self.table)
            for schedule in schedules_of(suite, method, self.table)
        ]

    def _schedule(self, suite: str, method: str, rates: Mapping[RateKey, float]) -> Schedule:
        """Return the chosen schedule of a method; the first one where nothing was chosen."""
        first = next(iter(schedules_of(suite, method, self.table)), Schedule())
        steps = rates.get((suite, method, STEPS), first.steps)
        return Schedule(rates.get((suite, method), first.lr), int(steps))

    # ---- rows --------------------------------------------------------------------------------------------------------
    def chosen_rates(self, rows: Sequence[Row]) -> dict[RateKey, float]:
        """Return rate and number of steps of each method that are best on the tasks of the validation split."""
        averaged = _averaged_over_seeds(rows)
        rates = best_rates(averaged, _rate_key, _mean, _learning_rate)
        return rates | best_rates(averaged, _steps_key, _mean, _steps)

    def rows_of(self, rows: Sequence[Row]) -> list[Row]:
        """Return the test rows of these settings; ValueError if there is none."""
        own_rows = [row for row in latest(rows) if self._is_own(row)]
        chosen = self.chosen_rates(own_rows)
        at_rates = at_chosen_rates(own_rows, chosen, _rate_key, _learning_rate)
        test_rows = at_chosen_rates(at_rates, chosen, _steps_key, _steps)
        if not test_rows:
            raise ValueError(f"table {self.name}: no test row has these settings; give those of its runs")
        return test_rows

    def _is_own(self, row: Row) -> bool:
        """Return whether a row, of any split, seed, schedule and folder of the data, belongs to this table."""
        if row["suite"] not in self.table.suites:
            return False
        run = from_dict(NewTaskRunConfig, row["config"])
        table = dataclasses.replace(self.table, data_root=run.data_root)
        if run.suite == THROUGHPUT:
            return run == throughput_run(table, run.seed)
        if run.method not in methods_of(run.suite, table):
            return False
        schedule = Schedule(run.lr, run.steps)
        if schedule not in (schedules_of(run.suite, run.method, table) or (Schedule(),)):
            return False
        return run == run_of(run.suite, table, run.method, run.seed, schedule, run.split)

    # ---- reports -----------------------------------------------------------------------------------------------------
    def report(self, rows: Sequence[Row]) -> Report:
        """Return a table of the methods and one of the numbers of tasks for each kind of inputs, and the throughput."""
        tables = []
        for suite, methods in self._summaries(rows).items():
            tables.append(_method_table(TITLES[suite], methods))
            tables += _paying_table(TITLES[suite], methods)
        return Report(tables + _throughput_tables(rows))

    def plot(self, rows: Sequence[Row], folder: Path) -> list[Path]:
        """Draw accuracy over seconds."""
        summaries = self._summaries(rows)
        if not summaries:
            return []
        path = folder / f"{self.file_stem}.png"
        plot_front(summaries, path)
        return [path]

    def _summaries(self, rows: Sequence[Row]) -> dict[str, list[MethodSummary]]:
        by_suite = {suite: [row for row in rows if row["suite"] == suite] for suite in self._inputs}
        return {suite: summaries_of(members) for suite, members in by_suite.items() if members}


def _method_table(title: str, methods: Sequence[MethodSummary]) -> Table:
    note = (
        f"{methods[0].seeds} seeds with {methods[0].tasks} tasks each; intervals of 95 % over both; medians of costs."
    )
    return Table(f"Time to a new task, {title}", COLUMNS, tuple(_cells(method) for method in methods), note)


def _cells(method: MethodSummary) -> tuple[str, ...]:
    return (
        method.name,
        f"{100 * method.accuracy:.1f} [{100 * method.low:.1f}, {100 * method.high:.1f}]",
        f"{method.seconds:.2f}",
        f"{method.cpu_seconds:.2f}",
        NOT_MEASURED if method.joules is None else f"{method.joules:.1f}",
        f"{method.seconds_of_100:.2f}",
        f"{method.bytes / 1000:,.0f}",
        f"{method.lr:g}" if method.lr else "–",
        str(method.steps) if method.steps else "–",
    )


def _paying_table(title: str, methods: Sequence[MethodSummary]) -> list[Table]:
    """Make the table of the numbers of tasks from which on a meta-training has saved time; none without a learner."""
    learners = [method for method in methods if method.training_seconds]
    peers = [method for method in methods if not method.training_seconds]
    if not learners or not peers:
        return []
    lines = [
        (learner.name, f"{learner.training_seconds:.0f}", *(_paying_cell(learner, peer) for peer in peers))
        for learner in learners
    ]
    columns = ("learner", "seconds of its training", *(peer.name for peer in peers))
    note = "Never: the other method is as fast without a meta-training. Accuracies are in the table above."
    return [Table(f"Tasks from which on a learner has saved time, {title}", columns, tuple(lines), note)]


def _paying_cell(learner: MethodSummary, peer: MethodSummary) -> str:
    count = tasks_until_it_pays(learner, peer)
    return "never" if count is None else str(count)


def _throughput_tables(rows: Sequence[Row]) -> list[Table]:
    """Make the table of tasks per second; none without its row."""
    tables = []
    for row in (row for row in rows if row["suite"] == THROUGHPUT):
        results, steps = row["results"], row["config"]["steps"]
        lines = [(name, f"{value['tasks_per_second']:.3f}") for name, value in results["tasks"].items()]
        ratio = results["ratio"]
        note = (
            f"{steps} steps a task. Ratio within a round: {ratio['median']:.2f} [{ratio['low']:.2f}, "
            f"{ratio['high']:.2f}]; 64 trainings of PEFT are calculated from {results['peft_runs']}."
        )
        tables.append(Table("Training many tasks", ("training", "tasks per second"), tuple(lines), note))
    return tables


def _averaged_over_seeds(rows: Sequence[Row]) -> list[Row]:
    """Return a row of the validation split for each method and schedule, with the mean accuracy over the seeds."""
    by_schedule: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row["config"]["split"] == "val":
            by_schedule[*_rate_key(row), _learning_rate(row), _steps(row)].append(row)
    return [of_seeds[0] | {"results": {"mean": fmean(map(_mean, of_seeds))}} for of_seeds in by_schedule.values()]


def _rate_key(row: Row) -> RateKey:
    return (row["suite"], row["config"]["method"])


def _steps_key(row: Row) -> RateKey:
    return (*_rate_key(row), STEPS)


def _mean(row: Row) -> float:
    mean: float = row["results"]["mean"]
    return mean


def _learning_rate(row: Row) -> float:
    rate: float = row["config"]["lr"]
    return rate


def _steps(row: Row) -> float:
    steps: float = row["config"]["steps"]
    return steps
