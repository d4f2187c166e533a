"""The table of layers whose class does more with its weight than torch's layer of the same kind."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, StdConv2d
from timm.layers import Linear as CastingLinear
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from transformers.models.bart.modeling_bart import BartLearnedPositionalEmbedding
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from metalora.adapters.own_forward import Dependence

BATCH = 3


class Doubled(nn.Linear):
    """A linear layer that scales its output, with the bias."""

    def forward(self, x):
        return 2 * super().forward(x)


class Cosine(nn.Linear):
    """A linear layer that multiplies by the direction of each row of its weight."""

    def forward(self, x):
        return nn.functional.linear(x, nn.functional.normalize(self.weight, dim=1), self.bias)


class Router(nn.Linear):
    """A linear layer that returns the largest weights and their numbers, as routers of experts do."""

    def forward(self, x):
        return super().forward(x).softmax(-1).topk(2)


def closed() -> nn.Module:
    """A standardised convolution whose gains are zero, as at the end of a block that starts as the identity."""
    layer = ScaledStdConv2d(3, 6, 3)
    nn.init.zeros_(layer.gain)
    return layer


class Cropped(nn.ConvTranspose2d):
    """A transposed convolution that drops the border of its output."""

    def forward(self, x):
        return super().forward(x)[..., 1:-1, 1:-1]


@dataclass(frozen=True)
class OwnForward:
    """A layer: a function that makes it, the shape of one example, and how its forward depends on the weight."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    dependence: Dependence
    vocabulary: int = 0

    def base(self) -> nn.Sequential:
        return nn.Sequential(self.make()).double().eval()

    def inputs(self) -> torch.Tensor:
        shape = (BATCH, *self.shape)
        return torch.randint(1, self.vocabulary, shape) if self.vocabulary else torch.randn(shape, dtype=torch.float64)


LINEAR, GENERAL = Dependence.LINEAR, Dependence.GENERAL
OWN_FORWARDS = {
    "casts": OwnForward(lambda: CastingLinear(6, 6), (5, 6), Dependence.SAME_UPDATE),
    "scales its output": OwnForward(lambda: Doubled(6, 6, bias=False), (5, 6), LINEAR),
    "scales its bias too": OwnForward(lambda: Doubled(6, 6), (5, 6), GENERAL),
    "normalises its weight": OwnForward(lambda: Cosine(6, 6), (5, 6), GENERAL),
    "pads its input": OwnForward(lambda: Conv2dSame(3, 6, 3, stride=2), (3, 8, 7), LINEAR),
    "standardises its weight": OwnForward(lambda: StdConv2d(3, 6, 3, padding=1), (3, 7, 7), GENERAL),
    "standardises and scales": OwnForward(lambda: ScaledStdConv2d(3, 6, 3, stride=2), (3, 7, 7), GENERAL),
    "scaled table": OwnForward(lambda: Gemma3TextScaledWordEmbedding(9, 6, 0, embed_scale=3.0), (4,), LINEAR, 9),
    "positions": OwnForward(lambda: BartLearnedPositionalEmbedding(9, 6), (4,), LINEAR, 9),
    "weight norm": OwnForward(lambda: weight_norm(nn.Linear(6, 6)), (5, 6), Dependence.PLAIN),
    "weight norm of a convolution": OwnForward(lambda: weight_norm(nn.Conv2d(3, 6, 3)), (3, 7, 7), Dependence.PLAIN),
    "pads a depthwise one": OwnForward(lambda: Conv2dSame(6, 6, 3, stride=2, groups=6), (6, 8, 7), GENERAL),
    "standardises by groups": OwnForward(lambda: StdConv2d(4, 6, 3, groups=2), (4, 7, 7), GENERAL),
    "weight norm by groups": OwnForward(lambda: weight_norm(nn.Conv1d(4, 6, 3, groups=2)), (4, 9), Dependence.PLAIN),
    "crops a transposed one": OwnForward(lambda: Cropped(4, 6, 3, stride=2), (4, 5, 4), GENERAL),
}
