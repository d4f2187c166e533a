"""The frame of a chart as SVG: its axes with round numbers, its legend, and where values are on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from metalora._util.report_page.markup import Html, text

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 470, 260, 64, 12, 12, 42  # of a chart and its margins, in pixels
Tick = tuple[float, str]


@dataclass(frozen=True)
class Frame:
    """Where the values of a chart are on it.

    Attributes:
        x_low: What the left end stands for.
        x_high: What the right end stands for.
        y_low: What the lower end stands for.
        y_high: What the upper end stands for.
        width: Width in pixels.
        height: Height in pixels.
    """

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    width: int = WIDTH
    height: int = HEIGHT

    def x(self, value: float) -> float:
        """Return how far from the left a value is, in pixels."""
        share = (value - self.x_low) / ((self.x_high - self.x_low) or 1)
        return LEFT + share * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Return how far from the top a value is, in pixels."""
        share = (value - self.y_low) / ((self.y_high - self.y_low) or 1)
        return self.height - BOTTOM - share * (self.height - TOP - BOTTOM)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers from `low` to `high`, about `count` of them.

    Example:
        >>> ticks(0.12, 0.58)
        [0.2, 0.3, 0.4, 0.5]
    """
    if high <= low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if rough <= factor * power * 1.0001)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return round numbers from `low` to `high`, for an axis of logarithms: 1, 2 or 5 times a power of ten.

    Example:
        >>> log_ticks(0.004, 0.06)
        [0.005, 0.01, 0.02, 0.05]
    """
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) < 4 else (1,)
    numbers = [round(factor * 10.0**power, 12) for power in powers for factor in factors]
    return [number for number in numbers if low <= number <= high] or [low]


def axes(frame: Frame, x_label: str, y_label: str, x_ticks: Sequence[Tick] | None = None) -> Html:
    """Return both axes with their numbers and labels.

    Args:
        frame: The frame.
        x_label: What the horizontal axis is.
        y_label: What the vertical axis is.
        x_ticks: Values of the horizontal axis and what is written there; None: round numbers.
    """
    bottom, right = frame.height - BOTTOM, frame.width - RIGHT
    parts = [f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>']
    if x_ticks is None:
        x_ticks = [(value, f"{value:g}") for value in ticks(frame.x_low, frame.x_high)]
    for value, written in x_ticks:
        parts.append(f'<text x="{frame.x(value):.1f}" y="{bottom + 16}" text-anchor="middle">{text(written)}</text>')
    for value in ticks(frame.y_low, frame.y_high):
        y = frame.y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    middle_x, middle_y = (LEFT + right) / 2, (TOP + bottom) / 2
    parts.append(f'<text x="{middle_x}" y="{frame.height - 8}" text-anchor="middle">{text(x_label)}</text>')
    turned = f'transform="rotate(-90 12 {middle_y})"'
    parts.append(f'<text x="12" y="{middle_y}" text-anchor="middle" {turned}>{text(y_label)}</text>')
    return Html("".join(parts))


def framed(name: str, frame: Frame, content: Html) -> Html:
    """Return a chart as SVG.

    Args:
        name: What it shows, for those who do not see it.
        frame: The frame.
        content: What is drawn.
    """
    width, height = frame.width, frame.height
    return Html(
        f'<svg class="chart" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{text(name)}">{content}</svg>'
    )


def legend(names: Sequence[str], swatches: Sequence[str]) -> Html:
    """Return a legend.

    Args:
        names: The names.
        swatches: What is drawn beside each name, as SVG of 18 x 12 pixels.
    """
    items = (
        f'<li><svg width="18" height="12" aria-hidden="true">{swatch}</svg>{text(name)}</li>'
        for name, swatch in zip(names, swatches, strict=True)
    )
    return Html(f'<ul class="legend">{"".join(items)}</ul>')
