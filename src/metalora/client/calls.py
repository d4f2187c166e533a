"""Requests as they are sent: each may be sent twice, with the effect of sending it once."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass(frozen=True)
class Call:
    """A request. Its content is encoded once, so that it is the same to the byte if it is sent again.

    Attributes:
        method: GET, POST or DELETE.
        path: The path, with its query.
        content: The body.
        headers: Headers of this request, such as its content type.
    """

    method: str
    path: str
    content: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def json_call(path: str, body: Mapping[str, Any], *, idempotent: bool = False) -> Call:
    """Return a POST with a JSON body.

    Args:
        path: The path.
        body: What JSON can hold.
        idempotent: Whether it changes something, and so needs an idempotency key.

    Raises:
        ValueError: A number is NaN or infinite, or JSON cannot hold a value.
    """
    try:
        content = json.dumps(body, allow_nan=False, ensure_ascii=False).encode()
    except TypeError as error:
        raise ValueError(f"{path}: JSON cannot hold the request ({error})") from None
    return _post(path, content, "application/json", idempotent)


def form_call(path: str, fields: Mapping[str, Any], images: Sequence[bytes], *, idempotent: bool = False) -> Call:
    """Return a POST of a form (multipart/form-data) with files.

    Args:
        path: The path.
        fields: The fields: texts as they are, anything else as JSON.
        images: Contents of the files.
        idempotent: Whether it changes something, and so needs an idempotency key.
    """
    values = {
        name: value if isinstance(value, str) else json.dumps(value, allow_nan=False) for name, value in fields.items()
    }
    files = [("images", (f"{number}", image, media_type(image))) for number, image in enumerate(images)]
    request = httpx.Request("POST", "http://service", data=values, files=files)
    return _post(path, request.read(), request.headers["content-type"], idempotent)


def _post(path: str, content: bytes, content_type: str, idempotent: bool) -> Call:
    headers = {"content-type": content_type}
    if idempotent:
        headers["idempotency-key"] = secrets.token_urlsafe(16)
    return Call("POST", path, content, headers)


def media_type(image: bytes) -> str:
    """Return the media type of the bytes of a picture file.

    Example:
        >>> media_type(b"\\xff\\xd8\\xff")
        'image/jpeg'
    """
    if image.startswith(b"RIFF") and image[8:12] == b"WEBP":
        return "image/webp"
    starts = {b"\xff\xd8": "image/jpeg", b"\x89PNG": "image/png", b"GIF8": "image/gif", b"BM": "image/bmp"}
    return next((name for start, name in starts.items() if image.startswith(start)), "application/octet-stream")
