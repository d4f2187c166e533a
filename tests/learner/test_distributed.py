"""Two gloo processes train what one process does that accumulates twice as many batches, and write one folder."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from metalora.config import AdapterConfig, ConditionConfig
from metalora.learner import MetaLearner, finetune
from support.fresh_process import run_together

pytest.importorskip("accelerate")
pytestmark = pytest.mark.slow
STATIC = AdapterConfig("lora", rank=2, targets=("1", "3"))
GENERATED = AdapterConfig("metalora-cp", rank=2, targets=("1", "3"), condition=ConditionConfig(scope="support"))
LEARNERS = {"static": {"adapter": STATIC}, "generated": {"adapter": GENERATED, "static_steps": 2}}
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
EXACT = {"rtol": 0, "atol": 0}
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


class Cast(nn.Module):
    """Gives inputs, which are prepared in float32, another dtype."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, x):
        return x.to(self.dtype)


def network(dtype=torch.float32):
    torch.manual_seed(0)
    layers = nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24)
    return nn.Sequential(Cast(dtype), *layers).to(dtype)


def table():
    x = np.random.default_rng(0).normal(size=(120, 8)).astype("float32")
    return {"x": list(x), "first": (x[:, 0] > 0).tolist(), "second": (x[:, 1] > 0).tolist()}


def learner_of(name, accumulate):
    settings = dict(steps=4, validate_every=2, support=24, query=16, accumulate=accumulate)
    # Adam enlarges what float32 rounds where the gradient of a mapping net is almost zero.
    dtype = torch.float64 if name == "generated" else torch.float32
    return MetaLearner(network(dtype), **LEARNERS[name], **settings)


def outcome(learner):
    """The numbers of a learner, its training and the scores of its report."""
    numbers = {**learner.adapter.state_dict(), **learner.trained_modules.state_dict()}
    return {
        "numbers": {key: value.clone() for key, value in numbers.items()},
        "history": learner.history_.to_dict(),
        "scores": learner.report_.to_dict()["scores"] if hasattr(learner, "report_") else None,
    }


def trained(name, accumulate, checkpoint=None, on_step=None):
    """What a learner is after a training; only the generated one makes a report."""
    learner = learner_of(name, accumulate)
    learner.fit(table(), checkpoint=checkpoint, on_step=on_step, report=name == "generated")
    return outcome(learner)


def interrupted(accumulate, checkpoint):
    """Leave the checkpoint of a training that is interrupted after three of its four steps."""

    def on_step(step, loss):
        if step == 2:
            signal.raise_signal(signal.SIGTERM)

    with contextlib.suppress(KeyboardInterrupt):
        trained("static", accumulate, checkpoint, on_step)


def fine_tuned(accumulate):
    """What a fine-tuned network is."""
    columns, settings = table(), dict(steps=4, validate_every=2, accumulate=accumulate)
    tuned = finetune(network(), columns["x"], columns["first"], STATIC, **settings)
    numbers = {**tuned.adapter.state_dict(), **tuned.head.state_dict()}
    return {"numbers": {key: value.clone() for key, value in numbers.items()}, "scores": tuned.scores_.to_dict()}


def check_processes(rank, folder):
    """Run everything with the other process, and write the results."""
    results = {name: trained(name, accumulate=1) for name in LEARNERS}
    results["fine-tuned"] = fine_tuned(accumulate=1)
    interrupted(1, folder / "of two")
    results["from one"] = trained("static", 1, folder / "of one" if rank == 0 else folder / "not here")
    torch.save(results, folder / f"{rank}.pt")


def assert_same(found, expected):
    """Numbers and losses are close, choices and scores the same."""
    assert found["numbers"].keys() == expected["numbers"].keys() and found["scores"] == expected["scores"]
    torch.testing.assert_close(found["numbers"], expected["numbers"], **CLOSE)
    if "history" in found:
        torch.testing.assert_close(found["history"]["losses"], expected["history"]["losses"], **CLOSE)
        assert found["history"]["accuracies"] == expected["history"]["accuracies"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def outcomes(folder):
    """The results of both processes, by what was trained."""
    interrupted(2, folder / "of one")
    ended = run_together(__file__, [[rank, folder] for rank in (0, 1)], [{}, {}])
    assert [process.returncode for process in ended] == [0, 0], [process.stderr[-3000:] for process in ended]
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", LEARNERS)
def test_a_learner_is_that_of_one_process_that_accumulates(name, outcomes):
    first, second = (results[name] for results in outcomes)
    torch.testing.assert_close(first["numbers"], second["numbers"], **EXACT)
    assert first["history"] == second["history"] and first["scores"] == second["scores"]
    assert_same(first, trained(name, accumulate=2))


def test_a_fine_tuned_network_is_that_of_one_process_that_accumulates(outcomes):
    first, second = (results["fine-tuned"] for results in outcomes)
    torch.testing.assert_close(first["numbers"], second["numbers"], **EXACT)
    assert_same(first, fine_tuned(accumulate=2))


def test_a_training_continues_on_another_number_of_processes(outcomes, folder):
    uninterrupted = outcomes[0]["static"]
    assert_same(outcomes[0]["from one"], uninterrupted)
    assert_same(outcomes[1]["from one"], uninterrupted)
    assert_same(trained("static", 2, folder / "of two"), uninterrupted)


# ---- the command line -----------------------------------------------------------------------------------------------
@pytest.fixture
def rows(tmp_path):
    """A file of texts with two columns of labels."""
    lines = ["\t".join(["text", "first", "second"])]
    for x, first, second in zip(*table().values(), strict=True):
        lines.append(f"number {x[0]:.2f} and {x[1]:.2f}\t{first}\t{second}")
    (tmp_path / "rows.tsv").write_text("\n".join(lines))
    return tmp_path / "rows.tsv"


def launched(*command, launch=LAUNCH):
    """How a command that two processes run ended."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*map(str, [*launch, *command])], env=environment, capture_output=True, text=True)


def fit_command(folder, rows, *more):
    fit = ["-m", "metalora.cli.main", "fit", folder, "--backbone", "minilm", "--data", rows, "--text-column", "text"]
    small = ["--support", 24, "--query", 16, "--max-length", 16, "--report-episodes", 1]
    return [*fit, *small, "--adapter.rank", 2, "--adapter.targets", "query", *more]


def test_fit_prints_once(rows):
    finished = launched(*fit_command(rows.with_name("learner"), rows, "--steps", 1))
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.count("this learner") in (2, 3)  # its row of the table, and the verdict
    assert sorted(path.name for path in rows.parent.iterdir()) == ["learner", "rows.tsv"]


def test_a_mistake_is_told_once(rows):
    finished = launched(*fit_command(rows.with_name("learner"), rows.with_name("nothing.tsv"), "--steps", 1))
    assert finished.returncode != 0 and finished.stderr.count("metalora: ") == 1, finished.stderr[-3000:]


def test_finetune_under_accelerate_launch(rows):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    words = ["finetune", "minilm", "--data", rows, "--label-column", "first", "--text-column", "text", "--steps", 2]
    small = ["--batch-size", 4, "--max-length", 16, "--rank", 2, "--targets", "query", "--out", rows.with_name("tuned")]
    finished = launched("-m", "metalora.cli.main", *words, *small, "--json", launch=launch)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert json.loads(finished.stdout)["inputs"] == 24


def test_a_signal_to_the_launcher_keeps_a_checkpoint(rows):
    folder = rows.with_name("learner")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*map(str, [*LAUNCH, *fit_command(folder, rows, "--steps", 400, "--validate-every", 2)])]
    running = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    checkpoint = folder.with_name("learner.training.pt")
    while not checkpoint.exists():
        assert running.poll() is None, running.communicate()
        time.sleep(0.1)
    running.send_signal(signal.SIGTERM)
    _, told = running.communicate()
    assert told.count("metalora: stopped") == 1 and checkpoint.exists()


if __name__ == "__main__":
    own_rank, shared = int(sys.argv[1]), Path(sys.argv[2])
    torch.distributed.init_process_group("gloo", init_method=f"file://{shared}/group", rank=own_rank, world_size=2)
    check_processes(own_rank, shared)
    torch.distributed.destroy_process_group()
