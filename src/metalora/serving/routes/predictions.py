"""Predictions and embeddings of a task, and the preview of one that is not stored."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from metalora.serving.adapting import predictions
from metalora.serving.bodies import read_body
from metalora.serving.routes.shared import FORM_FIELDS, Caller, Served, TaskId, answers, body_of
from metalora.serving.routes.tasks import BODY_ERRORS
from metalora.serving.schemas import EmbedReply, InputsRequest, PredictReply, PreviewReply, PreviewRequest

ROUTER = APIRouter(tags=["predictions"])
TASK_ERRORS = ("unauthorized", "not_found", "conflict", *BODY_ERRORS)


@ROUTER.post(
    "/v1/tasks/{task_id}/predict",
    response_model=PredictReply,
    responses=answers(*TASK_ERRORS),
    openapi_extra=body_of(InputsRequest, FORM_FIELDS),
)
async def predict(task_id: TaskId, request: Request, caller: Caller, service: Served) -> dict[str, Any]:
    """Predict the labels of inputs, with probabilities, and how unlike the examples each input is."""
    stored, task, engine = await service.loaded(caller.id, task_id)
    body = await read_body(request, InputsRequest, service.most_bytes)
    outputs = await service.outputs(caller.id, task, engine, body.inputs)
    request.scope["log"]["rows"] = len(outputs.logits)
    said = predictions(task.labels, outputs.logits, outputs.novelty)
    return {"task": stored.id, "version": stored.version, **dict(said), "classes": list(task.labels.classes)}


@ROUTER.post(
    "/v1/tasks/{task_id}/embed",
    response_model=EmbedReply,
    responses=answers(*TASK_ERRORS),
    openapi_extra=body_of(InputsRequest, FORM_FIELDS),
)
async def embed(task_id: TaskId, request: Request, caller: Caller, service: Served) -> dict[str, Any]:
    """Return embeddings of inputs: inputs that are alike for this task are close."""
    stored, task, engine = await service.loaded(caller.id, task_id)
    body = await read_body(request, InputsRequest, service.most_bytes)
    outputs = await service.outputs(caller.id, task, engine, body.inputs)
    request.scope["log"]["rows"] = len(outputs.embeddings)
    return {"task": stored.id, "version": stored.version, "embeddings": outputs.embeddings.tolist()}


@ROUTER.post(
    "/v1/preview",
    response_model=PreviewReply,
    responses=answers("unauthorized", *BODY_ERRORS),
    openapi_extra=body_of(PreviewRequest, {}),
)
async def preview(request: Request, caller: Caller, service: Served) -> PreviewReply:
    """Adapt to labelled examples without storing anything, and predict queries."""
    body = await read_body(request, PreviewRequest, service.most_bytes)
    request.scope["log"]["rows"] = len(body.labels)
    return await service.preview(caller.id, body)
