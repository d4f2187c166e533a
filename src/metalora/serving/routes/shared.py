"""What the paths share: the tenant of a request, its body, and what the documentation says of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, Path, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel

from metalora.serving.errors import STATUS
from metalora.serving.schemas import ErrorReply
from metalora.serving.service import Service
from metalora.serving.store import StoredTask, Tenant

BEARER = HTTPBearer(auto_error=False, description="the key of a tenant", scheme_name="key")
FORM_FIELDS = {
    "images": {"type": "array", "items": {"type": "string", "format": "binary"}},
    "texts": {"type": "string", "contentMediaType": "application/json"},
}
LABEL_FIELDS = {
    "labels": {"type": "string", "contentMediaType": "application/json"},
    "groups": {"type": "string", "contentMediaType": "application/json"},
}
Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(BEARER)]
TaskId = Annotated[str, Path(description="the id of a task")]


async def service_of(request: Request) -> Service:
    """Return the service of the app; a coroutine, since FastAPI calls a function in another thread."""
    service: Service = request.app.state.service
    return service


async def tenant_of(request: Request, credentials: Credentials) -> Tenant:
    """Return the tenant whose key the request has; ServiceError without a valid one."""
    service = await service_of(request)
    tenant = await service.tenant(credentials.credentials if credentials else None)
    request.scope["log"]["tenant"] = tenant.id
    return tenant


Caller = Annotated[Tenant, Depends(tenant_of)]
Served = Annotated[Service, Depends(service_of)]


def answers(*codes: str) -> dict[int | str, dict[str, Any]]:
    """Return what the documentation says of the errors of a path; those of every path are among them.

    Args:
        codes: Codes of errors.
    """
    texts: dict[int | str, list[str]] = {}
    for code in (*codes, "internal", "stopping", "unavailable", "timeout"):
        texts.setdefault(STATUS[code], []).append(code)
    return {status: {"model": ErrorReply, "description": " or ".join(names)} for status, names in texts.items()}


def body_of(schema: type[BaseModel], form: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the documentation says of a body, which is JSON or a form.

    Args:
        schema: What JSON must be.
        form: The fields of the form.
    """
    of_form = {"type": "object", "properties": dict(form), "additionalProperties": False}
    of_json = {"$ref": f"#/components/schemas/{schema.__name__}"}
    content: dict[str, Any] = {"application/json": {"schema": of_json}}
    if form:
        content["multipart/form-data"] = {"schema": of_form}
    return {"requestBody": {"required": True, "content": content}}


def task_reply(task: StoredTask) -> dict[str, Any]:
    """Return a task as an answer has it."""
    shown = ("kind", "classes", "examples", "accuracy", "name")
    return {
        "task": task.id,
        "version": task.version,
        "adapter": task.learner,
        **{name: task.summary[name] for name in shown},
        "bytes": task.size,
        "keep_examples": task.keeps_examples,
        "created": task.created,
    }
