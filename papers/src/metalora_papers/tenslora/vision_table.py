"""TensLoRA's comparison on image classification: its rows, its runs and how they are reported."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from metalora._util.suggest import nearest
from metalora.config import AdapterConfig, TrainConfig
from metalora.methods.registry import METHODS
from metalora_papers.comparison import RateKey
from metalora_papers.metatt.line_up import (
    FROZEN,
    HEAD,
    Trained,
    adapter_for,
    is_row,
    trained_by,
)
from metalora_papers.rates import at_chosen_rates, best_rates
from metalora_papers.report import Report, compare_methods, comparison_table, margin_table, plot_bars, summary_table
from metalora_papers.rows import Row, latest
from metalora_papers.runs import ALIASES, FULL, rate_of_table
from metalora_papers.tenslora.config import ImageRunConfig, ImageTableConfig
from metalora_papers.tenslora.images import image_model_without_weights, load_image_backbone
from metalora_papers.tenslora.table import BY_SPECTRA, is_construction, protocol_row
from metalora_papers.tenslora.table import NAMES as CONSTRUCTIONS

CHOOSING_SEED = 1000  # learning rates are chosen with a seed of their own
LORA = "lora"
SCORES = {"accuracy": "accuracy", "class_mean": "mean over classes"}
FURTHER = {"num_params": "parameters", "seconds": "seconds a run"}
NAMES = {**ALIASES, FROZEN: HEAD}  # a network that is frozen has a trained head
NOTE = "±: half of the 95 % bootstrap interval over seeds. The head is trained in every row."


class VisionComparison:
    """The table on image classification; a `metalora_papers.comparison.Comparison`.

    Args:
        name: "tenslora-vision".
        table: The settings.
    """

    def __init__(self, name: str, table: ImageTableConfig):
        self.name, self.table = name, table

    @property
    def title(self) -> str:
        """The data and the network."""
        return f"TensLoRA on {self.table.data}, {self.table.model}"

    @property
    def file_stem(self) -> str:
        """The name."""
        return self.name

    # ---- runs --------------------------------------------------------------------------------------------------------
    def runs(self, rates: Mapping[RateKey, float]) -> list[ImageRunConfig]:
        """Return every run, seeds outermost; `rates` is by row."""
        rows = rows_of_table(self.table)
        return [
            _run(self.table, name, trained, seed, rates.get((name,), self.table.lr))
            for seed in self.table.seeds
            for name, trained in rows.items()
        ]

    def choosing_runs(self) -> list[ImageRunConfig]:
        """Return the runs on the validation split from which the rate of every row is chosen."""
        rows = rows_of_table(self.table)
        return [
            _run(self.table, name, trained, CHOOSING_SEED, lr, "val")
            for lr in self.table.lr_grid
            for name, trained in rows.items()
        ]

    # ---- rows --------------------------------------------------------------------------------------------------------
    def chosen_rates(self, rows: Sequence[Row]) -> dict[RateKey, float]:
        """Return, by row, the learning rate of the best accuracy on the validation split."""
        return best_rates(rows, _rate_key, lambda row: float(row["results"]["accuracy"]), _learning_rate)

    def rows_of(self, rows: Sequence[Row]) -> list[Row]:
        """Return the test rows of these data, this network and these methods; ValueError if there is none."""
        table, names = self.table, set(rows_of_table(self.table))
        own_rows = [
            row
            for row in latest(rows)
            if row["suite"] == "images"
            and (row["config"]["data"], row["config"]["model"]) == (table.data, table.model)
            and row["config"]["method"] in names
        ]
        test_rows = at_chosen_rates(own_rows, self.chosen_rates(own_rows), _rate_key, _learning_rate)
        if not test_rows:
            raise ValueError(f"table {self.name}: no row of {table.model} on {table.data}")
        return test_rows

    # ---- reports -----------------------------------------------------------------------------------------------------
    def report(self, rows: Sequence[Row]) -> Report:
        """Return the scores, their margins, and each row against LoRA by seed."""
        timed = [{**row, "results": {**row["results"], "seconds": round(row["time"]["seconds"])}} for row in rows]
        report = Report(
            [summary_table(timed, {**SCORES, **FURTHER}, title=f"{self.title}: %", percent=True, note=NOTE)]
        )
        names = list(dict.fromkeys(row["config"]["method"] for row in rows))
        others = [name for name in names if name != LORA]
        if len({row["seed"] for row in rows}) < 2:
            return report
        report.tables.append(margin_table(rows, SCORES, title=f"{self.title}: margin of error, %"))
        if LORA in names and others:
            for metric in SCORES:
                report.comparisons += compare_methods(
                    rows, metric=metric, treatment_methods=others, baseline_methods=(LORA,), size=None
                )
            report.tables.append(comparison_table(report.comparisons, title=f"{self.title}: against {LORA}"))
        return report

    def plot(self, rows: Sequence[Row], folder: Path) -> list[Path]:
        """Draw the accuracies as bars."""
        path = folder / f"{self.file_stem}.png"
        plot_bars(rows, {"accuracy": "accuracy"}, path, title=self.title)
        return [path]


def rows_of_table(table: ImageTableConfig) -> dict[str, Trained]:
    """Return what every row trains, by its name: those that the settings ask for, or all.

    Raises:
        ValueError: A name that does not exist.
    """
    known = (HEAD, FULL, LORA, *CONSTRUCTIONS)
    chosen = tuple(NAMES.get(name, name) for name in table.methods)
    for name in chosen:
        if not (name in known or is_construction(name) or is_row(name)):
            raise ValueError(f"table tenslora-vision: unknown row {name!r}{nearest(name, {*known, *METHODS, *NAMES})}")
    return dict(_trained_rows(table, chosen or known))


@cache
def _trained_rows(table: ImageTableConfig, names: tuple[str, ...]) -> dict[str, Trained]:
    """Return what the rows train; the network is built for the constructions, whose ranks it decides."""
    lora = adapter_for(table, LORA)
    adapters: dict[str, AdapterConfig] = {}
    if constructions := [name for name in names if is_construction(name)]:
        by_spectra = any(name.endswith(BY_SPECTRA) for name in constructions)  # of the weights
        model = (
            load_image_backbone(table.model, table.size).model
            if by_spectra
            else image_model_without_weights(table.model)
        )
        adapters = {name: protocol_row(model, lora, name) for name in constructions}
    return {name: Trained(adapters[name]) if name in adapters else trained_by(table, name) for name in names}


def _rate_key(row: Row) -> RateKey:
    return (row["config"]["method"],)


def _learning_rate(row: Row) -> float:
    return rate_of_table(row["config"])


def _run(
    table: ImageTableConfig,
    name: str,
    trained: Trained,
    seed: int,
    lr: float,
    split: Literal["val", "test"] = "test",
) -> ImageRunConfig:
    return ImageRunConfig(
        data=table.data,
        data_root=table.data_root,
        model=table.model,
        size=table.size,
        augment=table.augment,
        method=name,
        adapter=None if trained.adapter is None else dataclasses.replace(trained.adapter, seed=seed),
        full=trained.full,
        train=TrainConfig(
            steps=table.steps,
            lr=lr * trained.lr_ratio,
            schedule="cosine",
            warmup=table.warmup,
            weight_decay=trained.weight_decay or table.weight_decay,
            mixed_precision=table.mixed_precision,
            rank_budget=trained.rank_budget,
        ),
        batch=table.batch,
        examples=table.examples,
        test_examples=table.test_examples,
        seed=seed,
        split=split,
    )
