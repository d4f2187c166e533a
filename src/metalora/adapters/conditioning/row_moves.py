"""What moves the rows of a key-value cache, so that the conditions of the rows move with them."""

from __future__ import annotations

from typing import Any, Protocol
from weakref import WeakSet, ref

from torch import Tensor

ROW_MOVES = ("reorder_cache", "batch_repeat_interleave", "batch_select_indices")
"""The methods of the caches of transformers that move rows, each with one argument."""


class Follower(Protocol):
    """Who has values for the rows of a cache."""

    def move_rows(self, key_values: Any, operation: str, rows: Any) -> None:
        """Move the values as the cache has moved its rows."""
        ...


class RowMove:
    """Stands in the place of a method of one cache: it moves the rows of the cache, and then the values of followers.

    A copy or a pickle of the cache gets one without followers.

    Args:
        key_values: The key-value cache.
        operation: Name of the method.

    Example:
        >>> class KeyValueCache:
        ...     def reorder_cache(self, rows):
        ...         print("moved to", rows)
        >>> key_values = KeyValueCache()
        >>> RowMove(key_values, "reorder_cache")([1, 0])
        moved to [1, 0]
    """

    def __init__(self, key_values: Any, operation: str):
        # Weakly: a cycle would keep a cache, which may fill a GPU, until the garbage collector runs.
        self.key_values, self.operation = ref(key_values), operation
        self.followers: WeakSet[Follower] = WeakSet()

    def __reduce__(self) -> tuple[Any, ...]:
        return RowMove, (self.key_values(), self.operation)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Move the rows; the argument is that of the method of the cache."""
        key_values = self.key_values()
        assert key_values is not None, "it is an attribute of the cache"
        getattr(type(key_values), self.operation)(key_values, *args, **kwargs)
        for follower in self.followers:
            follower.move_rows(key_values, self.operation, next(iter((*args, *kwargs.values()))))


def follow(key_values: Any, follower: Follower) -> None:
    """Let a follower know whenever a cache moves its rows.

    Args:
        key_values: The key-value cache.
        follower: Who has values for its rows; it is held weakly.
    """
    for operation in ROW_MOVES:
        move = vars(key_values).get(operation)
        if move is None and hasattr(key_values, operation):
            move = RowMove(key_values, operation)
            setattr(key_values, operation, move)
        if isinstance(move, RowMove):
            move.followers.add(follower)


def moved(value: Tensor, operation: str, rows: Any) -> Tensor:
    """Return the value of every row after a cache has moved its rows.

    Args:
        value: (rows, *factor shape), or (1, *factor shape) for all rows, which stays as it is.
        operation: Name of the method of the cache.
        rows: Its argument: the indices (rows,), or how often every row is repeated.

    Example:
        >>> import torch
        >>> moved(torch.tensor([[5], [6]]), "reorder_cache", torch.tensor([1, 0]))
        tensor([[6],
                [5]])
    """
    if len(value) == 1:
        return value
    if operation == "batch_repeat_interleave":
        return value.repeat_interleave(rows, 0)
    return value[rows.to(value.device) if isinstance(rows, Tensor) else rows]
