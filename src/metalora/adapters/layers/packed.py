"""The tokens of one row as rows of a batch: what a layer computes with if each token has its own factors."""

from __future__ import annotations

from torch import Tensor


def tokens_as_rows(x: Tensor, tokens: int) -> tuple[Tensor, bool]:
    """Return the tokens of one row as rows of a batch, and whether the input was one row.

    Args:
        x: Input of a layer, (1, t, ..), or (t, ..) of a layer that reads tokens without a batch axis, such as a router.
        tokens: How many tokens have values.

    Returns:
        (t, 1, ..) and True; or the input and False, which the layer compares with the number of values.

    Example:
        >>> import torch
        >>> rows, packed = tokens_as_rows(torch.zeros(1, 5, 3), 5)
        >>> rows.shape, packed
        (torch.Size([5, 1, 3]), True)
        >>> tokens_as_rows(torch.zeros(5, 3), 5)[1]
        False
    """
    is_one_row = x.ndim > 1 and x.shape[0] == 1 and x.shape[1] == tokens
    return (x.transpose(0, 1), True) if is_one_row else (x, False)
