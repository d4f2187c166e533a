"""Python client of the service: synchronous and asynchronous. It needs httpx, and imports no torch."""

from metalora.client.client import AsyncClient, Client
from metalora.client.errors import (
    Busy,
    Conflict,
    DeadlineExceeded,
    InternalError,
    InvalidInput,
    LimitReached,
    NotFound,
    ServiceError,
    Stopping,
    TooLarge,
    Unauthorized,
    Unavailable,
    Unreachable,
    UnsupportedMediaType,
)
from metalora.client.replies import Prediction
from metalora.client.retries import RetryPolicy
from metalora.client.tasks import AsyncRemoteTask, RemoteTask

__all__ = [
    "AsyncClient",
    "AsyncRemoteTask",
    "Busy",
    "Client",
    "Conflict",
    "DeadlineExceeded",
    "InternalError",
    "InvalidInput",
    "LimitReached",
    "NotFound",
    "Prediction",
    "RemoteTask",
    "RetryPolicy",
    "ServiceError",
    "Stopping",
    "TooLarge",
    "Unauthorized",
    "Unavailable",
    "Unreachable",
    "UnsupportedMediaType",
]
