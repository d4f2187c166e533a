"""A frozen linear layer with its update as one node of the graph, the update by Triton kernels.

Legend: n rows, examples x tokens · i, o channels in and out · k, k' ranks before and after Mid · m conditions.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

TYPES = (torch.float32, torch.bfloat16, torch.float16)


def low_rank_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    left: Tensor,
    right: Tensor,
    mid: Tensor | None = None,
    index: Tensor | None = None,
) -> Tensor:
    """Compute x W' + bias + ((x Left) Mid) Right, each example with the Mid of its condition.

    All but `index` have one of `TYPES`, on one CUDA card (or on any device in Triton's interpreter).

    Args:
        x: Input (..., i) with at least one row.
        weight: Frozen weight W (o, i).
        bias: Frozen bias (o,), or None.
        left: Left (k, i).
        right: scale * Right (k', o).
        mid: (m, k, k'); None: there is none, and k' is k.
        index: The condition of each example, (examples,), from 0 to m - 1: the rows of x are those of the examples one
            after another, equally many of each. None: example e has condition e.

    Returns:
        y (n, o).
    """
    if torch.is_grad_enabled():
        y: Tensor = TritonLowRankLinear.apply(x, weight, bias, left, right, mid, index)
        return y
    return _forward(x, weight, bias, left, right, mid, index, keep=False)[0]


class TritonLowRankLinear(Function):
    """`low_rank_linear` as one node of the graph; W and the bias are frozen. It cannot be differentiated twice.

    With h = x Left, z = h Mid and dz = dy Right', dh = dz Mid': dx = dy W + dh Left, dLeft = dh' x, dRight = z' dy, and
    dMid = h' dz over the rows of each condition. So dx is the kernel of the forward with Left and Right exchanged.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *factors: Tensor | None) -> Tensor:
        """Return y (n, o); the arguments are those of `low_rank_linear`."""
        left, right, mid, index = factors
        assert left is not None and right is not None
        needs_x, _, _, needs_left, needs_right, needs_mid, _ = ctx.needs_input_grad
        y, hidden, mixed = _forward(x, weight, bias, left, right, mid, index, keep=needs_right or needs_mid)
        kept = (x if needs_left else None, hidden if needs_mid else None, mixed if needs_right else None)
        ctx.save_for_backward(weight, left, right, mid, index, *kept)
        ctx.shape = x.shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return dx (..., i), dLeft (k, i), dRight (k', o) and dMid (m, k, k') from dy (n, o)."""
        from metalora.adapters.triton_kernels.launch import add_low_rank_, factor_gradients, mid_gradient

        weight, left, right, mid, index, x, hidden, mixed = ctx.saved_tensors
        needs_x, _, _, needs_left, needs_right, needs_mid, _ = ctx.needs_input_grad
        dx = dy @ weight if needs_x else None
        dz = dh = None
        if needs_x or needs_left or needs_mid:
            transposed = None if mid is None else mid.mT
            dz, dh = add_low_rank_(dx, dy, right, left, transposed, index, keep=needs_left or needs_mid)
        rows = x.reshape(-1, x.shape[-1]) if needs_left else None
        d_left, d_right = factor_gradients(dh if needs_left else None, rows, left, mixed, dy, right)
        d_mid = mid_gradient(hidden, dz, mid, index) if needs_mid and dz is not None else None
        dx = None if dx is None else dx.view(ctx.shape)
        return dx, None, None, d_left, d_right, d_mid, None


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    left: Tensor,
    right: Tensor,
    mid: Tensor | None,
    index: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return y (n, o), and x Left (n, k) and x Left Mid (n, k') if they are kept."""
    from metalora.adapters.triton_kernels.launch import add_low_rank_

    rows = x.reshape(-1, x.shape[-1])  # (n, i)
    y = F.linear(rows, weight, bias)
    return y, *add_low_rank_(y, rows, left, right, mid, index, keep)
