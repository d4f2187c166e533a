"""The update under a Mid of each example, as one node of the graph.

Legend: b batch · t token or position of a picture · n rows, b x t · k, k' ranks before and after Mid · o channels out.
Mid is (b, k, k'), or (b, k) if it is a diagonal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


class MixedChannelsAdd(Function):
    """y + Right' Mid' h, in place, for y (b, o, *pos) and h (b, k, *pos) with the channels first and Right (k', o).

    Mid goes to Right if a picture has more positions than channels, otherwise to h: to what has fewer numbers.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, h: Tensor, mid: Tensor, right: Tensor) -> Tensor:
        """Return y, in its own shape, after Right' Mid' h was written into it."""
        ctx.save_for_backward(h, mid, right)
        ctx.mark_dirty(y)
        return add_mixed_channels_(y, h, mid, right)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return dy itself, dh (b, k, *pos), dMid in the shape of Mid and dRight (k', o), summed over the examples."""
        h, mid, right = ctx.saved_tensors
        pixels, hidden = dy.flatten(2), h.flatten(2)  # (b, o, t), (b, k, t)
        _, needs_h, needs_mid, needs_right = ctx.needs_input_grad
        dh = d_mid = d_right = None
        if _mixes_right(hidden, right):
            if needs_h:
                dh = torch.bmm(_times(mid, _of_each(right, hidden)), pixels)
            if needs_mid or needs_right:
                d_up = torch.bmm(hidden, pixels.mT)  # (b, k, o), the gradient of Mid Right
                d_mid = _gradient_of_mid(mid, d_up, _of_each(right, hidden))
                d_right = _times(_transposed(mid), d_up).sum(0)
        else:
            d_mixed = torch.bmm(_of_each(right, hidden), pixels)  # (b, k', t), the gradient of Mid' h
            if needs_h:
                dh = _times(mid, d_mixed)
            if needs_mid:
                d_mid = _gradient_of_mid(mid, hidden, d_mixed)
            if needs_right:
                d_right = torch.bmm(_times(_transposed(mid), hidden), pixels.mT).sum(0)
        return dy, None if dh is None else dh.view(h.shape), d_mid, d_right


def add_mixed_channels_(y: Tensor, h: Tensor, mid: Tensor, right: Tensor) -> Tensor:
    """Write y + Right' Mid' h into y and return it; the shapes are those of `MixedChannelsAdd`.

    Example:
        >>> y, h = torch.zeros(2, 4, 3, 3), torch.ones(2, 5, 3, 3)
        >>> add_mixed_channels_(y, h, torch.tensor([[1.0], [2.0]]).expand(2, 5), torch.ones(5, 4)) is y, y[:, 0, 0, 0]
        (True, tensor([ 5., 10.]))
    """
    hidden = h.flatten(2)  # (b, k, t)
    if _mixes_right(hidden, right):
        y.flatten(2).baddbmm_(_times(mid, _of_each(right, hidden)).mT, hidden)
    else:
        y.flatten(2).baddbmm_(_of_each(right.mT, hidden), _times(_transposed(mid), hidden))
    return y


class MixedRowsAdd(Function):
    """y + h Mid Right, in place, for rows y (n, o) and h (n, k), and Right (k', o)."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, h: Tensor, mid: Tensor, right: Tensor) -> Tensor:
        """Return y after h Mid Right was written into it."""
        ctx.save_for_backward(h, mid, right)
        ctx.mark_dirty(y)
        return add_mixed_rows_(y, h, mid, right)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return dy itself, dh (n, k), dMid in the shape of Mid and dRight (k', o)."""
        h, mid, right = ctx.saved_tensors
        _, needs_h, needs_mid, needs_right = ctx.needs_input_grad
        dh = d_mid = d_right = None
        if needs_h or needs_mid:
            d_mixed = dy @ right.mT  # (n, k')
            if needs_h:
                dh = _mix_rows(d_mixed, _transposed(mid))
            if needs_mid:
                d_mid = _gradient_of_mid(mid, _of_examples(h, mid).mT, _of_examples(d_mixed, mid).mT)
        if needs_right:
            d_right = _mix_rows(h, mid).mT @ dy
        return dy, dh, d_mid, d_right


def add_mixed_rows_(y: Tensor, h: Tensor, mid: Tensor, right: Tensor) -> Tensor:
    """Write y + h Mid Right into y and return it; the shapes are those of `MixedRowsAdd`.

    Example:
        >>> y, h = torch.zeros(4, 3), torch.ones(4, 5)  # two examples of two tokens
        >>> add_mixed_rows_(y, h, torch.tensor([[1.0], [2.0]]).expand(2, 5), torch.ones(5, 3))[:, 0]
        tensor([ 5.,  5., 10., 10.])
    """
    return y.addmm_(_mix_rows(h, mid), right)


def _mix_rows(h: Tensor, mid: Tensor) -> Tensor:
    """Return h Mid for rows h (n, k): (n, k')."""
    rows = _of_examples(h, mid)
    return (rows * mid[:, None] if mid.ndim == 2 else torch.bmm(rows, mid)).flatten(0, 1)


def _of_examples(rows: Tensor, mid: Tensor) -> Tensor:
    """Return rows (n, k) as those of the examples of Mid, (b, t, k)."""
    return rows.view(len(mid), len(rows) // len(mid), rows.shape[1])


def _mixes_right(hidden: Tensor, right: Tensor) -> bool:
    """Return True if Mid Right (b, k, o) has fewer numbers than h (b, k, t)."""
    return hidden.shape[2] > right.shape[1]


def _of_each(matrix: Tensor, hidden: Tensor) -> Tensor:
    """Return one matrix (p, q) as (b, p, q), without a copy."""
    return matrix.expand(len(hidden), *matrix.shape)


def _times(mid: Tensor, operand: Tensor) -> Tensor:
    """Return Mid times an operand (b, k', n): (b, k, n)."""
    return mid[..., None] * operand if mid.ndim == 2 else torch.bmm(mid, operand)


def _transposed(mid: Tensor) -> Tensor:
    """Return Mid' (b, k', k); a diagonal (b, k) is its own."""
    return mid if mid.ndim == 2 else mid.mT


def _gradient_of_mid(mid: Tensor, d_product: Tensor, operand: Tensor) -> Tensor:
    """Return the gradient of Mid, in its shape, of a product Mid times an operand (b, k', n).

    Args:
        mid: Mid, (b, k, k') or (b, k).
        d_product: The gradient of the product, (b, k, n).
        operand: What Mid is multiplied by.
    """
    return (d_product * operand).sum(2) if mid.ndim == 2 else torch.bmm(d_product, operand.mT)
