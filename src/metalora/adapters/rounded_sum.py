"""The sum that a merge stores: rounded once, and checked before anything changes."""

from __future__ import annotations

import torch
from torch import Tensor


def rounded_sum(stored: Tensor, change: Tensor, place: str) -> Tensor:
    """Return a weight or a bias with its change, in the type of the weight.

    Args:
        stored: What the base has.
        change: What is added to it, in the precision of the factors.
        place: What messages call it, such as "target 'fc'".

    Raises:
        ValueError: The change is for several examples or is not finite, or the sum is beyond the numbers of the type.

    Example:
        >>> rounded_sum(torch.ones(1).half(), torch.tensor([70000.0]), "target 'fc'")
        Traceback (most recent call last):
        ValueError: merge: target 'fc': 70001 is beyond the largest number of float16, 65504; convert the base first
    """
    if change.shape != stored.shape:
        raise ValueError(f"merge: {place}: its change is {tuple(change.shape)}, expected {tuple(stored.shape)}")
    if not torch.isfinite(change).all():
        raise ValueError(f"merge: NaNs detected in the merged weights of {place}")
    exact = stored.to(change.dtype) + change
    total = exact.to(stored.dtype)
    beyond = torch.isfinite(stored) & ~torch.isfinite(total)  # a base may hold an infinity itself
    if beyond.any():
        name, largest = str(stored.dtype).removeprefix("torch."), torch.finfo(stored.dtype).max
        raise ValueError(
            f"merge: {place}: {float(exact[beyond][0]):g} is beyond the largest number of {name}, {largest:g}; "
            "convert the base first"
        )
    return total
