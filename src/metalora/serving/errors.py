"""The errors of the service: a code, a status of HTTP, one sentence, and the field that is wrong."""

from __future__ import annotations

from typing import Any

STATUS = {  # code -> status of HTTP
    "invalid_json": 400,
    "invalid_form": 400,
    "unauthorized": 401,
    "limit_reached": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "too_large": 413,
    "unsupported_media_type": 415,
    "invalid_input": 422,
    "busy": 429,
    "internal": 500,
    "stopping": 503,
    "unavailable": 503,
    "timeout": 504,
}


class ServiceError(Exception):
    """An answer of the service that is no success.

    Args:
        code: One of `STATUS`.
        message: One plain sentence.
        field: The part of the request that is wrong, such as "inputs.images[3]".
        retry_after: After how many seconds the client should try again.

    Example:
        >>> ServiceError("busy", "the queue is full", retry_after=2).headers()
        {'Retry-After': '2'}
    """

    def __init__(self, code: str, message: str, field: str | None = None, retry_after: int | None = None):
        super().__init__(message)
        self.code, self.message, self.field, self.retry_after = code, message, field, retry_after

    @property
    def status(self) -> int:
        """The status of HTTP."""
        return STATUS[self.code]

    def headers(self) -> dict[str, str]:
        """Return the headers that belong to the answer."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.code == "unauthorized" else {})

    def body(self) -> dict[str, Any]:
        """Return the answer as JSON has it."""
        return {"error": {"code": self.code, "message": self.message, "field": self.field}}


def not_found() -> ServiceError:
    """Return the answer for a task that this tenant does not have: the same, whether it exists or not."""
    return ServiceError("not_found", "there is no such task")
