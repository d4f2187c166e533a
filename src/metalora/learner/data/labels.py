"""Labels of any type as class numbers, with the classes that the numbers stand for."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalora._util.suggest import closest

Label = str | int | float | bool
MISSING = -1  # the class number of an item without a label
MISSING_TYPES = ("NAType", "NaTType")  # what pandas calls a missing value of most of its types
SHOWN_CLASSES = 8  # more classes than this are cut off in a message
DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True, eq=False)
class LabelColumn:
    """The labels of n items under one notion.

    Attributes:
        name: Name of the notion, such as the header of the column.
        codes: Class number of every item, (n,) int64; -1 if the label is missing.
        classes: The label that each class number stands for, in natural order ("item 2" before "item 10").

    Example:
        >>> column = encode_labels(["ripe", "raw", None, "ripe"], "ripeness")
        >>> column.codes, column.classes
        (tensor([ 1,  0, -1,  1]), ('raw', 'ripe'))
    """

    name: str
    codes: Tensor
    classes: tuple[Label, ...]

    def __len__(self) -> int:
        return len(self.codes)

    def values(self) -> list[Label | None]:
        """Return the label of every item, None if it is missing."""
        return [self.classes[code] if code >= 0 else None for code in self.codes.tolist()]

    def counts(self) -> Tensor:
        """Return the number of items of every class, (classes,) int64."""
        return torch.bincount(self.codes[self.codes >= 0], minlength=len(self.classes))

    def take(self, rows: Tensor) -> LabelColumn:
        """Return the labels of some items, with the same classes.

        Args:
            rows: Positions of the items, (m,) int64.
        """
        return LabelColumn(self.name, self.codes[rows], self.classes)


def encode_labels(values: Any, name: str = "labels", *, classes: Sequence[Label] | None = None) -> LabelColumn:
    """Turn labels into class numbers.

    Labels are texts, whole numbers, numbers or booleans. None, NaN and a blank text are missing labels. Whole numbers
    that became floating-point numbers because some are missing (as in pandas) become whole numbers again.

    Args:
        values: The labels of n items: a list, an array or a tensor (n,) or (n, 1), or a column of pandas.
        name: Name of the notion.
        classes: The classes, if they are known already; class numbers are positions in them.

    Raises:
        ValueError: A label has another type, texts and numbers that look the same are mixed, or a label is not one of
            the known classes.

    Example:
        >>> encode_labels([3.0, float("nan"), 1.0]).classes
        (1, 3)
        >>> encode_labels(["cta"], "animal", classes=["cat", "dog"])
        Traceback (most recent call last):
        ValueError: animal: the label 'cta' is not a class; did you mean 'cat'? (classes: 'cat', 'dog')
    """
    labels = _of_uniform_type(python_values(values, name), name)
    if classes is None:
        ordered = _in_natural_order(labels)
    else:
        ordered = tuple(classes)
    numbers = {_key(label): number for number, label in enumerate(ordered)}
    codes = []
    for label in labels:
        if label is None:
            codes.append(MISSING)
            continue
        number = numbers.get(_key(label))
        if number is None:
            raise ValueError(_unknown_label(label, ordered, name))
        codes.append(number)
    return LabelColumn(name, torch.tensor(codes, dtype=torch.int64), ordered)


def python_values(values: Any, name: str = "labels") -> list[Label | None]:
    """Return labels as Python values, None for the missing ones.

    Args:
        values: What `encode_labels` takes.
        name: Name of the notion, for messages.

    Raises:
        ValueError: The labels are not in one dimension, or one of them has a type that labels cannot have.

    Example:
        >>> python_values(np.array([True, False]))
        [True, False]
    """
    if isinstance(values, str):
        raise ValueError(f"{name}: one text, {values!r}, was given; expected one label for each item")
    shape = getattr(values, "shape", None)
    if shape is not None and len(shape) != 1 and tuple(shape[1:]) != (1,):
        raise ValueError(f"{name}: the labels have the shape {tuple(shape)}; expected one label for each item")
    if shape is not None and len(shape) == 2:
        values = np.asarray(values)[:, 0] if not isinstance(values, Tensor) else values[:, 0]
    items = values.tolist() if hasattr(values, "tolist") and not _holds_dates(values) else list(values)
    return [_python_value(item, name, row) for row, item in enumerate(items)]


def natural_key(text: str) -> tuple[list[str | int], str]:
    """Return a key that sorts texts as people do: the numbers inside of them count as numbers.

    Example:
        >>> sorted(["item 10", "item 2", "Item 1"], key=natural_key)
        ['Item 1', 'item 2', 'item 10']
    """
    parts = DIGITS.split(text)
    key: list[str | int] = [int(part) if position % 2 else part.casefold() for position, part in enumerate(parts)]
    return key, text


def shown(classes: Sequence[Label]) -> str:
    """Return classes as a short text for a message."""
    texts = [repr(label) for label in classes[:SHOWN_CLASSES]]
    if len(classes) > SHOWN_CLASSES:
        texts.append(f"... {len(classes)} in all")
    return ", ".join(texts)


def _holds_dates(values: Any) -> bool:
    """Return whether `tolist` of these values would turn dates into numbers of nanoseconds."""
    return isinstance(values, np.ndarray) and values.dtype.kind in "mM"


def _python_value(item: Any, name: str, row: int) -> Label | None:
    if item is None or type(item).__name__ in MISSING_TYPES:
        return None
    if isinstance(item, np.datetime64 | np.timedelta64):
        return None if np.isnat(item) else str(item)
    if isinstance(item, np.generic) or (isinstance(item, Tensor) and item.ndim == 0):
        item = item.item()
    if isinstance(item, str):
        return str(item) if item.strip() else None
    if isinstance(item, bool):
        return item
    if isinstance(item, int):
        return int(item)
    if isinstance(item, float):
        return None if item != item else float(item)
    if isinstance(item, datetime.date):
        return item.isoformat()
    raise ValueError(
        f"{name}: the label of item {row + 1} is of the type {type(item).__name__}; expected a text, a number or a "
        "boolean"
    )


def _of_uniform_type(labels: list[Label | None], name: str) -> list[Label | None]:
    """Make whole numbers of floating-point numbers if these stand for whole numbers; check that types are not mixed."""
    types = {type(label) for label in labels if label is not None}
    if bool in types and types & {int, float}:
        raise ValueError(f"{name}: booleans and numbers are mixed; give all labels one type")
    if str in types and len(types) > 1:
        _check_no_lookalikes(labels, name)
    may_be_whole = float in types and (int in types or None in labels)
    if may_be_whole and all(float(label).is_integer() for label in labels if isinstance(label, int | float)):
        return [int(label) if isinstance(label, float) else label for label in labels]
    return labels


def _check_no_lookalikes(labels: list[Label | None], name: str) -> None:
    texts = {label for label in labels if isinstance(label, str)}
    for label in labels:
        if label is not None and not isinstance(label, str) and str(label) in texts:
            raise ValueError(f"{name}: the text {str(label)!r} and the {_kind(label)} {label} are mixed; give one type")


def _kind(label: Label) -> str:
    if isinstance(label, bool):
        return "boolean"
    return "text" if isinstance(label, str) else "number"


def _key(label: Label) -> tuple[bool, Label]:
    """Return a key that tells True from 1."""
    return isinstance(label, bool), label


def _in_natural_order(labels: list[Label | None]) -> tuple[Label, ...]:
    different = {_key(label): label for label in labels if label is not None}.values()
    texts = sorted((label for label in different if isinstance(label, str)), key=natural_key)
    numbers = sorted(label for label in different if not isinstance(label, str))
    return (*numbers, *texts)


def _unknown_label(label: Label, classes: Sequence[Label], name: str) -> str:
    same_text = [known for known in classes if str(known) == str(label)]
    if same_text:
        hint = f"; it is a {_kind(label)}, the class {same_text[0]!r} is a {_kind(same_text[0])}"
    else:
        close = closest(str(label), [known for known in classes if isinstance(known, str)])
        hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{name}: the label {label!r} is not a class{hint} (classes: {shown(classes)})"
