"""Tasks as a store gets them, and stores to put them into."""

import hashlib

from metalora.serving.store import Example, NewTask

NO_LIMIT = 10**9
STRANGE_IDS = ("", "t_", "t_\0", "\ud800", "x" * 10_000, "' OR 1=1 --", "%", "t_é", "?")


def new_task(number=0, size=500, examples=None, learner="learner"):
    """A task whose content and summary tell its number."""
    content = hashlib.shake_256(str(number).encode()).digest(size)
    summary = {"name": f"task {number}", "classes": ["a", "ü\0", 3], "accuracy": None, "examples": 2}
    return NewTask(learner, content, summary, examples)


def example(number, group=None):
    """A labelled text; its label is its number."""
    return Example("text", f"text {number} \0 é".encode(), number, group)


def add_tenant(store, name="tenant"):
    """The number of a new tenant, whose key has the SHA-256 of its name."""
    return store.add_tenant(name, hashlib.sha256(name.encode()).digest()).id


def create(store, tenant, number=0, **options):
    """The new task of a number."""
    return store.create_task(tenant, new_task(number, **options), limit=NO_LIMIT)[0]
