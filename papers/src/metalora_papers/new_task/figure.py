"""The figure of the time to a new task: accuracy over seconds, a panel for each kind of inputs, the front marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metalora._util.files import write_figure
from metalora.bench.palette import PALETTE
from metalora_papers.new_task.config import TITLES
from metalora_papers.new_task.line_up import OURS
from metalora_papers.new_task.summary import MethodSummary

OUR_COLOUR, OTHER_COLOUR, FRONT_COLOUR = PALETTE[0], PALETTE[5], "#999999"
WIDTH, HEIGHT = 5.0, 4.2  # inches of a panel
LETTER = 0.022  # height of a label, as a share of the height of the panel


def plot_front(summaries: Mapping[str, Sequence[MethodSummary]], path: Path) -> None:
    """Draw the figure as a PNG file.

    Args:
        summaries: Kind of inputs -> its methods.
        path: The file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH * len(summaries), HEIGHT), layout="constrained")
    panels = figure.subplots(1, len(summaries), squeeze=False)[0]
    for panel, (suite, methods) in zip(panels, summaries.items(), strict=True):
        _draw(panel, methods)
        panel.set_title(TITLES[suite], fontsize=10)
    panels[0].set_ylabel("accuracy on new tasks, %")
    figure.text(0.01, 0.005, "blue: metalora; orange: other methods; grey line: the front", fontsize=8)
    write_figure(figure, path, dpi=110)


def front(methods: Sequence[MethodSummary]) -> list[MethodSummary]:
    """Return the methods that no other one beats: none is both faster and at least as accurate.

    Args:
        methods: The methods.

    Returns:
        Those of the front, the fastest first.
    """
    chosen: list[MethodSummary] = []
    for method in sorted(methods, key=lambda method: (method.seconds, -method.accuracy)):
        if not chosen or method.accuracy > chosen[-1].accuracy:
            chosen.append(method)
    return chosen


def _draw(panel: Any, methods: Sequence[MethodSummary]) -> None:
    for method in methods:
        colour = OUR_COLOUR if method.name in OURS else OTHER_COLOUR
        middle, low, high = 100 * method.accuracy, 100 * method.low, 100 * method.high
        panel.errorbar(
            method.seconds, middle, yerr=[[middle - low], [high - middle]], fmt="o", color=colour, capsize=2, lw=1
        )
    best = front(methods)
    panel.step(
        [method.seconds for method in best],
        [100 * method.accuracy for method in best],
        where="post",
        color=FRONT_COLOUR,
        zorder=0,
    )
    panel.set(xscale="log", xlabel="seconds until a new task predicts")
    panel.margins(x=0.28, y=0.08)
    panel.grid(alpha=0.25)
    _label(panel, methods)


def _label(panel: Any, methods: Sequence[MethodSummary]) -> None:
    """Write the names beside the points; a label that would cover the one below it is moved up."""
    low, high = panel.get_ylim()
    step = 2 * LETTER * (high - low)
    lowest = -float("inf")
    middle = sorted(method.seconds for method in methods)[len(methods) // 2]
    for method in sorted(methods, key=lambda method: method.accuracy):
        height = max(100 * method.accuracy, lowest + step)
        lowest = height
        is_left = method.seconds <= middle
        panel.annotate(
            method.name,
            (method.seconds, 100 * method.accuracy),
            xytext=(method.seconds * (0.82 if is_left else 1.22), height),
            ha="right" if is_left else "left",
            va="center",
            fontsize=7,
        )
