"""Thousands of tenants with a task each, written into the store of a service that runs."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from metalora.serving.keys import key_digest, new_key
from metalora.serving.store import NewTask, Store, StoredTask, Tenant
from serving_load.learners import Inputs
from serving_load.process import ServedProcess

WRITERS = 32  # threads: the store commits what waits together
DISTINCT_TASKS = 64


@dataclass(frozen=True)
class Owner:
    """A tenant with one task.

    Attributes:
        key: Its API key.
        task: Id of its task.
        template: Number of the support set of the task.
    """

    key: str
    task: str
    template: int


class Templates:
    """Tasks that the service has made, to be copied.

    Args:
        store: The store of the service.
        service: The process of the service.

    Attributes:
        key: The key of the tenant that has made them.
        inputs: The inputs of the service.
    """

    def __init__(self, store: Store, service: ServedProcess):
        self.store = store
        self.key = new_key()
        self.tenant = store.add_tenant("templates", key_digest(self.key))
        self.inputs = Inputs(service.request("GET", "/v1/service", self.key)["inputs"])
        bodies = (self.inputs.labelled(number) for number in range(DISTINCT_TASKS))
        ids = [service.request("POST", "/v1/tasks", self.key, body)["task"] for body in bodies]
        self.tasks = [self._new_task(task_id) for task_id in ids]

    def _new_task(self, task_id: str) -> NewTask:
        stored = self.store.task(self.tenant.id, task_id)
        assert isinstance(stored, StoredTask)
        content = self.store.content(self.tenant.id, task_id, stored.version)
        assert content is not None
        return NewTask(stored.learner, content, stored.summary)

    def add_tenants(self, start: int, count: int) -> list[Owner]:
        """Add tenants number `start` to `start + count - 1`, and return them."""
        with ThreadPoolExecutor(WRITERS) as pool:
            return list(pool.map(self._add_tenant, range(start, start + count)))

    def _add_tenant(self, number: int) -> Owner:
        key, template = new_key(), number % DISTINCT_TASKS
        tenant: Tenant = self.store.add_tenant(f"tenant {number}", key_digest(key))
        task, _ = self.store.create_task(tenant.id, self.tasks[template], limit=1)
        return Owner(key, task.id, template)
