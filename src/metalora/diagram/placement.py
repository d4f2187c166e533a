"""Where the factors of a connected network stand: on a line, on a circle, or around a core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import pi, sin

from metalora.diagram.shapes import RADIUS, Point, direction, text_width
from metalora.tensornet.spec import INPUT_MODES, OUTPUT_MODES, Modes
from metalora.tensornet.topology import classify_topology, most_connected_factor

DOWN = -90.0
SPACE = 24.0  # between two nodes, beside the label of their bond
CHORD = 160.0  # between two neighbours on a circle
SPOKE = 135.0  # between a core and the factors around it


@dataclass(frozen=True)
class Place:
    """Where a factor stands.

    Attributes:
        centre: The middle of its node.
        legs: The direction of its legs in degrees.
        is_core: True if all bonds of the network are its own.
    """

    centre: Point
    legs: float
    is_core: bool = False


def place_factors(
    bonds: Mapping[str, Modes], legs: Mapping[str, Modes], labels: Mapping[str, str], leg_widths: Mapping[str, float]
) -> dict[str, Place]:
    """Return where each factor of a connected network stands.

    Args:
        bonds: Factor -> its bonds.
        legs: Factor -> its other modes.
        labels: Mode -> its label.
        leg_widths: Factor -> the width of its legs, if they hang below it.

    Example:
        >>> bonds = {"A": ("r",), "B": ("r",)}
        >>> places = place_factors(bonds, {"A": ("in",), "B": ("out",)}, {"r": "r = 8"}, {"A": 40, "B": 40})
        >>> places["A"].centre.y == places["B"].centre.y, places["A"].legs
        (True, -90.0)
    """
    topology = classify_topology([*bonds.values()])
    if topology == "chain":
        return _on_a_line(_path(bonds, legs), bonds, labels, leg_widths)
    if topology == "shared bond":
        return _around([*bonds])
    core = [*bonds][most_connected_factor([*bonds.values()])]
    if topology == "tree" and all({*modes} <= {*bonds[core]} for modes in bonds.values()):
        places = _around([factor for factor in bonds if factor != core])
        return {**places, core: Place(Point(0, 0), _free_direction(len(places)), is_core=True)}
    order = _cycle(bonds) if topology == "ring" else _sides_first(legs)
    return _on_a_circle(order)


def _path(bonds: Mapping[str, Modes], legs: Mapping[str, Modes]) -> list[str]:
    """The factors of a chain from end to end, the input first or the output last."""
    ends = [factor for factor in bonds if len(bonds[factor]) <= 1]
    return _walk(bonds, min(ends, key=lambda factor: ("in", "", "out").index(_side(legs[factor]))))


def _cycle(bonds: Mapping[str, Modes]) -> list[str]:
    return _walk(bonds, next(iter(bonds)))


def _walk(bonds: Mapping[str, Modes], start: str) -> list[str]:
    """The factors in the order of a walk along the bonds."""
    order = [start]
    while len(order) < len(bonds):
        current = {*bonds[order[-1]]}
        order.append(next(factor for factor in bonds if factor not in order and current & {*bonds[factor]}))
    return order


def _sides_first(legs: Mapping[str, Modes]) -> list[str]:
    """Factors with inputs, then those with outputs, then the others; those of one side stay in their order."""
    return sorted(legs, key=lambda factor: ("in", "out", "").index(_side(legs[factor])))


def _side(modes: Modes) -> str:
    """The side of the weight that modes belong to: "in", "out", or "" for neither."""
    digits = {mode[0] for mode in modes if mode[1:].isdigit()}  # i1, o2: parts of an axis
    if {*modes} & {*INPUT_MODES} or "i" in digits:
        return "in"
    return "out" if {*modes} & {*OUTPUT_MODES, "hdim"} or "o" in digits else ""


def _on_a_line(
    order: Sequence[str], bonds: Mapping[str, Modes], labels: Mapping[str, str], leg_widths: Mapping[str, float]
) -> dict[str, Place]:
    places: dict[str, Place] = {}
    x = 0.0
    for place, factor in enumerate(order):
        if place > 0:
            previous = order[place - 1]
            [bond] = {*bonds[previous]} & {*bonds[factor]}
            for_label = 2 * RADIUS + text_width(labels[bond]) + SPACE
            for_legs = (leg_widths[previous] + leg_widths[factor]) / 2 + SPACE
            x += max(for_label, for_legs)
        places[factor] = Place(Point(x, 0), DOWN)
    return places


def _on_a_circle(order: Sequence[str]) -> dict[str, Place]:
    """Equal distances, the first two factors at the bottom, legs outwards."""
    count = len(order)
    radius = CHORD / (2 * sin(pi / count))
    angles = [DOWN - 180 / count + place * 360 / count for place in range(count)]
    return {
        factor: Place(Point(0, 0).moved(direction(angle), radius), angle)
        for factor, angle in zip(order, angles, strict=True)
    }


def _around(order: Sequence[str]) -> dict[str, Place]:
    """Around a core or a dot, the first factor on the left; three factors are on the upper half of the circle."""
    step = _step(len(order))
    angles = [180 - place * step for place in range(len(order))]
    return {
        factor: Place(Point(0, 0).moved(direction(angle), SPOKE), angle)
        for factor, angle in zip(order, angles, strict=True)
    }


def _step(count: int) -> float:
    return 90.0 if count == 3 else 360 / count


def _free_direction(count: int) -> float:
    """A direction in which a core has no neighbour."""
    return DOWN if count == 3 else 180 + _step(count) / 2
