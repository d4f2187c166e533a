"""Eq. 2 of MetaLoRA: a convolution, and the adapted one, is the contraction of a network with dummy tensors."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metalora import AdapterConfig, ConditionConfig, attach
from metalora.tensornet.dummy_tensor import dummy_tensor
from support.adapters import randomise

PLAIN = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
CONVOLUTIONS = {
    "plain": {},
    "stride": {"stride": (2, 3)},
    "padding": {"padding": (2, 1)},
    "dilation": {"dilation": (1, 2)},
    "all three": {"stride": (3, 2), "padding": (1, 4), "dilation": (2, 3)},
    "padding beyond the kernel": {"stride": (2, 1), "padding": (4, 3)},
}
METHODS = {  # method -> rank, and its factors in letters: kernel h w, input channel i, output channel o, bonds
    "conv-lora": (2, {"A": "hwir", "B": "ro"}),
    "metalora-cp": (3, {"A": "hwir", "c": "r", "B": "ro"}),
    "metalora-tr": ({"r0": 2, "r1": 3, "r2": 4}, {"A": "phwiq", "B": "qos", "C": "sp"}),
}


@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("method", METHODS)
def test_an_adapted_convolution_is_one_contraction(method, options):
    torch.manual_seed(0)
    rank, spec = METHODS[method]
    conv = nn.Conv2d(4, 6, (3, 2), bias=False, **options).double()
    weight = conv.weight.detach().clone()
    model = nn.Sequential(conv)
    condition = ConditionConfig(scope="constant")
    adapter = attach(model, AdapterConfig(method, rank=rank, targets="0", condition=condition))
    randomise(adapter)
    factors = {name: adapter.factors[f"0.{name}"].detach() for name in spec}
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    height, width = [
        dummy_tensor(length, size, stride=s, padding=p, dilation=d, dtype=torch.float64)
        for length, size, s, p, d in zip((9, 8), (3, 2), *{**PLAIN, **options}.values(), strict=True)
    ]
    base = torch.einsum("biyx,yYh,xXw,oihw->boYX", x, height, width, weight)
    # The whole network at once: ΔW is never formed.
    equation = f"biyx,yYh,xXw,{','.join(spec.values())}->boYX"
    contracted = base + torch.einsum(equation, x, height, width, *factors.values())
    delta = torch.einsum(f"{','.join(spec.values())}->oihw", *factors.values())
    assert delta.abs().max() > 0.1
    torch.testing.assert_close(contracted, F.conv2d(x, weight + delta, **options), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(contracted, model(x).detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride, padding, dilation", [(1, 0, 1), (2, 1, 1), (3, 5, 2), (1, 2, 3)])
def test_it_is_one_exactly_where_the_paper_says(stride, padding, dilation):
    P = dummy_tensor(11, 4, stride=stride, padding=padding, dilation=dilation)
    signal, kernel = torch.randn(11), torch.randn(4)
    expected = F.conv1d(signal[None, None], kernel[None, None], None, stride, padding, dilation)[0, 0]
    assert P.shape == (11, len(expected), 4)
    ones = {
        (j, j_out, k)
        for j in range(11)
        for j_out in range(len(expected))
        for k in range(4)
        if j == stride * j_out + dilation * k - padding
    }
    assert {tuple(index) for index in P.nonzero().tolist()} == ones and P.sum() == len(ones)
    torch.testing.assert_close(torch.einsum("jyk,j,k->y", P, signal, kernel), expected)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"length": 0}, "length is 0, expected at least 1"),
        ({"stride": 0}, "stride is 0"),
        ({"dilation": -1}, "dilation is -1"),
        ({"padding": -1}, "padding is -1, expected at least 0"),
        ({"kernel_size": 4, "dilation": 2}, "the kernel reaches over 7 of 5 padded positions"),
    ],
)
def test_sizes_that_make_no_convolution_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dummy_tensor(**{"length": 5, "kernel_size": 2, **options})
