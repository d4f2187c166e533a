"""MetaTT's figures, drawn from rows alone: curves over training, curves over a setting, heat maps of gradients."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metalora.bench.palette import PALETTE
from metalora_papers.config import TextTableConfig
from metalora_papers.rows import Row

Curves = dict[str, dict[str, dict[float, list[float]]]]  # task -> method -> abscissa -> accuracy of every seed
OVER_A_SETTING = {"metatt-fig7": ("lr", "learning rate"), "metatt-fig9": ("rank", "rank")}


def plot(name: str, rows: Sequence[Row], table: TextTableConfig, out: Path) -> list[Path]:
    """Draw what the rows of a comparison hold, and return the PNG files: none for a table without a figure."""
    paths = []
    if name in OVER_A_SETTING:
        paths.append(_over_setting(name, rows, table, out / f"{name}.png"))
    elif any(row["results"].get("history") for row in rows):
        paths.append(_over_steps(rows, table, out / f"{name}.png"))
    with_tasks = [row for row in rows if row["config"]["method"] == "metatt-4+1d" and row["results"].get("history")]
    if name == "metatt-3" and with_tasks:
        # Gradients of several seeds cannot be averaged in a picture: it shows one run.
        paths.append(_heat_map(with_tasks[0], out / "metatt-fig3.png"))
    return paths


def _over_steps(rows: Sequence[Row], table: TextTableConfig, path: Path) -> Path:
    """Draw accuracy over steps: the mean over seeds and its standard error, a panel for each task (Figs. 2, 4)."""
    curves: Curves = {task: {} for task in table.tasks}
    for row in rows:
        method = row["config"]["method"]
        for point in row["results"].get("history", ()):
            for task, accuracy in point["accuracy"].items():
                curve = curves[task].setdefault(method, {})
                curve.setdefault(point["step"], []).append(accuracy)
    return _panels(curves, path, "optimiser steps")


def _over_setting(name: str, rows: Sequence[Row], table: TextTableConfig, path: Path) -> Path:
    """Draw the final accuracy of "method, rank 8" over the number in the row's name, a line for each method."""
    setting, label = OVER_A_SETTING[name]
    curves: Curves = {task: {} for task in table.tasks}
    for row in rows:
        match = re.fullmatch(rf"(.+), {setting} (\S+)", row["config"]["method"])
        assert match is not None, "the jobs of these figures name the method and the setting"
        method, number = match.groups()
        for task, accuracy in row["results"]["accuracy"].items():
            curve = curves[task].setdefault(method, {})
            curve.setdefault(float(number), []).append(accuracy)
    return _panels(curves, path, label, log=True)


def _panels(curves: Curves, path: Path, label: str, log: bool = False) -> Path:
    """Draw a panel for each task with a line for each method.

    Args:
        curves: The accuracies.
        path: The PNG file.
        label: Label of the abscissa.
        log: Make the abscissa logarithmic.

    Returns:
        The path.
    """
    # Figure, not pyplot: pyplot keeps every figure, and needs a display or a choice of backend.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(curves), 3.6), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (task, by_method) in zip(panels, curves.items(), strict=True):
        for colour, (method, points) in zip(PALETTE, by_method.items(), strict=False):
            abscissae = sorted(points)
            means, errors = zip(*(_mean_and_error(points[x]) for x in abscissae), strict=True)
            axes.errorbar(abscissae, means, errors, color=colour, label=method, marker="o", markersize=3, capsize=2)
        axes.set(title=task, xlabel=label, ylabel="accuracy", xscale="log" if log else "linear")
        axes.grid(color="0.9")
    # All panels have the same methods in the same order: one legend serves all.
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
    figure.savefig(path, dpi=150)
    return path


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error, which is 0 for a single value."""
    n = len(values)
    mean = sum(values) / n
    variance = sum((value - mean) ** 2 for value in values) / max(1, n - 1)
    return mean, (variance / n) ** 0.5


def _heat_map(row: dict[str, Any], path: Path) -> Path:
    """Draw |grad G|_F / sqrt(|G|) of every factor over training, with the accuracies above it (Figs. 3, 5)."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    tasks = row["config"]["tasks"]
    points = [point for point in row["results"]["history"] if point["gradients"]]
    steps = [point["step"] for point in points]
    factors = list(points[0]["gradients"])
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.2))
    for colour, task in zip(PALETTE, tasks, strict=False):
        accuracies = [point["accuracy"][task] for point in points]
        # Over the number of the point, not over its step: the columns of the picture below have that abscissa.
        above.plot(range(len(points)), accuracies, color=colour, label=task)
    above.set_ylabel("accuracy")
    above.legend(ncols=4, frameon=False, fontsize="small")
    sizes = [[point["gradients"][factor] for point in points] for factor in factors]  # (factor, point)
    image = below.imshow(sizes, aspect="auto", norm=LogNorm(), cmap="viridis")
    below.set_yticks(range(len(factors)), [_labelled(factor, tasks) for factor in factors])
    below.set_xticks(range(len(points)), steps, rotation=90, fontsize="x-small")
    below.set_xlabel("optimiser steps")
    figure.colorbar(image, ax=below, label="root mean square of the gradient")
    figure.savefig(path, dpi=150)
    return path


def _labelled(factor: str, tasks: Sequence[str]) -> str:
    """ "G3[1]" with the name of its task."""
    match = re.search(r"\[(\d+)\]$", factor)
    return f"{factor} {tasks[int(match[1])]}" if match else factor
