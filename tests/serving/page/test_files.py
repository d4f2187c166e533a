"""The files of the page without a browser: headers, size, nothing of others, colours that can be read."""

import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from metalora.serving.page import add_page
from metalora.serving.page.page import STATIC

FILES = sorted(STATIC.iterdir())
SCRIPTS = [path for path in FILES if path.suffix == ".js"]
MOST_BYTES = 80_000
SVG_NAMESPACE = "http://www.w3.org/2000/svg"
TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
COLOURS_ON_BACKGROUNDS = (
    ("text", "card"), ("text", "back"), ("text", "chosen"), ("faint", "card"), ("faint", "back"), ("faint", "chosen"),
    ("on-accent", "accent"), ("accent", "card"), ("warn", "warn-back"), ("wrong", "card"), ("wrong", "wrong-back"),
)  # fmt: skip


@pytest.fixture(scope="module")
def client():
    app = FastAPI()
    add_page(app)
    return TestClient(app)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_is_served_as_it_is_with_a_strict_policy(client, path):
    reply = client.get(f"/page/{path.name}")
    assert reply.content == path.read_bytes()
    assert reply.headers["content-type"].partition(";")[0] == TYPES[path.suffix]
    policy = reply.headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'"} <= set(policy)
    assert "unsafe" not in str(policy)
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_the_page_is_at_the_root(client):
    reply = client.get("/")
    assert reply.content == (STATIC / "index.html").read_bytes()
    assert reply.headers["content-security-policy"]
    assert reply.headers["referrer-policy"] == "no-referrer"


def test_a_browser_that_has_a_file_gets_304(client):
    tag = client.get("/page/main.js").headers["etag"]
    assert client.get("/page/main.js", headers={"If-None-Match": tag}).status_code == 304


@pytest.mark.parametrize("path", ("nothing.js", "../page.py", "..%2fpage.py", "%2e%2e/page.py"))
def test_nothing_else_is_served(client, path):
    assert client.get(f"/page/{path}").status_code == 404


def test_all_files_are_small():
    assert sum(path.stat().st_size for path in FILES) < MOST_BYTES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_names_an_address_elsewhere(path):
    text = path.read_text().replace(SVG_NAMESPACE, "")
    assert not re.findall(r"\w+://|[\"'(]//\w", text)


def test_every_file_that_is_named_exists_and_every_file_is_named():
    text = (STATIC / "index.html").read_text()
    named = {*re.findall(r'(?:src|href)="page/([^"]+)"', text), "index.html"}
    for script in SCRIPTS:
        named |= set(re.findall(r'from "\./([^"]+)"', script.read_text()))
    assert named == {path.name for path in FILES}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_script_puts_text_in_as_html(path):
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(", path.read_text())


def test_the_page_has_no_script_and_no_style_of_its_own():
    text = (STATIC / "index.html").read_text()
    assert not re.findall(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", text)


@pytest.mark.parametrize("scheme", ("light", "dark"))
@pytest.mark.parametrize(("colour", "background"), COLOURS_ON_BACKGROUNDS)
def test_colours_have_the_contrast_of_wcag_aa(scheme, colour, background):
    colours = schemes()[scheme]
    brighter, darker = sorted((luminance(colours[colour]), luminance(colours[background])), reverse=True)
    assert (brighter + 0.05) / (darker + 0.05) >= 4.5


def schemes():
    """The colours of each scheme, by name."""
    blocks = re.findall(r":root \{(.*?)\}", (STATIC / "style.css").read_text(), re.S)
    light, dark = (dict(re.findall(r"--([\w-]+): #(\w+);", block)) for block in blocks)
    return {"light": light, "dark": light | dark}


def luminance(colour):
    """The relative luminance of a colour in hexadecimal, as WCAG 2 defines it."""
    digits = colour if len(colour) == 6 else "".join(2 * digit for digit in colour)
    shares = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
