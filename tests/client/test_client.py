"""The client: what it sends, what it makes of the replies, and what it sends again."""

import io
import json
import subprocess
import sys

import httpx
import numpy as np
import pytest
from PIL import Image

from metalora import client as public
from metalora.client import Client, RetryPolicy
from metalora.client.calls import Call
from metalora.client.errors import CLASSES
from metalora.client.replies import TaskState
from metalora.client.retries import Pause, reply_to
from support.remote_service import (
    AT_ONCE,
    STATE,
    ListedService,
    form_parts,
    predictions,
    refusal,
    sent_json,
    sent_pictures,
)

FORMS = ("sync", "async")
TASK = TaskState(id="t_1", **{name: value for name, value in STATE.items() if name != "task"})
LOST = httpx.ReadError("connection lost")


def create(operations):
    return operations.create(["it purrs", "it barks"], np.array(["cat", "dog"]), "auto", None, "pets", True)


def add(operations):
    return operations.add("t_1", ["a kitten"], ["cat"], None)


def predict(operations):
    return operations.predict(TASK, ["a kitten"])


# ---- what is sent ----------------------------------------------------------------------------------------------------
def test_a_task_of_texts_is_sent_as_json_with_the_key_and_an_idempotency_key():
    service = ListedService(STATE)
    assert service.carry_out("sync", create) == TASK
    (request,) = service.requests
    assert sent_json(request) == {
        "inputs": {"texts": ["it purrs", "it barks"]},
        "labels": ["cat", "dog"],
        "kind": "auto",
        "name": "pets",
        "keep_examples": True,
    }
    assert request.headers["authorization"] == "Bearer ml_secret"
    assert len(request.headers["idempotency-key"]) >= 16


def test_pictures_of_every_form_arrive_with_their_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    picture, buffer = Image.fromarray(pixels), io.BytesIO()
    picture.save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), buffer.getvalue(), picture, pixels]
    service = ListedService(STATE, inputs="images")
    service.client().create(forms, list("ababa"), groups=[1, 1, 2, 2, 3])
    (request,) = service.requests
    assert [sent.tolist() for sent in sent_pictures(request)] == [pixels.tolist()] * 5
    fields = {name: content for name, content in form_parts(request) if name != "images"}
    assert json.loads(fields["labels"]) == list("ababa") and json.loads(fields["groups"]) == [1, 1, 2, 2, 3]
    assert fields["kind"] == b"auto" and fields["keep_examples"] == b"false"
    assert str(tmp_path).encode() not in request.content, "names of files are nobody's business"


def test_a_picture_that_lies_on_its_side_is_sent_upright():
    picture = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    picture.getexif()[0x0112] = 6  # the orientation: a quarter of a turn
    service = ListedService(predictions("cat"), inputs="images")
    service.carry_out("sync", lambda operations: operations.predict(TASK, [picture]))
    (sent,) = sent_pictures(service.requests[0])
    assert sent.tolist() == np.rot90(np.asarray(picture), -1).tolist()


@pytest.mark.parametrize(
    ("inputs", "kind", "message"),
    [
        ("a cat", "texts", "expected a list of texts, not a single str"),
        ([], "texts", "at least one"),
        ([b"\xff"], "texts", r"inputs\[0\]: a bytes, but this service takes texts"),
        ([b"\xff", 3], "images", r"inputs\[1\]: a int is not a picture"),
        ([np.zeros((4, 4))], "images", r"inputs\[0\]: the array is float64 \(4, 4\), expected uint8"),
        (["no such file.png"], "images", r"inputs\[0\]: the picture no such file.png cannot be read"),
    ],
)
def test_inputs_that_the_service_does_not_take_are_refused_before_they_are_sent(inputs, kind, message):
    service = ListedService(inputs=kind)
    with pytest.raises(ValueError, match=message):
        service.carry_out("sync", lambda operations: operations.predict(TASK, inputs))
    assert not service.requests


def test_a_label_that_json_cannot_hold_is_refused():
    service = ListedService()
    with pytest.raises(ValueError, match="JSON"):
        service.client().create(["a", "b"], [object(), "b"])
    with pytest.raises(ValueError, match="JSON compliant"):
        service.client().create(["a", "b"], [float("nan"), 1.0])
    assert not service.requests


# ---- parts -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", FORMS)
def test_many_inputs_are_sent_in_parts_and_the_replies_are_put_together_in_order(form):
    service = ListedService(predictions("cat", "dog"), predictions("dog", "dog"), predictions("cat"), max_queue_rows=2)
    answer = service.carry_out(form, lambda operations: operations.predict(TASK, list("abcde")))
    assert [sent_json(request)["inputs"]["texts"] for request in service.requests] == [["a", "b"], ["c", "d"], ["e"]]
    assert answer.labels.tolist() == ["cat", "dog", "dog", "dog", "cat"]
    assert answer.probabilities[:, 0].tolist() == [0.9, 0.2, 0.2, 0.2, 0.9]
    assert answer.novelty.tolist() == [0.5] * 5


def test_a_part_is_smaller_than_the_largest_request():
    service = ListedService(predictions("cat", "cat"), predictions("cat"), inputs="images", max_request_mb=1)
    pictures = [b"\x89PNG" + bytes(400_000)] * 3
    service.carry_out("sync", lambda operations: operations.predict(TASK, pictures))
    assert [len(request.content) < 1_000_000 for request in service.requests] == [True, True]


def test_parts_of_two_versions_of_a_task_are_not_mixed():
    service = ListedService(predictions("cat"), *[predictions("dog", version=2)] * 3, max_queue_rows=1)
    answer = service.carry_out("sync", lambda operations: operations.predict(TASK, ["a", "b"]))
    assert answer.labels.tolist() == ["dog", "dog"] and answer.version == 2


def test_tasks_goes_over_all_pages():
    pages = [{"tasks": [STATE | {"task": f"t_{number}"}], "next": f"t_{number}"} for number in range(2)]
    service = ListedService(*pages, {"tasks": [], "next": None})
    assert [task.id for task in service.client().tasks()] == ["t_0", "t_1"]
    assert [request.url.params.get("after") for request in service.requests] == [None, "t_0", "t_1"]


# ---- what is sent again ----------------------------------------------------------------------------------------------
FAILURES = [
    LOST,
    httpx.ConnectError("connection refused"),
    httpx.Response(502, text="a proxy"),
    refusal(429, "busy"),
    refusal(503, "stopping"),
    refusal(504, "timeout"),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("operation", [create, add])
def test_what_changes_a_task_is_sent_again_with_the_same_key_and_the_same_bytes(form, failure, operation):
    service = ListedService(failure, failure, STATE)
    assert service.carry_out(form, operation) == TASK
    assert len(service.requests) == 3
    assert len({(request.content, request.headers["idempotency-key"]) for request in service.requests}) == 1


def test_two_tasks_have_two_idempotency_keys():
    service = ListedService(STATE, STATE)
    client = service.client()
    for _ in range(2):
        client.create(["it purrs", "it barks"], ["cat", "dog"])
    assert len({request.headers["idempotency-key"] for request in service.requests}) == 2


@pytest.mark.parametrize("form", FORMS)
def test_there_is_an_end_of_attempts(form):
    service = ListedService(*[refusal(503, "stopping")] * 9)
    with pytest.raises(public.Stopping) as caught:
        service.carry_out(form, predict)
    assert len(service.requests) == caught.value.attempts == AT_ONCE.attempts


@pytest.mark.parametrize("status", [400, 401, 404, 409, 413, 422, 500])
def test_what_another_attempt_does_not_cure_is_not_sent_again(status):
    service = ListedService(refusal(status, "conflict"))
    with pytest.raises(public.Conflict):
        service.carry_out("sync", predict)


def test_waits_grow_are_random_and_at_least_what_the_service_asks_for():
    policy = RetryPolicy(attempts=5, first_wait=1.0, longest_wait=4.0)
    for attempt, growing in ((1, 1.0), (2, 2.0), (3, 4.0), (4, 4.0)):
        waits = {policy.wait(attempt, None) for _ in range(50)}
        assert growing / 2 <= min(waits) and max(waits) <= growing and len(waits) > 10
        assert policy.wait(attempt, 3.0) >= 3.0 + growing / 2


def test_the_steps_wait_between_two_attempts_and_not_for_longer_than_allowed():
    call = Call("GET", "/v1/tasks")
    steps = reply_to(call, RetryPolicy(first_wait=0.0, longest_wait=10.0))
    assert next(steps) is call
    pause = steps.send(refusal(429, "busy", **{"retry-after": "7"}))
    assert isinstance(pause, Pause) and pause.seconds == 7.0
    assert steps.send(None) is call
    with pytest.raises(public.Busy, match="This is busy"):
        steps.send(refusal(429, "busy", **{"retry-after": "11"}))


@pytest.mark.parametrize("form", FORMS)
def test_a_task_that_a_lost_attempt_has_deleted_counts_as_deleted(form):
    ListedService(LOST, refusal(404, "not_found")).carry_out(form, lambda operations: operations.delete("t_1"))
    with pytest.raises(public.NotFound):
        ListedService(refusal(404, "not_found")).carry_out(form, lambda operations: operations.delete("t_1"))


# ---- errors ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("code", CLASSES)
def test_every_code_has_its_exception(code):
    service = ListedService(refusal(418, code))
    with pytest.raises(CLASSES[code]) as caught:
        service.carry_out("sync", predict)
    error = caught.value
    assert (error.code, error.status, error.request_id, error.message) == (code, 418, "r1", f"This is {code}.")
    assert "r1" in str(error) and "ml_secret" not in str(error)


@pytest.mark.parametrize("content", [b"<html>", b"[]", b'{"error": 3}', b'{"error": {}}'])
def test_an_error_that_is_not_of_the_service_is_said_to_be_so(content):
    service = ListedService(httpx.Response(400, content=content))
    with pytest.raises(public.ServiceError, match="status 400 and is not one of the service"):
        service.carry_out("sync", predict)


@pytest.mark.parametrize("content", [b"<html>", b"[]", b"{}", b"3", b'{"labels": 3, "probabilities": 1}'])
@pytest.mark.parametrize("operation", [create, predict, add])
def test_a_success_that_is_not_of_the_service_is_an_error(content, operation):
    service = ListedService(httpx.Response(200, content=content))
    with pytest.raises(public.ServiceError, match="not one of the service"):
        service.carry_out("sync", operation)


def test_a_service_that_cannot_be_reached():
    service = ListedService(*[httpx.ConnectError("connection refused")] * 4)
    with pytest.raises(public.Unreachable, match="no reply to GET /v1/tasks/t_1: connection refused"):
        service.client().task("t_1")
    assert len(service.requests) == 4


# ---- the client itself -----------------------------------------------------------------------------------------------
def test_the_key_is_that_of_the_environment_and_is_never_shown(monkeypatch):
    monkeypatch.delenv("METALORA_KEY", raising=False)
    with pytest.raises(ValueError, match="no API key.*METALORA_KEY"):
        Client("http://service")
    monkeypatch.setenv("METALORA_KEY", "ml_env\n")
    service = ListedService(STATE)
    client = Client("http://service", transport=httpx.MockTransport(service))
    task = client.task("t_1")
    assert service.requests[0].headers["authorization"] == "Bearer ml_env"
    assert "ml_env" not in repr(client) + repr(task)


@pytest.mark.parametrize(
    ("url", "key"), [("service:8000", "ml_a"), ("http://service", "ml_ä"), ("http://service", "a\nb")]
)
def test_a_wrong_address_or_key_is_refused(url, key):
    with pytest.raises(ValueError, match="url|key"):
        Client(url, key)


def test_an_id_stays_one_part_of_the_path():
    service = ListedService(refusal(404, "not_found"))
    with pytest.raises(public.NotFound):
        service.client().task("../tenants?x=1")
    assert service.requests[0].url.raw_path == b"/v1/tasks/..%2Ftenants%3Fx%3D1"


def test_numbers_and_sets_are_decoded_as_by_the_library():
    numbers = {"version": 1, "labels": [1.5, 2], "probabilities": None, "classes": [], "abstention": [0, 1]}
    sets = numbers | {"labels": [["a", "b"], []], "probabilities": [[0.7, 0.8], [0.1, 0.2]], "classes": ["a", "b"]}
    service = ListedService(STATE | {"kind": "numbers"}, numbers, numbers, STATE | {"kind": "multilabel"}, sets)
    client = service.client()
    task = client.task("t_1")
    assert task.predict(["x", "y"]).tolist() == [1.5, 2.0]
    with pytest.raises(ValueError, match="the labels of this task are numbers"):
        task.predict_proba(["x", "y"])
    assert client.task("t_1").predict(["x", "y"]) == [{"a", "b"}, set()]


def test_download_writes_a_folder(tmp_path):
    service = ListedService(STATE, httpx.Response(200, content=b"file"))
    assert service.client().task("t_1").download(tmp_path / "new" / "task") == tmp_path / "new" / "task"
    assert (tmp_path / "new" / "task" / "task.safetensors").read_bytes() == b"file"


def test_the_client_imports_no_torch():
    code = "import sys, metalora.client; print([name for name in ('torch', 'fastapi') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
