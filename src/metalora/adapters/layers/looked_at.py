"""What a compiled model may ask the weight of a layer that has no single W + Delta W."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LookedAt:
    """The type, the device and the shape of a tensor without its numbers; to compute with it is a TypeError.

    Example:
        >>> LookedAt.of(torch.ones(2, 3)).size(-1)
        3
    """

    dtype: torch.dtype
    device: torch.device
    shape: torch.Size
    requires_grad: bool = False

    @classmethod
    def of(cls, tensor: Tensor) -> LookedAt:
        """Return what a tensor of any shape looks like."""
        return cls(tensor.dtype, tensor.device, tensor.shape, tensor.requires_grad)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def dim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def size(self, axis: int | None = None) -> torch.Size | int:
        """The shape, or the length of an axis."""
        return self.shape if axis is None else self.shape[axis]

    def numel(self) -> int:
        """The number of numbers."""
        return self.shape.numel()

    def is_floating_point(self) -> bool:
        """Whether the numbers are floating-point numbers."""
        return self.dtype.is_floating_point
