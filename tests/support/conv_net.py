"""A small convolutional network, its adapted layers, and the sources of a condition that it has."""

import torch
from torch import nn


def conv_net() -> nn.Module:
    """A small float64 CNN whose parts have names: stem "0", norm "1", body "2.0" and "2.2", head "5"."""
    body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2))
    head = nn.Linear(6, 3)
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), body, pool, nn.Flatten(), head).double().eval()


BODY = ("2.0", "2.2")
SOURCES = {
    "stages": dict(source="stages", stages=("0", "2")),
    "pooled": dict(source="pooled"),
    "stem": dict(source="stem", stem="1"),
}


def images(n: int = 3) -> torch.Tensor:
    return torch.randn(n, 3, 9, 9, dtype=torch.float64)
