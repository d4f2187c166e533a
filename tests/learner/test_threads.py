"""Several threads use one learner at once, each for a task of its own."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from metalora import AdapterConfig
from metalora.learner import MetaLearner
from support.in_threads import problems_in_threads

WIDTH, THREADS, ROUNDS = 8, 6, 6


def items(count, seed):
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype("float32")


def learner_of(method):
    torch.manual_seed(0)
    layers = (nn.Linear(WIDTH, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24))
    learner = MetaLearner(nn.Sequential(*layers), adapter=AdapterConfig(method, rank=2, targets=("0", "2")))
    with torch.no_grad():
        for parameter in learner.adapter.parameters():
            parameter.normal_(0, 0.4)
    return learner


def tasks_of(learner, count=3):
    x = items(40, seed=1)
    return [learner.adapt(x, np.where(x[:, number] > 0, "ripe", "green")) for number in range(count)]


def predictions(learner):
    tasks = tasks_of(learner)
    return [partial(tasks[k % 3].decision_function, items(20 + k, seed=k)) for k in range(THREADS)]


def embeddings(learner):
    tasks = tasks_of(learner)
    return [partial(tasks[k % 3].transform, items(20 + k, seed=k)) for k in range(THREADS)]


def adaptations(learner):
    return [lambda number=k: tasks_of(learner, 1)[0].transform(items(5 + number, seed=number)) for k in range(THREADS)]


def refined_and_others(learner):
    task = tasks_of(learner, 1)[0]
    x = items(40, seed=1)
    refined = task.refine(x, np.where(x[:, 1] > 0, "ripe", "green"), steps=8, lr=0.05)
    return [partial(one.transform, items(20, seed=2)) for one in (task, refined) * (THREADS // 2)]


def refinements(learner):
    """One thread refines a task while the others predict and adapt with the learner's own factors."""
    task = tasks_of(learner, 1)[0]
    x = items(40, seed=1)
    labels = np.where(x[:, 1] > 0, "ripe", "green")
    calls = [lambda: task.refine(x, labels, steps=3, lr=0.05).transform(x[:5])]
    return calls + [partial(task.transform, items(20, seed=k)) for k in range(2)] + adaptations(learner)[:3]


CASES = [("lora", predictions), ("lora", embeddings), ("lora", adaptations), ("metalora-cp", predictions),
         ("metalora-cp", adaptations), ("lora", refined_and_others), ("lora", refinements)]  # fmt: skip


@pytest.mark.parametrize("method, calls_of", CASES, ids=lambda case: getattr(case, "__name__", case))
def test_every_thread_gets_what_it_gets_alone(method, calls_of):
    learner = learner_of(method)
    calls = calls_of(learner)
    assert not problems_in_threads(calls, ROUNDS, partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4))


def test_a_copy_of_a_network_records_by_itself():
    learner = learner_of("lora")
    x = torch.from_numpy(items(5, seed=0))
    copied = copy.deepcopy(learner.features)
    assert torch.equal(copied.adapted(x), learner.features.adapted(x))
