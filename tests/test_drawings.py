"""The drawings in docs/images are those that tools/drawings makes, and a page shows each of them."""

import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
sys.path.insert(0, str(ROOT / "tools"))

from drawings.__main__ import pictures  # noqa: E402
from drawings.choice import choice  # noqa: E402
from drawings.parameters import METHODS, RANKS, counts  # noqa: E402
from drawings.request import request  # noqa: E402

SVG = "{http://www.w3.org/2000/svg}"
AGAIN = "run: PYTHONPATH=tools python -m drawings"


def test_the_files_are_what_the_script_draws():
    for name, text in pictures().items():
        assert (IMAGES / name).read_text(encoding="utf-8") == text, f"{name}: {AGAIN}"


def test_every_drawing_is_shown_with_words_and_has_a_dark_form():
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    for name in pictures():
        assert re.search(rf"!\[[^]]+\]\(images/{re.escape(name)}\)", pages), name
        assert "prefers-color-scheme: dark" in (IMAGES / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("drawing", (choice, request), ids=lambda drawing: drawing.__name__)
def test_texts_are_inside_their_boxes(drawing):
    root = ElementTree.fromstring(drawing())
    boxes = [
        tuple(float(box.get(key)) for key in ("x", "y", "width", "height")) for box in root.findall(f"{SVG}rect")[1:]
    ]
    assert all(x >= 0 and x + width <= float(root.get("width")) for x, _, width, _ in boxes)
    bold = [text for text in root.iter(f"{SVG}text") if "bold" in text.get("class") and float(text.get("y")) > 30]
    for text in bold:  # a bold character takes less than 7.5 pixels
        x, y, half = float(text.get("x")), float(text.get("y")), 7.5 * len(text.text) / 2
        assert any(left <= x - half and x + half <= left + w and top < y < top + h for left, top, w, h in boxes), (
            text.text
        )


def test_the_counts_are_those_of_the_formulas():
    numbers = counts()
    assert set(numbers) == set(METHODS)
    d, targets, layers, projections, heads, width = 768, 24, 12, 2, 12, 64
    for place, r in enumerate(RANKS):
        assert numbers["LoRA"][place] == targets * r * 2 * d
        assert numbers["MetaLoRA-CP"][place] == targets * r * (2 * d + 1)
        assert numbers["VeRA"][place] == targets * (d + r)
        assert numbers["MetaTT-4D"][place] == r * 2 * d + r * r * (layers + projections)
        assert numbers["MetaTT-5D"][place] == r * (d + width) + r * r * (layers + projections + heads)
        assert numbers["TensLoRA QKV-Depth"][place] == r * (2 * d + layers + projections) + r**4


def luminance(colour):
    """The relative luminance of WCAG 2, of a colour such as #1b1e26 or #111."""
    digits = {"white": "ffffff"}.get(colour, colour.lstrip("#"))
    digits = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("name", ("choose.svg", "network-metalora-cp.svg"))
def test_texts_can_be_read_in_the_light_and_in_the_dark_form(name):
    light, dark = (IMAGES / name).read_text(encoding="utf-8").split("@media")
    for form in (light, dark.split("</style>")[0]):
        words = luminance(re.search(r"text {[^}]*fill: ([#\w]+)", form)[1])
        grounds = {luminance(colour) for colour in re.findall(r"\.(?!dot|head|curve)[\w ]+{ fill: ([#\w]+)", form)}
        assert len(grounds) >= 4
        for ground in grounds:
            assert (max(words, ground) + 0.05) / (min(words, ground) + 0.05) > 4.5
