"""Many tenants at once get what each of them gets alone, whatever else the engine does."""

import asyncio

import numpy as np
import pytest
import torch

from metalora import AdapterConfig, ConditionTable
from metalora.learner import AdaptedTask, MetaLearner, TextPreprocessor
from metalora.serving.config import ServingConfig
from metalora.serving.engine import Engine
from metalora.serving.errors import ServiceError
from metalora.serving.hot_tasks import HotTasks, TaskKey, task_bytes
from metalora.serving.metrics import Metrics
from support.adapters import randomise
from support.serving import ServedApp, json_inputs, pictures, sentences, task_body, two_labels, word_tokenizer
from support.small_transformers import small_model


def stored(learner, task):
    """A task as the service has it: read from its small file, with its condition in a table."""
    return AdaptedTask.from_bytes(task.to_bytes(max_bytes=20_000), learner, conditions=ConditionTable())


@pytest.mark.parametrize("modality, count", (("images", 5), ("texts", 16)))
def test_many_tenants_at_once_get_what_each_gets_alone(modality, count, image_learner, text_learner, tmp_path):
    learner, inputs = (image_learner, pictures) if modality == "images" else (text_learner, sentences)
    tenants = tuple(f"tenant {number}" for number in range(count))
    labels = {name: [f"{name} {label}" for label in two_labels(8)] for name in tenants}
    supports = {name: inputs(8, seed=100 + number) for number, name in enumerate(tenants)}
    queries = [inputs(1 + number % 5, seed=number) for number in range(min(count // 2, 4))]

    async def main():
        async with ServedApp(learner, tmp_path, tenants=tenants, max_rows=16, hot_mb=1) as served:
            made = {
                name: (await client.post("/v1/tasks", json=task_body(supports[name], labels[name]))).json()["task"]
                for name, client in served.clients.items()
            }

            async def ask(name, items):
                path = f"/v1/tasks/{made[name]}/predict"
                return name, items, (await served.clients[name].post(path, json={"inputs": json_inputs(items)})).json()

            async def adapt(name):
                body = task_body(supports[name], labels[name])
                return (await served.clients[name].post("/v1/tasks", json=body)).status_code

            adapting = [asyncio.create_task(adapt(name)) for name in tenants[:4]]
            said = await asyncio.gather(*(ask(name, items) for items in queries for name in tenants))
            assert await asyncio.gather(*adapting) == [201] * 4
            return said

    alone = {name: stored(learner, learner.adapt(supports[name], labels[name])) for name in tenants}
    for name, items, answer in asyncio.run(main()):
        assert answer["labels"] == alone[name].predict(items).tolist()
        np.testing.assert_allclose(answer["probabilities"], alone[name].predict_proba(items), atol=2e-4)


OTHERS = (None, AdapterConfig("lora", 2), AdapterConfig("metalora-cp", 2))  # the last one: a condition of each input


@pytest.mark.parametrize("adapter", OTHERS, ids=("no adapter", "static", "by input"))
def test_learners_without_a_condition_of_the_task(adapter, tmp_path):
    preprocessor = TextPreprocessor(word_tokenizer(), 16)
    learner = MetaLearner(small_model("bert"), adapter=adapter, preprocessor=preprocessor, device="cpu")
    if learner.adapter is not None:
        randomise(learner.adapter, 0.2)
    items = sentences(5, seed=1)

    async def main():
        async with ServedApp(learner, tmp_path) as served:
            made = (await served.client.post("/v1/tasks", json=task_body(sentences(8)))).json()["task"]
            answer = await served.client.post(f"/v1/tasks/{made}/predict", json={"inputs": json_inputs(items)})
            return answer.json()["probabilities"]

    right = stored(learner, learner.adapt(sentences(8), two_labels(8))).predict_proba(items)
    np.testing.assert_allclose(asyncio.run(main()), right, atol=1e-4)


def test_a_request_is_split_over_batches_and_put_together(text_learner):
    task = stored(text_learner, text_learner.adapt(sentences(8), two_labels(8)))
    items = sentences(23, seed=4)
    metrics = Metrics()
    engine = Engine(text_learner, ServingConfig(max_rows=5), metrics)
    outputs = asyncio.run(engine.outputs(1, task, text_learner.backbone.preprocessor.encode(items)))
    engine.close()
    np.testing.assert_allclose(outputs.logits, task.decision_function(items), rtol=1e-3, atol=1e-3)
    assert "metalora_batch_rows_count 5.0" in metrics.text().decode()


def test_inputs_that_fail_do_not_harm_others_of_the_batch(text_learner):
    task = stored(text_learner, text_learner.adapt(sentences(8), two_labels(8)))
    broken = stored(text_learner, text_learner.adapt(sentences(8), two_labels(8)))
    condition = broken.condition
    for value in condition.values.values():
        value.fill_(torch.nan)
    broken.stored_condition = condition
    encoded = text_learner.backbone.preprocessor.encode(sentences(3))

    async def main():
        engine = Engine(text_learner, ServingConfig(max_wait_ms=200), Metrics())
        asked = [engine.outputs(tenant, which, encoded) for tenant, which in ((1, task), (2, broken), (3, task))]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        await asyncio.to_thread(engine.close)
        return outcomes

    first, failed, third = asyncio.run(main())
    assert isinstance(failed, ServiceError) and failed.code == "invalid_input"
    for outputs in (first, third):
        np.testing.assert_allclose(outputs.logits, task.decision_function(sentences(3)), rtol=1e-3, atol=1e-3)


def test_half_precision_says_about_the_same(text_learner):
    task = stored(text_learner, text_learner.adapt(sentences(12), two_labels(12)))
    items = sentences(6, seed=4)
    engine = Engine(text_learner, ServingConfig(dtype="bfloat16"), Metrics())
    outputs = asyncio.run(engine.outputs(1, task, text_learner.backbone.preprocessor.encode(items)))
    engine.close()
    exact = torch.from_numpy(task.decision_function(items)).softmax(1)
    assert outputs.logits.dtype == torch.float32 and not torch.equal(outputs.logits.softmax(1), exact)
    assert (outputs.logits.softmax(1) - exact).abs().max() < 0.2


def test_conditions_of_loaded_tasks_are_in_the_table_of_the_engine(text_learner):
    content = text_learner.adapt(sentences(8), two_labels(8)).to_bytes(max_bytes=20_000)
    engine = Engine(text_learner, ServingConfig(), Metrics())
    tasks = [engine.task_of(content) for _ in range(3)]
    assert all(task.stored_condition.table is engine.conditions for task in tasks) and len(engine.conditions) == 3
    tasks.pop()
    assert len(engine.conditions) == 2
    engine.close()


def test_hot_tasks_forget_the_oldest_within_their_bound(text_learner):
    task = stored(text_learner, text_learner.adapt(sentences(8), two_labels(8)))
    size = task_bytes(task)
    assert size >= sum(tensor.nbytes for tensor in (task.readout.support, task.readout.scaling.mean))
    hot, keys = HotTasks(3 * size), [TaskKey(1, f"t_{number}", 1) for number in range(5)]
    for key in keys[:3]:
        hot.put(key, task)
    assert hot.get(keys[0]) is task
    hot.put(keys[3], task)
    assert [hot.get(key) is task for key in keys] == [True, False, True, True, False]
    hot.put(keys[3], task)  # again
    assert len(hot) == 3 and hot.bytes == 3 * size
    small = HotTasks(size - 1)
    small.put(keys[0], task)
    assert len(small) == small.bytes == 0
