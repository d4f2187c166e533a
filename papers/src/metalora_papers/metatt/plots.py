"""MetaTT's figures, drawn from rows alone: curves over training, curves over a setting, heat maps of gradients."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metalora.bench.palette import PALETTE
from metalora_papers.config import TextTableConfig
from metalora_papers.rows import Row

OVER_A_SETTING = {"metatt-fig7": ("lr", "learning rate"), "metatt-fig9": ("rank", "rank")}


def plot(name: str, rows: Sequence[Row], table: TextTableConfig, out: Path) -> list[Path]:
    """Draw what the rows of a comparison hold, and return the PNG files: none for a table without a figure."""
    made = []
    if name in OVER_A_SETTING:
        made.append(_over_setting(name, rows, table, out / f"{name}.png"))
    elif any(row["results"].get("history") for row in rows):
        made.append(_over_steps(rows, table, out / f"{name}.png"))
    heated = [row for row in rows if row["config"]["method"] == "metatt-4+1d" and row["results"].get("history")]
    if name == "metatt-3" and heated:
        made.append(_heat_map(heated[0], out / "metatt-fig3.png"))
    return made


def _over_steps(rows: Sequence[Row], table: TextTableConfig, path: Path) -> Path:
    """Accuracy after so many steps, the mean over seeds and its standard error, a panel for each task (Figs. 2, 4)."""
    curves: dict[str, dict[str, dict[float, list[float]]]] = {task: {} for task in table.tasks}
    for row in rows:
        for point in row["results"].get("history", ()):
            for task, value in point["accuracy"].items():
                curve = curves[task].setdefault(row["config"]["method"], {})
                curve.setdefault(point["step"], []).append(value)
    return _panels(curves, path, "optimiser steps")


def _over_setting(name: str, rows: Sequence[Row], table: TextTableConfig, path: Path) -> Path:
    """Final accuracy of "method, rank 8" over the number in the row's name, a line for each method."""
    word, label = OVER_A_SETTING[name]
    curves: dict[str, dict[str, dict[float, list[float]]]] = {task: {} for task in table.tasks}
    for row in rows:
        named = re.fullmatch(rf"(.+), {word} (\S+)", row["config"]["method"])
        assert named is not None, "the jobs of these figures name the method and the setting"
        method, number = named.groups()
        for task, value in row["results"]["accuracy"].items():
            curves[task].setdefault(method, {}).setdefault(float(number), []).append(value)
    return _panels(curves, path, label, log=True)


def _panels(
    curves: Mapping[str, Mapping[str, Mapping[float, list[float]]]], path: Path, label: str, log: bool = False
) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(curves), 3.6), layout="constrained")
    for axes, (task, by_method) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        for colour, (method, points) in zip(PALETTE, by_method.items(), strict=False):
            places = sorted(points)
            means, errors = zip(*(_mean_and_error(points[x]) for x in places), strict=True)
            axes.errorbar(places, means, errors, color=colour, label=method, marker="o", markersize=3, capsize=2)
        axes.set(title=task, xlabel=label, ylabel="accuracy", xscale="log" if log else "linear")
        axes.grid(color="0.9")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
    figure.savefig(path, dpi=150)
    return path


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    n, mean = len(values), sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / max(1, n - 1)
    return mean, (variance / n) ** 0.5


def _heat_map(row: dict[str, Any], path: Path) -> Path:
    """|grad G|_F / sqrt(|G|) of every factor over training, and the accuracies above it (Figs. 3, 5)."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    points = [point for point in row["results"]["history"] if point["gradients"]]
    steps, names = [point["step"] for point in points], list(points[0]["gradients"])
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.2))
    for colour, task in zip(PALETTE, row["config"]["tasks"], strict=False):
        above.plot(range(len(steps)), [point["accuracy"][task] for point in points], color=colour, label=task)
    above.set_ylabel("accuracy")
    above.legend(ncols=4, frameon=False, fontsize="small")
    sizes = [[point["gradients"][name] for point in points] for name in names]
    image = below.imshow(sizes, aspect="auto", norm=LogNorm(), cmap="viridis")
    below.set_yticks(range(len(names)), [_labelled(name, row["config"]["tasks"]) for name in names])
    below.set_xticks(range(len(steps)), steps, rotation=90, fontsize="x-small")
    below.set_xlabel("optimiser steps")
    figure.colorbar(image, ax=below, label="root mean square of the gradient")
    figure.savefig(path, dpi=150)
    return path


def _labelled(name: str, tasks: Sequence[str]) -> str:
    """ "G3[1]" with the name of its task."""
    found = re.search(r"\[(\d+)\]$", name)
    return f"{name} {tasks[int(found[1])]}" if found else name
