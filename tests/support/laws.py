"""What several laws run over: cells of method and layer kind, sizes of an input, groups of cases, golden counts."""

import json
from pathlib import Path

import pytest

from support.cases import CASES

EVERY_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
EVERY_CELL = pytest.mark.every_cell  # case x layer; laws/conftest.py chooses the pairs
EVERY_DELTA = pytest.mark.every_cell(has_delta=True)
EVERY_PAIR = pytest.mark.every_cell(has_pair=True)
EVERY_PER_EXAMPLE = pytest.mark.every_cell(per_example=True)
EVERY_BOTTLENECK = pytest.mark.every_cell(has_delta=False)
WITHOUT_PAIR = {name: case for name, case in CASES.items() if not case.has_pair}
GENERATED = {name: case for name, case in CASES.items() if case.per_example}
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "counts.json").read_text())
