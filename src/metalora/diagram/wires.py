"""The wires of a connected network whose factors have their places: bonds with their labels, and legs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import atan2, degrees, radians, sin

from metalora.diagram.placement import Place
from metalora.diagram.shapes import (
    GAP,
    HALF_LINE,
    LEG_LENGTH,
    RADIUS,
    Label,
    Point,
    Wire,
    clearance,
    direction,
    length,
    text_width,
)
from metalora.tensornet.spec import Modes

LINE_HEIGHT = 22.0  # between legs that leave a node sideways
NEARLY_ZERO = 1e-6
STEEP = 0.8  # sine of the direction from which on legs are beside each other, and not below each other


def legs_width(modes: Modes, labels: Mapping[str, str]) -> float:
    """The width of legs that hang side by side."""
    return max(2 * RADIUS, sum(text_width(labels[mode]) + 2 * GAP for mode in modes))


def draw_legs(factor: str, modes: Modes, place: Place, labels: Mapping[str, str]) -> list[Wire]:
    """The open legs of a factor: side by side if they leave it upwards or downwards, otherwise one below the other."""
    way = direction(place.legs)
    if abs(way.y) > STEEP:
        return _side_by_side(factor, modes, place.centre, 1.0 if way.y > 0 else -1.0, labels)
    return _one_below_the_other(factor, modes, place.centre, way, labels)


def _side_by_side(factor: str, modes: Modes, centre: Point, down: float, labels: Mapping[str, str]) -> list[Wire]:
    wires = []
    widths = [text_width(labels[mode]) + 2 * GAP for mode in modes]
    x = centre.x - sum(widths) / 2
    end_y = centre.y + down * (RADIUS + LEG_LENGTH)
    for mode, width in zip(modes, widths, strict=True):
        end = Point(x + width / 2, end_y)
        label = Label(labels[mode], Point(end.x, end_y + down * (HALF_LINE + GAP)))
        wires.append(Wire(mode, factor, ((centre, end),), label))
        x += width
    return wires


def _one_below_the_other(factor: str, modes: Modes, centre: Point, way: Point, labels: Mapping[str, str]) -> list[Wire]:
    wires = []
    right = 1.0 if way.x >= 0 else -1.0
    middle = centre.moved(way, RADIUS + LEG_LENGTH)
    for place, mode in enumerate(modes):
        end = Point(middle.x, middle.y + (place - (len(modes) - 1) / 2) * LINE_HEIGHT)
        label = Label(labels[mode], Point(end.x + right * (GAP + text_width(labels[mode]) / 2), end.y))
        wires.append(Wire(mode, factor, ((centre, end),), label))
    return wires


def draw_bond(mode: str, factors: Sequence[str], places: Mapping[str, Place], label: str) -> Wire:
    """A bond: a line between two factors, or lines from a dot to three or more."""
    ends = sorted((places[factor] for factor in factors), key=lambda place: place.is_core)  # a core is the end
    centres = [place.centre for place in ends]
    if len(centres) == 2:
        start, end = centres
        # Around a core all labels are on the same side of their lines, otherwise away from the inside of the network.
        inside = None if ends[1].is_core else _centroid([place.centre for place in places.values()])
        return Wire(mode, "", ((start, end),), Label(label, _beside(start, end, label, inside)))
    # A bond of all factors has its dot in the middle of their circle.
    dot = Point(0, 0) if len(centres) == len(places) else _centroid(centres)
    lines = tuple((dot, centre) for centre in centres)
    return Wire(mode, "", lines, Label(label, _in_the_gap(dot, centres, label)), dot)


def _centroid(points: Sequence[Point]) -> Point:
    return Point(sum(point.x for point in points) / len(points), sum(point.y for point in points) / len(points))


def _beside(start: Point, end: Point, label: str, inside: Point | None) -> Point:
    """The middle of a label beside a line: on the left on the way to the end, or away from a point, or above."""
    way = start.way_to(end)
    normal = Point(way.y / length(way), -way.x / length(way))
    middle = start.moved(way, 0.5)
    if inside is not None:
        outwards = inside.way_to(middle)
        side = outwards.x * normal.x + outwards.y * normal.y
        if side < -NEARLY_ZERO or (abs(side) <= NEARLY_ZERO and normal.y > 0):
            normal = Point(-normal.x, -normal.y)
    return middle.moved(normal, clearance(label, normal))


def _in_the_gap(dot: Point, ends: Sequence[Point], label: str) -> Point:
    """The middle of a label next to a dot, between the two lines that are farthest apart."""
    angles = sorted(degrees(atan2(-way.y, way.x)) % 360 for way in map(dot.way_to, ends))
    gaps = [(after - before, before) for before, after in zip(angles, [*angles[1:], angles[0] + 360], strict=True)]
    gap, before = max(gaps)
    distance = 0.0
    for normal in (direction(before + 90), direction(before + gap - 90)):
        distance = max(distance, clearance(label, normal) / sin(radians(min(gap / 2, 90))))
    return dot.moved(direction(before + gap / 2), distance)
