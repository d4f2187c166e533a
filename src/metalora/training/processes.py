"""Several processes of one training, as `accelerate launch` starts them."""

from __future__ import annotations

import torch


def process_index() -> int:
    """Return the number of this process among those that train together, from 0; 0 if it is alone.

    Example:
        >>> process_index()
        0
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return 0
