"""Fig. 13 and Table 18 of MetaTT (arXiv:2506.09105), from rows of runs on language models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metalora.config import RankBudgetConfig, RankScheduleConfig, from_dict
from metalora.ranks.schedule import ranks_by_step
from metalora_papers.metatt import plots
from metalora_papers.report import Report, summary_table
from metalora_papers.rows import Row, latest

NAME, SUITE = "metatt-fig13", "commonsense"
COLUMNS = {"mean": "mean accuracy", "num_params": "parameters", "seconds": "seconds a run"}
NOTE = "Scores after the last step. ±: half of the 95 % bootstrap interval over seeds."
SAME = ("model", "tasks", "examples", "train.steps")
"""What all runs of the figure share."""


class Figure13:
    """The figure; a `metalora_papers.comparison.Presentation`. Its runs are those of the recipes figure13-..."""

    file_stem = NAME

    def rows_of(self, rows: Sequence[Row]) -> list[Row]:
        """Return the test rows on language models, with names that say the ranks, and seconds among the results.

        Args:
            rows: All rows of a file.

        Raises:
            ValueError: There is no such row, or they are of several models, tasks, training sets or lengths.
        """
        chosen = [row for row in latest(rows) if row["suite"] == SUITE and row["config"]["split"] == "test"]
        if not chosen:
            raise ValueError(f"table {NAME}: no test row of suite {SUITE}; `train` writes one into rows.jsonl")
        for field in SAME:
            values = list(dict.fromkeys(str(_value(row["config"], field)) for row in chosen))
            if len(values) > 1:
                raise ValueError(f"table {NAME}: the rows are of several {field}: {'; '.join(values)}; expected one")
        return [_named(row) for row in chosen]

    def report(self, rows: Sequence[Row]) -> Report:
        """Return the table of the last mean accuracies, the parameters and the seconds of a run (Table 18)."""
        config = rows[0]["config"]
        title = f"{len(config['tasks'])} tasks (Fig. 13, Table 18), {config['model']}: %"
        return Report([summary_table(rows, COLUMNS, title=title, percent=True, note=NOTE)])

    def plot(self, rows: Sequence[Row], folder: Path) -> list[Path]:
        """Draw the mean accuracy over the steps if the runs were scored along the way."""
        if not any(row["results"].get("history") for row in rows):
            return []
        changes = {row["config"]["method"]: rank_changes(row["config"]) for row in rows}
        return [plots.mean_over_steps(rows, changes, folder / f"{NAME}.png")]


def rank_changes(config: dict[str, Any]) -> dict[int, int | None]:
    """Return the optimiser steps at which ranks change, with the rank of a whole train; AdaLoRA's differ by matrix.

    Args:
        config: The configuration of a run.

    Example:
        >>> train = {"rank_schedule": {"steps": [10, 20], "final": 2}, "rank_budget": None, "steps": 30}
        >>> rank_changes({"adapter": {"rank": 8}, "train": train})
        {10: 6, 20: 2}
    """
    train = config["train"]
    if train["rank_schedule"]:
        schedule = from_dict(RankScheduleConfig, train["rank_schedule"])
        return dict(ranks_by_step(schedule, config["adapter"]["rank"]))
    if train["rank_budget"]:
        rule = from_dict(RankBudgetConfig, train["rank_budget"])
        end = train["steps"] - rule.hold  # the last choice is made here, whatever `every` is
        between = [step for step in range(rule.start + 1, end) if step % rule.every == 0]
        return dict.fromkeys([*between, end])
    return {}


def _named(row: Row) -> Row:
    """Return the row with the ranks in the name of its method: runs of one method differ by them."""
    config = row["config"]
    results = {**row["results"], "seconds": row["time"]["seconds"]}
    return {**row, "config": {**config, "method": _name(config)}, "results": results}


def _name(config: dict[str, Any]) -> str:
    if config["adapter"] is None:
        return str(config["method"])
    first, budget = config["adapter"]["rank"], config["train"]["rank_budget"]
    last = budget["final"] if budget else [first, *rank_changes(config).values()][-1]
    return f"{config['method']}, rank {first}" + (f" to {last}" if last != first else "")


def _value(config: dict[str, Any], field: str) -> Any:
    value: Any = config
    for part in field.split("."):
        value = value[part]
    return value
