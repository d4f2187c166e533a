"""The tasks of an older learner are made anew with the current one; the learners alone say what is right."""

import asyncio
import logging

import pytest

from metalora.learner import AdaptedTask, MetaLearner
from metalora.serving import readaptation
from metalora.serving.readaptation import Readaptation, readapting
from metalora.serving.store import StoreFailure
from support.serving import ServedApp, json_inputs, save_text_learner, sentences, task_body, two_labels

INPUTS = sentences(12)
MORE = sentences(4, seed=5)
QUERIES = sentences(9, seed=3)


@pytest.fixture(scope="module")
def newer(tmp_path_factory):
    """A learner of texts with another network and adapter than `text_learner`."""
    return MetaLearner.from_pretrained(save_text_learner(tmp_path_factory.mktemp("newer"), seed=1), device="cpu")


def run(scenario):
    """Run a coroutine."""
    return asyncio.run(scenario)


async def created(served, **fields):
    """The id of a new task."""
    answer = await served.client.post("/v1/tasks", json=task_body(INPUTS, **fields))
    assert answer.status_code == 201, answer.text
    return answer.json()["task"]


async def old_tasks(learner, folder, count, **fields):
    """The ids of tasks that a service with this learner has made, and the key of their tenant."""
    async with ServedApp(learner, folder) as served:
        return [await created(served, **fields) for _ in range(count)], served.keys["a"]


class Updated(ServedApp):
    """The service of a newer learner on the store of an older one; the client is that of the first tenant."""

    def __init__(self, learner, older, folder, key, **settings):
        super().__init__(learner, folder, tenants=("b",), also=[older], **settings)
        self.client = self.clients["a"] = self.client_with(key)


async def said(served, task):
    """Version and probabilities of the queries."""
    answer = await served.client.post(f"/v1/tasks/{task}/predict", json={"inputs": json_inputs(QUERIES)})
    assert answer.status_code == 200, answer.text
    return answer.json()["version"], answer.json()["probabilities"]


def expected(learner, inputs=INPUTS):
    """The probabilities of the queries by the library."""
    task = learner.adapt(inputs, two_labels(len(inputs)))
    loaded = AdaptedTask.from_bytes(task.to_bytes(max_bytes=20_000), learner)
    return [pytest.approx(row, abs=1e-4) for row in loaded.predict_proba(QUERIES).tolist()]


def count_of(served, outcome):
    """How many tasks had this outcome."""
    return served.service.metrics.registry.get_sample_value("metalora_readaptations_total", {"outcome": outcome}) or 0


def left(served, learner):
    """How many tasks of a learner are left, by the metrics."""
    return served.service.metrics.registry.get_sample_value("metalora_older_tasks", {"learner": learner.fingerprint})


def test_answers_are_those_of_the_older_learner_before_and_of_the_newer_one_after(
    text_learner, newer, tmp_path, caplog
):
    async def scenario():
        (task,), key = await old_tasks(text_learner, tmp_path, 1, keep_examples=True, name="fruit")
        async with Updated(newer, text_learner, tmp_path, key) as served:
            before = await said(served, task)
            with caplog.at_level(logging.INFO):
                await Readaptation(served.service).run_once()
            described = (await served.client.get(f"/v1/tasks/{task}")).json()
            return before, await said(served, task), described, left(served, text_learner)

    before, after, described, remaining = run(scenario())
    assert before == (1, expected(text_learner)) and after == (2, expected(newer))
    assert described["adapter"] == newer.fingerprint and described["name"] == "fruit" and described["keep_examples"]
    assert remaining == 0 and f"no task is left of the older learner {text_learner.fingerprint}" in caplog.text


def test_tasks_without_examples_stay_with_the_older_learner(text_learner, newer, tmp_path, caplog):
    async def scenario():
        (task,), key = await old_tasks(text_learner, tmp_path, 1)
        async with Updated(newer, text_learner, tmp_path, key) as served:
            with caplog.at_level(logging.INFO):
                await Readaptation(served.service).run_once()
            return await said(served, task), left(served, text_learner)

    assert run(scenario()) == ((1, expected(text_learner)), 1)
    assert "no task is left" not in caplog.text


def test_tasks_of_a_learner_that_this_process_does_not_serve_are_left_alone(text_learner, newer, tmp_path):
    async def scenario():
        (task,), key = await old_tasks(newer, tmp_path, 1, keep_examples=True)
        async with Updated(text_learner, text_learner, tmp_path, key) as served:
            await Readaptation(served.service).run_once()
            return served.store.task(1, task).version

    assert run(scenario()) == 1


def test_examples_that_are_added_during_the_readaptation_are_in_its_result(text_learner, newer, tmp_path):
    async def scenario():
        (task,), key = await old_tasks(text_learner, tmp_path, 1, keep_examples=True)
        async with Updated(newer, text_learner, tmp_path, key) as served:
            remade = served.service.remade

            async def add_then_remake(stored, examples):
                body = {"inputs": json_inputs(MORE), "labels": two_labels(4)}
                answer = await served.client.post(f"/v1/tasks/{task}/examples", json=body)
                assert answer.status_code == 200
                return await remade(stored, examples)

            served.service.remade = add_then_remake
            await Readaptation(served.service).run_once()
            return await said(served, task), count_of(served, "changed"), len(served.store.examples(1, task))

    assert run(scenario()) == ((2, expected(newer, INPUTS + MORE)), 1, 16)


def test_a_task_that_is_deleted_during_the_readaptation_stays_deleted(text_learner, newer, tmp_path):
    async def scenario():
        (task,), key = await old_tasks(text_learner, tmp_path, 1, keep_examples=True)
        async with Updated(newer, text_learner, tmp_path, key) as served:
            remade = served.service.remade

            async def delete_then_remake(stored, examples):
                assert (await served.client.delete(f"/v1/tasks/{task}")).status_code == 204
                return await remade(stored, examples)

            served.service.remade = delete_then_remake
            await Readaptation(served.service).run_once()
            return served.store.task(1, task), served.store.examples(1, task), count_of(served, "changed")

    assert run(scenario()) == (None, None, 1)


def test_requests_during_the_readaptation_get_the_answer_of_one_of_the_learners(text_learner, newer, tmp_path):
    async def scenario():
        tasks, key = await old_tasks(text_learner, tmp_path, 6, keep_examples=True)
        async with Updated(newer, text_learner, tmp_path, key) as served:
            job = asyncio.create_task(Readaptation(served.service).run_once())
            answers = [
                answer for _ in range(5) for answer in await asyncio.gather(*(said(served, one) for one in tasks))
            ]
            await job
            return answers + [await said(served, one) for one in tasks]

    by_version = {1: expected(text_learner), 2: expected(newer)}
    answers = run(scenario())
    assert all(probabilities == by_version[version] for version, probabilities in answers)
    assert {version for version, _ in answers[-6:]} == {2}


def test_two_processes_share_the_work(text_learner, newer, tmp_path):
    async def scenario():
        tasks, key = await old_tasks(text_learner, tmp_path, 12, keep_examples=True)
        async with Updated(newer, text_learner, tmp_path, key) as first:
            store = first.store
            async with ServedApp(newer, tmp_path, tenants=("c",), also=[text_learner]) as second:
                await asyncio.gather(*(Readaptation(served.service).run_once() for served in (first, second)))
                done = [count_of(served, "done") for served in (first, second)]
                return sum(done), min(done), [store.task(1, task).version for task in tasks]

    total, least, versions = run(scenario())
    assert total == 12 and least > 0 and versions == [2] * 12


def test_a_stop_leaves_the_rest_to_the_next_start(text_learner, newer, tmp_path):
    async def scenario():
        tasks, key = await old_tasks(text_learner, tmp_path, 4, keep_examples=True)
        async with Updated(newer, text_learner, tmp_path, key) as served:
            remade = served.service.remade

            async def remake_and_stop(stored, examples):
                served.service.stopping = True
                return await remade(stored, examples)

            served.service.remade = remake_and_stop
            async with readapting(served.service):
                while not count_of(served, "done"):
                    await asyncio.sleep(0.01)
            versions = [sorted(served.store.task(1, task).version for task in tasks)]
        async with ServedApp(newer, tmp_path, tenants=("c",), also=[text_learner]) as again:
            await Readaptation(again.service).run_once()
            return [*versions, [again.store.task(1, task).version for task in tasks]]

    assert run(scenario()) == [[1, 1, 1, 2], [2, 2, 2, 2]]


def test_a_damaged_example_is_left_with_the_older_learner_and_holds_up_no_other(text_learner, newer, tmp_path, caplog):
    async def scenario():
        tasks, key = await old_tasks(text_learner, tmp_path, 3, keep_examples=True)
        async with Updated(newer, text_learner, tmp_path, key) as served:
            examples = served.store.examples

            def damaged(tenant, task):
                if task == tasks[0]:
                    raise StoreFailure("damaged")
                return examples(tenant, task)

            served.store.examples = damaged
            await Readaptation(served.service).run_once()
            return [served.store.task(1, task).version for task in tasks], await said(served, tasks[0])

    versions, answer = run(scenario())
    assert versions == [1, 2, 2] and answer == (1, expected(text_learner))
    assert "could not be made anew" in caplog.text


def test_it_runs_with_the_app_unless_it_is_switched_off(text_learner, newer, tmp_path, monkeypatch):
    monkeypatch.setattr(readaptation, "PAUSE", 0.01)

    async def scenario(readapt):
        folder = tmp_path / str(readapt)
        folder.mkdir()
        (task,), key = await old_tasks(text_learner, folder, 1, keep_examples=True)
        async with Updated(newer, text_learner, folder, key, readapt=readapt) as served:
            async with readapting(served.service):
                for _ in range(200 if readapt else 20):
                    await asyncio.sleep(0.01)
                    if served.store.task(1, task).version == 2:
                        break
            return served.store.task(1, task).version

    assert run(scenario(True)) == 2 and run(scenario(False)) == 1
