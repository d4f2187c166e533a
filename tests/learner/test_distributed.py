"""Two gloo processes meta-train one learner: other episodes in each, the same result in both, one folder."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from metalora.config import AdapterConfig
from metalora.learner import MetaLearner, finetune


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24))


def table():
    x = np.random.default_rng(0).normal(size=(120, 8)).astype("float32")
    return {"x": list(x), "first": (x[:, 0] > 0).tolist(), "second": (x[:, 1] > 0).tolist()}


def gathered(value):
    """The values of all processes, in their order."""
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def check(folder: Path) -> None:
    """Each process runs this."""
    losses = []
    adapter = AdapterConfig("lora", rank=2, targets=("0", "2"))
    learner = MetaLearner(network(), adapter=adapter, steps=6, validate_every=3, support=24, query=16)
    start = learner.fingerprint
    learner.fit(
        table(), report=False, checkpoint=folder / "training.pt", on_step=lambda step, loss: losses.append(loss)
    )
    first, second = gathered(losses)
    assert all(a != b for a, b in zip(first, second, strict=True)), "both processes drew the same episodes"
    fingerprints = gathered(learner.fingerprint)
    assert fingerprints[0] == fingerprints[1] != start
    learner.save_pretrained(folder / "learner")
    loaded = MetaLearner.from_pretrained(folder / "learner", backbone=network())
    assert loaded.fingerprint == learner.fingerprint

    columns = table()
    tuned = finetune(network(), columns["x"], columns["first"], adapter, steps=4, validate_every=2)
    tuned.save_pretrained(folder / "run")
    weights = gathered(tuned.adapter.factors["0.B"].tolist())
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_two_processes_train_one_learner(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run([*command, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["learner", "run"]


@pytest.mark.slow
def test_the_command_line_prints_once(tmp_path):
    rows = zip(*table().values(), strict=True)
    lines = ["\t".join(["text", "first", "second"])]
    lines += [f"number {x[0]:.2f} and {x[1]:.2f}\t{first}\t{second}" for x, first, second in rows]
    (tmp_path / "rows.tsv").write_text("\n".join(lines))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    fit = ["-m", "metalora.cli.main", "fit", tmp_path / "learner", "--backbone", "minilm", "--data"]
    small = ["--text-column", "text", "--steps", 1, "--support", 24, "--query", 16, "--max-length", 16]
    adapter = ["--adapter.rank", 2, "--adapter.targets", "query", "--report-episodes", 1]
    command = [*launch, *fit, tmp_path / "rows.tsv", *small, *adapter]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.count("this learner") in (2, 3)  # its row of the table, and the verdict
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("learner")] == ["learner"]


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    check(Path(sys.argv[1]))
    torch.distributed.destroy_process_group()
