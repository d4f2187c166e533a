"""The laws of `make gpu` hold on the second device: nothing is made on the CPU that belongs there."""

import pytest
import torch

from metalora.bench.gpu.laws import CASES, check_laws
from support.second_device import CARD

SLOW = pytest.mark.slow  # each half of the pairs finds what the other one does
PAIRS = (
    ("linear", torch.float32),
    ("conv2d", torch.bfloat16),
    pytest.param("linear", torch.bfloat16, marks=SLOW),
    pytest.param("conv2d", torch.float32, marks=SLOW),
)


@pytest.mark.parametrize("layer, dtype", PAIRS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=[case.method for case in CASES])
def test_the_laws_hold_on_a_second_device(case, layer, dtype):
    results = check_laws(case, layer, torch.device(CARD), dtype)
    assert results["passed"], results
