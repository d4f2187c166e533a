"""Adapted layers: a frozen base plus the cut of a network that lands on its weight.

Legend: b batch · t token or position · k rank of the cut · i, o channels in and out.
"""

from collections.abc import Mapping
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalora.adapters.targets import Target
from metalora.network.cut import Cut
from metalora.network.cut_sum import CutSum
from metalora.network.spec import INPUT_MODES


class AdaptedLayer(nn.Module):
    """y = base(x) + scale . ((x Left) Mid) Right.

    `plain_base` is the class whose forward `apply_weight` repeats with another weight.
    It has no `weight`: code that reads `.weight` fails loudly instead of ignoring the adapter.
    """

    plain_base: type[nn.Module] | None = nn.Linear

    def __init__(self, base: nn.Module, target: Target, cut: Cut | CutSum, adapter: nn.Module):
        super().__init__()
        self.base, self.target, self.cut = base, target, cut
        self._owner = (adapter,)  # a tuple, so that the adapter is registered once, by its owner
        self.original: Tensor | None = None  # the base's weight while merged
        self.input_size = prod(target.sizes.get(mode, 1) for mode in INPUT_MODES)
        self.positions_per_step = prod(getattr(base, "stride", (1,)))
        self.plain = type(base).forward is getattr(self.plain_base, "forward", None)

    def forward(self, x: Tensor, y: Tensor | None = None, values: Mapping[str, Tensor] | None = None) -> Tensor:
        """base(x) + the update of x; y is base(x) where it is known, values the condition if not the active one."""
        adapter = self._owner[0]
        if not adapter.enabled or self.original is not None:
            return self.base(x) if y is None else y
        factors, n = adapter.read_for(self.target, self.examples(x), values)
        if y is None and self.weight_first(x, n):
            delta = self.dense(factors)[0]
            return self.apply_weight(x, self.base.weight + delta.to(self.base.weight.dtype))
        y, cut = self.base(x) if y is None else y, self.cut
        kernel = cut.kernel([factors[f] for f in cut.left]).to(y.dtype)
        h = adapter.rank_dropout(self.hidden(x.to(y.dtype) if x.is_floating_point() else x, kernel))
        mids, rights = [factors[f] for f in cut.mid], [factors[f] for f in cut.right]
        if n == 1 or not cut.fold_batched or h.shape[1:].numel() // cut.left_rank > self.target.sizes["out"]:
            up = cut.fold(mids + rights).to(y.dtype)  # (b or 1 or none, *bonds, o)
            up = up.flatten(-1 - len(cut.left_shape), -2)
            batched = cut.fold_batched
        else:  # activations first: the per-example Mid touches k numbers a token only
            h = self.channels_first(self.mix(h, mids))
            up = cut.expand(rights).to(y.dtype)
            up = up.reshape(*up.shape[:1] if cut.right_batched else (), cut.right_rank, up.shape[-1])
            batched = cut.right_batched
        if batched and n == 1:
            up = up[0]
        return y + self.restore(self.expand(h, up * adapter.scale_of(self.target.path)), y)

    def weight_first(self, x: Tensor, n: int) -> bool:
        """Whether base(x) with W + Delta W costs fewer multiply-adds than base(x) and the cut beside it.

        With T positions, s = kernel size x in: training pays 3 T k (s + o) for the cut, T s o + 3 s k o for the weight;
        inference T k (s + o) against s k o. Only for one condition, a plain base and full precision: in 16 bits
        W + Delta W would round a small Delta W away.
        """
        adapter, cut = self._owner[0], self.cut
        if n != 1 or cut.left_batched or not adapter.weight_first or not self.plain:
            return False
        if self.base._forward_hooks or self.base._forward_pre_hooks or (adapter.training and adapter.config.dropout):
            return False
        if torch.is_autocast_enabled() or self.base.weight.dtype not in (torch.float32, torch.float64):
            return False
        side, out, k = self.input_size, self.target.sizes["out"], cut.left_rank
        positions = x.numel() // self.target.sizes["in"] // self.positions_per_step
        if torch.is_grad_enabled():
            return positions * side * out + 3 * side * k * out < 3 * positions * k * (side + out)
        return side * k * out < positions * k * (side + out)

    def mix(self, h: Tensor, mids: list[Tensor]) -> Tensor:
        """Apply Mid to the hidden activation: (b, t, k) -> (b, t, k')."""
        h = self.tokens_first(h).unflatten(-1, self.cut.left_shape)
        return self.cut.mix([h, *(m.to(h.dtype) for m in mids)]).flatten(2)

    def delta(self, condition_values: dict[str, Tensor] | None) -> Tensor:
        """Dense Delta W in the base weight's layout, with a leading axis where the factors differ per example."""
        dense = self.dense(self._owner[0].read(self.target, condition_values))
        return dense if len(dense) > 1 else dense[0]

    def dense(self, factors: dict[str, Tensor]) -> Tensor:
        """(n, *base weight)."""
        cut = self.cut
        left = cut.kernel([factors[f] for f in cut.left])  # (b?, *bonds, *inputs)
        up = cut.fold([factors[f] for f in cut.mid + cut.right])  # (b?, *bonds, o)
        left = left if cut.left_batched else left[None]
        up = (up if cut.fold_batched else up[None]).reshape(-1, cut.left_rank, self.target.sizes["out"])
        inputs = left.shape[1 + len(cut.left_shape) :]
        up = up * self._owner[0].scale_of(self.target.path)
        dense = left.reshape(len(left), cut.left_rank, -1).mT @ up  # (n, inputs, o)
        return self.to_base_layout(dense.unflatten(1, inputs))

    def pair(self, condition_values: dict[str, Tensor] | None) -> tuple[Tensor, Tensor]:
        """(Left as (k, *inputs), scale . Mid . Right as (k, o)): the exact LoRA pair for one condition."""
        adapter, cut = self._owner[0], self.cut
        factors = adapter.read(self.target, condition_values)
        left = cut.kernel([factors[f] for f in cut.left])
        up = cut.fold([factors[f] for f in cut.mid + cut.right])
        left, up = (left[0] if cut.left_batched else left), (up[0] if cut.fold_batched else up)
        inputs = left.shape[len(cut.left_shape) :]
        return left.reshape(cut.left_rank, *inputs), up.reshape(cut.left_rank, -1) * adapter.scale_of(self.target.path)

    # ---- what differs between layer kinds; linear-like by default --------------------------------------------------
    def examples(self, x: Tensor) -> int:
        """The number of examples in an input, its first axis."""
        return len(x) if x.ndim > 1 else 1

    def hidden(self, x: Tensor, kernel: Tensor) -> Tensor:
        """x Left: (b, t, k)."""
        kernel = kernel.flatten(-1 - len(self.cut.left_shape), -2)  # (b?, k, i)
        tokens = x.reshape(self.examples(x), x.shape[1:-1].numel(), x.shape[-1])
        return tokens @ kernel.mT if self.cut.left_batched else F.linear(tokens, kernel)

    def channels_first(self, h: Tensor) -> Tensor:
        """From (b, t, k) to the layer's own hidden layout."""
        return h

    def tokens_first(self, h: Tensor) -> Tensor:
        """From the layer's own hidden layout to (b, t, k)."""
        return h

    def expand(self, h: Tensor, up: Tensor) -> Tensor:
        """h Right: (b, t, k) x (b?, k, o) -> (b, t, o)."""
        return h @ up

    def restore(self, out: Tensor, like: Tensor) -> Tensor:
        """Back to the base output's shape."""
        return out.reshape(like.shape)

    def to_base_layout(self, dense: Tensor) -> Tensor:
        """Delta W as (n, *inputs, o) -> (n, *base weight)."""
        return dense.mT

    def apply_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        """The base's own forward with another weight."""
        return F.linear(x, weight, self.base.bias)


class AdaptedConv1D(AdaptedLayer):
    """GPT-2's Conv1D: a linear layer that stores its weight in x out."""

    plain_base = None

    def to_base_layout(self, dense: Tensor) -> Tensor:
        return dense


class AdaptedEmbedding(AdaptedConv1D):
    """Embedding: the input mode is the vocabulary, so Left is a table of k numbers a token.

    Ids of one row, such as positions that all examples share, take every example's own factors.
    """

    def forward(self, x: Tensor, y: Tensor | None = None, values: Mapping[str, Tensor] | None = None) -> Tensor:
        n = self._owner[0].count(self.target, values)
        if n > 1 and x.ndim > 1 and len(x) == 1:
            x, y = x.expand(n, *x.shape[1:]), None if y is None else y.expand(n, *y.shape[1:])
        return super().forward(x, y, values)

    def examples(self, x: Tensor) -> int:
        return len(x)

    def hidden(self, x: Tensor, kernel: Tensor) -> Tensor:
        kernel = kernel.flatten(-1 - len(self.cut.left_shape), -2)  # (b?, k, i)
        ids = x.reshape(len(x), x.shape[1:].numel())
        if self.cut.left_batched:
            index = ids[:, None].expand(-1, kernel.shape[1], -1)
            return kernel.expand(len(ids), -1, -1).gather(2, index).mT
        return F.embedding(ids, kernel.mT)


class AdaptedConv(AdaptedLayer):
    """Conv2d: Left is a convolution of the base's stride, padding and dilation to k channels."""

    plain_base = nn.Conv2d

    def forward(self, x: Tensor, y: Tensor | None = None, values: Mapping[str, Tensor] | None = None) -> Tensor:
        if x.ndim == 1 + len(self.base.kernel_size):  # one example without a batch axis
            return super().forward(x[None], None if y is None else y[None], values)[0]
        return super().forward(x, y, values)

    def hidden(self, x: Tensor, kernel: Tensor) -> Tensor:
        base, spatial = self.base, len(self.base.kernel_size)
        kernel = kernel.flatten(int(self.cut.left_batched), -2 - spatial)  # (b?, k, i, *kernel)
        padding = base.padding
        if base.weight.ndim == 4 and base.weight.is_contiguous(memory_format=torch.channels_last):
            kernel = kernel if self.cut.left_batched else kernel.contiguous(memory_format=torch.channels_last)
        if base.padding_mode != "zeros":
            x, padding = F.pad(x, base._reversed_padding_repeated_twice, mode=base.padding_mode), 0
        conv = F.conv2d if spatial == 2 else F.conv1d
        if not self.cut.left_batched:
            return conv(x, kernel, None, base.stride, padding, base.dilation)
        b = len(x)  # one grouped convolution applies a kernel of its own to every example
        kernel = kernel.expand(b, *kernel.shape[1:]).flatten(0, 1)
        h = conv(x.reshape(1, -1, *x.shape[2:]), kernel, None, base.stride, padding, base.dilation, groups=b)
        return h.reshape(b, -1, *h.shape[2:])

    def channels_first(self, h: Tensor) -> Tensor:
        return h.mT if len(self.base.kernel_size) == 1 else h.mT[..., None]  # (b, k, t), as a picture one pixel wide

    def tokens_first(self, h: Tensor) -> Tensor:
        return h.flatten(2).mT

    def expand(self, h: Tensor, up: Tensor) -> Tensor:
        if up.ndim == 2 and h.stride(1) == 1:  # channels last: one product over all positions beats a 1 x 1 convolution
            return F.linear(h.movedim(1, -1), up.mT).movedim(-1, 1)
        return up.mT @ h.flatten(2)  # (b, o, t)

    def to_base_layout(self, dense: Tensor) -> Tensor:
        return dense.movedim(-1, 1)  # (n, o, i, *kernel)

    def apply_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.base._conv_forward(x, weight, self.base.bias)


class AdaptedConv1d(AdaptedConv):
    """Conv1d, the same with one spatial axis."""

    plain_base = nn.Conv1d


LAYERS: dict[str, type[AdaptedLayer]] = {
    "linear": AdaptedLayer,
    "conv1d": AdaptedConv1d,
    "conv2d": AdaptedConv,
    "conv1d_gpt2": AdaptedConv1D,
    "embedding": AdaptedEmbedding,
}
