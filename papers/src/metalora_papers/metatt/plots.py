"""MetaTT's figures, drawn from rows alone: curves over training, curves over a setting, heat maps of gradients."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean, variance
from typing import Any

import numpy as np

from metalora._util.files import write_figure
from metalora.bench.palette import PALETTE
from metalora.config import RankScheduleConfig, from_dict
from metalora.ranks.schedule import ranks_by_step
from metalora_papers.config import TextTableConfig
from metalora_papers.metatt.scores import METRICS, judged, metrics_of
from metalora_papers.rows import Row

Curves = dict[str, dict[str, dict[float, list[float]]]]  # task -> method -> abscissa -> score of every seed
Sweeps = dict[str, dict[int, int]]  # method -> step of a sweep -> rank after it
OVER_A_SETTING = {"metatt-fig7": ("lr", "learning rate"), "metatt-fig9": ("rank", "rank")}
STYLES = ("-", "--", ":")  # for more methods than the palette has colours
PANEL_WIDTH, PANEL_HEIGHT = 4.2, 3.4  # inches
ARROW = 26  # points, from its text to the curve
LETTER, HANDLE, LEGEND_LINE = (
    0.08,
    0.8,
    0.22,
)  # inches of a legend: a letter, a line with its gaps, the height of a line


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
    """Draw scores over steps: the mean over seeds and its standard error, a panel for each task (Figs. 2, 4, 6)."""
    curves: Curves = {task: {} for task in table.tasks}
    sweeps: Sweeps = {}
    for row in rows:
        method = row["config"]["method"]
        for point in row["results"].get("history", ()):
            for task, score in judged(point, row["config"]["tasks"]).items():
                curve = curves[task].setdefault(method, {})
                curve.setdefault(point["step"], []).append(score)
        if row["config"]["train"]["rank_schedule"]:
            schedule = from_dict(RankScheduleConfig, row["config"]["train"]["rank_schedule"])
            sweeps[method] = ranks_by_step(schedule, row["config"]["adapter"]["rank"])
    return _panels(curves, path, "optimiser steps", sweeps=sweeps)


def mean_over_steps(rows: Sequence[Row], changes: Mapping[str, Collection[int]], path: Path) -> Path:
    """Draw the mean over the tasks over the steps, with stars where ranks change (Fig. 13).

    Args:
        rows: Rows with records of the training; the scores after the last step are the end of each curve.
        changes: Method -> optimiser steps at which its ranks change.
        path: The PNG file.

    Returns:
        The path.
    """
    by_method: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        config, results = row["config"], row["results"]
        scores = {point["step"]: point["mean"] for point in results.get("history", ())}
        scores[config["train"]["steps"]] = results["mean"]
        for step, score in scores.items():
            by_method.setdefault(config["method"], {}).setdefault(step, []).append(score)
    title = f"mean of {len(rows[0]['config']['tasks'])} tasks; stars: ranks change"
    return _panels({title: by_method}, path, "optimiser steps", stars=changes)


def _over_setting(name: str, rows: Sequence[Row], table: TextTableConfig, path: Path) -> Path:
    """Draw the final score of "method, rank 8" over the number in the row's name, a line for each method."""
    setting, label = OVER_A_SETTING[name]
    curves: Curves = {task: {} for task in table.tasks}
    for row in rows:
        match = re.fullmatch(rf"(.+), {setting} (\S+)", row["config"]["method"])
        assert match is not None, "the jobs of these figures name the method and the setting"
        method, number = match.groups()
        for task, score in judged(row["results"], row["config"]["tasks"]).items():
            curve = curves[task].setdefault(method, {})
            curve.setdefault(float(number), []).append(score)
    return _panels(curves, path, label, log=True)


def _panels(
    curves: Curves,
    path: Path,
    label: str,
    *,
    log: bool = False,
    sweeps: Sweeps | None = None,
    stars: Mapping[str, Collection[int]] | None = None,
) -> Path:
    """Draw a panel for each task with a line for each method.

    Args:
        curves: The scores.
        path: The PNG file.
        label: Label of the abscissa.
        log: Make the abscissa logarithmic.
        sweeps: Sweeps of methods, which are drawn as arrows with the rank after them.
        stars: Steps of methods that are marked on their curves.

    Returns:
        The path.
    """
    # Figure, not pyplot: pyplot keeps every figure, and needs a display or a choice of backend.
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(method for by_method in curves.values() for method in by_method))
    width = PANEL_WIDTH * len(curves)
    legend_columns = min(len(names), max(1, int(width / (HANDLE + LETTER * max(map(len, names))))))
    height = PANEL_HEIGHT + LEGEND_LINE * math.ceil(len(names) / legend_columns)
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    lines: dict[str, Any] = {}  # a method has the same line in all panels, and one entry in the legend
    for axes, (task, by_method) in zip(panels, curves.items(), strict=True):
        for method, points in by_method.items():
            style, colour = divmod(names.index(method), len(PALETTE))
            look = {"color": PALETTE[colour], "linestyle": STYLES[style % len(STYLES)]}
            lines[method] = _draw_curve(axes, points, look, (sweeps or {}).get(method, {}))
            if stars and stars.get(method):
                _draw_stars(axes, points, look["color"], stars[method])
        axes.set(title=task, xlabel=label, ylabel=METRICS[metrics_of(task)[0]], xscale="log" if log else "linear")
        axes.grid(color="0.9")
    in_order = [lines[name] for name in names]
    figure.legend(in_order, names, loc="outside lower center", ncols=legend_columns, frameon=False)
    write_figure(figure, path, dpi=150)
    return path


def _draw_curve(axes: Any, points: dict[float, list[float]], look: dict[str, str], sweeps: dict[int, int]) -> Any:
    """Draw the means and standard errors of one method, with an arrow and the new rank at every sweep."""
    abscissae = sorted(points)
    means, errors = zip(*(_mean_and_error(points[x]) for x in abscissae), strict=True)
    line = axes.errorbar(abscissae, means, errors, marker="o", markersize=3, capsize=2, **look)
    for step, rank in sweeps.items():
        axes.annotate(
            f"r={rank}",
            xy=(step, float(np.interp(step, abscissae, means))),
            xytext=(0, ARROW),
            textcoords="offset points",
            arrowprops={"arrowstyle": "-|>", "color": look["color"], "linewidth": 2, "shrinkB": 1},
            bbox={"facecolor": "white", "edgecolor": look["color"], "pad": 1.5},
            horizontalalignment="center",
            fontsize="small",
            zorder=5,
        )
    if sweeps:
        axes.margins(y=0.15)  # room for the arrows
    return line


def _draw_stars(axes: Any, points: dict[float, list[float]], colour: str, steps: Collection[int]) -> None:
    """Mark steps on the curve of the means."""
    abscissae = sorted(points)
    heights = np.interp(list(steps), abscissae, [_mean_and_error(points[x])[0] for x in abscissae])
    axes.scatter(list(steps), heights, marker="*", s=110, color=colour, edgecolor="0.1", linewidth=0.6, zorder=5)


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error, which is 0 for a single value."""
    n = len(values)
    mean = fmean(values)
    spread = variance(values, mean) if n > 1 else 0.0
    return mean, (spread / n) ** 0.5


def _heat_map(row: dict[str, Any], path: Path) -> Path:
    """Draw |grad G|_F / sqrt(|G|) of every factor over training, with the scores above it (Figs. 3, 5)."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    tasks = row["config"]["tasks"]
    points = [point for point in row["results"]["history"] if point["gradients"]]
    steps = [point["step"] for point in points]
    factors = list(points[0]["gradients"])
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.2))
    for colour, task in zip(PALETTE, tasks, strict=False):
        scores = [judged(point, tasks)[task] for point in points]
        # Over the number of the point, not over its step: the columns of the picture below have that abscissa.
        above.plot(range(len(points)), scores, color=colour, label=f"{task}, {METRICS[metrics_of(task)[0]]}")
    above.set_ylabel("score")
    above.legend(ncols=4, frameon=False, fontsize="small")
    sizes = [[point["gradients"][factor] for point in points] for factor in factors]  # (factor, point)
    image = below.imshow(sizes, aspect="auto", norm=LogNorm(), cmap="viridis")
    below.set_yticks(range(len(factors)), [_labelled(factor, tasks) for factor in factors])
    below.set_xticks(range(len(points)), steps, rotation=90, fontsize="x-small")
    below.set_xlabel("optimiser steps")
    figure.colorbar(image, ax=below, label="root mean square of the gradient")
    write_figure(figure, path, dpi=150)
    return path


def _labelled(factor: str, tasks: Sequence[str]) -> str:
    """ "G3[1]" with the name of its task."""
    match = re.search(r"\[(\d+)\]$", factor)
    return f"{factor} {tasks[int(match[1])]}" if match else factor
