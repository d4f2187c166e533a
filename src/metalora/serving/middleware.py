"""What surrounds every request: its id, its deadline, a client that goes away, counts and a line of the log."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
import traceback
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metalora.serving.errors import ServiceError
from metalora.serving.logs import LOGGER
from metalora.serving.service import Service

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
ALWAYS_ANSWERED = ("/healthz", "/readyz", "/metrics")  # also while the service stops
CLIENT_LEFT = 499  # in the log and the metrics; nobody gets this answer


class RequestFrame:
    """The frame of every request.

    Args:
        app: The app.
        service: The service.
    """

    def __init__(self, app: ASGIApp, service: Service):
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send)
        service, start = self.service, time.perf_counter()
        service.active += 1
        try:
            if service.stopping and scope["path"] not in ALWAYS_ANSWERED:
                await exchange.fail(ServiceError("stopping", "the service is stopping", retry_after=1))
            else:
                await exchange.run(self.app, service.config.deadline_s)
        finally:
            service.active -= 1
            self._count(scope, exchange, time.perf_counter() - start)

    def _count(self, scope: Scope, exchange: Exchange, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self.service.metrics.request(route, exchange.status, seconds)
        if route in ALWAYS_ANSWERED:
            return
        fields = {
            "request": exchange.request_id,
            "method": scope["method"],
            "route": route,
            "status": exchange.status,
            "ms": round(seconds * 1000, 1),
        }
        fields |= {name: value for name, value in scope.get("log", {}).items()}
        LOGGER.info("request", extra={"fields": fields})


class Exchange:
    """A request and its answer.

    Args:
        scope: As ASGI gives it.
        receive: As ASGI gives it.
        send: As ASGI gives it.

    Attributes:
        request_id: The id that the client has sent, or a new one.
        status: Status of the answer; 499 if the client went away before.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send):
        self._scope, self._receive, self._send = scope, receive, send
        self.status = CLIENT_LEFT
        self._started, self._body_read = False, asyncio.Event()
        sent = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), "")
        self.request_id = sent if REQUEST_ID.fullmatch(sent) else secrets.token_hex(8)
        scope["log"] = {}

    async def run(self, app: ASGIApp, seconds: float) -> None:
        """Run the app until it has answered, the time is over, or the client goes away."""
        work = asyncio.create_task(self._answer(app))
        watch = asyncio.create_task(self._until_client_leaves())
        try:
            await asyncio.wait((work, watch), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                left = watch.done()
                work.cancel()
                await asyncio.wait((work,))
                if not left and not self._started:
                    await self.fail(ServiceError("timeout", f"the request took more than {seconds:g} s"))
            elif not work.cancelled() and (error := work.exception()) is not None:
                await self._failed(error)
        finally:
            for task in (work, watch):
                task.cancel()

    async def _answer(self, app: ASGIApp) -> None:
        await app(self._scope, self.receive, self.send)

    async def _failed(self, error: BaseException) -> None:
        fields = {"request": self.request_id, "error": type(error).__name__}
        fields["traceback"] = "".join(traceback.format_tb(error.__traceback__))  # not the message: it may have inputs
        LOGGER.error("internal error", extra={"fields": fields})
        if not self._started:
            await self.fail(ServiceError("internal", "something went wrong in the service; its log says more"))

    async def receive(self) -> Message:
        """Return the next message of the request; after its body, wait until the client goes away."""
        if self._body_read.is_set():
            await asyncio.Event().wait()  # `_until_client_leaves` ends this
        message = await self._receive()
        if not message.get("more_body", False):
            self._body_read.set()
        return message

    async def _until_client_leaves(self) -> None:
        await self._body_read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def send(self, message: Message) -> None:
        """Send a message of the answer, with the id of the request in its headers."""
        if message["type"] == "http.response.start":
            self._started, self.status = True, message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode())]
        await self._send(message)

    async def fail(self, error: ServiceError) -> None:
        """Answer with an error."""
        body = json.dumps(error.body()).encode()
        headers: list[Any] = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.lower().encode(), value.encode()) for name, value in error.headers().items()]
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})
