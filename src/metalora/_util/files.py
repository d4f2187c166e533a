"""Files and folders that are written completely or not at all."""

import ctypes
import errno
import fcntl
import io
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metalora._util.locks import locked

TEMPORARY, OLD = ".metalora-tmp", ".metalora-old"  # endings of names that nothing else has
HERE, RENAME_EXCHANGE = -100, 2  # AT_FDCWD and a flag of renameat2(2)
FRESH_SECONDS = 60.0  # a younger temporary file may be one that its writer has not locked yet


def replace_file(path: str | Path, content: bytes) -> None:
    """Write a file so that no reader, no other writer and no crash ever sees a part of it.

    The bytes go to a temporary file in the same folder, which then takes the name of `path`. A link is followed, and
    the file keeps its mode.

    Args:
        path: The file to create or to replace; its folder must exist.
        content: All bytes of the new file.

    Raises:
        OSError: The file could not be written; an existing file is unchanged and no temporary file remains.
    """
    path = Path(os.path.realpath(path))
    remove_leftovers(path.parent)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "not a regular file")  # such as /dev/null, which a rename would replace
    mode = path.stat().st_mode & 0o777 if path.exists() else None
    with _temporary_file(path, content, mode) as temporary:
        os.replace(temporary, path)  # atomic, because both names are in one folder and so on one file system


def create_file(path: str | Path, content: bytes) -> bool:
    """Write a new file, whole or not at all; of several writers of one name, on whatever machines, one makes it.

    Args:
        path: The file to create; its folder must exist.
        content: All bytes of the file.

    Returns:
        Whether this call made the file; False if the name is taken.

    Raises:
        OSError: The file could not be written.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> create_file(Path(folder.name) / "claim", b"mine"), create_file(Path(folder.name) / "claim", b"also mine")
        (True, False)
    """
    path = Path(path)
    remove_leftovers(path.parent)
    with _temporary_file(path, content, None) as temporary:
        try:
            os.link(temporary, path)  # unlike a rename, it never replaces
        except FileExistsError:
            # An answer of NFS that was lost is asked for again, and says so of the link that it has just made.
            return temporary.stat().st_nlink == 2
    return True


@contextmanager
def _temporary_file(path: Path, content: bytes, mode: int | None) -> Iterator[Path]:
    """Give a file with the content on disk beside a path, locked and under a hidden name; at the end the name is gone.

    Its mode is narrow from the start, so that nobody reads a private file while it is written.
    """
    temporary = _hidden_name(path, TEMPORARY)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode)
    try:
        with open(descriptor, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if mode is not None:
                os.fchmod(descriptor, mode)  # which the umask may have narrowed
            file.write(content)
            file.flush()
            os.fsync(descriptor)  # otherwise a crash after the rename may leave an empty file
            yield temporary
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
    with errors_for_users(path, "the old file is unchanged"):
        replace_file(path, content)


def write_figure(figure: Any, path: str | Path, *, dpi: int) -> None:
    """Write a figure of matplotlib as a PNG file, whole or not at all; its folder is made if it does not exist.

    Args:
        figure: The figure.
        path: The file to create or to replace.
        dpi: Pixels per inch.

    Raises:
        ValueError: The file could not be written; an existing file is unchanged.
    """
    picture = io.BytesIO()
    figure.savefig(picture, dpi=dpi, format="png")
    with errors_for_users(path, "the old file is unchanged"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, picture.getvalue())


@contextmanager
def errors_for_users(path: str | Path, remark: str) -> Iterator[None]:
    """Turn an OSError of the block, such as that of a full disk, into a ValueError that names a path.

    Args:
        path: What could not be written.
        remark: What is true afterwards.

    Raises:
        ValueError: The block raised an OSError.

    Example:
        >>> with errors_for_users("rows", "nothing is lost"):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
        ValueError: rows: could not be written (No space left on device); nothing is lost
    """
    try:
        yield
    except OSError as error:
        raise ValueError(f"{path}: could not be written ({error.strerror or error}); {remark}") from None


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
    check_new_folder(path)
    real_path = Path(os.path.realpath(path))
    with errors_for_users(path, "there is no such folder"), _temporary_folder(real_path) as temporary:
        yield temporary
        os.replace(temporary, real_path)  # which takes the place of an empty folder, too


def check_new_folder(path: str | Path) -> None:
    """Check that `new_folder` may write a folder, before the work that fills it; ValueError if the name is taken."""
    _check_folder_above(Path(path))
    with errors_for_users(path, "there is no such folder"):
        is_empty_folder = os.path.isdir(path) and not os.listdir(path)
        if os.path.exists(path) and not is_empty_folder:
            raise ValueError(f"{path}: exists already; delete it or name another folder")


def check_file(path: str | Path, *, makes_folder: bool = False) -> None:
    """Check that a file can be written, before the work whose result it takes.

    Args:
        path: The file.
        makes_folder: Whether its folder is made if there is none.

    Raises:
        ValueError: A folder has that name, or there is no folder for it.

    Example:
        >>> check_file("no-such-folder/rows.jsonl")
        Traceback (most recent call last):
        ValueError: no-such-folder/rows.jsonl: there is no folder no-such-folder, make it or name another file
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, expected the name of a file")
    if makes_folder:
        return _check_folder_above(path)
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}, make it or name another file")


def _check_folder_above(path: Path) -> None:
    """Raise a ValueError if the folder of a path cannot be made, since a file has the name of one of its parts."""
    above = path.absolute().parent
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        raise ValueError(f"{path}: {above} is a file, expected a folder")


def check_folder(path: str | Path, names: Sequence[str]) -> None:
    """Check that `replaced_folder` may write a folder, before the work that fills it.

    Args:
        path: The folder.
        names: All files that such a folder may have; the first one tells what it is.

    Raises:
        ValueError: Something else has that name, or a file of somebody else is in the folder.
    """
    _check_folder_above(Path(path))
    folder_above = Path(os.path.realpath(path)).parent
    with errors_for_users(path, "what is there is unchanged"):
        if folder_above.is_dir():
            with locked(folder_above):
                _check_replaceable(Path(path), names)


@contextmanager
def replaced_folder(path: str | Path, names: Sequence[str]) -> Iterator[Path]:
    """Give a temporary folder to fill; it replaces the folder `path` when the block ends without an exception.

    Args:
        path: The folder to create or to replace.
        names: All files that such a folder may have; the first one tells what it is. A folder without it, or with
            anything else in it, is not replaced, since that would be lost.

    Yields:
        The temporary folder. After an exception inside the block, nothing remains of it; the old folder is unchanged.

    Raises:
        ValueError: Something else has that name or is in the folder, or the folder could not be written.
    """
    real_path = Path(os.path.realpath(path))
    remark = "what was there is unchanged"
    with errors_for_users(path, remark):
        real_path.parent.mkdir(parents=True, exist_ok=True)
        with locked(real_path.parent):
            _restore(real_path)
            _check_replaceable(Path(path), names)
    with errors_for_users(path, remark), _temporary_folder(real_path) as temporary:
        yield temporary
        with locked(real_path.parent):  # two renames, between which no other writer may come
            _swap(temporary, real_path)


def _check_replaceable(path: Path, names: Sequence[str]) -> None:
    """Refuse to replace what is not a folder of this library; the caller holds the lock of the folder above.

    Without the lock, another writer may rename the folder between two of the questions.
    """
    if not path.exists():
        return
    found = sorted(path.iterdir()) if path.is_dir() else []
    if not path.is_dir() or (found and not (path / names[0]).is_file()):
        raise ValueError(f"{path}: exists already, and is not a folder that this would replace; name another one")
    for file in found:
        if file.name not in names or not file.is_file():
            raise ValueError(f"{file}: would be lost with the folder that is replaced; move it, or name another folder")


def _swap(new: Path, path: Path) -> None:
    """Put a folder in the place of another one: in one step where the system can, otherwise in two renames."""
    if path.exists():
        os.chmod(new, path.stat().st_mode & 0o777)
        if _exchange(new, path):  # what was there has the temporary name now, and is removed under it
            return
    old = _hidden_name(path, OLD)
    try:
        if path.exists():
            os.replace(path, old)
        os.replace(new, path)
    except OSError:
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Give each of two folders the name of the other in one step; False where the system or the disk cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # of Linux
    return rename is not None and rename(HERE, os.fsencode(first), HERE, os.fsencode(second), RENAME_EXCHANGE) == 0


def _restore(path: Path) -> None:
    """Bring back, or else remove, the old folder of a writer that was killed between its two renames."""
    for name in os.listdir(path.parent):
        if name.startswith(f".{path.name}.") and name.endswith(OLD):
            old = path.with_name(name)
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.replace(old, path)


@contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    """Give a locked, hidden folder beside a path; what remains of it at the end is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    temporary = _hidden_name(path, TEMPORARY)
    temporary.mkdir()
    try:
        with locked(temporary):
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders of writers that were killed; those of living ones stay.

    Args:
        folder: The folder in which the writers wrote.
    """
    for name in os.listdir(folder):
        if name.startswith(".") and name.endswith(TEMPORARY):
            _remove_if_dead(folder / name)


def _remove_if_dead(path: Path) -> None:
    """Remove a temporary file or folder that is old and that nobody has locked."""
    try:
        if time.time() - path.stat().st_mtime < FRESH_SECONDS:
            return
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:  # its writer has just ended, or it belongs to another user
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    except OSError:  # a living writer has the lock
        pass
    finally:
        os.close(descriptor)


def _hidden_name(path: Path, ending: str) -> Path:
    """Return a hidden name in the same folder that no other thread or process has."""
    return path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}{ending}")
