"""A number for the bits of a tensor, which shows later whether they have changed."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 1 << 20  # numbers that are hashed at a time: the products below need eight bytes each
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integers by the bytes of a number."""
MULTIPLIER = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 divided by the golden ratio, as an integer with a sign


@torch.no_grad()
def bit_hash(tensor: Tensor) -> int:
    """Return a number that depends on every bit of a tensor and on its place: the sum of bits times place, mod 2^64.

    It is the same on every device and in every memory format, and another one in another type. It costs a pass over
    the tensor where it is, without a copy to the CPU.

    Args:
        tensor: Numbers of one, two, four or eight bytes, of any shape.

    Example:
        >>> weight = torch.arange(4.0).reshape(2, 2)
        >>> bit_hash(weight) == bit_hash(weight.clone()), bit_hash(weight) == bit_hash(weight.T)
        (True, False)
    """
    bits = tensor.detach().contiguous().flatten().view(INTEGERS[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for number, chunk in enumerate(torch.split(bits, CHUNK)):
        place = torch.arange(1, len(chunk) + 1, device=bits.device) + number * CHUNK
        place *= MULTIPLIER
        place ^= place >> 29  # no longer linear in the place, so that no two small changes cancel
        total += (place * chunk.long()).sum()
    return int(total)
