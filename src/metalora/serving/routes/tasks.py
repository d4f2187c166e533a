"""Tasks: create, list, read, add examples, delete."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response

from metalora.serving.bodies import read_body
from metalora.serving.errors import not_found
from metalora.serving.routes.shared import (
    FORM_FIELDS,
    LABEL_FIELDS,
    Caller,
    Served,
    TaskId,
    answers,
    body_of,
    task_reply,
)
from metalora.serving.schemas import LabelledRequest, TaskReply, TaskRequest, TasksReply

ROUTER = APIRouter(tags=["tasks"])
BODY_ERRORS = ("invalid_json", "invalid_form", "too_large", "unsupported_media_type", "invalid_input", "busy")
ID_ERRORS = ("unauthorized", "not_found", "invalid_input")
FILE_TYPE = "application/octet-stream"
IdempotencyKey = Annotated[
    str | None, Header(min_length=1, max_length=200, description="the same key gives the same task, for a day")
]
TASK_FIELDS = {
    "kind": {"type": "string"},
    "name": {"type": "string"},
    "keep_examples": {"type": "string", "enum": ["true", "false"]},
}


@ROUTER.post(
    "/v1/tasks",
    status_code=201,
    response_model=TaskReply,
    responses={
        200: {"model": TaskReply, "description": "the task that the request with this Idempotency-Key has created"},
        **answers("unauthorized", "conflict", "limit_reached", *BODY_ERRORS),
    },
    openapi_extra=body_of(TaskRequest, FORM_FIELDS | LABEL_FIELDS | TASK_FIELDS),
)
async def create_task(
    request: Request, response: Response, caller: Caller, service: Served, idempotency_key: IdempotencyKey = None
) -> dict[str, Any]:
    """Adapt to labelled examples, and store the task."""
    body = await read_body(request, TaskRequest, service.most_bytes)
    request.scope["log"]["rows"] = len(body.labels)
    task, is_new = await service.create(caller.id, body, idempotency_key)
    response.status_code = 201 if is_new else 200
    return task_reply(task)


@ROUTER.get("/v1/tasks", response_model=TasksReply, responses=answers("unauthorized", "invalid_input"))
async def list_tasks(
    caller: Caller,
    service: Served,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[str | None, Query(description="`next` of the page before", pattern=r"^[\x20-\x7e]*$")] = None,
) -> dict[str, Any]:
    """List tasks, in the order of their ids."""
    tasks = await service.stored(service.store.tasks, caller.id, limit=limit + 1, after=after)
    page = tasks[:limit]
    return {"tasks": [task_reply(task) for task in page], "next": page[-1].id if len(tasks) > limit else None}


@ROUTER.get("/v1/tasks/{task_id}", response_model=TaskReply, responses=answers(*ID_ERRORS))
async def read_task(task_id: TaskId, caller: Caller, service: Served) -> dict[str, Any]:
    """Describe a task."""
    return task_reply(await service.task(caller.id, task_id))


@ROUTER.delete("/v1/tasks/{task_id}", status_code=204, responses=answers(*ID_ERRORS))
async def delete_task(task_id: TaskId, caller: Caller, service: Served) -> None:
    """Delete a task, with its examples."""
    task = await service.task(caller.id, task_id)
    if not await service.stored(service.store.delete_task, caller.id, task.id):
        raise not_found()


@ROUTER.get(
    "/v1/tasks/{task_id}/file",
    response_class=Response,
    responses={
        200: {"content": {FILE_TYPE: {"schema": {"type": "string", "format": "binary"}}}},
        **answers(*ID_ERRORS),
    },
)
async def read_file(task_id: TaskId, caller: Caller, service: Served) -> Response:
    """Download the file of a task, which `AdaptedTask.from_pretrained` of the library reads."""
    task, content = await service.content(caller.id, task_id)
    name = f'attachment; filename="task.safetensors"; version={task.version}'
    return Response(content, media_type=FILE_TYPE, headers={"Content-Disposition": name})


@ROUTER.post(
    "/v1/tasks/{task_id}/examples",
    response_model=TaskReply,
    responses=answers("unauthorized", "not_found", "conflict", *BODY_ERRORS),
    openapi_extra=body_of(LabelledRequest, FORM_FIELDS | LABEL_FIELDS),
)
async def add_examples(
    task_id: TaskId, request: Request, caller: Caller, service: Served, idempotency_key: IdempotencyKey = None
) -> dict[str, Any]:
    """Adapt to the old and the new examples together: the next version of the task."""
    await service.task(caller.id, task_id)  # before the body is read
    body = await read_body(request, LabelledRequest, service.most_bytes)
    request.scope["log"]["rows"] = len(body.labels)
    return task_reply(await service.add_examples(caller.id, task_id, body, idempotency_key))
