"""The settings of the whole suite, and the helpers of the library's tests."""

import sys
import threading
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
for folder in (TESTS.parents[1] / "tests", TESTS):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
from support import suite  # noqa: E402 (found by the lines above)

suite.before_collection()


def pytest_collection_finish():
    suite.after_collection()


@pytest.fixture(autouse=True, scope="module")
def without_old_objects():
    """Every file of tests begins without garbage."""
    suite.forget_old_objects()


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same numbers."""
    suite.seed_torch()


@pytest.fixture(scope="session")
def emoji_registry(tmp_path_factory):
    """Packages of two vendors on a local registry, and its address."""
    from papers_oracles.emoji import Quiet, write_registry

    root = tmp_path_factory.mktemp("registry")
    packages = write_registry(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=root))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield packages, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="session")
def emoji_folder(emoji_registry, tmp_path_factory):
    """The two packages, fetched."""
    from metalora_papers.metalora.emoji_packages import fetch_emoji

    packages, address = emoji_registry
    folder = tmp_path_factory.mktemp("cache")
    files = fetch_emoji(("google", "apple"), folder, registry=address, packages=packages)
    assert [file.name for file in files] == ["google-16.0.0.safetensors", "apple-16.0.0.safetensors"]
    assert sorted(folder.iterdir()) == sorted(files)  # the archives are gone
    return folder
