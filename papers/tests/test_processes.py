"""A run that two gloo processes make together has the row and the adapter that one process makes."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from metalora_papers.registry import load_run
from metalora_papers.scheduler import run_one

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*the condition is ignored")]
RUN = """
suite: attributes
method: metalora-cp
adapter: {method: metalora-cp, rank: 2, clip_rank: true, condition: {scope: support, hidden: 4}}
data: digits
backbone: {steps: 3, batch: 16}
train: {steps: 3, accumulate: 2}
episodes: {trained: [class, frame], held_out: [scale], support: 12, query: 8, test_support: 36, test_query: 12,
           test_episodes: 1}
"""
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture
def run_file(tmp_path, monkeypatch):
    pytest.importorskip("timm")
    pytest.importorskip("accelerate")
    monkeypatch.setenv("METALORA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "run.yaml").write_text(RUN)
    return tmp_path / "run.yaml"


def train_on_two(run_file, out):
    """How `metalora-papers train` ends on two processes."""
    command = [*LAUNCH, "-m", "metalora_papers.cli", "train", run_file, "--out", out, "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)


def test_two_processes_make_the_row_of_one(run_file, tmp_path):
    finished = train_on_two(run_file, tmp_path / "two")
    assert finished.returncode == 0, finished.stderr[-3000:]
    together = json.loads(finished.stdout)
    alone = run_one(load_run(run_file), tmp_path / "one")
    assert together["key"] == alone["key"] and len((tmp_path / "two" / "rows.jsonl").read_text().splitlines()) == 1
    assert together["results"]["loss"] == pytest.approx(alone["results"]["loss"], abs=1e-6)
    adapters = [load_file(tmp_path / name / "adapters" / f"{alone['key']}.safetensors") for name in ("one", "two")]
    torch.testing.assert_close(*adapters, rtol=1e-3, atol=1e-6)  # rounded to float16


def test_processes_that_cannot_share_the_batches_of_a_step_are_refused(run_file, tmp_path):
    run_file.write_text(RUN.replace("accumulate: 2", "accumulate: 3"))
    finished = train_on_two(run_file, tmp_path / "two")
    assert finished.returncode != 0 and "train.accumulate is 3, and 2 processes cannot share" in finished.stderr
