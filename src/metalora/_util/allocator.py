"""What the C library does with freed memory: a training keeps it for its next step, a service returns it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # options of glibc's mallopt
KEPT_BYTES = 2**30  # a larger piece goes back to the system when it is freed


def keep_freed_memory() -> bool:
    """Let the C library keep memory that is freed, instead of giving each large piece back to the system at once.

    Otherwise every activation of a step comes as new pages, which the system fills with zeros first. A process then
    holds as much memory as it ever needed at once; a process of a command ends, and a service should not do this.

    Returns:
        Whether the C library does so; only glibc can.

    Example:
        >>> keep_freed_memory() in (True, False)
        True
    """
    mallopt = _function_of_glibc("mallopt")
    return mallopt is not None and all(mallopt(option, KEPT_BYTES) for option in (TRIM_THRESHOLD, MMAP_THRESHOLD))


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
