"""The clients: `Client` waits for each reply, `AsyncClient` is awaited. Both carry out the same steps."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from types import TracebackType
from typing import Any

import httpx

from metalora.client.operations import Operations
from metalora.client.retries import Outcome, Pause, Result, RetryPolicy, Step, Steps
from metalora.client.tasks import AsyncRemoteTask, RemoteTask, async_remote_task, remote_task

KEY_VARIABLE = "METALORA_KEY"
TIMEOUT = 60.0  # seconds; the service itself gives up a request after 30
CONNECTIONS = httpx.Limits(max_connections=100, max_keepalive_connections=20)


class Client:
    """A client of `metalora serve`. It keeps connections open: use it as a context manager, or close it.

    Threads may share one.

    Args:
        url: Address of the service.
        key: The API key; None: that of the environment variable METALORA_KEY.
        timeout: Longest time to wait for a part of a reply, in seconds.
        retries: How often and how soon a request is sent again after 429, 503 and failed connections.
        transport: How requests are carried out, if not over the network, such as `httpx.MockTransport`.

    Raises:
        ValueError: The address is not one of HTTP, or there is no key.

    Example:
        >>> state = {"task": "t_1", "version": 1, "adapter": "5f", "kind": "classes", "classes": ["cat", "dog"]}
        >>> state |= {"examples": 2, "bytes": 900, "accuracy": 1.0, "name": None, "keep_examples": False, "created": ""}
        >>> answers = {
        ...     "/v1/service": {"inputs": "texts", "limits": {"max_queue_rows": 1024, "max_request_mb": 32}},
        ...     "/v1/tasks": state,
        ...     "/v1/tasks/t_1/predict": {"version": 1, "labels": ["cat"], "probabilities": [[0.9, 0.1]],
        ...                               "classes": ["cat", "dog"], "abstention": [0.0]},
        ... }
        >>> service = httpx.MockTransport(lambda request: httpx.Response(200, json=answers[request.url.path]))
        >>> with Client("http://service", "ml_key", transport=service) as client:
        ...     task = client.create(["it purrs", "it barks"], ["cat", "dog"])
        ...     print(task.predict(["a kitten"]))
        ['cat']
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout: float = TIMEOUT,
        retries: RetryPolicy | None = None,
        transport: httpx.BaseTransport | None = None,
    ):
        self.operations = Operations(retries or RetryPolicy())
        self._http = httpx.Client(
            base_url=_checked_url(url), headers=_headers(key), timeout=timeout, limits=CONNECTIONS, transport=transport
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __repr__(self) -> str:
        return f"Client({str(self._http.base_url)!r})"

    def run(self, steps: Steps[Result]) -> Result:
        """Carry out the steps of an operation and return its result.

        Args:
            steps: What `operations` gives.
        """
        try:
            step = next(steps)
            while True:
                step = steps.send(self._outcome(step))
        except StopIteration as end:
            result: Result = end.value
            return result

    def _outcome(self, step: Step) -> Outcome:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        try:
            return self._http.request(step.method, step.path, content=step.content, headers=step.headers)
        except httpx.TransportError as error:
            return error

    # ---- tasks -----------------------------------------------------------------------------------------------------
    def service(self) -> dict[str, Any]:
        """Return what is served: the kind of inputs, the network, the method, the limits."""
        return self.run(self.operations.service())

    def create(
        self,
        inputs: Sequence[Any],
        labels: Any,
        *,
        kind: str = "auto",
        groups: Any = None,
        name: str | None = None,
        keep_examples: bool = False,
    ) -> RemoteTask:
        """Make a task of labelled inputs and return it once the service has stored it.

        A failed attempt is repeated with the same idempotency key, so that there is one task however often it is sent.

        Args:
            inputs: Paths, bytes of files, pictures of PIL, arrays (height, width, 3) of uint8; or texts.
            labels: Their labels.
            kind: "classes", "numbers", "multilabel" or "auto".
            groups: A group for each input: inputs of one group never judge each other.
            name: A name for you.
            keep_examples: Whether the service keeps the inputs, so that further ones can be added.

        Raises:
            ServiceError: The service answers with an error, or cannot be reached.
            ValueError: An input is not what the service takes.
        """
        return remote_task(self, self.run(self.operations.create(inputs, labels, kind, groups, name, keep_examples)))

    def task(self, task_id: str) -> RemoteTask:
        """Return a task; NotFound if there is none of this id."""
        return remote_task(self, self.run(self.operations.task(task_id)))

    def tasks(self) -> Iterator[RemoteTask]:
        """Yield all tasks of the tenant; they are fetched by pages."""
        after: str | None = None
        while True:
            states, after = self.run(self.operations.page(after))
            yield from (remote_task(self, state) for state in states)
            if after is None:
                return

    def delete(self, task_id: str) -> None:
        """Delete a task; NotFound if there is none of this id."""
        self.run(self.operations.delete(task_id))


class AsyncClient:
    """A client as `Client`, for asyncio.

    Args:
        url: Address of the service.
        key: The API key; None: that of the environment variable METALORA_KEY.
        timeout: Longest time to wait for a part of a reply, in seconds.
        retries: How often and how soon a request is sent again.
        transport: How requests are carried out, such as `httpx.ASGITransport` for an app in this process.

    Example:
        >>> page = {"tasks": [], "next": None}
        >>> service = httpx.MockTransport(lambda request: httpx.Response(200, json=page))
        >>> async def count_tasks():
        ...     async with AsyncClient("http://service", "ml_key", transport=service) as client:
        ...         return len([task async for task in client.tasks()])
        >>> asyncio.run(count_tasks())
        0
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout: float = TIMEOUT,
        retries: RetryPolicy | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ):
        self.operations = Operations(retries or RetryPolicy())
        self._http = httpx.AsyncClient(
            base_url=_checked_url(url), headers=_headers(key), timeout=timeout, limits=CONNECTIONS, transport=transport
        )

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def __repr__(self) -> str:
        return f"AsyncClient({str(self._http.base_url)!r})"

    async def run(self, steps: Steps[Result]) -> Result:
        """As `Client.run`."""
        try:
            step = next(steps)
            while True:
                step = steps.send(await self._outcome(step))
        except StopIteration as end:
            result: Result = end.value
            return result

    async def _outcome(self, step: Step) -> Outcome:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        try:
            return await self._http.request(step.method, step.path, content=step.content, headers=step.headers)
        except httpx.TransportError as error:
            return error

    # ---- tasks -----------------------------------------------------------------------------------------------------
    async def service(self) -> dict[str, Any]:
        """As `Client.service`."""
        return await self.run(self.operations.service())

    async def create(
        self,
        inputs: Sequence[Any],
        labels: Any,
        *,
        kind: str = "auto",
        groups: Any = None,
        name: str | None = None,
        keep_examples: bool = False,
    ) -> AsyncRemoteTask:
        """As `Client.create`."""
        state = await self.run(self.operations.create(inputs, labels, kind, groups, name, keep_examples))
        return async_remote_task(self, state)

    async def task(self, task_id: str) -> AsyncRemoteTask:
        """As `Client.task`."""
        return async_remote_task(self, await self.run(self.operations.task(task_id)))

    async def tasks(self) -> AsyncIterator[AsyncRemoteTask]:
        """As `Client.tasks`."""
        after: str | None = None
        while True:
            states, after = await self.run(self.operations.page(after))
            for state in states:
                yield async_remote_task(self, state)
            if after is None:
                return

    async def delete(self, task_id: str) -> None:
        """As `Client.delete`."""
        await self.run(self.operations.delete(task_id))


def _checked_url(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"url {url!r}: expected an address such as http://127.0.0.1:8000")
    return url


def _headers(key: str | None) -> dict[str, str]:
    key = (os.environ.get(KEY_VARIABLE, "") if key is None else key).strip()
    if not key:
        raise ValueError(f"no API key: pass key=..., or set the environment variable {KEY_VARIABLE}")
    if not key.isascii() or not key.isprintable():
        raise ValueError("the API key has characters that no key has; was it copied as a whole?")
    return {"authorization": f"Bearer {key}"}
