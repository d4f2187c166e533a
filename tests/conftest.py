"""Settings of the whole suite."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # import-mode=importlib adds nothing: this finds `oracles` and `support`
from support import suite  # noqa: E402 (found by the line above)

suite.before_collection()


def pytest_collection_finish():
    suite.after_collection()


def pytest_addoption(parser):
    parser.addoption("--every-cell", action="store_true", help="the laws on every method and layer kind, not a sample")


@pytest.fixture(autouse=True, scope="module")
def without_old_objects():
    """Every file of tests begins without garbage."""
    suite.forget_old_objects()


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same numbers."""
    suite.seed_torch()
