"""Conditions of sequences that are being generated, by the key-value cache that continues them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch

from metalora.adapters.conditioning.condition import Values
from metalora.adapters.conditioning.features import CACHES


class ConditionCache:
    """The values that were active at a prompt, for the steps that continue it, by the key-value cache of both."""

    def __init__(self) -> None:
        self.kept: WeakKeyDictionary[Any, Values] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        return ConditionCache, ()  # a copy has no caches of its own yet

    def keep(self, output: Any, values: Values | None) -> None:
        """Keep the values of a forward for as long as the cache that it gives; nothing under torch.compile."""
        cache = _cache({name: getattr(output, name, None) for name in CACHES})
        if values and cache is not None and not torch.compiler.is_compiling():
            self.kept[cache] = values

    def values(self, inputs: Mapping[str, Any], needed: bool) -> Values | None:
        """The values of the sequences that a forward with these inputs continues; None if it continues none.

        ValueError: they are needed, and the cache is none that was kept.
        """
        length = _positions(inputs)
        known = self.kept.get(_cache(inputs)) if length else None
        if length and needed and known is None:
            raise ValueError(
                f"the cache holds {length} positions whose condition is not known (a copy, or made under "
                "torch.compile): call model(..., condition=condition)"
            )
        return known


def _cache(inputs: Mapping[str, Any]) -> Any:
    return next((inputs[name] for name in CACHES if inputs.get(name) is not None), None)


def _positions(inputs: Mapping[str, Any]) -> int:
    """How many positions the cache among the inputs holds; of a state without positions 1 once it is set."""
    cache = _cache(inputs)
    if cache is None:
        return 0
    try:
        return int(cache.get_seq_length())
    except ValueError:  # of state-space models
        return int(cache.has_previous_state())
