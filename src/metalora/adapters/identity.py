"""Identity matrices, each made once: on a card it would be two launches every time."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache
def identity_matrix(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the identity matrix (size, size); nobody may change it.

    Example:
        >>> identity_matrix(2, torch.float32, torch.device("cpu"))
        tensor([[1., 0.],
                [0., 1.]])
    """
    with torch.inference_mode(False):  # autograd may save it later
        return torch.eye(size, dtype=dtype, device=device)
