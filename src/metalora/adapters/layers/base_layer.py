"""What the base layers have that can be adapted, as a type: `nn.Module` says only that an attribute is a tensor or a
module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:

    class BaseLayer(nn.Module):
        """A layer that can be adapted; a convolution has all of it, other layers the weight and perhaps a bias."""

        weight: nn.Parameter
        bias: nn.Parameter | None
        stride: tuple[int, ...]
        padding: tuple[int, ...] | str | int
        dilation: tuple[int, ...]
        kernel_size: tuple[int, ...]
        padding_mode: str
        _reversed_padding_repeated_twice: list[int]

        def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...

else:
    BaseLayer = nn.Module
