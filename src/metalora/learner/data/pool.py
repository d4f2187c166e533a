"""A pool: inputs, and their labels under any number of notions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from metalora._util.suggest import nearest
from metalora.learner.data.labels import LabelColumn

Modality = Literal["images", "text", "arrays"]


@dataclass(frozen=True, eq=False)
class TaskPool:
    """Items, and their labels under some notions.

    Attributes:
        inputs: The n items: paths of pictures (`Path`), PIL images, bytes of picture files, texts (`str`), arrays or
            tensors.
        columns: The labels by the name of the notion; empty if nothing is labelled.
        groups: Group of every item, (n,) int64, or None. Items of one group are never in both a support set and its
            queries.
        name: Name of the pool, such as that of the table.
        ignored: Columns of the table that are not used, with the reason.

    Raises:
        ValueError: The numbers of items, labels and groups differ.

    Example:
        >>> from metalora.learner.data.labels import encode_labels
        >>> pool = TaskPool(["good", "bad"], {"mood": encode_labels([1, 0], "mood")})
        >>> len(pool), pool.modality
        (2, 'text')
    """

    inputs: Any
    columns: Mapping[str, LabelColumn] = field(default_factory=dict)
    groups: Tensor | None = None
    name: str = "items"
    ignored: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for column in self.columns.values():
            if len(column) != len(self):
                raise ValueError(f"{self.name}: {len(self)} items, but {len(column)} labels in {column.name!r}")
        if self.groups is not None and len(self.groups) != len(self):
            raise ValueError(f"{self.name}: {len(self)} items, but {len(self.groups)} groups")
        if not len(self):
            raise ValueError(f"{self.name}: there are no items")

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def modality(self) -> Modality:
        """What the items are: "images", "text" or "arrays". The first item decides."""
        return modality_of(self.inputs[0])

    def take(self, rows: Sequence[int] | Tensor) -> TaskPool:
        """Return some of the items, with the same classes.

        Args:
            rows: Positions of the items, from 0.
        """
        positions = torch.as_tensor(rows, dtype=torch.int64)
        return replace(
            self,
            inputs=take_inputs(self.inputs, positions.tolist()),
            columns={name: column.take(positions) for name, column in self.columns.items()},
            groups=None if self.groups is None else self.groups[positions],
        )

    def select_columns(self, names: Iterable[str]) -> TaskPool:
        """Return the pool with some of its label columns only.

        Raises:
            ValueError: The pool has no such column.
        """
        names = list(names)
        for name in names:
            if name not in self.columns:
                raise ValueError(f"{self.name}: there is no label column {name!r}{nearest(name, self.columns)}")
        return replace(self, columns={name: self.columns[name] for name in names})

    def describe(self, row: int) -> str:
        """Return how messages call an item: the path of a picture, otherwise its row, counted from 1."""
        item = self.inputs[row] if isinstance(self.inputs, list) else None
        return str(item) if isinstance(item, Path) else f"{self.name}, row {row + 1}"


def take_inputs(inputs: Any, rows: Sequence[int]) -> Any:
    """Return some of the items of a pool: a tensor or an array of a tensor or an array, otherwise a list."""
    if isinstance(inputs, Tensor | np.ndarray):
        return inputs[list(rows)]
    return [inputs[row] for row in rows]


def modality_of(item: Any) -> Modality:
    """Return what an item is: "images", "text" or "arrays".

    Arrays and tensors of whole numbers from 0 to 255 (uint8) with two or three axes are images; all others are taken
    as the input of the network as they are.

    Raises:
        ValueError: The item is of another type.

    Example:
        >>> modality_of(Path("cat.png")), modality_of("a cat"), modality_of(np.zeros(5))
        ('images', 'text', 'arrays')
    """
    if isinstance(item, str):
        return "text"
    if isinstance(item, Path | bytes | Mapping) or hasattr(item, "getbands"):  # PIL images have getbands
        return "images"
    if isinstance(item, Tensor | np.ndarray):
        is_image = item.ndim in (2, 3) and item.dtype in (torch.uint8, np.uint8)
        return "images" if is_image else "arrays"
    if isinstance(item, int | float | Sequence | np.generic):
        return "arrays"
    raise ValueError(f"an item is of the type {type(item).__name__}; expected a path, a picture, a text or an array")
