"""What every store can do, and the rows that it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class Tenant:
    """Somebody who has tasks.

    Attributes:
        id: Its number in the store.
        name: Its name, unique.
        created: When it was added, ISO 8601 in UTC.
        revoked: Whether its key is no longer valid.
    """

    id: int
    name: str
    created: str
    revoked: bool


@dataclass(frozen=True)
class Example:
    """A labelled input as the tenant sent it.

    Attributes:
        kind: "image" (bytes of a JPEG or PNG file) or "text" (UTF-8).
        content: The input.
        label: Its label, as JSON has it.
        group: Its group, or None.
    """

    kind: Literal["image", "text"]
    content: bytes
    label: Any
    group: Any = None


@dataclass(frozen=True)
class NewTask:
    """A task that is written.

    Attributes:
        learner: Fingerprint of the learner that made it.
        content: The task file, as `AdaptedTask.to_bytes` gives it.
        summary: What a reply says of it: kind, classes, examples, accuracy, name; JSON can hold it.
        examples: The labelled inputs, if the tenant wants them kept; otherwise None.
    """

    learner: str
    content: bytes
    summary: dict[str, Any]
    examples: Sequence[Example] | None = None


@dataclass(frozen=True)
class StoredTask:
    """A task that is stored, without its content.

    Attributes:
        id: Its id, "t_" and 22 characters; it cannot be guessed.
        version: 1, and one more with every change.
        learner: Fingerprint of the learner that made it.
        size: Size of its content, in bytes; the store packs it, and takes less.
        summary: As it was written.
        keeps_examples: Whether its examples are stored.
        created: When it was created, ISO 8601 in UTC.
        updated: When this version was written.
    """

    id: str
    version: int
    learner: str
    size: int
    summary: dict[str, Any]
    keeps_examples: bool
    created: str
    updated: str


class StoreFailure(ValueError):
    """The store cannot do its work: a full disk, a lost server, damaged content. The request is not at fault."""


class VersionConflict(ValueError):
    """A task was changed by somebody else since it was read."""


class LimitReached(ValueError):
    """A tenant has as many tasks as it may have."""


class KeyReused(ValueError):
    """An idempotency key was used before with another request."""


class Store(Protocol):
    """Tenants, tasks and examples. All methods may be called from any thread, and by several processes at once.

    What a method has written survives a crash of the machine as soon as the method has returned. A method that takes a
    tenant sees the tasks of this tenant only. Every method raises StoreFailure if the store does not answer or cannot
    be written; nothing is half written then.
    """

    # ---- tenants ---------------------------------------------------------------------------------------------------
    def add_tenant(self, name: str, key_digest: bytes) -> Tenant:
        """Add a tenant; ValueError if the name is taken."""

    def tenants(self) -> list[Tenant]:
        """Return all tenants, by their numbers."""

    def revoke(self, name: str) -> None:
        """Make the key of a tenant invalid; ValueError with the nearest name if there is no such tenant."""

    def tenant_of(self, key_digest: bytes) -> Tenant | None:
        """Return the tenant with this key (SHA-256 of it); None if there is none or the key was revoked."""

    # ---- tasks -----------------------------------------------------------------------------------------------------
    def create_task(
        self,
        tenant: int,
        task: NewTask,
        *,
        limit: int,
        idempotency_key: str | None = None,
        request_digest: bytes = b"",
    ) -> tuple[StoredTask, bool]:
        """Store a task, and return it, and whether it is new: a known idempotency key gives the task of then.

        An idempotency key is remembered for a day, or until its task is deleted.

        Raises:
            LimitReached: The tenant has `limit` tasks already.
            KeyReused: The idempotency key belongs to a request with another digest.
        """

    def known_request(self, tenant: int, idempotency_key: str, request_digest: bytes) -> StoredTask | None:
        """Return the task that a request with this idempotency key has created, or None; KeyReused as above."""

    def task(self, tenant: int, task_id: str) -> StoredTask | None:
        """Return a task, or None if this tenant has none of this id. It is fast enough for every request."""

    def content(self, tenant: int, task_id: str, version: int) -> bytes | None:
        """Return the task file of a version; None if it is no longer there. A damaged one is a StoreFailure."""

    def replace_task(self, tenant: int, task_id: str, task: NewTask, *, version: int) -> StoredTask:
        """Store the next version of a task.

        Args:
            tenant: The tenant.
            task_id: The task.
            task: The new version, with all examples if they are kept.
            version: The version that it was made from.

        Raises:
            KeyError: There is no such task.
            VersionConflict: The task has another version now.
        """

    def delete_task(self, tenant: int, task_id: str) -> bool:
        """Delete a task with all that belongs to it; False if there is none."""

    def tasks(self, tenant: int, *, limit: int, after: str | None = None) -> list[StoredTask]:
        """Return tasks in the order of their ids, those after an id."""

    def examples(self, tenant: int, task_id: str) -> list[Example] | None:
        """Return the examples of a task in the order they were given; None if they are not kept.

        A damaged example is a StoreFailure.
        """

    # ---- all tenants: for the service itself -----------------------------------------------------------------------
    def outdated(self, learner: str, *, limit: int, after: str = "") -> list[tuple[int, StoredTask]]:
        """Return tasks that an older learner made and that keep their examples, with their tenants.

        Args:
            learner: Fingerprint of the older learner.
            limit: Largest number of tasks.
            after: They are in the order of their ids, those after this one.
        """

    def count_by_learner(self) -> dict[str, int]:
        """Return how many tasks each learner has made: fingerprint -> number."""

    def check(self) -> None:
        """Raise a StoreFailure if the store does not answer."""

    def close(self) -> None:
        """Write what is pending and close."""
