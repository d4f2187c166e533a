"""A drawing as the text of an SVG file."""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

from metalora.diagram.shapes import RADIUS, Drawing, Label, Node, Point, Wire, text_width

MARGIN = 16.0
SWATCH = 7.0  # radius of the circles of the legend
KINDS = ("learned", "generated", "frozen")
STYLE = """
  text { font: 12px monospace; text-anchor: middle; dominant-baseline: central; fill: #111; }
  line { stroke: #444; stroke-width: 1.6; }
  .paper { fill: white; }
  .factor circle { fill: white; stroke: #333; stroke-width: 1.6; }
  .learned circle { fill: #cfe3f7; }
  .generated circle { fill: #fbd9a6; }
  .frozen circle { fill: #e2e2e2; }
  .separate circle { stroke-dasharray: 4 3; }
  .dot { fill: #444; }
  @media (prefers-color-scheme: dark) {
    text { fill: #eee; }
    line { stroke: #bbb; }
    .paper { fill: #1b1e26; }
    .factor circle { fill: #1b1e26; stroke: #ccc; }
    .learned circle { fill: #234b73; }
    .generated circle { fill: #7a4a06; }
    .frozen circle { fill: #4a4d55; }
    .dot { fill: #bbb; }
  }"""


def to_svg(drawing: Drawing) -> str:
    """Return a drawing as SVG, with a legend of the kinds of factors that occur."""
    left, top, right, bottom = drawing.bounds()
    legend = _legend(drawing, left, bottom + 30)
    right = max(right, left + sum(text_width(text) + 46 for _, text in _kinds(drawing)))
    width, height = right - left + 2 * MARGIN, bottom + 44 - top + 2 * MARGIN
    view = f"{left - MARGIN:.1f} {top - MARGIN:.1f} {width:.1f} {height:.1f}"
    body = [_wire(wire) for wire in drawing.wires]
    body += [_node(node) for node in drawing.nodes]  # above the lines, which end in their middles
    body += [_text(label) for label in drawing.texts]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" viewBox="{view}">',
            f"<style>{STYLE}\n</style>",
            f'<rect x="{left - MARGIN:.1f}" y="{top - MARGIN:.1f}" width="100%" height="100%" class="paper"/>',
            *body,
            *legend,
            "</svg>\n",
        ]
    )


def _wire(wire: Wire) -> str:
    parts = [_line(start, end) for start, end in wire.lines]
    if wire.dot is not None:
        parts.append(f'<circle class="dot" cx="{wire.dot.x:.1f}" cy="{wire.dot.y:.1f}" r="5"/>')
    parts.append(_text(wire.label))
    owner = f'class="leg" data-factor={quoteattr(wire.factor)}' if wire.factor else 'class="bond"'
    return f"<g {owner} data-mode={quoteattr(wire.mode)}>{''.join(parts)}</g>"


def _node(node: Node) -> str:
    kind = f"factor {node.style}" + (" separate" if node.separate else "")
    circle = f'<circle cx="{node.centre.x:.1f}" cy="{node.centre.y:.1f}" r="{RADIUS:.0f}"/>'
    name = quoteattr(node.name)
    return f'<g class="{kind}" data-factor={name}>{circle}{_text(Label(node.name, node.centre))}</g>'


def _line(start: Point, end: Point) -> str:
    return f'<line x1="{start.x:.1f}" y1="{start.y:.1f}" x2="{end.x:.1f}" y2="{end.y:.1f}"/>'


def _text(label: Label) -> str:
    return f'<text x="{label.middle.x:.1f}" y="{label.middle.y:.1f}">{escape(label.text)}</text>'


def _kinds(drawing: Drawing) -> list[tuple[str, str]]:
    """The kinds of factors that occur, (class, words)."""
    styles = {node.style for node in drawing.nodes}
    kinds = [(f"factor {style}", style) for style in KINDS if style in styles]
    if any(node.separate for node in drawing.nodes):
        kinds.append(("factor separate", "outside of the product"))
    return kinds


def _legend(drawing: Drawing, left: float, y: float) -> list[str]:
    lines = []
    x = left
    for kind, words in _kinds(drawing):
        circle = f'<circle cx="{x + SWATCH:.1f}" cy="{y:.1f}" r="{SWATCH:.0f}"/>'
        middle = x + 2 * SWATCH + 6 + text_width(words) / 2
        lines.append(f'<g class="legend {kind}">{circle}{_text(Label(words, Point(middle, y)))}</g>')
        x += 46 + text_width(words)
    return lines
