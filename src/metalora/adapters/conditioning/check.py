"""Whether a condition is one of an adapter: checked before every use of one that is passed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from metalora.adapters.bound_target import slot_of
from metalora.adapters.conditioning.condition import Condition, Values

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter


def check_condition(adapter: Adapter, condition: Condition) -> None:
    """Raise a ValueError if another adapter made a condition, as far as it says so, or if its values do not fit.

    A condition that was loaded says which adapter made it. The numbers of the adapter are hashed once for a file.

    Args:
        adapter: The adapter that is to use the condition.
        condition: The condition.

    Raises:
        ValueError: Another adapter or another base, a missing factor, other shapes, values for different numbers of
            examples.
    """
    if torch.compiler.is_compiling():  # a hash has no graph
        return
    if condition.origin is not None:
        from metalora.io.condition_file import check_origin

        check_origin(adapter, condition.origin)
    place = "the condition" if condition.origin is None else f"{condition.origin.file}: the condition"
    shapes: dict[str, Sequence[int]] = {} if adapter.conditioner is None else dict(adapter.conditioner.shapes)
    for key, axis in adapter.task_keys.items():
        if key in condition.values:  # otherwise the task comes as a number
            shape = tuple(adapter.learned_by_slot[slot_of(key)].shape)
            shapes[key] = shape[:axis] + shape[axis + 1 :]
    check_shapes(shapes, condition.values, len(condition), place)


def check_shapes(shapes: Mapping[str, Sequence[int]], values: Values, examples: int, place: str) -> None:
    """Raise a ValueError unless there is a value of the right shape for every example and factor.

    Args:
        shapes: Key of a generated factor -> its shape.
        values: Key of a stored factor -> its values.
        examples: Number of examples n.
        place: What the message names.

    Raises:
        ValueError: A factor is missing, or a value has another shape.

    Example:
        >>> check_shapes({"C": (2, 2)}, {"C": torch.zeros(3, 2)}, 3, "the condition")
        Traceback (most recent call last):
        ValueError: the condition: 'C' has shape (3, 2), expected (3, 2, 2)
    """
    for key, shape in shapes.items():
        if key not in values:
            raise ValueError(f"{place}: no value for {key!r}, expected one for each of {', '.join(shapes)}")
        if tuple(values[key].shape) != (examples, *shape):
            raise ValueError(f"{place}: {key!r} has shape {tuple(values[key].shape)}, expected {(examples, *shape)}")
