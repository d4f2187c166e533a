"""The trials of a search in several processes: as many as asked for, each once, and each as one process does it."""

import pickle
import re
import sys
import time
from contextlib import nullcontext
from dataclasses import replace

import pytest

from metalora.cli.failures import exit_code, failure_line
from metalora.executors.config import ExecutorConfig, RayConfig, SlurmConfig
from metalora.executors.executor import Ended, WorkFailed
from metalora.learner.sweeps import run, work
from metalora.learner.sweeps import search as search_module
from metalora.learner.sweeps.jobs import FineTuneJob
from metalora.learner.sweeps.space import Choice
from support.small_searches import SEARCH, STEPS, small_search

FIRST = Choice("lora", 4, "0,2", 2e-3)
KILLED = "its process was ended by SIGKILL (Killed)"


class Killed(BaseException):
    """Stands for the signal that ends a process at once."""


class PretendedProcesses:
    """Two workers that have a turn one after the other; each does its work as a new process would."""

    workers = 2

    def __init__(self):
        self.waiting = []

    def start(self, work):
        self.waiting.append(pickle.dumps(work))

    def wait(self):
        work._SEARCHES.clear()
        started = pickle.loads(self.waiting.pop(0))
        try:
            return [Ended(started, started())]
        except Killed:
            return [Ended(started, death=KILLED)]

    def close(self):
        self.waiting.clear()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The result of a search in one process."""
    return small_search(tmp_path_factory.mktemp("search") / "alone")


@pytest.fixture
def pretended(monkeypatch):
    """Have pretended processes do the trials."""
    executor = PretendedProcesses()
    monkeypatch.setattr(run, "executor_of", lambda config, folder: nullcontext(executor))
    return executor


def found_in(result):
    """What the trials are and have found, but not how long they took."""
    return [replace(row, seconds=None) for row in result.trials]


def kill_trials(monkeypatch, choice, times):
    """Kill the process of a trial with a choice in its training, so many times; gives the choices that have begun."""
    begun, train = [], FineTuneJob.train

    def killed(job, chosen, on_validation):
        begun.append(chosen)
        if chosen == choice and begun.count(choice) <= times:
            raise Killed
        return train(job, chosen, on_validation)

    monkeypatch.setattr(FineTuneJob, "train", killed)
    return begun


def test_trials_of_workers_are_those_of_one_process(alone, pretended, tmp_path):
    told = []
    result = small_search(tmp_path / "search", on_trial=lambda row, count: told.append((row.number, count)))
    assert found_in(result) == found_in(alone) and result.best_scores == alone.best_scores
    assert told == [(number, number + 1) for number in range(5)]


def test_trials_of_a_worker_are_pruned_by_those_of_the_others(pretended, tmp_path, monkeypatch):
    train, begun = FineTuneJob.train, []

    def worse_each_time(job, choice, on_validation):
        begun.append(choice)
        return train(job, choice, lambda step, accuracy: on_validation(step, 1 / len(begun)))

    monkeypatch.setattr(FineTuneJob, "train", worse_each_time)
    search, config = replace(SEARCH, methods=("lora",)), replace(STEPS, steps=4, validate_every=1)
    states = [(row.state, row.steps) for row in small_search(tmp_path / "search", search, config).trials]
    assert states == [("complete", 4)] * 3 + [("pruned", 1)] * 2


def test_a_trial_whose_worker_was_killed_is_done_again(alone, pretended, tmp_path, monkeypatch, capsys):
    begun = kill_trials(monkeypatch, FIRST, times=1)
    result = small_search(tmp_path / "search")
    assert begun[:2] == [FIRST, FIRST] and len(begun) == 6
    assert [row.number for row in result.trials] == [1, 2, 3, 4, 5] and result.first.accuracy == alone.first.accuracy
    assert [row.choice for row in result.trials].count(FIRST) == 1 and result.first.state == "complete"
    said = f"a worker of the search died: {KILLED}; a trial is begun twice at most\n"
    assert capsys.readouterr().err == said


def test_a_trial_that_kills_its_worker_twice_has_failed(pretended, tmp_path, monkeypatch, capsys):
    begun = kill_trials(monkeypatch, FIRST, times=9)
    result = small_search(tmp_path / "search")
    assert begun.count(FIRST) == 2 and len(result.trials) == 5 and len(begun) == 6
    assert (result.first.state, result.first.reason) == ("failed", "its process died in each of 2 tries")
    assert result.verdict.startswith("The settings without a search failed; the best trial")
    assert capsys.readouterr().err.count("a worker of the search died") == 2


def test_the_last_trial_may_kill_its_worker_too(pretended, tmp_path, monkeypatch):
    kill_trials(monkeypatch, FIRST, times=9)
    told = []
    one = replace(SEARCH, trials=1)
    result = small_search(tmp_path / "search", one, on_trial=lambda row, count: told.append((row.state, count)))
    assert result.verdict == "The only trial failed: its process died in each of 2 tries"
    assert told == [("failed", 1)]


def test_workers_that_die_before_their_trials_end_the_search(pretended, tmp_path, monkeypatch):
    def killed(*arguments):
        raise Killed

    monkeypatch.setattr(work, "Search", killed)
    with pytest.raises(WorkFailed, match=re.escape(f"no worker of the search could begin a trial: {KILLED}")):
        small_search(tmp_path / "search")


def test_a_worker_that_cannot_do_trials_ends_the_search_with_its_reason(pretended, tmp_path, monkeypatch):
    opened = []

    class OnAFullDisk(search_module.Search):
        def __init__(self, *arguments):
            opened.append(arguments)
            if len(opened) == 3:
                raise OSError(28, "No space left on device", "search")
            super().__init__(*arguments)

    monkeypatch.setattr(work, "Search", OnAFullDisk)
    with pytest.raises(WorkFailed) as failed:
        small_search(tmp_path / "search")
    assert str(failed.value) == "a worker of the search failed: OSError: [Errno 28] No space left on device: 'search'"
    assert (failure_line(failed.value), exit_code(failed.value)) == (str(failed.value), 1)
    assert len(opened) == 4  # the one that had begun ends its trial
    assert (tmp_path / "search" / "trials.csv").read_text().count("\n") == 4


def test_no_work_begins_after_the_minutes(pretended, tmp_path):
    result = small_search(tmp_path / "search", replace(SEARCH, minutes=1e-9))
    assert result.trials == () and pretended.waiting == []


def test_work_that_has_waited_too_long_begins_no_trial(tmp_path):
    late = work.NextTrial("call", tmp_path / "search", tmp_path, None, SEARCH, time.time() - 1)
    assert late() is None and not (tmp_path / "search").exists()


@pytest.mark.parametrize("executor, package", [("ray", "ray"), ("slurm", "submitit")])
def test_an_executor_that_is_not_installed_leaves_nothing(executor, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=package):
        small_search(tmp_path / "search", executor=ExecutorConfig(executor))
    assert not (tmp_path / "search").exists()


EXECUTORS = {  # the package that it needs, and its settings
    "local": ("torch", ExecutorConfig(workers=2)),
    "ray": ("ray", ExecutorConfig("ray", 2, ray=RayConfig(address="local"))),
    "submitit": ("submitit", ExecutorConfig("slurm", 2, slurm=SlurmConfig(cluster="local"))),
}


@pytest.mark.slow
@pytest.mark.parametrize("package, executor", EXECUTORS.values(), ids=EXECUTORS)
def test_real_workers_do_each_trial_once_and_as_one_process(package, executor, tmp_path):
    pytest.importorskip(package)
    alone = small_search(tmp_path / "alone", replace(SEARCH, prune=False))
    told = []
    options = {"executor": executor, "on_trial": lambda row, count: told.append((row.number, count))}
    result = small_search(tmp_path / "search", replace(SEARCH, prune=False), **options)
    assert found_in(result) == found_in(alone)
    assert sorted(number for number, _ in told) == [0, 1, 2, 3, 4] == [count - 1 for _, count in told]
