"""What layers have whose update can be added to the weight and the bias of their base."""

from __future__ import annotations

from abc import ABC
from typing import TYPE_CHECKING

from torch import Tensor

from metalora.adapters.bit_hash import bit_hash
from metalora.adapters.layers.target_layer import TargetLayer
from metalora.adapters.rounded_sum import rounded_sum
from metalora.adapters.stored_weight import KeptWeight, write_weight

if TYPE_CHECKING:
    from metalora.adapters.conditioning.condition import Values


class MergeableLayer(TargetLayer, ABC):
    """A layer with a Delta W, and perhaps a shift of the bias.

    Attributes:
        original: The base's weight while merged; None otherwise.
        original_bias: The base's bias while merged.
        kept: What the base stores for its weight, while merged.
        written: The hash of the weight that a merge has written; None otherwise.
        written_bias: The hash of the bias that a merge has written.
    """

    def __init__(self) -> None:
        super().__init__()
        # Of the instance: a quantised weight is a parameter, which cannot take the place of an attribute of the class.
        self.original: Tensor | None = None
        self.original_bias: Tensor | None = None
        self.kept: KeptWeight | None = None
        self.written: int | None = None
        self.written_bias: int | None = None

    def check_base(self, enabled: bool) -> None:
        """Raise a ValueError if the frozen base is asked for (`enabled` is False), and its weight holds Delta W."""
        if not enabled and self.original is not None:
            raise ValueError(
                f"target {self.target.path!r} is merged, so the frozen network cannot run: unmerge the adapter first"
            )

    def merged_bias(self, values: Values | None) -> Tensor | None:
        """Return the base's bias (o,) with `shift`, in its type, or None if the method has no biases.

        Raises:
            ValueError: The method has biases, and the base has no bias that they could be added to; or the sum is not
                finite.
        """
        shift = self.shift(values)
        if shift is None:
            return None
        bias = getattr(self.base, "bias", None)  # an embedding has no such attribute
        if bias is None:
            method = self.owner[0].method.name
            raise ValueError(
                f"merge: target {self.target.path!r} has no bias that the bias of {method!r} could be added to"
            )
        return rounded_sum(bias, shift, f"the bias of target {self.target.path!r}")

    def merge_weight(self, merged: Tensor) -> None:
        """Put W + Delta W in the place of the base's weight, whose bits are kept."""
        self.kept = KeptWeight(self.base)
        self.original = self.kept.weight(self.base)
        write_weight(self.base, merged)
        self.written = bit_hash(self.base.weight)

    def unmerge_weight(self) -> None:
        """Restore the base's weight, bit for bit."""
        if self.kept is not None:
            self.kept.restore(self.base)
            self.original = self.written = self.kept = None

    def changed_since_merge(self) -> bool:
        """Return True if the weight or the bias is no longer what a merge has written."""
        if self.written is not None and bit_hash(self.base.weight) != self.written:
            return True
        bias = getattr(self.base, "bias", None)  # an embedding has no such attribute
        return self.written_bias is not None and bias is not None and bit_hash(bias) != self.written_bias

    def merge_bias(self, merged: Tensor | None) -> None:
        """Put what `merged_bias` returned in the place of the base's bias, whose bits are kept."""
        bias = getattr(self.base, "bias", None)  # an embedding has no such attribute
        if merged is not None and bias is not None:
            self.original_bias = bias.detach().clone()
            bias.data.copy_(merged)
            self.written_bias = bit_hash(bias)

    def unmerge_bias(self) -> None:
        """Restore the base's bias, bit for bit."""
        if self.original_bias is not None and self.base.bias is not None:
            self.base.bias.data.copy_(self.original_bias)
            self.original_bias = self.written_bias = None
