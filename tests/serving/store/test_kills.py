"""kill -9 in the middle of writes: every task that was acknowledged is there, byte for byte, and none is half there."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from metalora.serving.store import open_store
from support.stored_tasks import add_tenant

# It says which task it has written after the store has said so; four threads, so that commits have several tasks.
WRITER = """
import hashlib, os, sys, threading
from metalora.serving.store import Example, NewTask, open_store

store, tenant, seed = open_store(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

def content(name):
    return hashlib.shake_256(name.encode()).digest(9_000)

def write(thread):
    for number in range(10**9):
        name = f"{seed}-{thread}-{number}"
        examples = [Example("text", name.encode(), name)] if number % 3 == 0 else None
        task = store.create_task(tenant, NewTask("learner", content(name), {"name": name}, examples), limit=10**9)[0]
        version = 1
        if number % 4 == 0:
            name += "-changed"
            task = store.replace_task(tenant, task.id, NewTask("learner", content(name), {"name": name}), version=1)
        os.write(1, f"{task.id} {task.version} {name}\\n".encode())

for thread in range(4):
    threading.Thread(target=write, args=(thread,)).start()
"""


def killed_writer(url, tenant, seed, least):
    """The lines of a writer that was killed after it had acknowledged some tasks, and a moment of chance."""
    command = [sys.executable, "-c", WRITER, url, str(tenant), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        lines = [process.stdout.readline() for _ in range(least)]
        time.sleep(random.Random(seed).uniform(0, 0.02))
        os.kill(process.pid, signal.SIGKILL)
        lines += process.stdout.readlines()
    assert process.returncode == -signal.SIGKILL
    return [line.decode().split() for line in lines if line.endswith(b"\n")]


def check_everything(url, tenant, acknowledged):
    """Fail unless all acknowledged tasks are as they were written, and all other ones are whole."""
    store = open_store(url)
    assert len(acknowledged) == len({task_id for task_id, *_ in acknowledged})
    for task_id, version, name in acknowledged:
        task = store.task(tenant, task_id)
        assert (task.version, task.summary["name"]) == (int(version), name)
    tasks = store.tasks(tenant, limit=10**6)
    for task in tasks:
        name = task.summary["name"]
        assert store.content(tenant, task.id, task.version) == hashlib.shake_256(name.encode()).digest(9_000)
        examples = store.examples(tenant, task.id)
        assert (examples is not None) == task.keeps_examples
        assert examples is None or [example.label for example in examples] == [name]
    store.close()
    assert len(tasks) <= len(acknowledged) + 4 * len({name.split("-")[0] for _, _, name in acknowledged})


def kill_many_times(url, kills, least):
    store = open_store(url)
    tenant = add_tenant(store)
    store.close()
    acknowledged = []
    for seed in range(kills):
        acknowledged += killed_writer(url, tenant, seed, least)
        check_everything(url, tenant, acknowledged)
    return acknowledged


def test_no_acknowledged_task_is_lost(url):
    assert len(kill_many_times(url, kills=2, least=15)) >= 30


@pytest.mark.slow
def test_no_acknowledged_task_of_many_is_lost(url):
    assert len(kill_many_times(url, kills=20, least=50)) >= 1_000
