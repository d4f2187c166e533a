"""Adapted layers: a frozen base plus the cut of a network that lands on its weight.

Legend: b batch · t token or position · k rank of the cut · i, o channels in and out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalora.adapters.targets import Target
from metalora.network.cut import Cut


class AdaptedLayer(nn.Module):
    """y = base(x) + scale . ((x Left) Mid) Right.

    It has no `weight`: code that reads `.weight` fails loudly instead of ignoring the adapter.
    """

    def __init__(self, base: nn.Module, target: Target, cut: Cut, adapter: nn.Module):
        super().__init__()
        self.base, self.target, self.cut = base, target, cut
        self._owner = (adapter,)  # a tuple, so that the adapter is registered once, by its owner
        self.original: Tensor | None = None  # the base's weight while merged

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        adapter = self._owner[0]
        if not adapter.enabled or self.original is not None:
            return y
        factors = adapter.read(self.target)
        n = adapter.batch_of(self.target, len(x) if x.ndim > 1 else 1)
        cut = self.cut
        kernel = cut.kernel([factors[f] for f in cut.left]).to(y.dtype)
        h = adapter.rank_dropout(self.hidden(x.to(y.dtype) if x.is_floating_point() else x, kernel))
        mids, rights = [factors[f] for f in cut.mid], [factors[f] for f in cut.right]
        if n == 1 or not cut.fold_batched or h.shape[1:].numel() // cut.left_rank > self.target.sizes["out"]:
            up = cut.fold(mids + rights).to(y.dtype)  # (b or 1 or none, *bonds, o)
            up = up.flatten(-1 - len(cut.left_shape), -2) if len(cut.left_shape) > 1 else up
            h, batched = h, cut.fold_batched
        else:  # activations first: the per-example Mid touches k numbers a token only
            h = self.channels_first(self.mix(h, mids))
            up = cut.expand(rights).to(y.dtype)
            up = up.reshape(*up.shape[:1] if cut.right_batched else (), cut.right_rank, up.shape[-1])
            batched = cut.right_batched
        if batched and n == 1:
            up, batched = up[0], False
        return y + self.restore(self.expand(h, up * adapter.scale), y)

    def mix(self, h: Tensor, mids: list[Tensor]) -> Tensor:
        """Apply Mid to the hidden activation: (b, t, k) -> (b, t, k')."""
        h = self.tokens_first(h).unflatten(-1, self.cut.left_shape)
        return self.cut.mix([h, *(m.to(h.dtype) for m in mids)]).flatten(2)

    def delta(self, condition_values: dict[str, Tensor] | None) -> Tensor:
        """Dense Delta W in the base weight's layout, with a leading axis where the factors differ per example."""
        adapter, cut = self._owner[0], self.cut
        factors = adapter.read(self.target, condition_values)
        left = cut.kernel([factors[f] for f in cut.left])  # (b?, *bonds, *inputs)
        up = cut.fold([factors[f] for f in cut.mid + cut.right])  # (b?, *bonds, o)
        left = left if cut.left_batched else left[None]
        up = (up if cut.fold_batched else up[None]).reshape(-1, cut.left_rank, self.target.sizes["out"])
        inputs = left.shape[1 + len(cut.left_shape) :]
        dense = torch.einsum("bki,bko->bio", left.reshape(len(left), cut.left_rank, -1), up) * adapter.scale
        dense = torch.stack([self.to_base_layout(d.reshape(*inputs, -1)) for d in dense])
        return dense if len(dense) > 1 else dense[0]

    def pair(self, condition_values: dict[str, Tensor] | None) -> tuple[Tensor, Tensor]:
        """(Left as (k, *inputs), scale . Mid . Right as (k, o)): the exact LoRA pair for one condition."""
        adapter, cut = self._owner[0], self.cut
        factors = adapter.read(self.target, condition_values)
        left = cut.kernel([factors[f] for f in cut.left])
        up = cut.fold([factors[f] for f in cut.mid + cut.right])
        left, up = (left[0] if cut.left_batched else left), (up[0] if cut.fold_batched else up)
        inputs = left.shape[len(cut.left_shape) :]
        return left.reshape(cut.left_rank, *inputs), up.reshape(cut.left_rank, -1) * adapter.scale

    # ---- the four things that differ between layer kinds; linear-like by default ----------------------------------
    def hidden(self, x: Tensor, kernel: Tensor) -> Tensor:
        """x Left: (b, t, k)."""
        kernel = kernel.flatten(-1 - len(self.cut.left_shape), -2)  # (b?, k, i)
        tokens = x.reshape(len(x) if x.ndim > 1 else 1, -1, x.shape[-1])
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
        """Delta W as (*inputs, o) -> the layout of the base's weight."""
        return dense.mT


class AdaptedConv1D(AdaptedLayer):
    """GPT-2's Conv1D: a linear layer that stores its weight in x out."""

    def to_base_layout(self, dense: Tensor) -> Tensor:
        return dense


class AdaptedEmbedding(AdaptedConv1D):
    """Embedding: the input mode is the vocabulary, so Left is a table of k numbers a token."""

    def hidden(self, x: Tensor, kernel: Tensor) -> Tensor:
        kernel = kernel.flatten(-1 - len(self.cut.left_shape), -2)  # (b?, k, i)
        ids = x.reshape(len(x) if x.ndim > 1 else 1, -1)
        if self.cut.left_batched:
            index = ids[:, None].expand(-1, kernel.shape[1], -1)
            return kernel.expand(len(ids), -1, -1).gather(2, index).mT
        return F.embedding(ids, kernel.mT)


class AdaptedConv(AdaptedLayer):
    """Conv1d and Conv2d: Left is a convolution of the base's stride, padding and dilation to k channels."""

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
        return dense.movedim(-1, 0)  # inputs are (i, *kernel)


LAYERS: dict[str, type[AdaptedLayer]] = {
    "linear": AdaptedLayer,
    "conv1d": AdaptedConv,
    "conv2d": AdaptedConv,
    "conv1d_gpt2": AdaptedConv1D,
    "embedding": AdaptedEmbedding,
}
