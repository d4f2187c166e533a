"""What a diagram consists of: nodes for factors, wires for modes, labels; positions in pixels, y downwards."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import cos, hypot, radians, sin
from typing import NamedTuple

RADIUS = 26.0  # of a node
LEG_LENGTH = 40.0
CHARACTER = 7.23  # width of a character of the labels, in a font of equal widths at 12 pixels
HALF_LINE = 8.0  # half the height of a label
GAP = 5.0  # between a label and what is next to it


class Point(NamedTuple):
    """A place, or a way from one to another."""

    x: float
    y: float

    def moved(self, way: Point, times: float = 1.0) -> Point:
        """The point at the end of a way from here."""
        return Point(self.x + times * way.x, self.y + times * way.y)

    def way_to(self, other: Point) -> Point:
        """The way from here to another point."""
        return Point(other.x - self.x, other.y - self.y)


def direction(degrees: float) -> Point:
    """A way of length one: 0 degrees to the right, 90 upwards.

    Example:
        >>> direction(90).y
        -1.0
    """
    return Point(cos(radians(degrees)), -sin(radians(degrees)))


def text_width(text: str) -> float:
    """The width of a label."""
    return CHARACTER * len(text)


def clearance(text: str, way: Point) -> float:
    """How far the middle of a label stands from a line, so that they do not touch.

    Args:
        text: The label.
        way: The direction from the line to the label, of length one.
    """
    return abs(way.x) * text_width(text) / 2 + abs(way.y) * HALF_LINE + GAP


@dataclass(frozen=True)
class Label:
    """A text around its middle."""

    text: str
    middle: Point


@dataclass(frozen=True)
class Node:
    """A factor.

    Attributes:
        name: Name of the factor.
        style: "learned", "generated" or "frozen".
        separate: True for a factor that is outside of the product, such as a bias.
        centre: Where it is.
    """

    name: str
    style: str
    separate: bool
    centre: Point


@dataclass(frozen=True)
class Wire:
    """A mode: a bond between factors, or an open leg of one.

    Attributes:
        mode: Its name.
        factor: The factor of a leg; "" for a bond.
        lines: Start and end of each line.
        dot: Where the lines of a bond of three factors or more meet.
        label: Name and size.
    """

    mode: str
    factor: str
    lines: tuple[tuple[Point, Point], ...]
    label: Label
    dot: Point | None = None


@dataclass(frozen=True)
class Drawing:
    """Nodes, wires, and texts between them."""

    nodes: tuple[Node, ...] = ()
    wires: tuple[Wire, ...] = ()
    texts: tuple[Label, ...] = ()

    def moved(self, way: Point) -> Drawing:
        """The same drawing at another place."""
        return Drawing(
            tuple(replace(node, centre=node.centre.moved(way)) for node in self.nodes),
            tuple(_moved_wire(wire, way) for wire in self.wires),
            tuple(Label(label.text, label.middle.moved(way)) for label in self.texts),
        )

    def bounds(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom."""
        labels = [*self.texts, *(wire.label for wire in self.wires)]
        boxes = [(node.centre, RADIUS, RADIUS) for node in self.nodes]
        boxes += [(label.middle, text_width(label.text) / 2, HALF_LINE) for label in labels]
        return (
            min(middle.x - width for middle, width, _ in boxes),
            min(middle.y - height for middle, _, height in boxes),
            max(middle.x + width for middle, width, _ in boxes),
            max(middle.y + height for middle, _, height in boxes),
        )


def _moved_wire(wire: Wire, way: Point) -> Wire:
    return Wire(
        wire.mode,
        wire.factor,
        tuple((start.moved(way), end.moved(way)) for start, end in wire.lines),
        Label(wire.label.text, wire.label.middle.moved(way)),
        None if wire.dot is None else wire.dot.moved(way),
    )


def joined(drawings: Iterable[Drawing]) -> Drawing:
    """One drawing of several."""
    parts = list(drawings)
    return Drawing(
        tuple(node for part in parts for node in part.nodes),
        tuple(wire for part in parts for wire in part.wires),
        tuple(text for part in parts for text in part.texts),
    )


def length(way: Point) -> float:
    """The length of a way."""
    return hypot(way.x, way.y)
