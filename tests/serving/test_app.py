"""The paths of the service, with the answers of the library as the right ones."""

import asyncio

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
