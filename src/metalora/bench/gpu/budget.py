"""Time budgets: of the whole run, and of each section."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class OutOfTime(Exception):
    """The time budget of a section is used up."""


class Budget:
    """A number of seconds that starts to run now.

    Args:
        seconds: The budget.

    Example:
        >>> Budget(60).remaining > 59
        True
    """

    def __init__(self, seconds: float):
        self.deadline = time.monotonic() + seconds

    @classmethod
    def until(cls, deadline: float) -> Budget:
        """A budget that ends at a time of `time.monotonic`, which all processes of a machine share."""
        return cls(deadline - time.monotonic())

    @property
    def remaining(self) -> float:
        """Seconds that are left, at least 0."""
        return max(0.0, self.deadline - time.monotonic())

    def part(self, seconds: float) -> Budget:
        """A budget of at most this number of seconds, which ends no later than this one."""
        return Budget(min(seconds, self.remaining))

    def check(self) -> None:
        """Raise OutOfTime if nothing is left."""
        if not self.remaining:
            raise OutOfTime("the time budget is used up")

    @contextmanager
    def enforced(self, grace: float = 5.0) -> Iterator[None]:
        """Raise OutOfTime inside the block if it runs longer than the budget and a grace period, in seconds.

        Sections check their budget between measurements; the alarm is for a measurement that never ends. Python
        delivers it in the main thread only, so that in another thread the block is not interrupted.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def interrupt(number: int, frame: Any) -> None:
            raise OutOfTime("a measurement ran far beyond the time budget")

        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, self.remaining + grace)  # in fractions of a second, unlike signal.alarm
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)  # 0 switches the timer off
            signal.signal(signal.SIGALRM, before)
