"""Random numbers from a generator, as Python values."""

from __future__ import annotations

import torch
from torch import Tensor


def chance(probability: float, generator: torch.Generator) -> bool:
    """Return True with a probability."""
    return torch.rand((), generator=generator).item() < probability


def random_whole_number(limit: int, generator: torch.Generator) -> int:
    """Return a whole number from 0 to `limit` - 1."""
    return int(torch.randint(limit, (), generator=generator))


def random_normal(*shape: int, generator: torch.Generator) -> Tensor:
    """Return standard normal numbers of this shape, float32."""
    return torch.randn(shape, generator=generator)


def random_order(count: int, generator: torch.Generator) -> Tensor:
    """Return the numbers from 0 to `count` - 1 in random order, (count,) int64."""
    return torch.randperm(count, generator=generator)


def random_rows(count: int, wanted: int, generator: torch.Generator) -> Tensor:
    """Return different numbers from 0 to `count` - 1 in random order, without a step that costs O(count).

    Args:
        count: The number of rows to choose from.
        wanted: How many are wanted; a few fewer may be returned if `count` is large.
        generator: Source of the randomness.

    Example:
        >>> random_rows(3, 5, torch.Generator().manual_seed(0)).sort().values
        tensor([0, 1, 2])
    """
    if count <= 16 * wanted:
        return random_order(count, generator)[:wanted]
    drawn = torch.randint(count, (wanted + wanted // 4,), generator=generator)
    different = torch.unique(drawn)
    chosen: Tensor = different[random_order(len(different), generator)]
    return chosen[:wanted]
