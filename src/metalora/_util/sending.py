"""Copies from the CPU to a GPU that do not wait until the GPU has done its work."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor on a device.

    A usual copy to a GPU waits for all that the GPU has to do. This one does not, where the CPU has the tensor in usual
    memory: CUDA has read that when the call returns. Pinned memory it reads later, when a caller may have changed it.

    Args:
        tensor: A tensor of any shape on any device.
        device: The device.

    Example:
        >>> sent(torch.ones(2), "cpu")
        tensor([1., 1.])
    """
    if torch.compiler.is_compiling():  # which does not know whether memory is pinned
        return tensor.to(device)
    reads_at_once = tensor.device.type == "cpu" and not tensor.is_pinned()
    return tensor.to(device, non_blocking=reads_at_once)
