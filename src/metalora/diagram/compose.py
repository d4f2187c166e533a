"""The drawing of a whole network: its connected parts, terms, and the factors outside of the product, in one row."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from metalora.diagram.placement import DOWN, Place, place_factors
from metalora.diagram.shapes import Drawing, Label, Node, Point, joined, text_width
from metalora.diagram.wires import draw_bond, draw_legs, legs_width
from metalora.tensornet.network import Network
from metalora.tensornet.spec import Modes
from metalora.tensornet.topology import connected_components

BETWEEN_PARTS = 34.0


def draw_network(network: Network, labels: Mapping[str, str], styles: Mapping[str, str], sign: str) -> Drawing:
    """Draw a network.

    Args:
        network: The network.
        labels: Mode -> its label.
        styles: Factor -> "learned", "generated" or "frozen".
        sign: What stands between two terms.
    """
    row: list[Drawing] = []
    for place, term in enumerate(network.split_terms()):
        if place > 0:
            row.append(Drawing(texts=(Label(sign, Point(0, 0)),)))
        row += draw_term(term.factors, network.bonds, labels, styles)
    for factor in network.biases:
        row.append(_draw_separate(factor, network.factors[factor], labels, styles))
    return _in_a_row(row)


def draw_term(
    factors: Mapping[str, Modes], bonds: Collection[str], labels: Mapping[str, str], styles: Mapping[str, str]
) -> list[Drawing]:
    """Draw the connected parts of one term; parts without a common bond are multiplied too."""
    summed = [mode for mode in labels if mode in bonds or mode == "expert"]
    # An expert that only one factor has is a leg.
    shared = [mode for mode in summed if sum(mode in modes for modes in factors.values()) > 1]
    bonds_of = {factor: tuple(mode for mode in modes if mode in shared) for factor, modes in factors.items()}
    legs_of = {factor: tuple(mode for mode in modes if mode not in shared) for factor, modes in factors.items()}
    names = [*factors]
    return [
        _draw_part([names[number] for number in numbers], bonds_of, legs_of, labels, styles)
        for numbers in connected_components([*bonds_of.values()])
    ]


def _draw_part(
    names: Sequence[str],
    bonds_of: Mapping[str, Modes],
    legs_of: Mapping[str, Modes],
    labels: Mapping[str, str],
    styles: Mapping[str, str],
) -> Drawing:
    bonds = {name: bonds_of[name] for name in names}
    legs = {name: legs_of[name] for name in names}
    widths = {name: legs_width(legs[name], labels) for name in names}
    places = place_factors(bonds, legs, labels, widths)
    wires = []
    for bond in dict.fromkeys(mode for modes in bonds.values() for mode in modes):
        wires.append(draw_bond(bond, [name for name in names if bond in bonds[name]], places, labels[bond]))
    for name in names:
        wires += draw_legs(name, legs[name], places[name], labels)
    nodes = tuple(Node(name, styles[name], False, places[name].centre) for name in names)
    return Drawing(nodes, tuple(wires))


def _draw_separate(factor: str, modes: Modes, labels: Mapping[str, str], styles: Mapping[str, str]) -> Drawing:
    origin = Point(0, 0)
    node = Node(factor, styles[factor], True, origin)
    return Drawing((node,), tuple(draw_legs(factor, modes, Place(origin, DOWN), labels)))


def _in_a_row(drawings: Sequence[Drawing]) -> Drawing:
    """Drawings from left to right, their nodes' middles at one height."""
    placed = []
    x = 0.0
    for drawing in drawings:
        left, _, right, _ = drawing.bounds()
        y = _middle_of_nodes(drawing)
        placed.append(drawing.moved(Point(x - left, -y)))
        x += right - left + BETWEEN_PARTS
    return joined(placed)


def _middle_of_nodes(drawing: Drawing) -> float:
    heights = [node.centre.y for node in drawing.nodes] or [0.0]
    return (min(heights) + max(heights)) / 2


def with_title(drawing: Drawing, lines: Sequence[str]) -> Drawing:
    """Put lines of text above a drawing, from its left end."""
    left, top, _, _ = drawing.bounds()
    texts = []
    for place, line in enumerate(lines):
        y = top - BETWEEN_PARTS - (len(lines) - 1 - place) * 20
        texts.append(Label(line, Point(left + text_width(line) / 2, y)))
    return Drawing(drawing.nodes, drawing.wires, (*drawing.texts, *texts))
