"""Draws the picture of the README, once for light and once for dark pages: python tools/draw_how_it_works.py

The pictures have no script, no style sheet and no foreign font, so that GitHub and PyPI show them.
"""

from pathlib import Path
from string import Template

FOLDER = Path(__file__).parents[1] / "docs" / "images"
COLOURS = {
    "light": dict(ink="#1f2328", muted="#59636e", card="#f6f8fa", edge="#afb8c1", frozen="#dbe9fb", cold="#0b5cad",
                  trained="#ffe7c2", warm="#8a4600", result="#d9f2df", fresh="#1a6b33"),
    "dark": dict(ink="#f0f6fc", muted="#9aa5b1", card="#161b22", edge="#4a535d", frozen="#12325a", cold="#8cc0ff",
                 trained="#4d3000", warm="#ffc069", result="#123d20", fresh="#7ee29a"),
}  # fmt: skip
FONT = "font-family=\"-apple-system, 'Segoe UI', Helvetica, Arial, sans-serif\""


def box(x: int, y: int, width: int, height: int, fill: str, edge: str) -> str:
    """Return a box with round corners; the colours are names of the palette."""
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="10" fill="${fill}" stroke="${edge}" '
        'stroke-width="1.5"/>'
    )


def line_of_text(x: int, y: int, text: str, colour: str = "ink", size: int = 15, weight: int = 400) -> str:
    """Return a line of text around x."""
    return (
        f'<text x="{x}" y="{y}" text-anchor="middle" font-size="{size}" font-weight="{weight}" fill="${colour}">'
        f"{text}</text>"
    )


def arrow(x: int, y: int, end: int) -> str:
    """Return an arrow to the right."""
    head = f"M{end - 9} {y - 6}L{end - 1} {y}L{end - 9} {y + 6}"
    return f'<path d="M{x} {y}H{end - 2}{head}" stroke="$muted" stroke-width="2" fill="none"/>'


def labelled_card(x: int, y: int, shape: str, label: str) -> str:
    """Return a small card: an input, drawn as a shape, and its label below."""
    return f"{box(x, y, 46, 60, 'card', 'edge')}{shape}{line_of_text(x + 23, y + 52, label, 'muted', 11)}"


def round_fruit(x: int, y: int, colour: str) -> str:
    """Return the drawing of a fruit in a card whose corner is at (x, y)."""
    return (
        f'<circle cx="{x + 23}" cy="{y + 24}" r="12" fill="${colour}"/>'
        f'<path d="M{x + 23} {y + 13}q2 -7 8 -7" stroke="$muted" stroke-width="2" fill="none"/>'
    )


def lines_of_a_message(x: int, y: int) -> str:
    """Return the drawing of a text in a card whose corner is at (x, y)."""
    return "".join(
        f'<path d="M{x + 9} {y + 14 + 8 * row}h{width}" stroke="$muted" stroke-width="3"/>'
        for row, width in enumerate((28, 22, 26))
    )


def network(x: int, y: int) -> str:
    """Return the frozen network with its adapter, 220 wide."""
    layers = "".join(
        f"{box(x + 14 + 50 * layer, y + 14, 40, 62, 'frozen', 'cold')}"
        f'<rect x="{x + 24 + 50 * layer}" y="{y + 30}" width="20" height="30" rx="4" fill="$trained" stroke="$warm"/>'
        for layer in range(4)
    )
    return f"{box(x, y, 220, 90, 'card', 'edge')}{layers}"


def first_row() -> str:
    """Return the training, which is done once."""
    cards = "".join(
        (
            labelled_card(30, 66, round_fruit(30, 66, "warm"), "ripe"),
            labelled_card(84, 66, lines_of_a_message(84, 66), "urgent"),
            labelled_card(138, 66, round_fruit(138, 66, "fresh"), "tray 3"),
        )
    )
    return "".join(
        (
            line_of_text(107, 40, "Once: your labels, or none", "ink", 15, 600),
            cards,
            line_of_text(107, 148, "any number of tasks", "muted", 13),
            arrow(204, 96, 286),
            line_of_text(244, 84, "fit", "ink", 14),
            network(296, 50),
            line_of_text(406, 162, "a frozen network", "cold", 14, 600),
            line_of_text(406, 180, "and a small trained adapter", "warm", 14, 600),
            arrow(526, 96, 606),
            box(616, 60, 200, 72, "card", "edge"),
            line_of_text(716, 90, "a learner", "ink", 16, 600),
            line_of_text(716, 112, "and a report beside its peers", "muted", 13),
        )
    )


def second_row() -> str:
    """Return what is done for each new task."""
    cards = "".join(
        (
            labelled_card(30, 250, round_fruit(30, 250, "fresh"), "sweet"),
            labelled_card(84, 250, round_fruit(84, 250, "warm"), "sour"),
            labelled_card(138, 250, round_fruit(138, 250, "fresh"), "sweet"),
        )
    )
    return "".join(
        (
            line_of_text(107, 226, "Each new task", "ink", 15, 600),
            cards,
            line_of_text(107, 332, "sixty labelled examples", "muted", 13),
            arrow(204, 280, 286),
            line_of_text(244, 268, "adapt", "ink", 14),
            box(296, 244, 220, 72, "trained", "warm"),
            line_of_text(406, 275, "one forward pass", "ink", 16, 600),
            line_of_text(406, 297, "no training, a file of kilobytes", "ink", 13),
            arrow(526, 280, 606),
            line_of_text(566, 268, "predict", "ink", 14),
            box(616, 244, 200, 72, "result", "fresh"),
            line_of_text(716, 275, "sweet 0.93", "fresh", 16, 600),
            line_of_text(716, 297, "thousands of tasks, one network", "ink", 12),
        )
    )


def picture(palette: str) -> str:
    """Return the picture in the colours of a palette, "light" or "dark"."""
    title = (
        "How metalora works. Once: your labelled inputs train a small adapter of a frozen network. For each new task: "
        "sixty labelled examples, one forward pass, predictions."
    )
    drawn = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 846 350" role="img" {FONT}>'
        f"<title>{title}</title>{first_row()}"
        '<path d="M30 198H816" stroke="$edge" stroke-dasharray="4 5"/>'
        f"{second_row()}</svg>\n"
    )
    return Template(drawn).substitute(COLOURS[palette]).replace("><", ">\n<")


if __name__ == "__main__":
    for name in COLOURS:
        (FOLDER / f"how-it-works-{name}.svg").write_text(picture(name), encoding="utf-8")
