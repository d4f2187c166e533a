"""Ctrl-C and SIGTERM that wait for the end of a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Record the first Ctrl-C or SIGTERM, so that a step ends with a consistent state.

    SIGTERM is what launchers and batch systems send before they kill a process; a handler that a program has set for
    it stays. A second signal raises KeyboardInterrupt at once, in case a step hangs. Outside of the main thread, which
    alone may handle signals, nothing is changed.

    Yields:
        A function that returns whether a signal came.

    Example:
        >>> import os
        >>> with deferred_interrupt() as is_interrupted:
        ...     os.kill(os.getpid(), signal.SIGINT)  # what Ctrl-C sends
        ...     is_interrupted()
        True
    """
    received: list[int] = []  # a list, because the handler below writes to it

    def is_interrupted() -> bool:
        return bool(received)

    if threading.current_thread() is not threading.main_thread():
        yield is_interrupted
        return

    def record(signal_number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(signal_number)

    handled = [signal.SIGINT]
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        handled.append(signal.SIGTERM)
    previous_handlers = {number: signal.signal(number, record) for number in handled}
    try:
        yield is_interrupted
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
