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
        # Asked of the class, so that a handler cannot forget to say that it overrides the hook.
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

    def own_factors(self) -> tuple[str, ...]:
        """The factors outside of the product that this mechanism reads itself, so that they are not biases."""
        return ()

    def output_scale(self, weight: Tensor, adapted: Tensor, factors: Mapping[str, Tensor]) -> Tensor | None:
        """What multiplies every output of a layer with W + ΔW, its bias excepted; None if nothing does.

        Args:
            weight: The base's weight W as `(out, inputs)`.
            adapted: W + ΔW as `(batch or 1, out, inputs)`.
            factors: The materialised factors of the target.

        Returns:
            `(batch or 1, out)`, or None.
        """
        return None

    def rescales(self) -> bool:
        """Whether `output_scale` gives anything, so that ΔW of the whole layer is not the network's."""
        return type(self).output_scale is not Handler.output_scale
