"""A small transformer with grouped heads, a fused qkv and an MLP, and one adapter for all of its layers."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from metalora import AdapterConfig, ConditionConfig, attach
from support.adapters import randomise

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
