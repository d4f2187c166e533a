"""The process that runs the sections.

It is apart from the one that watches it, so that the watching one can end it: a kernel that never returns, a crash of
the process or an error that leaves the card unusable costs one section and not the run.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from metalora.bench.gpu.budget import Budget
from metalora.bench.gpu.run import NO_TIME, card_works, row_of, run_section
from metalora.bench.gpu.section import MakeSections
from metalora.bench.store import Row, RowStore


@dataclass(frozen=True)
class Task:
    """What a process is to run.

    Attributes:
        make_sections: Makes the sections.
        dry_run: Whether the shapes are tiny.
        names: The names of the sections that are run, in this order.
        out: The file of rows.
        deadline: When the time budget of the run ends, by `time.monotonic`.
    """

    make_sections: MakeSections
    dry_run: bool
    names: list[str]
    out: Path
    deadline: float


@dataclass(frozen=True)
class Ready:
    """The process has begun.

    Attributes:
        device: The name of the card; None without one.
        rows: For each section the row that says that it was not run.
    """

    device: str | None
    rows: list[Row]


@dataclass(frozen=True)
class Begun:
    """A section has begun, which may take this number of seconds."""

    seconds: float


@dataclass(frozen=True)
class Ended:
    """A section has ended, and its row is in the file."""

    row: Row


Message = Ready | Begun | Ended


def work(pipe: Connection, task: Task) -> None:
    """Run sections and tell each step; ends early if the card can no longer be used.

    Args:
        pipe: Takes the messages.
        task: What is run.
    """
    os.setpgrp()  # the watching process ends this one together with the processes that it has started
    sections = {section.name: section for section in task.make_sections(task.dry_run)}
    chosen = [sections[name] for name in task.names]
    budget, store = Budget.until(task.deadline), RowStore(task.out)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    pipe.send(Ready(device, [row_of(section, {"skipped": NO_TIME}, 0.0, task.dry_run) for section in chosen]))
    for section in chosen:
        pipe.send(Begun(min(section.seconds, budget.remaining)))
        row = run_section(section, budget, task.dry_run)
        store.append(row)
        pipe.send(Ended(row))
        if not card_works():
            break
    pipe.close()
