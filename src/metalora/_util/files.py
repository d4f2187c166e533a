"""Files and folders that are written completely or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def replace_file(path: str | Path, content: bytes) -> None:
    """Write a file so that no reader and no crash ever sees a part of it.

    The bytes go to a temporary file in the same folder, which then takes the name of `path`.

    Args:
        path: The file to create or to replace; its folder must exist.
        content: All bytes of the new file.

    Raises:
        OSError: The file could not be written; an existing file is unchanged and no temporary file remains.
    """
    path = Path(path)
    temporary = _temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # otherwise a crash after the rename may leave an empty file
        os.replace(temporary, path)  # atomic, because both names are in one folder and so on one file system
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file as `replace_file` does, with an error for the user.

    Args:
        path: The file to create or to replace; its folder must exist.
        content: All bytes of the new file.

    Raises:
        ValueError: The file could not be written (a full disk, a missing folder); an existing file is unchanged.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> write_atomically(Path(folder.name) / "rows", b"one row")
        >>> (Path(folder.name) / "rows").read_bytes()
        b'one row'
    """
    try:
        replace_file(path, content)
    except OSError as error:
        raise ValueError(f"{path}: could not be written ({error.strerror}); the old file is unchanged") from None


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder to fill; it takes the name of `path` when the block ends without an exception.

    Args:
        path: The folder to create. An empty folder of that name may exist already.

    Yields:
        The temporary folder. After an exception inside the block, nothing remains of it.

    Raises:
        ValueError: Something other than an empty folder has that name, or the folder could not be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "lora"
        >>> with new_folder(folder) as temporary:
        ...     _ = (temporary / "config").write_text("rank 8")
        ...     folder.exists()
        False
        >>> [path.name for path in folder.iterdir()]
        ['config']
    """
    path = Path(path).absolute()
    is_empty_folder = path.is_dir() and not any(path.iterdir())
    if path.exists() and not is_empty_folder:
        raise ValueError(f"{path}: exists already; delete it or name another folder")
    temporary = _temporary_name(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, path)  # which takes the place of an empty folder, too
    except OSError as error:
        raise ValueError(f"{path}: could not be written ({error.strerror}); there is no such folder") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_folder(path: str | Path, marker: str) -> None:
    """Check that `replaced_folder` may write a folder, before the work that fills it.

    Args:
        path: The folder.
        marker: Name of a file without which an existing folder is not replaced.

    Raises:
        ValueError: Something else has that name.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or (any(path.iterdir()) and not (path / marker).is_file())):
        raise ValueError(f"{path}: exists already, and is not a folder that this would replace; name another folder")


@contextmanager
def replaced_folder(path: str | Path, marker: str) -> Iterator[Path]:
    """Give a temporary folder to fill; it replaces the folder `path` when the block ends without an exception.

    Args:
        path: The folder to create or to replace.
        marker: Name of a file without which an existing folder is not replaced, since it is somebody else's.

    Yields:
        The temporary folder. After an exception inside the block, nothing remains of it; the old folder is unchanged.

    Raises:
        ValueError: Something else has that name, or the folder could not be written.
    """
    path = Path(path).absolute()
    check_folder(path, marker)
    temporary, old = _temporary_name(path), path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    except OSError as error:
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise ValueError(f"{path}: could not be written ({error.strerror}); what was there is unchanged") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _temporary_name(path: Path) -> Path:
    """Return a hidden name in the same folder, which differs between processes."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")
