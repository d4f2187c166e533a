"""NormalFloat, the data type of QLoRA (arXiv:2305.14314): numbers rounded to levels in blocks, as they are after it."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64  # numbers that share one scale, as in bitsandbytes


def levels(bits: int) -> Tensor:
    """The 2^bits levels of NormalFloat between -1 and 1, rising, in float64.

    They are quantiles of the normal distribution, divided by the largest, with an exact zero: 2^(bits - 1) of them are
    positive, and one fewer is negative. The outermost probability is 1 - (1 / n + 1 / (n - 2)) / 2, n = 2^(bits + 1).

    Args:
        bits: Number of bits; 4 for NF4.

    Example:
        >>> levels(2)
        tensor([-1.0000,  0.0000,  0.4358,  1.0000], dtype=torch.float64)
    """
    half = 2 ** (bits - 1)
    outermost = 1 - (1 / (4 * half) + 1 / (4 * half - 2)) / 2
    positive = torch.special.ndtri(torch.linspace(outermost, 0.5, half + 1, dtype=torch.float64)[:-1])
    negative = -torch.special.ndtri(torch.linspace(outermost, 0.5, half, dtype=torch.float64)[:-1])
    rising: Tensor = torch.cat([negative, positive.new_zeros(1), positive.flip(0)]) / positive[0]
    return rising


def rounded(matrix: Tensor, bits: int) -> Tensor:
    """Round a matrix to NormalFloat and back: each number is a level times the largest magnitude of its block.

    Args:
        matrix: (rows, columns), float64. Blocks are 64 neighbours in the order of its rows; the last may be shorter.
        bits: Number of bits.

    Returns:
        The rounded numbers (rows, columns).

    Example:
        >>> rounded(torch.tensor([[-2.0, 0.7, 1.9]], dtype=torch.float64), bits=2)
        tensor([[-2.0000,  0.8716,  2.0000]], dtype=torch.float64)
    """
    padding = -matrix.numel() % BLOCK
    blocks = torch.nn.functional.pad(matrix.flatten(), (0, padding)).reshape(-1, BLOCK)
    largest = blocks.abs().amax(1, keepdim=True)
    table = levels(bits)
    middles = (table[1:] + table[:-1]) / 2
    # a block of zeros has no scale, and zero is a level
    nearest = table[torch.bucketize(blocks / torch.where(largest > 0, largest, 1.0), middles)]
    return (nearest * largest).flatten()[: matrix.numel()].reshape(matrix.shape)
