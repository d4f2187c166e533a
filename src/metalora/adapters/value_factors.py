"""Factors that depend on the values of a forward, made for all targets together when the first of them asks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from metalora.adapters.forward_state import CastFactors, ValueFactors
from metalora.adapters.identity import identity_matrix
from metalora.adapters.layers.base import AdaptedLayer
from metalora.adapters.stacked_operands import StackedOperands
from metalora.tensornet.forms.low_rank import LowRankForm

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter
    from metalora.adapters.conditioning.condition import Values

MOST_NUMBERS = 32 * 32  # of a Mid that is written as a matrix; a larger one is contracted with x Left
MOST_TOGETHER = 2**24  # numbers of the Mids of all examples and targets, 64 MB


class JointMids:
    """Writes Mid of each example as one matrix, for targets that contract it alike, by one contraction.

    Then a target takes one product for Mid, instead of a contraction with its changes of layout.

    Args:
        layers: Path -> layer, whose Mid alone differs by example; all of one `signature` of the contraction.
    """

    def __init__(self, layers: Mapping[str, AdaptedLayer]):
        self.paths = list(layers)
        bounds = [layer.bound for layer in layers.values()]
        form = bounds[0].form
        assert isinstance(form, LowRankForm)
        self.form, self._bound = form, bounds[0]
        self.operands = StackedOperands(bounds, form.mid)
        self.mix = form.mix.batched([1 + position for position in self.operands.stacked], len(self.paths))

    def num_conditions(self, values: Values) -> int:
        """Return how many conditions there are."""
        return self._bound.num_conditions(values)

    def numbers(self, values: Values) -> int:
        """Return how many numbers the Mids have together."""
        return len(self.paths) * self.num_conditions(values) * self.form.left_rank * self.form.right_rank

    def __call__(self, values: Values) -> dict[str, Tensor]:
        """Return path -> Mid (b, k, k'): what becomes of the rows of an identity matrix."""
        rank, bonds, operands = self.form.left_rank, self.form.left_shape, self.operands(values)
        identity = identity_matrix(rank, operands[0].dtype, operands[0].device)
        rows = identity.view(1, rank, *bonds).expand(self.num_conditions(values), rank, *bonds)
        mids = self.mix([rows, *operands]).flatten(3)  # (targets, b, k, *bonds) -> (targets, b, k, k')
        return dict(zip(self.paths, mids.unbind(), strict=True))


class FactorsUnderValues:
    """Makes the factors of an adapter that depend on values.

    Args:
        adapter: The adapter, with its layers.
    """

    def __init__(self, adapter: Adapter):
        self.cast_once = adapter.cast_once()
        alike: dict[Hashable, dict[str, AdaptedLayer]] = {}
        for path, layer in adapter.layers.items():
            form = layer.form
            if isinstance(layer, AdaptedLayer) and isinstance(form, LowRankForm) and _has_joint_mid(layer, form):
                key = tuple(form.mid), tuple(form.left_shape), form.mix.signature
                alike.setdefault(key, {})[path] = layer
        self.joint = [JointMids(layers) for layers in alike.values() if len(layers) > 1]

    def __call__(self, values: Values, cast: CastFactors | None) -> ValueFactors:
        """Return the factors under values.

        Args:
            values: The values that differ by example.
            cast: What this forward has cast, so that these are cast too; None: they stay in their type.
        """
        mids: dict[str, Tensor] = {}
        for joint in self.joint:
            if joint.num_conditions(values) > 1 and joint.numbers(values) <= MOST_TOGETHER:
                mids |= joint(values)
        if cast is None:
            return ValueFactors(values, mids, {})
        return self.cast_once.under(values, mids, cast)


def _has_joint_mid(layer: AdaptedLayer, form: LowRankForm) -> bool:
    """Return True if Mid alone differs by example, is a small matrix, and is not stored as the layer reads it."""
    if not form.mid_batched or form.left_batched or form.right_batched:
        return False
    is_read_as_stored = form.mid_shape is not None and not layer.owner[0].uses_triton
    is_small = form.left_rank * form.right_rank <= MOST_NUMBERS
    return layer.bound.reads_as_stored and is_small and not is_read_as_stored
