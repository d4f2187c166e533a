"""What the service does, without HTTP: tasks of tenants in a store, run by the engines of learners."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from torch import Tensor

from metalora.learner.learner import MetaLearner
from metalora.learner.many_tasks import TaskOutputs
from metalora.learner.task import AdaptedTask
from metalora.serving.adapting import MadeTask, Support, made_task, preview
from metalora.serving.config import ServingConfig
from metalora.serving.engine import Engine
from metalora.serving.errors import ServiceError, not_found
from metalora.serving.hot_tasks import HotTasks, TaskKey
from metalora.serving.inputs import InputReader
from metalora.serving.keys import key_digest
from metalora.serving.metrics import Metrics
from metalora.serving.schemas import Inputs, LabelledRequest, PreviewReply, PreviewRequest, TaskRequest
from metalora.serving.store import (
    Example,
    KeyReused,
    LimitReached,
    NewTask,
    Store,
    StoredTask,
    StoreFailure,
    Tenant,
    VersionConflict,
)
from metalora.serving.store.sqlite import SqliteDatabase

Result = TypeVar("Result")
TASK_ID = re.compile(r"t_[A-Za-z0-9_-]{22}")
READERS = 4  # requests whose inputs are prepared at once
WRITERS = 16  # calls of the store that may wait for its disk at once
MOST_READS = 20  # of a task that others change or delete at the same time
ATTEMPTS = 20  # to add examples, if others change the task at the same time
NO_TENANT = 0  # has the turn of one tenant in the adapting lane: work of the service itself; tenants begin at 1
REMEMBERED_REQUESTS = 32  # idempotency keys of a task's additions


class Service:
    """Learners, a store, and what tenants may ask of them.

    Args:
        learners: The current learner first, then older ones, whose tasks are still served.
        store: The store.
        config: The settings.

    Attributes:
        engine: The engine of the current learner.
        engines: Fingerprint -> engine.
        hot: The tasks that were used last.
        metrics: What is counted.
        stopping: Whether no more requests are taken.
        active: Number of requests that are being answered.

    Raises:
        ValueError: A learner takes arrays, or the learners take different inputs.
    """

    def __init__(self, learners: Sequence[MetaLearner], store: Store, config: ServingConfig):
        self.store, self.config, self.metrics = store, config, Metrics()
        self.readers = {id(each): InputReader(each.backbone.preprocessor, config.max_pixels) for each in learners}
        if len({reader.kind for reader in self.readers.values()}) > 1:
            raise ValueError("the learners take different inputs: pictures and texts")
        engines = [Engine(learner, config, self.metrics) for learner in learners]
        self.engine, self.engines = engines[0], {engine.fingerprint: engine for engine in engines}
        self.hot = HotTasks(config.hot_mb * 10**6)
        self.stopping, self.active = False, 0
        self._is_embedded = isinstance(getattr(store, "database", None), SqliteDatabase)
        self._preparing = ThreadPoolExecutor(READERS, "metalora inputs")
        self._storing = ThreadPoolExecutor(WRITERS, "metalora store")
        # One thread: malloc gives every thread a heap of its own, and tasks that stay in many heaps leave gaps in all.
        self._loading = ThreadPoolExecutor(1, "metalora tasks")
        self._changes: dict[tuple[int, str], asyncio.Lock] = {}
        self._count()

    def _count(self) -> None:
        self.metrics.gauge(
            "metalora_queue_rows",
            "Inputs that wait for a prediction",
            lambda: sum(engine.predictions.rows for engine in self.engines.values()),
        )
        self.metrics.gauge("metalora_hot_tasks", "Tasks in memory", lambda: len(self.hot))
        self.metrics.gauge("metalora_hot_task_bytes", "Bytes of the tasks in memory", lambda: self.hot.bytes)

    @property
    def most_bytes(self) -> int:
        """Largest body of a request, in bytes."""
        return self.config.max_request_mb * 10**6

    @property
    def kind(self) -> str:
        """What the service takes: "images" or "texts"."""
        return self._reader(self.engine).kind

    @property
    def is_alive(self) -> bool:
        """Whether all lanes of all learners run."""
        return all(engine.is_alive for engine in self.engines.values())

    def close(self) -> None:
        """Finish what was accepted, and close the store."""
        self.stopping = True
        for engine in self.engines.values():
            engine.close()
        self._preparing.shutdown()
        self._storing.shutdown()
        self._loading.shutdown()
        self.store.close()

    async def _looked_up(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a method of the store that every request needs; a store in this process answers in microseconds."""
        return function(*arguments) if self._is_embedded else await self.stored(function, *arguments)

    async def stored(self, function: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
        """Call a method of the store in a thread of its own, so that a slow disk holds up nobody else."""
        call = functools.partial(function, *arguments, **named)
        return await asyncio.get_running_loop().run_in_executor(self._storing, call)

    async def _prepared(self, function: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._preparing, function, *arguments)

    def _reader(self, engine: Engine) -> InputReader:
        return self.readers[id(engine.learner)]

    # ---- tenants and their tasks -----------------------------------------------------------------------------------
    async def tenant(self, key: str | None) -> Tenant:
        """Return the tenant with a key; ServiceError if there is none."""
        tenant = None if key is None else await self._looked_up(self.store.tenant_of, key_digest(key))
        if tenant is None:
            raise ServiceError("unauthorized", "expected the header Authorization: Bearer KEY with a valid key")
        return tenant

    async def task(self, tenant: int, task_id: str) -> StoredTask:
        """Return a task of a tenant; ServiceError if it has none of this id. A malformed id takes the same way."""
        searched = task_id if TASK_ID.fullmatch(task_id) else ""
        task = await self._looked_up(self.store.task, tenant, searched)
        if task is None:
            raise not_found()
        return task

    async def content(self, tenant: int, task_id: str) -> tuple[StoredTask, bytes]:
        """Return the newest version of a task with its file; ServiceError if there is none.

        Raises:
            StoreFailure: The store has the task, and never gives its content.
        """
        return await self._content_of(tenant, await self.task(tenant, task_id))

    async def _content_of(self, tenant: int, task: StoredTask) -> tuple[StoredTask, bytes]:
        """Return a task with its file, both of a newer version if the task was replaced after it was looked up."""
        for _ in range(MOST_READS):
            content = await self.stored(self.store.content, tenant, task.id, task.version)
            if content is not None:
                return task, content
            task = await self.task(tenant, task.id)
        raise StoreFailure("the store has a task without its content")

    async def loaded(self, tenant: int, task_id: str) -> tuple[StoredTask, AdaptedTask, Engine]:
        """Return the newest version of a task, ready to predict, with its engine.

        Raises:
            ServiceError: There is none, or its learner is not served.
        """
        stored = await self.task(tenant, task_id)
        task = self.hot.get(TaskKey(tenant, stored.id, stored.version))
        if task is not None:
            self.metrics.hot_hits.inc()
            return stored, task, self._engine_of(stored)
        self.metrics.hot_misses.inc()
        self._engine_of(stored)
        stored, content = await self._content_of(tenant, stored)
        engine = self._engine_of(stored)
        task = await asyncio.get_running_loop().run_in_executor(self._loading, engine.task_of, content)
        self.hot.put(TaskKey(tenant, stored.id, stored.version), task)
        return stored, task, engine

    def _engine_of(self, stored: StoredTask) -> Engine:
        engine = self.engines.get(stored.learner)
        if engine is None:
            sentence = "this task was made by an adapter that is no longer served; make it again from its examples"
            raise ServiceError("conflict", sentence)
        return engine

    # ---- predicting ------------------------------------------------------------------------------------------------
    async def outputs(self, tenant: int, task: AdaptedTask, engine: Engine, inputs: Inputs) -> TaskOutputs:
        """Return the outputs of a task for inputs; ServiceError if an input cannot be read, or too many wait."""
        items = self._reader(engine).check(inputs, self.config.max_queue_rows)
        with engine.predictions.announced(len(items)):
            encoded = await self._prepared(self._reader(engine).prepare, items)
        return await engine.outputs(tenant, task, encoded)

    async def preview(self, tenant: int, request: PreviewRequest) -> PreviewReply:
        """Return what the task of labelled inputs says of queries; nothing is stored."""
        reader = self._reader(self.engine)
        items = self.checked(request)
        queries = reader.check(request.queries, self.config.max_queue_rows, "queries")
        rows = len(items) + len(queries)
        with self.engine.adaptations.announced(rows):
            prepared = await self._prepared(reader.prepare, items)
            encoded = await self._prepared(reader.prepare, queries, "queries")
        support = Support(prepared, request.labels, request.kind, request.groups)
        return await self.engine.run(tenant, rows, lambda lane: preview(lane, support, encoded, request.neighbours))

    # ---- adapting --------------------------------------------------------------------------------------------------
    def checked(self, request: LabelledRequest, present: int = 0) -> Sequence[bytes] | Sequence[str]:
        """Return the inputs of labelled examples; ServiceError if they do not fit, or are too many.

        Args:
            request: The examples.
            present: How many examples the task has already.
        """
        items = self._reader(self.engine).check(request.inputs, self.config.max_examples)
        if present + len(items) > self.config.max_examples:
            message = f"{present} and {len(items)} examples, expected at most {self.config.max_examples} of a task"
            raise ServiceError("invalid_input", message, f"inputs.{self.kind}")
        for field, values in (("labels", request.labels), ("groups", request.groups)):
            if values is not None and len(values) != len(items):
                raise ServiceError("invalid_input", f"{field}: {len(values)} for {len(items)} inputs", field)
        return items

    async def create(self, tenant: int, request: TaskRequest, key: str | None) -> tuple[StoredTask, bool]:
        """Make a task and store it; return it, and whether it is new.

        Args:
            tenant: Whose task it is.
            request: What it is made from.
            key: The idempotency key: a request that is sent again gives the task of the first time.

        Raises:
            ServiceError: The examples are no task, the tenant has too many, or the key was used for another request.
        """
        items = self.checked(request)
        digest = request_digest(request, items)
        try:
            if key is not None:
                known = await self.stored(self.store.known_request, tenant, key, digest)
                if known is not None:
                    return known, False
            with self.engine.adaptations.announced(len(items)):
                encoded = await self._prepared(self._reader(self.engine).prepare, items)
            made = await self._made(tenant, encoded, request)
            summary = made.summary | {"name": request.name}
            examples = self._examples(items, request) if request.keep_examples else None
            new = NewTask(self.engine.fingerprint, made.content, summary, examples)
            return await self.stored(
                self.store.create_task,
                tenant,
                new,
                limit=self.config.max_tasks,
                idempotency_key=key,
                request_digest=digest,
            )
        except LimitReached:
            message = f"you have {self.config.max_tasks} tasks, which is the limit: delete one first"
            raise ServiceError("limit_reached", message) from None
        except KeyReused:
            raise _key_reused() from None

    async def add_examples(
        self, tenant: int, task_id: str, request: LabelledRequest, key: str | None = None
    ) -> StoredTask:
        """Adapt to the old and the new examples of a task; return its next version.

        Additions to one task are made one after another; none is lost.

        Args:
            tenant: Whose task it is.
            task_id: The task.
            request: The new examples.
            key: The idempotency key: a request that is sent again adds nothing.

        Raises:
            ServiceError: There is no such task, it does not keep its examples, or the examples do not fit to it.
        """
        change = self._changes.setdefault((tenant, task_id), asyncio.Lock())
        try:
            async with change:  # of this process; another one is noticed by the version
                for _ in range(ATTEMPTS):
                    try:
                        return await self._added(tenant, task_id, request, key)
                    except VersionConflict:
                        continue
        finally:
            if not change.locked():
                self._changes.pop((tenant, task_id), None)
        raise ServiceError("busy", "others change this task all the time; try again later", retry_after=1)

    async def _added(self, tenant: int, task_id: str, request: LabelledRequest, key: str | None) -> StoredTask:
        task = await self.task(tenant, task_id)
        if not task.keeps_examples:
            raise ServiceError("conflict", "this task does not keep its examples: create it with keep_examples")
        items = self.checked(request, task.summary["examples"])
        requests = _with_request(task, key, request_digest(request, items))
        if requests is None:
            return task
        old = await self.stored(self.store.examples, tenant, task_id)
        if old is None:
            raise not_found()
        every = [*old, *self._examples(items, request)]
        encoded = await self._encoded(every, items)
        made = await self._made(tenant, encoded, _merged(every, task.summary["kind"]))
        summary = made.summary | {"name": task.summary["name"], "requests": requests}
        new = NewTask(self.engine.fingerprint, made.content, summary, every)
        try:
            return await self.stored(self.store.replace_task, tenant, task_id, new, version=task.version)
        except KeyError:  # it was deleted in between
            raise not_found() from None

    async def remade(self, task: StoredTask, examples: Sequence[Example]) -> NewTask:
        """Return the next version of a task, made by the current learner from all its examples; nothing is stored.

        Args:
            task: The task.
            examples: Its examples.

        Raises:
            ServiceError: The examples are no task for the current learner, or too many inputs wait.
        """
        contents = [content_of(example) for example in examples]
        encoded = await self._prepared(self._reader(self.engine).prepare, contents, "stored")
        made = await self._made(NO_TENANT, encoded, _merged(examples, task.summary["kind"]))
        return NewTask(self.engine.fingerprint, made.content, task.summary | made.summary, examples)

    async def _encoded(self, every: Sequence[Example], new_items: Sequence[Any]) -> list[Tensor]:
        """Return all examples prepared; an error names one of the new, since the old were read before."""
        reader = self._reader(self.engine)
        with self.engine.adaptations.announced(len(every)):
            new = await self._prepared(reader.prepare, new_items)
            old = [content_of(example) for example in every[: len(every) - len(new)]]
            return [*await self._prepared(reader.prepare, old, "stored"), *new]

    async def _made(self, tenant: int, encoded: Sequence[Tensor], labelled: Any) -> MadeTask:
        support = Support(encoded, labelled.labels, labelled.kind, labelled.groups)
        most, fingerprint = self.config.task_bytes, self.engine.fingerprint
        return await self.engine.run(tenant, len(encoded), lambda lane: made_task(lane, support, most, fingerprint))

    def _examples(self, items: Sequence[Any], request: LabelledRequest) -> list[Example]:
        groups: Sequence[Any] = request.groups or [None] * len(items)
        return [
            Example("text", item.encode(), label, group)
            if isinstance(item, str)
            else Example("image", item, label, group)
            for item, label, group in zip(items, request.labels, groups, strict=True)
        ]


def content_of(example: Example) -> bytes | str:
    """Return the input of an example as `InputReader.prepare` takes it."""
    return example.content.decode() if example.kind == "text" else example.content


def _merged(examples: Sequence[Example], kind: str) -> Support:
    """Return the labels and groups of all examples; ServiceError if only some have groups."""
    grouped = [example.group is not None for example in examples]
    if any(grouped) and not all(grouped):
        raise ServiceError("conflict", "either all examples of a task have groups, or none", "groups")
    groups = [example.group for example in examples] if any(grouped) else None
    return Support((), [example.label for example in examples], kind, groups)


def _with_request(task: StoredTask, key: str | None, digest: bytes) -> dict[str, str] | None:
    """Return the idempotency keys of a task with a further one; None if the request was answered before."""
    requests: dict[str, str] = task.summary.get("requests", {})
    if key is None:
        return requests
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    if requests.get(name, digest.hex()) != digest.hex():
        raise _key_reused()
    if name in requests:
        return None
    return dict([*requests.items(), (name, digest.hex())][-REMEMBERED_REQUESTS:])


def _key_reused() -> ServiceError:
    return ServiceError("conflict", "this Idempotency-Key was used before with another request", "Idempotency-Key")


def request_digest(request: LabelledRequest, items: Sequence[Any]) -> bytes:
    """Return a digest of what a request says, whether it was sent as JSON or as a form.

    Args:
        request: The request.
        items: Its inputs.
    """
    digest = hashlib.sha256(json.dumps(request.model_dump(mode="python", exclude={"inputs"}), sort_keys=True).encode())
    for item in items:
        content = item.encode() if isinstance(item, str) else item
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.digest()
