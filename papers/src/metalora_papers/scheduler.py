"""Run many runs: a row each, by processes that share one table and survive being cut off."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from metalora.bench.store import RowStore, keyed_by_content
from metalora.config import from_dict, to_dict
from metalora.executors.executor import Ended, Executor, ThisProcess, WorkFailed, execute_all
from metalora_papers.execution import OnStep
from metalora_papers.jobs import ROWS_FILE, Job, Preparation, execute_claimed, key_of
from metalora_papers.registry import SUITES
from metalora_papers.rows import Row
from metalora_papers.runs import Run

WAIT = 1.0  # seconds between looks at what another process is doing


def missing_runs(configs: Sequence[Run], folder: Path) -> list[Run]:
    """Return the runs that have no row in a folder yet."""
    done = _rows_by_key(RowStore(folder / ROWS_FILE))
    return [config for config in configs if key_of(config) not in done]


def run_all(
    configs: Sequence[Run],
    folder: Path,
    *,
    executor: Executor | None = None,
    on_done: Callable[[Run], None] | None = None,
) -> list[Row]:
    """Execute the runs that have no row yet and return the rows of all, in the order of `configs`.

    Adapters are saved to `folder/adapters/<key>.safetensors`. An interrupted table keeps its finished rows and the
    checkpoints of its unfinished runs. Other processes, on this machine or on others, may work on the same folder: what
    they are at is waited for, and done here if they die.

    Args:
        configs: The runs.
        folder: The folder of rows, adapters, checkpoints and errors.
        executor: What executes them; default: this process.
        on_done: Called with each run that has a row, as soon as this is known.

    Raises:
        WorkFailed: Some runs failed, after all others are done. Their errors are in `folder/failures`, and the next
            call tries them again.
    """
    folder = folder.absolute()  # of an executor, another process may have another working folder
    store = RowStore(folder / ROWS_FILE)
    store.check()
    table = _Table(configs, folder, store, on_done or (lambda config: None))
    executor = executor or ThisProcess()
    if executor.workers > 1:
        list(execute_all(executor, table.preparations()))
    while free := table.wait_for_jobs():
        for ended in execute_all(executor, free):
            table.note(ended)
    if failed := missing_runs(configs, folder):
        raise WorkFailed(
            f"{len(failed)} of {len(configs)} runs failed; the errors are in "
            f"{folder / 'failures'}, and the same command tries them again"
        )
    rows = _rows_by_key(store)
    return [rows[key] for key in map(key_of, configs)]


class _Table:
    """The runs of a table that have no row yet and have not failed here."""

    def __init__(self, configs: Iterable[Run], folder: Path, store: RowStore, on_done: Callable[[Run], None]):
        self.folder, self.store, self.on_done = folder, store, on_done
        self.waiting = {key_of(config): config for config in configs}
        self._has_said_waiting = False
        self._find_done()

    def preparations(self) -> list[Preparation]:
        """Return one preparation for each backbone that runs without a row share."""
        shared = {run.shared_backbone: run for run in self.waiting.values() if run.shared_backbone is not None}
        return [Preparation(run) for run in shared.values()]

    def wait_for_jobs(self) -> list[Job]:
        """Return runs without a row that no living process is at, as soon as there are any; none if all have ended."""
        self._find_done()
        while self.waiting and not (free := self._free_jobs()):
            self._say_waiting()
            time.sleep(WAIT)
            self._find_done()
        return free if self.waiting else []

    def _free_jobs(self) -> list[Job]:
        return [Job(config, self.folder) for key, config in self.waiting.items() if not self.store.is_claimed(key)]

    def note(self, ended: Ended) -> None:
        """Take down how a run has ended, and tell the user if it failed."""
        self._find_done()
        job, error = ended.work, ended.death or ended.error
        assert isinstance(job, Job)
        if error is None or self.waiting.pop(key_of(job.config), None) is None:  # a process may die after its work
            return
        if ended.death is not None:  # otherwise the process has kept the traceback
            job.record_failure(ended.death)
        print(f"failed: {job.config.method}, seed {job.config.seed}: {error} ({job.failure_file})", file=sys.stderr)

    def _say_waiting(self) -> None:
        """Tell the user once that other processes have the runs that are left."""
        if not self._has_said_waiting:
            print(f"waiting for runs that other processes are at: {len(self.waiting)}", file=sys.stderr)
            self._has_said_waiting = True

    def _find_done(self) -> None:
        done = _rows_by_key(self.store)
        for key in [key for key in self.waiting if key in done]:
            self.on_done(self.waiting.pop(key))


def _rows_by_key(store: RowStore) -> dict[str, Row]:
    """Rows by their key, and by the key that their run has today: a field that came in later has its default.

    A row that names files and does not say what they held answers no run.
    """
    rows = store.rows()
    found = {row["key"]: row for row in rows if "key" in row}
    for row in rows:
        with contextlib.suppress(ValueError, KeyError):  # of a configuration that no longer exists
            config = from_dict(SUITES[row["suite"]].config, row["config"])
            found[keyed_by_content(to_dict(config), row.get("content", {}))] = row
    return found


def run_one(config: Run, folder: Path, *, on_step: OnStep | None = None) -> Row:
    """Execute one run, or return the row that it already has; ValueError if another process is at it.

    Processes of one torch.distributed group execute it together.
    """
    store = RowStore(folder / ROWS_FILE)
    store.check()
    if missing_runs([config], folder):
        execute_claimed(config, folder, on_step)
    row = _rows_by_key(store).get(key_of(config))
    if row is None:
        raise ValueError(f"{folder}: another process is at this run")
    return row
