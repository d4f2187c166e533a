"""The adapter's products written into the base's, with backwards of their own: the passes over whole activations that
plain autograd adds beside the frozen layer are left out. The same numbers as the plain path up to rounding.

Legend: b batch · t token or position · k rank of the cut · i, o channels in and out.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function


def usable() -> bool:
    """Whether autograd alone transforms what runs now: not torch.compile, which fuses by itself, and no torch.func."""
    return not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active())


class FusedLinearDown(Function):
    """(x W' + bias, x A') in one node: (b.., i), (o, i), (o), (k, i) -> (b.., o), (b.., k); no kernel, no hidden.

    W and the bias are frozen. Backward adds the hidden's part into that of the base: dx = dy W + dh A, dA = dh' x.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, kernel: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(x if ctx.needs_input_grad[3] else None, weight, kernel)
        ctx.set_materialize_grads(False)
        ctx.shape = x.shape
        return F.linear(x, weight, bias), None if kernel is None else F.linear(x, kernel)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dh: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, kernel = ctx.saved_tensors
        dx = dkernel = None
        if dh is not None:
            dh = dh.reshape(-1, dh.shape[-1])
        if ctx.needs_input_grad[0] and dy is not None:
            dx = dy.reshape(-1, dy.shape[-1]) @ weight
        if ctx.needs_input_grad[0] and dh is not None:
            dx = dh @ kernel if dx is None else dx.addmm_(dh, kernel)
        if ctx.needs_input_grad[3] and dh is not None:
            dkernel = dh.mT @ x.reshape(-1, x.shape[-1])
        return None if dx is None else dx.view(ctx.shape), None, None, dkernel


class InplaceLowRankAdd(Function):
    """y + h Right, in place: y (b, .., o) with (b, t, k) and (k, o) or (b, k, o).

    `channels` is the axis of y that holds o: -1, or 1 for a picture. The gradient of y passes through untouched.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, h: Tensor, up: Tensor, channels: int) -> Tensor:
        ctx.save_for_backward(h, up)
        ctx.channels = channels
        ctx.mark_dirty(y)
        return _add_product(y, h, up, channels)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        h, up = ctx.saved_tensors
        rows = _rows(dy, ctx.channels)
        dh = dup = None
        if _few(rows, up):
            rows, h = rows.contiguous(), h.contiguous()
        flat = up.ndim == 2 and rows.is_contiguous()
        if ctx.needs_input_grad[1]:
            if flat:
                dh = rows @ up.mT
            else:  # in the layout of h; matmul would copy dy to fold its examples into rows
                dh = (up.expand(len(rows), *up.shape[-2:]) @ rows.mT).mT
        if ctx.needs_input_grad[2]:
            if flat and h.is_contiguous():
                dup = h.flatten(0, 1).mT @ rows.flatten(0, 1)
            else:
                dup = h.mT @ rows
                dup = dup.sum(0) if up.ndim == 2 else dup if len(up) == len(h) else dup.sum(0, keepdim=True)
        return dy, dh, dup, None


def add_product(y: Tensor, h: Tensor, up: Tensor, channels: int) -> Tensor:
    """`InplaceLowRankAdd`, without its node where nothing is to be differentiated."""
    return (InplaceLowRankAdd.apply if torch.is_grad_enabled() else _add_product)(y, h, up, channels)


def _add_product(y: Tensor, h: Tensor, up: Tensor, channels: int) -> Tensor:
    rows = _rows(y, channels)
    if up.ndim == 2 and rows.is_contiguous():
        rows.view(-1, rows.shape[-1]).addmm_(h.reshape(-1, h.shape[-1]), up)
    elif _few(rows, up):
        rows += h @ up
    else:  # channels before positions: the transposed product, whose result is contiguous
        rows.mT.baddbmm_(up.mT.expand(len(h), *up.mT.shape[-2:]), h.mT)
    return y


class SharedInputCache:
    """x Left of the layer before, for those beside it that get the same x and read the same Left: Q, K and V.

    Kept while a model runs, forward or in the backward that recomputes a checkpointed block, so that a block computes
    the same in both; only between layers of one parent, each of which takes it once.
    """

    def __init__(self) -> None:
        self.running = False
        self.clear()

    def clear(self, running: bool = False) -> None:
        """Forget what is kept; `running` while a forward runs."""
        self.running, self.key, self.x, self.hidden, self.takers = running, None, None, None, set()

    def take(self, key: tuple, x: Tensor, path: str) -> Tensor | None:
        """The hidden activation that a layer beside this one has computed from this very x, if any."""
        if not self._active() or self.x is not x or self.key != self._full(key, x) or path in self.takers:
            return None
        self.takers.add(path)
        return self.hidden

    def keep(self, key: tuple, x: Tensor, path: str, hidden: Tensor) -> None:
        """Keep a layer's hidden activation for those that come next."""
        if self._active():
            self.key, self.x, self.hidden, self.takers = self._full(key, x), x, hidden, {path}

    def _active(self) -> bool:
        return self.running or torch._C._current_graph_task_id() != -1

    @staticmethod
    def _full(key: tuple, x: Tensor) -> tuple:
        return key, torch.is_grad_enabled(), None if x.is_inference() else x._version


def _few(rows: Tensor, up: Tensor) -> bool:
    """Whether an example has so few positions that one product over all examples beats one for each."""
    return up.ndim == 2 and rows.shape[1] < len(up)


def _rows(y: Tensor, channels: int) -> Tensor:
    """(b, t, o), a view of y wherever its layout allows one; an InplaceLowRankAdd's y has such a layout."""
    if y.ndim == 1:
        return y[None, None]
    return y[:, None] if y.ndim == 2 else y.movedim(channels, -1).flatten(1, -2)
