"""Errors of the service as exceptions: one class for each code."""

from __future__ import annotations

import httpx


class ServiceError(Exception):
    """The service did not do what was asked.

    Args:
        message: One sentence.
        code: The code of the reply, such as "invalid_input".
        status: The HTTP status; None if there was no reply.
        field: The part of the request that is wrong, such as "inputs.images[3]", or None.
        request_id: The id of the request, by which the log of the service names it, or None.
        retry_after: Seconds after which the service wants to be asked again, or None.

    Attributes:
        attempts: How often the request was sent.

    Example:
        >>> error = InvalidInput("The picture is damaged.", code="invalid_input", status=422, field="inputs.images[3]")
        >>> print(error)
        The picture is damaged. (invalid_input, inputs.images[3])
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: int | None = None,
        field: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ):
        super().__init__(message)
        self.message, self.code, self.status, self.field = message, code, status, field
        self.request_id, self.retry_after = request_id, retry_after
        self.attempts = 1

    def __str__(self) -> str:
        request = self.request_id and f"request {self.request_id}"
        return f"{self.message} ({', '.join(part for part in (self.code, self.field, request) if part)})"


class Unauthorized(ServiceError):
    """The API key is missing, unknown or revoked."""


class NotFound(ServiceError):
    """The tenant has no such task."""


class InvalidInput(ServiceError):
    """The inputs, labels or settings of a request are wrong; `field` says which."""


class TooLarge(ServiceError):
    """The request is larger than the service allows."""


class UnsupportedMediaType(ServiceError):
    """The request has a content type that the service does not read."""


class Conflict(ServiceError):
    """The task cannot do this, or it was changed at the same time."""


class LimitReached(ServiceError):
    """The tenant has as many tasks as it may have."""


class Busy(ServiceError):
    """Too many requests wait; ask again after `retry_after` seconds."""


class DeadlineExceeded(ServiceError):
    """The service had no time for the request."""


class Stopping(ServiceError):
    """The service is about to stop."""


class Unavailable(ServiceError):
    """The store of the service does not work now."""


class InternalError(ServiceError):
    """The service has a fault."""


class Unreachable(ServiceError):
    """No reply came: the connection failed."""


CLASSES: dict[str, type[ServiceError]] = {
    "unauthorized": Unauthorized,
    "not_found": NotFound,
    "invalid_input": InvalidInput,
    "invalid_json": InvalidInput,
    "invalid_form": InvalidInput,
    "too_large": TooLarge,
    "unsupported_media_type": UnsupportedMediaType,
    "conflict": Conflict,
    "limit_reached": LimitReached,
    "busy": Busy,
    "timeout": DeadlineExceeded,
    "stopping": Stopping,
    "unavailable": Unavailable,
    "internal": InternalError,
}


def error_of(response: httpx.Response) -> ServiceError:
    """Return the error that a reply stands for.

    Args:
        response: A reply that is no success; one without the form of the service (a proxy's) has the code "unknown".
    """
    described = _described(response)
    code = str(described.get("code", "unknown"))
    message = f"the reply has status {response.status_code} and is not one of the service"
    return CLASSES.get(code, ServiceError)(
        described.get("message", message),
        code=code,
        status=response.status_code,
        field=described.get("field"),
        request_id=response.headers.get("x-request-id"),
        retry_after=_seconds(response.headers.get("retry-after")),
    )


def unexpected_reply(response: httpx.Response) -> ServiceError:
    """Return the error of a success whose content is not what the service sends."""
    message = f"the reply of {response.request.url.path} is not one of the service"
    request_id = response.headers.get("x-request-id")
    return ServiceError(message, code="unknown", status=response.status_code, request_id=request_id)


def _described(response: httpx.Response) -> dict[str, str]:
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}


def _seconds(text: str | None) -> float | None:
    """Return the number of a header Retry-After; None for a date."""
    return float(text) if text is not None and text.isdecimal() else None
