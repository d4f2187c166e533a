"""The cases of the Triton kernels on a CUDA card."""

import pytest
import torch

from support.triton_cases import CASES

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")]


@pytest.mark.parametrize("name", CASES)
def test_the_triton_kernels_on_the_card(name):
    CASES[name]("cuda")
