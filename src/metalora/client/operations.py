"""What a client does, as steps that send nothing themselves: `Client` and `AsyncClient` carry them out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urlencode

import httpx

from metalora.client.calls import Call, form_call, json_call
from metalora.client.errors import Conflict, NotFound
from metalora.client.inputs import Upload, plain_list, upload_of
from metalora.client.replies import (
    Array,
    Prediction,
    TaskState,
    content_of,
    embeddings_of,
    page_of,
    prediction_of,
    service_of,
    state_of,
)
from metalora.client.retries import RetryPolicy, Steps, reply_to

MEGABYTE = 1_000_000
PAGE = 100  # tasks
PART_ROWS = 64  # inputs of a request: more would take long, and gain nothing
SHARE = 0.9  # of the largest request: the rest is for the labels and the form
VERSION_ATTEMPTS = 3


class Operations:
    """The steps of every operation.

    Args:
        policy: How often and how soon a request is sent again.
    """

    def __init__(self, policy: RetryPolicy):
        self.policy = policy
        self._service: dict[str, Any] | None = None

    def service(self) -> Steps[dict[str, Any]]:
        """Return what is served; it is asked for once."""
        if self._service is None:
            response = yield from reply_to(Call("GET", "/v1/service"), self.policy)
            self._service = service_of(response)
        return self._service

    # ---- tasks -----------------------------------------------------------------------------------------------------
    def create(
        self,
        inputs: Sequence[Any],
        labels: Any,
        kind: str,
        groups: Any,
        name: str | None,
        keep_examples: bool,
    ) -> Steps[TaskState]:
        """Make a task of labelled inputs."""
        upload = yield from self._upload(inputs)
        fields = {"kind": kind, "name": name, "keep_examples": keep_examples}
        call = _call("/v1/tasks", upload, _labelled(labels, groups) | fields, idempotent=True)
        return state_of((yield from reply_to(call, self.policy)))

    def task(self, task_id: str) -> Steps[TaskState]:
        """Return a task."""
        return state_of((yield from reply_to(Call("GET", _path(task_id)), self.policy)))

    def page(self, after: str | None) -> Steps[tuple[list[TaskState], str | None]]:
        """Return some tasks after an id, and the id after which there are more, or None."""
        query = {"limit": PAGE} if after is None else {"limit": PAGE, "after": after}
        return page_of((yield from reply_to(Call("GET", f"/v1/tasks?{urlencode(query)}"), self.policy)))

    def delete(self, task_id: str) -> Steps[None]:
        """Delete a task. Not found after a first attempt without a reply: that attempt has deleted it."""
        try:
            yield from reply_to(Call("DELETE", _path(task_id)), self.policy)
        except NotFound as error:
            if error.attempts == 1:
                raise

    def add(self, task_id: str, inputs: Sequence[Any], labels: Any, groups: Any) -> Steps[TaskState]:
        """Add labelled inputs."""
        upload = yield from self._upload(inputs)
        call = _call(_path(task_id, "examples"), upload, _labelled(labels, groups), idempotent=True)
        return state_of((yield from reply_to(call, self.policy)))

    def file(self, task_id: str) -> Steps[bytes]:
        """Return the file of a task."""
        response = yield from reply_to(Call("GET", _path(task_id, "file")), self.policy)
        return response.content

    # ---- predictions -----------------------------------------------------------------------------------------------
    def predict(self, task: TaskState, inputs: Sequence[Any]) -> Steps[Prediction]:
        """Predict for any number of inputs."""
        return prediction_of((yield from self._replies(_path(task.id, "predict"), inputs)), task.kind)

    def embed(self, task: TaskState, inputs: Sequence[Any]) -> Steps[Array]:
        """Embed any number of inputs."""
        return embeddings_of((yield from self._replies(_path(task.id, "embed"), inputs)))

    def _replies(self, path: str, inputs: Sequence[Any]) -> Steps[list[httpx.Response]]:
        """Send inputs in parts that are small enough; all replies are of one version of the task."""
        upload = yield from self._upload(inputs)
        rows, size = yield from self._limits()
        calls = [_call(path, part, {}) for part in upload.batches(rows, size)]
        for _ in range(VERSION_ATTEMPTS):
            replies = []
            for call in calls:
                replies.append((yield from reply_to(call, self.policy)))
            if len({_version(reply) for reply in replies}) == 1:
                return replies
        raise Conflict("the task is changed again and again while the inputs are sent", code="conflict")

    def _upload(self, inputs: Sequence[Any]) -> Steps[Upload]:
        service = yield from self.service()
        return upload_of(inputs, service["inputs"])

    def _limits(self) -> Steps[tuple[int, int]]:
        """Return the largest number of inputs of a part, and its largest size in bytes."""
        limits = (yield from self.service())["limits"]
        return min(PART_ROWS, int(limits["max_queue_rows"])), int(SHARE * MEGABYTE * limits["max_request_mb"])


def _version(response: httpx.Response) -> Any:
    reply = content_of(response)
    return reply.get("version") if isinstance(reply, dict) else None


def _labelled(labels: Any, groups: Any) -> dict[str, Any]:
    return {"labels": plain_list(labels), "groups": None if groups is None else plain_list(groups)}


def _path(task_id: str, verb: str = "") -> str:
    return f"/v1/tasks/{quote(task_id, safe='')}" + (f"/{verb}" if verb else "")


def _call(path: str, upload: Upload, fields: dict[str, Any], *, idempotent: bool = False) -> Call:
    """Return the request that sends inputs: pictures as a form, texts as JSON; fields that are None are left out."""
    fields = {name: value for name, value in fields.items() if value is not None}
    if upload.kind == "images":
        images = [item for item in upload.items if isinstance(item, bytes)]
        return form_call(path, fields, images, idempotent=idempotent)
    return json_call(path, {"inputs": {"texts": list(upload.items)}, **fields}, idempotent=idempotent)
