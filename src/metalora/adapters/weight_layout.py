"""The weight of a layer as a matrix of outputs and inputs, whatever axes torch stores it in.

| kinds | stored as |
|---|---|
| linear, convolutions | (out, in, *kernel) |
| conv1d_gpt2, embedding | (in, out) |
| transposed convolutions | (groups . in, out / groups, *kernel) |

`in` counts the inputs of one output: those of its group. The kernel of three axes is stored as (depth, height, width)
and is (depth . height, width) here.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from metalora.adapters.convolutions import TRANSPOSED_CONVOLUTIONS
from metalora.adapters.targets import TRANSPOSED, Target


def by_group(tensor: Tensor, axis: int, groups: int) -> Tensor:
    """Split an axis (.., groups . n, ..) into (.., groups, n, ..); `axis` counts from the first.

    Example:
        >>> import torch
        >>> by_group(torch.ones(5, 6), 1, 3).shape
        torch.Size([5, 3, 2])
    """
    return tensor.reshape(*tensor.shape[:axis], groups, tensor.shape[axis] // groups, *tensor.shape[axis + 1 :])


def outputs_first(weight: Tensor, target: Target) -> Tensor:
    """Bring weights from the layout of the base to (b, out, in, *kernel).

    Args:
        weight: One or several weights (b, *weight).
        target: The target.

    Example:
        >>> import torch
        >>> from metalora.adapters.targets import find_targets
        >>> model = torch.nn.Sequential(torch.nn.ConvTranspose1d(6, 4, 5, groups=2))
        >>> [target] = find_targets(model, "0")
        >>> outputs_first(model[0].weight[None], target).shape
        torch.Size([1, 4, 3, 5])
    """
    if target.kind in TRANSPOSED:
        return weight.mT
    if target.kind in TRANSPOSED_CONVOLUTIONS:
        weight = by_group(weight, 1, target.groups).transpose(2, 3).flatten(1, 2)  # (b, g, i, o, ..) -> (b, o, i, ..)
    return weight.flatten(3, 4) if weight.ndim == 6 else weight


def as_stored(dense: Tensor, target: Target, shape: Sequence[int]) -> Tensor:
    """Bring weights from (b, out, in, *kernel) to the layout of the base.

    Args:
        dense: The weights, of the base or of a layer with other outputs; the kernel may have all its axes, or those of
            the target's modes.
        target: The target.
        shape: Shape of the base's weight, for the axes of the kernel.

    Returns:
        (b, *weight), of the base or of that other layer.
    """
    if target.kind in TRANSPOSED:
        return dense.mT
    if target.kind in TRANSPOSED_CONVOLUTIONS:
        dense = by_group(dense, 1, target.groups).transpose(2, 3).flatten(1, 2)  # (b, g i, o / g, *kernel)
    return dense.reshape(*dense.shape[:3], *shape[2:])


def along_outputs(rows: Tensor, target: Target, shape: Sequence[int]) -> Tensor:
    """Give one number for each output the axes of the weight.

    Args:
        rows: (b, out).
        target: The target.
        shape: The shape in which torch stores the weight.

    Returns:
        The numbers in a shape that multiplies weights (b, *shape), each of their outputs by its own.
    """
    if target.kind in TRANSPOSED:
        return rows[:, None]
    ones = [1] * (len(shape) - 2)
    if target.kind in TRANSPOSED_CONVOLUTIONS:
        rows = by_group(rows, 1, target.groups).repeat_interleave(target.sizes["in"], 1)  # (b, g i, o / g)
        return rows.reshape(*rows.shape, *ones)
    return rows.reshape(*rows.shape, 1, *ones)
