"""A layer with a bottleneck behind it: two small maps of its output and an activation between them.

Legend: b batch · t token or position · h hidden · o channels out.
"""

from collections.abc import Mapping
from typing import NoReturn

import torch
from torch import Tensor, nn

from metalora.adapters.targets import Target
from metalora.methods.records import NonlinearBottleneck
from metalora.tensornet.forms.bottleneck import Bottleneck

CHANNELS = {"conv1d": -2, "conv2d": -3}  # the axis of the output that holds the channels, of other kinds the last
ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "gelu": torch.nn.functional.gelu}


class BottleneckLayer(nn.Module):
    """z = base(x); y = z + scale . (activation(z Down + b) Up + c).

    It is no Delta W of the base's weight, so it cannot be merged or exported. It has no `weight`: code that reads
    `.weight` fails loudly instead of ignoring the adapter.
    """

    original = original_bias = None  # it is never merged
    biases = ()  # none beside a Delta W

    def __init__(self, base: nn.Module, target: Target, cut: Bottleneck, adapter: nn.Module):
        super().__init__()
        self.base, self.target, self.cut = base, target, cut
        self._owner = (adapter,)  # a tuple, so that the adapter is registered once, by its owner
        self.axis = CHANNELS.get(target.kind, -1)

    def take(self, cut: Bottleneck) -> None:
        """Work by this plan."""
        self.cut = cut

    def forward(self, x: Tensor, y: Tensor | None = None, values: Mapping[str, Tensor] | None = None) -> Tensor:
        """base(x) through the bottleneck; y is base(x) if it is known, values the condition if not the active one."""
        adapter, z = self._owner[0], self.base(x) if y is None else y
        if not adapter.enabled:
            return z
        single = z.ndim == -self.axis  # one example without a batch axis
        z = z[None] if single else z
        if self.target.kind == "embedding" and len(z) == 1:  # positions, one row for all examples
            z = z.expand(adapter.count(self.target, values), *z.shape[1:])
        factors, _ = adapter.read_for(self.target, len(z), values)
        tokens = z.movedim(self.axis, -1)
        change = self.change(tokens.reshape(len(z), -1, tokens.shape[-1]), factors).view_as(tokens)
        y = tokens + adapter.scale_of(self.target.path) * change
        y = y.movedim(-1, self.axis)
        return y[0] if single else y

    def change(self, tokens: Tensor, factors: dict[str, Tensor]) -> Tensor:
        """activation(z Down + b) Up + c, (b, t, o) -> (b, t, o)."""
        adapter, cut = self._owner[0], self.cut
        down = cut.make_down([factors[f] for f in cut.down]).to(tokens.dtype)
        up = cut.make_up([factors[f] for f in cut.up]).to(tokens.dtype)
        down, up = (m.flatten(-1 - cut.hidden_modes, -2) for m in (down, up))  # (b?, h, o)
        h = tokens @ down.mT
        for bias in cut.inner:
            h = h + self._bias(bias, factors, tokens.dtype)
        out = adapter.rank_dropout(ACTIVATIONS[adapter.method.record(NonlinearBottleneck).activation](h)) @ up
        for bias in cut.outer:
            out = out + self._bias(bias, factors, tokens.dtype)
        return out

    def _bias(self, name: str, factors: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
        """(b or 1, 1, h or o)"""
        own = self._owner[0].per_example
        return factors[name].reshape(len(factors[name]) if name in own else 1, 1, -1).to(dtype)

    def delta(self, condition_values: dict[str, Tensor] | None) -> NoReturn:
        """ValueError: there is none."""
        raise ValueError(
            f"target {self.target.path!r}: {self._owner[0].method.name} has an activation between its two maps, so no "
            "Delta W of a weight equals it: it cannot be merged or exported, keep it beside the base"
        )

    pair = delta
