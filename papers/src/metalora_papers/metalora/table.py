"""The table of MetaLoRA on images, on data that can be rerun."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from metalora.config import AdapterConfig, TrainConfig
from metalora_papers.comparison import RateKey
from metalora_papers.config import BackboneConfig, DomainConfig, EpisodeConfig, RunConfig, TableConfig
from metalora_papers.metalora.feature_source import check_source, is_of_source, source_label
from metalora_papers.metalora.line_ups import AT_RANK, BY_NAME, GENERATED, STATIC, adapters
from metalora_papers.rates import at_chosen_rates, best_rates
from metalora_papers.report import Report, compare_methods, comparison_table, plot_bars, summary_table
from metalora_papers.rows import Row, latest, result
from metalora_papers.runs import ALIASES, FULL, FULL_LR_RATIO, rate_of_table

STATISTICS_BASELINE = "stats + LDA"
CHOOSING_SEED = 1000  # learning rates are chosen with a seed of their own
COMPARED_COLUMNS = 2  # the first primary columns are tested against the baselines
NATURAL_PER_CLASS, NATURAL_QUERIES = 16, 40  # the smallest set of suite natural has 40 test images of a class


class ImageComparison:
    """A table on images; a `metalora_papers.comparison.Comparison`.

    Args:
        name: "metalora".
        table: The settings.

    Raises:
        ValueError: A setting cannot work, or has no effect.
    """

    def __init__(self, name: str, table: TableConfig):
        _check(table)
        self.name, self.table = name, table
        self.data = "" if table.suite == "natural" else table.data  # natural has sets of its own

    @property
    def title(self) -> str:
        """Suite and network."""
        return f"suite {self.table.suite}, {self.network}"

    @property
    def network(self) -> str:
        """The name of the pre-trained model, or else of the small backbone."""
        return self.table.model or self.table.backbone

    @property
    def file_stem(self) -> str:
        """Suite, data, source and network."""
        return f"{self.data_stem}-{_slug(self.network)}"

    @property
    def data_stem(self) -> str:
        """The same without the network."""
        data = "sets" if self.table.suite == "natural" else self.table.data
        return _slug(f"{self.table.suite}-{data} {source_label(self.table)}".strip())

    # ---- runs --------------------------------------------------------------------------------------------------------
    def runs(self, rates: Mapping[RateKey, float]) -> list[RunConfig]:
        """Return every run, seeds outermost; the rows at equal rank have the learning rate of their method."""
        rows = adapters(self.table)
        return [
            _run(self.table, name, adapter, seed, rates.get((_method(name),), self.table.lr), "test")
            for seed in self.table.seeds
            for name, adapter in rows.items()
        ]

    def choosing_runs(self) -> list[RunConfig]:
        """Return the runs on the validation split from which the learning rate of each method is chosen."""
        if not self.table.lr_grid:
            return []
        rows = adapters(dataclasses.replace(self.table, equal_rank=False))
        return [
            _run(self.table, name, adapter, CHOOSING_SEED, lr, "val")
            for lr in self.table.lr_grid
            for name, adapter in rows.items()
            if adapter is not None or name == FULL
        ]

    # ---- rows --------------------------------------------------------------------------------------------------------
    def chosen_rates(self, rows: Sequence[Row]) -> dict[RateKey, float]:
        """Return the learning rate of each method that has the best first column on the validation split."""
        metric = next(iter(primary_columns(self.table.suite)))

        def value(row: Row) -> float:
            return float(result(row, metric))

        return best_rates(rows, _rate_key, value, _learning_rate)

    def rows_of(self, rows: Sequence[Row]) -> list[Row]:
        """Return the test rows of this suite, data, network, source and notions; ValueError if there is none."""
        own_rows = [row for row in latest(rows) if self._is_own(row)]
        test_rows = at_chosen_rates(own_rows, self.chosen_rates(own_rows), _rate_key, _learning_rate)
        if not test_rows:
            raise ValueError(
                f"no test row of suite {self.table.suite!r}, data {self.data!r}, backbone {self.network!r}"
                + (f", source {source_label(self.table)!r}" if source_label(self.table) else "")
            )
        return test_rows

    def _is_own(self, row: Row) -> bool:
        """Return whether a row, of any split and learning rate, belongs to this table."""
        table, config = self.table, row["config"]
        if row["suite"] != table.suite:
            return False
        methods = {"original", *GENERATED, *STATIC, *BY_NAME}
        return (
            config["data"] == self.data
            and config["backbone"]["architecture"] == table.backbone
            and config.get("model", "") == table.model  # rows of before that field have none
            and is_of_source(table, config)
            and _method(config["method"]) in methods
            and (not table.methods or config["method"] in [ALIASES.get(name, name) for name in table.methods])
            and (table.suite != "attributes" or tuple(config["episodes"]["trained"]) == table.trained)
        )

    # ---- reports -----------------------------------------------------------------------------------------------------
    def report(self, rows: Sequence[Row]) -> Report:
        """Return the tables, and the paired comparisons if there are two seeds or more."""
        rows, trained_rows = [*rows, *statistics_rows(rows)], rows
        columns = _present(rows, primary_columns(self.table.suite)) | {"num_params": "parameters"}
        further = _present(trained_rows, secondary_columns(self.table.suite))
        title = self._data_title
        report = Report(
            [
                summary_table(rows, columns, title=f"{title}: k-NN, K=5, %", percent=True),
                summary_table(trained_rows, further, title=f"{title}: further columns, %", percent=True),
            ]
        )
        names = {row["config"]["method"] for row in rows}
        complete = names >= {*GENERATED, *STATIC}
        if complete and len({row["seed"] for row in rows}) > 1:
            for metric in list(columns)[:COMPARED_COLUMNS]:
                self._compare(report, rows, metric, STATISTICS_BASELINE in names)
            report.tables.append(comparison_table(report.comparisons, title=f"{title}: against the best baseline"))
        return report

    def _compare(self, report: Report, rows: Sequence[Row], metric: str, with_statistics: bool) -> None:
        """Add the comparisons of one metric: with the best baseline, and with the statistics if there are any."""
        report.comparisons += compare_methods(
            rows,
            metric=metric,
            treatment_methods=GENERATED,
            baseline_methods=STATIC,
        )
        if with_statistics:
            report.comparisons += compare_methods(
                rows,
                metric=metric,
                treatment_methods=GENERATED,
                baseline_methods=(STATISTICS_BASELINE,),
                size=None,
            )

    def plot(self, rows: Sequence[Row], folder: Path) -> list[Path]:
        """Draw the primary columns as bars."""
        path = folder / f"{self.file_stem}.png"
        plot_bars(rows, _present(rows, primary_columns(self.table.suite)), path, title=self._data_title)
        return [path]

    @property
    def _data_title(self) -> str:
        data = "real sets" if self.table.suite == "natural" else self.table.data
        source = source_label(self.table)
        return ", ".join([f"suite {self.table.suite}", data, self.network, *([f"source {source}"] if source else [])])


def primary_columns(suite: str) -> dict[str, str]:
    """Return metric -> label of the main table; the first chooses the learning rate, the first two are compared."""
    if suite == "attributes":
        return {
            "k5.trained_mean": "trained notions",
            "k5.unseen_class": "unseen classes",
            "k5.held_out_mean": "never trained",
            "other_support.trained_mean": "another's support",
        }
    cells = {
        "unseen_domain_seen_class": "unseen domain, seen class",
        "unseen_domain_unseen_class": "unseen domain, unseen class",
    }
    if suite == "natural":  # a real image has no clean version: both banks are the same
        return {f"own.k5.{cell}": label for cell, label in cells.items()}
    return {f"{bank}.k5.{cell}": f"{bank} bank: {label}" for bank in ("clean", "own") for cell, label in cells.items()}


def secondary_columns(suite: str) -> dict[str, str]:
    """Return metric -> label of the second table: another K, plain baselines, and the controls of a condition."""
    if suite == "attributes":
        return {
            "k10.trained_mean": "trained K=10",
            "lda.trained_mean": "trained, LDA",
            "selected.trained_mean": "trained, selected",
            "selected.held_out_mean": "never trained, selected",
        }
    cells = ("seen_domain_seen_class", "seen_domain_unseen_class")
    conditions = ("own", "domain_mean", "global_mean", "other")
    columns = {f"clean.k5.{cell}": cell.replace("_", " ") for cell in cells}
    columns |= {f"{name}_condition": f"{name.replace('_', ' ')} c" for name in conditions}
    return columns | {"domain_share": "domain share"}


def statistics_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the strong baseline without training as rows: LDA on the stage statistics of the frozen backbone."""
    return [
        _statistics_row(row) for row in rows if row["config"]["method"] == "original" and "stats_lda" in row["results"]
    ]


def _statistics_row(row: Row) -> Row:
    nested = [
        {**counts, "metric": counts["metric"].replace("stats_lda", "k5")}
        for counts in row["results"].get("nested", ())
        if counts["metric"].startswith("stats_lda.")
    ]
    return {
        **row,
        "key": f"{row['key']}-stats",
        "config": {**row["config"], "method": STATISTICS_BASELINE},
        "results": {"k5": row["results"]["stats_lda"], "num_params": 0, "nested": nested},
    }


def _check(table: TableConfig) -> None:
    """Raise a ValueError for settings that cannot work or have no effect."""
    check_source(table)
    if table.model and table.backbone != TableConfig.backbone:
        raise ValueError(f"backbone {table.backbone!r} has no effect: the network is model {table.model!r}")
    if table.suite != "attributes" and table.test_episodes != TableConfig.test_episodes:
        raise ValueError(f"test_episodes: suite {table.suite!r} has no episodes")


def _run(
    table: TableConfig, name: str, adapter: AdapterConfig | None, seed: int, lr: float, split: Literal["val", "test"]
) -> RunConfig:
    return RunConfig(
        suite=table.suite,
        data="" if table.suite == "natural" else table.data,
        data_root=table.data_root,
        method=name,
        adapter=None if adapter is None else dataclasses.replace(adapter, seed=seed),
        backbone=BackboneConfig(architecture=table.backbone, steps=table.pretrain_steps),
        model=table.model,
        full=name == FULL,
        train=TrainConfig(steps=table.steps, lr=lr * (FULL_LR_RATIO if name == FULL else 1.0)),
        episodes=EpisodeConfig(
            trained=table.trained,
            held_out=table.held_out,
            size=table.size,
            class_ways=table.class_ways,
            blended_classes=table.blended_classes,
            test_episodes=table.test_episodes,
        ),
        domains=_domains(table),
        seed=seed,
        split=split,
    )


def _domains(table: TableConfig) -> DomainConfig:
    if table.suite == "natural":
        return DomainConfig(loss=table.loss or "contrastive", per_class=NATURAL_PER_CLASS, queries=NATURAL_QUERIES)
    return DomainConfig(loss=table.loss or "distillation")


def _slug(text: str) -> str:
    """Return a text as a part of the name of a file."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text)


def _method(row_name: str) -> str:
    """The method of a row's name: "lora" of "lora at rank 9"."""
    return row_name.split(AT_RANK)[0]


def _rate_key(row: Row) -> RateKey:
    return (_method(row["config"]["method"]),)


def _learning_rate(row: Row) -> float:
    return rate_of_table(row["config"])


def _present(rows: Sequence[Row], columns: Mapping[str, str]) -> dict[str, str]:
    """Return the columns whose metric at least one row has."""
    return {name: label for name, label in columns.items() if any(result(row, name) is not None for row in rows)}
