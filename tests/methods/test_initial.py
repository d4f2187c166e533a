"""Initial values beside those that the methods' codes give, by the bound or the deviation of each."""

from math import sqrt

import pytest
import torch
from torch import nn

from metalora import AdapterConfig, attach
from metalora.adapters.init import initial_value
from metalora.methods.registry import get_method

IN, OUT, R, K, SLICES = 96, 80, 8, 3, 12
SIZES = dict(kh=K, kw=K, i1=8, i2=12, o1=8, o2=10, layer=SLICES, proj=2, expert=2, out=OUT) | {"in": IN}


def value(name, factor):
    method = get_method(name)
    sizes = SIZES | dict.fromkeys(method.network.bonds, R)
    modes = method.network.factors[factor]
    shape = [sizes[mode] for mode in modes]
    return initial_value(method.init[factor], modes, shape, 0, f"{name}.{factor}", method.network, sizes)


def test_a_configured_initialisation_takes_the_place_of_the_start_from_the_weight():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6))
    start = attach(net, AdapterConfig("pissa", 2, targets="0", init={"B": "ones:3"})).factors
    assert start["0.B_0"].eq(3).all() and not start["0.B"].any()
    u, s, _ = torch.linalg.svd(net[0].base.weight.T)
    torch.testing.assert_close(start["0.A_0"].abs(), (u[:, :2] * s[:2].sqrt()).abs(), rtol=1e-5, atol=1e-5)


with torch.random.fork_rng(devices=[]):
    torch.manual_seed(0)
    UNIFORM = {
        ("lora", "A"): nn.Conv2d(IN, R, K).weight,
        ("vera", "A"): nn.init.kaiming_uniform_(torch.empty(R, IN * K * K)),
        ("vera", "B"): nn.init.kaiming_uniform_(torch.empty(OUT, R)),
        ("fact-tt", "U"): nn.Linear(IN * K * K, R).weight,
        ("fact-tt", "S"): nn.Linear(R, R).weight,
        ("locon-tucker", "A"): nn.Conv2d(IN, R, 1).weight,
        ("locon-tucker", "M"): nn.Conv2d(R, R, K).weight,
        ("lokr-tucker", "M"): nn.Conv2d(R, R, K).weight,
        ("lokr", "A"): nn.Conv2d(12, R, K).weight,
        ("multi-lora", "B"): nn.Linear(R, OUT).weight,
    }
    NORMAL = {
        ("fact-tk", "C"): nn.init.xavier_normal_(torch.empty(R, R, R)),
        ("fact-tk", "P"): nn.init.xavier_normal_(torch.empty(R, SLICES * 2)),
        ("cara", "A1"): nn.init.xavier_normal_(torch.empty(SLICES * 2, R)),
    }


@pytest.mark.parametrize("name, factor", UNIFORM, ids=str)
def test_uniform_values_have_the_bound_of_torchs_layer(name, factor):
    found, like = value(name, factor), UNIFORM[name, factor].detach()
    _, fan_in = like.flatten(1).shape
    bound = sqrt((6 if name == "vera" else 1) / fan_in)  # a gain of sqrt 2, or LoRA's
    for one in (found, like):
        assert 0.9 * bound < one.abs().max() <= bound * (1 + 1e-6)


@pytest.mark.parametrize("name, factor", NORMAL, ids=str)
def test_normal_values_have_the_deviation_of_torchs(name, factor):
    found, like = value(name, factor), NORMAL[name, factor]
    rows, columns = like.shape[0] * like[0, 0].numel(), like.shape[1] * like[0, 0].numel()
    for one in (found, like):
        assert float(one.std()) == pytest.approx(sqrt(2 / (rows + columns)), rel=0.15)
