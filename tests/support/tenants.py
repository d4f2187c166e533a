"""One model that serves several tenants from several threads or tasks, and the output that each tenant has to get."""

import asyncio
import contextlib
import threading
import time

import pytest
import torch
from torch import nn

from metalora import AdapterConfig, ConditionConfig, attach
from support.adapters import randomise

GIVEN = ConditionConfig(source="tensor", scope="support", labelled=False, feature_size=5)
X = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
TENANTS = tuple(f"tenant {number}" for number in range(64))


class Served:
    """One model for several tenants, and the output that each of them has to get."""

    def __init__(self, tenants=("A", "B")):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)).eval()
        with torch.no_grad():
            base = self.model(X)
        self.adapter = attach(self.model, AdapterConfig("metalora-cp", 2, targets="linear", condition=GIVEN))
        randomise(self.adapter)
        with torch.no_grad():
            self.conditions = {name: self.adapter.condition(4 * torch.randn(6, 5)) for name in tenants}
            self.right = {name: self.model(X, condition=c) for name, c in self.conditions.items()} | {"base": base}
        assert len({tuple(output.flatten().tolist()) for output in self.right.values()}) == len(tenants) + 1

    def block(self, tenant):
        return self.adapter.disabled() if tenant == "base" else self.adapter.using(self.conditions[tenant])

    @contextlib.contextmanager
    def tenant(self, tenant):
        """The block as users wrap it: a context manager that is a generator."""
        with self.block(tenant):
            yield

    def run(self, tenant):
        with self.block(tenant):
            return tenant, self.model(X)

    def check_nothing_is_active(self):
        current = self.adapter.current()
        assert current.values is None and current.enabled and self.adapter.state.forward is None
        with pytest.raises(ValueError, match="make it with adapter.condition"):
            self.model(X)
        with pytest.raises(RuntimeError, match="no condition is active"):
            self.model[1](X)


def forwards_of(served, worker, count):
    """Forwards that a worker makes, each for another tenant: by `using`, or by an explicit condition."""
    for number in range(count):
        tenant = TENANTS[(7 * number + 11 * worker) % len(TENANTS)]
        explicit = number % 3 == 0
        block = contextlib.nullcontext() if explicit else served.block(tenant)
        yield tenant, block, {"condition": served.conditions[tenant]} if explicit else {}


def serve_in_threads(served, workers, count):
    """Serve, and return how many outputs were those of their tenants."""
    right, entered = [0] * workers, threading.Barrier(workers)

    def work(worker):
        entered.wait()
        with torch.no_grad():
            for tenant, block, arguments in forwards_of(served, worker, count):
                with block:
                    right[worker] += torch.equal(served.model(X, **arguments), served.right[tenant])

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(right)


def serve_in_tasks(served, workers, count):
    async def work(worker):
        right = 0
        for tenant, block, arguments in forwards_of(served, worker, count):
            with block:
                await asyncio.sleep(0)  # another task runs now, inside of a block of its own
                right += torch.equal(served.model(X, **arguments), served.right[tenant])
        return right

    async def all_of_them():
        return sum(await asyncio.gather(*(work(worker) for worker in range(workers))))

    with torch.no_grad():
        return asyncio.run(all_of_them())


def served_outputs(forwards, workers=8):
    """Yield (by whom, outputs that were those of their tenants, forwards per second): one thread, threads, tasks."""
    served = Served(TENANTS)
    for name, serving, count in (
        ("1 thread", serve_in_threads, 1),
        (f"{workers} threads", serve_in_threads, workers),
        (f"{workers} tasks", serve_in_tasks, workers),
    ):
        start = time.perf_counter()
        right = serving(served, count, forwards // count)
        yield name, right, forwards / (time.perf_counter() - start)
