"""Folders of pictures: without classes, with a folder for each class, or with a folder of these for each task."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

from metalora.learner.data.columns import check_two_classes
from metalora.learner.data.labels import encode_labels, natural_key
from metalora.learner.data.pictures import SUFFIXES, check_file, is_picture_path
from metalora.learner.data.pool import TaskPool

CLASS_COLUMN = "class"
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def read_folder(folder: Path) -> list[TaskPool]:
    """Read the pools of a folder; where the pictures lie says what it is.

    FOLDER/a.png has no classes, FOLDER/CLASS/a.png is one task, FOLDER/TASK/CLASS/a.png has one pool for each task.
    Hidden files and folders, and files that are not pictures, are left out.

    Raises:
        ValueError: There are no pictures, they lie at different depths, a task has a single class, a picture is an
            empty file, or the folder holds the splits of one task.
    """
    pictures = _pictures(folder)
    if not pictures:
        raise ValueError(f"{folder}: there are no pictures in this folder (known endings: {' '.join(SUFFIXES)})")
    for path in pictures:
        check_file(folder / path)
    depth = _common_depth(folder, pictures)
    if depth == 1:
        return [TaskPool([folder / path for path in pictures], name=folder.name)]
    if depth == 2:
        return [_class_folders(folder, folder.name, pictures)]
    if depth == 3:
        return _task_folders(folder, pictures)
    raise ValueError(f"{folder / pictures[0]}: {depth} folders deep; expected FOLDER/TASK/CLASS/PICTURE at most")


def _pictures(folder: Path) -> list[Path]:
    """Return the relative paths of all pictures in natural order."""
    paths = []
    for parent, subfolders, files in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith((".", "__"))]
        relative = Path(parent).relative_to(folder)
        paths += [relative / name for name in files if is_picture_path(name) and not name.startswith(".")]
    return sorted(paths, key=lambda path: [natural_key(part) for part in path.parts])


def _common_depth(folder: Path, pictures: list[Path]) -> int:
    shallow = min(pictures, key=lambda path: len(path.parts))
    deep = max(pictures, key=lambda path: len(path.parts))
    if len(shallow.parts) != len(deep.parts):
        raise ValueError(f"{folder}: {shallow} and {deep} lie at different depths; expected CLASS/PICTURE for all")
    return len(deep.parts)


def _class_folders(folder: Path, name: str, pictures: list[Path]) -> TaskPool:
    column = encode_labels([path.parent.name for path in pictures], CLASS_COLUMN)
    check_two_classes(column, str(folder))
    return TaskPool([folder / path for path in pictures], {CLASS_COLUMN: column}, name=name)


def _task_folders(folder: Path, pictures: list[Path]) -> list[TaskPool]:
    by_task: dict[str, list[Path]] = defaultdict(list)
    for path in pictures:
        by_task[path.parts[0]].append(Path(*path.parts[1:]))
    if {name.lower() for name in by_task} <= SPLITS:
        raise ValueError(f"{folder}: its folders are splits ({', '.join(by_task)}), not tasks; name one of them")
    return [_class_folders(folder / task, task, paths) for task, paths in by_task.items()]
