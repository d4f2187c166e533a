"""The whole learner on a second device: what it says is what it says on the CPU."""

import asyncio
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from metalora import AdapterConfig, ConditionConfig, ConditionTable
from metalora.learner import AdaptedTask, FineTuned, MetaLearner, finetune, read_tasks
from metalora.learner.report import evaluate_pools
from metalora.serving.config import ServingConfig
from metalora.serving.engine import Engine
from metalora.serving.metrics import Metrics
from support.second_device import CARD, counting_waits

WIDTH = 6
SUPPORT = ConditionConfig(scope="support", hidden=8)
ADAPTERS = {
    "none": None,
    "static": AdapterConfig("lora", rank=2, targets=("0", "2")),
    "generated": AdapterConfig("metalora-cp", rank=2, targets=("0", "2"), condition=SUPPORT),
    "ring": AdapterConfig("metalora-tr", rank=2, targets=("0", "2"), condition=SUPPORT),
}
CLOSE = dict(rtol=1e-3, atol=1e-4)  # features are float32, and a training multiplies their last bits


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 10), nn.ReLU(), nn.Linear(10, 10))


def items(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype("float32")


def table(count=60):
    x = items(count)
    return {"x": list(x), "first": (x[:, 0] > 0).tolist(), "second": (x[:, 1] + x[:, 2] > 0).tolist()}


X, QUERIES = items(24, seed=3), items(7, seed=4)
Y = np.where(X[:, 0] > 0, "ripe", "green")


@cache
def fitted(adapter, readout, device):
    settings = {"steps": 1, "validate_every": 0, "support": 12, "query": 8, "label_sets": 2}
    learner = MetaLearner(network(), adapter=ADAPTERS[adapter], readout=readout, device=device, **settings)
    return learner.fit(table(), report=False)


def assert_on_device(learner):
    modules = (learner.backbone.model, learner.readout, *(m for m in (learner.adapter, learner.generator) if m))
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    assert {tensor.device.type for tensor in tensors} == {CARD}


CASES = [
    *((adapter, "kernel-ridge") for adapter in ("none", "static", "generated")),
    *(("static", readout) for readout in ("lda", "prototype", "knn")),
    pytest.param("static", "logistic", marks=pytest.mark.slow),
    pytest.param("ring", "kernel-ridge", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("adapter, readout", CASES)
def test_what_it_learns_and_says(adapter, readout):
    learner, reference = fitted(adapter, readout, CARD), fitted(adapter, readout, "cpu")
    assert_on_device(learner)
    np.testing.assert_allclose(learner.history_.losses, reference.history_.losses, **CLOSE)
    task, expected = (which.adapt(X, Y) for which in (learner, reference))
    np.testing.assert_allclose(task.predict_proba(QUERIES), expected.predict_proba(QUERIES), **CLOSE)
    assert task.predict(QUERIES).tolist() == expected.predict(QUERIES).tolist()
    for value, right in zip(task.predict_with_novelty(QUERIES), expected.predict_with_novelty(QUERIES), strict=True):
        assert value.tolist() == right.tolist() if value.dtype.kind == "U" else np.allclose(value, right, **CLOSE)
    more = [which.add(X[:4], Y[:4]).predict_proba(QUERIES) for which in (task, expected)]
    np.testing.assert_allclose(*more, **CLOSE)
    for limit in (None, 6000):
        read = AdaptedTask.from_bytes(task.to_bytes(max_bytes=limit), learner)
        np.testing.assert_allclose(read.predict_proba(QUERIES), task.predict_proba(QUERIES), atol=0.05)


@pytest.mark.parametrize("adapter", [pytest.param("static", marks=pytest.mark.slow), "generated"])
def test_many_tasks_numbers_refinement_and_folders(adapter, tmp_path):
    learner, reference = fitted(adapter, "kernel-ridge", CARD), fitted(adapter, "kernel-ridge", "cpu")
    many = learner.adapt_many([(X, Y), (X[:12], Y[:12])])
    for task, count in zip(many, (24, 12), strict=True):
        alone = learner.adapt(X[:count], Y[:count])
        np.testing.assert_allclose(task.predict_proba(QUERIES), alone.predict_proba(QUERIES), **CLOSE)
    numbers = [which.adapt(X, X[:, 0]).predict(QUERIES) for which in (learner, reference)]
    np.testing.assert_allclose(*numbers, **CLOSE)
    refined = [which.adapt(X, Y).refine(X, Y, steps=2).predict_proba(QUERIES) for which in (learner, reference)]
    np.testing.assert_allclose(*refined, **CLOSE)
    learner.save_pretrained(tmp_path / "learner")
    again = MetaLearner.from_pretrained(tmp_path / "learner", backbone=network(), device=CARD)
    assert_on_device(again)
    many[0].save_pretrained(tmp_path / "task")
    task = AdaptedTask.from_pretrained(tmp_path / "task", again)
    np.testing.assert_allclose(task.predict_proba(QUERIES), many[0].predict_proba(QUERIES), **CLOSE)


@pytest.mark.slow
def test_a_training_with_validation():
    settings = {"steps": 2, "validate_every": 1, "support": 12, "query": 8}
    first, second = (MetaLearner(network(), adapter=ADAPTERS["static"], device=d, **settings) for d in (CARD, "cpu"))
    curves = [learner.fit(table(), report=False).history_.accuracies for learner in (first, second)]
    accuracies = [[accuracy for _, accuracy in curve] for curve in curves]
    assert len(accuracies[0]) > 1 and accuracies[0] == pytest.approx(accuracies[1], abs=0.02)


@pytest.mark.slow
def test_an_evaluation_and_a_classifier():
    learner, reference = fitted("static", "kernel-ridge", CARD), fitted("static", "kernel-ridge", "cpu")
    pools = read_tasks(table())
    means = [evaluate_pools(which, pools, episodes=1).means() for which in (learner, reference)]
    assert means[0] == pytest.approx(means[1], abs=0.02)
    classifiers = [which.as_classifier().fit(X, Y).predict_proba(QUERIES) for which in (learner, reference)]
    np.testing.assert_allclose(*classifiers, **CLOSE)


@pytest.mark.parametrize("method", ["lora", "full", "head"])
def test_a_fine_tuning_and_its_folder(method, tmp_path):
    config = ADAPTERS["static"] if method == "lora" else method
    settings = {"steps": 2, "validate_every": 2, "batch_size": 16}
    tuned, expected = (finetune(network(), X, Y, config, device=device, **settings) for device in (CARD, "cpu"))
    np.testing.assert_allclose(tuned.predict_proba(QUERIES), expected.predict_proba(QUERIES), **CLOSE)
    again = FineTuned.from_pretrained(tuned.save_pretrained(tmp_path / "tuned"), backbone=network(), device=CARD)
    np.testing.assert_allclose(again.predict_proba(QUERIES), tuned.predict_proba(QUERIES), **CLOSE)


def test_the_engine_serves_many_tenants_in_one_batch():
    learner = fitted("generated", "kernel-ridge", CARD)
    tasks = [learner.adapt(items(20, seed), np.where(items(20, seed)[:, 0] > 0, "a", "b")) for seed in range(3)]
    contents = [task.to_bytes(max_bytes=20_000) for task in tasks]
    engine = Engine(learner, ServingConfig(max_rows=64), Metrics())
    prepare = learner.backbone.preprocessor.encode
    encoded, support = prepare(QUERIES), prepare(X)

    async def serve():
        cold = [engine.task_of(content) for content in contents]
        served = asyncio.gather(*(engine.outputs(number, task, encoded) for number, task in enumerate(cold)))
        adapted = engine.run(0, len(X), lambda learner: learner.adapt(support, Y).to_bytes())
        return await served, await adapted

    outputs, adapted = asyncio.run(serve())
    engine.close()
    for output, content in zip(outputs, contents, strict=True):
        alone = AdaptedTask.from_bytes(content, learner, conditions=ConditionTable())
        np.testing.assert_allclose(output.logits, alone.decision_function(QUERIES), rtol=1e-3, atol=1e-3)
    right = learner.adapt(X, Y).predict_proba(QUERIES)
    np.testing.assert_allclose(AdaptedTask.from_bytes(adapted, learner).predict_proba(QUERIES), right, **CLOSE)
    half = Engine(learner, ServingConfig(dtype="bfloat16"), Metrics())
    output = asyncio.run(half.outputs(0, tasks[0], encoded))
    half.close()
    exact = tasks[0].decision_function(QUERIES)
    assert 0 < np.abs(output.logits.numpy() - exact).max() < 0.3


def test_how_often_it_waits():
    """A step reads its loss; a label set checks features twice and three decompositions. The CPU knows the rest."""
    steps, label_sets = 3, 2
    settings = {"steps": steps, "label_sets": label_sets, "validate_every": 0, "device": CARD}
    learner = MetaLearner(network(), adapter=ADAPTERS["static"], **settings)
    with counting_waits() as waits:
        learner.fit(table(), report=False)
    in_steps = [wait for wait in waits if not wait.startswith("learner/learner.py")]  # which reads frozen statistics
    assert len(in_steps) == steps * (1 + 5 * label_sets), waits
    with counting_waits() as waits:
        task = learner.adapt(X, Y)
    assert len(waits) <= 280, waits  # 11 for each of three kernels and of eight parts
    with counting_waits() as waits:
        task.predict(QUERIES)
    assert len(waits) <= 3, waits
