"""Which column of a table has the inputs, and which columns have labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from metalora._util.suggest import nearest
from metalora.learner.data.groups import classes_are_single_groups
from metalora.learner.data.labels import LabelColumn, encode_labels
from metalora.learner.data.pictures import is_picture_path
from metalora.learner.data.tables import Table

IMAGE_NAMES = ("image", "images", "image_path", "path", "file", "filename", "file_name", "img", "picture", "photo")
TEXT_NAMES = ("text", "texts", "sentence", "content", "document")
ARRAY_NAMES = ("inputs", "features", "x")
SINGLE_GROUPS = "no two groups share a class"
SHARE_OF_CLASSES = 0.5  # a column with more classes than this share of its labels is an identifier, not a notion


@dataclass(frozen=True)
class InputColumn:
    """The column with the inputs.

    Attributes:
        name: Its name.
        kind: What it holds.
    """

    name: str
    kind: Literal["images", "text", "arrays"]


def choose_input_column(table: Table, image_column: str | None, text_column: str | None) -> InputColumn:
    """Return the column with the inputs: the one that the user names, otherwise one with a usual name or with paths.

    Raises:
        ValueError: The named column does not exist, two are named, or no column looks like inputs.

    Example:
        >>> choose_input_column(Table("pets.csv", {"file": ["1.jpg"], "kind": ["cat"]}), None, None)
        InputColumn(name='file', kind='images')
    """
    if image_column is not None and text_column is not None:
        raise ValueError(f"{table.name}: image_column and text_column are both given; the inputs are one column")
    if image_column is not None:
        return InputColumn(checked_column(table, image_column, "image_column"), "images")
    if text_column is not None:
        return InputColumn(checked_column(table, text_column, "text_column"), "text")
    named = _with_usual_name(table)
    if named is not None:
        return named
    for name, values in table.columns.items():
        if _holds_pictures(values):
            return InputColumn(name, "images")
    raise ValueError(
        f"{table.name}: no column looks like pictures or texts; name it with image_column or text_column "
        f"(columns: {', '.join(table.columns)})"
    )


def checked_column(table: Table, name: str, setting: str) -> str:
    """Return the name of a column.

    Raises:
        ValueError: The table has no such column; the message has the nearest name.
    """
    if name not in table.columns:
        raise ValueError(f"{table.name}: there is no column {name!r} ({setting}){nearest(name, table.columns)}")
    return name


def read_label_columns(
    table: Table, names: Sequence[str] | None, not_labels: Sequence[str], groups: Tensor | None = None
) -> tuple[dict[str, LabelColumn], dict[str, str]]:
    """Return the label columns of a table.

    Args:
        table: The table.
        names: The columns that the user asks for; None: all that can be classes.
        not_labels: Columns with another meaning.
        groups: Group of every row, (n,) int64, or None.

    Returns:
        The columns by name, and for each column that was not asked for and cannot be classes the reason.

    Raises:
        ValueError: A column that is asked for does not exist, is named twice or has another meaning, or its labels are
            all missing or of a single class, or each class lies in a single group.
    """
    if names is None:
        return _all_label_columns(table, not_labels, groups)
    columns: dict[str, LabelColumn] = {}
    for name in names:
        if name in columns:
            raise ValueError(f"{table.name}: the label column {name!r} is named twice")
        if name in not_labels:
            raise ValueError(f"{table.name}: the column {name!r} cannot have labels, it has another meaning")
        column = encode_labels(table.labels(checked_column(table, name, "label_columns")), name)
        check_two_classes(column, table.name)
        if groups is not None and classes_are_single_groups(column.codes, groups):
            raise ValueError(f"{table.name}: {SINGLE_GROUPS} of {name!r}; a support set and its queries share no group")
        columns[name] = column
    return columns, {}


def check_two_classes(column: LabelColumn, source: str) -> None:
    """Check that labels have at least two classes.

    Raises:
        ValueError: They have fewer.
    """
    if not column.classes:
        raise ValueError(f"{source}: all labels in {column.name!r} are missing")
    if len(column.classes) == 1:
        raise ValueError(f"{source}: {column.name!r} has the single class {column.classes[0]!r}; expected at least two")


def _all_label_columns(
    table: Table, not_labels: Sequence[str], groups: Tensor | None
) -> tuple[dict[str, LabelColumn], dict[str, str]]:
    columns: dict[str, LabelColumn] = {}
    ignored: dict[str, str] = {}
    for name in table.columns:
        if name in not_labels:
            continue
        try:
            column = encode_labels(table.labels(name), name)
        except ValueError as error:
            ignored[name] = str(error)
            continue
        reason = _why_not_classes(column)
        if not reason and groups is not None and classes_are_single_groups(column.codes, groups):
            reason = SINGLE_GROUPS
        if reason:
            ignored[name] = reason
        else:
            columns[name] = column
    return columns, ignored


def _why_not_classes(column: LabelColumn) -> str:
    """Return why a column that nobody asked for is not used as labels; empty if it is used."""
    labelled = int((column.codes >= 0).sum())
    if not labelled:
        return "it is empty"
    if len(column.classes) == 1:
        return f"all its values are {column.classes[0]!r}"
    if len(column.classes) > max(2, labelled * SHARE_OF_CLASSES):
        return f"it has {len(column.classes)} different values in {labelled} rows"
    if any(isinstance(label, float) and not label.is_integer() for label in column.classes):
        return "its values are measurements, not classes"
    return ""


def _with_usual_name(table: Table) -> InputColumn | None:
    by_lower_name = {name.lower(): name for name in reversed(list(table.columns))}
    for usual_names, kind in ((IMAGE_NAMES, "images"), (TEXT_NAMES, "text"), (ARRAY_NAMES, "arrays")):
        for usual_name in usual_names:
            name = by_lower_name.get(usual_name)
            if name is not None and _fits(table.columns[name], kind):
                return InputColumn(name, kind)  # type: ignore[arg-type]
    return None


def _fits(values: Any, kind: str) -> bool:
    """Return whether the first value can be what the name of a column says."""
    first = values[0] if not hasattr(values, "iloc") else values.iloc[0]
    if kind == "text":
        return isinstance(first, str)
    if kind == "images":
        return is_picture_path(first) if isinstance(first, str) else not isinstance(first, int | float | np.generic)
    return isinstance(first, Tensor | np.ndarray | list | tuple)


def _holds_pictures(values: Any) -> bool:
    items = [item for item in values if item is not None]
    return bool(items) and all(isinstance(item, str) and is_picture_path(item) for item in items)
