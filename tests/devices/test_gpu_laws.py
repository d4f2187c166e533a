"""The laws of `make gpu` hold on the second device: nothing is made on the CPU that belongs there."""

import pytest
import torch

from metalora.bench.gpu.laws import CASES, LAYERS, check_laws
from support.second_device import CARD


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("case", CASES, ids=[case.method for case in CASES])
def test_the_laws_hold_on_a_second_device(case, layer):
    for dtype in (torch.float32, torch.bfloat16):
        results = check_laws(case, layer, torch.device(CARD), dtype)
        assert results["passed"], (dtype, results)
