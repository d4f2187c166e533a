"""A convolutional network in channels_last: its weights change their layout, its outputs do not."""

import pytest
import torch
from torch import nn

from metalora import AdapterConfig, ConditionConfig, attach
from metalora.methods.registry import METHODS
from support.adapters import randomise

LAST = torch.channels_last


class Network(nn.Module):
    """Two numbered convolutions with as many channels as any method needs, then a head."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)])
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 3)

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        self.format = x.is_contiguous(memory_format=LAST)
        return self.head(self.norm(x).mean((2, 3)))


def adapted(method, **options):
    torch.manual_seed(0)
    model = Network().double().eval()
    condition = ConditionConfig(scope="constant")
    config = AdapterConfig(
        method, rank=4, targets="layers.*", head_dim=2, condition=condition, clip_rank=True, **options
    )
    adapter = attach(model, config)
    randomise(adapter, 0.3)
    return model, adapter


@pytest.mark.parametrize("method", METHODS)
def test_the_output_stays_and_the_base_is_in_channels_last(method):
    hidden = {"digits": {"hidden": "2 4"}} if method == "loretta-adp" else {}
    model, adapter = adapted(method, **hidden)
    x = torch.randn(2, 8, 5, 7, dtype=torch.float64)
    want = model(x)
    assert not model.format
    assert model.to(memory_format=LAST) is model
    assert all(layer.base.weight.is_contiguous(memory_format=LAST) for layer in model.layers)
    output = model(x.to(memory_format=LAST))
    assert model.format
    torch.testing.assert_close(output, want, rtol=1e-10, atol=1e-10)
    output.sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in adapter.parameters())


MOVES = {
    "another type": (lambda model: model.float(), torch.float32, "cpu"),
    "another device": (lambda model: model.to("meta"), torch.float64, "meta"),
    "both and a format": (lambda model: model.to("meta", torch.float16, memory_format=LAST), torch.float16, "meta"),
    "shared memory": (lambda model: model.share_memory(), torch.float64, "cpu"),
}


@pytest.mark.parametrize("move, dtype, device", MOVES.values(), ids=MOVES)
def test_factors_of_five_axes_move_like_all_others(move, dtype, device):
    model, adapter = adapted("task-lora", tasks=2)
    before = {name: value.clone() for name, value in adapter.learned.items()}
    assert max(value.ndim for value in before.values()) == 5
    move(model)
    for name, value in adapter.learned.items():
        assert (value.dtype, value.device.type, value.shape) == (dtype, device, before[name].shape)
        assert value.is_leaf and value.requires_grad
        assert device == "meta" or torch.equal(value.to(torch.float64), before[name].to(dtype).to(torch.float64))
        assert value.is_shared() == (move is MOVES["shared memory"][0])
