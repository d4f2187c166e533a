"""Which layers may compute their update by Triton kernels, and how such a layer does it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from metalora.adapters.conditioning.rows import RowValues
from metalora.adapters.identity import identity_matrix
from metalora.adapters.triton_kernels.available import is_interpreted

if TYPE_CHECKING:
    from metalora.adapters.conditioning.condition import Values
    from metalora.adapters.forward_state import CastFactors, ValueFactors
    from metalora.adapters.layers.base import AdaptedLayer

MOST_RANK = 128  # a block of rows holds this many numbers of each row at once


def can_run(layer: AdaptedLayer, x: Tensor, conditions: int) -> bool:
    """Return True if a layer that could run fused can compute its update by Triton kernels.

    Args:
        layer: A layer with a low-rank form.
        x: Its input, (b, .., i) for a linear layer.
        conditions: How many conditions are active.
    """
    adapter, form = layer.owner[0], layer.low_rank
    if form is None or max(form.left_rank, form.right_rank) > MOST_RANK or not layer.has_triton_kernels(x):
        return False
    if conditions > 1 and (form.left_batched or form.right_batched or not form.mid_batched):
        return False
    if adapter.training and adapter.dropout:  # which stands between x Left and Mid
        return False
    return x.numel() > 0 and (x.is_cuda or is_interpreted())


def run(
    layer: AdaptedLayer,
    x: Tensor,
    values: Values | None,
    conditions: int,
    cast: CastFactors | None,
    together: ValueFactors | None,
) -> Tensor:
    """Compute the output of a layer, (*, i) -> (*, o); see `can_run`.

    Args:
        layer: The layer.
        x: Its input, (b, .., i).
        values: The values that differ by example.
        conditions: How many conditions are active.
        cast: What the forward has cast for all targets together, or None.
        together: What it has made of the values, or of their table, for all targets together, or None.

    Raises:
        ValueError: The conditions fit neither the batch nor the beams of `generate`.
    """
    layer.check_batch(x, conditions)
    path, is_one = layer.bound.path, conditions == 1
    lefts, rights = ({}, {}) if cast is None else (cast.lefts, cast.ups if is_one else cast.rights)
    mids, ups = ({}, {}) if together is None else (together.mids, together.ups)
    left, right, mid, index = lefts.get(path), rights.get(path), None, None
    left = layer.left(values) if left is None else left
    if is_one:
        right = ups.get(path) if right is None else right
        right = layer.up(values) if right is None else right
    else:
        table, index = (values.table, values.rows) if isinstance(values, RowValues) else (values, None)
        mid = mids.get(path)
        if mid is None or mid.ndim < 3:  # a diagonal, as the other kernels read it
            mid = mid_of_conditions(layer, table)
        right = layer.right(values) if right is None else right
    y = layer.by_triton(x, left, right, mid, index)
    return layer.add_biases(y, values, layer.repeats(x, conditions)) if layer.bound.has_biases else y


def mid_of_conditions(layer: AdaptedLayer, values: Values | None) -> Tensor:
    """Return Mid as one matrix for each condition, (m, k, k'): what becomes of the rows of the identity.

    Args:
        layer: A layer whose Mid differs by example.
        values: The values of the m conditions.
    """
    form = layer.low_rank
    assert form is not None, "a circuit has no Mid"
    factors = layer.bound.read(values, form.mid)
    mids = [factors[name] for name in form.mid]
    identity = identity_matrix(form.left_rank, mids[0].dtype, mids[0].device)
    conditions = layer.bound.num_conditions(values)
    tokens = identity.view(1, form.left_rank, *form.left_shape).expand(conditions, *[-1] * (1 + len(form.left_shape)))
    return form.mix([tokens, *mids]).flatten(2)
