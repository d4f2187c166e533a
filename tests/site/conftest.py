"""The documentation site, built once for each file of tests, and a browser that looks at it."""

import subprocess
import sys
from pathlib import Path

import pytest

from support.browser import a_browser
from support.site import served

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site; a warning of the build is an error."""
    pytest.importorskip("mkdocstrings", reason='needs pip install "metalora[docs]"')
    folder = tmp_path_factory.mktemp("site")
    # without --quiet, which would hide the warnings from --strict
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def address(site):
    """The address of the built site."""
    with served(site) as at:
        yield at


@pytest.fixture(scope="module")
def browser():
    """A browser; the tests are skipped without one."""
    with a_browser() as launched:
        yield launched
