"""What every executor can do: start work, and say what has ended."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple, Protocol

Work = Callable[[], str | None]
"""A piece of work that can be pickled. It returns nothing, or in one line why it failed."""


class WorkFailed(Exception):
    """A right command could not do all of its work; the message is for the user."""


class Ended(NamedTuple):
    """A piece of work that has ended.

    Attributes:
        work: What was started.
        error: What the work has returned.
        death: How its process ended before the work did; None if it did not.
    """

    work: Work
    error: str | None = None
    death: str | None = None


class Executor(Protocol):
    """Executes work elsewhere; `execute_all` below keeps it busy."""

    workers: int
    """How many pieces of work are started at a time."""

    def start(self, work: Work) -> None:
        """Start a piece of work, which may wait for a place."""

    def wait(self) -> list[Ended]:
        """Wait until work that was started has ended, and return what has ended since the last call."""

    def close(self) -> None:
        """Stop what is still running."""


def execute_all(executor: Executor, works: Iterable[Work]) -> Iterator[Ended]:
    """Execute pieces of work, and yield each as it ends.

    Args:
        executor: Where.
        works: What. The first ones are started first, and each is asked for when there is a place for it.

    Example:
        >>> [ended.error for ended in execute_all(ThisProcess(), [lambda: None, lambda: "no data"])]
        [None, 'no data']
    """
    waiting, running = iter(works), 0
    while True:
        for work in islice(waiting, executor.workers - running):
            executor.start(work)
            running += 1
        if not running:
            return
        for ended in executor.wait():
            running -= 1
            yield ended


class ThisProcess:
    """Does each piece of work itself, and nothing beside it."""

    workers = 1

    def __init__(self) -> None:
        self._started: list[Work] = []

    def start(self, work: Work) -> None:
        """Keep the work for `wait`."""
        self._started.append(work)

    def wait(self) -> list[Ended]:
        """Do the work that was started."""
        works, self._started = self._started, []
        return [Ended(work, work()) for work in works]

    def close(self) -> None:
        """Forget what was started and not done."""
        self._started.clear()
