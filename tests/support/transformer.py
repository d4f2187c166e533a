"""A small transformer with grouped heads, a fused qkv and an MLP, and one adapter for all of its layers."""

import copy

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from metalora import AdapterConfig, ConditionConfig, attach, count_params, detach, load, merge, save
from support.adapters import assert_close, randomise

WIDTH, HEAD, DEPTH = 6, 2, 3


class Attention(nn.Module):
    """Query with three heads, key with one (grouped), a fused qkv beside them, and an output projection."""

    def __init__(self):
        super().__init__()
        self.head_dim = HEAD
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, HEAD)
        self.qkv, self.c_attn = nn.Linear(WIDTH, 3 * WIDTH), Conv1D(3 * WIDTH, WIDTH)

    def forward(self, x):
        return self.query(x) + self.qkv(x)[..., :WIDTH] + self.c_attn(x)[..., -WIDTH:] + self.key(x).repeat(1, 1, 3)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = Attention()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x):
        x = x + self.attention(x)
        return x + self.down(torch.relu(self.up(x)))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.head = nn.ModuleList(Block() for _ in range(DEPTH)), nn.Linear(WIDTH, 2)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def small_transformer():
    torch.manual_seed(0)
    return Transformer().double().eval()


def attach_to_transformer(method="metatt-4d", rank=2, **changes):
    """(model, adapter with random factors); the factors of every target by layer and name of the projection."""
    net = small_transformer()
    options = dict(targets="*layers*", alpha=0.5, condition=ConditionConfig(scope="constant")) | changes
    adapter = attach(net, AdapterConfig(method, rank, **options))
    randomise(adapter)
    return net, adapter


def check_whole_model(folder, **options):
    """Forward, gradient, file, merge, copy and count of all targets at once; the base is left as it was."""
    net, adapter = attach_to_transformer(**options)
    x = torch.randn(4, 5, WIDTH, dtype=torch.float64)
    task = {"task_ids": 2} if adapter.config.tasks > 1 else {}
    output = net(x, **task)
    assert adapter.num_params() == count_params(adapter.config, list(adapter.targets.values()))
    output.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapter.parameters())
    assert adapter.state.forward is None
    save(net, folder / "adapter")
    loaded = load(small_transformer(), folder / "adapter").model
    torch.testing.assert_close(loaded(x, **task), output, rtol=0, atol=0)
    twin = copy.deepcopy(net)
    twin.zero_grad()
    merge(twin, adapter.task(2) if task else None)
    assert_close(twin(x), output)
    detach(twin)
    weights, plain_weights = twin.state_dict().values(), small_transformer().state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(weights, plain_weights, strict=True))
