"""The tables of learners: methods under one readout, and what a user would pick instead, on the same episodes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from metalora.config import from_dict
from metalora_papers.comparison import RateKey
from metalora_papers.learner.config import LEARNER_TABLES, LearnerRunConfig, LearnerTableConfig
from metalora_papers.learner.differences import difference_table, paired_difference
from metalora_papers.learner.line_up import FITTED, NOT_TREATMENTS, ORIGINAL, STATIC, methods_of, run_of, trained_of
from metalora_papers.learner.scores import FROZEN, MEANS, TRAINED, method_rows, peers_of, seconds_table
from metalora_papers.metalora.episode_suite import UNSEEN
from metalora_papers.rates import at_chosen_rates, best_rates
from metalora_papers.report import Difference, Report, plot_bars, summary_table
from metalora_papers.rows import Row, latest, result

LDA = "LDA, all stages"
CHOOSING_SEED = 1000  # learning rates are chosen with a seed of their own
COSTS = {
    "num_params": "parameters",
    "calibration_error": "calibration error, trained",
    "milliseconds": "ms to a new task",
}


class LearnerComparison:
    """A table of learners; a `metalora_papers.comparison.Comparison`.

    Args:
        name: "learner-attributes", "learner-emoji" or "learner-texts".
        table: The settings.
    """

    def __init__(self, name: str, table: LearnerTableConfig):
        self.name, self.table = name, table

    @property
    def title(self) -> str:
        """What is compared."""
        return LEARNER_TABLES[self.name]

    @property
    def file_stem(self) -> str:
        """Name, data and backbone, and what is left out."""
        table = self.table
        parts = [self.name]
        if self.name == "learner-attributes":
            parts += [table.data, table.backbone]
        if table.trained:
            parts += ["trained", *table.trained]
        if table.left_out_vendor:
            parts += ["without", table.left_out_vendor]
        return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(parts))

    # ---- runs --------------------------------------------------------------------------------------------------------
    def runs(self, rates: Mapping[RateKey, float]) -> list[LearnerRunConfig]:
        """Return every run, seeds outermost."""
        methods = methods_of(self.name, self.table)
        return [
            run_of(self.name, self.table, method, seed, rates.get((method,), self.table.lr))
            for seed in self.table.seeds
            for method in methods
        ]

    def choosing_runs(self) -> list[LearnerRunConfig]:
        """Return the runs on the validation split from which the learning rate of each method is chosen."""
        methods = [method for method in methods_of(self.name, self.table) if method not in NOT_TREATMENTS]
        return [
            run_of(self.name, self.table, method, CHOOSING_SEED, lr, "val")
            for lr in self.table.lr_grid
            for method in methods
        ]

    # ---- rows --------------------------------------------------------------------------------------------------------
    def chosen_rates(self, rows: Sequence[Row]) -> dict[RateKey, float]:
        """Return the learning rate of each method that is best on the trained notions of the validation split."""

        def value(row: Row) -> float:
            return float(result(row, f"readout.{TRAINED}"))

        return best_rates(rows, _rate_key, value, _learning_rate)

    def rows_of(self, rows: Sequence[Row]) -> list[Row]:
        """Return the test rows of this suite and these settings; ValueError if there is none."""
        own_rows = [row for row in latest(rows) if self._is_own(row)]
        test_rows = at_chosen_rates(own_rows, self.chosen_rates(own_rows), _rate_key, _learning_rate)
        if not test_rows:
            raise ValueError(
                f"table {self.name}: no test row has these settings; give those of its runs, such as --config RECIPE"
            )
        return test_rows

    def _is_own(self, row: Row) -> bool:
        """Return whether a row, of any split, seed, learning rate and folder of the data, belongs to this table."""
        if row["suite"] != self.name or row["config"]["method"] not in methods_of(self.name, self.table):
            return False
        run = from_dict(LearnerRunConfig, row["config"])  # a field that came in later has its default
        table = dataclasses.replace(self.table, data_root=run.data_root)
        return run == run_of(self.name, table, run.method, run.seed, run.train.lr, run.split)

    # ---- reports -----------------------------------------------------------------------------------------------------
    def report(self, rows: Sequence[Row]) -> Report:
        """Return the accuracies and costs of all methods and peers, and their differences on the same episodes."""
        shown = method_rows(rows)
        title = self._data_title
        columns = self._columns(shown)
        report = Report([summary_table(shown, columns, title=f"{title}: accuracy, %", percent=True)])
        means = {metric: label for metric, label in MEANS.items() if metric in columns}
        for what, references in _references(rows).items():
            differences = _differences(shown, means, references)
            report.differences += differences
            if differences:
                report.tables.append(difference_table(differences, means, f"{title}: difference to {what}, points"))
        times = seconds_table(rows, f"{title}: from a support set to a classifier, in one process")
        return Report([*report.tables, *times], differences=report.differences)

    def _columns(self, shown: Sequence[Row]) -> dict[str, str]:
        """Return metric -> label: every notion, the means, the costs."""
        notions = dict.fromkeys(task for row in shown for task in row["results"]["per_task"])
        columns = {f"per_task.{task}": task for task in notions if task != UNSEEN} | MEANS | COSTS
        return {name: label for name, label in columns.items() if any(result(row, name) is not None for row in shown)}

    def plot(self, rows: Sequence[Row], folder: Path) -> list[Path]:
        """Draw the means of all methods and peers as bars."""
        shown = method_rows(rows)
        means = {name: label for name, label in MEANS.items() if any(name in row["results"] for row in shown)}
        path = folder / f"{self.file_stem}.png"
        plot_bars(shown, means, path, title=self._data_title)
        return [path]

    @property
    def _data_title(self) -> str:
        table = self.table
        details = f", {table.data}, {table.backbone}" if self.name == "learner-attributes" else ""
        left_out = f", without {table.left_out_vendor}" if table.left_out_vendor else ""
        trained = trained_of(self.name, table)
        return f"{self.name}{details}{left_out}" + (f", trained on {', '.join(trained)}" if trained else "")


def _references(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return what the methods are measured against: in words -> names, of which the best one counts."""
    peers: dict[str, list[str]] = {ORIGINAL: [], FITTED: []}
    for row in rows:
        if row["config"]["method"] in peers:
            peers[row["config"]["method"]] = peers_of(row)
    return {
        "the best peer without training": peers[ORIGINAL],
        "LDA's own prediction": [name for name in peers[ORIGINAL] if name == LDA],
        "the frozen network under the same readout": [FROZEN],
        "the best peer fitted on the support set": peers[FITTED],
        "the static LoRA": [STATIC],
    }


def _differences(shown: Sequence[Row], means: Mapping[str, str], references: Sequence[str]) -> list[Difference]:
    """Return the differences of every adapter, and of the readout alone, to the best of some references."""
    treatments = dict.fromkeys(row["config"]["method"] for row in shown if _is_measured(row))
    pairs = [paired_difference(shown, metric, name, references) for name in treatments for metric in means]
    return [pair for pair in pairs if pair is not None]


def _is_measured(row: Row) -> bool:
    return row["config"]["adapter"] is not None or row["config"]["method"] == FROZEN


def _rate_key(row: Row) -> RateKey:
    return (row["config"]["method"],)


def _learning_rate(row: Row) -> float:
    rate: float = row["config"]["train"]["lr"]
    return rate
