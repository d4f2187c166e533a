"""The paths of the service, with the answers of the library as the right ones."""

import asyncio
import json

import numpy as np
import pytest

from metalora.learner import AdaptedTask
from support.serving import ServedApp, json_inputs, pictures, sentences, task_body, two_labels

MODALITIES = ("images", "texts")


@pytest.fixture(params=MODALITIES)
def case(request, image_learner, text_learner):
    """A learner, and a function that gives inputs for it."""
    return (image_learner, pictures) if request.param == "images" else (text_learner, sentences)


def run(scenario, *arguments, **settings):
    """Run a coroutine on a served app."""

    async def main():
        async with ServedApp(*arguments, **settings) as served:
            return await scenario(served)

    return asyncio.run(main())


async def created(served, inputs, **fields):
    """The answer of `POST /v1/tasks`, which must succeed."""
    answer = await served.client.post("/v1/tasks", json=task_body(inputs, **fields))
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_a_task_predicts_what_the_library_predicts(case, tmp_path):
    learner, inputs = case
    queries = inputs(9, seed=3)

    async def scenario(served):
        task = await created(served, inputs(12), name="fruit")
        path = f"/v1/tasks/{task['task']}"
        said = await served.client.post(f"{path}/predict", json={"inputs": json_inputs(queries)})
        embedded = await served.client.post(f"{path}/embed", json={"inputs": json_inputs(queries)})
        file = await served.client.get(f"{path}/file")
        assert (await served.client.get(path)).json() == task
        return task, said.json(), embedded.json(), file.content

    task, said, embedded, file = run(scenario, learner, tmp_path)
    here = AdaptedTask.from_bytes(learner.adapt(inputs(12), two_labels(12)).to_bytes(max_bytes=20_000), learner)
    assert task["classes"] == said["classes"] == ["across", "upright"] and task["kind"] == "classes"
    assert task["adapter"] == learner.fingerprint and task["examples"] == 12 and task["name"] == "fruit"
    assert said["labels"] == here.predict(queries).tolist() and said["version"] == 1
    np.testing.assert_allclose(said["probabilities"], here.predict_proba(queries), atol=1e-4)
    np.testing.assert_allclose(said["abstention"], here.novelty(queries), atol=1e-6)
    np.testing.assert_allclose(embedded["embeddings"], here.transform(queries), atol=1e-3)
    (tmp_path / "task.safetensors").write_bytes(file)
    downloaded = AdaptedTask.from_pretrained(tmp_path / "task.safetensors", learner)
    assert downloaded.predict(queries).tolist() == said["labels"]


def test_a_form_is_the_same_as_json(case, tmp_path):
    learner, inputs = case
    support, queries, labels = inputs(12), inputs(5, seed=3), two_labels(12)

    def parts(items):
        if isinstance(items[0], str):
            return {"files": {"texts": (None, json.dumps(items))}}
        return {"files": [("images", (f"{number}.png", item)) for number, item in enumerate(items)]}

    async def scenario(served):
        by_json = await created(served, support, name="a", kind="classes")
        form = {"labels": json.dumps(labels), "name": "a", "kind": "classes"}
        answer = await served.client.post("/v1/tasks", data=form, **parts(support))
        assert answer.status_code == 201, answer.text
        changing = ("task", "created")
        assert {k: v for k, v in answer.json().items() if k not in changing} == {
            k: v for k, v in by_json.items() if k not in changing
        }
        path = f"/v1/tasks/{by_json['task']}/predict"
        one = (await served.client.post(path, json={"inputs": json_inputs(queries)})).json()
        other = (await served.client.post(path, **parts(queries))).json()
        assert one == other

    run(scenario, learner, tmp_path)


def test_numbers_and_several_labels(text_learner, tmp_path):
    support, queries = sentences(12), sentences(4, seed=1)
    number = [float(k % 2) + 0.25 for k in range(12)]
    several = [["fruit", "apple"] if k % 2 == 0 else ["fruit"] * (k % 4 == 1) for k in range(12)]

    async def scenario(served):
        for labels in (number, several):
            task = await created(served, support, labels=labels)
            path = f"/v1/tasks/{task['task']}/predict"
            said = (await served.client.post(path, json={"inputs": json_inputs(queries)})).json()
            content = text_learner.adapt(support, labels).to_bytes(max_bytes=20_000)
            here = AdaptedTask.from_bytes(content, text_learner)
            assert task["kind"] == here.kind and task["classes"] == list(here.labels.classes)
            if here.kind == "numbers":
                assert said["probabilities"] is None and task["accuracy"] is None
                np.testing.assert_allclose(said["labels"], here.predict(queries), rtol=1e-4)
            else:
                assert [set(label) for label in said["labels"]] == here.predict(queries)
                np.testing.assert_allclose(said["probabilities"], here.predict_proba(queries), atol=1e-4)

    run(scenario, text_learner, tmp_path)


def test_examples_that_are_added_count_and_none_is_lost(case, tmp_path):
    learner, inputs = case
    support, more = inputs(8), [inputs(2, seed=seed) for seed in range(10, 16)]

    async def scenario(served):
        task = await created(served, support, keep_examples=True, name="grows")
        path = f"/v1/tasks/{task['task']}"
        answers = await asyncio.gather(
            *(served.client.post(f"{path}/examples", json=task_body(items)) for items in more)
        )
        assert sorted(answer.json()["version"] for answer in answers) == [2, 3, 4, 5, 6, 7]
        last = (await served.client.get(path)).json()
        assert last["version"] == 7 and last["examples"] == 20 and last["name"] == "grows" and last["keep_examples"]
        kept = served.store.examples(1, task["task"])
        contents = [example.content.decode() if example.kind == "text" else example.content for example in kept]
        assert contents[:8] == support and sorted(contents[8:]) == sorted(item for items in more for item in items)
        here = learner.adapt(contents, [example.label for example in kept]).to_bytes(max_bytes=20_000)
        queries = inputs(6, seed=3)
        said = await served.client.post(f"{path}/predict", json={"inputs": json_inputs(queries)})
        right = AdaptedTask.from_bytes(here, learner).predict_proba(queries)
        np.testing.assert_allclose(said.json()["probabilities"], right, atol=1e-4)
        forgetful = await created(served, support)
        refused = await served.client.post(f"/v1/tasks/{forgetful['task']}/examples", json=task_body(more[0]))
        assert refused.status_code == 409 and "keep_examples" in refused.json()["error"]["message"]

    run(scenario, learner, tmp_path)


def test_a_request_with_an_idempotency_key_counts_once(text_learner, tmp_path):
    async def scenario(served):
        body, headers = task_body(sentences(8), keep_examples=True), {"Idempotency-Key": "one"}
        first = await served.client.post("/v1/tasks", json=body, headers=headers)
        again = await served.client.post("/v1/tasks", json=body, headers=headers)
        assert (first.status_code, again.status_code) == (201, 200) and first.json() == again.json()
        other = await served.client.post("/v1/tasks", json=task_body(sentences(6)), headers=headers)
        assert other.status_code == 409 and other.json()["error"]["code"] == "conflict"
        path = f"/v1/tasks/{first.json()['task']}/examples"
        answers = [await served.client.post(path, json=task_body(sentences(2)), headers=headers) for _ in range(2)]
        assert [answer.json()["version"] for answer in answers] == [2, 2] and answers[1].json()["examples"] == 10
        refused = await served.client.post(path, json=task_body(sentences(4)), headers=headers)
        assert refused.status_code == 409
        assert len((await served.client.get("/v1/tasks")).json()["tasks"]) == 1

    run(scenario, text_learner, tmp_path)


def test_a_preview_is_what_the_library_says_and_stores_nothing(case, tmp_path):
    learner, inputs = case
    support, queries = inputs(12), inputs(5, seed=3)

    async def scenario(served):
        body = task_body(support, queries=json_inputs(queries), neighbours=2)
        answer = await served.client.post("/v1/preview", json=body)
        assert (await served.client.get("/v1/tasks")).json() == {"tasks": [], "next": None}
        return answer.json()

    said = run(scenario, learner, tmp_path)
    task = learner.adapt(support, two_labels(12))
    frozen = learner.frozen_features(support)
    plain = learner.plain_readout.fit(frozen, task.labels.targets, frozen_width=frozen.shape[1])
    right = plain.logits(learner.frozen_features(queries)).softmax(1)
    np.testing.assert_allclose(said["adapted"]["probabilities"], task.predict_proba(queries), atol=1e-4)
    np.testing.assert_allclose(said["frozen"]["probabilities"], right, atol=1e-4)
    assert said["classes"] == ["across", "upright"] and 0 <= said["adapted"]["accuracy"] <= 1
    distances = np.linalg.norm(task.transform(queries)[:, None] - task.transform(support)[None], axis=2)
    assert [[near["example"] for near in row] for row in said["neighbours"]] == distances.argsort(1)[:, :2].tolist()


def test_tasks_are_listed_in_pages_and_deleted(text_learner, tmp_path):
    async def scenario(served):
        made = sorted([(await created(served, sentences(4)))["task"] for _ in range(5)])
        first = (await served.client.get("/v1/tasks", params={"limit": 3})).json()
        rest = (await served.client.get("/v1/tasks", params={"limit": 3, "after": first["next"]})).json()
        assert [task["task"] for page in (first, rest) for task in page["tasks"]] == made and rest["next"] is None
        path = f"/v1/tasks/{made[0]}"
        await served.client.post(f"{path}/predict", json={"inputs": json_inputs(sentences(1))})
        assert (await served.client.delete(path)).status_code == 204
        for method, where in (("GET", ""), ("DELETE", ""), ("GET", "/file"), ("POST", "/predict"), ("POST", "/embed")):
            gone = await served.client.request(method, path + where, json={"inputs": json_inputs(sentences(1))})
            assert gone.status_code == 404 and gone.json()["error"]["message"] == "there is no such task"

    run(scenario, text_learner, tmp_path)
