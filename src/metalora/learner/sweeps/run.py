"""Runs the trials of a search until its budget is used up, and writes what they have found."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from uuid import uuid4

from metalora._util.files import errors_for_users
from metalora._util.locks import locked
from metalora._util.processes import process_count
from metalora.executors.choice import executor_of
from metalora.executors.config import ONE_PROCESS, ExecutorConfig
from metalora.executors.executor import Ended, Executor, ThisProcess, Work, WorkFailed, execute_all
from metalora.learner.sweeps.config import SweepConfig
from metalora.learner.sweeps.description import check_folder
from metalora.learner.sweeps.result import SweepResult
from metalora.learner.sweeps.search import Search
from metalora.learner.sweeps.study import FIRST, LOCKS, best_of, first_of
from metalora.learner.sweeps.trials import TrialRow
from metalora.learner.sweeps.work import MOST_DEATHS, MakeJob, NextTrial
from metalora.learner.sweeps.writing import BEST, write_result

OnTrial = Callable[[TrialRow, int], None]


def run_sweep(
    folder: str | Path,
    make_job: MakeJob,
    config: SweepConfig,
    executor: ExecutorConfig | None = None,
    on_trial: OnTrial | None = None,
    facts: Mapping[str, object] | None = None,
) -> SweepResult | None:
    """Search until the budget is used up, and write the result; see `sweep_finetune` and `sweep_fit`.

    Args:
        folder: The folder of the search.
        make_job: Gives what a trial trains; each process of the executor calls it once.
        config: The budget and the choices.
        executor: What does the trials; None: this process.
        on_trial: Called after every trial with its row and the number of trials in the folder.
        facts: What else the page says, such as versions.

    Returns:
        The result; None if trials still run in other processes, of which the last one to end writes it.

    Raises:
        ValueError: The choices do not fit the network, the folder is of another search or has other files, a launcher
            has started this process with others, or the executor is not there.
        WorkFailed: The processes of the executor cannot do trials. The result of the other trials is written.
    """
    if process_count() > 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("sweep: a trial runs in one process; take --workers instead of a launcher")
    path, job = Path(folder), make_job()
    check_folder(path)
    with executor_of(executor or ONE_PROCESS, path) as running:
        search = Search(path, job, config, None if isinstance(running, ThisProcess) else MOST_DEATHS)
        trials = _Trials(search, make_job, running, on_trial)
        try:
            trials.run()
        except (KeyboardInterrupt, WorkFailed):
            running.close()
            _finish(search, facts)
            raise
    return _finish(search, facts)


class _Trials:
    """Has the trials of a search done, and tells the caller of each.

    Args:
        search: The search as this process sees it.
        make_job: Gives what a trial trains, in another process.
        executor: What does the trials.
        on_trial: Called after every trial with its row and the number of trials in the folder.
    """

    def __init__(self, search: Search, make_job: MakeJob, executor: Executor, on_trial: OnTrial | None):
        self.search, self.study, self.executor, self.on_trial = search, search.study, executor, on_trial
        minutes = search.config.minutes
        self.end = None if minutes is None else time.time() + 60 * minutes
        self.work: Work = search.run_next_trial
        if not isinstance(executor, ThisProcess):
            folders = search.folder.absolute(), Path.cwd()
            self.work = NextTrial(uuid4().hex, *folders, make_job, search.config, self.end)
        self.told = {trial.number for trial in self.study.finished()}
        self.begun = 0
        self.error: str | None = None
        self.death: str | None = None

    def run(self) -> None:
        """Do trials until there are enough in the folder or the time is over.

        A trial whose process has died is done again, so that there may be some to do after all work has ended.

        Raises:
            WorkFailed: A process cannot do trials, or all die before their trial has begun.
        """
        while self._has_time() and (missing := self.study.missing(self.search.config.trials)):
            self.begun, self.death = self.study.begun(), None
            for ended in execute_all(self.executor, self._works(missing)):
                self._note(ended)
            if self.error is not None:
                raise WorkFailed(f"a worker of the search failed: {self.error}")
            if self._all_died():
                raise WorkFailed(f"no worker of the search could begin a trial: {self.death}")
        self._tell()

    def _has_time(self) -> bool:
        return self.end is None or time.time() < self.end

    def _all_died(self) -> bool:
        """Return whether workers have died and none has begun a trial since the last look for missing trials."""
        return self.death is not None and self.study.begun() == self.begun

    def _works(self, count: int) -> Iterator[Work]:
        """Yield work for so many trials, no more once the time is over or the workers cannot do it."""
        for _ in range(count):
            if self.error is not None or self._all_died() or not self._has_time():
                return
            yield self.work

    def _note(self, ended: Ended) -> None:
        """Take down how work has ended, and tell the user of a process that has died."""
        self.error, self.death = self.error or ended.error, ended.death or self.death
        if ended.death is not None:
            print(f"a worker of the search died: {ended.death}; a trial is begun twice at most", file=sys.stderr)
        self._tell()

    def _tell(self) -> None:
        """Tell the caller of the trials that have ended since the last time."""
        for trial in self.study.finished():
            if trial.number not in self.told:
                self.told.add(trial.number)
                if self.on_trial is not None:
                    self.on_trial(TrialRow.of(trial, FIRST), len(self.told))


def _finish(search: Search, facts: Mapping[str, object] | None) -> SweepResult | None:
    """Test the best trial and the first one, and write the result; None if other processes still run trials."""
    folder, study, job = search.folder, search.study, search.job
    if study.others_running():
        return None
    with locked(folder / LOCKS / "result"), errors_for_users(folder, "the trials are kept"):
        finished = study.finished()
        best, first = best_of(finished), first_of(finished)
        best_scores = () if best is None else job.test(study.kept(best.number), folder / BEST)
        first_scores = best_scores
        if best is not None and first is not None and best.number != first.number:
            first_scores = job.test(study.kept(first.number), None)
        rows = {trial.number: TrialRow.of(trial, FIRST) for trial in finished}
        result = SweepResult(
            verb=job.verb,
            trials=tuple(rows.values()),
            best=None if best is None else rows[best.number],
            best_scores=best_scores,
            first_scores=() if first is None else first_scores,
            unit=job.unit,
            settings={} if best is None else job.settings(rows[best.number].choice),
        )
        write_result(folder, result, search.space, {"backbone": job.backbone.name or "", **dict(facts or {})})
    return result
