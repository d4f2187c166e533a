"""The README: short, with a picture that every page can show, links that lead somewhere, and both commands."""

import re
import runpy
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DRAWING = runpy.run_path(str(ROOT / "tools" / "draw_how_it_works.py"))
MOST_WORDS = 700


def test_it_is_short():
    assert len(README.split()) <= MOST_WORDS


def test_its_programs_have_six_lines():
    programs = re.findall(r"```python\n(.*?)```", README, re.S)
    assert [len(program.splitlines()) for program in programs] == [6, 6]


def test_its_links_lead_to_files():
    links = re.findall(r"\]\(([^)#]+)", README) + re.findall(r'(?:src|srcset)="([^"]+)"', README)
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("part", ("make demo", "make test", "pip install 'metalora[", "## When not to use it"))
def test_it_has(part):
    assert part in README


@pytest.mark.parametrize("palette", DRAWING["COLOURS"])
def test_the_picture_is_as_drawn_and_needs_nothing_from_elsewhere(palette):
    text = (ROOT / "docs" / "images" / f"how-it-works-{palette}.svg").read_text()
    assert text == DRAWING["picture"](palette), "run: python tools/draw_how_it_works.py"
    tags = {element.tag.partition("}")[2] for element in ElementTree.fromstring(text).iter()}
    assert tags == {"svg", "title", "rect", "circle", "path", "text"}
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "") and "@font-face" not in text


def relative_luminance(colour):
    """The relative luminance of #rrggbb, as the guidelines for accessible pages (WCAG 2) define it."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


PAGES = {"light": "#ffffff", "dark": "#0d1117"}  # the backgrounds of GitHub


@pytest.mark.parametrize("palette", PAGES)
@pytest.mark.parametrize(
    "text, behind",
    [("ink", None), ("muted", None), ("cold", None), ("warm", None), ("ink", "trained"), ("ink", "result"),
     ("fresh", "result"), ("muted", "card")],
)  # fmt: skip
def test_the_texts_of_the_picture_can_be_read(palette, text, behind):
    colours = DRAWING["COLOURS"][palette]
    background = colours[behind] if behind else PAGES[palette]
    darker, lighter = sorted(map(relative_luminance, (colours[text], background)))
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def test_the_table_of_extras_is_complete():
    page = (ROOT / "docs" / "how-to.md").read_text().split("## Extras")[1].split("\n## ")[0]
    cells = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    extras = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert sorted(extras) == sorted(project["optional-dependencies"])
