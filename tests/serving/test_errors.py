"""Every wrong request is answered in the one form, with the code and the field that are wrong."""

import asyncio
import json
import logging

import numpy as np

from metalora.serving.store import StoreFailure
from support.serving import ServedApp, encoded, json_inputs, pictures, png, sentences, task_body

SENTENCES, JSON = sentences(4), {"Content-Type": "application/json"}
LIMITS = dict(max_request_mb=1, max_pixels=10_000, max_examples=8, max_tasks=2, max_queue_rows=6, hot_mb=1)
GIF_HEADER = b"GIF89a" + (30_000).to_bytes(2, "little") * 2 + b"\x00\x00\x00"
CUT = pictures(1)[0][:200]
LONG = png(np.zeros((2, 300, 3), np.uint8))
BAD_PICTURES = {
    "no picture": b"hello",
    "a format that is not read": b"P6 2 2 255 " + bytes(12),
    "cut": CUT,
    "too many pixels": GIF_HEADER,
    "too long": LONG,
}


def text_task(**changes):
    return json.dumps(task_body(SENTENCES) | changes)


BODIES = {  # what is sent to POST /v1/tasks of a service of texts -> (status, code, field)
    "": (400, "invalid_json", None),
    "{": (400, "invalid_json", None),
    "[]": (422, "invalid_input", None),
    "{}": (422, "invalid_input", "inputs"),
    text_task(labels=["a", "b"]): (422, "invalid_input", "labels"),
    text_task(labels=["a"] * 4): (422, "invalid_input", "labels"),
    text_task(labels=["a", "b", "c", "d"]): (422, "invalid_input", "labels"),
    text_task(labels=["a", "a", "b", None]): (422, "invalid_input", "labels[3]"),
    text_task(labels=[["a"], ["b"], ["a"], "b"]): (422, "invalid_input", None),
    text_task(labels=["a", "a", "b", "b\u0000"]): (422, "invalid_input", "labels[3]"),
    text_task(labels=["1", 1, "1", 1]): (422, "invalid_input", "labels"),
    text_task(kind="colours"): (422, "invalid_input", "kind"),
    text_task(kind="numbers"): (422, "invalid_input", "labels"),
    text_task(groups=["a"]): (422, "invalid_input", "groups"),
    text_task(keep_examples="yes"): (422, "invalid_input", "keep_examples"),
    text_task(colour=1): (422, "invalid_input", "colour"),
    text_task(name=""): (422, "invalid_input", "name"),
    text_task(inputs={}): (422, "invalid_input", "inputs"),
    text_task(inputs={"texts": SENTENCES, "images": []}): (422, "invalid_input", "inputs.images"),
    text_task(inputs={"images": encoded(pictures(4))}): (422, "invalid_input", "inputs.images"),
    text_task(inputs={"texts": ["red", " ", "old", "new"]}): (422, "invalid_input", "inputs.texts[1]"),
    text_task(inputs={"texts": ["red", "", "old", "new"]}): (422, "invalid_input", "inputs.texts[1]"),
    text_task(inputs={"texts": ["red", 3, "old", "new"]}): (422, "invalid_input", "inputs.texts[1]"),
    text_task(inputs={"texts": ["red"] * 9}, labels=["a", "b", "a"] * 3): (422, "invalid_input", "inputs.texts"),
}


def check(answer, status, code, field=None):
    """Fail unless an answer is the error, in the one form."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "field"} and (error["code"], error["field"]) == (code, field), error
    assert answer.headers["x-request-id"] and answer.headers["content-type"] == "application/json"
    assert error["message"] and "\n" not in error["message"]


def run(scenario, *arguments, **settings):
    async def main():
        async with ServedApp(*arguments, **settings) as served:
            return await scenario(served)

    return asyncio.run(main())


def test_wrong_bodies(text_learner, tmp_path):
    async def scenario(served):
        for body, expected in BODIES.items():
            check(await served.client.post("/v1/tasks", content=body, headers=JSON), *expected)
        assert (await served.client.get("/v1/tasks")).json()["tasks"] == []

    run(scenario, text_learner, tmp_path, **LIMITS)


def test_wrong_pictures(image_learner, tmp_path):
    right = pictures(5)

    async def scenario(served):
        for name, wrong in BAD_PICTURES.items():
            items = [*right[:3], wrong, right[4]]
            answer = await served.client.post("/v1/tasks", json=task_body(items))
            check(answer, 422, "invalid_input", "inputs.images[3]")
            assert answer.json()["error"]["message"].startswith("inputs.images[3]: "), name
        body = {"inputs": {"images": ["????"]}, "labels": ["a"]}
        check(await served.client.post("/v1/tasks", json=body), 422, "invalid_input", "inputs.images[0]")

    run(scenario, image_learner, tmp_path, **LIMITS)


def test_wrong_ways(text_learner, tmp_path):
    async def scenario(served):
        client = served.client
        check(await client.post("/v1/tasks", content="x", headers={"Content-Type": "text/plain"}), 415,
              "unsupported_media_type")  # fmt: skip
        check(await client.post("/v1/tasks", content=b"x"), 415, "unsupported_media_type")
        form = {"Content-Type": "multipart/form-data; boundary=b"}
        check(await client.post("/v1/tasks", content=b"--x\r\n", headers=form), 400, "invalid_form")
        check(await client.post("/v1/tasks", content=b"--b\r\nhello", headers=form), 400, "invalid_form")
        check(await client.post("/v1/tasks", content=b"x", headers={"Content-Type": "multipart/form-data"}), 400,
              "invalid_form")  # fmt: skip
        check(await client.post("/v1/tasks", data={}, files={"labels": (None, "[")}), 422, "invalid_input", "labels")
        check(await client.post("/v1/tasks", content=b" " * 1_000_001, headers=JSON), 413, "too_large")

        async def chunks():
            for _ in range(11):
                yield b" " * 100_000

        check(await client.post("/v1/tasks", content=chunks(), headers=JSON), 413, "too_large")  # without its length
        check(await client.get("/v1/task"), 404, "not_found")
        check(await client.get("/v1/tasks/"), 404, "not_found")
        check(await client.put("/v1/tasks"), 405, "method_not_allowed")
        check(await client.get("/v1/tasks", params={"limit": 0}), 422, "invalid_input", "limit")
        for identity in ("t_" + 22 * "a", "t_x", "%00", "t_" + 22 * "é", "a" * 5000):
            check(await client.get(f"/v1/tasks/{identity}"), 404, "not_found")
        for headers in (
            {},
            {"Authorization": "Bearer "},
            {"Authorization": "Bearer ml_x"},
            {"Authorization": "Basic x"},
        ):
            client.headers.pop("authorization", None)
            answer = await client.get("/v1/tasks", headers=headers)
            check(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"

    run(scenario, text_learner, tmp_path, **LIMITS)


def test_pages_of_given_origins_may_call(text_learner, tmp_path):
    async def scenario(served):
        asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        for origin, allowed in (("https://a.org", "https://a.org"), ("https://b.org", None)):
            answer = await served.client.options("/v1/tasks", headers={"Origin": origin, **asks})
            assert answer.headers.get("access-control-allow-origin") == allowed
        answer = await served.client.get("/v1/tasks", headers={"Origin": "https://a.org"})
        assert answer.status_code == 200 and "X-Request-Id" in answer.headers["access-control-expose-headers"]

    run(scenario, text_learner, tmp_path, cors_origins=("https://a.org",))


def test_limits_of_a_tenant_and_of_a_task(text_learner, tmp_path):
    async def scenario(served):
        body = task_body(sentences(4), keep_examples=True)
        first, _ = [await served.client.post("/v1/tasks", json=body) for _ in range(2)]
        check(await served.client.post("/v1/tasks", json=body), 403, "limit_reached")
        path = f"/v1/tasks/{first.json()['task']}"
        grown = await served.client.post(f"{path}/examples", json=task_body(sentences(4)))
        assert grown.json()["examples"] == 8
        check(await served.client.post(f"{path}/examples", json=task_body(sentences(2))), 422, "invalid_input",
              "inputs.texts")  # fmt: skip
        check(await served.client.post(f"{path}/predict", json={"inputs": json_inputs(sentences(7))}), 422,
              "invalid_input", "inputs.texts")  # fmt: skip

    run(scenario, text_learner, tmp_path, **LIMITS)


def test_a_full_queue_a_late_answer_and_a_failure(text_learner, tmp_path, monkeypatch):
    async def scenario(served):
        task = (await served.client.post("/v1/tasks", json=task_body(sentences(4)))).json()["task"]
        path, engine = f"/v1/tasks/{task}/predict", served.service.engine
        body = {"inputs": json_inputs(sentences(4))}
        taken = []

        def slow(batch, right=engine._forward):
            taken.append(sum(part.stop - part.start for part in batch))
            threading_event.wait(2)
            return right(batch)

        import threading

        threading_event = threading.Event()
        monkeypatch.setattr(engine, "_forward", slow)
        first = asyncio.create_task(served.client.post(path, json=body))
        while not taken:
            await asyncio.sleep(0.01)
        late = asyncio.create_task(served.client.post(path, json=body))
        await asyncio.sleep(0.1)
        busy = await served.client.post(path, json=body)
        check(busy, 429, "busy")
        assert int(busy.headers["retry-after"]) >= 1
        check(await late, 504, "timeout")
        check(await first, 504, "timeout")
        threading_event.set()
        assert (await served.client.post(path, json=body)).status_code == 200
        assert taken == [4, 4]  # what was late before it began was never computed
        monkeypatch.setattr(engine, "_forward", lambda batch: 1 / 0)
        check(await served.client.post(path, json=body), 500, "internal")

    run(scenario, text_learner, tmp_path, deadline_s=0.6, max_queue_rows=6)


def test_a_client_that_goes_away_is_not_computed(text_learner, tmp_path, monkeypatch):
    async def scenario(served):
        task = (await served.client.post("/v1/tasks", json=task_body(sentences(4)))).json()["task"]
        path, queue = f"/v1/tasks/{task}/predict", served.service.engine.predictions
        gone, waits = asyncio.Event(), asyncio.Event()

        async def outcome(queue, job, right=served.service.engine._outcome):
            monkeypatch.setattr(queue, "take", lambda *arguments: [])
            waits.set()
            return await right(queue, job)

        monkeypatch.setattr(served.service.engine, "_outcome", outcome)
        content = json.dumps({"inputs": json_inputs(sentences(2))}).encode()
        messages = [{"type": "http.request", "body": content, "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        key = served.keys["a"].encode()
        headers = [(b"authorization", b"Bearer " + key), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
                 "headers": headers, "http_version": "1.1", "scheme": "http", "server": ("s", 80), "client": None,
                 "root_path": "", "asgi": {"version": "3.0"}}  # fmt: skip
        sent = []

        async def send(message):
            sent.append(message)

        answering = asyncio.create_task(served.app(scope, receive, send))
        await waits.wait()
        gone.set()
        await answering
        assert sent == [] and queue.rows == 0
        assert 'route="/v1/tasks/{task_id}/predict",status="499"' in (await served.client.get("/metrics")).text

    run(scenario, text_learner, tmp_path)


def test_an_older_learner_is_served_and_one_that_is_gone_is_a_conflict(text_folder, text_learner, tmp_path):
    from metalora.learner import MetaLearner

    newer = MetaLearner.from_pretrained(text_folder, device="cpu")
    newer.adapter.factors[next(iter(newer.adapter.factors))].data += 0.1
    queries = {"inputs": json_inputs(sentences(5, seed=1))}

    async def of_old(served):
        made = (await served.client.post("/v1/tasks", json=task_body(sentences(8), keep_examples=True))).json()
        answer = await served.client.post(f"/v1/tasks/{made['task']}/predict", json=queries)
        return made, answer.json(), served.keys["a"]

    made, said, key = run(of_old, text_learner, tmp_path)

    async def of_both(served):
        client = served.client_with(key)
        assert (await client.get("/v1/service")).json()["adapter"] == newer.fingerprint != made["adapter"]
        assert (await client.post(f"/v1/tasks/{made['task']}/predict", json=queries)).json() == said

    run(of_both, newer, tmp_path, tenants=("b",), also=(text_learner,))

    async def of_new(served):
        client = served.client_with(key)
        check(await client.post(f"/v1/tasks/{made['task']}/predict", json=queries), 409, "conflict")
        grown = await client.post(f"/v1/tasks/{made['task']}/examples", json=task_body(sentences(2)))
        assert grown.json()["adapter"] == newer.fingerprint  # it is made anew of its examples
        assert (await client.post(f"/v1/tasks/{made['task']}/predict", json=queries)).status_code == 200

    run(of_new, newer, tmp_path, tenants=("c",))


def test_a_store_that_fails_is_not_the_fault_of_the_request(text_learner, tmp_path, monkeypatch):
    async def scenario(served):
        def fails(*arguments, **named):
            raise StoreFailure("the disk of /secret is full")

        monkeypatch.setattr(served.store, "create_task", fails)
        monkeypatch.setattr(served.store, "check", fails)
        answer = await served.client.post("/v1/tasks", json=task_body(sentences(4)))
        check(answer, 503, "unavailable")
        assert "secret" not in answer.text
        check(await served.client.get("/readyz"), 503, "unavailable")
        assert (await served.client.get("/healthz")).status_code == 200

    run(scenario, text_learner, tmp_path)


def test_the_log_and_the_metrics_have_nothing_of_tenants(text_learner, tmp_path, caplog):
    def fails(batch, word="secret error"):
        raise RuntimeError(word)

    async def scenario(served):
        with caplog.at_level(logging.INFO, "metalora.serving"):
            made = (await served.client.post("/v1/tasks", json=task_body(sentences(4), name="secret name"))).json()
            path = f"/v1/tasks/{made['task']}/predict"
            await served.client.post(path, json={"inputs": json_inputs(sentences(1))}, headers={"X-Request-Id": "r1"})
            await served.client.post(path, content='{"inputs": "secret body"}', headers=JSON)
            served.service.engine._forward = fails
            await served.client.post(path, json={"inputs": json_inputs(sentences(1))})
        return made["task"], served.keys["a"], (await served.client.get("/metrics")).text

    task, key, metrics = run(scenario, text_learner, tmp_path)
    lines = [record.fields for record in caplog.records]
    assert [line["status"] for line in lines if "status" in line] == [201, 200, 422, 500]
    assert lines[1]["request"] == "r1" and lines[1]["rows"] == 1 and lines[1]["tenant"] == 1
    assert lines[1]["route"] == "/v1/tasks/{task_id}/predict" and lines[1]["ms"] > 0
    private = (task, key, "secret", "apple", "pear", "across", "upright")
    assert not [word for word in private if word in json.dumps(lines) + metrics]
    counted = ('requests_total{route="/v1/tasks",status="201"}', "adapt_seconds_count")
    for name in (*counted, "hot_task_misses_total"):
        assert f"metalora_{name} 1.0" in metrics, name
    assert "metalora_queue_rows 0.0" in metrics
