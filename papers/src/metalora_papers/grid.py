"""A search of hyper-parameters: every combination of the values of a grid, scored on the validation split."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

from metalora_papers.config import CausalRunConfig, GridConfig, TextRunConfig
from metalora_papers.runs import Run

GridRun = TextRunConfig | CausalRunConfig


def grid_runs(run: Run, grid: GridConfig) -> list[GridRun]:
    """Return the runs of a grid on the validation split; another batch takes as many examples, so other steps.

    Args:
        run: A run on text. What the grid leaves empty is as it is here.
        grid: The values.

    Raises:
        ValueError: A run on images, an empty grid, or ranks or alphas for a run without an adapter.

    Example:
        >>> runs = grid_runs(TextRunConfig(batch=16), GridConfig(lr=(1e-3, 5e-4), batch=(16, 32)))
        >>> [(run.train.lr, run.batch, run.train.steps) for run in runs]
        [(0.001, 16, 300), (0.001, 32, 150), (0.0005, 16, 300), (0.0005, 32, 150)]
    """
    if not isinstance(run, GridRun):
        raise ValueError(f"grid: takes a run on text (suite news, glue or commonsense), not of suite {run.suite}")
    if grid == GridConfig():
        raise ValueError("grid: give values of rank, alpha, lr or batch, as flags or in --config")
    if run.adapter is None and (grid.rank or grid.alpha):
        raise ValueError("grid: rank and alpha are of an adapter, and this run has none")
    axes = {name: values for name, values in vars(grid).items() if values}
    return [_at(run, dict(zip(axes, point, strict=True))) for point in itertools.product(*axes.values())]


def _at(run: GridRun, point: Mapping[str, Any]) -> GridRun:
    """Return the run with the values of a point."""
    adapter, batch = run.adapter, point.get("batch", run.batch)
    if adapter is not None:
        of_adapter = {name: point[name] for name in ("rank", "alpha") if name in point}
        adapter = dataclasses.replace(adapter, **of_adapter)
    steps = round(run.train.steps * run.batch / batch)
    train = dataclasses.replace(run.train, lr=point.get("lr", run.train.lr), steps=steps)
    return dataclasses.replace(run, adapter=adapter, batch=batch, train=train, split="val")


def settings_of(run: GridRun) -> dict[str, Any]:
    """Return what tells the runs of a grid apart, and their steps."""
    adapter = run.adapter
    return {
        "rank": adapter.rank if adapter else None,
        "alpha": adapter.alpha if adapter else None,
        "lr": run.train.lr,
        "batch": run.batch,
        "steps": run.train.steps,
    }
