"""The trials of a search in a folder: Optuna's journal, which several processes share and which survives a kill."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

from metalora._util.locks import is_locked, locked
from metalora.learner.sweeps.space import Choice

JOURNAL, LOCKS, KEPT = "journal.log", "locks", "kept"
FIRST = "first"  # an attribute of the trial with the settings that there would be without a search
DEATHS = "deaths"  # an attribute of a trial that is done again: how often its process has died
RANDOM_TRIALS = 5  # that are drawn at random before the others are chosen by them
SEED_STRIDE = 1_000_003
REDUCTION = 3  # a third of the trials goes on after each rung
FIRST_RUNG = 0.25  # share of the validations after which a trial may be pruned; learning rates still rise before


class _JournalLock(JournalFileOpenLock):  # type: ignore[misc]  # Optuna is not read by mypy
    """The lock of the journal; a line that a full disk or a kill has cut off is removed before the next is written."""

    def __init__(self, journal: Path):
        self.journal = journal
        self.held = ExitStack()

    def acquire(self) -> bool:
        with ExitStack() as held:  # which gives the lock back if Ctrl-C comes before the line is removed
            held.enter_context(locked(self.journal.with_suffix(".lock")))
            remove_cut_line(self.journal)
            self.held = held.pop_all()
        return True

    def release(self) -> None:
        self.held.close()


def remove_cut_line(path: Path) -> None:
    """Cut off what stands after the last end of a line.

    Args:
        path: The file; nothing happens if there is none.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "journal.log"
        ...     _ = file.write_text('{"whole": 1}\\n{"cu')
        ...     remove_cut_line(file)
        ...     file.read_text()
        '{"whole": 1}\\n'
    """
    content = path.read_bytes() if path.exists() else b""
    if content and not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)


class TrialStudy:
    """The trials of one search.

    Args:
        folder: The folder of the search.
        suggest: Gives the choice of a trial of Optuna.
        first: Parameters of the first trial.
        seed: Seed of the choices.
        pruner: Which trials are stopped early; see `pruner_for`.
        most_deaths: A trial whose process has died so many times has failed; None: it is always done again.
    """

    def __init__(
        self,
        folder: Path,
        suggest: Callable[[Trial], Choice],
        first: Mapping[str, Any],
        seed: int,
        pruner: BasePruner,
        most_deaths: int | None = None,
    ):
        self.folder, self.suggest, self.first, self.seed = folder, suggest, dict(first), seed
        self.most_deaths = most_deaths
        (folder / LOCKS).mkdir(exist_ok=True)
        journal = folder / JOURNAL
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with self._locked():
            storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=_JournalLock(journal)))
            self.study = optuna.create_study(
                storage=storage, study_name="sweep", direction="maximize", load_if_exists=True, pruner=pruner
            )
            if not self.study.get_trials(deepcopy=False):
                self.study.enqueue_trial(self.first, user_attrs={FIRST: True})

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with locked(self.folder / LOCKS / "folder"):
            yield

    def trials(self) -> list[FrozenTrial]:
        """Return all trials that have begun and were not cut off, by their numbers."""
        return [
            trial
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state != TrialState.WAITING and not is_cut_off(trial)
        ]

    def finished(self) -> list[FrozenTrial]:
        """Return all trials that have ended and were not cut off, by their numbers."""
        return [trial for trial in self.trials() if trial.state.is_finished()]

    def begun(self) -> int:
        """Return how many trials have ever begun, those that were cut off included."""
        return sum(trial.state != TrialState.WAITING for trial in self.study.get_trials(deepcopy=False))

    def missing(self, limit: int) -> int:
        """Return how many trials have not begun, of those that the folder is to have.

        Args:
            limit: Number of trials that the folder is to have.
        """
        with self._locked():
            self._repeat_cut_off()
            return max(0, limit - len(self.trials()))

    @contextmanager
    def next_trial(self, limit: int) -> Iterator[tuple[Trial, Choice] | None]:
        """Begin a trial, which other processes see as alive while the block runs.

        Args:
            limit: Largest number of trials in the folder.

        Yields:
            The trial and its choice; None if the folder has enough trials.
        """
        with ExitStack() as held:
            with self._locked():
                self._repeat_cut_off()
                if len(self.trials()) >= limit:
                    begun = None
                else:
                    # By the number of the trial, so that two processes, and a search that goes on, draw other choices.
                    seed = self.seed * SEED_STRIDE + len(self.study.get_trials(deepcopy=False))
                    self.study.sampler = TPESampler(n_startup_trials=RANDOM_TRIALS, seed=seed)
                    trial = self.study.ask()
                    held.enter_context(locked(self._lock_of(trial.number)))
                    begun = trial, self.suggest(trial)
            try:
                yield begun
            except (KeyboardInterrupt, SystemExit):  # the user has stopped it; it is not why its process ends
                if begun is not None:
                    self._stop(begun[0].number)
                raise

    def _lock_of(self, number: int) -> Path:
        return self.folder / LOCKS / str(number)

    def _repeat_cut_off(self) -> None:
        """Mark the trials whose process has ended as cut off, and put their choices before all others."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not is_locked(self._lock_of(trial.number)):
                # A process that has died before the training has not died of this trial.
                self._repeat(trial, trial.user_attrs.get(DEATHS, 0) + ("choice" in trial.user_attrs))

    def _stop(self, number: int) -> None:
        """Mark a trial of this process as cut off unless it has ended."""
        with self._locked():
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if trial.number == number:
                    self._repeat(trial, trial.user_attrs.get(DEATHS, 0))

    def _repeat(self, trial: FrozenTrial, deaths: int) -> None:
        """Mark a trial as cut off, and put its choice before all others, or among the failed ones if it died often."""
        self.study.tell(trial.number, state=TrialState.FAIL)
        shutil.rmtree(self.kept(trial.number), ignore_errors=True)
        if self.most_deaths is not None and deaths >= self.most_deaths:
            return self._add_failed(trial, f"its process died in each of {deaths} tries")
        is_first = bool(trial.user_attrs.get(FIRST))
        attributes = {DEATHS: deaths} | ({FIRST: True} if is_first else {})
        self.study.enqueue_trial(self.first if is_first else trial.params, user_attrs=attributes)

    def _add_failed(self, trial: FrozenTrial, reason: str) -> None:
        """Add a failed trial with the choice of one that was cut off, which itself can no longer be given a reason."""
        failed = optuna.create_trial(
            state=TrialState.FAIL,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={**trial.user_attrs, "reason": reason},
        )
        self.study.add_trial(failed)

    def others_running(self) -> list[int]:
        """Return the numbers of the trials that run in other processes."""
        with self._locked():
            self._repeat_cut_off()
            running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [trial.number for trial in running]

    def kept(self, number: int) -> Path:
        """Return the folder of what a trial has trained."""
        return self.folder / KEPT / str(number)

    def remove_worse(self) -> None:
        """Delete what was trained by all trials but the best and the first."""
        with self._locked():
            finished = self.finished()
            needed = [trial.number for trial in (best_of(finished), first_of(finished)) if trial is not None]
            for trial in finished:
                if trial.number not in needed:
                    shutil.rmtree(self.kept(trial.number), ignore_errors=True)


def pruner_for(validations: int, prune: bool) -> BasePruner:
    """Return what stops trials: successive halving by the best validation so far.

    Args:
        validations: Number of validations of a whole training.
        prune: False: no trial is stopped.
    """
    if not prune:
        return NopPruner()
    return SuccessiveHalvingPruner(min_resource=max(1, round(FIRST_RUNG * validations)), reduction_factor=REDUCTION)


def is_cut_off(trial: FrozenTrial) -> bool:
    """Return whether the process of a trial has ended before the trial: it failed, and nobody has said why."""
    return bool(trial.state == TrialState.FAIL) and "reason" not in trial.user_attrs


def best_of(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """Return the complete trial with the best validation, the earliest of several; None without one."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return max(complete, key=lambda trial: (trial.value, -trial.number), default=None)


def first_of(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """Return the trial with the settings that there would be without a search, if it is complete."""
    firsts = [trial for trial in trials if trial.user_attrs.get(FIRST) and trial.state == TrialState.COMPLETE]
    return firsts[0] if firsts else None
