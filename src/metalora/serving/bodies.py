"""The bodies of requests: JSON or a form, bounded in size, as one of the schemas."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from metalora.serving.errors import ServiceError

Body = TypeVar("Body", bound=BaseModel)
JSON_TYPE, FORM_TYPE = "application/json", "multipart/form-data"
FILES = {"images": "inputs", "queries": "queries"}  # part of a form with a file -> the inputs that it belongs to
JSON_PARTS = ("texts", "labels", "groups", "keep_examples")  # parts of a form that hold JSON
MOST_PARTS = 20_000
SMALL = 64_000  # bytes of JSON, which are read in less than a millisecond: another thread would cost more


class MemoryParser(MultiPartParser):
    """Keeps the files of a form in memory, where the body is already: what tenants send is not written to the disk."""

    spool_max_size = 2**40


async def read_body(request: Request, schema: type[Body], most_bytes: int) -> Body:
    """Return the body of a request.

    Args:
        request: The request.
        schema: What the body must be.
        most_bytes: Largest body.

    Raises:
        ServiceError: The body is too large, of another media type, malformed or not as the schema says.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in (JSON_TYPE, FORM_TYPE):
        raise ServiceError("unsupported_media_type", f"expected a body of {JSON_TYPE} or {FORM_TYPE}")
    content = await _content(request, most_bytes)
    if media_type == JSON_TYPE and len(content) <= SMALL:
        return from_json(content, schema)
    if media_type == JSON_TYPE:
        return await run_in_threadpool(from_json, content, schema)
    form = await _form(request.headers, content)
    return await run_in_threadpool(_validated, schema, form)


async def _content(request: Request, most_bytes: int) -> bytes:
    """Return the body; ServiceError as soon as it is too large, whatever its header says."""
    too_large = ServiceError("too_large", f"the request has more than {most_bytes} bytes")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most_bytes:
        raise too_large
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > most_bytes:
            raise too_large
    return bytes(content)


def from_json(content: bytes, schema: type[Body]) -> Body:
    """Return what JSON holds; ServiceError if it is malformed or not as the schema says."""
    try:
        return schema.model_validate_json(content)
    except ValidationError as error:
        raise _service_error(error) from None


def _validated(schema: type[Body], values: dict[str, Any]) -> Body:
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise _service_error(error) from None


def _service_error(error: ValidationError) -> ServiceError:
    """Return the first problem of a body; the message never has the value, which may be private."""
    problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if problem["type"] == "json_invalid":
        return ServiceError("invalid_json", "the body is not valid JSON")
    field = _field(problem["loc"])
    sentence = problem["msg"].removeprefix("Value error, ")
    return ServiceError("invalid_input", f"{field or 'body'}: {sentence[0].lower()}{sentence[1:]}", field)


def _field(location: tuple[int | str, ...]) -> str | None:
    """Return a place as "inputs.images[3]"; the parts that say which type of a union was tried are left out."""
    field = ""
    for part in location:
        if isinstance(part, int):
            field += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "bool", "int", "float"):
            field += f".{part}" if field else part
    return field or None


async def _form(headers: Headers, content: bytes) -> dict[str, Any]:
    """Return the parts of a form in the structure that JSON has."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield content

    parser = MemoryParser(
        headers, stream(), max_files=MOST_PARTS, max_fields=MOST_PARTS, max_part_size=len(content) + 1
    )
    if not content.rstrip().endswith(b"--"):  # the parser would drop its last part in silence
        raise ServiceError("invalid_form", "the form is not complete: its last boundary is missing")
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError, UnicodeDecodeError) as error:
        raise ServiceError("invalid_form", "the body is not a valid form") from error
    try:
        return await _structured(form)
    finally:
        await form.close()


async def _structured(form: FormData) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name not in FILES:
                raise ServiceError("invalid_input", f"{name}: not a part that holds a file", name)
            values.setdefault(FILES[name], {}).setdefault("images", []).append(await value.read())
        elif name in FILES:
            raise ServiceError("invalid_input", f"{name}: expected files", name)
        elif name in JSON_PARTS:
            parsed = _json_part(name, value)
            values.update({"inputs": {"texts": parsed}} if name == "texts" else {name: parsed})
        else:
            values[name] = value
    return values


def _json_part(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ServiceError("invalid_input", f"{name}: not valid JSON", name) from None
