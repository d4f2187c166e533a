"""The settings of the whole suite, and the helpers of the library's tests."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

TESTS = Path(__file__).parent
for folder in (TESTS.parents[1] / "tests", TESTS):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
settings.register_profile("suite", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("suite")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same numbers, whatever ran before it."""
    torch.manual_seed(0)
