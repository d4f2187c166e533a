"""The trials of a search as work for an executor, whose processes make the search anew."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from metalora._util.allocator import keep_freed_memory
from metalora.learner.sweeps.config import SweepConfig
from metalora.learner.sweeps.jobs import Job
from metalora.learner.sweeps.search import Search
from metalora.learner.sweeps.trial import reason_of

MOST_DEATHS = 2  # the second time, the trial itself may be why, such as by its memory
MakeJob = Callable[[], Job]
_SEARCHES: dict[str, Search] = {}  # that which this process works for, by the call that has started it


@dataclass(frozen=True)
class NextTrial:
    """The next trial of a search, whichever that is; calling it does the trial.

    Attributes:
        call: What tells the call that has started the search from others.
        folder: The folder of the search, which the process that calls it must see under the same path.
        working_folder: The folder that relative paths of the data belong to, likewise.
        make_job: Gives what a trial trains.
        config: The budget and the choices.
        end: No trial begins at or after this time, in seconds since the epoch; None: no limit.
    """

    call: str
    folder: Path
    working_folder: Path
    make_job: MakeJob
    config: SweepConfig
    end: float | None

    def __call__(self) -> str | None:
        """Do the next trial; nothing happens if the folder has enough trials, or the time is over.

        Returns:
            In one line why no trial can be done here; None if it can. A trial that fails has its own reason.
        """
        try:
            if self.end is None or time.time() < self.end:
                self._search().run_next_trial()
        except Exception as error:  # whatever it is, the process of the user tells it
            return reason_of(error)
        return None

    def _search(self) -> Search:
        """Return the search, which the first trial of a process makes for all of them."""
        if self.call not in _SEARCHES:
            _SEARCHES.clear()
            keep_freed_memory()
            os.chdir(self.working_folder)
            _SEARCHES[self.call] = Search(self.folder, self.make_job(), self.config, MOST_DEATHS)
        return _SEARCHES[self.call]
