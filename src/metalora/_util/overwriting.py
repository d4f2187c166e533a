"""The one question before a command writes a file: may it stand where it shall stand?"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from metalora._util.files import check_file

REMEDY = "--overwrite replaces it, or name another file"


def check_output(
    path: str | Path, overwrite: bool, inputs: Iterable[str | Path] = (), *, makes_folder: bool = False
) -> None:
    """Check that a command may write a file, before the work whose result it holds.

    Args:
        path: The file that shall be written.
        overwrite: Whether the user wants a file that is there to be replaced.
        inputs: What the command reads: files, folders, and names of models that hold a path (hf:FOLDER,
            timm:NAME@FILE). They are never written on, whatever `overwrite` is.
        makes_folder: Whether the folder of the file is made if there is none.

    Raises:
        ValueError: There is no folder for the file, or it is a folder or an input, or it is there and `overwrite` is
            not given.

    Example:
        >>> check_output("a file that is not there", overwrite=False)
    """
    check_file(path, makes_folder=makes_folder)
    if not os.path.lexists(path) or is_device(path):
        return
    for source in inputs:
        if _is_in(Path(path), input_path(source)):
            raise ValueError(f"{path}: is read by this command ({source}) and is not written on; name another file")
    if not overwrite:
        raise ValueError(f"{path}: exists already; {REMEDY}")


def input_path(source: str | Path) -> Path:
    """Return the path in the name of a model, or the path of a file or folder itself.

    Example:
        >>> str(input_path("timm:resnet18@weights.pth")), str(input_path("hf:models/bert"))
        ('weights.pth', 'models/bert')
    """
    text = str(source)
    for prefix in ("hf:", "st:", "run:"):
        if text.startswith(prefix):
            return Path(text.removeprefix(prefix))
    library, at, file = text.partition("@")
    return Path(file) if at and library.startswith("timm:") else Path(text)


def is_device(path: str | Path) -> bool:
    """Return whether a path is neither a file nor a folder, such as /dev/stdout; writing it removes nothing."""
    return Path(path).exists() and not Path(path).is_file() and not Path(path).is_dir()


def _is_in(path: Path, source: Path) -> bool:
    """Return whether a path is that of a source, or is in the folder of one; links are followed."""
    real_path, real_source = Path(os.path.realpath(path)), Path(os.path.realpath(source))
    if not source.exists():  # a name on the Hub, which is no path here
        return False
    return real_path == real_source or (real_source.is_dir() and real_path.is_relative_to(real_source))
