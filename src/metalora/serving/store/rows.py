"""Rows of the tables: as Python objects, and with the checksums that find a damaged one."""

from __future__ import annotations

import hashlib
import json
import secrets
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from metalora.serving.store.base import Example, NewTask, StoredTask, StoreFailure, Tenant

ID_BYTES = 16
TENANT_COLUMNS = "id, name, created, revoked"
TASK_COLUMNS = "id, version, learner, size, summary, keeps_examples, created, updated"


def new_task_id() -> str:
    """Return a new id of a task that cannot be guessed: "t_" and 22 characters, 128 bits.

    Example:
        >>> len(new_task_id())
        24
    """
    return "t_" + secrets.token_urlsafe(ID_BYTES)


def now(before: timedelta = timedelta(0)) -> str:
    """Return the time in UTC, ISO 8601 to the millisecond, less a duration.

    Example:
        >>> len(now())
        29
    """
    return (datetime.now(UTC) - before).isoformat(timespec="milliseconds")


def searchable(text: str) -> str:
    """Return a text if a database can look for it; otherwise the empty text, which no row has.

    Args:
        text: What a client sent as an id.

    Example:
        >>> searchable("t_1"), searchable("t\\0"), searchable("t\\ud800")
        ('t_1', '', '')
    """
    return text if text.isprintable() else ""


def tenant_of_row(row: Sequence[Any]) -> Tenant:
    """Return a tenant from its TENANT_COLUMNS."""
    number, name, created, revoked = row
    return Tenant(number, name, created, bool(revoked))


def task_of_row(row: Sequence[Any]) -> StoredTask:
    """Return a task from its TASK_COLUMNS."""
    task_id, version, learner, size, summary, keeps_examples, created, updated = row
    return StoredTask(
        id=task_id,
        version=version,
        learner=learner,
        size=size,
        summary=json.loads(summary),
        keeps_examples=bool(keeps_examples),
        created=created,
        updated=updated,
    )


def packed(content: bytes) -> bytes:
    """Return a task file as it is stored: the names of its tensors repeat so often that it takes half the room.

    Example:
        >>> len(packed(b"conv1" * 100)) < 30
        True
    """
    return zlib.compress(content)


def unpacked(stored: bytes) -> bytes:
    """Return the task file that `packed` was given.

    Example:
        >>> unpacked(packed(b"content"))
        b'content'
    """
    return zlib.decompress(stored)


def task_checksum(task_id: str, version: int, learner: str, stored: bytes) -> bytes:
    """Return the SHA-256 of a version of a task, with its packed content and whose it is.

    Example:
        >>> task_checksum("t_1", 1, "learner", b"") == task_checksum("t_1", 2, "learner", b"")
        False
    """
    return _digest((task_id, version, learner), stored)


def example_row(task: int, position: int, example: Example) -> tuple[Any, ...]:
    """Return a row of the table of examples: task, position, kind, label, group_name, checksum, content."""
    label, group = _json(example.label), _json(example.group)
    checksum = _digest((example.kind, label, group), example.content)
    return task, position, example.kind, label, group, checksum, example.content


def example_of_row(row: Sequence[Any], place: str) -> Example:
    """Return an example from the columns kind, label, group_name, checksum, content.

    Args:
        row: The columns.
        place: How messages call the example.

    Raises:
        StoreFailure: It is not the one that was written.
    """
    kind, label, group, checksum, content = row
    if _digest((kind, label, group), content) != checksum:
        raise StoreFailure(f"{place}: does not match its checksum: it was damaged after it was written")
    return Example(kind, content, json.loads(label), json.loads(group))


def summary_text(task: NewTask) -> str:
    """Return the summary of a task as JSON.

    Raises:
        ValueError: JSON cannot hold it, or it has NaN or infinite numbers.
    """
    return _json(task.summary)


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _digest(facts: Sequence[Any], content: bytes) -> bytes:
    digest = hashlib.sha256(json.dumps(facts).encode())
    digest.update(content)
    return digest.digest()
