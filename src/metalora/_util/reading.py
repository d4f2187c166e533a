"""Files that somebody else made: only regular ones are opened, and texts only up to a size."""

import errno
import os
import stat
from pathlib import Path
from typing import Any

from metalora._util.plain_values import parse_json

LARGEST_TEXT = 64 * 2**20  # bytes; the description of an adapter of a large model has less than one million


def read_regular(path: str | Path, most: int | None = None) -> bytes:
    """Read a regular file, or a link to one.

    A pipe would wait for ever, and a device such as /dev/zero has no end; both can be in a folder that was unpacked.

    Args:
        path: The file.
        most: The largest size in bytes; None: any.

    Raises:
        OSError: There is no such file, it is a directory, a pipe or a device, it is too large, or it cannot be read.

    Example:
        >>> read_regular("/dev/zero")
        Traceback (most recent call last):
        OSError: [Errno 22] not a regular file: '/dev/zero'
    """
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if most is not None and status.st_size > most:
        raise OSError(errno.EFBIG, f"{status.st_size:,} bytes, expected at most {most:,}", str(path))
    return Path(path).read_bytes()


def read_text(path: str | Path) -> str:
    """Read a regular file of at most `LARGEST_TEXT` bytes as UTF-8.

    Args:
        path: The file.

    Raises:
        OSError: As `read_regular`.
        UnicodeDecodeError: It is not UTF-8.

    Example:
        >>> read_text("no-such-file")
        Traceback (most recent call last):
        FileNotFoundError: [Errno 2] No such file or directory: 'no-such-file'
    """
    return read_regular(path, LARGEST_TEXT).decode("utf-8")


def read_json(path: str | Path, absent: str) -> Any:
    """Read a file of JSON of somebody else, with one clear error for everything that it may be instead.

    Args:
        path: The file.
        absent: The message if there is no such file.

    Raises:
        ValueError: There is no such file, it cannot be read, or it is not JSON.

    Example:
        >>> read_json("folder/adapter_config.json", "folder: no adapter_config.json")
        Traceback (most recent call last):
        ValueError: folder: no adapter_config.json
    """
    try:
        text = read_text(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(absent) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    return parse_json(text, str(path))
