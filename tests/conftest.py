"""Settings of the whole suite: fixed seeds, one thread, hypothesis without a deadline."""

import gc
import logging
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # import-mode=importlib adds nothing: this finds `oracles` and `support`
settings.register_profile("suite", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("suite")
torch.set_num_threads(1)
gc.disable()  # until all is collected: ten thousand tests are scanned over and over otherwise
for name, logger in logging.root.manager.loggerDict.items():
    if name.startswith("torch") and isinstance(logger, logging.Logger):
        logger.propagate = True  # pytest adds a handler to each logger that does not propagate, six times a test


def pytest_collection_finish():
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)  # with Python's 700 a tenth of all time goes into looking for cycles
    gc.enable()


def pytest_addoption(parser):
    parser.addoption("--every-cell", action="store_true", help="the laws on every method and layer kind, not a sample")


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same numbers, whatever ran before it.

    Without a card `torch.manual_seed` is left out: it notes the stack for each kind of device, one millisecond a test.
    """
    seed = torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed
    seed(0)
