"""A chart of many points or lines in a few groups, over numbers, their logarithms, or names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from metalora._util.report_page.frame import Frame, Tick, axes, framed, legend, log_ticks
from metalora._util.report_page.markup import Html, joined, text

Point = tuple[float, float]


@dataclass(frozen=True)
class Mark:
    """A point, or a line with a point at its end.

    Attributes:
        points: One place (x, y), or several by rising x.
        tip: What a pointer on it shows.
    """

    points: Sequence[Point]
    tip: str


@dataclass(frozen=True)
class Group:
    """Marks that look alike and have one line in the legend.

    Attributes:
        name: Its name.
        kind: Its classes in the style of the page.
        marks: The marks.
    """

    name: str
    kind: str
    marks: Sequence[Mark]


def grouped_chart(
    name: str,
    groups: Sequence[Group],
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    names: Sequence[str] | None = None,
) -> Html:
    """Return groups of points or lines over a common axis; later groups are drawn over earlier ones.

    Args:
        name: What the chart shows, for those who do not see it.
        groups: The groups; those without a mark are left out.
        x_label: What the horizontal axis is.
        y_label: What the vertical axis is.
        log_x: Whether the horizontal axis has logarithms; all x are more than 0 then.
        names: What stands at x = 0, 1, ... instead of numbers.
    """
    groups = [group for group in groups if group.marks]
    xs = [x for group in groups for mark in group.marks for x, _ in mark.points]
    ys = [y for group in groups for mark in group.marks for _, y in mark.points]
    if not xs:
        return Html("")
    place = math.log10 if log_x else float
    frame = _frame([place(x) for x in xs] if names is None else [-0.5, len(names) - 0.5], ys)
    written = _ticks(min(xs), max(xs), log_x, names)
    marks = joined(_mark(frame, group, _moved(mark, log_x)) for group in groups for mark in group.marks)
    chart = framed(name, frame, Html(f"{axes(frame, x_label, y_label, written)}{marks}"))
    swatches = [f'<circle class="{group.kind}" cx="9" cy="6" r="4"/>' for group in groups]
    return Html(f"<div>{chart}{legend([group.name for group in groups], swatches)}</div>")


def _frame(xs: Sequence[float], ys: Sequence[float]) -> Frame:
    x_margin = 0.04 * (max(xs) - min(xs)) or 0.5
    y_margin = 0.05 * (max(ys) - min(ys)) or 0.05
    return Frame(min(xs) - x_margin, max(xs) + x_margin, min(ys) - y_margin, max(ys) + y_margin)


def _ticks(low: float, high: float, log_x: bool, names: Sequence[str] | None) -> list[Tick] | None:
    if names is not None:
        return [(float(number), name) for number, name in enumerate(names)]
    if log_x:
        return [(math.log10(value), f"{value:,g}") for value in log_ticks(low, high)]
    return None


def _moved(mark: Mark, log_x: bool) -> Mark:
    return Mark([(math.log10(x), y) for x, y in mark.points], mark.tip) if log_x else mark


def _mark(frame: Frame, group: Group, mark: Mark) -> Html:
    places = [(frame.x(x), frame.y(y)) for x, y in mark.points]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    line = f'<path class="{group.kind} line" d="M{path}"/>' if len(places) > 1 else ""
    end_x, end_y = places[-1]
    return Html(
        f'{line}<circle class="{group.kind}" cx="{end_x:.1f}" cy="{end_y:.1f}" r="4">'
        f"<title>{text(mark.tip)}</title></circle>"
    )
