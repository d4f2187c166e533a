"""The inputs of a pool, prepared once and kept if there is room."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from metalora.learner.data.pool import TaskPool, take_inputs
from metalora.learner.data.preprocessing import Inputs, Preprocessor

CACHE_BYTES = 2_000_000_000
ENCODED_AT_ONCE = 256


class PreparedInputs:
    """Batches of the inputs of a pool.

    If all items fit into `cache_bytes`, each is prepared once, now, so that a picture that cannot be read is reported
    before anything starts. Otherwise every batch is prepared when it is asked for.

    Args:
        pool: The pool.
        preprocessor: What prepares its items.
        cache_bytes: Room for prepared items, in bytes: pictures take height x width x 3.
        on_progress: Called with the number of items that are prepared.

    Raises:
        ValueError: An item cannot be prepared; the message names it.

    Example:
        >>> from metalora.learner.data.preprocessing import ArrayPreprocessor
        >>> prepared = PreparedInputs(TaskPool([[1, 2], [3, 4]]), ArrayPreprocessor())
        >>> prepared.batch(torch.tensor([1]))
        tensor([[3., 4.]])
    """

    def __init__(
        self,
        pool: TaskPool,
        preprocessor: Preprocessor,
        *,
        cache_bytes: int = CACHE_BYTES,
        on_progress: Callable[[int], None] | None = None,
    ):
        self.pool = pool
        self.preprocessor = preprocessor
        self._cache: Tensor | list[Tensor] | None = None
        first = self._encode(range(min(len(pool), ENCODED_AT_ONCE)))
        bytes_of_item = sum(item.nbytes for item in first) / len(first)
        if bytes_of_item * len(pool) <= cache_bytes:
            self._cache = _stacked(self._encode_rest(first, on_progress))

    def __len__(self) -> int:
        return len(self.pool)

    @property
    def is_cached(self) -> bool:
        """Whether the prepared items are kept."""
        return self._cache is not None

    def batch(self, rows: Tensor) -> Inputs:
        """Return the inputs of the network for some items.

        Args:
            rows: Positions of the items in the pool, (n,) int64.

        Returns:
            A tensor (n, ...), or a dictionary of tensors (n, tokens) for texts.
        """
        if self._cache is None:
            return self.preprocessor.collate(self._encode(rows.tolist()))
        if isinstance(self._cache, Tensor):
            return self.preprocessor.collate(self._cache[rows])  # type: ignore[arg-type]  # a tensor is a sequence
        return self.preprocessor.collate([self._cache[row] for row in rows.tolist()])

    def batches(self, size: int) -> Iterator[Inputs]:
        """Yield the inputs of all items in their order, `size` at a time."""
        for rows in torch.split(torch.arange(len(self)), size):
            yield self.batch(rows)

    def _encode(self, rows: Sequence[int]) -> list[Tensor]:
        items = take_inputs(self.pool.inputs, list(rows))
        return self.preprocessor.encode(items, [self.pool.describe(row) for row in rows])

    def _encode_rest(self, first: list[Tensor], on_progress: Callable[[int], None] | None) -> list[Tensor]:
        encoded = list(first)
        while len(encoded) < len(self):
            if on_progress is not None:
                on_progress(len(encoded))
            encoded += self._encode(range(len(encoded), min(len(encoded) + ENCODED_AT_ONCE, len(self))))
        return encoded


def _stacked(encoded: list[Tensor]) -> Tensor | list[Tensor]:
    """Return items as one tensor if they have the same shape and are not short lists of tokens."""
    shapes: set[Any] = {item.shape for item in encoded}
    is_text = encoded[0].dtype == torch.int32
    return encoded if is_text or len(shapes) > 1 else torch.stack(encoded)
