"""Charts of a page as SVG: lines over steps, a reliability diagram, and the mark of an interval in a cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from metalora._util.report_page.frame import Frame, axes, framed, legend
from metalora._util.report_page.markup import Html, joined, text
from metalora._util.report_page.style import SERIES

MARK_WIDTH, MARK_HEIGHT = 84, 10  # of the mark of an interval
NOW, BEFORE = "series-0 solid", "series-1 hollow"  # classes of the points of a reliability diagram
COUNT_HEIGHT = 46  # of the bars that count the predictions


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        name: Its name in the legend.
        points: Its points, (x, y), by rising x.
    """

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Band:
    """The predictions whose probability is in a range.

    Attributes:
        low: Lower end of the range.
        high: Upper end.
        count: Number of predictions.
        probability: Their mean probability.
        right: The share of them that is right.
    """

    low: float
    high: float
    count: int
    probability: float
    right: float


def interval_mark(mean: float, low: float, high: float, scale: tuple[float, float]) -> Html:
    """Return a small drawing of a number and its interval, with a line at 0 if it is in between.

    Args:
        mean: The number.
        low: Lower bound; NaN if there is none.
        high: Upper bound.
        scale: What the left and the right end of the drawing stand for.
    """
    least, highest = scale
    if not math.isfinite(mean) or highest <= least:
        return Html("")

    def place(value: float) -> float:
        return 5 + (MARK_WIDTH - 10) * (value - least) / (highest - least)

    middle = MARK_HEIGHT / 2
    zero = f'<path class="zero" d="M{place(0):.1f} 0V{MARK_HEIGHT}"/>' if least < 0 < highest else ""
    drawn = f'<path class="range" d="M{place(low):.1f} {middle}H{place(high):.1f}"/>' if low < high else ""
    return Html(
        f'<svg class="mark" width="{MARK_WIDTH}" height="{MARK_HEIGHT}" aria-hidden="true">'
        f'<path class="track" d="M0 {middle}H{MARK_WIDTH}"/>{zero}{drawn}'
        f'<circle cx="{place(mean):.1f}" cy="{middle}" r="3"/></svg>'
    )


def line_chart(name: str, series: Sequence[Series], x_label: str, y_label: str) -> Html:
    """Return lines over a common axis, with a legend if there are several.

    Args:
        name: What the chart shows, for those who do not see it.
        series: The lines; those without a point are left out.
        x_label: What the horizontal axis is.
        y_label: What the vertical axis is.
    """
    series = [line for line in series if line.points]
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points]
    if not xs:
        return Html("")
    margin = 0.05 * (max(ys) - min(ys)) or 0.05
    frame = Frame(min(xs), max(xs), min(ys) - margin, max(ys) + margin)
    lines = joined(_line(frame, number, line) for number, line in enumerate(series))
    chart = framed(name, frame, Html(f"{axes(frame, x_label, y_label)}{lines}"))
    kinds = [f'<path class="{_line_kind(number)}" d="M0 5H18"/>' for number in range(len(series))]
    names = legend([line.name for line in series], kinds) if len(series) > 1 else ""
    return Html(f"<div>{chart}{names}</div>")


def _line(frame: Frame, number: int, line: Series) -> Html:
    places = [(frame.x(x), frame.y(y)) for x, y in line.points]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    end_x, end_y = places[-1]
    tip = text(f"{line.name}: {line.points[-1][1]:.4g} at {line.points[-1][0]:g}")
    return Html(
        f'<path class="{_line_kind(number)}" d="M{path}"/>'
        f'<circle class="series-{number % SERIES}" cx="{end_x:.1f}" cy="{end_y:.1f}" r="3">'
        f"<title>{tip}</title></circle>"
    )


def _line_kind(number: int) -> str:
    """Return the classes of a line; colours that occur a second time are dashed."""
    return f"series-{number % SERIES} line{' dashed' if number >= SERIES else ''}"


def reliability_chart(name: str, bands: Sequence[Band], before: Sequence[Band] = ()) -> Html:
    """Return a reliability diagram: the share that is right over the probability, and how many predictions there are.

    Args:
        name: What it shows.
        bands: The predictions by their probability.
        before: The same before the temperature; drawn as hollow points.
    """
    frame = Frame(0, 1, 0, 1, width=340, height=340)
    diagonal = _path([(0, 0), (1, 1)], frame, "axis dashed")
    most = max((band.count for band in bands), default=0)
    bars = joined(_bar(frame, band, most) for band in bands if band.count)
    points = joined(_point(frame, band, NOW) for band in bands if band.count)
    hollow = joined(_point(frame, band, BEFORE) for band in before if band.count)
    drawn_axes = axes(frame, "probability of the predicted class", "share that is right")
    chart = framed(name, frame, Html(f"{drawn_axes}{bars}{diagonal}{hollow}{points}"))
    kinds = [f'<circle class="{kind}" cx="9" cy="6" r="5"/>' for kind in (NOW, BEFORE)]
    names = legend(["as they are", "before the temperature"], kinds) if before else ""
    return Html(f"<div>{chart}{names}</div>")


def _point(frame: Frame, band: Band, kind: str) -> Html:
    tip = text(f"probability {band.probability:.2f}, right {band.right:.2f}, {band.count} predictions")
    return Html(
        f'<circle class="{kind}" cx="{frame.x(band.probability):.1f}" cy="{frame.y(band.right):.1f}" r="6">'
        f"<title>{tip}</title></circle>"
    )


def _bar(frame: Frame, band: Band, most: int) -> Html:
    """Return the bar that counts the predictions, at the foot of the diagram."""
    height = COUNT_HEIGHT * band.count / most
    left, width = frame.x(band.low), frame.x(band.high) - frame.x(band.low)
    top = frame.y(0) - height
    return Html(
        f'<rect class="count" x="{left + 1:.1f}" y="{top:.1f}" width="{width - 2:.1f}" height="{height:.1f}">'
        f"<title>{band.count} predictions</title></rect>"
    )


def _path(points: Sequence[tuple[float, float]], frame: Frame, kind: str) -> Html:
    places = "L".join(f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in points)
    return Html(f'<path class="{kind}" d="M{places}"/>')
