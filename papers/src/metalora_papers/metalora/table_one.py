"""Table I of MetaLoRA in the paper's own shape: methods by network (ResNet, MLP-Mixer) and by K of the k-NN vote."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Literal

from metalora_papers.comparison import RateKey
from metalora_papers.config import RunConfig, TableConfig
from metalora_papers.metalora.feature_source import source_label
from metalora_papers.metalora.line_ups import FILM, GENERATED, STATIC, STATIC_FILM
from metalora_papers.metalora.table import STATISTICS_BASELINE, ImageComparison, primary_columns, statistics_rows
from metalora_papers.report import PairedComparison, Report, Table, compare_methods, comparison_table
from metalora_papers.rows import Row, result
from metalora_papers.runs import FULL
from metalora_papers.statistics import LEAST_PAIRS, SIGNIFICANT

Backbone = Literal["resnet", "mixer"]
BACKBONES: dict[Backbone, str] = {"resnet": "ResNet", "mixer": "MLP-Mixer"}
NEIGHBOURS = (5, 10)
LINES = {
    "original": "Original",
    "lora": "LoRA",
    "multi-lora": "Multi-LoRA",
    "metalora-cp": "Meta-LoRA CP",
    "metalora-tr": "Meta-LoRA TR",
    "moe-lora": "MoE-LoRA (not in the paper)",
    FILM: "FiLM, generated (not in the paper)",
    STATIC_FILM: "FiLM, static (not in the paper)",
    FULL: "Full fine-tuning (not in the paper)",
    STATISTICS_BASELINE: "stage statistics + LDA, no training (not in the paper)",
}


class TableOne:
    """Table I of arXiv:2504.00460 on data that can be rerun; a `metalora_papers.comparison.Comparison`.

    Args:
        name: "metalora-1".
        table: The settings of both networks; with a `model`, the table has this one network instead.

    Raises:
        ValueError: A setting cannot work, or has no effect.
    """

    def __init__(self, name: str, table: TableConfig):
        if table.backbone != TableConfig.backbone:
            raise ValueError(
                f"backbone {table.backbone!r} has no effect: table {name} has the networks {', '.join(BACKBONES)}; "
                "`metalora-papers table metalora` has one of them"
            )
        self.name, self.table = name, table
        # The rows of a pre-trained model state the default backbone, which was not used.
        self.networks: dict[Backbone, str] = {"resnet": table.model} if table.model else BACKBONES
        self.parts = {
            backbone: ImageComparison("metalora", dataclasses.replace(table, backbone=backbone))
            for backbone in self.networks
        }
        self.metrics = {count: _metric(table.suite, count) for count in NEIGHBOURS}

    @property
    def title(self) -> str:
        """Paper, suite, networks and source."""
        source = source_label(self.table)
        of_source = f", source {source}" if source else ""
        return f"Table I, suite {self.table.suite}, {' and '.join(self.networks.values())}{of_source}"

    @property
    def file_stem(self) -> str:
        """Name, suite, data and source."""
        return f"{self.name}-{self.parts['resnet'].data_stem}"

    def runs(self, rates: Mapping[RateKey, float]) -> list[RunConfig]:
        """Return the runs of all networks, seeds outermost."""
        runs = [run for name, part in self.parts.items() for run in part.runs(_of_backbone(rates, name))]
        return sorted(runs, key=lambda run: self.table.seeds.index(run.seed))

    def choosing_runs(self) -> list[RunConfig]:
        """Return the runs on the validation split from which the learning rate of each method is chosen."""
        return [run for part in self.parts.values() for run in part.choosing_runs()]

    def chosen_rates(self, rows: Sequence[Row]) -> dict[RateKey, float]:
        """Return the learning rate of each network and method that is best on the validation split."""
        by_backbone = self._by_backbone(rows)
        return {
            (backbone, *key): rate
            for backbone, part in self.parts.items()
            for key, rate in part.chosen_rates(by_backbone[backbone]).items()
        }

    def rows_of(self, rows: Sequence[Row]) -> list[Row]:
        """Return the test rows of all networks; ValueError if there is none of one of them."""
        return [row for part in self.parts.values() for row in part.rows_of(rows)]

    def report(self, rows: Sequence[Row]) -> Report:
        """Return Table I, and the tests behind its stars."""
        by_backbone = {name: [*part, *statistics_rows(part)] for name, part in self._by_backbone(rows).items()}
        cells: dict[str, list[str]] = {method: [] for method in LINES}
        report = Report()
        for name, label in self.networks.items():
            for count in NEIGHBOURS:
                tests = self._tests(by_backbone[name], self.metrics[count])
                report.comparisons += [dataclasses.replace(test, metric=f"{label}, K={count}") for test in tests]
                for method, line in cells.items():
                    line.append(self._cell(by_backbone[name], method, self.metrics[count], tests))
        columns = ("method", *(f"{label}, K={count}" for label in self.networks.values() for count in NEIGHBOURS))
        lines = tuple((LINES[method], *line) for method, line in cells.items() if set(line) != {"–"})
        report.tables.append(Table(f"{self.title}: accuracy of k-NN, %; * p < {SIGNIFICANT}", columns, lines))
        if report.comparisons:
            report.tables.append(comparison_table(report.comparisons, title="against the best baseline of its size"))
        return report

    def plot(self, rows: Sequence[Row], folder: Path) -> list[Path]:
        """Draw the bars of each network."""
        by_backbone = self._by_backbone(rows)
        return [path for name, part in self.parts.items() for path in part.plot(by_backbone[name], folder)]

    def _by_backbone(self, rows: Sequence[Row]) -> dict[str, list[Row]]:
        found: dict[str, list[Row]] = {name: [] for name in self.networks}
        for row in rows:
            found[row["config"]["backbone"]["architecture"]].append(row)
        return found

    def _tests(self, rows: Sequence[Row], metric: str) -> list[PairedComparison]:
        """Return the paired tests of one column: each generated method against the best baseline of its size."""
        methods = {row["config"]["method"] for row in rows}
        treatments = [name for name in GENERATED if name in methods]
        baselines = [name for name in STATIC if name in methods]
        if not treatments or not baselines or len({row["seed"] for row in rows}) < LEAST_PAIRS:
            return []
        return compare_methods(rows, metric=metric, treatment_methods=treatments, baseline_methods=baselines)

    def _cell(self, rows: Sequence[Row], method: str, metric: str, tests: Sequence[PairedComparison]) -> str:
        """Return the mean over seeds in per cent, with a star if it is significantly above the best baseline."""
        values = [result(row, metric) for row in rows if row["config"]["method"] == method]
        present = [float(value) for value in values if value is not None]
        if not present:
            return "–"
        is_better = any(test.treatment == method and test.is_better for test in tests)
        return f"{100 * fmean(present):.2f}{'*' if is_better else ''}"


def _metric(suite: str, count: int) -> str:
    """Return the first primary column of a suite at another number of neighbours."""
    first = next(iter(primary_columns(suite)))
    return first.replace("k5", f"k{count}")


def _of_backbone(rates: Mapping[RateKey, float], backbone: str) -> dict[RateKey, float]:
    return {key[1:]: rate for key, rate in rates.items() if key[0] == backbone}
