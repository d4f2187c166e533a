"""Adapted linear layers: torch's Linear, and GPT-2's Conv1D, which stores its weight transposed."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from metalora.adapters.layers.base import AdaptedLayer, autocast_dtype, cast_all
from metalora.adapters.layers.fused import (
    FusedLinearDown,
    FusedLowRankLinear,
    inplace_low_rank_add,
    low_rank_linear,
)
from metalora.adapters.layers.mixed import MixedRowsAdd, add_mixed_rows_
from metalora.adapters.triton_kernels.node import TYPES as TRITON_TYPES
from metalora.adapters.triton_kernels.node import low_rank_linear as triton_low_rank_linear
from metalora.tensornet.forms.circuit import Circuit

if TYPE_CHECKING:
    from metalora.adapters.conditioning.condition import Values


class _LinearLayer(AdaptedLayer):
    """What linear layers share: activations are (*, i), the hidden activation is (b, t, k) or (n, k)."""

    transposed = False  # True if the base stores its weight as (i, o)

    def examples(self, x: Tensor) -> int:
        """Return b of an input (b, .., i); 1 for an input (i,)."""
        return x.shape[0] if x.ndim > 1 else 1

    def can_fuse(self, x: Tensor, grad: bool) -> bool:
        """Return True if x (*, i) has the precision of the base, and no weight of the base needs a gradient."""
        base = self._modules["base"]
        assert base is not None
        weight, bias = base._parameters.get("weight"), base._parameters.get("bias")
        if weight is None or (x.dtype != weight.dtype and autocast_dtype(x) is None):
            return False
        # The fused nodes compute no gradient of the base's weight and bias.
        return not grad or not (weight.requires_grad or (bias is not None and bias.requires_grad))

    def fused(self, x: Tensor, down: Tensor | None, hidden: Tensor | None, up: Tensor) -> tuple[Tensor, Tensor]:
        """Compute (*, i) -> (*, o) as one node of the graph; x Left comes as (n, k)."""
        base = self._modules["base"]  # without a way through Module.__getattr__, and without the call of `_frozen`
        assert base is not None
        stored, bias = base._parameters["weight"], base._parameters["bias"]
        assert stored is not None
        weight = stored.t() if self.transposed else stored  # (o, i)
        # Autocast does not cast the operands of an in-place product, so all operands are cast here.
        is_cast = up.dtype == weight.dtype and (down is None or down.dtype == weight.dtype)
        if not is_cast or (not x.is_meta and torch.is_autocast_enabled(x.device.type)):  # `autocasts`, without its call
            dtype = autocast_dtype(x) or weight.dtype
            x, weight, bias, down, hidden, up = cast_all(dtype, x, weight, bias, down, hidden, up)
        if torch.is_grad_enabled():
            y, computed = FusedLowRankLinear.apply(x, weight, bias, down, hidden, up)
        else:
            y, computed = low_rank_linear(x, weight, bias, down, hidden, up)
        return y.view(*x.shape[:-1], y.shape[-1]), computed  # (n, o) -> (*, o)

    def has_triton_kernels(self, x: Tensor) -> bool:
        """Return True if the layer computes in a type that the Triton kernels know, for an input (*, i)."""
        return (autocast_dtype(x) or self.base.weight.dtype) in TRITON_TYPES

    def by_triton(self, x: Tensor, left: Tensor, right: Tensor, mid: Tensor | None, index: Tensor | None) -> Tensor:
        """Compute (*, i) -> (*, o) by Triton kernels; see `AdaptedLayer.by_triton`."""
        weight, bias = self._frozen()
        dtype = autocast_dtype(x) or weight.dtype
        x, weight, bias, left, right, mid = cast_all(dtype, x, weight, bias, left, right, mid)
        y = triton_low_rank_linear(x, weight, bias, left, right, mid, index)
        return y.view(*x.shape[:-1], y.shape[-1])  # (n, o) -> (*, o)

    def _frozen(self) -> tuple[Tensor, Tensor | None]:
        """Return the base's weight (o, i) and its bias (o,)."""
        base = self._modules["base"]  # without a way through Module.__getattr__
        assert base is not None
        stored, bias = base._parameters["weight"], base._parameters["bias"]
        assert stored is not None
        return stored.t() if self.transposed else stored, bias

    def base_and_hidden(self, x: Tensor, down: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return base(x) (n, o), and x Left as (n, k), or as (b, t, k) if every example has its own Left."""
        weight, bias = self._frozen()
        batched = down if down is not None and down.ndim > 2 else None  # (b, k, i): not one Left for all rows
        operands = cast_all(autocast_dtype(x) or weight.dtype, x, weight, bias, None if batched is not None else down)
        if torch.is_grad_enabled():
            y, h = FusedLinearDown.apply(*operands)
        else:
            y = F.linear(operands[0].reshape(-1, x.shape[-1]), *operands[1:3])
            h = None if operands[3] is None else F.linear(operands[0].reshape(-1, x.shape[-1]), operands[3])
        if batched is not None:
            h = self._tokens(operands[0]) @ batched.to(y.dtype).mT
        return y, h

    def add_in_place(self, y: Tensor, h: Tensor, up: Tensor, x: Tensor) -> Tensor:
        """Write h Right into y (n, o), which is not a view, and return it as (*, o)."""
        y = inplace_low_rank_add(y, h.to(y.dtype), up.to(y.dtype), -1)
        return y.view(*x.shape[:-1], y.shape[-1])

    def can_mix_in_place(self, y: Tensor, hidden: Tensor) -> bool:
        """Return True if there are rows, y (n, o) and hidden (n, k)."""
        return hidden.ndim == 2 and len(hidden) > 0

    def mix_in_place(self, y: Tensor, hidden: Tensor, mid: Tensor, right: Tensor, x: Tensor) -> Tensor:
        """Write (hidden Mid) Right into y (n, o), for hidden (n, k), and return it as (*, o)."""
        operands = y, hidden.to(y.dtype), mid.to(y.dtype), right.to(y.dtype)
        y = (MixedRowsAdd.apply if torch.is_grad_enabled() else add_mixed_rows_)(*operands)
        return y.view(*x.shape[:-1], y.shape[-1])

    def _tokens(self, x: Tensor) -> Tensor:
        """Return an input (*, i) as (b, t, i)."""
        return x.reshape(self.examples(x), prod(x.shape[1:-1]), x.shape[-1])

    def hidden(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Compute x Left, (b, t, k), from x (*, i)."""
        kernel = kernel.flatten(-1 - len(self.form.left_shape), -2)  # (b?, k, i)
        return self._tokens(x) @ kernel.mT if self.form.left_batched else F.linear(self._tokens(x), kernel)

    def through(self, x: Tensor, values: Values | None, repeat: int, dtype: torch.dtype) -> Tensor:
        """Take x (*, i) through the gates one after another: (b, t, o)."""
        assert isinstance(self.form, Circuit)
        return self.form.through(self._tokens(x), self.left_operands(values, repeat)).to(dtype)

    def tokens_first(self, h: Tensor, x: Tensor) -> Tensor:
        """Bring (n, k) to (b, t, k); (b, t, k) stays as it is."""
        return h if h.ndim == 3 else h.view(self.examples(x), prod(x.shape[1:-1]), h.shape[-1])

    def channels_first(self, h: Tensor) -> Tensor:
        """Return h (b, t, k) as it is: the hidden layout of a linear layer has the tokens first."""
        return h

    def expand(self, h: Tensor, up: Tensor) -> Tensor:
        """Compute h Right: (b, t, k) -> (b, t, o)."""
        return h @ up

    def restore(self, out: Tensor, like: Tensor) -> Tensor:
        """Bring (b, t, o) to the shape (*, o) of `like`."""
        return out.reshape(like.shape)


class AdaptedLinear(_LinearLayer):
    """torch.nn.Linear: y = x W' + bias + scale . ((x Left) Mid) Right.

    Example:
        >>> import metalora
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4))
        >>> adapter = metalora.attach(model, metalora.AdapterConfig("lora", rank=2, targets="0"))
        >>> model[0].left(None).shape, model[0].up(None).shape
        (torch.Size([2, 8]), torch.Size([2, 4]))
    """

    def to_base_layout(self, dense: Tensor) -> Tensor:
        """Bring (b, i, o) to (b, o, i)."""
        return dense.mT

    def add_product(self, weight: Tensor, left: Tensor, up: Tensor) -> Tensor:
        """Compute W + Right' Left, (o, i)."""
        return torch.addmm(weight, up.mT, left)

    def apply_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        """Compute x W' + bias with another W (o, i): (*, i) -> (*, o)."""
        return F.linear(x, weight, self.base.bias)


class AdaptedTransposedLinear(_LinearLayer):
    """GPT-2's Conv1D: a linear layer that stores its weight as (i, o)."""

    transposed = True

    def to_base_layout(self, dense: Tensor) -> Tensor:
        """Return (b, i, o) as it is: this base stores its weight so."""
        return dense

    def add_product(self, weight: Tensor, left: Tensor, up: Tensor) -> Tensor:
        """Compute W + Left' Right, (i, o)."""
        return torch.addmm(weight, left.mT, up)

    def apply_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        """Compute x W + bias with another W (i, o): (*, i) -> (*, o)."""
        return F.linear(x, weight.t(), self.base.bias)
