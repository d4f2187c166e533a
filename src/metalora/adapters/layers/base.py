"""Adapted layers: a frozen base plus the cut of a network that lands on its weight.

Legend: b batch · t token or position · k rank of the cut · i, o channels in and out.
"""

from collections.abc import Mapping
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalora.adapters.layers.fused import FusedLinearDown, add_product, usable
from metalora.adapters.targets import Target
from metalora.tensornet.forms.low_rank import LowRankForm
from metalora.tensornet.forms.sum import SumForm
from metalora.tensornet.spec import INPUT_MODES


class AdaptedLayer(nn.Module):
    """y = base(x) + scale . ((x Left) Mid) Right.

    `plain_base` is the class whose forward `apply_weight` repeats with another weight.
    It has no `weight`: code that reads `.weight` fails loudly instead of ignoring the adapter.
    """

    plain_base: type[nn.Module] | None = nn.Linear
    channels = -1  # the axis of the output that holds its channels
    by_gates = True  # whether a circuit takes an input through its gates, or makes its kernel first

    def __init__(self, base: nn.Module, target: Target, cut: LowRankForm | SumForm, adapter: nn.Module):
        super().__init__()
        self.base, self.target = base, target
        self._owner = (adapter,)  # a tuple, so that the adapter is registered once, by its owner
        self.take(cut)
        self.biases = adapter.layout.targets[target.path].network.biases
        self.original: Tensor | None = None  # the base's weight while merged
        self.original_bias: Tensor | None = None
        self.input_size = prod(target.sizes.get(mode, 1) for mode in INPUT_MODES)
        self.positions_per_step = prod(getattr(base, "stride", (1,)))
        self.plain = type(base).forward is getattr(self.plain_base, "forward", None)

    def take(self, cut: LowRankForm | SumForm) -> None:
        """Work by this cut of the adapter's layout; layers side by side with one `left_key` share x Left."""
        place, path = self._owner[0].layout.targets[self.target.path], self.target.path
        views = place.views
        self.cut, self.beside_fold = cut, (*cut.left, *place.network.biases)
        self.left_key = path.rpartition(".")[0], tuple(views.get(f, path) for f in cut.left)

    def scaled(self, one: Tensor) -> Tensor:
        """scale . one, of what multiplies Delta W here; one itself where that is 1."""
        scale = self._owner[0].scale_of(self.target.path)
        return one if scale == 1 else one * scale

    def forward(self, x: Tensor, y: Tensor | None = None, values: Mapping[str, Tensor] | None = None) -> Tensor:
        """base(x) + the update of x; y is base(x) where it is known, values the condition if not the active one."""
        adapter = self._owner[0]
        if not adapter.enabled or self.original is not None:
            return self.base(x) if y is None else y
        up = adapter.together.take(self.target.path)
        factors, n = adapter.read_for(self.target, self.examples(x), values, None if up is None else self.beside_fold)
        if y is None and self.weight_first(x, n):
            return self.shifted(self.apply_weight(x, self.adapted_weight(factors, up)), factors)
        cut = self.cut
        if cut.whole:
            y = self.shifted(self.base(x) if y is None else y, factors)
            change = self.dropped(self.through(x, factors, y.dtype))
            return y + self.restore(self.scaled(change), y)
        in_place = y is None and adapter.fused and self.unobserved() and usable()
        y, h = self.base_and_hidden(x, y, factors, in_place)
        y, h = self.shifted(y, factors), self.dropped(h)
        mixed = n > 1 and cut.fold_batched and prod(h.shape[1:]) // cut.left_rank <= self.target.sizes["out"]
        if mixed:  # activations first: the per-example Mid touches k numbers a token only
            h, up = self.mix(h, [factors[f] for f in cut.mid]), cut.expand([factors[f] for f in cut.right])
            up = self.scaled(up.reshape(*up.shape[:1] if cut.right_batched else (), cut.right_rank, up.shape[-1]))
        else:
            up = self.fold(factors, up)
        up = (up[0] if up.ndim == 3 and n == 1 else up).to(y.dtype)
        if in_place and y.dtype == h.dtype == up.dtype and not (torch.is_grad_enabled() and y._is_view()):
            return add_product(y, h if mixed else self.tokens_first(h), up, self.channels)
        return y + self.restore(self.expand(self.channels_first(h) if mixed else h, up), y)

    def fold(self, factors: dict[str, Tensor], up: Tensor | None = None) -> Tensor:
        """scale . Mid . Right, (b?, k, o); `up` is it where the forward has folded it for all targets together."""
        if up is not None:
            return up
        cut = self.cut
        up = cut.fold([factors[f] for f in cut.mid + cut.right])  # (b?, *bonds, o)
        return self.scaled(up.flatten(-1 - len(cut.left_shape), -2))

    def base_and_hidden(
        self, x: Tensor, y: Tensor | None, factors: dict[str, Tensor], fused: bool
    ) -> tuple[Tensor, Tensor]:
        """base(x) unless it is known, and x Left in the layer's own hidden layout, which layers side by side share."""
        shared, cut, key = self._owner[0].shared, self.cut, self.left_key
        h = shared.take(key, x, self.target.path) if fused else None
        kernel = None if h is not None else cut.kernel([factors[f] for f in cut.left])
        if fused and self.one_node(x, kernel):
            y, made = self._one_node(x, None if kernel is None else kernel.flatten(0, -2))
            h = h if made is None else made.view(self.examples(x), prod(x.shape[1:-1]), made.shape[-1])
        else:
            y = self.base(x) if y is None else y
            if h is None:
                h = self.hidden(x.to(y.dtype) if x.is_floating_point() else x, kernel.to(y.dtype))
        if fused and kernel is not None:
            shared.keep(key, x, self.target.path, h)
        return y, h

    def one_node(self, x: Tensor, kernel: Tensor | None) -> bool:
        """Whether base and hidden may be one node of the graph: frozen weights, one kernel for all, one dtype."""
        if not torch.is_grad_enabled():
            return False
        weight, bias = self.base.weight, self.base.bias
        frozen = not (weight.requires_grad or (bias is not None and bias.requires_grad))
        one_type = x.dtype == weight.dtype == (weight if kernel is None else kernel).dtype
        linear = frozen and self.plain_base is nn.Linear and not self.cut.left_batched
        return linear and (one_type or _autocast(x) is not None)

    def _one_node(self, x: Tensor, kernel: Tensor | None) -> tuple[Tensor, Tensor | None]:
        operands, dtype = (x, self.base.weight, self.base.bias, kernel), _autocast(x)
        if dtype is not None:
            operands = tuple(None if one is None else one.to(dtype) for one in operands)
        return FusedLinearDown.apply(*operands)

    def unobserved(self) -> bool:
        """Whether the base is the plain layer, and nobody else sees what it gives."""
        base = self.base
        return self.plain and not (base._forward_hooks or base._forward_pre_hooks or "forward" in vars(base))

    def dropped(self, h: Tensor) -> Tensor:
        """The hidden activation after the adapter's dropout."""
        adapter = self._owner[0]
        return adapter.rank_dropout(h) if adapter.training and adapter.config.dropout else h

    def shifted(self, y: Tensor, factors: dict[str, Tensor]) -> Tensor:
        """y + scale . bias, of a method that has biases."""
        for bias in self._shifts(factors):
            y = y + self.along_channels(bias, y).to(y.dtype)
        return y

    def along_channels(self, bias: Tensor, y: Tensor) -> Tensor:
        """(n, o) as it is added to an output."""
        shape = [len(bias), *[1] * (y.ndim - 1)]
        shape[self.channels] = bias.shape[1]
        return bias.reshape(shape)

    def _shifts(self, factors: dict[str, Tensor]) -> list[Tensor]:
        """The scaled biases, each (n, o)."""
        return [self.scaled(factors[f]).reshape(-1, self.target.sizes["out"]) for f in self.biases]

    def shift(self, condition_values: dict[str, Tensor] | None) -> Tensor | None:
        """The scaled bias of one condition, (o,); None of a method without biases."""
        found = self._shifts(self._owner[0].read(self.target, condition_values))
        return sum(found)[0] if found else None

    def bias_to_merge(self, condition_values: dict[str, Tensor] | None) -> Tensor | None:
        """`shift`; ValueError where the base has no bias that it could be added to."""
        shift = self.shift(condition_values)
        if shift is not None and self.base.bias is None:
            name = self._owner[0].method.name
            raise ValueError(f"merge: target {self.target.path!r} has no bias that {name}'s could be added to")
        return shift

    def merge_bias(self, shift: Tensor | None) -> None:
        """Add it to the base's bias, whose bits are kept."""
        if shift is not None:
            self.original_bias = self.base.bias.detach().clone()
            self.base.bias.data.add_(shift.to(self.base.bias.dtype))

    def unmerge_bias(self) -> None:
        """Restore the base's bias, bit for bit."""
        if self.original_bias is not None:
            self.base.bias.data.copy_(self.original_bias)
            self.original_bias = None

    def weight_first(self, x: Tensor, n: int) -> bool:
        """Whether base(x) with W + Delta W costs fewer multiply-adds than base(x) and the cut beside it.

        With T positions, s = kernel size x in: training pays 3 T k (s + o) for the cut, T s o + 3 s k o for the weight;
        inference T k (s + o) against s k o; a circuit has its own numbers in their place. Only for one condition, a
        plain base and full precision: in 16 bits W + Delta W would round a small Delta W away.
        """
        adapter, cut = self._owner[0], self.cut
        if n != 1 or cut.left_batched or not (adapter.weight_first and self.cheaper_as_weight(x) and self.unobserved()):
            return False
        if adapter.training and adapter.config.dropout:
            return False
        return _autocast(x) is None and self.base.weight.dtype in (torch.float32, torch.float64)

    def cheaper_as_weight(self, x: Tensor) -> bool:
        """The comparison of `weight_first`; a convolution by a circuit has no other way."""
        cut = self.cut
        if cut.whole and not self.by_gates:
            return True
        positions = x.numel() // self.target.sizes["in"] // self.positions_per_step
        if torch.is_grad_enabled():
            base = self.input_size * self.target.sizes["out"]
            return positions * base + 3 * cut.form < 3 * positions * cut.per_position
        return cut.form < positions * cut.per_position

    def through(self, x: Tensor, factors: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
        """x Delta W of a circuit, unscaled, in the layer's own layout: gate by gate, or by its whole kernel."""
        operands = [factors[f] for f in self.cut.left]
        if not self.by_gates:
            return self.hidden(x.to(dtype) if x.is_floating_point() else x, self.cut.kernel(operands).to(dtype))
        tokens = x.reshape(self.examples(x), prod(x.shape[1:-1]), x.shape[-1])
        return self.cut.through(tokens, operands).to(dtype)

    def mix(self, h: Tensor, mids: list[Tensor]) -> Tensor:
        """Apply Mid to the hidden activation: (b, t, k) -> (b, t, k')."""
        h = self.tokens_first(h).unflatten(-1, self.cut.left_shape)
        return self.cut.mix([h, *(m.to(h.dtype) for m in mids)]).flatten(2)

    def delta(self, condition_values: dict[str, Tensor] | None) -> Tensor:
        """Dense Delta W in the base weight's layout, with a leading axis where the factors differ per example."""
        dense = self.dense(self._owner[0].read(self.target, condition_values))
        return dense if len(dense) > 1 else dense[0]

    def dense(self, factors: dict[str, Tensor], up: Tensor | None = None) -> Tensor:
        """(n, *base weight)."""
        cut = self.cut
        left = cut.kernel([factors[f] for f in cut.left])  # (b?, *bonds, *inputs)
        if cut.whole:
            left = left.flatten(int(cut.left_batched), len(cut.left_shape) - 1 + cut.left_batched)  # (b?, o, *inputs)
            left = left if cut.left_batched else left[None]
            return self.to_base_layout(self.scaled(left.movedim(1, -1)))
        up = self.fold(factors, up)
        left, up = (left if cut.left_batched else left[None]), (up if cut.fold_batched else up[None])
        inputs = left.shape[1 + len(cut.left_shape) :]
        dense = left.reshape(len(left), cut.left_rank, -1).mT @ up  # (n, inputs, o)
        return self.to_base_layout(dense.unflatten(1, inputs))

    def adapted_weight(self, factors: dict[str, Tensor], up: Tensor | None = None) -> Tensor:
        """W + Delta W of one condition, by one product into W where its layout allows it."""
        weight = self.base.weight
        if self.cut.whole or not weight.is_contiguous():
            return weight + self.dense(factors, up)[0].to(weight.dtype)
        left, up = (one.to(weight.dtype) for one in self.pair_of(factors, up))
        return self.add_product(weight, left.flatten(1), up)

    def pair(self, condition_values: dict[str, Tensor] | None) -> tuple[Tensor, Tensor]:
        """(Left as (k, *inputs), scale . Mid . Right as (k, o)): the exact LoRA pair for one condition."""
        return self.pair_of(self._owner[0].read(self.target, condition_values))

    def pair_of(self, factors: dict[str, Tensor], up: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`pair`, from its factors."""
        cut = self.cut
        left = cut.kernel([factors[f] for f in cut.left])
        if cut.whole:
            left = left[0] if cut.left_batched else left
            identity = torch.eye(cut.left_rank, dtype=left.dtype, device=left.device)
            return left.reshape(cut.left_rank, *left.shape[len(cut.left_shape) :]), self.scaled(identity)
        up = self.fold(factors, up)
        left, up = (left[0] if cut.left_batched else left), (up[0] if cut.fold_batched else up)
        return left.reshape(cut.left_rank, *left.shape[len(cut.left_shape) :]), up

    # ---- what differs between layer kinds; linear-like by default --------------------------------------------------
    def examples(self, x: Tensor) -> int:
        """The number of examples in an input, its first axis; `len` would be a constant for torch.export."""
        return x.shape[0] if x.ndim > 1 else 1

    def hidden(self, x: Tensor, kernel: Tensor) -> Tensor:
        """x Left: (b, t, k)."""
        kernel = kernel.flatten(-1 - len(self.cut.left_shape), -2)  # (b?, k, i)
        tokens = x.reshape(self.examples(x), prod(x.shape[1:-1]), x.shape[-1])
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

    def add_product(self, weight: Tensor, left: Tensor, up: Tensor) -> Tensor:
        """W + (Left' Right)' in the base's layout, with (k, inputs) and (k, o)."""
        return torch.addmm(weight.flatten(1), up.mT, left).view_as(weight)

    def apply_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        """The base's own forward with another weight."""
        return F.linear(x, weight, self.base.bias)


class AdaptedTransposedLinear(AdaptedLayer):
    """GPT-2's Conv1D: a linear layer that stores its weight in x out."""

    plain_base = None

    def to_base_layout(self, dense: Tensor) -> Tensor:
        return dense

    def add_product(self, weight: Tensor, left: Tensor, up: Tensor) -> Tensor:
        return torch.addmm(weight, left.mT, up)


class AdaptedEmbedding(AdaptedTransposedLinear):
    """Embedding: the input mode is the vocabulary, so Left is a table of k numbers a token.

    Ids of one row, such as positions that all examples share, take every example's own factors.
    """

    by_gates = False

    def forward(self, x: Tensor, y: Tensor | None = None, values: Mapping[str, Tensor] | None = None) -> Tensor:
        n = self._owner[0].count(self.target, values)
        if n > 1 and x.ndim > 1 and x.shape[0] == 1:
            x, y = x.expand(n, *x.shape[1:]), None if y is None else y.expand(n, *y.shape[1:])
        return super().forward(x, y, values)

    def examples(self, x: Tensor) -> int:
        return x.shape[0]

    def hidden(self, x: Tensor, kernel: Tensor) -> Tensor:
        kernel = kernel.flatten(-1 - len(self.cut.left_shape), -2)  # (b?, k, i)
        ids = x.reshape(x.shape[0], prod(x.shape[1:]))
        if self.cut.left_batched:
            index = ids[:, None].expand(-1, kernel.shape[1], -1)
            return kernel.expand(ids.shape[0], -1, -1).gather(2, index).mT
        return F.embedding(ids, kernel.mT)


class AdaptedConv(AdaptedLayer):
    """Conv2d: Left is a convolution of the base's stride, padding and dilation to k channels."""

    plain_base = nn.Conv2d
    channels = 1
    by_gates = False

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
        b = x.shape[0]  # one grouped convolution applies a kernel of its own to every example
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


def _autocast(x: Tensor) -> torch.dtype | None:
    """The type that autocast computes in where x is; None without autocast."""
    kind = x.device.type
    on = torch.is_autocast_enabled(kind) and x.dtype != torch.float64  # which autocast leaves as it is
    return torch.get_autocast_dtype(kind) if on else None


LAYERS: dict[str, type[AdaptedLayer]] = {
    "linear": AdaptedLayer,
    "conv1d": AdaptedConv1d,
    "conv2d": AdaptedConv,
    "conv1d_gpt2": AdaptedTransposedLinear,
    "embedding": AdaptedEmbedding,
}
