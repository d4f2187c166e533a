"""Many runs of which some fail, and some are another process's; the runs themselves are made up."""

import json
import time
from types import SimpleNamespace

import pytest

from metalora.bench.leases import Leases
from metalora.bench.processes import Process
from metalora.bench.store import RowStore, finished_row
from metalora.executors.executor import Ended, ThisProcess, WorkFailed
from metalora_papers import jobs, scheduler
from metalora_papers.config import RunConfig
from metalora_papers.execution import Outcome
from metalora_papers.jobs import Job, key_of
from metalora_papers.scheduler import run_all

RUNS = [RunConfig(method=method, data="digits", seed=seed) for method in ("original", "other") for seed in (0, 1)]


def row_of(config):
    """A row as a run would have written it."""
    return json.loads(json.dumps(finished_row(config, {"num_params": 0}, time.monotonic())))


@pytest.fixture
def executed(monkeypatch):
    """The runs that are executed, at once and without data; the one of `broken` fails."""
    runs = []

    def execute(config, **_):
        runs.append(config)
        if config == executed.broken:
            raise RuntimeError("out of memory")
        return Outcome(row_of(config), None, None)

    executed = SimpleNamespace(runs=runs, broken=None)
    monkeypatch.setattr(jobs, "execute", execute)
    return executed


def rows_in(folder):
    return RowStore(folder / "rows.jsonl").rows()


def test_every_run_gets_one_row_and_is_reported_once(executed, tmp_path):
    done = []
    rows = run_all(RUNS[:2], tmp_path, on_done=done.append)
    assert done == executed.runs == RUNS[:2] and rows == rows_in(tmp_path)
    assert [row["key"] for row in run_all(RUNS, tmp_path, on_done=done.append)] == [*map(key_of, RUNS)]
    assert executed.runs == RUNS and done == [*RUNS[:2], *RUNS]
    assert not (tmp_path / "failures").exists()


def test_runs_of_another_process_are_waited_for(executed, tmp_path, monkeypatch, capsys):
    waited, done = [], []
    other = Leases(tmp_path / "rows.jsonl.claims", holder=Process("elsewhere", None, None, 1, None))
    assert other.take(key_of(RUNS[1]))

    def sleep(seconds):
        waited.append(seconds)
        if len(waited) == 3:  # by now the other process has done it
            RowStore(tmp_path / "rows.jsonl").append(row_of(RUNS[1]))
            other.give_back(key_of(RUNS[1]), for_good=True)

    monkeypatch.setattr(scheduler, "time", SimpleNamespace(sleep=sleep))
    assert len(run_all(RUNS, tmp_path, on_done=done.append)) == 4 == len(rows_in(tmp_path))
    assert executed.runs == [RUNS[0], RUNS[2], RUNS[3]] == done[:3] and done[3:] == [RUNS[1]]
    assert len(waited) == 3
    assert capsys.readouterr().err == "waiting for runs that other processes are at: 1\n"


@pytest.mark.filterwarnings("ignore:.*stale claim")
def test_runs_of_a_process_that_died_are_done_here(executed, tmp_path):
    here = Process.this()
    dead = Process(here.host, here.boot, here.numbering, 2**22 + 1, 1)
    assert Leases(tmp_path / "rows.jsonl.claims", holder=dead).take(key_of(RUNS[1]))
    assert len(run_all(RUNS[:2], tmp_path)) == 2
    assert executed.runs == RUNS[:2]


def test_a_run_that_fails_stops_no_other_and_is_tried_again(executed, tmp_path, capsys):
    executed.broken = RUNS[1]
    with pytest.raises(WorkFailed, match="^1 of 4 runs failed; the errors are in .*/failures"):
        run_all(RUNS, tmp_path)
    assert executed.runs == RUNS and len(rows_in(tmp_path)) == 3
    failure = tmp_path / "failures" / f"{key_of(RUNS[1])}.txt"
    assert "RuntimeError: out of memory" in failure.read_text() and "seed=1" in failure.read_text()
    said = "failed: original, seed 1: unexpected RuntimeError: out of memory (METALORA_TRACEBACK=1 shows where)"
    assert capsys.readouterr().err == f"{said} ({failure})\n"
    executed.broken = None
    assert len(run_all(RUNS, tmp_path)) == 4 and executed.runs == [*RUNS, RUNS[1]]
    assert not failure.exists() and not list((tmp_path / "rows.jsonl.claims").iterdir())


class Mortal:
    """An executor whose process dies of each run, before or after it has added its row."""

    workers = 1

    def __init__(self, when):
        self.when = when

    def start(self, work):
        self.work = work
        if self.when == "after":
            work()

    def wait(self):
        return [Ended(self.work, death="its process was ended by SIGKILL (Killed)")]


def test_a_run_whose_process_dies_is_a_failure_that_says_so(executed, tmp_path, capsys):
    with pytest.raises(WorkFailed, match="^1 of 1 runs failed"):
        run_all(RUNS[:1], tmp_path, executor=Mortal("before"))
    assert "ended by SIGKILL" in Job(RUNS[0], tmp_path).failure_file.read_text()
    assert capsys.readouterr().err.startswith("failed: original, seed 0: its process was ended by SIGKILL (Killed)")


def test_a_process_that_dies_after_its_row_was_added_is_no_failure(executed, tmp_path):
    assert len(run_all(RUNS[:1], tmp_path, executor=Mortal("after"))) == 1
    assert not (tmp_path / "failures").exists()


def test_a_run_whose_claim_was_lost_adds_no_second_row(tmp_path, monkeypatch):
    """Another machine took it over while this one was asleep, and was faster."""
    row = row_of(RUNS[0])

    def sleepy(config, **_):
        RowStore(tmp_path / "rows.jsonl").append({**row, "by": "another"})
        return Outcome(row, None, None)

    monkeypatch.setattr(jobs, "execute", sleepy)
    monkeypatch.setattr(jobs, "save", lambda *_, **__: pytest.fail("the adapter of the other one was replaced"))
    assert run_all(RUNS[:1], tmp_path) == [{**row, "by": "another"}] == rows_in(tmp_path)


class TwoAtATime(ThisProcess):
    """Two workers, which is all that tells it from this process."""

    workers = 2


def test_a_backbone_that_runs_share_is_made_before_them(executed, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(jobs, "open_suite", lambda config: opened.append((config, len(executed.runs))))
    run_all(RUNS, tmp_path, executor=TwoAtATime())
    assert opened == [(RUNS[-1], 0)] and len(executed.runs) == 4
