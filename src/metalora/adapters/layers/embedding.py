"""Adapted embeddings: the input mode is the vocabulary, so Left is a table of k numbers a token."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from metalora.adapters.layers.base import AdaptedLayer

if TYPE_CHECKING:
    from metalora.adapters.conditioning.condition import Values


class AdaptedEmbedding(AdaptedLayer):
    """torch.nn.Embedding: y = W[ids] + scale . (Left[ids] Mid) Right.

    Ids of one row, such as positions that all examples share, take every example's own factors.

    Example:
        >>> import metalora
        >>> model = torch.nn.Sequential(torch.nn.Embedding(100, 6))
        >>> adapter = metalora.attach(model, metalora.AdapterConfig("lora", rank=2, targets="0"))
        >>> model[0].left(None).shape
        torch.Size([2, 100])
        >>> model(torch.tensor([[1, 5, 7]])).shape
        torch.Size([1, 3, 6])
    """

    gate_by_gate = False
    embeds = True

    def as_batch(self, x: Tensor, conditions: int) -> tuple[Tensor, bool]:
        """Repeat ids (1, t) for all examples, (b, t), if every example has its own factors."""
        if conditions > 1 and x.ndim > 1 and x.shape[0] == 1:
            return x.expand(conditions, *x.shape[1:]), False
        return x, False

    def examples(self, x: Tensor) -> int:
        """Return b of ids (b, ..)."""
        return x.shape[0]

    def can_fuse(self, x: Tensor, grad: bool) -> bool:
        """Return False for all ids (b, ..): base(ids) is a copy of rows, so there is no product to share."""
        return False

    def fused(self, x: Tensor, down: Tensor | None, hidden: Tensor | None, up: Tensor) -> tuple[Tensor, Tensor]:
        """Refuse: `can_fuse` is False for ids (b, ..)."""
        raise AssertionError("an embedding has no fused kernel")

    def base_and_hidden(self, x: Tensor, down: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Refuse: `can_fuse` is False for ids (b, ..)."""
        raise AssertionError("an embedding has no fused kernel")

    def add_in_place(self, y: Tensor, h: Tensor, up: Tensor, x: Tensor) -> Tensor:
        """Refuse: `can_fuse` is False for ids (b, ..)."""
        raise AssertionError("an embedding has no fused kernel")

    def hidden(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Look up x Left, (b, t, k), for ids (b, ..)."""
        kernel = kernel.flatten(-1 - len(self.form.left_shape), -2)  # (b?, k, i)
        ids = x.reshape(x.shape[0], prod(x.shape[1:]))  # (b, t)
        if self.form.left_batched:  # F.embedding takes one table only
            index = ids[:, None].expand(-1, kernel.shape[1], -1)  # (b, k, t)
            return kernel.expand(ids.shape[0], -1, -1).gather(2, index).mT
        return F.embedding(ids, kernel.mT)

    def through(self, x: Tensor, values: Values | None, repeat: int, dtype: torch.dtype) -> Tensor:
        """Look up ids (b, ..) in the table that the circuit forms: (b, t, o)."""
        return self.hidden(x, self.left_kernel(values, repeat).to(dtype))

    def tokens_first(self, h: Tensor, x: Tensor) -> Tensor:
        """Return h (b, t, k) as it is."""
        return h

    def channels_first(self, h: Tensor) -> Tensor:
        """Return h (b, t, k) as it is: the hidden layout of an embedding has the tokens first."""
        return h

    def expand(self, h: Tensor, up: Tensor) -> Tensor:
        """Compute h Right: (b, t, k) -> (b, t, o)."""
        return h @ up

    def restore(self, out: Tensor, like: Tensor) -> Tensor:
        """Bring (b, t, o) to the shape (b, .., o) of `like`."""
        return out.reshape(like.shape)

    def to_base_layout(self, dense: Tensor) -> Tensor:
        """Return (b, i, o) as it is: a table has a row for each id."""
        return dense

    def add_product(self, weight: Tensor, left: Tensor, up: Tensor) -> Tensor:
        """Compute W + Left' Right, (i, o)."""
        return torch.addmm(weight, left.mT, up)

    def apply_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        """Refuse: no product is saved, since base(ids) is a lookup (b, ..) -> (b, .., o)."""
        raise AssertionError("an embedding never forms W + Delta W in a forward")
