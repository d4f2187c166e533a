"""A page: one file with its style and its script, which a policy allows and nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metalora._util.files import check_file, write_atomically
from metalora._util.report_page.markup import Html, joined, paragraph, text
from metalora._util.report_page.script import SCRIPT
from metalora._util.report_page.style import STYLE

GENERATOR = '<meta name="generator" content="metalora">'  # tells a page of this library from other files


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: Its heading.
        note: How it is read, in a sentence or two.
        body: Its content.
    """

    title: str
    note: str
    body: Html


def write_page(path: str | Path, title: str, verdict: str, sections: Sequence[Section], note: str = "") -> None:
    """Write a page, completely or not at all; see `html_page`.

    Raises:
        ValueError: The file could not be written, or is not a page of this library.
    """
    check_page(path)
    write_atomically(path, html_page(title, verdict, sections, note).encode())


def check_page(path: str | Path) -> None:
    """Check, before anything is computed, that a page can have this name.

    Raises:
        ValueError: There is no such folder, or the file exists and is not a page of this library.
    """
    check_file(path)
    path = Path(path)
    if path.exists() and GENERATOR.encode() not in path.read_bytes():
        raise ValueError(f"{path}: exists, and is not a report of metalora; choose another name")


def html_page(title: str, verdict: str, sections: Sequence[Section], note: str = "") -> Html:
    """Return a page as text.

    Args:
        title: Its heading.
        verdict: What it says, in a sentence or two.
        sections: Its parts.
        note: How the numbers were made.

    Example:
        >>> "<h1>a &amp; b</h1>" in html_page("a & b", "It works.", [])
        True
    """
    links = (
        f'<li><a href="#part-{number}">{text(section.title)}</a></li>' for number, section in enumerate(sections, 1)
    )
    return Html(f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_policy()}">
<meta name="viewport" content="width=device-width, initial-scale=1">
{GENERATOR}
<link rel="icon" href="data:,">
<title>{text(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{text(title)}</h1>
{paragraph(verdict, "verdict")}
{paragraph(note) if note else ""}
<nav aria-label="Parts of this page"><ul>{"".join(links)}</ul></nav>
</header>
<main>
{joined(_section(number, section) for number, section in enumerate(sections, 1))}
</main>
<script>{SCRIPT}</script>
</body>
</html>
""")


def _section(number: int, section: Section) -> Html:
    note = paragraph(section.note) if section.note else ""
    heading = f'<h2 id="part-{number}">{text(section.title)}</h2>'
    return Html(f"<section>{heading}\n{note}\n{section.body}\n</section>")


def _policy() -> str:
    """Return the policy of the page: its own style and script by their hashes, pictures inside of it, nothing else."""
    style, script = _hash(STYLE), _hash(SCRIPT)
    return (
        f"default-src 'none'; img-src data:; style-src '{style}'; script-src '{script}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
