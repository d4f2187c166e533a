"""Boxes, arrows, curves and texts of a drawing, as SVG. Colours follow the reader's choice of light or dark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

LINE = 17.0  # from one line of text to the next
STYLE = """
  text { font: 13px sans-serif; fill: #1b1e26; dominant-baseline: central; }
  .middle { text-anchor: middle; }
  .end { text-anchor: end; }
  .bold { font-weight: bold; }
  .small { font-size: 12px; }
  .paper { fill: #ffffff; }
  .box { stroke: #55606e; stroke-width: 1.2; }
  .question { fill: #eef0f3; }
  .answer { fill: #cfe3f7; }
  .generated { fill: #fbd9a6; }
  .frozen { fill: #e2e2e2; }
  .arrow { stroke: #55606e; stroke-width: 1.6; fill: none; }
  .head { fill: #55606e; }
  .grid { stroke: #dde1e6; stroke-width: 1; }
  .curve { fill: none; stroke-width: 2; }
  .c0 { stroke: #0b62a8; } .c1 { stroke: #b34700; } .c2 { stroke: #1a7a3c; }
  .c3 { stroke: #7b3fb5; } .c4 { stroke: #a01040; } .c5 { stroke: #666666; }
  @media (prefers-color-scheme: dark) {
    text { fill: #eeeeee; }
    .paper { fill: #1b1e26; }
    .box, .arrow { stroke: #9aa5b1; }
    .head { fill: #9aa5b1; }
    .question { fill: #2b303b; }
    .answer { fill: #234b73; }
    .generated { fill: #7a4a06; }
    .frozen { fill: #4a4d55; }
    .grid { stroke: #343a46; }
    .c0 { stroke: #6ab7ff; } .c1 { stroke: #ff9d5c; } .c2 { stroke: #5fd38a; }
    .c3 { stroke: #c79bff; } .c4 { stroke: #ff7fa5; } .c5 { stroke: #aaaaaa; }
  }"""


def box_height(lines: Sequence[str]) -> float:
    """The height of a box with lines of text."""
    return LINE * len(lines) + 12


@dataclass
class Picture:
    """A drawing of a fixed size.

    Attributes:
        width: In pixels.
        height: In pixels.
        description: What it shows, for readers who do not see it.
        parts: The elements drawn so far.
    """

    width: float
    height: float
    description: str
    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, words: str, style: str = "") -> None:
        """Write one line; the style is of the words middle, end, bold and small."""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" class="{style}">{escape(words)}</text>')

    def box(self, left: float, top: float, width: float, lines: Sequence[str], style: str) -> float:
        """Draw a box as high as its lines of text, the first one bold, and return its lower edge."""
        height = box_height(lines)
        self.parts.append(
            f'<rect class="box {style}" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" rx="7"/>'
        )
        for number, line in enumerate(lines):
            y = top + 6 + LINE * (number + 0.5)
            self.text(left + width / 2, y, line, "middle bold" if number == 0 else "middle small")
        return top + height

    def arrow(self, points: Sequence[tuple[float, float]]) -> None:
        """Draw lines from point to point, and a head at the last one."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline class="arrow" points="{path}"/>')
        (x0, y0), (x, y) = points[-2:]
        across, along = (5, 8) if x == x0 else (8, 5)
        if x == x0:
            back = y - along if y > y0 else y + along
            corners = f"{x:.1f},{y:.1f} {x - across:.1f},{back:.1f} {x + across:.1f},{back:.1f}"
        else:
            back = x - across if x > x0 else x + across
            corners = f"{x:.1f},{y:.1f} {back:.1f},{y - along:.1f} {back:.1f},{y + along:.1f}"
        self.parts.append(f'<polygon class="head" points="{corners}"/>')

    def line(self, start: tuple[float, float], end: tuple[float, float], style: str) -> None:
        """Draw a straight line."""
        (x1, y1), (x2, y2) = start, end
        self.parts.append(f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def curve(self, points: Sequence[tuple[float, float]], number: int, dashes: str) -> None:
        """Draw a curve through points, in the colour of its number and with dashes of its own."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline class="curve c{number}" stroke-dasharray="{dashes}" points="{path}"/>')

    def svg(self) -> str:
        """Return the text of the file."""
        size = f'width="{self.width:.0f}" height="{self.height:.0f}" viewBox="0 0 {self.width:.0f} {self.height:.0f}"'
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
                f"<title>{escape(self.description)}</title>",
                f"<style>{STYLE}\n</style>",
                '<rect class="paper" width="100%" height="100%" rx="8"/>',
                *self.parts,
                "</svg>\n",
            ]
        )
