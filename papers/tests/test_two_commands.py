"""Two commands on one folder, one of which is killed in the middle: no row is lost, and none is there twice."""

import os
import signal
import subprocess
import sys
import time

import pytest

from metalora.bench.store import RowStore
from metalora_papers.config import TableConfig
from metalora_papers.jobs import key_of
from metalora_papers.metalora.table import ImageComparison

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*stale claim")]
METHODS, SEEDS = ("original", "lora"), (0, 1, 2)
TABLE = TableConfig(data="digits", steps=2, pretrain_steps=3, methods=METHODS, test_episodes=1, seeds=SEEDS)
FLAGS = "--data digits --steps 2 --pretrain-steps 3 --methods original lora --test-episodes 1 --seeds 0 1 2".split()
SECONDS = 900


def start(folder, *flags):
    """The command on a folder, in a process group of its own."""
    command = [sys.executable, "-m", "metalora_papers.cli", "table", "metalora", *FLAGS, "--out", folder, *flags]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def wait_for_rows(store, count):
    end = time.monotonic() + SECONDS
    while len(store.rows()) < count and time.monotonic() < end:
        time.sleep(0.1)


OTHERS = {  # the package that it needs, and the flags of the command that is not killed
    "one process": ("timm", ("--workers", "1")),
    "two processes": ("timm", ("--workers", "2")),
    "ray": ("ray", ("--executor", "ray")),
    "submitit": ("submitit", ("--executor", "slurm", "--slurm.cluster", "local")),
}


@pytest.mark.parametrize("package, flags", OTHERS.values(), ids=OTHERS)
def test_a_table_is_finished_though_one_of_two_commands_is_killed(package, flags, tmp_path, monkeypatch):
    pytest.importorskip("timm")
    pytest.importorskip(package)
    monkeypatch.setenv("METALORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RAY_ADDRESS", "local")
    store = RowStore(tmp_path / "out" / "rows.jsonl")
    killed, other = start(tmp_path / "out", "--workers", "2"), start(tmp_path / "out", *flags)
    try:
        wait_for_rows(store, 1)
        os.kill(killed.pid, signal.SIGKILL)
        assert other.wait(SECONDS) == 0, other.stdout.read()
    finally:
        for process in (killed, other):
            process.kill()
            process.communicate()
    rows = store.rows()
    comparison = ImageComparison("metalora", TABLE)
    expected = [key_of(run) for run in comparison.runs({})]
    assert sorted(row["key"] for row in rows) == sorted(expected) and len(rows) == 6
    assert not list((tmp_path / "out" / "rows.jsonl.claims").glob("*.json"))
    assert not list((tmp_path / "out" / "checkpoints").glob("*"))
