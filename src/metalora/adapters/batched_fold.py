"""Mid and Right of all targets of one plan, folded by one contraction a forward instead of one a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metalora.adapters.layout import FactorSlice, Layout
from metalora.tensornet.forms.low_rank import LowRankForm

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter
    from metalora.adapters.layers.base import AdaptedLayer


class BatchedFold:
    """What the targets of an adapter have folded together while a forward runs: path -> scale . Mid . Right, (k, o)."""

    def __init__(self) -> None:
        self.groups: list[Group] | None = None  # None: to be found anew, since the cuts have changed
        self.ups: dict[str, Tensor] = {}

    def begin(self, adapter: Adapter, stored: Callable[[FactorSlice], Tensor]) -> None:
        """Fold for a forward; nothing under torch.compile, which sees the whole graph, and with plain autograd."""
        self.ups = {}
        if torch.compiler.is_compiling() or not adapter.fused:
            return
        if self.groups is None:
            self.groups = groups(adapter)
        for group in self.groups:
            self.ups |= group(stored)

    def take(self, path: str) -> Tensor | None:
        """A target's product, if there is one; none in a checkpointed part, which is computed again without it."""
        up = self.ups.get(path)
        return None if up is None or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None else up


class Group:
    """Targets whose cuts are one object; an operand that they all read alike is not stacked and multiplied once."""

    def __init__(self, layers: Mapping[str, AdaptedLayer], layout: Layout):
        self.paths = list(layers)
        self.layer = layers[self.paths[0]]  # of one plan, so of one rank and scale
        cut = self.layer.cut
        self.views = [[layout.targets[path].views[name] for path in self.paths] for name in cut.mid + cut.right]
        self.stacked = [k for k, views in enumerate(self.views) if len(set(views)) > 1] or [0]
        self.fold = cut.fold.batched(self.stacked, len(self.paths))

    def __call__(self, stored: Callable[[FactorSlice], Tensor]) -> dict[str, Tensor]:
        """Path -> scale . Mid . Right, (k, o)."""
        operands = [
            torch.stack([stored(view) for view in views]) if k in self.stacked else stored(views[0])
            for k, views in enumerate(self.views)
        ]
        ups = self.layer.scaled(self.fold(operands).flatten(1, -2))  # (n, *bonds, o) to (n, k, o)
        return dict(zip(self.paths, ups.unbind(), strict=True))


def groups(adapter: Adapter) -> list[Group]:
    """The targets that can be folded together: several of one plan whose factors are read as they are stored."""
    found: dict[int, dict[str, AdaptedLayer]] = {}
    for path, layer in adapter.layers.items():
        cut = layer.cut
        if (
            isinstance(cut, LowRankForm)
            and cut.mid
            and not cut.fold_batched
            and adapter.layout.targets[path].reads_as_stored
        ):
            found.setdefault(id(cut), {})[path] = layer
    return [Group(layers, adapter.layout) for layers in found.values() if len(layers) > 1]
