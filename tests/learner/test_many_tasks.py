"""Rows of many tasks in one pass: each task gets what it gets alone, whatever its labels, readout and adapter are."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from metalora import AdapterConfig, ConditionConfig, ConditionTable
from metalora.learner import AdaptedTask, MetaLearner
from metalora.learner.many_tasks import outputs_of_many
from support.adapters import randomise
from support.in_threads import problems_in_threads
from support.small_transformers import small_model
from support.word_texts import WORDS, text_preprocessor

WIDTH = 8
SUPPORT = ConditionConfig(scope="support", hidden=6)
ADAPTERS = {
    "static": AdapterConfig("lora", rank=2, targets=("0", "2")),
    "support": AdapterConfig("metalora-cp", rank=2, targets=("0", "2"), condition=SUPPORT),
    "per example": AdapterConfig(
        "metalora-tr", rank=2, targets=("0", "2"), condition=ConditionConfig(scope="sample", hidden=6)
    ),
    "none": None,
}
READOUTS = ("kernel-ridge", "lda", "prototype", "knn", "logistic")


def items(count, seed):
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype("float32")


def learner_of(adapter="support", readout="kernel-ridge"):
    torch.manual_seed(0)
    layers = (nn.Linear(WIDTH, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24))
    learner = MetaLearner(nn.Sequential(*layers), adapter=ADAPTERS[adapter], readout=readout)
    if learner.adapter is not None:
        randomise(learner.adapter, 0.4)
    return learner


def tasks_of(learner, kinds=("classes", "three classes", "classes")):
    tasks = []
    for number, kind in enumerate(kinds):
        x = items(24, seed=number)
        first, second = x[:, number % 3] > 0, x[:, 3] > 0.2
        labels = {
            "classes": np.where(first, "ripe", "green").tolist(),
            "three classes": np.where(second, 2, first.astype(int)).tolist(),
            "numbers": (2.5 * x[:, 1] + 0.125).tolist(),
            "multilabel": np.stack([first, second], 1).astype(int).tolist(),
        }[kind]
        tasks.append(learner.adapt(x, labels, kind="classes" if kind == "three classes" else kind))
    return tasks


def check_each_alone(learner, tasks, counts, **arguments):
    x = items(sum(counts), seed=9)
    outputs = outputs_of_many(learner, torch.from_numpy(x), tasks, counts, **arguments)
    for task, part, output in zip(tasks, np.split(x, np.cumsum(counts)[:-1]), outputs, strict=True):
        if not len(part):
            assert len(output.logits) == len(output.novelty) == len(output.embeddings) == 0
            continue
        logits, novelty = task.predict_with_novelty(part)
        np.testing.assert_allclose(output.logits.numpy(), logits, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(output.novelty.numpy(), novelty, atol=1e-6)
        np.testing.assert_allclose(output.embeddings.numpy(), task.transform(part), rtol=1e-5, atol=1e-5)
        labels = task.labels.decode(output.logits.numpy())
        expected = task.predict(part)
        if task.kind == "numbers":
            np.testing.assert_allclose(labels, expected, rtol=1e-5, atol=1e-5)
        else:
            assert list(labels) == list(expected)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_each_task_gets_what_it_gets_alone(adapter):
    learner = learner_of(adapter)
    tasks = tasks_of(learner, ("classes", "three classes", "numbers", "multilabel"))
    check_each_alone(learner, tasks, [3, 1, 2, 4])
    check_each_alone(learner, tasks[::-1], [1, 1, 1, 1])
    check_each_alone(learner, tasks, [0, 5, 0, 1])


@pytest.mark.parametrize("readout", READOUTS)
def test_with_every_readout(readout):
    learner = learner_of(readout=readout)
    check_each_alone(learner, tasks_of(learner), [2, 3, 1])


@pytest.mark.parametrize("readout", ("kernel-ridge", "lda", "prototype"))
def test_tasks_from_bytes_full_and_compact(readout):
    learner = learner_of(readout=readout)
    tasks = tasks_of(learner)
    full = [AdaptedTask.from_bytes(task.to_bytes(), learner) for task in tasks]
    compact = [AdaptedTask.from_bytes(task.to_bytes(max_bytes=4_000), learner) for task in tasks]
    check_each_alone(learner, [*full, *compact, *tasks], [1, 2, 3] * 3)


def test_conditions_from_a_table():
    learner = learner_of()
    tasks = tasks_of(learner)
    table = ConditionTable.of([task.condition for task in reversed(tasks)])
    check_each_alone(learner, tasks, [2, 1, 3], conditions=table.take([2, 1, 0]))
    with pytest.raises(ValueError, match="2 conditions for 3 tasks"):
        check_each_alone(learner, tasks, [2, 1, 3], conditions=table.take([2, 1]))


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_tasks_whose_conditions_are_in_a_table(adapter):
    learner, table = learner_of(adapter), ConditionTable()
    made = tasks_of(learner)
    contents = [task.to_bytes() for task in made]
    tasks = [AdaptedTask.from_bytes(content, learner, conditions=table) for content in contents]
    assert len(table) == (3 if adapter == "support" else 0)
    check_each_alone(learner, tasks, [2, 1, 3])
    x = torch.from_numpy(items(6, seed=9))
    for output, expected in zip(*(outputs_of_many(learner, x, each, [2, 1, 3]) for each in (tasks, made)), strict=True):
        torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=0)
    assert [task.to_bytes() for task in tasks] == contents
    del tasks
    assert len(table) == 0


@pytest.mark.parametrize("adapter", ("static", "support"))
def test_refined_tasks_keep_their_factors(adapter):
    learner = learner_of(adapter)
    first, second, third = tasks_of(learner)
    x = items(24, seed=0)
    refined = [
        first.refine(x, np.where(x[:, 0] > 0, "ripe", "green"), steps=3, lr=0.05, seed=seed) for seed in range(2)
    ]
    check_each_alone(learner, [refined[0], second, refined[1], third], [2, 1, 3, 2])


def test_only_what_is_asked_for_is_computed():
    learner = learner_of()
    tasks, x = tasks_of(learner), torch.from_numpy(items(4, seed=3))
    everything = outputs_of_many(learner, x, tasks, [1, 1, 2])
    logits_alone = outputs_of_many(learner, x, tasks, [1, 1, 2], novelty=False, embeddings=False)
    for left, right in zip(everything, logits_alone, strict=True):
        assert torch.equal(left.logits, right.logits)
        assert right.novelty.shape == (0,) and right.embeddings.shape == (len(left.logits), 0)


def test_what_does_not_fit_is_refused():
    learner, other = learner_of(), learner_of()
    randomise(other.adapter, 0.3)
    tasks, x = tasks_of(learner), torch.from_numpy(items(4, seed=3))
    with pytest.raises(ValueError, match=r"4 rows, 3 tasks and counts \[1, 1, 1\]"):
        outputs_of_many(learner, x, tasks, [1, 1, 1])
    with pytest.raises(ValueError, match="condition of another adapter"):
        outputs_of_many(other, x, tasks, [1, 1, 2])
    loaded = [AdaptedTask.from_bytes(task.to_bytes(), learner) for task in tasks]
    with pytest.raises(ValueError, match="condition of another adapter"):
        outputs_of_many(other, x, loaded, [1, 1, 2])


def test_texts_of_many_lengths_keep_their_tenants():
    """A batch of texts is divided by length: every part must get the conditions of its own rows."""
    torch.manual_seed(0)
    config = AdapterConfig("metalora-cp", rank=2, condition=SUPPORT)
    learner = MetaLearner(small_model("bert"), adapter=config, preprocessor=text_preprocessor(16))
    randomise(learner.adapter, 0.5)
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(WORDS, size=1 + number % 12)) for number in range(60)]
    tasks = [learner.adapt(texts[k : k + 12], ["a", "b"] * 6) for k in (0, 12, 24)]
    assert not torch.allclose(tasks[0].condition.vector(), tasks[1].condition.vector())
    queries, counts = texts[20:60], [13, 9, 18]
    inputs = learner.backbone.preprocessor(queries)
    outputs = outputs_of_many(learner, inputs, tasks, counts)
    for k, (task, output) in enumerate(zip(tasks, outputs, strict=True)):
        start = sum(counts[:k])
        alone = [task.decision_function([query])[0] for query in queries[start : start + counts[k]]]
        np.testing.assert_allclose(output.logits.numpy(), np.stack(alone), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("generator", ("mapping-net", "gradient-step", "component"))
def test_many_support_sets_are_adapted_as_each_alone(generator):
    torch.manual_seed(0)
    layers = (nn.Linear(WIDTH, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24))
    learner = MetaLearner(nn.Sequential(*layers), adapter=ADAPTERS["support"], generator=generator, batch_size=16)
    randomise(learner.adapter, 0.4)
    check_adapted_as_alone(learner)


@pytest.mark.parametrize("adapter", ("static", "per example", "none"))
def test_many_support_sets_of_other_adapters(adapter):
    check_adapted_as_alone(learner_of(adapter))


def check_adapted_as_alone(learner):
    alone = tasks_of(learner, ("classes", "three classes", "classes"))
    together = learner.adapt_many([task.support for task in alone], kind="classes")
    x = items(9, seed=8)
    for left, right in zip(together, alone, strict=True):
        assert left.support == right.support and left.classes_.tolist() == right.classes_.tolist()
        if right.condition is not None:
            torch.testing.assert_close(left.condition.vector(), right.condition.vector(), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(left.decision_function(x), right.decision_function(x), rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal(left.predict(x), right.predict(x))


def test_support_sets_keep_their_groups_and_a_wrong_one_is_refused():
    learner, x = learner_of(), items(24, seed=0)
    labels = np.where(x[:, 0] > 0, "ripe", "green").tolist()
    groups = [number // 2 for number in range(24)]
    together = learner.adapt_many([(x, labels, groups), (x, labels)])
    for task, own in zip(together, (groups, None), strict=True):
        alone = learner.adapt(x, labels, groups=own)
        np.testing.assert_allclose(task.decision_function(x), alone.decision_function(x), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="24 inputs but 23 labels"):
        learner.adapt_many([(x, labels), (x, labels[1:])])
    assert learner.adapt_many([]) == []


def test_threads_get_bit_for_bit_what_one_thread_gets():
    learner = learner_of()
    tasks, x = tasks_of(learner), items(12, seed=4)
    tensors = torch.from_numpy(x)

    def of_many():
        outputs = outputs_of_many(learner, tensors, tasks, [5, 3, 4])
        return torch.cat([torch.cat([o.novelty, o.logits.flatten(), o.embeddings.flatten()]) for o in outputs])

    calls = [
        of_many,
        lambda: learner.encode(x, tasks[0].condition),
        lambda: learner.encode(x, tasks[1].condition),
        lambda: torch.from_numpy(tasks[2].decision_function(x)),
    ]
    assert not problems_in_threads(calls, 15, partial(torch.testing.assert_close, rtol=0, atol=0))


@pytest.mark.parametrize("readout", READOUTS)
def test_the_nearest_examples_of_a_query(readout):
    learner = learner_of(readout=readout)
    task, x = tasks_of(learner)[0], items(24, seed=0)
    phi = learner.encode(x[[5, 17]], task.condition)
    positions, distances = task.readout.neighbours(phi, 3)
    assert positions[:, 0].tolist() == [5, 17] and distances.shape == (2, 3)
    brute = torch.cdist(task.readout.embed(phi).double(), task.readout.support.double())
    torch.testing.assert_close(distances.double(), brute.gather(1, positions), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(distances.double(), brute.sort(1).values[:, :3], rtol=1e-3, atol=1e-3)
    for k in (0, 25):
        with pytest.raises(ValueError, match=f"k must be from 1 to 24, the items of the support set, not {k}"):
            task.readout.neighbours(phi, k)


def test_the_fingerprint_of_a_learner_may_be_handed_over(monkeypatch):
    learner = learner_of()
    task, fingerprint = tasks_of(learner)[0], learner.fingerprint
    content = task.to_bytes()
    monkeypatch.setattr(MetaLearner, "fingerprint", property(lambda self: pytest.fail("computed anew")))
    loaded = AdaptedTask.from_bytes(content, learner, fingerprint=fingerprint)
    x = items(5, seed=2)
    np.testing.assert_array_equal(loaded.decision_function(x), task.decision_function(x))
    with pytest.raises(ValueError, match="task: made by another learner"):
        AdaptedTask.from_bytes(content, learner, fingerprint="0" * 32)


def test_a_task_does_not_outlive_another_training_of_its_learner():
    learner = learner_of()
    task, x = tasks_of(learner)[0], items(24, seed=0)
    learner.config = dataclasses.replace(learner.config, steps=2, validate_every=0)
    learner.fit(items(60, seed=5), report=False)
    uses = (
        lambda: task.predict(x),
        lambda: outputs_of_many(learner, torch.from_numpy(x), [task], [24]),
        lambda: task.refine(x, ["ripe", "green"] * 12, steps=1),
        task.to_bytes,  # which would say that the trained learner made it
    )
    for use in uses:
        with pytest.raises(ValueError, match="the learner was trained after it had adapted to this task"):
            use()
    again = task.add(x[:2], ["ripe", "green"])  # which adapts to all examples
    assert len(again.predict(x)) == 24
