"""The inputs of a user: texts are checked, and the files of pictures are looked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from metalora.learner.data.labels import python_values
from metalora.learner.data.pictures import check_file, is_picture_path

NUMERIC = "biuf"  # kinds of numpy types: booleans, whole numbers with and without a sign, floating-point numbers


def search_folders(*folders: Path | None) -> list[Path]:
    """Return the folders in which relative paths are looked for: those that are given, then the working directory."""
    return [folder for folder in folders if folder is not None] + [Path()]


def checked_texts(values: list[Any], where: str) -> list[str]:
    """Return texts if none of them is empty or something else.

    Args:
        values: The texts.
        where: Where they come from, for messages.

    Raises:
        ValueError: A text is empty or not a text; the message has its row.

    Example:
        >>> checked_texts(["a", " "], "t.csv")
        Traceback (most recent call last):
        ValueError: t.csv: row 2 is empty
    """
    for row, value in enumerate(values):
        if not isinstance(value, str) or not value.strip():
            problem = "is empty" if _is_missing(value) else f"is a {type(value).__name__}, not a text"
            raise ValueError(f"{where}: row {row + 1} {problem}")
    return [str(value) for value in values]


def _is_missing(value: Any) -> bool:
    try:
        return python_values([value]) == [None]
    except ValueError:
        return False


def checked_pictures(values: list[Any], folders: Sequence[Path], where: str) -> list[Any]:
    """Return pictures with the paths of their files.

    Args:
        values: Paths, which may be relative, or pictures.
        folders: The folders in which relative paths are looked for, in this order.
        where: Where the values come from, for messages.

    Raises:
        ValueError: A file is missing or empty, or a row has no picture.
    """
    pictures: list[Any] = []
    for row, value in enumerate(values):
        if isinstance(value, str | Path) and str(value).strip():
            pictures.append(_found_file(Path(value), folders, f"{where}: row {row + 1}"))
        elif isinstance(value, str) or _is_missing(value):
            raise ValueError(f"{where}: row {row + 1} has no picture")
        else:
            pictures.append(value)
    return pictures


def _found_file(path: Path, folders: Sequence[Path], where: str) -> Path:
    for folder in folders:
        candidate = folder / path
        if candidate.exists():
            check_file(candidate)
            return candidate
    looked = ", ".join(str(folder) for folder in folders) if not path.is_absolute() else path.parent
    raise ValueError(f"{where}: there is no file {path} (looked in: {looked})")


def checked_inputs(values: Any, folder: Path | None, where: str) -> Any:
    """Return the inputs of a list or an array: paths of pictures become `Path`, texts are checked.

    Args:
        values: The inputs.
        folder: The folder in which relative paths are looked for first, or None.
        where: Where the values come from, for messages.

    Raises:
        ValueError: There are none, a text is empty, or a file is missing or empty.

    Example:
        >>> checked_inputs(("a cat", "a dog"), None, "the task")
        ['a cat', 'a dog']
    """
    if isinstance(values, str | Path) or not hasattr(values, "__len__"):
        raise ValueError(f"{where}: the inputs are a {type(values).__name__}, expected a list or an array")
    if isinstance(values, Tensor) or (isinstance(values, np.ndarray) and values.dtype.kind in NUMERIC):
        return values
    items = list(values)
    if not items:
        raise ValueError(f"{where}: there are no inputs")
    if all(isinstance(item, str) for item in items) and not all(is_picture_path(item) for item in items):
        return checked_texts(items, where)
    if any(isinstance(item, str | Path) for item in items):
        return checked_pictures(items, search_folders(folder), where)
    return items
