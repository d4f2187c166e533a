"""The factors of several targets as the operands of one contraction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metalora.adapters.bound_target import BoundTarget

if TYPE_CHECKING:
    from metalora.adapters.conditioning.condition import Values


class StackedOperands:
    """Reads factors of several targets; one that all of them read alike is not stacked.

    Args:
        bounds: The targets, all of which have these factors.
        factors: Names of the factors, in the order of the operands.

    Attributes:
        stacked: The positions of the operands that are stacked, with a leading axis of targets. There is at least one,
            so that the result of a contraction always has this axis.
    """

    def __init__(self, bounds: Sequence[BoundTarget], factors: Sequence[str]):
        self._bound = bounds[0]
        self._readers = [[bound.select((name,))[0] for bound in bounds] for name in factors]
        slices = [{reader.slice for reader in readers} for readers in self._readers]
        self.stacked = [position for position, distinct in enumerate(slices) if len(distinct) > 1] or [0]

    def __call__(self, values: Values | None) -> list[Tensor]:
        """Return the operands, under the values that differ by example if there are any."""
        operands = []
        for position, readers in enumerate(self._readers):
            if position in self.stacked:
                operands.append(torch.stack(self._bound.tensors(readers, values)))
            else:
                operands += self._bound.tensors(readers[:1], values)
        return operands
