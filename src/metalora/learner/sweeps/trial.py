"""One trial: a training whose validations may end it early, and how it has ended."""

from __future__ import annotations

import gc
import time

import torch
from optuna.exceptions import TrialPruned
from optuna.trial import Trial, TrialState

from metalora._util.shown import cut
from metalora.learner.sweeps.jobs import Job
from metalora.learner.sweeps.space import Choice
from metalora.learner.sweeps.study import FIRST, REDUCTION, TrialStudy

LONGEST_REASON = 300  # characters


def run_trial(study: TrialStudy, job: Job, trial: Trial, choice: Choice) -> None:
    """Train with a choice, and tell how it ended; an error of the training is a failed trial.

    Args:
        study: The trials of the search.
        job: What a trial trains.
        trial: The trial, which has begun.
        choice: Its choice.
    """
    start = time.monotonic()
    watch = _Validations(trial, job.validations)
    trial.set_user_attr("choice", choice.to_dict())
    state, reason, value = TrialState.COMPLETE, "", None
    try:
        trained = job.train(choice, watch)
        trained.save(study.kept(trial.number))
        trial.set_user_attr("parameters", trained.parameters)
        value = watch.best
    except TrialPruned:
        state, reason = TrialState.PRUNED, "behind the other trials"
    except Exception as error:  # whatever it is, the other trials may do better
        state, reason = TrialState.FAIL, reason_of(error)
    if value is None and state == TrialState.COMPLETE:
        state, reason = TrialState.FAIL, "there was no validation"
    trial.set_user_attr("curve", watch.curve)
    trial.set_user_attr("seconds", round(time.monotonic() - start, 2))
    trial.set_user_attr("reason", reason)
    study.study.tell(trial, value, state)


class _Validations:
    """Takes the validations of a training; the pruner may end it before the last one."""

    def __init__(self, trial: Trial, last: int):
        self.trial, self.last = trial, last
        self.curve: list[tuple[int, float]] = []
        self.best: float | None = None

    def __call__(self, step: int, accuracy: float) -> None:
        self.curve.append((step, accuracy))
        self.best = max(accuracy, self.best or 0.0)
        number = len(self.curve) - (self.curve[0][0] == 0)  # a validation before the first step has the number 0
        self.trial.report(self.best, number)  # the best one, since the best state is kept
        is_behind = self.trial.should_prune()  # which also tells the others how far this one is
        may_end = REDUCTION <= self.trial.number and number < self.last and not self.trial.user_attrs.get(FIRST)
        if is_behind and may_end:
            raise TrialPruned


def reason_of(error: Exception) -> str:
    """Say in one line why a trial, or a process that does trials, has failed.

    Args:
        error: A ValueError is for the user as it is; any other one is named with its type.

    Example:
        >>> reason_of(MemoryError("no memory\\n for this"))
        'MemoryError: no memory for this'
    """
    text = " ".join(str(error).split())
    return cut(text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}", LONGEST_REASON)


def free_memory() -> None:
    """Give back what a trial has held, before the next one needs it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
