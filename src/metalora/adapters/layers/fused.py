"""Products of an adapter that share a pass over the activations with the base's, with backwards of their own.

Plain autograd adds passes over whole activations next to the frozen layer; these nodes leave them out. They compute
the same numbers as plain autograd, up to rounding.

Legend: n rows (examples x tokens) · b batch · t token or position · k rank of the form · i, o channels in and out.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function


def low_rank_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor | None, hidden: Tensor | None, up: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute y = x W' + bias + h Right with h = x Left, the product written into the base's output.

    Args:
        x: Input (..., i).
        weight: Frozen weight W (o, i).
        bias: Frozen bias (o,), or None.
        down: Left (k, i); None if `hidden` is given.
        hidden: h (n, k) that another layer has computed from the same input; None if `down` is given.
        up: scale * Mid Right (k, o).

    Returns:
        y (n, o), two-dimensional so that it is not a view, and h (n, k).

    Example:
        >>> x, weight = torch.rand(2, 3, 8), torch.rand(4, 8)
        >>> y, h = low_rank_linear(x, weight, None, torch.rand(2, 8), None, torch.rand(2, 4))
        >>> y.shape, h.shape
        (torch.Size([6, 4]), torch.Size([6, 2]))
    """
    rows = x.reshape(-1, x.shape[-1])  # (n, i)
    # F.linear of a 3-D input with a bias returns a view, into which autograd allows no in-place product.
    y = F.linear(rows, weight, bias)
    if hidden is None:
        hidden = F.linear(rows, down)  # type: ignore[arg-type]
    return y.addmm_(hidden, up), hidden


class FusedLowRankLinear(Function):
    """`low_rank_linear` as one node of the graph; W and the bias are frozen.

    With dy and the gradient dh of h from other layers that read it: dh += dy Right', dx = dy W + dh Left,
    dLeft = dh' x, dRight = h' dy.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor | None, hidden: Tensor | None, up: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return y (n, o), and h (n, k) if it was computed here; the arguments are those of `low_rank_linear`."""
        y, computed = low_rank_linear(x, weight, bias, down, hidden, up)
        # x is the largest of them and needed for dLeft only, so a layer that gets h from a sibling does not keep it.
        ctx.save_for_backward(x if ctx.needs_input_grad[3] else None, weight, down, computed, up)
        # What set_materialize_grads does, without a call: the gradient of an output that nobody uses comes as None.
        ctx.materialize_grads = False
        ctx.shape = x.shape
        return y, computed if hidden is None else None

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dh: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return dx (..., i), dLeft (k, i), dh (n, k) and dRight (k, o) from dy (n, o) and dh (n, k)."""
        x, weight, down, hidden, up = ctx.saved_tensors
        needs_x, _, _, needs_down, needs_hidden, needs_up = ctx.needs_input_grad
        dx = d_down = d_up = None
        if dy is not None and (needs_x or needs_down or needs_hidden):
            dh_of_layer = dy @ up.mT  # (n, k)
            dh = dh_of_layer if dh is None else dh_of_layer + dh  # not in place: autograd may use dh elsewhere
        if dy is not None and needs_up:
            d_up = hidden.mT @ dy  # (k, o)
        if needs_x and dy is not None:
            dx = dy @ weight  # (n, i)
        if needs_x and dh is not None and down is not None:
            dx = dh @ down if dx is None else dx.addmm_(dh, down)  # in place: nobody else has dx yet
        if needs_down and dh is not None:
            rows = x.reshape(-1, x.shape[-1])
            # In the layout of Left, which may be a transposed view of its factor: autograd copies any other one.
            d_down = dh.mT @ rows if down is None or down.is_contiguous() else (rows.mT @ dh).mT  # (k, i)
        dx = None if dx is None else dx.view(ctx.shape)
        return dx, None, None, d_down, dh if needs_hidden else None, d_up


class FusedLinearDown(Function):
    """(x W' + bias, x Left') as one node: the outputs are (n, o) and (n, k); no Left, no second output.

    W and the bias are frozen. The backward adds the hidden part into that of the base: dx = dy W + dh Left, and
    dLeft = dh' x.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return base(x) (n, o) and x Left (n, k), for x (..., i), W (o, i) and Left (k, i)."""
        ctx.save_for_backward(x if ctx.needs_input_grad[3] else None, weight, down)
        ctx.materialize_grads = False  # see FusedLowRankLinear
        ctx.shape = x.shape
        rows = x.reshape(-1, x.shape[-1])
        return F.linear(rows, weight, bias), None if down is None else F.linear(rows, down)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dh: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return dx (..., i) and dLeft (k, i) from dy (n, o) and dh (n, k)."""
        x, weight, down = ctx.saved_tensors
        dx = d_down = None
        if ctx.needs_input_grad[0] and dy is not None:
            dx = dy @ weight
        if ctx.needs_input_grad[0] and dh is not None:
            dx = dh @ down if dx is None else dx.addmm_(dh, down)
        if ctx.needs_input_grad[3] and dh is not None:
            rows = x.reshape(-1, x.shape[-1])
            d_down = dh.mT @ rows if down.is_contiguous() else (rows.mT @ dh).mT  # see FusedLowRankLinear
        return None if dx is None else dx.view(ctx.shape), None, None, d_down


class InplaceLowRankAdd(Function):
    """y + h Right, in place: y (b, .., o) or (n, o), h (b, t, k), Right (k, o) or (b, k, o).

    `channels` is the axis of y that holds o: -1, or 1 for a picture. The gradient of y passes through untouched.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, h: Tensor, up: Tensor, channels: int) -> Tensor:
        """Return y, in its own shape, after h Right was written into it."""
        ctx.save_for_backward(h, up)
        ctx.channels = channels
        ctx.mark_dirty(y)
        return add_low_rank_(y, h, up, channels)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return dy itself, dh (b, t, k) = dy Right' and dRight = h' dy, (k, o) or (b, k, o)."""
        h, up = ctx.saved_tensors
        rows = _rows(dy, h, ctx.channels)  # (b, t, o)
        dh = d_up = None
        if _few_rows(rows, up):  # a copy of few rows is cheaper than a product for each example
            rows, h = rows.contiguous(), h.contiguous()
        flat = up.ndim == 2 and rows.is_contiguous()
        if ctx.needs_input_grad[1]:
            if flat:
                dh = rows @ up.mT
            else:  # in the layout of h; matmul would copy dy to fold its examples into rows
                dh = (up.expand(len(rows), *up.shape[-2:]) @ rows.mT).mT
        if ctx.needs_input_grad[2]:
            if flat and h.is_contiguous():
                d_up = h.flatten(0, 1).mT @ rows.flatten(0, 1)
            else:
                d_up = _sum_to(h.mT @ rows, up)
        return dy, dh, d_up, None


def inplace_low_rank_add(y: Tensor, h: Tensor, up: Tensor, channels: int) -> Tensor:
    """Apply `InplaceLowRankAdd`, without its node if no gradient is recorded; the shapes are those of the class.

    Example:
        >>> y, h, up = torch.zeros(2, 4, 3, 3), torch.ones(2, 9, 5), torch.ones(5, 4)  # pictures of 3 x 3
        >>> inplace_low_rank_add(y, h, up, channels=1) is y
        True
        >>> y[0, 0, 0]
        tensor([5., 5., 5.])
    """
    return (InplaceLowRankAdd.apply if torch.is_grad_enabled() else add_low_rank_)(y, h, up, channels)


def add_low_rank_(y: Tensor, h: Tensor, up: Tensor, channels: int) -> Tensor:
    """Write y + h Right into y; see `InplaceLowRankAdd`.

    Args:
        y: The base's output (b, .., o) or (n, o), or (b, o, *positions); overwritten.
        h: Hidden activation (b, t, k).
        up: Right (k, o) or (b, k, o).
        channels: The axis of y that holds o.

    Returns:
        y itself.
    """
    rows = _rows(y, h, channels)
    if up.ndim == 2 and rows.is_contiguous():
        rows.view(-1, rows.shape[-1]).addmm_(h.reshape(-1, h.shape[-1]), up)
    elif _few_rows(rows, up):
        rows += h @ up
    else:  # channels before positions: the transposed product, whose result is contiguous
        rows.mT.baddbmm_(up.mT.expand(len(h), *up.mT.shape[-2:]), h.mT)
    return y


class InplaceChannelsAdd(Function):
    """y + Right' h, in place, for pictures with the channels first: y (b, o, *pos), h (b, k, *pos), Right (k, o).

    It is `InplaceLowRankAdd` with fewer views, which cost a card more time than the product of a small layer.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, h: Tensor, up: Tensor) -> Tensor:
        """Return y, in its own shape, after Right' h was written into it."""
        ctx.save_for_backward(h, up)
        ctx.mark_dirty(y)
        return add_channels_(y, h, up)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return dy itself, dh (b, k, *pos) = Right dy and dRight = h dy' (k, o), summed over the examples."""
        h, up = ctx.saved_tensors
        pixels = dy.flatten(2)  # (b, o, t)
        dh = d_up = None
        if ctx.needs_input_grad[1]:
            dh = torch.bmm(up.expand(len(pixels), *up.shape), pixels).view(h.shape)
        if ctx.needs_input_grad[2]:
            d_up = torch.bmm(h.flatten(2), pixels.mT).sum(0)
        return dy, dh, d_up


def add_channels_(y: Tensor, h: Tensor, up: Tensor) -> Tensor:
    """Write y + Right' h into y and return it; the shapes are those of `InplaceChannelsAdd`.

    Example:
        >>> y, h, up = torch.zeros(2, 4, 3, 3), torch.ones(2, 5, 3, 3), torch.ones(5, 4)
        >>> add_channels_(y, h, up) is y, y[0, 0, 0]
        (True, tensor([5., 5., 5.]))
    """
    y.flatten(2).baddbmm_(up.mT.expand(len(h), *up.mT.shape), h.flatten(2))
    return y


def _sum_to(gradients: Tensor, up: Tensor) -> Tensor:
    """Sum per-example gradients (b, k, o) to the shape of Right: (k, o), (1, k, o) or (b, k, o)."""
    if up.ndim == 2:
        return gradients.sum(0)
    return gradients if len(up) == len(gradients) else gradients.sum(0, keepdim=True)


def _few_rows(rows: Tensor, up: Tensor) -> bool:
    """True if an example has so few positions that one product over all examples beats one product for each."""
    return up.ndim == 2 and rows.shape[1] < len(up)


def _rows(y: Tensor, h: Tensor, channels: int) -> Tensor:
    """View y as (b, t, o) if its layout allows a view; the y of an `InplaceLowRankAdd` has such a layout."""
    if y.ndim == 1:
        return y[None, None]
    if y.ndim == 2:
        return y.view(*h.shape[:2], y.shape[-1])
    return y.movedim(channels, -1).flatten(1, -2)


def is_transformed() -> bool:
    """Return True if torch.compile, torch.func or torch.jit looks at the operations, so that no fused node may run."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or torch._C._is_tracing()


class SharedInputCache:
    """x Left of the last layer, for its siblings that get the same x and read the same Left: Q, K and V.

    It is filled while a model runs, forward or in the backward that recomputes a checkpointed block (a block must
    compute the same in both). Only layers of one parent share, and each takes the value once.

    Example:
        >>> cache, key, x = SharedInputCache(), ("attention",), torch.rand(2, 8)
        >>> cache.clear(running=True)
        >>> cache.keep(key, x, "attention.query", None, torch.ones(2, 1))
        >>> cache.take(key, x, "attention.value", None)
        tensor([[1.],
                [1.]])
        >>> cache.take(key, x.clone(), "attention.key", None) is None  # equal numbers are not the same input
        True
    """

    def __init__(self) -> None:
        self.running = False
        self.clear()

    def clear(self, running: bool = False) -> None:
        """Forget the stored value; `running` is True while a forward runs."""
        self.running = running
        self.key: tuple[Any, ...] | None = None  # siblings have one and the same key object
        self.version = False, 0  # was gradient recorded, and how often was x written to
        self.x: Tensor | None = None
        self.values: Any = None
        self.hidden: Tensor | None = None
        self.takers: set[str] = set()

    def take(self, left_key: tuple[Any, ...], x: Tensor, path: str, values: Any) -> Tensor | None:
        """Return x Left if a sibling has computed it from this very x, otherwise None.

        Args:
            left_key: What identifies Left; siblings have one and the same object.
            x: Input of the layer.
            path: The path of the layer, which takes the value at most once.
            values: The values that differ by example: another condition has another Left.
        """
        # A layer that comes a second time with the same x computes anew: its factors may have changed since.
        if self.x is not x or path in self.takers or self.key is not left_key:
            return None
        if self.values is not values or self.version != (torch.is_grad_enabled(), x._version):
            return None
        self.takers.add(path)
        return self.hidden

    def keep(self, left_key: tuple[Any, ...], x: Tensor, path: str, values: Any, hidden: Tensor) -> None:
        """Store a layer's x Left for its siblings. An inference tensor has no version counter, so it is not stored."""
        if (self.running or torch._C._current_graph_task_id() != -1) and not x.is_inference():
            self.key, self.version = left_key, (torch.is_grad_enabled(), x._version)
            self.x, self.values, self.hidden, self.takers = x, values, hidden, {path}
