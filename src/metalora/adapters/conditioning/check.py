"""Whether a condition is one of an adapter: checked before every use of one that is passed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metalora.adapters.bound_target import slot_of
from metalora.adapters.conditioning.condition import Condition, Values

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter


def check_condition(adapter: Adapter, condition: Condition) -> None:
    """Raise a ValueError if another adapter made a condition, as far as it says so, or if its values do not fit.

    A condition says which adapter made it, also one that was loaded. The numbers of an adapter are hashed once for a
    file; in memory it is a look at two objects, unless the maker is another one, such as a copy of the adapter.

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
    _check_maker(adapter, condition)
    place = "the condition" if condition.origin is None else f"{condition.origin.file}: the condition"
    shapes: dict[str, Sequence[int]] = {} if adapter.conditioner is None else dict(adapter.conditioner.shapes)
    for key, axis in adapter.task_keys.items():
        if key in condition.values:  # otherwise the task comes as a number
            shape = tuple(adapter.learned_by_slot[slot_of(key)].shape)
            shapes[key] = shape[:axis] + shape[axis + 1 :]
    check_shapes(shapes, condition.values, len(condition), place)


def _check_maker(adapter: Adapter, condition: Condition) -> None:
    """Raise a ValueError if an adapter with other numbers made a condition that is in memory."""
    maker = None if condition.maker is None else condition.maker.adapter()
    if maker is None or same_adapter(maker, adapter):
        return
    from metalora.io.condition_file import adapter_digest

    # The file of the maker may have been written with fewer bits.
    if adapter.digest_in_file is None or adapter.digest_in_file != adapter_digest(maker):
        raise ValueError(
            f"the condition of another adapter ({maker.method.name}), or of a copy that was trained differently: make "
            f"it with the {adapter.method.name} that is to use it"
        )


def same_adapter(maker: Adapter, adapter: Adapter) -> bool:
    """Return whether two adapters make the same of every condition: one object, replicas, or copies of equal numbers.

    Example:
        >>> import copy, metalora
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4))
        >>> adapter = metalora.attach(model, metalora.AdapterConfig("lora", rank=1, targets="0"))
        >>> copied = metalora.adapter_of(copy.deepcopy(model))
        >>> same_adapter(adapter, copied)
        True
        >>> _ = copied.factors["0.B"].data.fill_(1)
        >>> same_adapter(adapter, copied)
        False
    """
    if maker is adapter:
        return True
    if maker.config != adapter.config:  # whose seed makes the frozen factors, which no state has
        return False
    states = maker.state_dict(keep_vars=True), adapter.state_dict(keep_vars=True)
    if states[0].keys() != states[1].keys():
        return False
    return all(_equal(value, states[1][name]) for name, value in states[0].items())


def _equal(left: Tensor, right: Tensor) -> bool:
    """Return whether two tensors are one or have the same numbers, on whatever devices they are."""
    if left is right:
        return True
    if left.shape != right.shape or left.is_meta or right.is_meta:
        return False
    return torch.equal(left.detach().cpu(), right.detach().to("cpu", left.dtype))


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
