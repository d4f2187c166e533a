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

    @property
    def positions(self) -> int:
        """Number of the axes of positions of the output, behind the axis of channels; 0 for channels last."""
        return int(self.kind[-2]) if "conv" in self.kind and self.kind.endswith("d") else 0

    @property
    def groups(self) -> int:
        return getattr(self.make(), "groups", 1)

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
    "grouped_conv1d": Layer(
        "grouped_conv1d",
        lambda: nn.Conv1d(8, 6, 3, padding=2, dilation=2, padding_mode="circular", groups=2),
        (8, 5),
        (8, 17),
    ),
    "grouped_conv2d": Layer(
        "grouped_conv2d", lambda: nn.Conv2d(9, 6, (3, 2), stride=2, padding=1, groups=3), (9, 5, 6), (9, 11, 9)
    ),
    "conv3d": Layer("conv3d", lambda: nn.Conv3d(6, 6, (2, 3, 2), (1, 2, 1), groups=2), (6, 2, 4, 3), (6, 4, 5, 4)),
    "conv_transpose1d": Layer(
        "conv_transpose1d", lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), (4, 3), (4, 17)
    ),
    "conv_transpose2d": Layer(
        "conv_transpose2d",
        lambda: nn.ConvTranspose2d(6, 6, (3, 2), stride=2, padding=1, dilation=(1, 2), groups=2),
        (6, 2, 3),
        (6, 5, 6),
    ),
    "conv_transpose3d": Layer(
        "conv_transpose3d", lambda: nn.ConvTranspose3d(3, 6, (1, 2, 2), stride=2), (3, 2, 2, 1), (3, 2, 3, 4)
    ),
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
    if isinstance(base, nn.modules.conv._ConvTransposeNd):
        conv = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}[weight.ndim]
        return conv(x, weight, base.bias, base.stride, padding, base.output_padding, base.groups, base.dilation)
    conv = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[weight.ndim]
    return conv(x, weight, base.bias, base.stride, padding, base.dilation, base.groups)
