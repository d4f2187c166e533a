"""A sample of the laws on a CUDA card, in float32 and in bfloat16, against float64 on the CPU."""

import pytest
import torch

from metalora.bench.gpu.laws import CASES, LAYERS, check_laws

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")]


@pytest.fixture(autouse=True)
def full_float32(monkeypatch):
    """Convolutions compute in float32; by default they round their inputs to 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("case", CASES, ids=[case.method for case in CASES])
def test_the_laws_hold_on_the_card(case, layer, dtype):
    results = check_laws(case, layer, torch.device("cuda"), dtype)
    assert results["passed"], results
