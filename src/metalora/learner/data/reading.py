"""Tables, folders, lists and iterables of a user as pools."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from metalora._util.suggest import closest
from metalora.learner.data.columns import (
    InputColumn,
    check_two_classes,
    checked_column,
    choose_input_column,
    read_label_columns,
)
from metalora.learner.data.folders import read_folder
from metalora.learner.data.inputs import checked_inputs, checked_pictures, checked_texts, search_folders
from metalora.learner.data.labels import LabelColumn, encode_labels
from metalora.learner.data.pool import TaskPool
from metalora.learner.data.tables import TABLE_SUFFIXES, Table, read_table_file, table_in_memory

LABELS = "labels"  # name of the notion of labels that come without a name


def read_tasks(
    tasks: Any,
    *,
    images: str | Path | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    label_columns: str | Sequence[str] | None = None,
    group_column: str | None = None,
) -> list[TaskPool]:
    """Read whatever a user has as pools.

    Args:
        tasks: One of:
            - a table: a DataFrame of pandas, a `datasets.Dataset`, a dictionary of columns, a list of rows, or the path
              of a .csv, .tsv, .jsonl or .parquet file;
            - a folder of pictures: FOLDER/PICTURE (no labels), FOLDER/CLASS/PICTURE (a task) or
              FOLDER/TASK/CLASS/PICTURE;
            - a list or an array of inputs without labels;
            - a pair (inputs, labels), or an iterable of such pairs, one for each task; labels may be a dictionary with
              the labels of several notions;
            - an iterable of examples (input, label).
        images: The folder in which relative paths of pictures are looked for first; then come the folder of the table
            and the working directory.
        image_column: The column of a table with paths or pictures.
        text_column: The column of a table with texts.
        label_columns: The columns of a table with labels, or a single one; None: all columns that can be classes. An
            empty list: none.
        group_column: A column whose values put rows into groups, such as a patient: a support set and its queries
            share no group.

    Returns:
        The pools, one for each task of a folder or an iterable, otherwise one.

    Raises:
        ValueError: What was given cannot be read, or has no such column, a single class, a missing or empty file or an
            empty text; the message names it.
        ModuleNotFoundError: A package that the format needs is not installed.

    Example:
        >>> pools = read_tasks({"text": ["a cat", "a dog", "two cats"], "count": [1, 1, 2], "id": [7, 8, 9]})
        >>> pools[0].columns["count"].classes, pools[0].ignored
        ((1, 2), {'id': 'it has 3 different values in 3 rows'})
        >>> [len(pool) for pool in read_tasks([(["a", "b"], [0, 1]), (["c", "d", "e"], ["x", "y", "y"])])]
        [2, 3]
    """
    folder = _image_folder(images)
    table: Table | Path | None
    if isinstance(tasks, str | Path):
        table = _table_or_folder(Path(tasks))
    else:
        table = table_in_memory(tasks)
    if isinstance(table, Table):
        if isinstance(label_columns, str):
            label_columns = [label_columns]
        return [_pool_of_table(table, folder, image_column, text_column, label_columns, group_column)]
    _check_unused(image_column, text_column, label_columns, group_column)
    if table is not None:
        return read_folder(table)
    return _pools_of_iterable(tasks, folder)


def _image_folder(images: str | Path | None) -> Path | None:
    if images is None:
        return None
    if not Path(images).is_dir():
        raise ValueError(f"images: {images} is not a folder")
    return Path(images)


def _table_or_folder(path: Path) -> Table | Path:
    """Return the table in a file, or the path if it is a folder."""
    if path.is_dir():
        return path
    if path.exists() and path.suffix.lower() not in TABLE_SUFFIXES:
        raise ValueError(f"{path}: the ending {path.suffix!r} is unknown; expected {', '.join(TABLE_SUFFIXES)}")
    if not path.exists():
        siblings = [sibling.name for sibling in path.parent.iterdir()] if path.parent.is_dir() else []
        close = closest(path.name, siblings)
        hint = f"; did you mean {path.parent / close[0]}?" if close else ""
        raise ValueError(f"{path}: there is no such file or folder{hint}")
    return read_table_file(path)


def _check_unused(*settings: Any) -> None:
    names = ("image_column", "text_column", "label_columns", "group_column")
    for name, value in zip(names, settings, strict=True):
        if value is not None:
            raise ValueError(f"{name}: only a table has columns, and these tasks are not a table")


# ---- tables ---------------------------------------------------------------------------------------------------------
def _pool_of_table(
    table: Table,
    images: Path | None,
    image_column: str | None,
    text_column: str | None,
    label_columns: Sequence[str] | None,
    group_column: str | None,
) -> TaskPool:
    chosen = choose_input_column(table, image_column, text_column)
    if chosen.kind != "images" and images is not None:
        raise ValueError(f"images: {table.name} has no pictures, its inputs are the column {chosen.name!r}")
    not_labels = [chosen.name]
    groups = None
    if group_column is not None:
        not_labels.append(checked_column(table, group_column, "group_column"))
        groups = _groups(table, group_column)
    columns, ignored = read_label_columns(table, label_columns, not_labels, groups)
    return TaskPool(_inputs_of_table(table, chosen, images), columns, groups, table.name, ignored)


def _inputs_of_table(table: Table, chosen: InputColumn, images: Path | None) -> Any:
    values = table.columns[chosen.name]
    if chosen.kind == "arrays":
        return values if isinstance(values, Tensor | np.ndarray) else list(values)
    where = f"{table.name}, column {chosen.name!r}"
    if chosen.kind == "text":
        return checked_texts(list(values), where)
    if hasattr(values, "features"):  # a column of `datasets`, which decodes a picture when it is asked for
        return values
    return checked_pictures(list(values), search_folders(images, table.folder), where)


def _groups(table: Table, name: str) -> Tensor:
    """Return the group of every row; a row without a value is a group for itself."""
    column = encode_labels(table.labels(name), name)
    codes = column.codes.clone()
    missing = codes < 0
    codes[missing] = len(column.classes) + missing.cumsum(0)[missing] - 1
    return codes


# ---- iterables ------------------------------------------------------------------------------------------------------
def _pools_of_iterable(tasks: Any, folder: Path | None) -> list[TaskPool]:
    if not isinstance(tasks, Iterable):
        raise ValueError(f"tasks: a {type(tasks).__name__} is not a table, a folder or a list")
    if isinstance(tasks, np.ndarray | Tensor):
        return [TaskPool(checked_inputs(tasks, folder, "the inputs"), name="the inputs")]
    if isinstance(tasks, tuple) and len(tasks) == 2 and not all(isinstance(part, tuple) for part in tasks):
        return [_pool_of_pair(tasks[0], tasks[1], folder, "the task")]
    items = list(tasks)
    if not items:
        raise ValueError("tasks: there are none")
    if not all(isinstance(item, tuple) and len(item) == 2 for item in items):
        return [TaskPool(checked_inputs(items, folder, "the inputs"), name="the inputs")]
    if not _is_sequence_of_labels(items[0][1]):
        inputs, labels = zip(*items, strict=True)
        return [_pool_of_pair(list(inputs), list(labels), folder, "the examples")]
    numbered = enumerate(items, start=1)
    return [_pool_of_pair(inputs, labels, folder, f"task {number}") for number, (inputs, labels) in numbered]


def _is_sequence_of_labels(labels: Any) -> bool:
    if isinstance(labels, Tensor | np.ndarray):
        return labels.ndim > 0
    return not isinstance(labels, str) and hasattr(labels, "__len__")


def _pool_of_pair(inputs: Any, labels: Any, folder: Path | None, name: str) -> TaskPool:
    named = labels if isinstance(labels, Mapping) else {LABELS: labels}
    columns: dict[str, LabelColumn] = {}
    for notion, values in named.items():
        column = encode_labels(values, str(notion))
        check_two_classes(column, name)
        columns[str(notion)] = column
    return TaskPool(checked_inputs(inputs, folder, name), columns, name=name)
