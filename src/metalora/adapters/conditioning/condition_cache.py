"""Conditions of sequences that are being generated, by the key-value cache that continues them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from metalora.adapters.conditioning.condition import Values
from metalora.adapters.conditioning.features import CACHES
from metalora.adapters.conditioning.row_moves import follow, moved


class ConditionCache:
    """The values of generated factors at a prompt, stored for the decoding steps that continue this prompt.

    The key is the object of the key-value cache that the prompt and its continuation have in common. An entry lives
    as long as this object. If the cache moves its rows (`reorder_cache`, `batch_repeat_interleave`,
    `batch_select_indices`), the values move with them; a cache that is cropped keeps the values of its prompt.

    Attributes:
        entries: Key-value cache -> the values of its sequences.

    Example:
        >>> from types import SimpleNamespace
        >>> class KeyValueCache:
        ...     def get_seq_length(self):
        ...         return 5
        >>> key_values, conditions = KeyValueCache(), ConditionCache()
        >>> conditions.keep(SimpleNamespace(past_key_values=key_values), {"C": torch.ones(1, 2)})
        >>> conditions.values({"past_key_values": key_values}, needed=True)
        {'C': tensor([[1., 1.]])}
    """

    def __init__(self) -> None:
        # Weakly, because no call says that a sequence is finished.
        self.entries: WeakKeyDictionary[Any, Values] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        return ConditionCache, ()  # a copy starts empty

    def keep(self, output: Any, values: Values | None) -> None:
        """Store the values of a forward under the key-value cache in its output; under torch.compile do nothing.

        Args:
            output: Output of the model; if it has no key-value cache, nothing is stored.
            values: Key of a stored factor -> its values, (n, *factor shape).
        """
        key_values = _cache({name: getattr(output, name, None) for name in CACHES})
        if values and key_values is not None and not torch.compiler.is_compiling():
            self.entries[key_values] = _of_rows(values, output)
            follow(key_values, self)

    def move_rows(self, key_values: Any, operation: str, rows: Any) -> None:
        """Move the values of a cache as the cache has moved its rows.

        Args:
            key_values: The key-value cache.
            operation: Name of its method.
            rows: The argument of the method: the indices (rows,), or how often every row is repeated.
        """
        values = self.entries.get(key_values)
        if values is not None:
            self.entries[key_values] = {key: moved(value, operation, rows) for key, value in values.items()}

    def values(self, inputs: Mapping[str, Any], needed: bool) -> Values | None:
        """Return the values of the sequences that a forward with these inputs continues.

        Args:
            inputs: Keyword arguments of the forward.
            needed: Whether a forward that continues sequences must have values.

        Returns:
            Key of a stored factor -> its values, (n, *factor shape); None if nothing is stored for these inputs.

        Raises:
            ValueError: The values are needed, and nothing is stored under the key-value cache of the inputs.
        """
        length = _positions(inputs)
        stored = self.entries.get(_cache(inputs)) if length else None
        if length and needed and stored is None:
            raise ValueError(
                f"the cache holds {length} positions whose condition is not known (a copy, or made under "
                "torch.compile): call model(..., condition=condition)"
            )
        return stored


def _of_rows(values: Values, output: Any) -> Values:
    """The values of every row of an output, if `generate` has run several rows for each example."""
    logits = getattr(output, "logits", None)
    rows = len(logits) if isinstance(logits, Tensor) and logits.ndim else 0
    return {
        key: value.repeat_interleave(rows // len(value), 0) if 1 < len(value) < rows else value
        for key, value in values.items()
    }


def _cache(inputs: Mapping[str, Any]) -> Any:
    """Return the key-value cache among the inputs, or None."""
    return next((inputs[name] for name in CACHES if inputs.get(name) is not None), None)


def _positions(inputs: Mapping[str, Any]) -> int:
    """Return the number of positions in the key-value cache among the inputs.

    Returns:
        The number; 0 without a cache. The state of a state-space model has no positions: 1 if it is set, otherwise 0.
    """
    key_values = _cache(inputs)
    if key_values is None:
        return 0
    if not hasattr(key_values, "get_seq_length"):  # MambaCache of transformers 5.0: zeros before its prompt
        return int(any(bool(state.any()) for state in key_values.ssm_states))
    try:
        return int(key_values.get_seq_length())
    except ValueError:  # the cache of a state-space model refuses the question
        return int(key_values.has_previous_state())
