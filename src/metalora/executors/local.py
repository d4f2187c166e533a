"""Processes of this machine; one that dies takes nothing with it but the work that it had."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from metalora.executors.executor import Ended, Work

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
SECONDS_TO_STOP = 10.0  # a worker may be inside of a step that does not listen to a signal


@dataclass
class _Worker:
    """A process, our end of the pipe to it, and what it does."""

    process: SpawnProcess
    connection: Connection
    work: Work | None = None


class LocalProcesses:
    """Up to `workers` processes with one thread each. They die with this process.

    Args:
        workers: Number of processes; each is started when it is first needed.
    """

    def __init__(self, workers: int):
        self.workers = workers
        self._processes: list[_Worker] = []

    def start(self, work: Work) -> None:
        """Give work to an idle process, or to a new one.

        Raises:
            ValueError: The work cannot be pickled.
        """
        content = _pickled(work)
        idle = [worker for worker in self._processes if worker.work is None]
        worker = idle[0] if idle else self._new_worker()
        worker.work = work
        with contextlib.suppress(ConnectionError):  # the process has died, which `wait` reports
            worker.connection.send_bytes(content)

    def _new_worker(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        # For torch, OpenMP and the BLAS of scipy alike, which would fight over the cores; read when they are imported.
        os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, os.getpid()))
        process.start()
        theirs.close()  # now the pipe ends when the process does
        worker = _Worker(process, ours)
        self._processes.append(worker)
        return worker

    def wait(self) -> list[Ended]:
        """Wait for the answer or the death of a process that has work."""
        busy = {worker.connection: worker for worker in self._processes if worker.work is not None}
        return [self._ended(busy[connection]) for connection in wait(list(busy)) if isinstance(connection, Connection)]

    def _ended(self, worker: _Worker) -> Ended:
        work, worker.work = worker.work, None
        assert work is not None
        try:
            return Ended(work, worker.connection.recv())
        except (EOFError, ConnectionResetError):
            worker.process.join()
            self._processes.remove(worker)
            return Ended(work, death=_death(worker.process.exitcode or 0))

    def close(self) -> None:
        """Stop all processes; each gives its claim back first."""
        for worker in self._processes:
            worker.process.terminate()
        for worker in self._processes:
            worker.process.join(SECONDS_TO_STOP)
            worker.process.kill()
            worker.connection.close()
        self._processes.clear()


def _pickled(work: Work) -> bytes:
    """Return work as bytes: torch would share the memory of tensors with the process instead of copying them."""
    try:
        return pickle.dumps(work)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(f"what a process shall do cannot be pickled ({error}); use one worker") from None


def _death(exit_code: int) -> str:
    """Say how a process ended that should have gone on.

    Example:
        >>> _death(-9), _death(3)
        ('its process was ended by SIGKILL (Killed)', 'its process ended with exit code 3')
    """
    if exit_code >= 0:
        return f"its process ended with exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    return f"its process was ended by {name} ({signal.strsignal(-exit_code)})"


def _serve(connection: Connection, parent: int) -> None:
    """Do the work that comes through a pipe, until it is closed."""
    os.environ["TQDM_DISABLE"] = "1"  # bars of several processes would fall into each other
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent stops this one
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through the `finally` of the work
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    while True:
        try:
            work = connection.recv()
        except EOFError:
            return
        try:
            connection.send(work())
        except KeyboardInterrupt:  # a training listens to Ctrl-C, although this process does not
            sys.exit(1)


def _die_with(parent: int) -> None:
    """End this process when its parent has ended: a killed table must not leave workers behind."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
