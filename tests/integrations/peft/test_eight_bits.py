"""Merging into an 8-bit base of bitsandbytes, and back; skipped where the package is not installed."""

import pytest
import torch
from torch import nn

bitsandbytes = pytest.importorskip("bitsandbytes")
peft = pytest.importorskip("peft")

import metalora.peft  # noqa: E402
from support.adapters import randomise  # noqa: E402


def quantised():
    torch.manual_seed(0)
    return nn.Sequential(bitsandbytes.nn.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False)).to("cpu").eval()


def adapted():
    config = metalora.peft.TensorNetworkConfig(method="lora", r=4, target_modules=["0"])
    model = peft.get_peft_model(quantised(), config).eval()
    randomise(metalora.peft.adapter_of(model), std=0.3)
    return model


@pytest.mark.parametrize("ran_before", (True, False))
@torch.no_grad()
def test_unmerging_restores_the_output(ran_before):
    x = torch.randn(4, 64)
    base, live = quantised()(x), adapted()(x)
    model = adapted()
    if ran_before:
        model(x)
    for _ in range(2):
        model.merge_adapter()
        merged = model(x)
        assert (merged - live).abs().max() < 0.1 * (live - base).abs().max()  # W + Delta W has 8 bits
        model.unmerge_adapter()
        assert torch.equal(model(x), live)
    with model.disable_adapter():
        assert torch.equal(model(x), base)
