"""Run the sections in another process, and end it if it takes longer than it may.

The supervisor uses no card, so that nothing that happens on one can stop it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import Any

from metalora.bench.gpu.run import summary
from metalora.bench.gpu.worker import Begun, Ended, Message, Ready, Task, work
from metalora.bench.store import Row, RowStore

START_SECONDS = 60.0  # until the first section, for the imports, and between two sections
GRACE_SECONDS = 15.0  # after the budget of a section, whose own alarm comes earlier
LAST_SECONDS = 10.0  # after the budget of the run
ENDED, TOO_LONG = "the process that ran it ended", "it ran far beyond its time and was ended"


class Supervisor:
    """Runs sections, each to its row.

    Args:
        task: What is run.
        context: How processes are started; a fork could not use a card.
        say: Takes each line for the terminal.
    """

    def __init__(self, task: Task, context: BaseContext | None = None, say: Callable[[str], None] = print):
        self.task, self.say = task, say
        self.context: Any = context or multiprocessing.get_context("spawn")
        self.waiting = list(task.names)
        self.rows: list[Row] = []
        self._unrun: dict[str, Row] = {}

    def run(self) -> list[Row]:
        """Run the sections and return their rows; one that was ended, or that was not reached, has one too.

        Raises:
            RuntimeError: The process ended, or did not begin in time, before it could run anything.
        """
        while self.waiting and (not self._unrun or time.monotonic() < self.task.deadline):
            self._watch_a_process()
        for name in list(self.waiting):
            self._write(self._unrun[name])
        return self.rows

    def _watch_a_process(self) -> None:
        """Start a process for the sections that wait and follow it to its end."""
        pipe, end = self.context.Pipe(duplex=False)
        process = self.context.Process(target=work, args=(end, replace(self.task, names=list(self.waiting))))
        process.start()
        end.close()
        try:
            self._follow(pipe)
        finally:
            _end(process)
            pipe.close()

    def _follow(self, pipe: Connection) -> None:
        """Read the messages of a process until it ends or runs out of time; each process takes off a section."""
        before, is_running, seconds, start = len(self.rows), False, START_SECONDS, time.monotonic()
        message = self._next(pipe, seconds)
        while not isinstance(message, str):
            is_running, start = isinstance(message, Begun), time.monotonic()
            if isinstance(message, Ready):
                self._unrun |= {row["config"]["section"]: row for row in message.rows}
                self.say(message.device or "no CUDA card")
            elif isinstance(message, Ended):
                self._add(message.row)
            seconds = message.seconds + GRACE_SECONDS if isinstance(message, Begun) else START_SECONDS
            message = self._next(pipe, seconds)
        if not self._unrun:
            raise RuntimeError(f"no section could run: {message}")
        if is_running or len(self.rows) == before:
            row = self._unrun[self.waiting[0]]
            self._write(
                row | {"results": {"error": message}, "time": row["time"] | {"seconds": time.monotonic() - start}}
            )

    def _next(self, pipe: Connection, seconds: float) -> Message | str:
        """Return the next message, or why there is none."""
        last = self.task.deadline + LAST_SECONDS - time.monotonic()
        try:
            if pipe.poll(max(0.0, min(seconds, last))):
                message: Message = pipe.recv()
                return message
        except EOFError:
            return ENDED
        return TOO_LONG

    def _write(self, row: Row) -> None:
        """Add a row that no process has written."""
        RowStore(self.task.out).append(row)
        self._add(row)

    def _add(self, row: Row) -> None:
        self.waiting.remove(row["config"]["section"])
        self.rows.append(row)
        self.say(summary(row))


def _end(process: Any) -> None:
    """End a process and those that it has started, if it does not end by itself."""
    process.join(0.5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # also of a process that has ended
    process.kill()
    process.join()
