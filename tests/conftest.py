"""Settings of the whole suite: fixed seeds, one thread, hypothesis without a deadline."""

import gc
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # import-mode=importlib adds nothing: this finds `oracles`
settings.register_profile("suite", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("suite")
torch.set_num_threads(1)
gc.disable()  # until all is collected: ten thousand tests are scanned over and over otherwise


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def pytest_addoption(parser):
    parser.addoption("--every-cell", action="store_true", help="the laws on every method and layer kind, not a sample")


def pytest_generate_tests(metafunc):
    """Laws over method x layer kind: all pairs, or linear and conv2d for every method and a quarter of the others.

    every_cell(delta=True): methods that have a Delta W; False: the bottlenecks, that have none.
    """
    marker = metafunc.definition.get_closest_marker("every_cell")
    if marker is None:
        return
    from oracles.cases import CASES
    from oracles.layers import LAYERS

    every, cells = metafunc.config.getoption("every_cell"), {}
    for k, (name, case) in enumerate(CASES.items()):
        if case.has_delta is not marker.kwargs.get("delta", case.has_delta):
            continue
        for j, (kind, layer) in enumerate(LAYERS.items()):
            if not case.fits(layer):
                continue
            if every or kind in ("linear", "conv2d") or (j + k) % 4 == 0:
                cells[f"{name}-{kind}"] = (case, layer)
    metafunc.parametrize("case, layer", cells.values(), ids=cells)


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same numbers, whatever ran before it."""
    torch.manual_seed(0)
