"""A browser without a window."""

import shutil
from contextlib import contextmanager

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-extensions")


@contextmanager
def a_browser():
    """Start an installed Chromium; the test is skipped without one."""
    playwright = pytest.importorskip("playwright.sync_api", reason='needs pip install "metalora[browser]"')
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"needs one of the programs {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=program, args=list(FLAGS))
        yield launched
        launched.close()
