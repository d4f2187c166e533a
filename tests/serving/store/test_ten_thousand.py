"""Ten thousand tenants with a task each: how many bytes they take on the disk, and no memory to be read."""

import hashlib
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import timm

from metalora import AdapterConfig, ConditionConfig
from metalora.learner import ImagePreprocessor, MetaLearner
from metalora.serving.store import NewTask, open_store
from support.serving import pictures

TENANTS = 10_000
BARS = {10_000: 10_000, 20_000: 20_000}  # largest readout -> bytes of a tenant on the disk
SUMMARY = {"kind": "classes", "classes": ["across", "upright"], "examples": 60, "accuracy": 1.0, "name": "stripes"}


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module")
def task():
    """A task of 60 examples of a network of ordinary width."""
    adapter = AdapterConfig("metalora-cp", rank=4, targets="all", condition=ConditionConfig(scope="support", hidden=8))
    preparation = ImagePreprocessor(size=(32, 32), resize=32)
    learner = MetaLearner(timm.create_model("resnet18"), adapter=adapter, preprocessor=preparation)
    return learner.adapt(pictures(60), ["across", "upright"] * 30)


@pytest.mark.slow
@pytest.mark.parametrize("max_bytes, bar", BARS.items(), ids=map(str, BARS))
def test_a_tenant_takes_few_bytes_and_reading_takes_no_memory(tmp_path, task, max_bytes, bar):
    content = task.to_bytes(max_bytes=max_bytes)
    path = tmp_path / "tasks.db"
    store = open_store(path)
    random.seed(0)

    def add(number):
        tenant = store.add_tenant(f"tenant {number}", hashlib.sha256(b"%d" % number).digest())
        own = content[:-400] + random.randbytes(400)  # numbers of its own: the same content would not be realistic
        return tenant.id, store.create_task(tenant.id, NewTask("0" * 32, own, SUMMARY), limit=1)[0]

    with ThreadPoolExecutor(16) as pool:
        tasks = list(pool.map(add, range(TENANTS)))
    store.close()
    size = path.stat().st_size / TENANTS
    store = open_store(path)
    for tenant, stored in tasks[:100]:
        store.content(tenant, stored.id, 1)
    before = resident_bytes()
    for tenant, stored in tasks:
        assert store.task(tenant, stored.id).size == len(store.content(tenant, stored.id, 1))
    grown = resident_bytes() - before
    store.close()
    print(f"readout {max_bytes}: file {len(content)}, {size:.0f} bytes a tenant on disk, memory grew {grown} bytes")
    assert size <= bar and grown < 2 * 2**20
