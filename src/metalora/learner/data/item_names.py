"""How messages call the items of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def item_names(items: Sequence[Any], names: Sequence[str] | None, what: str) -> Sequence[str]:
    """Return the names of items, by default their numbers from 1.

    Args:
        items: The items.
        names: Their names, or None.
        what: What an item is.

    Raises:
        ValueError: There are no items.

    Example:
        >>> item_names(["a", "b"], None, "text")
        ['text 1', 'text 2']
    """
    if not len(items):
        raise ValueError(f"there is no {what}")
    return [f"{what} {number}" for number in range(1, len(items) + 1)] if names is None else names
