"""What the layers of one adapter share: the base, the target, and what the adapter does to both now."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor, nn

from metalora.adapters.bound_target import BoundTarget
from metalora.adapters.layers.base_layer import BaseLayer
from metalora.adapters.layers.read_as_base import ReadAsBase
from metalora.adapters.targets import Target

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter
    from metalora.adapters.conditioning.condition import Values


class TargetLayer(ReadAsBase, ABC):
    """A layer of an adapter around one base."""

    base: BaseLayer
    target: Target
    owner: tuple[Adapter]
    bound: BoundTarget
    original: Tensor | None  # the base's weight while merged; None otherwise
    runs_whole = False  # True if the base's own forward runs with W + Delta W

    @property
    def wrapped(self) -> nn.Module:
        """The base."""
        return self.base

    @property
    def path_of_target(self) -> str:
        """Path of the layer, for messages."""
        return self.target.path

    def has_one_weight(self) -> bool:
        """Return True if one W + Delta W is all that the adapter does now."""
        adapter, current = self.owner[0], self.owner[0].current()
        if not current.enabled or self.original is not None:
            return True
        has_dropout = adapter.training and bool(adapter.dropout)
        return not has_dropout and self.bound.num_conditions(current.values) == 1

    @property
    def changes_bias(self) -> bool:
        """True if the adapter may change the bias."""
        return self.bound.has_biases

    @abstractmethod
    def delta(self, values: Values | None) -> Tensor:
        """Return the dense Delta W in the base weight's layout.

        Args:
            values: The values that differ by example; None if none do.

        Returns:
            (*base weight), or (b, *base weight) if the factors differ by example.

        Raises:
            RuntimeError: A factor differs by example and `values` is None.
            ValueError: There is no Delta W.
        """

    @abstractmethod
    def shift(self, values: Values | None) -> Tensor | None:
        """Return what is added to the output in addition to x Delta W, (o,), of one condition; None if nothing is."""

    def weight_change(self) -> Tensor | None:
        """Return Delta W (*weight) as the adapter acts now; None if it is off or merged.

        Raises:
            ValueError: Delta W differs by example, the adapter has dropout in training, or it has no Delta W.
        """
        adapter = self.owner[0]
        acts, values = self._values_now()
        if not acts:
            return None
        if adapter.training and adapter.dropout:
            raise self.cannot_be_read("computes with it, which leaves the adapter's dropout out (set dropout to 0)")
        return self.delta(values)

    def bias_change(self) -> Tensor | None:
        """Return the change of the bias (o,) as the adapter acts now; None if there is none.

        Raises:
            ValueError: The change differs by example.
        """
        acts, values = self._values_now()
        return self.shift(values) if acts else None

    def _values_now(self) -> tuple[bool, Values | None]:
        """Return whether the adapter acts now, and under which values of one example."""
        current = self.owner[0].current()
        if not current.enabled or self.original is not None:
            return False, None
        if self.bound.num_conditions(current.values) > 1:
            raise self.cannot_be_read("computes with it, while the adapter differs by example")
        return True, current.values
