"""What a command says of runs that were finished before it started."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from metalora_papers.runs import Run


def say_finished(runs: Sequence[Run], folder: Path) -> None:
    """Print on standard error how many of the runs are finished already, and where their rows are.

    Args:
        runs: The runs that are asked for.
        folder: The folder of rows.
    """
    from metalora_papers.jobs import ROWS_FILE, key_of
    from metalora_papers.scheduler import missing_runs

    finished = len(runs) - len(missing_runs(runs, folder))
    if not finished:
        return
    rows = folder / ROWS_FILE
    if len(runs) == 1:
        print(f"already finished: its row is {key_of(runs[0])} in {rows}; it is not run again", file=sys.stderr)
    else:
        print(f"already finished: {finished} of {len(runs)} runs, whose rows are in {rows}", file=sys.stderr)
