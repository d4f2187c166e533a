"""MetaLoRA on a language model: texts that go on in the style of their prompts, in nats per token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from metalora._util.suggest import check_choice
from metalora.config import AdapterConfig, ConditionConfig, TrainConfig
from metalora_papers.comparison import RateKey
from metalora_papers.metalora.continuation_config import ContinuationRunConfig, ContinuationTableConfig
from metalora_papers.rates import at_chosen_rates, best_rates
from metalora_papers.report import Report, compare_methods, comparison_table, plot_bars, summary_table
from metalora_papers.rows import Row, latest, result

FROZEN, BASELINE, GENERATED = "frozen", "lora", ("metalora-cp", "metalora-tr")
METHODS = (FROZEN, BASELINE, *GENERATED)
CHOOSING_SEED = 1000  # learning rates are chosen with a seed of their own
STYLES = {"nats.seen": "styles of training", "nats.unseen": "new styles", "nats.plain": "plain text"}
OTHER = {"nats_with_another_prompt": "with another prompt's core", "num_params": "parameters"}


class ContinuationComparison:
    """The table of suite "continuation"; a `metalora_papers.comparison.Comparison`.

    Args:
        name: "metalora-continuation".
        table: The settings.

    Raises:
        ValueError: An unknown method.
    """

    def __init__(self, name: str, table: ContinuationTableConfig):
        for method in table.methods:
            check_choice("row", method, METHODS)
        self.name, self.table = name, table

    @property
    def title(self) -> str:
        """What is measured."""
        return "continuations in the style of the prompt, nats per token"

    @property
    def file_stem(self) -> str:
        """The name of the table."""
        return self.name

    def runs(self, rates: Mapping[RateKey, float]) -> list[ContinuationRunConfig]:
        """Return every run, seeds outermost."""
        names = self.table.methods or METHODS
        return [
            self._run(name, seed, rates.get((name,), self.table.lr), "test")
            for seed in self.table.seeds
            for name in names
        ]

    def choosing_runs(self) -> list[ContinuationRunConfig]:
        """Return the runs on the validation split from which the learning rate of each method is chosen."""
        names = [name for name in self.table.methods or METHODS if name != FROZEN]
        return [self._run(name, CHOOSING_SEED, lr, "val") for lr in self.table.lr_grid for name in names]

    def _run(self, name: str, seed: int, lr: float, split: Literal["val", "test"]) -> ContinuationRunConfig:
        table = self.table
        adapter = None
        if name != FROZEN:
            rank = {BASELINE: table.rank, "metalora-tr": table.ring_rank}.get(name, table.cp_rank)
            scope: Literal["sample", "constant"] = "constant" if name == BASELINE else "sample"
            condition = ConditionConfig(scope=scope, hidden=table.hidden)
            adapter = AdapterConfig(name, rank, targets=table.targets, condition=condition, seed=seed)
        return ContinuationRunConfig(
            model=table.model,
            decoder=table.decoder,
            method=name,
            adapter=adapter,
            train=TrainConfig(steps=table.steps, lr=lr, schedule="onecycle"),
            seed=seed,
            split=split,
        )

    # ---- rows --------------------------------------------------------------------------------------------------------
    def chosen_rates(self, rows: Sequence[Row]) -> dict[RateKey, float]:
        """Return the learning rate of each method with the fewest nats in styles of training, on validation."""
        return best_rates(rows, _rate_key, lambda row: -float(result(row, "nats.seen")), _learning_rate)

    def rows_of(self, rows: Sequence[Row]) -> list[Row]:
        """Return the test rows of this suite and model; ValueError if there is none."""
        own_rows = [row for row in latest(rows) if self._is_own(row)]
        test_rows = at_chosen_rates(own_rows, self.chosen_rates(own_rows), _rate_key, _learning_rate)
        if not test_rows:
            raise ValueError(f"no test row of suite 'continuation', model {self.table.model!r}")
        return test_rows

    def _is_own(self, row: Row) -> bool:
        config = row["config"]
        chosen = self.table.methods or METHODS
        return row["suite"] == "continuation" and config["model"] == self.table.model and config["method"] in chosen

    # ---- reports -----------------------------------------------------------------------------------------------------
    def report(self, rows: Sequence[Row]) -> Report:
        """Return the table, and the paired comparisons with LoRA if there are two seeds or more."""
        columns = STYLES | {name: label for name, label in OTHER.items() if any(_has(row, name) for row in rows)}
        report = Report([summary_table(rows, columns, title=self.title)])
        methods = {row["config"]["method"] for row in rows}
        generated = [name for name in GENERATED if name in methods]
        if BASELINE in methods and generated and len({row["seed"] for row in rows}) > 1:
            for metric in list(STYLES)[:2]:
                report.comparisons += compare_methods(
                    rows,
                    metric=metric,
                    treatment_methods=generated,
                    baseline_methods=(BASELINE,),
                    higher_is_better=False,
                )
            report.tables.append(comparison_table(report.comparisons, title="against a LoRA of no fewer parameters"))
        return report

    def plot(self, rows: Sequence[Row], folder: Path) -> list[Path]:
        """Draw the nats of every method in each group of styles."""
        path = folder / f"{self.file_stem}.png"
        plot_bars(rows, STYLES, path, title="nats per token")
        return [path]


def _has(row: Row, metric: str) -> bool:
    return result(row, metric) is not None


def _rate_key(row: Row) -> RateKey:
    return (row["config"]["method"],)


def _learning_rate(row: Row) -> float:
    return float(row["config"]["train"]["lr"])
