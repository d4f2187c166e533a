"""The table of layer kinds that the laws run over, and each layer applied with any weight by plain PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

BATCH = 4


@dataclass(frozen=True)
class Layer:
    """A kind of layer: a function that makes one, and the shapes of inputs with few and with many positions."""

    kind: str
    make: Callable[[], nn.Module]
    few: tuple[int, ...]
    many: tuple[int, ...]
    vocabulary: int = 0

    def base(self) -> nn.Sequential:
        return nn.Sequential(self.make()).double().eval()

    def inputs(self, size: str = "few", batch: int = BATCH) -> torch.Tensor:
        shape = (batch, *getattr(self, size))
        if self.vocabulary:
            return torch.randint(self.vocabulary, shape)
        return torch.randn(shape, dtype=torch.float64)


LAYERS = {
    "linear": Layer("linear", lambda: nn.Linear(6, 6), (6,), (7, 6)),
    "linear-4d": Layer("linear", lambda: nn.Linear(6, 6, bias=False), (2, 2, 6), (3, 4, 6)),
    "conv1d": Layer("conv1d", lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2), (4, 5), (4, 17)),
    "conv2d": Layer("conv2d", lambda: nn.Conv2d(3, 6, 3, stride=2, padding=1, dilation=2), (3, 6, 5), (3, 11, 9)),
    "conv2d-1x1": Layer("conv2d", lambda: nn.Conv2d(6, 6, 1, stride=(2, 1)), (6, 3, 2), (6, 5, 4)),
    "conv2d-circular": Layer(
        "conv2d",
        lambda: nn.Conv2d(3, 6, 3, padding=(1, 2), dilation=(1, 2), padding_mode="circular"),
        (3, 2, 2),
        (3, 5, 4),
    ),
    "conv2d-reflect": Layer(
        "conv2d", lambda: nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"), (3, 2, 2), (3, 5, 4)
    ),
    "conv2d-same": Layer("conv2d", lambda: nn.Conv2d(3, 6, (3, 2), padding="same"), (3, 2, 2), (3, 5, 4)),
    "conv1d_gpt2": Layer("conv1d_gpt2", lambda: Conv1D(6, 6), (2, 6), (7, 6)),
    "embedding": Layer("embedding", lambda: nn.Embedding(11, 6), (2,), (7,), vocabulary=11),
}


def apply(base: nn.Module, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The output of the layer with another weight, by plain functions of PyTorch and the arguments of the base."""
    if isinstance(base, nn.Linear):
        return F.linear(x, weight, base.bias)
    if isinstance(base, nn.Embedding):
        return F.embedding(x, weight)
    if isinstance(base, Conv1D):
        return x @ weight + base.bias
    padding = base.padding
    if base.padding_mode != "zeros":
        pad = [n for side in reversed(base.padding) for n in (side, side)]
        x, padding = F.pad(x, pad, mode=base.padding_mode), 0
    conv = F.conv2d if weight.ndim == 4 else F.conv1d
    return conv(x, weight, base.bias, base.stride, padding, base.dilation)
