"""A base in 16 bits: a small Delta W is neither rounded away in a forward nor rounded twice by merge."""

import pytest
import torch
from torch import nn

from metalora import AdapterConfig, attach, merge, unmerge

SIXTEEN_BITS = (torch.bfloat16, torch.float16)
WIDTH, RANK, POSITIONS = 64, 32, 512  # sizes at which W + Delta W is cheaper than the low-rank product


def tiny_update(dtype):
    """(model, adapter): W is 1 everywhere, and Delta W is plus or minus 2^-12, too small for a sum in 16 bits."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False, dtype=dtype))
    nn.init.ones_(model[0].weight)
    adapter = attach(model, AdapterConfig("lora", rank=RANK, targets=("0",)))
    with torch.no_grad():
        adapter.factors["0.A"].copy_(signs()[:, None] * 2**-12 / RANK)
        adapter.factors["0.B"].fill_(1.0)
    return model, adapter


def signs():
    """+1, -1, +1, ...: an input that W maps to zero."""
    return torch.tensor([1.0, -1.0]).repeat(WIDTH // 2)


@pytest.mark.parametrize("training", (False, True), ids=("inference", "training"))
@pytest.mark.parametrize("dtype", SIXTEEN_BITS, ids=str)
def test_a_forward_in_16_bits_does_not_round_a_small_update_away(dtype, training):
    model, _ = tiny_update(dtype)
    x = signs().to(dtype).expand(POSITIONS, WIDTH)
    with torch.set_grad_enabled(training):
        assert torch.equal(model(x), torch.full((POSITIONS, WIDTH), WIDTH * 2**-12, dtype=dtype))


@pytest.mark.parametrize("training", (False, True), ids=("inference", "training"))
@pytest.mark.parametrize("dtype", SIXTEEN_BITS, ids=str)
def test_a_forward_under_autocast_does_not_round_a_small_update_away(dtype, training):
    model, _ = tiny_update(torch.float32)
    x = signs().expand(POSITIONS, WIDTH)
    with torch.set_grad_enabled(training), torch.autocast("cpu", dtype):
        assert torch.equal(model(x), torch.full((POSITIONS, WIDTH), WIDTH * 2**-12, dtype=dtype))


@pytest.mark.parametrize("dtype", SIXTEEN_BITS, ids=str)
def test_merge_adds_in_float32_and_rounds_once(dtype):
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False, dtype=dtype))
    adapter = attach(model, AdapterConfig("lora", rank=4, targets=("0",)))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(0, 0.3)
    weight = model[0].base.weight.detach().clone()
    delta = (adapter.factors["0.A"] @ adapter.factors["0.B"]).mT.detach()  # float32, (out, in)
    once = (weight.float() + delta).to(dtype)
    twice = (weight.float() + delta.to(dtype).float()).to(dtype)
    assert not torch.equal(once, twice)
    merge(model)
    assert torch.equal(model[0].base.weight, once)
    unmerge(model)
    assert torch.equal(model[0].base.weight, weight)
