"""The client and the app together: what the client gives is what the library gives."""

import asyncio
import io

import httpx
import numpy as np
import pytest
from PIL import Image

from metalora.client import AsyncClient, Conflict, NotFound, Unauthorized
from metalora.learner import AdaptedTask
from support.serving import ServedApp, pictures, sentences, two_labels

CASES = {"images": pictures, "texts": sentences}


def client_of(served, key=None):
    return AsyncClient("http://service", key or served.keys["a"], transport=httpx.ASGITransport(served.app))


@pytest.mark.parametrize("kind", CASES)
def test_a_remote_task_says_what_the_task_of_the_library_says(kind, request, tmp_path):
    learner = request.getfixturevalue("image_learner" if kind == "images" else "text_learner")
    inputs, queries = CASES[kind](12), CASES[kind](70, seed=3)  # more queries than go into one request

    async def scenario():
        async with ServedApp(learner, tmp_path) as served, client_of(served) as client:
            task = await client.create(inputs, two_labels(12), name="a name", keep_examples=True, groups=range(12))
            said = await task.predictions(queries)
            embeddings = await task.embed(queries)
            larger = await task.add(CASES[kind](2, seed=5), two_labels(2), groups=[20, 21])
            await larger.download(tmp_path / "task")
            return task, said, embeddings, larger

    task, said, embeddings, larger = asyncio.run(scenario())
    groups = list(range(12))
    here = AdaptedTask.from_bytes(
        learner.adapt(inputs, two_labels(12), groups=groups).to_bytes(max_bytes=20_000), learner
    )
    assert said.labels.tolist() == here.predict(queries).tolist() and said.classes.tolist() == here.classes_.tolist()
    np.testing.assert_allclose(said.probabilities, here.predict_proba(queries), atol=1e-4)
    np.testing.assert_allclose(said.novelty, here.novelty(queries), atol=1e-6)
    np.testing.assert_allclose(embeddings, here.transform(queries), atol=1e-3)
    assert (task.version, task.examples, task.name) == (1, 12, "a name")
    assert (larger.id, larger.version, larger.examples, larger.name) == (task.id, 2, 14, "a name")
    assert AdaptedTask.from_pretrained(tmp_path / "task", learner).predict(queries[:2]).tolist() == two_labels(2)


def test_pictures_of_pil_and_arrays_are_answered_as_their_files(image_learner, tmp_path):
    async def scenario():
        async with ServedApp(image_learner, tmp_path) as served, client_of(served) as client:
            task = await client.create(pictures(12), two_labels(12))
            opened = [Image.open(io.BytesIO(content)) for content in pictures(4, seed=7)]
            forms = (pictures(4, seed=7), opened, [np.asarray(picture) for picture in opened])
            return [(await task.predict_proba(form)).tolist() for form in forms]

    files, opened, arrays = asyncio.run(scenario())
    assert files == opened == arrays


def test_errors_of_the_app(text_learner, tmp_path):
    async def scenario():
        async with ServedApp(text_learner, tmp_path) as served, client_of(served) as client:
            task = await client.create(sentences(6), two_labels(6))
            with pytest.raises(Conflict, match="keep_examples"):
                await task.add(sentences(2), two_labels(2))
            assert [found.id async for found in client.tasks()] == [task.id]
            await task.delete()
            with pytest.raises(NotFound):
                await task.predict(["an apple"])
            async with client_of(served, "ml_wrong") as nobody:
                with pytest.raises(Unauthorized):
                    await nobody.service()

    asyncio.run(scenario())
