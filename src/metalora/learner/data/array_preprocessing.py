"""Arrays as a network takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from metalora.learner.data.item_names import item_names


@dataclass(frozen=True)
class ArrayPreprocessor:
    """Passes arrays to the network as they are, as float32.

    Example:
        >>> ArrayPreprocessor()([[1, 2], [3, 4]])
        tensor([[1., 2.],
                [3., 4.]])
    """

    kind: ClassVar[str] = "arrays"

    def __call__(self, items: Any, names: Sequence[str] | None = None) -> Tensor:
        """Return items (n, ...) as one tensor, (n, ...) float32.

        Raises:
            ValueError: An item has another shape than the first, or a value is not a finite number.
        """
        return self.collate(self.encode(items, names))

    def encode(self, items: Any, names: Sequence[str] | None = None) -> list[Tensor]:
        """Return every item as a tensor of float32.

        Raises:
            ValueError: An item has another shape than the first, or a value is not a finite number.
        """
        names = item_names(items, names, "item")
        encoded = [_as_numbers(item, name) for item, name in zip(items, names, strict=True)]
        for values, name in zip(encoded, names, strict=True):
            if values.shape != encoded[0].shape:
                raise ValueError(
                    f"{name}: the shape is {tuple(values.shape)}, that of {names[0]} is {tuple(encoded[0].shape)}"
                )
        return encoded

    def collate(self, encoded: Sequence[Tensor]) -> Tensor:
        """Return the items as one tensor, (n, ...) float32."""
        return encoded if isinstance(encoded, Tensor) else torch.stack(list(encoded))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, which JSON can hold."""
        return {"kind": self.kind}


def _as_numbers(item: Any, name: str) -> Tensor:
    try:
        values = torch.as_tensor(item).detach().to("cpu", torch.float32)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name}: a {type(item).__name__} is not an array of numbers") from None
    if not values.isfinite().all():
        raise ValueError(f"{name}: a value is NaN or infinite")
    return values
