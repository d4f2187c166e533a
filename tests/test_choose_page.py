"""Every figure of the page on choosing a method is printed on the page that it names, below a heading that exists."""

import re
from pathlib import Path

import pytest

from metalora.config import AdapterConfig
from metalora.learner.config import LearnerConfig
from metalora.learner.recommendation import FEW_EXAMPLES, LARGEST_RANK, RICH_EXAMPLES
from metalora.methods.registry import METHODS

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "choose.md").read_text(encoding="utf-8")
ROWS = [
    row for row in re.findall(r"^\| (.+) \| \[[^]]+\]\(([^)#]+)#([^)]+)\) \|$", PAGE, re.M) if row[0].count(" | ") == 0
]
NUMBER = r"(?<![\w.])\d{1,3}(?:,\d{3})+(?:\.\d+)?|(?<![\w.,])\d+\.\d+"


def anchor(heading):
    """The anchor of a heading, as GitHub and the site make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def section(page, name):
    """The text below the heading of an anchor, up to the next heading of its level."""
    parts = re.split(r"^(#+) (.+)$", page, flags=re.M)[1:]
    headings = [(len(level), anchor(title), text) for level, title, text in zip(*[iter(parts)] * 3, strict=True)]
    start = next(place for place, (_, found, _) in enumerate(headings) if found == name)
    level = headings[start][0]
    below = headings[start + 1 :]
    end = next((place for place, (other, _, _) in enumerate(below) if other <= level), len(below))
    return "\n".join(text for _, _, text in [headings[start], *below[:end]])


def test_there_are_figures():
    assert len(ROWS) > 30


@pytest.mark.parametrize("claim, page, heading", ROWS, ids=[claim[:40] for claim, _, _ in ROWS])
def test_a_figure_is_on_the_page_that_it_names(claim, page, heading):
    source = section((DOCS / page).read_text(encoding="utf-8"), heading)
    printed = {number.replace(",", "") for number in re.findall(NUMBER + r"|\d+", source)}
    missing = [number for number in re.findall(NUMBER, claim) if number.replace(",", "") not in printed]
    assert not missing


def test_the_methods_and_links_of_the_page_exist():
    table = PAGE.split("## What do you have?")[1].split("## Choose a rank")[0]
    for name in re.findall(r"`(lora|meta(?:lora|tt)-[\w+]+)`", table):
        assert name in METHODS
    for link in re.findall(r"\]\(([^)]+)\)", PAGE):
        path, _, heading = link.partition("#")
        target = (DOCS / path) if path else DOCS / "choose.md"
        assert target.is_file(), link
        assert not heading or section(target.read_text(encoding="utf-8"), heading), link


def test_the_limits_are_those_of_the_code():
    assert f"fewer than {FEW_EXAMPLES} labels" in PAGE and f"fewer than {RICH_EXAMPLES} labels each" in PAGE
    assert f"More than {LARGEST_RANK} has not paid" in PAGE
    assert AdapterConfig("lora").rank == 8 and LearnerConfig().lr == 0.005
