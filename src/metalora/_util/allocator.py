"""What the C library does with freed memory: a training keeps it for its next step, a service returns it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # options of glibc's mallopt
KEPT_BYTES = 2**30  # a larger piece goes back to the system when it is freed
ADAPTED_BYTES = 2**25  # the largest threshold that glibc chooses by itself, from the pieces that are freed
CHOICES_OF_USERS = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")  # variables that glibc reads

_lock = threading.Lock()
_keepers = 0  # blocks that keep freed memory now, and one more after `keep_freed_memory`


def keep_freed_memory() -> bool:
    """Let the C library keep memory that is freed, instead of giving each large piece back to the system at once.

    Otherwise every activation of a step comes as new pages, which the system fills with zeros first. A process then
    holds as much memory as it ever needed at once; a process of a command ends, and a service should not do this.

    Returns:
        Whether the C library does so; only glibc can, and it does not if a variable of the environment says otherwise.

    Example:
        >>> keep_freed_memory() in (True, False)
        True
    """
    global _keepers
    with _lock:
        _keepers += 1
        return _set_thresholds(KEPT_BYTES, KEPT_BYTES)


@contextlib.contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Do what `keep_freed_memory` does inside of a block; at the end of the outermost one the memory is returned.

    Afterwards glibc has the thresholds that it would have chosen by itself for tensors of such sizes.

    Example:
        >>> with keeping_freed_memory():
        ...     values = bytearray(2**20)
    """
    global _keepers
    with _lock:
        _keepers += 1
        _set_thresholds(KEPT_BYTES, KEPT_BYTES)
    try:
        yield
    finally:
        with _lock:
            _keepers -= 1
            if not _keepers and _set_thresholds(2 * ADAPTED_BYTES, ADAPTED_BYTES):
                return_freed_memory()


def _set_thresholds(trim: int, mmap: int) -> bool:
    """Set from how many bytes on a piece goes back to the system; False without glibc, or if the user has set it."""
    mallopt = _function_of_glibc("mallopt")
    if mallopt is None or any(name in os.environ for name in CHOICES_OF_USERS):
        return False
    # Some versions of glibc refuse a threshold above their own largest one.
    return bool(
        mallopt(TRIM_THRESHOLD, trim) and (mallopt(MMAP_THRESHOLD, mmap) or mallopt(MMAP_THRESHOLD, ADAPTED_BYTES))
    )


def return_freed_memory() -> bool:
    """Give memory that is free back to the system, also between pieces that are used; it takes some 10 ms.

    Returns:
        Whether any was given back; only glibc can.

    Example:
        >>> return_freed_memory() in (True, False)
        True
    """
    malloc_trim = _function_of_glibc("malloc_trim")
    return malloc_trim is not None and bool(malloc_trim(0))


def _function_of_glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
