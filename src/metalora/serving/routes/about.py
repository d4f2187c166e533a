"""What is served, whether it is well, and its numbers."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Response

from metalora.serving.errors import ServiceError
from metalora.serving.routes.shared import Caller, Served, answers
from metalora.serving.schemas import ServiceReply, StatusReply
from metalora.serving.store import StoreFailure

ROUTER = APIRouter(tags=["service"])
LIMITS = ("max_tasks", "max_examples", "max_request_mb", "max_pixels", "max_queue_rows", "task_bytes", "deadline_s")
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@ROUTER.get("/v1/service", response_model=ServiceReply, responses=answers("unauthorized"))
async def about(caller: Caller, service: Served) -> dict[str, Any]:
    """Say what is served, and within which limits."""
    learner = service.engine.learner
    return {
        "inputs": service.kind,
        "backbone": _network_name(learner.backbone.name) or type(learner.backbone.model).__name__,
        "adapter": service.engine.fingerprint,
        "method": None if learner.adapter is None else learner.adapter.method.name,
        "limits": {name: getattr(service.config, name) for name in LIMITS},
        "version": version("metalora"),
    }


def _network_name(name: str | None) -> str | None:
    """Return the name of a network without the paths of this machine: timm:NAME@FILE and hf:FOLDER."""
    if name is None:
        return None
    library, _, rest = name.partition("@")[0].partition(":")
    return (
        f"{library}:{rest.rstrip('/').rpartition('/')[2]}"
        if rest.startswith(("/", ".", "~"))
        else name.partition("@")[0]
    )


@ROUTER.get("/healthz", response_model=StatusReply)
async def healthz() -> dict[str, str]:
    """Say that the process lives."""
    return {"status": "alive"}


@ROUTER.get("/readyz", response_model=StatusReply, responses=answers())
async def readyz(service: Served) -> dict[str, str]:
    """Say whether requests are taken: the store answers, and the service does not stop."""
    if service.stopping:
        raise ServiceError("stopping", "the service is stopping", retry_after=1)
    try:
        await service.stored(service.store.check)
    except StoreFailure:
        raise ServiceError("unavailable", "the store does not answer", retry_after=1) from None
    return {"status": "ready"}


@ROUTER.get(
    "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
)
async def metrics(service: Served) -> Response:
    """Return the numbers of this process, for Prometheus."""
    return Response(service.metrics.text(), media_type=METRICS_TYPE)
