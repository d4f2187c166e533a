"""Runs the trials of a search until its budget is used up, and writes what they have found."""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from optuna.exceptions import TrialPruned
from optuna.trial import Trial, TrialState

from metalora._util.files import TEMPORARY, errors_for_users, write_atomically
from metalora._util.locks import locked
from metalora._util.plain_values import parse_json
from metalora._util.processes import process_count
from metalora._util.reading import read_text
from metalora._util.shown import cut
from metalora.io.base_samples import sample_base
from metalora.learner.sweeps.config import DESCRIPTION_FILE, SweepConfig
from metalora.learner.sweeps.jobs import Job
from metalora.learner.sweeps.result import SweepResult
from metalora.learner.sweeps.space import Choice, Space
from metalora.learner.sweeps.study import FIRST, LOCKS, REDUCTION, TrialStudy, best_of, first_of, pruner_for
from metalora.learner.sweeps.trials import TrialRow
from metalora.learner.sweeps.writing import BEST, write_result

OnTrial = Callable[[TrialRow, int], None]
LONGEST_REASON = 300  # characters


def run_sweep(
    folder: str | Path,
    job: Job,
    config: SweepConfig,
    on_trial: OnTrial | None = None,
    facts: Mapping[str, object] | None = None,
) -> SweepResult | None:
    """Search until the budget is used up, and write the result; see `sweep_finetune` and `sweep_fit`.

    Args:
        folder: The folder of the search.
        job: What a trial trains.
        config: The budget and the choices.
        on_trial: Called after every trial with its row and the number of trials in the folder.
        facts: What else the page says, such as versions.

    Returns:
        The result; None if trials still run in other processes, of which the last one to end writes it.

    Raises:
        ValueError: The choices do not fit the network, the folder is of another search or has other files, or a
            launcher has started this process with others.
    """
    if process_count() > 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("sweep: a trial runs in one process; start the command several times instead of a launcher")
    space = Space(job.backbone.model, job.adapter, job.usual_rate, config, job.plain_methods)
    path = Path(folder)
    _describe(path, job, config, space)
    pruner = pruner_for(job.validations, config.prune)
    study = TrialStudy(path, space.suggest, space.first_parameters(), config.seed, pruner)
    try:
        _run_trials(study, job, config, on_trial)
    except KeyboardInterrupt:
        _finish(path, study, job, space, facts)
        raise
    return _finish(path, study, job, space, facts)


def _describe(folder: Path, job: Job, config: SweepConfig, space: Space) -> None:
    """Write what is searched into a new folder; ValueError if an older one is of another search.

    The budget is no part of it, so that a search may go on with a larger one.
    """
    model = job.backbone.model
    description = {
        "format": "metalora-sweep",
        "version": 1,
        "verb": job.verb,
        "backbone": job.backbone.name or type(model).__name__,
        "base": sample_base(model, (), ()),
        "data": job.data(),
        "settings": job.settings(space.first),
        "space": space.to_dict(),
        "test_items": config.test_items,
        "prune": config.prune,
        "seed": config.seed,
    }
    content, file = json.dumps(description, indent=1), folder / DESCRIPTION_FILE
    _check_folder(folder)
    with errors_for_users(folder, "nothing was searched"):
        (folder / LOCKS).mkdir(parents=True, exist_ok=True)
        with locked(folder / LOCKS / "folder"):
            if not file.is_file():
                return write_atomically(file, content.encode())
    before = parse_json(read_text(file), str(file))
    differing = [name for name, value in json.loads(content).items() if before.get(name) != value]
    if differing:
        raise ValueError(
            f"{file}: the search of this folder has other values of {', '.join(differing)}; give the same ones, or "
            "name another folder"
        )


def _check_folder(folder: Path) -> None:
    """Raise a ValueError if a path is a file, or a folder with anything but a search that may be just beginning."""
    if not folder.exists():
        return
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else [folder.name]
    if DESCRIPTION_FILE not in names and any(name != LOCKS and not name.endswith(TEMPORARY) for name in names):
        raise ValueError(f"{folder}: exists already, and is not the folder of a sweep; name another one")


def _run_trials(study: TrialStudy, job: Job, config: SweepConfig, on_trial: OnTrial | None) -> None:
    end = None if config.minutes is None else time.monotonic() + 60 * config.minutes
    while end is None or time.monotonic() < end:
        with study.next_trial(config.trials) as begun:
            if begun is None:
                return
            trial, choice = begun
            _run_trial(study, job, trial, choice)
        _free_memory()
        study.remove_worse()
        if on_trial is not None:
            rows = {finished.number: finished for finished in study.finished()}
            on_trial(TrialRow.of(rows[trial.number], FIRST), len(rows))


def _run_trial(study: TrialStudy, job: Job, trial: Trial, choice: Choice) -> None:
    """Train with a choice, and tell how it ended; an error of the training is a failed trial."""
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
        state, reason = TrialState.FAIL, _reason(error)
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


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return cut(text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}", LONGEST_REASON)


def _free_memory() -> None:
    """Give back what a trial has held, before the next one needs it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _finish(
    folder: Path, study: TrialStudy, job: Job, space: Space, facts: Mapping[str, object] | None
) -> SweepResult | None:
    """Test the best trial and the first one, and write the result; None if other processes still run trials."""
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
        write_result(folder, result, space, {"backbone": job.backbone.name or "", **dict(facts or {})})
    return result
