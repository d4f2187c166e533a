"""One run as work for an executor: claimed by one process at a time, and its failure kept in a file."""

from __future__ import annotations

import contextlib
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from metalora._util.files import write_atomically
from metalora._util.processes import done_by_process_0, one_process_writes, process_index
from metalora.bench.processes import Process
from metalora.bench.store import RowStore, keyed_by_content
from metalora.cli.failures import failure_line
from metalora.config import to_dict
from metalora.io.adapter_file import save
from metalora_papers.content import content_of
from metalora_papers.execution import OnStep, Outcome, execute
from metalora_papers.registry import open_suite
from metalora_papers.runs import Run

ROWS_FILE = "rows.jsonl"  # in the folder of a table, of `train` or of a grid


def key_of(config: Run) -> str:
    """The key of a run's row: of its configuration, and of what the files hold that it names by a path."""
    return keyed_by_content(to_dict(config), content_of(config))


@dataclass(frozen=True)
class Job:
    """A run and the folder of its row; calling it executes the run.

    Attributes:
        config: The run.
        folder: The folder, which the process that calls it must see under the same path.
    """

    config: Run
    folder: Path

    def __call__(self) -> str | None:
        """Execute the run, unless it has a row or another process is at it.

        Returns:
            In one line why it failed; None if it did not.
        """
        try:
            execute_claimed(self.config, self.folder)
        except Exception as error:  # whatever it is, the other runs go on
            self.record_failure("".join(traceback.format_exception(error)))
            return failure_line(error)
        return None

    @property
    def failure_file(self) -> Path:
        """Where the error of the run is kept, until the run succeeds."""
        return _failure_file(self.config, self.folder)

    def record_failure(self, text: str) -> None:
        """Write why the run failed, with its settings, the time and the process."""
        when = datetime.now(UTC).isoformat(timespec="seconds")
        self.failure_file.parent.mkdir(parents=True, exist_ok=True)
        content = f"{when}, {Process.this()}\n{self.config}\n\n{text.rstrip()}\n"
        write_atomically(self.failure_file, content.encode())


@dataclass(frozen=True)
class Preparation:
    """What several runs share: the backbone of a run, which is pre-trained and cached, so that no two runs do it."""

    config: Run

    def __call__(self) -> str | None:
        """Load the data and the models of the run; None, as a fault is told by the runs themselves."""
        with contextlib.suppress(Exception):  # the runs meet it again, and record it
            open_suite(self.config)
        return None


def execute_claimed(config: Run, folder: Path, on_step: OnStep | None = None) -> None:
    """Execute a run, and add its row and its adapter to a folder; nothing happens if it has a row or is claimed.

    Processes of one torch.distributed group execute it together.
    """
    key, store = key_of(config), RowStore(folder / ROWS_FILE)
    if not done_by_process_0(lambda: store.claim(key)):
        return
    try:
        checkpoint = folder / "checkpoints" / f"{key}.pt"
        outcome = execute(config, checkpoint=checkpoint, on_step=on_step)
        # The claim may be lost by now, if this machine was asleep for minutes; then the first to finish has the row.
        adapter_file = folder / "adapters" / f"{key}.safetensors"
        with one_process_writes() as writes:
            if writes:
                store.append_first(outcome.row, lambda: _save_adapter(outcome, config, adapter_file))
                checkpoint.unlink(missing_ok=True)
                _failure_file(config, folder).unlink(missing_ok=True)
    finally:
        if process_index() == 0:
            store.release(key)


def _save_adapter(outcome: Outcome, config: Run, path: Path) -> None:
    if outcome.adapter is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(outcome.adapter.model, path, getattr(torch, config.train.store), extra_module=outcome.extra_module)


def _failure_file(config: Run, folder: Path) -> Path:
    return folder / "failures" / f"{key_of(config)}.txt"
