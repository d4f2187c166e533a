"""Every method on new tasks of points that the tests make: accuracies, costs, the learner in the cache."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from metalora.config import TrainConfig
from metalora.learner import ArrayPreprocessor, Backbone, MetaLearner
from metalora.learner.head import LinearHead
from metalora_papers.execution import execute
from metalora_papers.metalora.labelled_items import LabelledItems, Notion
from metalora_papers.new_task import learners
from metalora_papers.new_task import suite as suite_module
from metalora_papers.new_task.config import TEXTS, NewTaskRunConfig, NewTaskTableConfig
from metalora_papers.new_task.cost import energy_counters, joules_between
from metalora_papers.new_task.items import new_task
from metalora_papers.new_task.line_up import (
    FINE_TUNINGS,
    FULL,
    FULL_OF_STAGES,
    LORA,
    LORA_OF_STAGES,
    METHODS,
    READOUT,
    Schedule,
    run_of,
    schedules_of,
)
from metalora_papers.new_task.methods import make_fit
from metalora_papers.new_task.throughput import ThroughputSuite

TARGETS = ("0", "2")
TABLE = NewTaskTableConfig(
    text_steps=2,
    text_fit_steps=(2,),
    contrastive_steps=(2,),
    refining_steps=(2,),
    text_tasks=("near",),
    support=40,
    queries=30,
)
GROUPS = torch.arange(360) // 2


class Points(LabelledItems):
    """Items that are arrays, not pictures."""

    def _inputs(self, rows):
        return self.inputs[rows]


def points():
    """360 points in groups of two: "left" and "high" are trained, "near" is not."""
    values = torch.randn(360, 4, generator=torch.Generator().manual_seed(0))
    notions = {
        name: Notion(codes.long(), ("no", "yes"))
        for name, codes in (("left", values[:, 0] < 0), ("high", values[:, 1] > 0), ("near", values[:, 2] < 0.2))
    }
    parts = {name: (GROUPS % 3 == k).nonzero()[:, 0] for k, name in enumerate(("train", "val", "test"))}
    return Points("points", values, notions, GROUPS, parts, ("left", "high"), ("near",))


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    return Backbone(model.requires_grad_(False).eval(), ArrayPreprocessor())


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Points and a small network instead of sentences and MiniLM; an empty cache."""
    monkeypatch.setenv("METALORA_CACHE", str(tmp_path))
    monkeypatch.setattr(suite_module, "load_items", lambda suite, data_root: points())
    monkeypatch.setattr(suite_module, "load_network", lambda suite: network())


def run_on_points(method, **changes):
    run = run_of(TEXTS, TABLE, method, 0, next(iter(schedules_of(TEXTS, method, TABLE)), Schedule()))
    learner = run.learner and dataclasses.replace(run.learner, targets=TARGETS)
    train = TrainConfig(steps=2, lr=1e-3, mapping_lr_ratio=1.0)
    return dataclasses.replace(run, targets=TARGETS, learner=learner, train=train, pool=100, **changes)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_a_new_task(method):
    results = execute(run_on_points(method)).row["results"]
    scores = results["tasks"]["near"]
    assert 0.6 < scores["accuracy"] <= 1 and results["mean"] == scores["accuracy"]  # one of two classes: 0.5 by chance
    assert min(scores["seconds"], scores["cpu_seconds"], scores["seconds_of_100"], scores["bytes"]) > 0
    assert (results["training"] is not None) == (method.startswith("generated"))


def test_support_and_queries_share_no_group_and_every_method_has_the_same():
    first, second = (new_task(points(), "near", run_on_points(method)) for method in METHODS[:2])
    assert np.array_equal(first.inputs, second.inputs) and first.query_labels == second.query_labels
    of_group = dict(zip(map(tuple, points().inputs.tolist()), GROUPS.tolist(), strict=True))
    assert not set(first.groups) & {of_group[tuple(query.tolist())] for query in first.queries}


def test_a_learner_is_trained_once():
    first, second = (execute(run_on_points(READOUT)).row["results"] for _ in range(2))
    assert first["training"] == second["training"] and first["mean"] == second["mean"]
    changed = run_on_points(READOUT)
    changed = dataclasses.replace(changed, train=dataclasses.replace(changed.train, steps=3))
    assert execute(changed).row["results"]["training"] != first["training"]


def test_a_learner_is_trained_anew_by_other_code(monkeypatch, tmp_path):
    code = tmp_path / "training.py"
    monkeypatch.setattr(learners, "OWN_FILES", (code,))
    costs = []
    for text in ("rate = 1", "rate = 2", "rate = 1"):
        code.write_text(text)
        costs.append(execute(run_on_points(READOUT)).row["results"]["training"])
    assert costs[0] == costs[2] != costs[1]


def test_a_peer_reads_what_a_readout_reads():
    read = []

    def features(method):
        task = new_task(points(), "near", run_on_points(method))
        make_fit(run_on_points(method), network(), None)(task)
        return read.pop()

    original = LinearHead.fitted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LinearHead, "fitted", lambda rows, *rest: read.append(rows) or original(rows, *rest))
        widths = {method: features(method).shape[1] for method in FINE_TUNINGS}
    assert widths == {LORA: 8, LORA_OF_STAGES: 35, FULL: 8, FULL_OF_STAGES: 35}
    assert MetaLearner(network(), adapter=None).frozen_features(points().inputs[:2].numpy()).shape[1] == 35


def test_many_tasks_at_once():
    run = NewTaskRunConfig(suite="new-task-throughput", method="64 tasks", rank=2, steps=1)
    results = execute(run, suite=ThroughputSuite(run, layers=1, tasks=2)).row["results"]
    rates = [value["tasks_per_second"] for value in results["tasks"].values()]
    assert len(rates) == 2 and min(rates) > 0 and results["peft_runs"] == 2
    assert results["ratio"]["low"] <= results["ratio"]["median"] <= results["ratio"]["high"]


def write_counter(folder, name, value, largest=1_000_000):
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    (place / "energy_uj").write_text(f"{value}\n")
    (place / "max_energy_range_uj").write_text(f"{largest}\n")


def test_joules_are_those_of_the_processors(tmp_path):
    write_counter(tmp_path, "intel-rapl:0", 900_000)  # starts again from zero
    write_counter(tmp_path, "intel-rapl:1", 100_000)
    write_counter(tmp_path, "intel-rapl:0:0", 5)  # a part of the first one, which must not count twice
    before = energy_counters(tmp_path)
    write_counter(tmp_path, "intel-rapl:0", 200_000)
    write_counter(tmp_path, "intel-rapl:1", 350_000)
    write_counter(tmp_path, "intel-rapl:0:0", 99_999)
    assert joules_between(before, energy_counters(tmp_path)) == pytest.approx(0.3 + 0.25)
    assert joules_between(before, {}) is None
    assert energy_counters(tmp_path / "missing") == {} and joules_between({}, {}) is None
