"""Label sets: class numbers of the items of a draw."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LEAST_SUPPORT = 3  # items of the support set that a class needs


def consecutive_classes(codes: Tensor, support: int) -> Tensor | None:
    """Drop the classes with too few items of the support set, and number the others from 0 without gaps.

    Args:
        codes: Classes of the items of a draw, the support set first, (n,) int64; negative: no class.
        support: Number of items in the support set.

    Returns:
        The classes, (n,) int64, -1 for an item that is not used; None if fewer than two classes are left, or if no
        query has one of them.

    Example:
        >>> consecutive_classes(torch.tensor([5, 5, 5, 9, 2, 2, 2, 2, 9]), support=7)
        tensor([ 1,  1,  1, -1,  0,  0,  0,  0, -1])
    """
    shifted = np.maximum(codes.numpy(), -1) + 1  # 0: no class. For so few numbers numpy is much faster than torch
    counts = np.bincount(shifted[:support], minlength=shifted.max() + 1)
    stays = counts >= LEAST_SUPPORT
    stays[0] = False
    numbers = np.where(stays, stays.cumsum() - 1, -1)
    renumbered = numbers[shifted]
    has_query = (renumbered[support:] >= 0).any()
    return torch.from_numpy(renumbered) if stays.sum() >= 2 and has_query else None
