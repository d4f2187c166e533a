"""SQLite: one thread commits together what waits together; readers disturb nobody."""

from __future__ import annotations

import os
import queue
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metalora.serving.store.base import StoreFailure
from metalora.serving.store.database import Result, Row, Transaction
from metalora.serving.store.sqlite_file import connect, open_file

MOST_TOGETHER = 256  # writes in one commit


@dataclass
class _Job:
    """Work that waits for the writer, and the promise of its result."""

    work: Callable[[Transaction], Any]
    future: Future[Any] = field(default_factory=Future)


@dataclass(frozen=True)
class _Outcome:
    """What a job has given, before it is committed."""

    result: Any = None
    error: Exception | None = None


class SqliteDatabase:
    """A SQLite file as the database of a store.

    Args:
        path: The file.
        create: Whether it is created if there is none.

    Raises:
        ValueError: It cannot be opened or written, or is no store of this version.
    """

    row_lock = ""  # a transaction that writes is alone

    def __init__(self, path: str | Path, create: bool):
        self.path = Path(path).absolute()
        self._connection = open_file(self.path, create)
        self._file = self._identity()
        self._idle: deque[sqlite3.Connection] = deque()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._is_closed = False
        self._writer = threading.Thread(target=self._write_jobs, name="store writer", daemon=True)
        self._writer.start()

    def read(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Return the rows of a query; StoreFailure if it fails."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._new_reader()
        try:
            rows = connection.execute(statement, parameters).fetchall()
        except sqlite3.Error as error:
            connection.close()
            raise self._failure("read", error) from None
        self._idle.append(connection)
        return rows

    def write(self, work: Callable[[Transaction], Result]) -> Result:
        """Do work in a transaction, and return its result when the disk has it; see `Database`."""
        job = _Job(work)
        with self._lock:
            if self._is_closed:
                raise StoreFailure(f"{self.path}: the store is closed")
            self._jobs.put(job)
        result: Result = job.future.result()
        return result

    def check(self) -> None:
        """Raise a StoreFailure if the file does not answer, or is no longer there."""
        self._check_file()
        self.read("SELECT count(*) FROM sqlite_master")

    def close(self) -> None:
        """Write what waits, and close."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._jobs.put(None)
        self._writer.join()
        while self._idle:
            self._idle.pop().close()

    # ---- the writer ------------------------------------------------------------------------------------------------
    def _write_jobs(self) -> None:
        """Commit jobs until the store is closed: those that came during a commit are the next one together."""
        is_open = True
        while is_open:
            waiting = [self._jobs.get()]
            while waiting[-1] is not None and len(waiting) < MOST_TOGETHER and not self._jobs.empty():
                waiting.append(self._jobs.get())
            is_open = waiting[-1] is not None
            if jobs := [job for job in waiting if job is not None]:
                self._commit(jobs)
        self._connection.close()

    def _commit(self, jobs: Sequence[_Job]) -> None:
        """Commit jobs together, or each by itself if the database fails at one, and keep their promises."""
        try:
            outcomes = self._in_one_transaction(jobs)
        except (sqlite3.Error, StoreFailure) as error:
            if len(jobs) == 1:
                return jobs[0].future.set_exception(self._failure("written", error))
            for job in jobs:
                self._commit([job])
            return
        for job, outcome in zip(jobs, outcomes, strict=True):
            if outcome.error is None:
                job.future.set_result(outcome.result)
            else:
                job.future.set_exception(outcome.error)

    def _in_one_transaction(self, jobs: Sequence[_Job]) -> list[_Outcome]:
        self._check_file()
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            outcomes = [self._outcome(job) for job in jobs]
            self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:  # a full disk may have ended it already
                self._connection.execute("ROLLBACK")
        return outcomes

    def _outcome(self, job: _Job) -> _Outcome:
        """Do the work of a job; what it has raised undoes this work alone."""
        self._connection.execute("SAVEPOINT job")
        try:
            outcome = _Outcome(job.work(_SqliteTransaction(self._connection)))
        except sqlite3.Error:
            raise
        except Exception as error:
            self._connection.execute("ROLLBACK TO job")
            outcome = _Outcome(error=error)
        self._connection.execute("RELEASE job")
        return outcome

    # ---- the file --------------------------------------------------------------------------------------------------
    def _new_reader(self) -> sqlite3.Connection:
        if self._is_closed:
            raise StoreFailure(f"{self.path}: the store is closed")
        self._check_file()
        try:
            return connect(self.path, reads_only=True)
        except sqlite3.Error as error:
            raise self._failure("read", error) from None

    def _identity(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _check_file(self) -> None:
        """Raise a StoreFailure if the path no longer leads to the file: what is written there would be lost."""
        if self._identity() != self._file:
            raise StoreFailure(f"{self.path}: the file of the store was removed or replaced: start the service again")

    def _failure(self, done: str, error: Exception) -> StoreFailure:
        if isinstance(error, StoreFailure):
            return error
        return StoreFailure(f"{self.path}: the store cannot be {done} ({error})")


class _SqliteTransaction:
    """The open transaction of the writer."""

    def __init__(self, connection: sqlite3.Connection):
        self._connection = connection

    def run(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Run a statement and return its rows."""
        return self._connection.execute(statement, parameters).fetchall()

    def run_many(self, statement: str, parameters: Sequence[Sequence[Any]]) -> None:
        """Run a statement without rows once for each sequence of parameters."""
        self._connection.executemany(statement, parameters)
