"""The end of a command that fails: one line, and 2 for what the user gave or 1 for what went wrong later."""

from __future__ import annotations

import errno
import os

from metalora._util.extras import missing_package_message
from metalora._util.shown import cut
from metalora.executors.executor import WorkFailed

USAGE, FAILURE = 2, 1
BROKEN = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Numbers of errors that are those of the machine; the others are those of a path that the user gave."""
LONGEST = 1500  # characters of a line
SHOW_TRACEBACK = "METALORA_TRACEBACK"  # a variable of the environment


def failure_line(error: Exception) -> str:
    """Say in one line what went wrong.

    Args:
        error: A ValueError is a mistake of the user, whose message is for the user, as that of a WorkFailed is; an
            OSError has its path; any other error is a fault of a program, and the line says how to see where.

    Example:
        >>> failure_line(IsADirectoryError(21, "Is a directory", "runs"))
        'runs: Is a directory'
        >>> failure_line(TypeError("no number"))
        'unexpected TypeError: no number (METALORA_TRACEBACK=1 shows where)'
    """
    if isinstance(error, ModuleNotFoundError):
        return missing_package_message(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        return _one_line(f"{where}{error.strerror or error}")
    if isinstance(error, (ValueError, WorkFailed)):
        return _one_line(str(error))
    said = cut(_one_line(str(error)), 400)
    return f"unexpected {type(error).__name__}: {said} ({SHOW_TRACEBACK}=1 shows where)"


def exit_code(error: Exception) -> int:
    """Return 2 for a mistake of the user and for a missing package, and 1 for what failed in a right command.

    Example:
        >>> exit_code(ValueError("lr is -1")), exit_code(OSError(errno.ENOSPC, "No space left on device"))
        (2, 1)
    """
    if isinstance(error, ModuleNotFoundError):
        return USAGE
    cause = error.__context__ if isinstance(error, ValueError) else error  # a ValueError may report an OSError
    if isinstance(cause, OSError) and cause.errno in BROKEN:
        return FAILURE
    is_of_user = isinstance(error, ValueError) or (isinstance(error, OSError) and error.errno is not None)
    return USAGE if is_of_user else FAILURE


def wants_traceback() -> bool:
    """Return whether the user has asked for Python's own report of an error."""
    return os.environ.get(SHOW_TRACEBACK, "") not in ("", "0")


def _one_line(text: str) -> str:
    return cut(" ".join(text.split()), LONGEST)
