"""What a mechanism does at one target."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor


class Handler:
    """What a mechanism does at one target; this class does nothing, and a handler overrides the hooks that it needs.

    A handler is a final frozen dataclass: targets whose networks, sizes and handlers are equal share one plan. It is
    made by the function `bind` of its module, which also returns the network of the target as the mechanism leaves it.

    All hooks get the factors of the target by name, those that differ by example with a leading axis for it.
    """

    def materialize(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The factors of the network from the values before this mechanism (stored, or made by an earlier one).

        Args:
            values: Name -> `(*modes)` or `(batch, *modes)`.

        Returns:
            The same dictionary with some factors replaced, added or removed; `values` itself may be changed.
        """
        return values

    def rewrites(self) -> bool:
        """Whether `materialize` changes anything, so that a factor is not read as it is stored."""
        return type(self).materialize is not Handler.materialize

    def dependent_factors(self, names: Collection[str]) -> tuple[str, ...]:
        """The factors that this mechanism makes from `names`, so that they differ by example if these do."""
        return ()

    def values_from_weight(self, weight: Tensor, scale: float) -> dict[str, Tensor]:
        """The initial values that are computed from the base's weight.

        Args:
            weight: `(inputs, out)`, the inputs being the axes of the kernel followed by `in`; float64.
            scale: What multiplies ΔW at the target.

        Returns:
            Name of the factor -> its numbers, in the order of its modes.
        """
        return {}

    def adjust_weight(self, weight: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
        """The effective weight from W + ΔW.

        Args:
            weight: W + ΔW in the layout of the base's weight, such as `(out, in)` of a Linear.
            factors: The materialised factors of the target.
        """
        return weight

    def adjust_output(self, output: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
        """The output of the layer from that of a layer with W + ΔW.

        Args:
            output: `(batch, ..., out)`, or `(batch, out, ...)` of a convolution.
            factors: The materialised factors of the target.
        """
        return output
