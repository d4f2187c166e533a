"""The figure of the time to a new task: accuracy over seconds, a panel for each kind of inputs, the front marked.

Methods of this library are blue, others orange. A grey line and rings mark the front.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metalora._util.files import write_figure
from metalora.bench.palette import PALETTE
from metalora_papers.new_task.config import TITLES
from metalora_papers.new_task.line_up import METHODS, OURS
from metalora_papers.new_task.summary import MethodSummary

OUR_COLOUR, OTHER_COLOUR, FRONT_COLOUR = PALETTE[0], PALETTE[5], "#999999"
MARKERS = dict(zip(METHODS, "vsDo^*PX<p>d", strict=True))
WIDTH, HEIGHT = 4.4, 3.8  # inches of a panel
LEGEND_WIDTH = 2.2


def plot_front(summaries: Mapping[str, Sequence[MethodSummary]], path: Path) -> None:
    """Draw the figure as a PNG file.

    Args:
        summaries: Kind of inputs -> its methods.
        path: The file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH * len(summaries) + LEGEND_WIDTH, HEIGHT), layout="constrained")
    panels = figure.subplots(1, len(summaries), squeeze=False)[0]
    shown: dict[str, Any] = {}
    for panel, (suite, methods) in zip(panels, summaries.items(), strict=True):
        shown |= _draw(panel, methods)
        panel.set_title(TITLES[suite], fontsize=10)
    panels[0].set_ylabel("accuracy on new tasks, %")
    names = [name for name in MARKERS if name in shown]
    figure.legend([shown[name] for name in names], names, loc="outside right center", fontsize=8, frameon=False)
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


def _draw(panel: Any, methods: Sequence[MethodSummary]) -> dict[str, Any]:
    """Draw a point with its interval for each method, and the front; return what stands for each in the legend."""
    points = {}
    for method in methods:
        middle, low, high = 100 * method.accuracy, 100 * method.low, 100 * method.high
        points[method.name] = panel.errorbar(
            method.seconds,
            middle,
            yerr=[[middle - low], [high - middle]],
            fmt=MARKERS[method.name],
            color=OUR_COLOUR if method.name in OURS else OTHER_COLOUR,
            markersize=7,
            elinewidth=0.8,
            capsize=2,
        )
    best = front(methods)
    seconds, accuracies = [method.seconds for method in best], [100 * method.accuracy for method in best]
    panel.step(seconds, accuracies, where="post", color=FRONT_COLOUR, linewidth=1, zorder=0)
    panel.plot(seconds, accuracies, "o", markersize=14, markerfacecolor="none", color=FRONT_COLOUR, zorder=0)
    panel.set(xscale="log", xlabel="seconds until a new task predicts")
    panel.margins(x=0.08)
    panel.grid(alpha=0.25)
    return points
