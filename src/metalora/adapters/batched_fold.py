"""Mid and Right of all targets of one plan, folded by one contraction a forward instead of one a target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from metalora.adapters.layers.base import AdaptedLayer
from metalora.adapters.stacked_operands import StackedOperands
from metalora.tensornet.forms.low_rank import LowRankForm

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter


class BatchedFold:
    """Folds scale . Mid . Right of targets whose forms are one object.

    An operand that all of them read alike is neither stacked nor multiplied more than once.

    Args:
        layers: Path -> layer, all of one form, rank and scale.
    """

    def __init__(self, layers: Mapping[str, AdaptedLayer]):
        self.paths = list(layers)
        bounds = [layer.bound for layer in layers.values()]
        form = bounds[0].form
        assert isinstance(form, LowRankForm)
        self.operands = StackedOperands(bounds, form.mid + form.right)
        self.fold = form.fold.batched(self.operands.stacked, len(self.paths))  # -> (targets, *bonds, o)
        self.scale = bounds[0].scale

    def __call__(self) -> dict[str, Tensor]:
        """Return path -> scale . Mid . Right (k, o)."""
        up = self.fold(self.operands(None)).flatten(1, -2)  # (targets, *bonds, o) -> (targets, k, o)
        up = up if self.scale == 1 else up * self.scale
        return dict(zip(self.paths, up.unbind(), strict=True))


def batched_folds(adapter: Adapter) -> list[BatchedFold]:
    """Return the folds of the targets that can be folded together.

    These are several targets of one scale and one form that has a Mid, if no factor of Mid and Right differs by example
    and all are read as they are stored.

    Args:
        adapter: The adapter, with its layers.
    """
    by_plan: dict[tuple[int, float], dict[str, AdaptedLayer]] = {}  # targets of one plan share one form object
    for path, layer in adapter.layers.items():
        form = layer.form
        if not isinstance(layer, AdaptedLayer):
            continue
        if isinstance(form, LowRankForm) and form.mid and not form.fold_batched and layer.bound.reads_as_stored:
            by_plan.setdefault((id(form), layer.bound.scale), {})[path] = layer
    return [BatchedFold(layers) for layers in by_plan.values() if len(layers) > 1]
