"""Makes the tasks of older learners anew with the current one, in the background, from their stored examples."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

from prometheus_client import Counter, Gauge

from metalora.serving.errors import ServiceError
from metalora.serving.logs import LOGGER
from metalora.serving.service import Service
from metalora.serving.store import StoredTask, StoreFailure, VersionConflict

PAGE = 256  # tasks that are read at once; two processes take those of a page in different orders
PAUSE = 30.0  # seconds until the store is asked again whether older learners have tasks


class Readaptation:
    """The job of one process. Several processes may run it on one store.

    A task is replaced only if it has still the version that was read, so nothing that a tenant does meanwhile is lost.
    What is done is done: after a stop the job goes on with the tasks that are left.

    Args:
        service: The service; its first learner is the current one.

    Attributes:
        older: Fingerprints of the older learners whose tasks are made anew. Tasks of learners that this process does
            not serve are left alone: another process may have a newer learner.
    """

    def __init__(self, service: Service):
        self.service = service
        self.older = [name for name in service.engines if name != service.engine.fingerprint]
        self._unused: set[str] = set()
        registry = service.metrics.registry
        self._left = Gauge("metalora_older_tasks", "Tasks of an older learner", ("learner",), registry=registry)
        self._tried = Counter(
            "metalora_readaptations", "Tasks of older learners that were taken up", ("outcome",), registry=registry
        )

    async def run(self) -> None:
        """Look for tasks of older learners again and again, until it is cancelled or the service stops."""
        while self.older and not self.service.stopping:
            try:
                await self.run_once()
            except StoreFailure as error:
                LOGGER.warning("the re-adaptation waits for the store: %s", error)
            await asyncio.sleep(PAUSE * random.uniform(0.5, 1.5))

    async def run_once(self) -> None:
        """Make all tasks of older learners anew that keep their examples, and count what is left."""
        for learner in self.older:
            await self._count()
            after = ""
            while page := await self._outdated(learner, after):
                after = page[-1][1].id
                for tenant, task in random.sample(page, len(page)):
                    if self.service.stopping:
                        return
                    self._tried.labels(await self._outcome(tenant, task)).inc()
                await self._count()

    async def _outdated(self, learner: str, after: str) -> list[tuple[int, StoredTask]]:
        return await self.service.stored(self.service.store.outdated, learner, limit=PAGE, after=after)

    async def _outcome(self, tenant: int, task: StoredTask) -> str:
        """Make a task anew; return "done", "changed" (by somebody else) or "failed"; the next round tries it again."""
        try:
            return "done" if await self._readapted(tenant, task) else "changed"
        except ServiceError as error:
            self._warn(tenant, task, error.code)
            await asyncio.sleep(error.retry_after or 0)  # if the lane is full, requests go first
        except Exception as error:  # its message may have what the tenant sent
            self._warn(tenant, task, type(error).__name__)
        return "failed"

    @staticmethod
    def _warn(tenant: int, task: StoredTask, reason: str) -> None:
        fields = {"tenant": tenant, "task": task.id[:6], "reason": reason}
        LOGGER.warning("a task of an older learner could not be made anew", extra={"fields": fields})

    async def _readapted(self, tenant: int, task: StoredTask) -> bool:
        """Store the next version of a task; return False if somebody has changed it since it was listed."""
        service, store = self.service, self.service.store
        if await service.stored(store.task, tenant, task.id) != task:
            return False
        examples = await service.stored(store.examples, tenant, task.id)
        if examples is None:
            return False
        new = await service.remade(task, examples)
        try:
            await service.stored(store.replace_task, tenant, task.id, new, version=task.version)
        except (KeyError, VersionConflict):
            return False
        return True

    async def _count(self) -> None:
        counts = await self.service.stored(self.service.store.count_by_learner)
        for learner in self.older:
            self._left.labels(learner).set(counts.get(learner, 0))
        unused = {learner for learner in self.older if not counts.get(learner)}
        for learner in sorted(unused - self._unused):
            LOGGER.info("no task is left of the older learner %s: leave it out at the next start", learner)
        self._unused = unused


@contextlib.asynccontextmanager
async def readapting(service: Service) -> AsyncIterator[None]:
    """Run the re-adaptation in the background as long as the context lasts.

    Args:
        service: The service; without older learners, or with `readapt` off, nothing runs.
    """
    job = asyncio.create_task(Readaptation(service).run()) if service.config.readapt else None
    try:
        yield
    finally:
        if job is not None:
            job.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await job
